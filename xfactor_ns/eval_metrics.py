"""What ``ns-eval`` measures of an xfactor run (spec xfactor 8.5): reconstruction, and transfer that has a truth.

* ``recon``: the target's pose is read from the target itself: what autoencoding is judged by.
* ``masked_transfer``: the pose is read from one half of the pixels, jittered, and shows the other half. The only
  transfer between different pictures whose truth is known.
* ``cycle``: A's motion is rendered in B, its pose is read from that rendering, and A is rendered with it: a latent that
  is no camera motion does not survive the way through another scene.
* ``copy``: the nearest context frame as prediction, the score of a method that does nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing, image_metrics, psnr
from xfactor_ns.eval_samples import stereo_samples, window_samples
from xfactor_ns.latents import LatentBank, ShownClip
from xfactor_ns.objective import Draws, draw, seeded, step
from xfactor_ns.transfer import device_of, to_network

EVALUATION = 0x6576616C
"""Tag of the generators of masks and jitter, apart from those of training."""


class Plan(NamedTuple):
    """How clips are judged."""

    context_frames: int = 1
    """That the renderer sees: 1, or 5 of the multi-view model."""
    samples: int = 4
    """Targets per clip."""
    seed: int = 0
    batch: int = 8
    """Frames that go through the networks at once."""
    jitter: bool = True
    """Jitter and blur of the half that the pose is read from, as in training."""

    def samples_of(self, clip: ShownClip) -> list[tuple[int, ...]]:
        """Reference, further context frames, target: indices into the clip's shown frames.

        Pairs are half as far apart as the longest window of training, windows are as long.
        """
        span = int(clip.window) - 1 if clip.window is not None else clip.numbers[-1] - clip.numbers[0]
        if self.context_frames == 1:
            return list(stereo_samples(clip.numbers, max(span // 2, 1), self.samples))
        return window_samples(clip.numbers, span, self.context_frames + 1, self.samples)


class Judged(NamedTuple):
    """One target, and all that is shown beside it; pictures [H, W, 3] in [0, 1]."""

    row: dict[str, Any]
    """``clip``, ``reference`` and ``target`` (frame numbers), metrics."""
    pictures: dict[str, Float[Tensor, "h w 3"]]
    """context, truth, recon, masked_transfer, and with a second clip transfer and cycle."""

    @property
    def name(self) -> str:
        """For a file of its pictures."""
        clip = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in self.row["clip"])
        return f"eval_{clip}_{self.row['reference']:06d}_{self.row['target']:06d}.png"


def judge(
    net: Any, clips: Sequence[ShownClip], others: Sequence[ShownClip], plan: Plan, lpips: LpipsOrNothing | None = None
) -> Iterable[Judged]:
    """Measure every sample of every clip.

    Args:
        net: `XFactorNet`.
        clips: held-out ones.
        others: where to find the scene of the transfers of a single clip: the first of another id.
        plan: see `Plan`.
        lpips: kept from picture to picture.

    Raises:
        DataError: no clip has enough frames.
    """
    judged, bank = 0, LatentBank(plan.batch)
    for place, clip in enumerate(clips):
        samples = plan.samples_of(clip)
        if not samples:
            continue
        judged += 1
        following = (*clips[place + 1 :], *clips[:place], *others)
        scene = next((each for each in following if each.id != clip.id), None)
        yield from _judge_clip(net, bank, clip, scene, samples, plan, lpips)
    if not judged:
        need = plan.context_frames + 1
        raise DataError("gallery", "test", f"has no clip of {need} frames to judge.", "Hold longer clips out.")


def _judge_clip(
    net: Any,
    bank: LatentBank,
    clip: ShownClip,
    scene: ShownClip | None,
    samples: list[tuple[int, ...]],
    plan: Plan,
    lpips: LpipsOrNothing | None,
) -> Iterable[Judged]:
    pixels = bank.pixels(net, clip)
    frames = pixels[torch.tensor(samples, device=pixels.device)]
    start = time.perf_counter()
    shown = {"recon": _unit(_recon(net, frames, plan.batch))}
    if frames.is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / len(samples)
    shown["masked_transfer"] = _unit(_masked(net, frames, clip.id, plan))
    if scene is not None:
        moved, back = _cycle(net, bank, frames, scene, plan)
        shown |= {"transfer": _unit(moved), "cycle": _unit(back)}
    for index, sample in enumerate(samples):
        times = [clip.numbers[frame] for frame in sample]
        nearest = min(range(len(sample) - 1), key=lambda place: abs(times[place] - times[-1]))
        truth, copy = frames[index, -1].float() / 255, frames[index, nearest].float() / 255
        row: dict[str, Any] = {"clip": clip.id, "reference": times[0], "target": times[-1]}
        for name in ("recon", "masked_transfer", "cycle"):
            if name in shown:
                metrics = image_metrics(shown[name][index], truth, None, lpips)
                row |= {f"{name}_{key}": value for key, value in metrics.items()}
        row |= {"copy_psnr": psnr(copy, truth), "fps": 1.0 / max(seconds, 1e-9)}
        yield Judged(row, {"context": copy, "truth": truth} | {name: each[index] for name, each in shown.items()})


def _unit(images: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    return ((images + 1) / 2).clamp(0, 1)


@torch.no_grad()
def _recon(net: Any, frames: UInt8[Tensor, "n v h w 3"], batch: int) -> Float[Tensor, "n h w 3"]:
    """Targets from their own poses, without masks: `objective.step` as autoencoding runs it."""

    def one(part: Tensor) -> Tensor:
        return step(net, part, _still(len(part), part.shape[1]))["render"].float()

    return torch.cat([one(part) for part in frames.split(_samples_at_once(frames, batch))])


@torch.no_grad()
def _masked(net: Any, frames: UInt8[Tensor, "n v h w 3"], name: str, plan: Plan) -> Float[Tensor, "n h w 3"]:
    """Each half of the target from the pose that the other half gives; masks and jitter depend on the clip's name."""
    views, height, width = frames.shape[1:4]
    digest = int.from_bytes(hashlib.sha1(name.encode(), usedforsecurity=False).digest()[:6], "big")
    grid = height // net.size.patch, width // net.size.patch
    shown = []
    for index, sample in enumerate(frames):  # one by one: the draws must not depend on the batch
        generator = seeded(plan.seed, EVALUATION, digest, index)
        times = torch.arange(views)[None]
        draws = draw(times, grid, generator, unmasked=0.0, self_reference=0.0, jitter=plan.jitter)
        # The samples are in order already.
        shown.append(step(net, sample[None], draws._replace(order=times))["render"].float())
    return torch.cat(shown)


