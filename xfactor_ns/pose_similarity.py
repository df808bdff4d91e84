"""True Pose Similarity: how alike two camera trajectories are (XFactor, Mitchel et al. 2026; spec xfactor 7).

Poses are world-to-camera with OpenCV axes, float64 ``[V 4 4]``. Rotation and direction scores compare the relative
poses ``T_i T_j^-1`` of all pairs i < j, so neither the world frame nor (for all but `traj_err_unscaled`) its scale
matters. A frame without a pose (an oracle's NaN matrix) is left out of both trajectories.

The paper's scores look at the axis of a translation only: a trajectory flown backwards, or mirrored through its first
camera, scores a perfect 1.0, and so do pictures of clip A itself instead of A's motion in B. `RTA_signed` sees the
former; the latter only a score of the pictures can see.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray

THRESHOLDS = (3, 5, 10, 15, 20, 30)
"""Degrees."""
_BINS, _RANGE = 31, 30.0
"""Of the histogram under the area-under-curve scores: bins are 30/31 degrees wide, as in the original."""


class PairErrors(NamedTuple):
    """Degrees, one value for each pair of frames i < j in the order (0, 1), (0, 2), ..., (1, 2), ..."""

    rotation: Float[Array, "p"]
    translation: Float[Array, "p"]
    """Between the axes of the translations: 0 to 90."""
    direction: Float[Array, "p"]
    """Between the translations with their sign: 0 to 180."""


def invert(w2c: Float[Array, "... 4 4"]) -> Float[Array, "... 4 4"]:
    """Inverse of rigid matrices."""
    inverse = np.zeros_like(w2c, dtype=np.float64)
    inverse[..., :3, :3] = np.swapaxes(w2c[..., :3, :3], -1, -2)
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", inverse[..., :3, :3], w2c[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def rebase(w2c: Float[Array, "V 4 4"], frame: int = 0) -> Float[Array, "V 4 4"]:
    """The same cameras in the world that is frame ``frame``'s camera: ``T_i T_frame^-1``."""
    return w2c @ invert(w2c[frame])


def centres(w2c: Float[Array, "V 4 4"]) -> Float[Array, "V 3"]:
    """Camera centres in the world."""
    return invert(w2c)[:, :3, 3]


def rotation_angle(first: Float[Array, "... 3 3"], second: Float[Array, "... 3 3"]) -> Float[Array, "..."]:
    """Angle of ``first second^T`` in degrees; accurate also near 0 and 180, where an arc cosine is not."""
    between = first @ np.swapaxes(second, -1, -2)
    twice_sine = np.stack(
        [
            between[..., 2, 1] - between[..., 1, 2],
            between[..., 0, 2] - between[..., 2, 0],
            between[..., 1, 0] - between[..., 0, 1],
        ],
        axis=-1,
    )
    return np.degrees(np.arctan2(np.linalg.norm(twice_sine, axis=-1), np.trace(between, axis1=-2, axis2=-1) - 1))


