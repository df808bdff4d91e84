"""Scenes, rays and the exact path for the tests of the real-time renderer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diver_ns.compositing import composite
from diver_ns.deploy_model import DeployModel, make_deploy
from diver_ns.field import Decoder
from diver_ns.grid import Grid
from diver_ns.integrator import chord_weights, corner_ids, integrate
from diver_ns.voxel_walk import walk

WHITE, BLACK = torch.ones(3), torch.zeros(3)


class Scene(NamedTuple):
    """A table with everything that both paths need."""

    grid: Grid
    mask: Tensor
    ids: Tensor
    features: Tensor
    decoder: Decoder

    def deploy(self, background=WHITE, **options) -> DeployModel:
        return make_deploy(*self, background, **options)


def sphere(n: int, radius: float = 0.7) -> Tensor:
    """Occupied voxels of a ball; the radius is a share of half the cube."""
    at = (torch.arange(n) + 0.5) / n * 2 - 1
    return (at[:, None, None] ** 2 + at[:, None] ** 2 + at**2) < radius**2


def scene(mask: Tensor, width: int = 32, density: float = 1.0, seed: int = 0, grid: Grid | None = None) -> Scene:
    """Random features and weights that give densities around the wanted one, and colours of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    n = len(mask)
    voxel = mask.nonzero().flip(1)
    ids = corner_ids(voxel, n).unique() if len(voxel) else torch.empty(0, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(32 if width == 32 else 64)
    with torch.no_grad():
        last, colour = decoder.point[-1], decoder.view[-1]
        last.weight[0] *= 8 * density
        last.bias[0] = 2 * density
        colour.weight *= 6
    return Scene(
        grid or Grid(n), mask, ids, torch.randn(len(ids), 32, generator=generator), decoder.requires_grad_(False)
    )


def rays(count: int, seed: int = 0, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
    """Rays from all around (some from inside the cube) towards points of the cube."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=generator)
    origins *= (0.2 + 4 * torch.rand(count, 1, generator=generator)) / origins.norm(dim=1, keepdim=True)
    towards = (torch.rand(count, 3, generator=generator) - 0.5) * 2.8 - origins
    if grid is not None:
        origins = origins * (grid.side / 2.8) + torch.tensor(grid.center)
    return origins, towards / towards.norm(dim=1, keepdim=True)


def camera(height: int, width: int, distance: float = 4.0) -> tuple[Tensor, Tensor]:
    """A pinhole camera that looks at the centre from an oblique place; a ray per pixel, row by row."""
    eye = torch.tensor([0.6, -0.7, 0.4])
    eye = eye / eye.norm() * distance
    forward = -eye / eye.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]))
    right = right / right.norm()
    up = torch.linalg.cross(right, forward)
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    u, v = (u.flatten() - width / 2) / width, (height / 2 - v.flatten()) / width
    d = forward + 0.8 * (u[:, None] * right + v[:, None] * up)
    return eye.expand(height * width, 3), d / d.norm(dim=1, keepdim=True)


class Exact(NamedTuple):
    rgb: Tensor
    accumulation: Tensor
    depth: Tensor
    hits: Tensor
    weights: Tensor
    alpha: Tensor
    ray: Tensor


@torch.no_grad()
def exact(it: Scene, origins: Tensor, directions: Tensor, background=WHITE, t_near=0.0, t_far=math.inf) -> Exact:
    """The exact path as `diver_ns.model` takes it."""
    n = it.grid.resolution
    pieces = walk(*it.grid.to_grid(origins, directions), n, t_near=t_near, t_far=t_far, occupied=it.mask)
    rows = torch.searchsorted(it.ids, corner_ids(pieces.voxel, n))
    features = integrate(it.features, rows, chord_weights(pieces.u_in, pieces.u_out))
    sigma, rgb = it.decoder(features, directions[pieces.ray])
    out = composite(sigma, rgb, (pieces.t_in + pieces.t_out) / 2, pieces.ray, len(origins), background)
    hits = torch.bincount(pieces.ray, minlength=len(origins))
    alpha = 1 - torch.exp(-torch.relu(sigma))
    return Exact(out.rgb, out.accumulation, out.depth, hits, out.weights, alpha, pieces.ray)


def columns(out: dict[str, Tensor]) -> Tensor:
    return torch.cat([out[key] for key in ("rgb", "accumulation", "depth", "hits")], dim=1)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


SPECIAL = torch.tensor(
    [
        # One zero component, two (zeros of both signs), inside, behind, grazing edge and corner, a miss.
        [-3.0, 0.31, 0.17, 1.0, 0.2, 0.0],
        [-3.0, 0.31, 0.17, 1.0, -0.0, 0.0],
        [0.22, 0.13, 4.0, 0.0, -0.0, -1.0],
        [0.0, 0.0, 0.0, 0.6, 0.0, 0.8],
        [0.05, 0.06, 0.07, -0.48, 0.6, -0.64],
        [3.0, 0.2, 0.1, 1.0, 0.01, 0.02],
        [-2.0, 0.05, 0.1, 1.0, 1e-4, -1e-4],
        [-2.0, 0.5, 0.3, 1.0, -1e-7, 1e-9],
        [-2.0, -2.0, -2.0, 1.0, 1.0, 1.0],
        [-2.8, 0.0, 0.1, 1.0, 1.0, 0.0],
        [-3.0, 5.0, 0.0, 1.0, 0.0, 0.0],
    ]
)


def special() -> tuple[Tensor, Tensor]:
    d = SPECIAL[:, 3:]
    return SPECIAL[:, :3].clone(), d / d.norm(dim=1, keepdim=True)
