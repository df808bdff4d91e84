"""Camera paths about a recording's subject: orbit, sector, spiral (spec r4dv 6.3, 15).

Matrices are camera-to-world with OpenGL axes (x right, y up, looking along -z), [n, 4, 4] float64. The world is the
files' unless the caller says otherwise: nothing here assumes an origin or an up axis, except the forms marked
"original", which follow the 4K4D release to the letter.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float

from core_ns.frames import w2c_opencv_from_c2w_opengl
from dataparsers.easymocap_attention import nearest_point_to_axes

Array = np.ndarray
Poses = Float[Array, "n 4 4"]
Vector = Float[Array, "3"]

LEAST_COMMON_UP = 0.2
"""Length of the mean of the cameras' up vectors below which they have no common one."""


def unit(vector: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Vectors of length 1 in the same directions.

    Raises:
        ValueError: one of them has no direction.
    """
    vector = np.asarray(vector, dtype=np.float64)
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if not (length > 1e-12).all():
        raise ValueError("a direction is asked of a vector of length 0")
    return vector / length


def look_at(positions: Float[Array, "n 3"], target: Float[Array, "#n 3"] | Vector, up: Vector) -> Poses:
    """Cameras at positions that look at a point (or at one point each), with ``up`` upright in the picture.

    Raises:
        ValueError: a camera stands at its target, or looks along ``up``.
    """
    positions = np.asarray(positions, dtype=np.float64)
    forward = unit(np.broadcast_to(np.asarray(target, dtype=np.float64), positions.shape) - positions)
    across = np.cross(forward, unit(up))
    if np.linalg.norm(across, axis=-1).min() < 1e-6:
        raise ValueError("a camera looks straight up or down: its picture has no upright")
    right = unit(across)
    c2w = np.tile(np.eye(4), (len(positions), 1, 1))
    c2w[:, :3] = np.stack([right, np.cross(right, forward), -forward, positions], axis=-1)
    return c2w


def common_up(c2w: Poses) -> Vector:
    """The mean of the cameras' up vectors, of length 1.

    Raises:
        ValueError: they point everywhere.
    """
    mean = np.asarray(c2w, dtype=np.float64)[:, :3, 1].mean(axis=0)
    if np.linalg.norm(mean) < LEAST_COMMON_UP:
        raise ValueError("the cameras have no common up direction")
    return unit(mean)


def upright(c2w: Poses) -> Vector:
    """The direction that is up in all pictures: the one nearest to perpendicular to the cameras' right vectors.

    Unlike `common_up` it does not lean where more cameras stand on one side and look down; which it falls back to where
    cameras are rolled about their axes, or all look the same way (then without its part along their right).

    Raises:
        ValueError: see `common_up`.
    """
    mean, rights = common_up(c2w), np.asarray(c2w, dtype=np.float64)[:, :3, 0]
    # Eigenvalues are mean squared sines: 0.02 is 8 degrees.
    values, vectors = np.linalg.eigh(rights.T @ rights / len(rights))
    if values[0] > 0.02:
        return mean
    if values[1] <= 0.02:
        return unit(mean - (mean @ vectors[:, 2]) * vectors[:, 2])
    lean = float(mean @ vectors[:, 0])
    return np.sign(lean) * vectors[:, 0] if abs(lean) > 0.9 else mean


# ---------------------------------------------------------------------- where the cameras look


def attention_point(c2w: Poses) -> Vector:
    """Least-squares point nearest to all optical axes (spec r4dv 6.3).

    Raises:
        ValueError: the axes are parallel, or meet behind most cameras.
    """
    return nearest_point_to_axes(w2c_opencv_from_c2w_opengl(c2w))


def original_attention_point(c2w: Poses) -> Vector:
    """The original's: midpoints of the closest points of every two axes, weighted by the squared sine of their angle.

    Pairs at less than 6 degrees (weight 0.01) do not count (spec r4dv 5.1).

    Raises:
        ValueError: no two axes are that far from parallel.
    """
    centres, axes = c2w[:, :3, 3].astype(np.float64), unit(-c2w[:, :3, 2])
    first, second = np.triu_indices(len(c2w), 1)
    a, b = axes[first], axes[second]
    normal = np.cross(a, b)
    weight = (normal**2).sum(axis=1)
    if not (weight > 0.01).any():
        raise ValueError("the cameras look in parallel: no point is singled out")
    kept = weight > 0.01
    first, second, a, b, normal, weight = (part[kept] for part in (first, second, a, b, normal, weight))
    between = centres[second] - centres[first]
    # Distances along both axes: det[t, other axis, normal] / |normal|^2.
    along_a = (np.cross(between, b) * normal).sum(axis=1) / weight
    along_b = (np.cross(between, a) * normal).sum(axis=1) / weight
    middles = 0.5 * (centres[first] + along_a[:, None] * a + centres[second] + along_b[:, None] * b)
    return (weight[:, None] * middles).sum(axis=0) / weight.sum()


def average_camera(c2w: Poses, attention: Vector | None = None) -> Float[Array, "4 4"]:
    """A camera at the mean of the centres, upright, that looks at ``attention`` (None: along the mean direction).

    Raises:
        ValueError: it would look along the cameras' common up.
    """
    centre = c2w[:, :3, 3].mean(axis=0)
    target = centre - c2w[:, :3, 2].mean(axis=0) if attention is None else np.asarray(attention, dtype=np.float64)
    return look_at(centre[None], target, c2w[:, :3, 1].mean(axis=0))[0]


# ---------------------------------------------------------------------- round the subject


def _around(c2w: Poses, attention: Vector, up: Vector, start: Vector | None) -> tuple[Array, Array, Array]:
    """Centres seen from the attention point, and two horizontal axes, the first towards the first camera."""
    offsets = c2w[:, :3, 3] - attention
    flat = offsets - (offsets @ up)[:, None] * up
    reach = np.linalg.norm(flat, axis=1)
    if start is None:
        # A camera above the subject has no direction round it.
        start = flat[int(np.argmax(reach > 0.1 * reach.max()))]
    x = np.asarray(start, dtype=np.float64)
    x = unit(x - (x @ up) * up)
    return offsets, x, np.cross(up, x)


def azimuths(c2w: Poses, attention: Vector, up: Vector) -> Float[Array, "n"]:
    """Directions of the cameras round the attention point from 0 to 2 pi, anticlockwise from the first camera's.

    Raises:
        ValueError: all cameras stand above or below it.
    """
    offsets, x, y = _around(c2w, attention, up, None)
    turns = np.arctan2(offsets @ y, offsets @ x)
    return (turns + 1e-9) % (2 * np.pi) - 1e-9  # the first camera's is 0, not a hair less than 2 pi


def _circle(offsets: Float[Array, "n 3"], up: Vector, radius: float | None, ratio: float) -> tuple[float, float]:
    """Radius of the circle and its height over the attention point: rms distance and mean height are the cameras'."""
    distance = float(ratio * (radius or math.sqrt((offsets**2).sum(axis=1).mean())))
    height = float((offsets @ up).mean())
    if distance <= abs(height) * (1 + 1e-9):
        raise ValueError(f"no circle at height {height:.4g} has cameras at distance {distance:.4g}")
    return math.sqrt(distance**2 - height**2), height


def orbit(
    c2w: Poses,
    shares: Float[Array, "m"],
    attention: Vector,
    up: Vector,
    *,
    radius: float | None = None,
    radius_ratio: float = 1.0,
    height: float = 0.0,
    start: Vector | None = None,
) -> Float[Array, "m 4 4"]:
    """A circle about the attention point, at the cameras' mean height and rms distance (spec r4dv 6.3).

    Args:
        c2w: the recording's cameras.
        shares: of a full turn, anticlockwise seen from above; 0 is at the first camera.
        attention: what to look at.
        up: axis of the circle, length 1.
        radius: distance from the attention point in world units; None: the cameras' rms distance.
        radius_ratio: multiplies it.
        height: added to the circle's height, world units.
        start: horizontal direction of share 0; None: the first camera's.

    Raises:
        ValueError: the distance is less than the height, or the path passes above or below the attention point.
    """
    offsets, x, y = _around(c2w, attention, up, start)
    flat, level = _circle(offsets, up, radius, radius_ratio)
    angles = 2 * np.pi * np.asarray(shares, dtype=np.float64)[:, None]
    positions = attention + flat * (np.cos(angles) * x + np.sin(angles) * y) + (level + height) * up
    return look_at(positions, attention, up)


def original_orbit(
    c2w: Poses, count: int, *, radius: float | None = None, radius_ratio: float = 1.0, height: float = 0.0
) -> Float[Array, "m 4 4"]:
    """The original's orbit, to compare with: it takes distances and heights from the world's origin and z for up.

    In a world that is aligned (`dataparsers.easymocap_attention.aligned_frame`) it equals `orbit` started along x.

    Raises: as `orbit`.
    """
    z = np.array([0.0, 0.0, 1.0])
    flat, level = _circle(c2w[:, :3, 3].astype(np.float64), z, radius, radius_ratio)
    angles = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    circle = np.stack([flat * np.cos(angles), flat * np.sin(angles), np.full(count, level + height)], axis=1)
    attention = original_attention_point(c2w)
    return look_at(attention + circle, attention, common_up(c2w))


def sector(
    c2w: Poses,
    shares: Float[Array, "m"],
    attention: Vector,
    up: Vector,
    *,
    radius: float | None = None,
    radius_ratio: float = 1.0,
    height: float = 0.0,
) -> Float[Array, "m 4 4"]:
    """The arc between the outermost cameras at their mean height; the original left it empty (spec r4dv 6.3).

    The outermost cameras are those beside the widest gap between neighbours round the attention point.

    Args: as of `orbit`; ``shares`` 0 and 1 are at the two outermost cameras.

    Raises:
        ValueError: as `orbit`, or all cameras stand in one direction.
    """
    offsets, x, y = _around(c2w, attention, up, None)
    flat = np.hypot(offsets @ x, offsets @ y)
    aside = flat > 1e-6 * flat.max()
    angles = np.sort(np.arctan2(offsets @ y, offsets @ x)[aside])
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    widest = int(np.argmax(gaps))
    width = 2 * np.pi - gaps[widest]
    if width < 1e-3:
        raise ValueError("the cameras stand in one direction: there is no arc between them")
    first = (angles[widest] + gaps[widest]) / (2 * np.pi)
    turns = first + np.asarray(shares, dtype=np.float64) * width / (2 * np.pi)
    return orbit(c2w, turns, attention, up, radius=radius, radius_ratio=radius_ratio, height=height)


# ---------------------------------------------------------------------- in front of the subject


def front_views(c2w: Poses, attention: Vector, middle: int = 0, within: float = 60.0) -> list[int]:
    """Cameras whose direction from the attention point is within some degrees of that of camera ``middle``."""
    directions = unit(c2w[:, :3, 3] - attention)
    return [int(i) for i in np.flatnonzero(directions @ directions[middle] >= math.cos(math.radians(within)))]


def surrounds(c2w: Poses, attention: Vector) -> bool:
    """Whether the cameras stand on all sides, so that their mean position is no place in front of the subject.

    From about 250 degrees of a circle on.
    """
    offsets = c2w[:, :3, 3] - attention
    return bool(np.linalg.norm(offsets.mean(axis=0)) < 0.38 * np.linalg.norm(offsets, axis=1).mean())


def spiral(
    c2w: Poses,
    count: int,
    attention: Vector,
    up: Vector,
    *,
    turns: float = 2.0,
    rate: float = 0.5,
    percentile: float = 70.0,
    radius_ratio: float = 1.0,
    xyz_ratio: tuple[float, float, float] = (1.0, 1.0, 0.25),
    xyz_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    focal_offset: float = 0.0,
    radii_along: Literal["camera", "world"] = "camera",
) -> Float[Array, "m 4 4"]:
    """c(a) = average camera x (radius [cos a, sin a, sin(rate a)] + offset), looking at the attention point.

    Axes of the average camera are right, down, forward, as the original's (spec r4dv 6.3). The last position is one
    step before the first: with ``turns x rate`` whole the path repeats.

    Args:
        c2w: cameras in front of the subject (see `surrounds`).
        attention: what to look at.
        percentile: of the cameras' distances from their mean along each axis: the radius.
        focal_offset: look at a point this much farther away (world units).
        radii_along: axes along which those distances are measured. "world" is the original's: it then uses them along
            the camera's axes, so that the path depends on the choice of world axes.

    Raises:
        ValueError: the average camera looks along the cameras' common up.
    """
    middle = average_camera(c2w, attention)
    right, down, forward, centre = middle[:3, 0], -middle[:3, 1], -middle[:3, 2], middle[:3, 3]
    axes = np.stack([right, down, forward], axis=1)
    offsets = c2w[:, :3, 3] - centre
    radii = np.percentile(np.abs(offsets if radii_along == "world" else offsets @ axes), percentile, axis=0)
    a = np.linspace(0.0, 2 * np.pi * turns, count, endpoint=False)
    waves = np.stack([np.cos(a), np.sin(a), np.sin(rate * a)], axis=1)
    positions = centre + (waves * radii * radius_ratio * xyz_ratio + np.asarray(xyz_offset)) @ axes.T
    target = centre + (focal_offset + np.linalg.norm(attention - centre)) * forward
    return look_at(positions, target, up)
