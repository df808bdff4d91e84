"""Camera paths about one photo (spec megascenes 7).

Poses are camera-to-world in the reference's OpenCV frame (x right, y down, z forward), lengths in units of its 20 %
depth quantile. The two paths of the original are kept to the number as ``orbit_legacy`` and ``spiral``.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

Array = np.ndarray
Poses = Float64[Array, "n 4 4"]
Kind = Literal["orbit", "orbit-legacy", "spiral", "dolly"]

PIVOT = 2.2
"""Depth of the point that `orbit` turns about: with it the orbit is as wide as the original's."""
DEGREES = 27.0
"""Largest angle of both orbits."""


def turned(angle: Float[Array, "n"]) -> Float64[Array, "n 3 3"]:
    """Rotations about y by angles in radians, R_y of the spec: they turn z towards x."""
    angle = np.asarray(angle, dtype=np.float64)
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., 0, 0] = matrix[..., 2, 2] = np.cos(angle)
    matrix[..., 0, 2], matrix[..., 2, 0] = np.sin(angle), -np.sin(angle)
    matrix[..., 1, 1] = 1.0
    return matrix


def _poses(rotation: Float64[Array, "n 3 3"], centre: Float64[Array, "n 3"]) -> Poses:
    c2w = np.tile(np.eye(4), (len(centre), 1, 1))
    c2w[:, :3, :3], c2w[:, :3, 3] = rotation, centre
    return c2w


def orbit(frames: int = 19, degrees: float = DEGREES, pivot: float = PIVOT, tilt: float = 0.0) -> Poses:
    """An arc about the point at depth ``pivot`` on the optical axis, from the left to the right, always looking at it.

    Symmetric, unlike `orbit_legacy`; with an odd number of frames the middle one is the reference (without tilt).

    Args:
        frames: cameras, at least 2.
        degrees: from the middle to either end.
        pivot: depth of the point, above 0.
        tilt: degrees that the arc's plane is raised by: the cameras look down from above.

    Raises:
        ValueError: fewer than 2 frames, or an angle or pivot out of range.
    """
    if frames < 2 or not 0 < degrees <= 180 or not 0 < pivot < math.inf or not -89 <= tilt <= 89:
        raise ValueError(f"no orbit of {frames} frames, {degrees} degrees, pivot {pivot}, tilt {tilt}")
    around = turned(np.radians(np.linspace(degrees, -degrees, frames)))
    lean = math.radians(tilt)
    above = np.array([[1, 0, 0], [0, math.cos(lean), math.sin(lean)], [0, -math.sin(lean), math.cos(lean)]])
    rotation = around @ above
    return _poses(rotation, np.array([0.0, 0.0, pivot]) - pivot * rotation[:, :, 2])


def orbit_legacy() -> Poses:
    """The original demo's 19 cameras; not symmetric: its two halves translate differently (spec megascenes 7)."""
    step = np.arange(10)
    angle = np.radians(3.0 * step)
    w2c = []
    for sign, steps in ((-1.0, step[:0:-1]), (1.0, step)):
        matrix = np.tile(np.eye(4), (len(steps), 1, 1))
        matrix[:, :3, :3] = turned(sign * angle[steps])
        matrix[:, 0, 3] = -sign * steps / 9
        matrix[:, 2, 3] = sign * np.sin(angle[steps])
        w2c.append(matrix)
    return np.linalg.inv(np.concatenate(w2c))


def spiral(frames: int = 20, size: float = 1.0, turns: float = 1.0) -> Poses:
    """Round the reference without turning: centre = -(3 sin a, 3/4 cos a, -1.5 sin a); the original has 20 frames.

    Args:
        frames: cameras; the last stands one step before the first where ``turns`` is whole.
        size: multiplies the centres; 1 is the original's.
        turns: rounds.

    Raises:
        ValueError: fewer than 2 frames, or a size or number of turns that is not positive.
    """
    if frames < 2 or not 0 < size < math.inf or not 0 < turns < math.inf:
        raise ValueError(f"no spiral of {frames} frames, size {size}, {turns} turns")
    angle = 2 * np.pi * turns * np.arange(frames) / frames
    centre = -size * np.stack([3 * np.sin(angle), 0.75 * np.cos(angle), -1.5 * np.sin(angle)], axis=1)
    return _poses(np.tile(np.eye(3), (frames, 1, 1)), centre)


def dolly(frames: int = 20, distance: float = 0.6) -> Poses:
    """Straight ahead along the optical axis, slow at both ends; a negative distance goes backwards.

    Raises:
        ValueError: fewer than 2 frames, or a distance that is zero or not finite.
    """
    if frames < 2 or distance == 0 or not math.isfinite(distance):
        raise ValueError(f"no dolly of {frames} frames over {distance}")
    share = (1 - np.cos(np.pi * np.linspace(0.0, 1.0, frames))) / 2
    return _poses(np.tile(np.eye(3), (frames, 1, 1)), distance * share[:, None] * np.array([0.0, 0.0, 1.0]))


def dolly_zoom_fov(c2w_opencv: Poses, fov: float, pivot: float = PIVOT) -> Float64[Array, "n"]:
    """Fields of view that keep what stands at depth ``pivot`` as large as the reference sees it.

    Args:
        c2w_opencv: a path along the optical axis that stays before the pivot.
        fov: degrees, at the reference.
        pivot: depth of what keeps its size.

    Raises:
        ValueError: the path reaches the pivot.
    """
    left = pivot - c2w_opencv[:, 2, 3]
    if (left <= 0).any():
        raise ValueError(f"the path reaches the depth {pivot} whose size it should keep")
    return np.degrees(2 * np.arctan(math.tan(math.radians(fov) / 2) * pivot / left))


def vertical_fov(focal: float, height: int) -> float:
    """Degrees of a focal length in pixels at a picture's height."""
    return math.degrees(2 * math.atan(0.5 * height / focal))
