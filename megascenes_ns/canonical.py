"""The one frame that every pair is put into: the reference camera at the origin, unit = the 20 % quantile of its depth.

A relative pose ``rel`` is the target's camera-to-world matrix in the reference's OpenCV camera frame, translation
divided by the scale. nerfstudio's camera of it stands in a world whose z points up, looking along +y where the
reference looks. A camera of nerfstudio *is* the conditioning pose then. Source: spec megascenes 8.1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from core_ns.frames import OPENGL_FROM_OPENCV, homogeneous

Array = np.ndarray

WORLD_FROM_REFERENCE = np.array(
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""Axes of the reference's OpenCV camera (x right, y down, z forward) in a z-up world that it sees along +y."""


def c2w_ns_from_rel(rel: Float[Array, "*n 4 4"]) -> Float[Array, "*n 4 4"]:
    """Relative poses to nerfstudio's cameras (OpenGL camera to z-up world).

    Args:
        rel: target camera to reference camera, both OpenCV, in units of the reference's depth quantile; 3x4 will do.

    Returns:
        float64; nerfstudio stores the first three rows.

    Raises:
        ValueError: not 3x4 or 4x4 matrices.
    """
    return WORLD_FROM_REFERENCE @ homogeneous(rel) @ OPENGL_FROM_OPENCV


def rel_from_c2w_ns(c2w_ns: Float[Array, "*n 4 4"]) -> Float[Array, "*n 4 4"]:
    """The inverse of `c2w_ns_from_rel`; ``camera.camera_to_worlds`` (3x4) will do. float64.

    Raises:
        ValueError: not 3x4 or 4x4 matrices.
    """
    return WORLD_FROM_REFERENCE.T @ homogeneous(c2w_ns) @ OPENGL_FROM_OPENCV
