"""One calibrated camera as EasyMocap's files describe it: pose, lens, clip range (spec r4dv 2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from jaxtyping import Float

from dataparsers.undistort import Calibration, pixels_from_normalised

Array = np.ndarray

NEAR, FAR = 1e-4, 1e6
"""Clip range of a camera without ``n_`` and ``f_`` keys; FAR also bounds a camera without ``bounds_``."""


def unlimited_box() -> Float[Array, "2 3"]:
    """The bounds of a camera that has none: +-FAR on every axis, world units."""
    return np.array([[-FAR] * 3, [FAR] * 3])


@dataclass(frozen=True, eq=False)
class CameraModel:
    """One camera as calibrated, float64.

    ``K`` in pixels of the original photo, unshifted; ``D`` OpenCV's k1, k2, p1, p2, k3, all zero where ``fisheye``
    (OpenCV's k1..k4) is given; ``width`` and ``height`` None where the file does not say; ``R`` and ``T`` world to
    camera; ``near``, ``far`` and ``bounds`` (lower and upper corner) in world units; ``ccm`` a colour correction;
    ``t`` and ``v`` the time and view numbers of exported paths.
    """

    name: str
    K: Float[Array, "3 3"]
    D: Float[Array, "5"] = field(default_factory=lambda: np.zeros(5))
    fisheye: Optional[Float[Array, "4"]] = None
    width: Optional[int] = None
    height: Optional[int] = None
    R: Float[Array, "3 3"] = field(default_factory=lambda: np.eye(3))
    T: Float[Array, "3"] = field(default_factory=lambda: np.zeros(3))
    near: float = NEAR
    far: float = FAR
    bounds: Float[Array, "2 3"] = field(default_factory=unlimited_box)
    ccm: Float[Array, "3 3"] = field(default_factory=lambda: np.eye(3))
    t: float = 0.0
    v: float = 0.0

    @property
    def w2c(self) -> Float[Array, "4 4"]:
        """World to camera, OpenCV axes, float64."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.R, self.T
        return matrix

    @property
    def centre(self) -> Float[Array, "3"]:
        """C = -R^T T, world. Always computed: the original's reader takes it from the Rodrigues vector (bug B3)."""
        return -self.R.T @ self.T

    @property
    def stand(self) -> Float[Array, "30"]:
        """K, D, fisheye terms (-1 for none), R and T in a row, to compare cameras by."""
        fisheye = np.full(4, -1.0) if self.fisheye is None else self.fisheye
        return np.concatenate([np.ravel(part) for part in (self.K, self.D, fisheye, self.R, self.T)])

    @property
    def is_distorted(self) -> bool:
        """Whether the photo is not that of a pinhole camera."""
        return self.fisheye is not None or bool(np.any(self.D != 0.0))

    @property
    def lens(self) -> Calibration:
        """The camera without its fisheye terms as `dataparsers.undistort` takes it; an unknown side is 0."""
        k, (k1, k2, p1, p2, k3) = self.K, (float(term) for term in self.D)
        size = self.width or 0, self.height or 0
        matrix = (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), float(k[0, 1]))
        return Calibration(*size, *matrix, k1=k1, k2=k2, k3=k3, p1=p1, p2=p2)

    def project(self, points_world: Float[Array, "n 3"]) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
        """World points to pixels of the original, distorted photo, and their depth along z (world units).

        As cv2.projectPoints and cv2.fisheye.projectPoints; points with z <= 0 get pixels that mean nothing.
        """
        camera = np.asarray(points_world, dtype=np.float64) @ self.R.T + self.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            flat = camera[:, :2] / camera[:, 2:]
            if self.fisheye is not None:
                radius = np.linalg.norm(flat, axis=1, keepdims=True)
                angle = np.arctan(radius)
                a2 = angle * angle
                k1, k2, k3, k4 = self.fisheye
                bent = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
                flat = flat * np.where(radius > 1e-12, bent / np.maximum(radius, 1e-12), 1.0)
            return pixels_from_normalised(flat, self.lens), camera[:, 2]


def rotation_from_vector(vector: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rodrigues' formula: turn by |vector| radians about vector."""
    x, y, z = np.asarray(vector, dtype=np.float64)
    angle = math.sqrt(x * x + y * y + z * z)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # numpy's sinc(a) is sin(pi a) / (pi a): exact at zero.
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(0.5 * angle / np.pi) ** 2 * (cross @ cross)


def vector_from_rotation(rotation: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """The Rodrigues vector of a rotation matrix, at most pi long; stable at every angle."""
    from scipy.spatial.transform import Rotation  # 0.2 s, and only writers need it

    return Rotation.from_matrix(rotation).as_rotvec()
