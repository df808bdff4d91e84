"""Depth meshes whose pictures are known: a slanted plane, a step, random reliefs; and the original's own pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core_ns.errors import is_importable
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.warp import RenderOptions, Warp, render

SIZE = 256
CHECK_K = np.array([[220.0, 0, 128], [0, 220.0, 128], [0, 0, 1]])
NORMAL, DISTANCE = np.array([0.25, -0.15, 1.0]), 2.0
"""The plane n . X = d of spec megascenes 11.4."""
BACKENDS = ["cast embree", "cast open3d", "torch"]


def draw(name: str, mesh: DepthMesh, K, c2w, height: int, width: int, spp: int = 4, **options) -> Warp:
    """Render with "torch", or "cast CASTER"; skips where the caster's package does not load."""
    backend, _, caster = name.partition(" ")
    if caster == "open3d" and not is_importable("open3d"):
        pytest.skip("open3d does not load on this machine")
    if caster:
        options["caster"] = caster
    return render(mesh, K, c2w, height, width, spp, backend, options=RenderOptions(**options))  # type: ignore[arg-type]


def check_pose() -> np.ndarray:
    """12 degrees of yaw and (0.5, 0.1, -0.2), camera to world (spec megascenes 11.4)."""
    angle = np.radians(12.0)
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    c2w[:3, 3] = 0.5, 0.1, -0.2
    return c2w


def pixel_rays(K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Directions of depth 1 through all pixel centres, [h, w, 3]."""
    v, u = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)


def smooth_colour(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Colours that change slowly over a picture of 256, [..., 3] in [0, 1]."""
    waves = [np.sin(u / 23.0 + 0.3 * k) * np.cos(v / (19.0 + 4 * k)) for k in range(3)]
    return np.stack([0.5 + 0.45 * wave for wave in waves], axis=-1)


@dataclass
class PlaneView:
    """What a second camera sees of the plane, by intersecting rays with it."""

    mesh: DepthMesh
    depth: np.ndarray
    colour: np.ndarray
    inside: np.ndarray
    """How many pixels each place is inside the reference's picture, measured there; negative is outside."""


def plane_view(K: np.ndarray, c2w: np.ndarray, size: int = SIZE) -> PlaneView:
    """The plane from the reference (identity) and its exact picture from another camera, both with K."""
    depth = DISTANCE / (pixel_rays(K, size, size) @ NORMAL)
    v, u = np.mgrid[0:size, 0:size] + 0.5
    mesh = DepthMesh.from_depth(depth, K, smooth_colour(u, v))
    directions = pixel_rays(K, size, size) @ c2w[:3, :3].T
    along = (DISTANCE - NORMAL @ c2w[:3, 3]) / (directions @ NORMAL)
    points = c2w[:3, 3] + along[..., None] * directions
    pixel = points @ K.T
    u, v = pixel[..., 0] / pixel[..., 2], pixel[..., 1] / pixel[..., 2]
    # The mesh reaches from the first to the last pixel's centre.
    inside = np.minimum.reduce([u - 0.5, v - 0.5, size - 0.5 - u, size - 0.5 - v])
    return PlaneView(mesh, along, smooth_colour(u, v), np.where((along > 0) & (points[..., 2] > 0), inside, -size))


def step_depth(size: int) -> np.ndarray:
    """A vertical edge in the middle from depth 2 to 4."""
    depth = np.full((size, size), 2.0)
    depth[:, size // 2 :] = 4.0
    return depth


def relief(height: int, width: int, seed: int, jumps: int = 4) -> tuple[DepthMesh, np.ndarray]:
    """A bumpy surface with a few boxes before it, random colours, and its K."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:height, 0:width]
    depth = 2.5 + 0.4 * np.sin(u / 5.0 + seed) * np.cos(v / 4.0)
    for _ in range(jumps):
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        depth[top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = rng.uniform(0.8, 2.0)
    K = np.array([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DepthMesh.from_depth(depth, K, image), K


def random_pose(rng: np.random.Generator, reach: float, turn: float = 0.4) -> np.ndarray:
    """A camera to world within ``reach`` of the reference, turned by up to about ``turn`` radians."""
    from scipy.spatial.transform import Rotation

    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_rotvec(rng.uniform(-turn, turn, 3)).as_matrix()
    c2w[:3, 3] = rng.uniform(-reach, reach, 3)
    return c2w


class OriginalPictures:
    """The fixtures that the original's own mesh and render functions drew."""

    def __init__(self, fixtures: Path) -> None:
        folder = fixtures / "megascenes" / "data"
        with np.load(folder / "warp.npz", allow_pickle=False) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.image = np.array(Image.open(folder / "warp_image.png").convert("RGB"))
        self.depth = np.load(folder / "warp_depth.npy", allow_pickle=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]