def direction_angle(first: Float[Array, "... 3"], second: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Angle between two vectors in degrees, 0 to 180; 90 where one of them is zero, as their product is then zero."""
    dot = (first * second).sum(-1)
    cross = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.where((dot == 0) & (cross == 0), 90.0, np.degrees(np.arctan2(cross, dot)))


def pair_errors(a: Float[Array, "V 4 4"], b: Float[Array, "V 4 4"]) -> PairErrors:
    """Errors of the relative poses of all pairs of frames.

    Raises:
        ValueError: fewer than two frames, or not the same number.
    """
    if a.shape != b.shape or a.ndim != 3 or len(a) < 2:
        raise ValueError(f"expected two trajectories of the same two or more frames, got {a.shape} and {b.shape}")
    i, j = np.triu_indices(len(a), 1)
    relative = [_unit_translations(poses[i] @ invert(poses[j])) for poses in (a, b)]
    rotation = rotation_angle(relative[0][0], relative[1][0])
    direction = direction_angle(relative[0][1], relative[1][1])
    return PairErrors(rotation, np.minimum(direction, 180 - direction), direction)


def _unit_translations(poses: Float[Array, "p 4 4"]) -> tuple[Float[Array, "p 3 3"], Float[Array, "p 3"]]:
    """Rotations, and translations of length one (or zero, where a pair does not move at all)."""
    rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
    length = np.linalg.norm(translation, axis=-1, keepdims=True)
    return rotation, np.divide(translation, length, out=np.zeros_like(translation), where=length > 1e-12)


def area_under_curve(errors: Float[Array, "p"], threshold: int) -> float:
    """Mean over the first ``threshold`` entries of the cumulative share of pairs, from 31 bins on [0, 30] degrees.

    That is the original's sum: bins are a little narrower than a degree, and a constant error of 7.5 degrees gives 0.65
    for 20.
    """
    counts, _ = np.histogram(errors, bins=_BINS, range=(0.0, _RANGE))
    return float(np.cumsum(counts / len(errors))[:threshold].mean())


def trajectory_errors(a: Float[Array, "V 4 4"], b: Float[Array, "V 4 4"]) -> dict[str, float]:
    """Mean distance of camera centres, both in the world of the first one, without and with the best scale of b."""
    first, second = centres(rebase(a)), centres(rebase(b))
    scale = (first * second).sum() / max((second * second).sum(), 1e-8)
    return {
        "traj_err_unscaled": float(np.linalg.norm(first - second, axis=-1).mean()),
        "traj_err_scale_invariant": float(np.linalg.norm(first - scale * second, axis=-1).mean()),
    }


def umeyama(source: Float[Array, "n 3"], target: Float[Array, "n 3"]) -> tuple[float, Array, Array]:
    """Scale, rotation and shift that bring ``source`` nearest to ``target`` (Umeyama 1991, equations 40-42).

    The scale is 0 where all points of ``source`` are one.
    """
    mean_source, mean_target = source.mean(0), target.mean(0)
    x, y = source - mean_source, target - mean_target
    left, singular, right = np.linalg.svd(y.T @ x / len(x))
    sign = np.array([1.0, 1.0, -1.0 if np.linalg.det(left) * np.linalg.det(right) < 0 else 1.0])
    rotation = (left * sign) @ right
    variance = (x * x).sum() / len(x)
    scale = float((singular * sign).sum() / variance) if variance > 1e-24 else 0.0
    return scale, rotation, mean_target - scale * rotation @ mean_source


def absolute_errors(a: Float[Array, "V 4 4"], b: Float[Array, "V 4 4"]) -> dict[str, float]:
    """Ours: distance of the centres after the best similarity transform of b (absolute trajectory error).

    Returns:
        ``ATE`` (root mean square, in a's units) and ``ATE_relative`` (divided by the root mean square distance of a's
        centres from their mean: 1.0 is as good as a camera that stands still); absent where a does not move.
    """
    first, second = centres(a), centres(b)
    scale, rotation, shift = umeyama(second, first)
    rest = first - (scale * second @ rotation.T + shift)
    error, extent = (float(np.sqrt((x * x).sum(-1).mean())) for x in (rest, first - first.mean(0)))
    return {"ATE": error} | ({"ATE_relative": error / extent} if extent > 1e-12 else {})


def scale_drift(a: Float[Array, "V 4 4"], b: Float[Array, "V 4 4"]) -> float | None:
    """Ours: the factor by which b's scale relative to a's grows from the first step to the last; 1.0 is no drift.

    A line through the logarithms of the steps' length ratios over time, each step weighted by its lengths' product:
    short steps tell little of a scale. None with fewer than two steps in which both move.
    """
    steps = [np.linalg.norm(np.diff(centres(poses), axis=0), axis=-1) for poses in (a, b)]
    longest = [step.max(initial=0.0) for step in steps]
    moved = (steps[0] > 1e-6 * longest[0]) & (steps[1] > 1e-6 * longest[1])
    if moved.sum() < 2:
        return None
    ratio, weight = np.log(steps[1][moved] / steps[0][moved]), steps[0][moved] * steps[1][moved]
    weight, time = weight / weight.sum(), np.flatnonzero(moved) - 0.0
    time -= (weight * time).sum()
    slope = (weight * time * ratio).sum() / (weight * time * time).sum()
    return float(np.exp(slope * (len(a) - 2)))


def posed(w2c: Float[Array, "V 4 4"]) -> Bool[Array, "V"]:
    """Frames that have a pose at all."""
    return np.asarray(np.isfinite(w2c).all(axis=(-1, -2)))


def pose_similarity(a: Float[Array, "V 4 4"], b: Float[Array, "V 4 4"]) -> dict[str, float]:
    """All scores of trajectory b against trajectory a.

    Args:
        a: world-to-camera, OpenCV; NaN where the oracle has no pose.
        b: of the same frames' counterparts.

    Returns:
        ``Rac_t``, ``Tac_t`` (the paper's RRA and RTA: share of pairs with an error below t degrees), ``RTA_signed_t``
        (with the sign of the direction); ``Rot_Auc_t``, ``Trans_Auc_t``, ``SE3_Auc_t`` (areas under those curves; SE3
        takes the greater error) for t of 3, 5, 10, 15, 20, 30; the `trajectory_errors`, the `absolute_errors`,
        ``scale_drift`` where there is one, ``frames`` and ``posed`` (share of frames that both have a pose of).

    Raises:
        ValueError: not the same number of frames, or fewer than two have poses in both.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[1:] != (4, 4):
        raise ValueError(f"expected two trajectories [V, 4, 4] of as many frames, got {a.shape} and {b.shape}")
    frames = len(a)
    both = posed(a) & posed(b)
    if both.sum() < 2:
        raise ValueError(f"only {int(both.sum())} of {frames} frames have a pose in both trajectories")
    a, b = a[both], b[both]
    errors = pair_errors(a, b)
    kinds = {"Rac": errors.rotation, "Tac": errors.translation, "RTA_signed": errors.direction}
    scores = {f"{name}_{t}": float((values < t).mean()) for name, values in kinds.items() for t in THRESHOLDS}
    curves = {
        "Rot_Auc": errors.rotation,
        "Trans_Auc": errors.translation,
        "SE3_Auc": np.maximum(errors.rotation, errors.translation),
    }
    scores |= {f"{name}_{t}": area_under_curve(values, t) for name, values in curves.items() for t in THRESHOLDS}
    scores |= trajectory_errors(a, b) | absolute_errors(a, b)
    drift = scale_drift(a, b)
    scores |= {} if drift is None else {"scale_drift": drift}
    return scores | {"frames": float(frames), "posed": float(both.mean())}


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Means over pairs of clips, of each score over the pairs that have it."""
    names = dict.fromkeys(name for each in scores for name in each)
    return {name: float(np.mean([each[name] for each in scores if name in each])) for name in names}
