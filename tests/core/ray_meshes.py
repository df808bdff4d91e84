"""Meshes, rays and cameras of the ray-casting tests, and what it means for two casters to agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from core_ns.errors import is_importable
from core_ns.frames import camera_directions
from core_ns.raycast import Hits, interpolate, make_caster

MODULES = {"embree": "embreex.rtcore_scene", "open3d": "open3d", "warp": "warp", "torch": "torch"}
BACKENDS = ["embree", "open3d", "warp", "torch"]
LARGE = ["embree", "open3d", "warp"]


def built(name: str, vertices: Tensor, faces: Tensor):
    if not is_importable(MODULES[name]):
        pytest.skip(f"{name} does not load on this machine")
    return make_caster(vertices, faces, torch.device("cpu"), name)  # type: ignore[arg-type]


def sphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32), torch.tensor(np.asarray(mesh.faces))


def terrain64(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Bumpy heights over [-1, 1]^2 that occlude one another from low viewpoints; float64."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, cells + 1)] * 2, indexing="ij")
    z = 0.1 * np.sin(7 * x) * np.cos(5 * y) + 0.03 * np.sin(31 * x + 3 * y)
    index = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = (i.ravel() for i in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return np.stack([x, y, z], -1).reshape(-1, 3), faces


def terrain(cells: int) -> tuple[Tensor, Tensor]:
    vertices, faces = terrain64(cells)
    return torch.tensor(vertices, dtype=torch.float32), torch.tensor(faces)


def rays_towards(targets: Tensor, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(len(targets), 3, generator=generator), dim=1)
    return targets - distance * directions, directions


def box_of_rays(vertices: Tensor, count: int, distance: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rays from all sides through a box a fifth larger than the mesh, so that a good part misses."""
    low, high = vertices.min(0).values, vertices.max(0).values
    where = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    return rays_towards((low + high) / 2 + (where - 0.5) * (high - low) * 1.2, distance, seed + 1)


def edge_distance(vertices: Tensor, faces: Tensor, hits: Hits) -> Tensor:
    """Distance of hit points to the nearest edge of their own face: smallest weight times height."""
    corners = vertices.double()[faces[hits.face.clamp(min=0)]]
    opposite = corners[:, [2, 0, 1]] - corners[:, [1, 2, 0]]
    area = torch.linalg.cross(opposite[:, 0], opposite[:, 1]).norm(dim=1, keepdim=True)
    weights = torch.cat([hits.barycentric, 1 - hits.barycentric.sum(1, keepdim=True)], 1).double()
    return (weights * area / opposite.norm(dim=2)).min(dim=1).values


def assert_agree(a: Hits, b: Hits, vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor) -> None:
    """Spec xscale 8.3.1. The nearer of two different answers must lie at an edge of its face."""
    extent = float((vertices.max(0).values - vertices.min(0).values).max())
    different = (a.hit != b.hit) | (a.face != b.face)
    assert different.float().mean() <= 1e-3
    a_is_nearer = a.t <= b.t
    edge = torch.where(a_is_nearer, edge_distance(vertices, faces, a), edge_distance(vertices, faces, b))
    assert bool((edge[different] <= 1e-4 * extent).all())
    same = ~different & a.hit
    assert same.sum() > 0.3 * len(a.hit)
    assert torch.quantile((a.t - b.t)[same].abs(), 0.999) <= 1e-5 * extent
    points = [origins + x.t[:, None] * directions for x in (a, b)]
    points += [interpolate(x, faces, vertices) for x in (a, b)]
    for point in points[1:]:
        assert (points[0] - point)[same].norm(dim=1).max() <= 1e-4 * extent


def plane_solution(vertices: Tensor, faces: Tensor, origins: Tensor, directions: Tensor, face: Tensor):
    """t, weights of vertices 0 and 1, |cos| of incidence on known faces from plane and sub-areas; float64 numpy."""
    a, b, c = (vertices.double().numpy()[faces[face, k].numpy()] for k in range(3))
    o, d = origins.double().numpy(), directions.double().numpy()
    normal = np.cross(b - a, c - a)
    t = np.sum(normal * (a - o), 1) / np.sum(normal * d, 1)
    p = o + t[:, None] * d
    square = np.sum(normal * normal, 1)
    weights = [np.sum(np.cross(y - x, p - x) * normal, 1) / square for x, y in ((b, c), (c, a))]
    return t, np.stack(weights, 1), np.abs(np.sum(normal * d, 1)) / np.sqrt(square)


WIDTH, HEIGHT = 320, 240
CENTRED = np.array([[400.0, 0.0, WIDTH / 2], [0.0, 400.0, HEIGHT / 2], [0.0, 0.0, 1.0]])
OFF_CENTRE = np.array([[410.0, 3.0, WIDTH / 2 + 15], [0.0, 380.0, HEIGHT / 2 - 15], [0.0, 0.0, 1.0]])


def looking_down(height: float = 1.5) -> np.ndarray:
    """OpenGL camera-to-world above the terrain, tilted and rolled."""
    tilt, roll = 0.4, 0.3
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = about_x @ about_z, [0.05, -0.6, height]
    return c2w


def pixel_rays(c2w: np.ndarray, intrinsics: np.ndarray, width: int = WIDTH, height: int = HEIGHT):
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([u.ravel(), v.ravel()], 1)
    directions = camera_directions(pixels, intrinsics) @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (
        pixels,
        torch.tensor(c2w[:3, 3], dtype=torch.float32).repeat(len(pixels), 1),
        torch.tensor(directions).float(),
    )
