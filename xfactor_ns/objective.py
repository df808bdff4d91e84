"""What one training step asks of the networks: render half of a frame with the pose of the other half (spec 4.2, 4.3).

Two views of one camera motion without common pixels come from complementary masks; their pose latents are swapped
before rendering. Autoencoding, the control experiment, neither masks nor swaps.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Optional

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from xfactor_ns.augment import Jitter, Scenes, apply_jitter, apply_scenes, draw_jitter, draw_scenes, quadrant_masks
from xfactor_ns.proximity import proximity_permutation

Objective = Literal["transfer", "autoencode"]
"""transfer: the paper's; autoencode: the same step without masks and swap, which learns poses that do not transfer."""


def seeded(*numbers: int) -> Generator:
    """A CPU generator whose state depends on every number and on their order (numpy's entropy mixing)."""
    words = [len(numbers), *(number % 2**63 for number in numbers)]  # the mixing ignores zeros at the end
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1)


class Draws(NamedTuple):
    """All chance of one step, on the CPU: B samples of n frames, B (n - 1) pairs of a reference and another frame."""

    order: Int[Tensor, "b n"]
    """Frames of the sample: reference, further context frames, target."""
    mask: Optional[Int[Tensor, "b t"]]
    """Group of each patch; None when autoencoding."""
    unmasked: Bool[Tensor, "b"]
    """Samples whose mask is all zero."""
    jitter: Optional[Jitter]
    """For the pairs, those of sample 0 first (per frame: for both frames of each pair in turn); None: no jitter."""
    scenes: Optional[Scenes] = None
    """Changes to all frames of a sample; None: the clips as they are."""

    def part(self, first: int, count: int) -> Draws:
        """Those of ``count`` samples from number ``first`` on."""
        rows, each = slice(first, first + count), 0
        if self.jitter is not None:
            each = len(self.jitter.sigma) // len(self.order)
        groups = slice(first * each, (first + count) * each)
        return Draws(
            self.order[rows],
            None if self.mask is None else self.mask[rows],
            self.unmasked[rows],
            None if self.jitter is None else Jitter(*(value[groups] for value in self.jitter)),
            None if self.scenes is None else Scenes(*(value[rows] for value in self.scenes)),
        )


def draw(
    frame_ind: Int[Tensor, "b n"],
    grid: tuple[int, int],
    generator: Generator,
    *,
    objective: Objective = "transfer",
    unmasked: float = 0.05,
    self_reference: float = 0.05,
    jitter: bool = True,
    per_frame: bool = False,
    scenes: bool = False,
    part_of: tuple[int, int] | None = None,
) -> Draws:
    """Choose reference, target, masks and jitter of a batch.

    Args:
        frame_ind: frame numbers of the windows (see `proximity_permutation`), on the CPU.
        grid: rows and columns of patches.
        generator: of the CPU.
        objective: see `Objective`.
        unmasked: share of samples without mask.
        self_reference: probability that a sample's target is one of its own context frames.
        jitter: colours and blur of what the pose encoder sees.
        per_frame: jitter drawn for each frame of a pair anew.
        scenes: mirror the samples and exchange their colours (`apply_scenes`).
        part_of: (samples, first): the batch is a part of a larger one of so many samples, from number ``first`` on, and
            gets its part of that one's draws: a step is the same however processes and micro steps share it.
    """
    batch, n = frame_ind.shape
    if part_of is not None and part_of != (batch, 0):
        whole, first = part_of
        # Which of the others is central is not looked at: all chance is drawn before frame numbers come in.
        others = torch.arange(n).expand(whole, -1).clone()
        others[first : first + batch] = frame_ind
        options: dict[str, Any] = {"objective": objective, "unmasked": unmasked, "self_reference": self_reference}
        options |= {"jitter": jitter, "per_frame": per_frame, "scenes": scenes}
        return draw(others, grid, generator, **options).part(first, batch)
    order = proximity_permutation(frame_ind, generator)
    own = torch.rand(batch, generator=generator) < self_reference
    chosen = torch.randint(n - 1, (batch, 1), generator=generator)
    order[:, -1] = torch.where(own, order.gather(1, chosen)[:, 0], order[:, -1])
    mask, bare = None, torch.ones(batch, dtype=torch.bool)
    if objective == "transfer":
        mask, ones = quadrant_masks(batch, *grid, generator, unmasked)
        bare = ones == 0
    groups = batch * (n - 1) * (2 if per_frame else 1)
    return Draws(
        order,
        mask,
        bare,
        draw_jitter(groups, generator) if jitter else None,
        draw_scenes(batch, generator) if scenes else None,
    )


