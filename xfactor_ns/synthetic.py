"""A world of two-dimensional cameras in which transfer has ground truth (spec xfactor 12, check 16).

A camera looks at a smooth random colour texture through a square window; moving it shifts the window. The motion of a
pair of frames can be shown exactly on another texture, so that what the networks carry over can be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from xfactor_ns.objective import Draws, Objective, draw, photometric, psnr, seeded, step
from xfactor_ns.optimizers import DecayingAdamWConfig, tag_decay
from xfactor_ns.size import Size

SIDE, REACH = 32, 6
"""Pixels per side of a window, and how far it moves from the middle along each axis."""
TINY = Size(width=64, heads=4, blocks=2, patch=8, pose=16, registers=2, layer_scale=0.1)
"""0.47 million parameters: enough for this world."""
TRAINING, HELD_OUT = 0, 1
"""Tags of the generators: what is seen in training, and what is scored."""


def textures(count: int, generator: Generator) -> Float[Tensor, "n 44 44 3"]:
    """Smooth random colours in (-1, 1): noise of 3 x 3 and 6 x 6 cells at weights 1 and 0.35, bicubic, tanh(0.9 x)."""
    total = torch.zeros(count, 3, SIDE + 2 * REACH, SIDE + 2 * REACH)
    for cells, weight in ((3, 1.0), (6, 0.35)):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += weight * (bicubic(cells) @ noise @ bicubic(cells).T)
    return torch.tanh(0.9 * total).permute(0, 2, 3, 1)


@cache
def bicubic(cells: int) -> Float[Tensor, "44 cells"]:
    """Bicubic interpolation along one axis, as a matrix: a tenth of the time of torch's."""
    axis = torch.eye(cells)[:, None, :, None].expand(-1, -1, -1, 4)
    size = (SIDE + 2 * REACH, 4)
    return F.interpolate(axis, size, mode="bicubic", align_corners=False)[:, 0, :, 0].T.contiguous()


def windows(pictures: Float[Tensor, "n s s 3"], shifts: Int[Tensor, "n v 2"]) -> Float[Tensor, "n v 32 32 3"]:
    """Windows of each texture, moved down and right by ``shifts`` pixels from the middle."""
    at = torch.arange(SIDE)
    rows, columns = (REACH + shifts[..., axis, None] + at for axis in (0, 1))
    sample = torch.arange(len(pictures))[:, None, None, None]
    return pictures[sample, rows[..., :, None], columns[..., None, :]]


class Pairs(NamedTuple):
    """Pairs of frames in [-1, 1]: the window in the middle of a texture, and one that was moved."""

    frames: Float[Tensor, "n 2 32 32 3"]
    shift: Int[Tensor, "n 2"]
    """Of the second window: pixels down and right."""


def pairs(count: int, generator: Generator, shift: Int[Tensor, "n 2"] | None = None) -> Pairs:
    """Two windows of each of ``count`` new textures; shifts uniform in {-6..6} along each axis unless given."""
    if shift is None:
        shift = torch.randint(-REACH, REACH + 1, (count, 2), generator=generator)
    return Pairs(windows(textures(count, generator), torch.stack([torch.zeros_like(shift), shift], dim=1)), shift)


class Setting(NamedTuple):
    """How the networks learn this world.

    The spec's rate of 3e-3 finds one axis of motion and loses the other for good: before the renderer has a use for it,
    what the latents say of it is noise to it and is unlearned. At 1e-3 both come in, within 400 updates.
    """

    updates: int = 1000
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 200
    final_ratio: float = 0.1
    objective: Objective = "transfer"
    seed: int = 0


def learn(net: Any, setting: Setting, watch: Callable[[int], None] | None = None) -> list[float]:
    """Train ``net`` (`XFactorNet`) in place by L1 alone, without jitter; the loss of each update.

    Args:
        net: of 32 x 32 pictures: patch 4, 8 or 16.
        setting: see there.
        watch: called with the number of finished updates, after each.
    """
    from core_ns.schedules import CosineSchedulerConfig

    tag_decay(net)
    optimizer = DecayingAdamWConfig(lr=setting.lr).setup(net.parameters())
    schedule = CosineSchedulerConfig(
        max_steps=setting.updates, warmup_steps=setting.warmup, warmup_ratio=1e-4, final_ratio=setting.final_ratio
    )
    scheduler = schedule.setup().get_scheduler(optimizer, setting.lr)
    grid = (SIDE // net.size.patch,) * 2
    losses = []
    for update in range(setting.updates):
        generator = seeded(setting.seed, TRAINING, update)
        frames = pairs(setting.batch, generator).frames
        draws = _draws(setting.batch, grid, generator, setting.objective)
        loss = photometric(step(net, frames / 2 + 0.5, draws))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            watch(update + 1)
    return losses


def _draws(batch: int, grid: tuple[int, int], generator: Generator, objective: Objective) -> Draws:
    frame_ind = torch.tensor([[0, 1]]).expand(batch, -1)
    return draw(frame_ind, grid, generator, objective=objective, jitter=False)


class Scores(NamedTuple):
    """On textures never seen; PSNR in dB over all pictures."""

    recon: float
    """A pair's own motion in its own texture."""
    transfer: float
    """The latent read in texture A, rendered in texture B, against B moved as A was."""
    copy: float
    """The context frame itself against the truth: what a blind network reaches."""
    r2: float
    """Of a linear map from latents to shifts, fitted on half of the pairs, scored on the others."""


@torch.no_grad()
def score(net: Any, seed: int = 0, count: int = 512) -> Scores:
    """Measure reconstruction, transfer and the linear probe on ``count`` new pairs."""
    generator = seeded(seed, HELD_OUT)
    a = pairs(count, generator)
    b = pairs(count, generator, a.shift)
    latents = torch.cat([net.pose_encoder(part) for part in a.frames.split(64)])
    parts = [frames.split(64) for frames in (a.frames, b.frames)]
    shown = [
        torch.cat([net.renderer(x[:, :1], z) for x, z in zip(part, latents.split(64), strict=True)]) for part in parts
    ]
    return Scores(
        recon=float(psnr(shown[0], a.frames[:, 1])),
        transfer=float(psnr(shown[1], b.frames[:, 1])),
        copy=float(psnr(b.frames[:, 0], b.frames[:, 1])),
        r2=linear_r2(latents[:, 1], a.shift.float()),
    )


def linear_r2(latents: Float[Tensor, "n d"], motion: Float[Tensor, "n k"]) -> float:
    """Share of the motion's variance that a linear map of the latents explains, on the half it was not fitted to."""
    latents, motion = latents.double(), motion.double()
    inputs = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    half = len(inputs) // 2
    # A little shrinking: latents of an untrained network are nearly dependent.
    gram = inputs[:half].T @ inputs[:half]
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + ridge, inputs[:half].T @ motion[:half])
    truth = motion[half:]
    residual = (truth - inputs[half:] @ weights).square().sum()
    return float(1.0 - residual / (truth - truth.mean(dim=0)).square().sum())
