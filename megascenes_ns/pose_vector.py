"""What the network is told of the target camera: 19 numbers (spec megascenes 4.3)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from core_ns.frames import homogeneous

Array = np.ndarray
Squash = Literal["none", "zeronvs"]

MIN_SCALE = 1e-7
ZERONVS_MIN_SCALE = 1e-2
_ZERONVS_REACH = 10.0


def relative_pose(
    ref_w2c: Float[Array, "*n 4 4"],
    tgt_w2c: Float[Array, "*n 4 4"],
    scale: float | Float[Array, "*n"],
    min_scale: float = MIN_SCALE,
) -> Float[Array, "*n 4 4"]:
    """Target camera in the reference camera's frame, inv(c2w_ref) c2w_tgt, translation divided by the scale. float64.

    Args:
        ref_w2c: world to camera, OpenCV. The full inverse of the target's is taken: quaternions come as stored,
            perhaps not of unit length.
        tgt_w2c: the same.
        scale: the reference's depth quantile, in the world's units; clipped from below at ``min_scale``.

    Raises:
        ValueError: a scale that is not finite, other shapes, a singular matrix.
    """
    divisor = np.maximum(np.asarray(scale, dtype=np.float64), min_scale)
    if not np.isfinite(divisor).all():
        raise ValueError("the scale is missing or not finite")
    rel = homogeneous(ref_w2c) @ np.linalg.inv(homogeneous(tgt_w2c))
    rel[..., :3, 3] /= divisor[..., None]
    rel[..., 3, :] = (0.0, 0.0, 0.0, 1.0)
    return rel


def diagonal_fov(
    focal_x: float | Float[Array, "*n"], width: float | Float[Array, "*n"], height: float | Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """2 atan(sqrt(w^2 + h^2) / (2 fx)), radians, of the photo before resizing and padding (all lengths in pixels).

    Both lengths scaled alike give the same angle; the longest side at 256 and its focal length are as good.
    """
    half = 0.5 * np.hypot(np.asarray(width, np.float64), np.asarray(height, np.float64))
    return 2.0 * np.arctan(half / np.asarray(focal_x, np.float64))


def squash_translation(rel: Float[Array, "*n 4 4"]) -> Float[Array, "*n 4 4"]:
    """ZeroNVS' own translation 0.5 * 10 * tanh(t / 10), which its released weights were trained on (spec 4.3)."""
    rel = np.array(rel, dtype=np.float64)
    rel[..., :3, 3] = 0.5 * _ZERONVS_REACH * np.tanh(rel[..., :3, 3] / _ZERONVS_REACH)
    return rel


def pose_vector_from_rel(
    rel: Float[Array, "*n 4 4"], fov: float | Float[Array, "*n"], squash: Squash = "none"
) -> Float32[Array, "*n 19"]:
    """The 19 numbers from a relative pose: its 16 entries row by row, then fov, sin fov, cos fov.

    Args:
        rel: see `relative_pose`; 3x4 will do.
        fov: diagonal, of the target camera, radians (`diagonal_fov`).
        squash: "zeronvs" for ZeroNVS' released weights.
    """
    rel = homogeneous(rel)
    if squash == "zeronvs":
        rel = squash_translation(rel)
    angle = np.broadcast_to(np.asarray(fov, dtype=np.float64), rel.shape[:-2])
    flat = rel.reshape(*rel.shape[:-2], 16)
    return np.concatenate([flat, np.stack([angle, np.sin(angle), np.cos(angle)], axis=-1)], axis=-1).astype(np.float32)


def pose_vector(
    ref_w2c: Float[Array, "*n 4 4"],
    tgt_w2c: Float[Array, "*n 4 4"],
    scale: float | Float[Array, "*n"],
    intrinsics: Float[Array, "*n 3 3"],
    size: tuple[float, float] | Float[Array, "*n 2"],
    squash: Squash = "none",
) -> Float32[Array, "*n 19"]:
    """The 19 numbers of a pair.

    Args:
        ref_w2c: world to camera of the reference, OpenCV.
        tgt_w2c: of the target.
        scale: the reference's depth quantile.
        intrinsics: K of the **target**, for the photo as it is stored.
        size: (width, height) of the same photo, unpadded, unresized.
        squash: "zeronvs": as `pose_vector_from_rel`, and the scale is clipped at 0.01 instead of 1e-7.

    Raises:
        ValueError: see `relative_pose`.
    """
    floor = MIN_SCALE if squash == "none" else ZERONVS_MIN_SCALE
    sides = np.asarray(size, dtype=np.float64)
    fov = diagonal_fov(np.asarray(intrinsics)[..., 0, 0], sides[..., 0], sides[..., 1])
    return pose_vector_from_rel(relative_pose(ref_w2c, tgt_w2c, scale, floor), fov, squash)