def swap(latents: Float[Tensor, "b *v 2 d"], unmasked: Bool[Tensor, "b"]) -> Float[Tensor, "b *v 2 d"]:
    """Exchange the latents of the two groups; samples without mask have only group 0's, which then serves both.

    Source: XFactor (Mitchel et al. 2026), transferability objective; spec xfactor 4.2.
    """
    first, second = latents[..., 0, :], latents[..., 1, :]
    bare = unmasked.to(latents.device).reshape(-1, *(1,) * (first.ndim - 1))
    return torch.stack([torch.where(bare, first, second), first], dim=-2)


def to_unit(frames: UInt8[Tensor, "*s"] | Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """uint8 to [0, 1]; floats pass."""
    return frames.float() / 255.0 if frames.dtype == torch.uint8 else frames


def step(net: Any, frames: UInt8[Tensor, "b n h w 3"] | Float[Tensor, "b n h w 3"], draws: Draws) -> dict[str, Tensor]:
    """Render the target of each sample from its context frames and the (swapped) latents of all its pairs.

    Args:
        net: `XFactorNet`.
        frames: as uint8 or floats in [0, 1], on the network's device.
        draws: of `draw`, for this batch.

    Returns:
        ``render`` and ``target`` [B, H, W, 3] in [-1, 1]; ``context`` [B, H, W, 3], the reference frame, likewise;
        ``latents`` [B, n, 2, Dp] before the swap (autoencoding: [B, n, Dp]), zeros for the reference.

    Source: XFactor (Mitchel et al. 2026); spec xfactor 4.2 (n = 2) and 4.3 (n = 6).
    """
    batch, n = frames.shape[:2]
    picked = to_unit(frames[torch.arange(batch)[:, None].to(frames.device), draws.order.to(frames.device)])
    if draws.scenes is not None:
        picked = apply_scenes(picked, draws.scenes)
    reference = picked[:, :1].expand(-1, n - 1, -1, -1, -1)
    pairs = torch.stack([reference, picked[:, 1:]], dim=2).flatten(0, 1)
    if draws.jitter is not None:
        per_frame = len(draws.jitter.sigma) != len(pairs)
        groups = pairs.flatten(0, 1)[:, None] if per_frame else pairs
        pairs = apply_jitter(groups, draws.jitter).reshape(pairs.shape)
    mask = draws.mask.to(frames.device) if draws.mask is not None else None
    pair_mask = mask.repeat_interleave(n - 1, dim=0) if mask is not None else None
    # View 0 of a pair is the reference, whose latent is zero by construction.
    found = net.pose_encoder(pairs * 2.0 - 1.0, pair_mask)[:, 1].unflatten(0, (batch, n - 1))
    latents = torch.cat([torch.zeros_like(found[:, :1]), found], dim=1)
    picked = picked * 2.0 - 1.0
    given = latents if mask is None else swap(latents, draws.unmasked)
    render = net.renderer(picked[:, :-1], given, mask)
    return {"render": render, "target": picked[:, -1], "context": picked[:, 0], "latents": latents}


def photometric(outputs: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Mean absolute difference on the [-1, 1] scale: twice that of [0, 1] pictures (spec xfactor 4.2)."""
    return (outputs["render"].float() - outputs["target"]).abs().mean()


def psnr(pred: Float[Tensor, "*s"], truth: Float[Tensor, "*s"]) -> Float[Tensor, ""]:
    """Of pictures in [-1, 1], over the whole batch, in dB."""
    mse = (pred.float() - truth.float()).square().mean() / 4.0
    return -10.0 * torch.log10(mse.clamp_min(1e-10))