@torch.no_grad()
def _cycle(
    net: Any, bank: LatentBank, frames: UInt8[Tensor, "n v h w 3"], scene: ShownClip, plan: Plan
) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w 3"]]:
    """A's motion in another scene, and A rendered with the pose read from that."""
    _, seen, known = bank.context(net, scene, plan.context_frames)
    scene_frames = to_network(seen)
    moved, back = [], []
    for part in frames.split(_samples_at_once(frames, plan.batch)):
        own = to_network(part)
        count, views = own.shape[:2]
        pairs = torch.stack([own[:, :1].expand_as(own[:, 1:]), own[:, 1:]], dim=2).flatten(0, 1)
        latents = net.pose_encoder(pairs)[:, 1].unflatten(0, (count, views - 1))
        poses = torch.cat([known.to(latents).expand(count, -1, -1), latents[:, -1:]], dim=1)
        away = net.renderer(scene_frames.expand(count, *scene_frames.shape), poses).float()
        pairs = torch.stack([scene_frames[:1].expand_as(away), away], dim=1)
        read = net.pose_encoder(pairs)[:, 1:]
        poses = torch.cat([torch.zeros_like(read), latents[:, :-1], read], dim=1)
        moved.append(away)
        back.append(net.renderer(own[:, :-1], poses).float())
    return torch.cat(moved), torch.cat(back)


def _still(count: int, views: int) -> Draws:
    """No mask, no jitter, frames as they come."""
    return Draws(torch.arange(views).repeat(count, 1), None, torch.ones(count, dtype=torch.bool), None)


def _samples_at_once(frames: Tensor, batch: int) -> int:
    return max(batch // (frames.shape[1] - 1), 1)


@torch.no_grad()
def recon_psnr(net: Any, clips: Sequence[ShownClip], plan: Plan) -> float:
    """Mean reconstruction PSNR of clips, dB: for comparing networks, such as the untrained one."""
    values = []
    for clip in clips:
        if not (samples := plan.samples_of(clip)):
            continue
        pixels = torch.from_numpy(clip.read().copy()).to(device_of(net))
        frames = pixels[torch.tensor(samples, device=pixels.device)]
        shown = _unit(_recon(net, frames, plan.batch))
        values += [psnr(image, truth[-1].float() / 255) for image, truth in zip(shown, frames, strict=True)]
    return sum(values) / len(values) if values else float("nan")


def averaged(rows: Sequence[dict[str, Any]], with_deviation: bool) -> dict[str, float]:
    """Mean (and deviation, as ``KEY_std``) of each number over the rows that have it; ``psnr``, ``ssim`` and ``lpips``
    stand for reconstruction, as the columns of other methods do."""
    found: dict[str, float] = {}
    numbers = sorted({key for row in rows for key in row} - {"clip", "reference", "target"})
    for key in numbers:
        values = torch.tensor([float(row[key]) for row in rows if key in row], dtype=torch.float64)
        found[key] = float(values.mean())
        if with_deviation:
            found[f"{key}_std"] = float(values.std()) if len(values) > 1 else 0.0
    return {key.removeprefix("recon_"): value for key, value in found.items() if key.startswith("recon_")} | found


def strip(judged: Judged) -> UInt8[Tensor, "h w 3"]:
    """The pictures of one target side by side, in the order of `Judged.pictures`."""
    row = torch.cat(list(judged.pictures.values()), dim=1)
    return (row.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu()
