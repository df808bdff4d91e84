"""Fitting a probe to clips with known cameras, and what it scores on cameras it has not seen (spec xfactor 8.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xfactor_ns.pose_similarity import centres, mean_scores, pose_similarity, posed, rebase
from xfactor_ns.probe import Probe
from xfactor_ns.transfer import Frames, Net, clip_latents, device_of

ANCHOR = 0.1
"""Weight of the translation error without the free scale: it makes the unit of the probe's lengths that of its clips,
and leads out of the mirrored solution."""
_PAIRS = 128
_STILL = 1e-9


class PosedLatents(NamedTuple):
    """One clip seen from one reference frame.

    Attributes:
        clip: its id.
        latents: of its frames ``[F Dp]``, on the CPU.
        poses: relative world-to-camera ``[F 4 4]``, OpenCV, float32, lengths in median distances to the reference.
        reference: whose latent is zero; it teaches and scores nothing.
    """

    clip: str
    latents: Float[Tensor, "F Dp"]
    poses: Float[Tensor, "F 4 4"]
    reference: int

    def only(self, frames: Int[Tensor, "n"]) -> PosedLatents:
        """Some frames, the reference always among them and first."""
        chosen = torch.cat([torch.tensor([self.reference]), frames[frames != self.reference]])
        return PosedLatents(self.clip, self.latents[chosen], self.poses[chosen], 0)


class ProbeScores(NamedTuple):
    """On cameras that were held out: of each direction.

    Attributes:
        pose: means over clips and references of `pose_similarity`.
        still: the same of a camera that stands still: clips that hardly turn flatter any probe's rotations.
        latent_residual: squared error of the regressed latents over the latents' own square, both standardised: 1 is no
            better than the latent of a camera that stands still.
    """

    pose: dict[str, float]
    still: dict[str, float]
    latent_residual: float


def encoder_fingerprint(net: Net) -> str:
    """SHA-256 of the pose encoder's parameters: latents and probes belong to one encoder."""
    digest = hashlib.sha256()
    for name, value in sorted(net.pose_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).data)
    return digest.hexdigest()


def relative_poses(w2c: Float[np.ndarray, "F 4 4"], reference: int) -> Float[np.ndarray, "F 4 4"]:
    """Poses in the reference camera's world, in units of the median distance of the frames that moved."""
    poses = rebase(np.asarray(w2c, np.float64), reference)
    distances = np.linalg.norm(centres(poses), axis=-1)
    moved = distances[distances > _STILL]
    poses[:, :3, 3] /= float(np.median(moved)) if len(moved) else 1.0
    return poses


