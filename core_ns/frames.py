"""Every change of camera or world convention, in one place.

Files hold OpenCV cameras (x right, y down, z forward) as world-to-camera matrices; the code holds nerfstudio's OpenGL
cameras (x right, y up, looking along -z) as camera-to-world. Matrices are float64 numpy arrays here: geo-referenced
coordinates lose whole pixels in float32. Pixel coordinates are continuous with (0, 0) at the outer corner of the
top-left pixel.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def homogeneous(matrix: Array) -> Float[Array, "... 4 4"]:
    """Append the row (0 0 0 1) to ``[..., 3, 4]``; ``[..., 4, 4]`` passes through. float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape[-2:] == (4, 4):
        return matrix
    if matrix.shape[-2:] != (3, 4):
        raise ValueError(f"expected a 3x4 or 4x4 matrix, got shape {matrix.shape}")
    last = np.broadcast_to(np.array([0.0, 0.0, 0.0, 1.0]), (*matrix.shape[:-2], 1, 4))
    return np.concatenate([matrix, last], axis=-2)


def c2w_opengl_from_w2c_opencv(w2c: Float[Array, "... 4 4"]) -> Float[Array, "... 4 4"]:
    """World-to-camera (OpenCV) to camera-to-world (OpenGL); the world axes stay. Rigid matrices only."""
    w2c = homogeneous(w2c)
    rotation = np.swapaxes(w2c[..., :3, :3], -1, -2)
    c2w = np.zeros_like(w2c)
    c2w[..., :3, :3] = rotation
    c2w[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, w2c[..., :3, 3])
    c2w[..., 3, 3] = 1.0
    return c2w @ OPENGL_FROM_OPENCV


def w2c_opencv_from_c2w_opengl(c2w: Float[Array, "... 4 4"]) -> Float[Array, "... 4 4"]:
    """Camera-to-world (OpenGL) to world-to-camera (OpenCV): the inverse of `c2w_opengl_from_w2c_opencv`."""
    c2w_opencv = homogeneous(c2w) @ OPENGL_FROM_OPENCV
    rotation = np.swapaxes(c2w_opencv[..., :3, :3], -1, -2)
    w2c = np.zeros_like(c2w_opencv)
    w2c[..., :3, :3] = rotation
    w2c[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, c2w_opencv[..., :3, 3])
    w2c[..., 3, 3] = 1.0
    return w2c


def rigid_from_w2c(w2c: Float[Array, "4 4"], tolerance: float = 1e-3) -> Float[Array, "4 4"]:
    """Make a world-to-camera matrix exactly rigid.

    A uniform scale sigma = cbrt(det R) is divided out of rotation *and* translation, so the camera centre
    C = -R^T t / sigma stays where it was (spec xscale 2.2). A rotation that is off by less than ``tolerance`` is
    projected onto SO(3).

    Raises:
        ValueError: non-finite, mirrored (det < 0), singular, not a rotation, or last row not (0 0 0 1).
    """
    w2c = homogeneous(w2c)
    if not np.isfinite(w2c).all():
        raise ValueError("the matrix holds NaN or infinity")
    if not np.allclose(w2c[3], [0.0, 0.0, 0.0, 1.0], atol=1e-6):
        raise ValueError(f"the last row is {w2c[3].tolist()}, not 0 0 0 1")
    determinant = float(np.linalg.det(w2c[:3, :3]))
    if determinant < 0:
        raise ValueError("the rotation mirrors (determinant is negative)")
    sigma = np.cbrt(determinant)
    if not sigma > 1e-12:
        raise ValueError("the rotation is singular (determinant is zero)")
    if abs(sigma - 1.0) <= 1e-4:
        sigma = 1.0
    rotation, translation = w2c[:3, :3] / sigma, w2c[:3, 3] / sigma
    defect = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if defect > tolerance:
        raise ValueError(f"the rotation is not orthonormal (defect {defect:.2g})")
    if defect > 1e-9:
        centre = -rotation.T @ translation
        u, _, vt = np.linalg.svd(rotation)
        rotation = u @ vt
        translation = -rotation @ centre
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = rotation, translation
    return rigid


def transform_points(
    points: Float[Array, "n 3"], transform: Float[Array, "3 4"], scale: float = 1.0
) -> Float[Array, "n 3"]:
    """World points to dataparser space, X' = s (A X + b), nerfstudio's ``dataparser_transform`` [A|b] and scale s."""
    transform = np.asarray(transform, dtype=np.float64)
    return scale * (np.asarray(points, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3])


def transform_cameras(
    c2w: Float[Array, "n 4 4"], transform: Float[Array, "3 4"], scale: float = 1.0
) -> Float[Array, "n 4 4"]:
    """OpenGL camera-to-world matrices to dataparser space: [A R | s (A C + b)], rotations stay unscaled."""
    c2w, transform = homogeneous(c2w).copy(), np.asarray(transform, dtype=np.float64)
    centres = transform_points(c2w[:, :3, 3], transform, scale)
    c2w[:, :3, :3] = transform[:3, :3] @ c2w[:, :3, :3]
    c2w[:, :3, 3] = centres
    return c2w


def project(
    points_world: Float[Array, "n 3"], intrinsics: Float[Array, "3 3"], w2c: Float[Array, "4 4"]
) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
    """Pinhole projection with the full K (skew included) of an OpenCV camera: pixel (u, v) and depth along z."""
    points_camera = points_world @ w2c[:3, :3].T + w2c[:3, 3]
    pixels = points_camera @ np.asarray(intrinsics, dtype=np.float64).T
    return pixels[:, :2] / pixels[:, 2:], points_camera[:, 2]


def clip_matrix(
    intrinsics: Float[Array, "3 3"], width: int, height: int, near: float, far: float
) -> Float[Array, "4 4"]:
    """Clip matrix with the full K for rasterisers whose output row 0 is the top of the image.

    Acts on homogeneous OpenGL camera coordinates; off-centre principal point, fx != fy and skew are honoured
    (spec xscale 2.3).
    """
    fx, skew, cx = intrinsics[0, 0], intrinsics[0, 1], intrinsics[0, 2]
    fy, cy = intrinsics[1, 1], intrinsics[1, 2]
    return np.array(
        [
            [2 * fx / width, -2 * skew / width, 1 - 2 * cx / width, 0.0],
            [0.0, -2 * fy / height, 1 - 2 * cy / height, 0.0],
            [0.0, 0.0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0.0, 0.0, -1.0, 0.0],
        ]
    )


def camera_directions(pixels: Float[Array, "n 2"], intrinsics: Float[Array, "3 3"]) -> Float[Array, "n 3"]:
    """Directions (x, -y, -1) in the OpenGL camera frame of continuous pixel coordinates; not normalised."""
    fx, skew, cx = intrinsics[0, 0], intrinsics[0, 1], intrinsics[0, 2]
    y = (pixels[:, 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (pixels[:, 0] - cx - skew * y) / fx
    return np.stack([x, -y, -np.ones_like(x)], axis=-1)
