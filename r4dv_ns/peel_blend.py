"""Blending of depth-peeled layers and its gradient in closed form (4K4D 3.3; spec r4dv 4.6).

Front to back, with ``d`` the distance from the disc's centre to the pixel's:

    a_k = alpha_k (1 - d^2 / rho_k^2),   T_k = prod_{j<k} (1 - a_j),   C = sum_k T_k a_k c_k,   M = sum_k T_k a_k

The gradient needs no division by ``1 - a_k``. With ``s_k`` the product of fragment k's values and the pixel's gradient,
and ``B_k`` that of everything behind k blended alone, ``dL/da_k = T_k (s_k - B_k)`` and ``B_{k-1} = a_k s_k +
(1 - a_k) B_k``; so a fully opaque fragment is no special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from r4dv_ns.peel_fragments import (
    BYTES_PER_FRAGMENT,
    Discs,
    Layers,
    Window,
    fragment_estimate,
    front_layers,
    visible_discs,
)

AT_ONCE = 1 << 22
"""More fragments than these are faster in several ranges of rows, for the cache's sake."""


class Settings(NamedTuple):
    """What of a call to `r4dv_ns.peel.peel` is not differentiated; names as there."""

    window: Window
    layers: int | None
    near: float
    min_radius: float
    max_fragment_bytes: int


class Blended(NamedTuple):
    """Sums over the layers, one row per pixel of the image."""

    color: Float[Tensor, "a c"]
    """``sum T a c``: no background yet."""
    accumulation: Float[Tensor, "a"]
    """``sum T a``."""
    depth: Float[Tensor, "a"]
    """``sum T a z``: not divided by the accumulation."""
    fragments: Int32[Tensor, "a"]
    """Number of layers used."""


class _Tile(NamedTuple):
    """What the gradient needs of a range of rows; see `Layers` for the order of fragments."""

    pixel: Int64[Tensor, "p"]
    disc: Int64[Tensor, "f"]
    dx: Float[Tensor, "f"]
    """Column of the disc's centre minus that of the pixel's."""
    dy: Float[Tensor, "f"]
    opacity: Float[Tensor, "f"]
    """``a``."""
    transmittance: Float[Tensor, "f"]
    """``T``."""
    values: Float[Tensor, "c1 f"]
    """Colour channels, then depth."""


def blend(
    points_camera: Float[Tensor, "n 3"],
    radius: Float[Tensor, "n"],
    alpha: Float[Tensor, "n"],
    color: Float[Tensor, "n c"],
    settings: Settings,
) -> Blended:
    """Peel and blend with torch operations on any device; differentiable once in all four tensors.

    Arguments as in `r4dv_ns.peel.peel`; all tensors of one dtype, float32 or float64.
    """
    inputs = (points_camera, radius, alpha, color)
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    return Blended(*_Blend.apply(*inputs, settings, keep))  # pyright: ignore[reportGeneralTypeIssues]


