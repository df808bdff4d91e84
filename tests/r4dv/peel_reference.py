"""Depth peeling the slow and obvious way: each pixel against every point, a sort per pixel, blending by autograd."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class View(NamedTuple):
    """A small camera; the focal lengths differ on purpose."""

    fx: float = 58.0
    fy: float = 61.0
    cx: float = 24.3
    cy: float = 21.2
    height: int = 40
    width: int = 50


class Cloud(NamedTuple):
    """Arguments of a peel."""

    points: Tensor
    radius: Tensor
    alpha: Tensor
    color: Tensor

    def clone(self, requires_grad: bool = True) -> Cloud:
        """Leaves of their own."""
        return Cloud(*(part.detach().clone().requires_grad_(requires_grad) for part in self))

    def to(self, *where) -> Cloud:
        """Other dtype or device."""
        return Cloud(*(part.to(*where) for part in self))


def random_cloud(count: int, seed: int = 0, dtype=torch.float64) -> Cloud:
    """A ball two units away, larger than `View` shows; radii from a fifth of a pixel to five."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, 8, generator=generator, dtype=torch.float64)
    points = (draw[:, :3] - 0.5) * torch.tensor([2.6, 2.2, 1.5], dtype=torch.float64)
    points[:, 2] += 2.5
    radius = 0.006 * (25.0 ** draw[:, 3])
    return Cloud(points, radius, 0.05 + 0.9 * draw[:, 4], draw[:, 5:]).to(dtype)


def awkward_cloud(count: int, seed: int = 0, dtype=torch.float64) -> Cloud:
    """`random_cloud` with equal depths, twins, points behind the camera and outside the image, and tiny ones."""
    cloud = random_cloud(count, seed, dtype)
    points, radius, alpha, _ = cloud
    tenth = count // 10
    points[tenth : 2 * tenth, 2] = 2.25
    points[2 * tenth : 3 * tenth] = points[tenth : 2 * tenth]
    points[3 * tenth : 3 * tenth + 50, 2] *= -1
    points[3 * tenth + 50 : 3 * tenth + 60, 2] = 0
    points[3 * tenth + 60 : 3 * tenth + 160, 0] += 3
    points[3 * tenth + 160 : 3 * tenth + 260, 1] -= 4
    radius[4 * tenth : 5 * tenth] *= 0.05
    radius[5 * tenth : 5 * tenth + 10] = 0
    radius[5 * tenth + 10 : 5 * tenth + 14] = 2.0
    alpha[5 * tenth + 14 : 5 * tenth + 30] = 0
    return cloud


def brute_indices(cloud: Cloud, view: View, layers: int | None, near: float, min_radius: float) -> list[np.ndarray]:
    """Rows of the points of each pixel, nearest first, by sorting everything that covers the pixel's centre."""
    x, y, z = cloud.points.detach().double().numpy().T
    radius, alpha = cloud.radius.detach().double().numpy(), cloud.alpha.detach().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = view.fx * x / z + view.cx, view.fy * y / z + view.cy
        rho = np.maximum(view.fy * radius / z, min_radius)
    shows = (z > near) & (alpha >= 1e-4) & (radius > 0)
    found = []
    for j in range(view.height):
        for i in range(view.width):
            rows = (shows & ((i + 0.5 - u) ** 2 + (j + 0.5 - v) ** 2 < rho**2)).nonzero()[0]
            found.append(rows[np.lexsort((rows, z[rows]))][:layers])
    return found


def brute_peel(
    cloud: Cloud, view: View, *, layers: int | None = 15, near=1e-4, min_radius=0.75, background: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour [H, W, C], accumulation, depth [H, W] and rows [H, W, K], -1 where there is none."""
    found = brute_indices(cloud, view, layers, near, min_radius)
    index = torch.full((len(found), max(1, *(len(rows) for rows in found))), -1)
    for pixel, rows in enumerate(found):
        index[pixel, : len(rows)] = torch.from_numpy(rows)
    if not len(cloud.points):
        cloud = Cloud(*(part.new_ones(1, *part.shape[1:]) for part in cloud))
    take, exists = index.clamp_min(0), index >= 0
    x, y, z = cloud.points[take].unbind(-1)
    z = torch.where(exists, z, 1.0)
    rho = view.fy * cloud.radius[take] / z
    drawn, opacity = rho, cloud.alpha[take]
    if min_radius > 0:
        drawn = torch.where(rho < min_radius, min_radius, rho)
        opacity = torch.where(rho < min_radius, opacity * (rho / min_radius) ** 2, opacity)
    pixel = torch.arange(len(found))[:, None]
    across = (pixel % view.width + 0.5) - (view.fx * x / z + view.cx)
    down = (pixel // view.width + 0.5) - (view.fy * y / z + view.cy)
    a = opacity * (1 - (across**2 + down**2) / torch.where(exists, drawn, 1.0) ** 2)
    a = torch.where(exists, a, 0.0)
    light = torch.cumprod(1 - a, 1)
    weight = torch.cat([torch.ones_like(light[:, :1]), light[:, :-1]], 1) * a
    image = (weight[..., None] * cloud.color[take]).sum(1)
    accumulation = weight.sum(1)
    depth = (weight * z).sum(1) / accumulation.clamp_min(1e-8)
    if background is not None:
        image = image + (1 - accumulation)[:, None] * background
    shape = (view.height, view.width)
    return image.reshape(*shape, -1), accumulation.reshape(shape), depth.reshape(shape), index.reshape(*shape, -1)