def posed_latents(
    net: Net, clip: str, frames: Frames, w2c: Float[np.ndarray, "F 4 4"], references: int = 4, batch: int = 8
) -> list[PosedLatents]:
    """A clip as the probe learns it: from several reference frames, evenly spread.

    Args:
        w2c: world-to-camera, OpenCV; frames whose matrix is NaN are left out.

    Returns:
        One entry a reference; none for fewer than two frames with poses.
    """
    known = np.flatnonzero(posed(w2c))
    if len(known) < 2:
        return []
    frames = frames[torch.from_numpy(known)] if isinstance(frames, Tensor) else frames[known]
    places = np.unique((np.arange(references) + 0.5) * len(known) // references).astype(int)
    found = []
    for place in places.tolist():
        latents = clip_latents(net, frames, place, batch).cpu()
        poses = torch.from_numpy(relative_poses(w2c[known], place)).float()
        found.append(PosedLatents(clip, latents, poses, place))
    return found


def hold_out(
    clips: Sequence[PosedLatents], test: Sequence[str] = ()
) -> tuple[list[PosedLatents], list[PosedLatents], str]:
    """What to fit to, what to score on, and what the scores are of.

    Whole clips are held out: those named, or every fifth of five or more. Of fewer clips every fourth frame is; then
    the scores say how well the probe fills gaps within scenes it knows.
    """
    ids = list(dict.fromkeys(each.clip for each in clips))
    away = {each for each in ids if each in set(test)} or (set(ids[4::5]) if len(ids) >= 5 else set())
    if away and len(away) < len(ids):
        fit, scored = ([each for each in clips if (each.clip in away) == side] for side in (False, True))
        return fit, scored, f"{len(away)} clips"
    fit, scored = [], []
    for each in clips:
        frames = torch.arange(len(each.latents))
        fit.append(each.only(frames[frames % 4 != 2]))
        scored.append(each.only(frames[frames % 4 == 2]))
    return fit, [each for each in scored if len(each.latents) > 1], "every fourth frame"


def pose_loss(
    predicted: Float[Tensor, "n 4 4"], truth: Float[Tensor, "n 4 4"], clip: Int[Tensor, "n"], anchor: float = ANCHOR
) -> Float[Tensor, ""]:
    """``mean|R - R^| + mean|t - s^ t^| + anchor mean|t - t^|``, s^ the least-squares scale of each clip, not negative.

    With any sign of the scale, as the paper has it, a probe may learn every translation backwards and never notice:
    some seeds did.

    Args:
        clip: which clip each row is of, from 0.
    """
    rotation, other = predicted[:, :3, :3], truth[:, :3, :3]
    moved, wanted = predicted[:, :3, 3], truth[:, :3, 3]
    count = int(clip.max()) + 1
    products, squares = (
        moved.new_zeros(count).index_add(0, clip, (moved * factor).sum(-1)) for factor in (wanted, moved)
    )
    scale = (products / squares.clamp_min(1e-8)).clamp_min(0)[clip, None]
    errors = (rotation - other).abs().mean() + (wanted - scale * moved).abs().mean()
    return errors + anchor * (wanted - moved).abs().mean()


def latent_loss(probe: Probe, latents: Float[Tensor, "n Dp"], poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, ""]:
    """Mean squared error of the regressed latents, in standard deviations of the channels."""
    return ((probe.latents(poses) - latents) / probe.std).square().mean()


def fit_probe(
    clips: Sequence[PosedLatents], *, steps: int = 1000, lr: float = 1e-3, seed: int = 0, device: str = "cpu"
) -> Probe:
    """Fit both directions; the latents' encoder is not touched.

    Args:
        steps: updates of each direction, some 128 frames each; the rate falls to zero along a cosine.

    Raises:
        ValueError: no clips.
    """
    if not clips:
        raise ValueError("there are no clips with poses to fit to")
    rows = [torch.arange(len(each.latents)) != each.reference for each in clips]
    latents = [each.latents[keep] for each, keep in zip(clips, rows, strict=True)]
    poses = [each.poses[keep] for each, keep in zip(clips, rows, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(latents[0].shape[-1])
    probe.mean.copy_(torch.cat(latents).mean(0))
    # A channel that hardly moves must not be blown up, nor divided by zero.
    deviation = torch.cat(latents).std(0, correction=0)
    probe.std.copy_(deviation.clamp_min(1e-3 * float(deviation.max().clamp_min(1e-6))))
    probe.to(device)
    for net, back in ((probe.forward_net, False), (probe.inverse_net, True)):
        optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
        for _ in range(steps):
            z, t, clip = (each.to(device) for each in _draw(latents, poses, generator))
            loss = latent_loss(probe, z, t) if back else pose_loss(probe.poses(z), t, clip)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return probe.cpu().eval()


def _draw(
    latents: list[Tensor], poses: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Int[Tensor, "n"]]:
    """Whole clips in random order until there are `_PAIRS` rows."""
    chosen, rows = [], 0
    for index in torch.randperm(len(latents), generator=generator).tolist():
        chosen.append(index)
        rows += len(latents[index])
        if rows >= _PAIRS:
            break
    clip = torch.cat([torch.full((len(latents[index]),), place) for place, index in enumerate(chosen)])
    return torch.cat([latents[i] for i in chosen]), torch.cat([poses[i] for i in chosen]), clip


@torch.no_grad()
def score_probe(probe: Probe, clips: Sequence[PosedLatents]) -> ProbeScores:
    """Both directions on held-out clips (see `ProbeScores`).

    Raises:
        ValueError: no clip has two frames.
    """
    scores, still, error, size = [], [], 0.0, 0.0
    for each in clips:
        if len(each.latents) < 2:
            continue
        truth, found = each.poses.double().numpy(), probe.poses(each.latents).double().numpy()
        scores.append(pose_similarity(truth, found))
        still.append(pose_similarity(truth, np.tile(np.eye(4), (len(truth), 1, 1))))
        error += float(((probe.latents(each.poses) - each.latents) / probe.std).square().sum())
        size += float((each.latents / probe.std).square().sum())
    if not scores:
        raise ValueError("no clip has two frames to score")
    return ProbeScores(mean_scores(scores), mean_scores(still), error / max(size, 1e-12))


class LatentPoses(NamedTuple):
    """Poses of frames by encoder and probe: the oracle ``probe``.

    Attributes:
        net: the network whose latents the probe was fitted to.
        probe: on the CPU.
    """

    net: Net
    probe: Probe

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """World-to-camera poses of clips of frames in [0, 1], the first frame's camera being the world."""
        poses = []
        for clip in images:
            frames = (clip.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)
            latents = clip_latents(self.net, frames.to(device_of(self.net)), len(frames) // 2).cpu()
            poses.append(rebase(self.probe.poses(latents).double().numpy()))
        return np.stack(poses)
