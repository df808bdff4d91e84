"""The reference as a surface: two triangles per cell of its depth map, torn where depth jumps (spec megascenes 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from core_ns.atomic import atomic_path

Array = np.ndarray

MAX_ANGLE = 70.0
"""Degrees between a triangle's normal and the direction to the reference camera from which on it is dropped."""


@dataclass(frozen=True, eq=False)
class DepthMesh:
    """Triangles that the reference sees from the front.

    The world is the reference's OpenCV camera frame (x right, y down, z forward) unless `from_depth` was given a pose;
    lengths are those of the depth, by the house's convention units of its 20 % quantile.
    """

    vertices: Float32[Array, "v 3"]
    """One per pixel, row by row; pixels without depth hold the origin and have no faces."""
    colours: Float32[Array, "v 3"]
    """In [0, 1]."""
    faces: Int32[Array, "f 3"]
    """Vertex indices; (b - a) x (c - b) points towards the reference camera."""
    height: int
    width: int
    cells: int
    """Triangles before any was dropped: 2 (height - 1) (width - 1)."""

    @classmethod
    def from_depth(
        cls,
        depth: Float[Array, "h w"],
        K: Float[Array, "3 3"],
        image: UInt8[Array, "h w 3"] | Float[Array, "h w 3"],
        *,
        max_angle: float = MAX_ANGLE,
        c2w_opencv: Float[Array, "4 4"] | None = None,
    ) -> DepthMesh:
        """Lift every pixel's centre to its depth, X = d K^-1 [u + 1/2, v + 1/2, 1], and join neighbours.

        A triangle stays if the angle between its normal and the direction to the camera is below ``max_angle`` and its
        corners have a depth.

        Args:
            depth: along z; zero, negative or not finite means none.
            K: of ``image``, pixel centres at +0.5.
            image: colours, uint8 or floats in [0, 1], of the depth's size.
            max_angle: degrees; 90 keeps all that faces the camera.
            c2w_opencv: reference camera to world; None: the identity.

        Raises:
            ValueError: sizes that differ, fewer than 2 x 2 pixels, or a K that no pinhole camera has.
        """
        depth = np.asarray(depth, dtype=np.float64)
        if depth.ndim != 2 or min(depth.shape) < 2 or image.shape != (*depth.shape, 3):
            raise ValueError(
                f"expected depth [h, w] and image [h, w, 3] of at least 2 x 2, got {depth.shape}, {image.shape}"
            )
        height, width = depth.shape
        known = np.isfinite(depth) & (depth > 0)
        points = _lift(np.where(known, depth, 0.0), np.asarray(K, dtype=np.float64))
        keep = _facing(points, known, math.cos(math.radians(max_angle)))
        corner = (np.arange(height - 1)[:, None] * width + np.arange(width - 1)).astype(np.int32)
        lower = np.stack([corner, corner + width, corner + width + 1], axis=-1)
        upper = np.stack([corner, corner + width + 1, corner + 1], axis=-1)
        faces = np.stack([lower, upper], axis=2)[keep]
        if c2w_opencv is not None:
            points = points @ np.asarray(c2w_opencv)[:3, :3].T + np.asarray(c2w_opencv)[:3, 3]
            points[~known] = 0.0
        return cls(
            points.reshape(-1, 3).astype(np.float32),
            _unit_colours(image).reshape(-1, 3),
            np.ascontiguousarray(faces),
            height,
            width,
            2 * (height - 1) * (width - 1),
        )

    def write_ply(self, file: str | Path) -> None:
        """Write it with vertex colours as a binary PLY, atomically, for any mesh viewer; unused vertices stay."""
        head = (
            "ply\nformat binary_little_endian 1.0\ncomment OpenCV axes of the reference: x right, y down, z ahead\n"
            f"element vertex {len(self.vertices)}\n"
            + "".join(f"property float {axis}\n" for axis in "xyz")
            + "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
            + f"element face {len(self.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        )
        vertices = np.empty(len(self.vertices), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertices["xyz"], vertices["rgb"] = self.vertices, np.rint(self.colours * 255)
        faces = np.empty(len(self.faces), [("count", "u1"), ("index", "<i4", 3)])
        faces["count"], faces["index"] = 3, self.faces
        with atomic_path(file) as temporary, open(temporary, "wb") as handle:
            handle.write(head.encode("ascii"))
            handle.write(vertices.tobytes())
            handle.write(faces.tobytes())


def _unit_colours(image: Array) -> Float32[Array, "h w 3"]:
    """uint8 or floats to float32 in [0, 1]."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    if not np.issubdtype(image.dtype, np.floating) or not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"expected uint8 or floats in [0, 1], got {image.dtype}")
    return image.astype(np.float32)


def _lift(depth: Float[Array, "h w"], K: Float[Array, "3 3"]) -> Float[Array, "h w 3"]:
    """Points of all pixel centres in the camera's frame."""
    if (
        K.shape != (3, 3)
        or not np.isfinite(K).all()
        or K[0, 0] <= 0
        or K[1, 1] <= 0
        or not np.allclose(K[2], [0, 0, 1])
    ):
        raise ValueError(f"K {K.tolist()} is no pinhole camera's")
    height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width] + 0.5
    y = (v - K[1, 2]) / K[1, 1]
    x = (u - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return depth[..., None] * np.stack([x, y, np.ones_like(x)], axis=-1)


def _facing(points: Float[Array, "h w 3"], known: Array, least_cosine: float) -> Array:
    """Which of each cell's two triangles, (a, below a, d) and (a, d, right of a), stay: bool [h-1, w-1, 2]."""
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    corners_known = known[:-1, :-1] & known[1:, 1:]
    keep = []
    for first, second, third, there in ((a, b, c, known[1:, :-1]), (a, c, d, known[:-1, 1:])):
        normal = np.cross(second - first, third - second)
        centre = first + second + third  # three times it: only the direction counts
        lengths = np.linalg.norm(normal, axis=-1) * np.linalg.norm(centre, axis=-1)
        facing = -(normal * centre).sum(axis=-1) > least_cosine * lengths
        keep.append(facing & corners_known & there)
    return np.stack(keep, axis=-1)