class _Blend(torch.autograd.Function):
    """`blend`; projection, layers and blending in one step, since the gradient of each is a few products."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, radius: Tensor, alpha: Tensor, color: Tensor, settings: Settings, keep: bool):
        window = settings.window
        discs = visible_discs(points, radius, alpha, window, near=settings.near, min_radius=settings.min_radius)
        values = torch.cat([color.index_select(0, discs.index).t(), discs.depth[None]])
        area = window.height * window.width
        sums = values.new_zeros(len(values) + 1, area)
        fragments = torch.zeros(area, dtype=torch.int32, device=values.device)
        tiles, sizes = [], []
        for first_row, end_row in _row_ranges(discs, settings):
            found = front_layers(discs, window, settings.layers, first_row=first_row, end_row=end_row)
            if not found.sizes:
                continue
            tile, tile_sums = _blend_layers(discs, values, found, window.width)
            for row, part in zip(sums, tile_sums, strict=True):
                row.scatter_(0, found.pixel, part)
            fragments.scatter_(0, found.pixel, _counts(found))
            if keep:
                tiles.append(tile)
                sizes.append(found.sizes)
        if keep:
            ctx.settings, ctx.sizes, ctx.points = settings, sizes, len(points)
            ctx.save_for_backward(*discs, *(part for tile in tiles for part in tile))
        ctx.mark_non_differentiable(fragments)
        ctx.set_materialize_grads(False)
        channels = color.shape[1]
        return sums[:channels].t().contiguous(), sums[channels + 1], sums[channels], fragments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_color, g_accumulation, g_depth, _ = grads
        discs = Discs(*ctx.saved_tensors[: len(Discs._fields)])
        rest = ctx.saved_tensors[len(Discs._fields) :]
        step = len(_Tile._fields)
        tiles = [_Tile(*rest[k : k + step]) for k in range(0, len(rest), step)]
        seeds = [*g_color.t()] if g_color is not None else []
        channels = len(seeds)
        if g_depth is not None:
            seeds.append(g_depth)
        per_disc = discs.u.new_zeros(4 + len(seeds), len(discs.u))
        for tile, sizes in zip(tiles, ctx.sizes, strict=True):
            if g_color is None:
                tile = tile._replace(values=tile.values[-1:])
            _accumulate(tile, sizes, seeds, g_accumulation, per_disc)
        g_z = None if g_depth is None else per_disc[-1]
        points, radius, alpha = to_points(discs, per_disc[:4], g_z, ctx.settings, ctx.points)
        color = None
        if channels:
            color = spread(discs, per_disc[4 : 4 + channels], ctx.points).t()
        return points, radius, alpha, color, None, None


def _row_ranges(discs: Discs, settings: Settings) -> list[tuple[int, int]]:
    """Ranges of rows whose fragments take no more than the memory allowed."""
    height, width, layers = settings.window.height, settings.window.width, settings.layers
    most = float(fragment_estimate(discs, settings.window, height).sum(dtype=torch.float64))
    if layers is not None:
        most = min(most, layers * height * width)
    allowed = min(settings.max_fragment_bytes / BYTES_PER_FRAGMENT, AT_ONCE)
    tiles = max(1, min(height, math.ceil(most / allowed)))
    edges = [height * k // tiles for k in range(tiles + 1)]
    return list(pairwise(edges))


def _counts(found: Layers) -> Int32[Tensor, "p"]:
    """Number of layers of each pixel that has any."""
    counts = torch.zeros_like(found.pixel, dtype=torch.int32)
    for size in found.sizes:
        counts[:size] += 1
    return counts


def _blend_layers(
    discs: Discs, values: Float[Tensor, "c1 n"], found: Layers, width: int
) -> tuple[_Tile, Float[Tensor, "c2 p"]]:
    """Blend front to back; returns sums of the weighted values and, in the last row, of the weights."""
    slope = discs.alpha / discs.drawn.square()
    dx, dy, opacity, falloff = (part.index_select(0, found.disc) for part in (discs.u, discs.v, discs.alpha, slope))
    gathered = values.new_empty(len(values), len(found.disc))
    for row, part in zip(gathered, values, strict=True):
        torch.index_select(part, 0, found.disc, out=row)
    x = (found.pixel % width).to(dx.dtype).add_(0.5)
    y = (found.pixel // width).to(dx.dtype).add_(0.5)
    begin = 0
    for size in found.sizes:
        dx[begin : begin + size] -= x[:size]
        dy[begin : begin + size] -= y[:size]
        begin += size
    opacity -= falloff.mul_(dx.square().addcmul_(dy, dy))
    opacity.clamp_min_(0)

    transmittance = torch.empty_like(opacity)
    light = torch.ones_like(x)
    sums = x.new_zeros(len(values) + 1, len(x))
    begin = 0
    for size in found.sizes:
        layer = slice(begin, begin + size)
        transmittance[layer] = light[:size]
        weight = light[:size] * opacity[layer]
        light[:size] -= weight
        for row, part in zip(sums, gathered, strict=False):
            row[:size].addcmul_(part[layer], weight)
        sums[-1, :size] += weight
        begin += size
    sums[-1].clamp_max_(1)
    return _Tile(found.pixel, found.disc.long(), dx, dy, opacity, transmittance, gathered), sums


def _accumulate(
    tile: _Tile, sizes: list[int], seeds: list[Tensor], g_accumulation: Tensor | None, per_disc: Tensor
) -> None:
    """Add a tile's part of the gradient.

    Rows of ``per_disc``: with ``g = dL/da``, sums over each disc's fragments of g, g dx, g dy and g d^2; then of the
    gradients with respect to the values.
    """
    seed = [part.index_select(0, tile.pixel) for part in seeds]
    base = None if g_accumulation is None else g_accumulation.index_select(0, tile.pixel)
    behind = tile.dx.new_zeros(len(tile.pixel))
    g = torch.empty_like(tile.dx)
    g_values = torch.empty_like(tile.values)
    begin = len(g)
    for size in reversed(sizes):
        layer = slice(begin - size, begin)
        begin -= size
        here = torch.zeros_like(behind[:size]) if base is None else base[:size].clone()
        weight = tile.transmittance[layer] * tile.opacity[layer]
        for part, value, out in zip(seed, tile.values, g_values, strict=False):
            here.addcmul_(part[:size], value[layer])
            torch.mul(part[:size], weight, out=out[layer])
        torch.mul(tile.transmittance[layer], here - behind[:size], out=g[layer])
        behind[:size].lerp_(here, tile.opacity[layer])
    square = tile.dx.square().addcmul_(tile.dy, tile.dy)
    parts = [g, g * tile.dx, g * tile.dy, square.mul_(g), *g_values[: len(seed)]]
    for row, part in zip(per_disc, parts, strict=True):
        row.scatter_add_(0, tile.disc, part)


def to_points(
    discs: Discs, per_disc: Float[Tensor, "4 m"], g_z: Float[Tensor, "m"] | None, settings: Settings, count: int
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """From gradients of discs to those of camera-frame points, radii and opacities.

    ``da/d(u, v) = -2 alpha (dx, dy) / rho^2``, ``da/drho = 2 alpha d^2 / rho^3``, ``da/dalpha = 1 - d^2 / rho^2``, then
    the projection and the sub-pixel rule of `r4dv_ns.peel_fragments.visible_discs`.

    Args:
        discs: m discs.
        per_disc: sums over each disc's fragments of g, g dx, g dy and g d^2, where ``g = dL/da``.
        g_z: gradient with respect to the depths that are blended.
        settings: of the call.
        count: points of the input.
    """
    window, least = settings.window, settings.min_radius
    total, along_x, along_y, squared = per_disc
    inverse_square = discs.drawn.square().reciprocal_()
    slope = 2.0 * discs.alpha * inverse_square
    g_u = -slope * along_x
    g_v = -slope * along_y
    g_alpha = total - squared * inverse_square
    g_rho = slope * squared / discs.drawn
    if least > 0:
        small = discs.rho < least
        g_rho = torch.where(small, 2.0 * discs.alpha * g_alpha / discs.rho, g_rho)
        g_alpha = g_alpha * (discs.rho / least).square_().clamp_max_(1.0)
    inverse = discs.depth.reciprocal()
    g_depth = -inverse * (g_u * (discs.u - window.cx) + g_v * (discs.v - window.cy) + g_rho * discs.rho)
    if g_z is not None:
        g_depth += g_z
    g_x, g_y, g_radius = window.fx * g_u * inverse, window.fy * g_v * inverse, window.fy * g_rho * inverse
    x, y, z, radius, alpha = spread(discs, [g_x, g_y, g_depth, g_radius, g_alpha], count)
    return torch.stack([x, y, z], dim=1), radius, alpha


def spread(discs: Discs, rows: Iterable[Float[Tensor, "m"]], count: int) -> Float[Tensor, "r n"]:
    """Rows of numbers per disc as rows of numbers per point, zero where a point is no disc.

    Args:
        discs: m discs.
        rows: r rows.
        count: n points of the input.
    """
    return torch.stack([row.new_zeros(count).scatter_(0, discs.index, row) for row in rows])
