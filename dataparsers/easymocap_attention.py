"""Where the cameras look: the point nearest to all optical axes, a search box about it, and the rig's common up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError

if TYPE_CHECKING:
    from dataparsers.easymocap_sequence import Sequence

Array = np.ndarray

BOX_SHARE = 0.6
"""Half side of the search box over the median distance of the cameras (spec r4dv 3.1)."""

_MOST_ALIGNED = 100
"""Cameras that the original aligns by, at most."""
_GIVE_BOUNDS = "Give --bounds xmin ymin zmin xmax ymax zmax."


def _all_w2c(sequence: Sequence) -> Float[Array, "m 4 4"]:
    """Every pose of every view; one for each static camera."""
    return np.stack([model.w2c for view in sequence.views for model in view.cameras])


def nearest_point_to_axes(w2c: Float[Array, "m 4 4"]) -> Float[Array, "3"]:
    """Least-squares point nearest to all optical axes, in world units: sum (I - d d^T)(x - C) = 0.

    Raises:
        ValueError: the axes are parallel, or meet behind most cameras.
    """
    rotation, translation = w2c[:, :3, :3], w2c[:, :3, 3]
    axes = rotation[:, 2]
    centres = -np.einsum("mji,mj->mi", rotation, translation)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal = across.mean(axis=0)
    # The smallest eigenvalue is the mean squared sine of the axes to their common direction; 1e-4: half a degree.
    if np.linalg.eigvalsh(normal)[0] < 1e-4:
        raise ValueError("the cameras look in parallel: no point is singled out")
    point = np.linalg.solve(normal, np.einsum("mij,mj->i", across, centres) / len(w2c))
    if 2 * int((((point - centres) * axes).sum(axis=1) > 0).sum()) <= len(w2c):
        raise ValueError("the optical axes meet behind the cameras: they look outward")
    return point


def attention_point(sequence: Sequence) -> Float[Array, "3"]:
    """The point that the cameras look at, files' world.

    Raises:
        DataError: they look at none (parallel or outward axes).
    """
    try:
        return nearest_point_to_axes(_all_w2c(sequence))
    except ValueError as error:
        raise DataError(sequence.calibration_dir, "cameras", f"{error}.", _GIVE_BOUNDS) from error


def box_of_attention(sequence: Sequence) -> Float[Array, "2 3"]:
    """Search box where no bounds are known: the attention point ± 0.6 of the cameras' median distance (spec r4dv 3.1).

    Raises:
        DataError: the cameras look at no common point.
    """
    point = attention_point(sequence)
    w2c = _all_w2c(sequence)
    centres = -np.einsum("mji,mj->mi", w2c[:, :3, :3], w2c[:, :3, 3])
    half = BOX_SHARE * float(np.median(np.linalg.norm(centres - point, axis=1)))
    return np.stack([point - half, point + half])


def up_transform(sequence: Sequence) -> Float[Array, "4 4"]:
    """The rigid map that turns the cameras' mean up (minus their y axes) to +z and moves the attention point to 0.

    World x stays as near as it can.

    Raises:
        DataError: the cameras share no up direction, or look at no common point.
    """
    up = -_all_w2c(sequence)[:, 1, :3].mean(axis=0)
    length = float(np.linalg.norm(up))
    if length < 0.2:
        problem = "the cameras have no common up direction."
        raise DataError(sequence.calibration_dir, "--orientation up", problem, "Use --orientation none.")
    up /= length
    helper = np.eye(3)[0] if abs(up[0]) < 0.9 else np.eye(3)[1]
    right = helper - up * (helper @ up)
    right /= np.linalg.norm(right)
    transform = np.eye(4)
    transform[:3, :3] = np.stack([right, np.cross(up, right), up])
    transform[:3, 3] = -transform[:3, :3] @ attention_point(sequence)
    return transform


def aligned_transform(sequence: Sequence) -> Float[Array, "4 4"]:
    """The rigid map by which EasyVolcap, the original's framework, aligns cameras (spec r4dv 5.1): z is minus the mean
    y axis of the cameras, x is across z and their mean z axis; the origin is the mean of the points where pairs of
    optical axes come nearest, weighted by the squared sine of their angle.

    Moving cameras count with their first pose, and of more than 100 views 100 that are evenly spread.

    Raises:
        DataError: the cameras share no up direction, or look in parallel.
    """
    w2c = np.stack([view.w2c(0) for view in sequence.views])
    if len(w2c) > _MOST_ALIGNED:
        w2c = w2c[np.linspace(0, len(w2c) - 1, _MOST_ALIGNED).astype(int)]
    try:
        return aligned_frame(w2c)
    except ValueError as error:
        remedy = "Use --orientation none."
        raise DataError(sequence.calibration_dir, "--orientation aligned", f"{error}.", remedy) from error


def aligned_frame(w2c: Float[Array, "m 4 4"]) -> Float[Array, "4 4"]:
    """`aligned_transform` of these cameras: world to aligned world.

    Raises:
        ValueError: no up direction, or no point that they look at.
    """
    rotation = w2c[:, :3, :3]
    down, ahead = rotation[:, 1].mean(axis=0), rotation[:, 2].mean(axis=0)
    centres, axes = -np.einsum("mji,mj->mi", rotation, w2c[:, :3, 3]), rotation[:, 2]
    side = np.cross(ahead, down)
    if np.linalg.norm(down) < 1e-6 or np.linalg.norm(side) < 1e-9:
        raise ValueError("the cameras have no common up direction, or look straight along it")
    result = np.eye(4)
    result[2, :3] = -down / np.linalg.norm(down)
    result[0, :3] = -side / np.linalg.norm(side)
    result[1, :3] = np.cross(result[2, :3], result[0, :3])
    across = np.cross(axes[:, None], axes[None])
    weight = (across**2).sum(axis=-1)
    if len(w2c) < 2 or weight.max() < 1e-4:
        raise ValueError("the cameras look in parallel: no point is singled out")
    towards = centres[None] - centres[:, None]
    # Where the axes of cameras i and j come nearest: C_i + t_i d_i with t_i = (C_j - C_i, d_j, d_i x d_j) / sin^2.
    along = np.einsum("ijk,ijk->ij", towards, np.cross(axes[None], across)) / (weight + 1e-8)
    feet = centres[:, None] + along[..., None] * axes[:, None]
    middle = (0.5 * (feet + feet.transpose(1, 0, 2)) * weight[..., None]).sum(axis=(0, 1)) / weight.sum()
    result[:3, 3] = -result[:3, :3] @ middle
    return result


def box_corners(bounds: Float[Array, "2 3"]) -> Float[Array, "8 3"]:
    """The eight corners of a box given by its smallest and largest corner."""
    choice = np.indices((2, 2, 2)).reshape(3, 8).T
    return np.take_along_axis(np.asarray(bounds, dtype=np.float64), choice, axis=0)
