"""Which points show in which pixel, front to back: the index half of depth peeling (4K4D 3.3; spec r4dv 4.6, 6.1).

A point is a disc in the image: around its projection (u, v), with the radius ``rho = fy r / z``. Where the centre of a
pixel lies inside a disc there is a fragment, and a pixel keeps its K fragments of smallest depth. Nothing here is
differentiable: the choice of fragments is constant under the gradient.

How: discs are sorted by depth once and laid out in that order, so a stable sort of the fragments by pixel leaves each
pixel's fragments sorted by depth. Discs are laid out in pieces of similar cost, nearest first; pixels that are already
full drop the fragments of later pieces, and discs that touch full pixels only are not laid out at all.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from core_ns.errors import is_importable

MIN_ALPHA = 1e-4
"""Points less opaque than this are left out (spec r4dv 4.6)."""
PIECE = 1 << 20
"""Fragments laid out at once: below this it costs less to sort the superfluous ones than to look for them."""
MOST_PIECES = 32
RADIX = 1 << 15
"""torch sorts at least this many integers by their digits on a CPU, and fewer by comparing them, which takes longer."""
BYTES_PER_FRAGMENT = 64
"""What a fragment takes at the peak, with its place in the sort and what the blending keeps of it."""


class Window(NamedTuple):
    """Pinhole intrinsics in pixels (first pixel's centre at (0.5, 0.5)) and the size of the image."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int


class Discs(NamedTuple):
    """Points that can show, nearest first; equal depths in the order of the input."""

    index: Int64[Tensor, "n"]
    """Row of the input."""
    u: Float[Tensor, "n"]
    v: Float[Tensor, "n"]
    rho: Float[Tensor, "n"]
    """``fy r / z`` in pixels."""
    drawn: Float[Tensor, "n"]
    """``max(rho, min_radius)``: the radius that counts."""
    alpha: Float[Tensor, "n"]
    """``alpha min(1, (rho / min_radius)^2)``: the opacity at the disc's centre."""
    depth: Float[Tensor, "n"]
    """Camera-frame z."""


class Layers(NamedTuple):
    """The fragments that count, all first ones, then all second ones and so on.

    Layer k belongs to the first ``sizes[k]`` of the pixels: they are ordered by their number of fragments, most first.
    So a recursion over layers works on slices, without padding and without scattering.
    """

    pixel: Int64[Tensor, "p"]
    """Flat number, row * width + column, of each pixel with a fragment."""
    disc: Int32[Tensor, "f"]
    """Row of the `Discs`."""
    sizes: list[int]
    """Pixels that have a k-th fragment, for k = 0, 1, ...; never increases, never zero."""


@torch.no_grad()
def visible_discs(
    points_camera: Float[Tensor, "n 3"],
    radius: Float[Tensor, "n"],
    alpha: Float[Tensor, "n"],
    window: Window,
    *,
    near: float,
    min_radius: float,
) -> Discs:
    """Project points, leave out what cannot show, and sort by depth (spec r4dv 4.6).

    Left out: ``z <= near``, ``alpha < MIN_ALPHA``, ``radius <= 0``, discs outside the image, anything not a number.

    Args:
        points_camera: OpenCV camera frame, scene units.
        radius: scene units.
        alpha: opacities in [0, 1].
        window: camera and image size.
        near: smallest depth, scene units, above 0.
        min_radius: of a drawn disc, pixels. Smaller discs are drawn with this radius and proportionally less opaque.
    """
    x, y, z = points_camera.unbind(1)
    inverse = 1.0 / z.clamp_min(near)
    u = (window.fx * x).mul_(inverse).add_(window.cx)
    v = (window.fy * y).mul_(inverse).add_(window.cy)
    rho = (window.fy * radius).mul_(inverse)
    reach = rho.clamp_min(min_radius)
    keep = (z > near) & (rho > 0) & (alpha >= MIN_ALPHA)
    keep &= (u + reach > 0) & (u - reach < window.width) & (v + reach > 0) & (v - reach < window.height)
    index = keep.nonzero().squeeze(1)
    index = index.index_select(0, _ascending(z.index_select(0, index)))
    u, v, rho, alpha, depth = (part.index_select(0, index) for part in (u, v, rho, alpha, z))
    if min_radius > 0:
        alpha = alpha * (rho / min_radius).square_().clamp_max_(1.0)
    return Discs(index, u, v, rho, rho.clamp_min(min_radius), alpha, depth)


@torch.no_grad()
def front_layers(
    discs: Discs, window: Window, layers: int | None, *, first_row: int = 0, end_row: int | None = None
) -> Layers:
    """The fragments of the `layers` nearest discs of each pixel of a range of rows (spec r4dv 6.1).

    Args:
        discs: see `visible_discs`.
        window: camera and image size.
        layers: most fragments per pixel; None: all.
        first_row, end_row: range of image rows. What a pixel gets does not depend on it.
    """
    width = window.width
    end_row = window.height if end_row is None else end_row
    device = discs.u.device
    counts = torch.zeros((end_row - first_row) * width, dtype=torch.int64, device=device)
    full: Tensor | None = None
    pixels, owners = [], []
    chosen = torch.arange(len(discs.u), dtype=torch.int32, device=device)
    if end_row - first_row < window.height:
        chosen = chosen[(discs.v + discs.drawn >= first_row) & (discs.v - discs.drawn <= end_row)]
    cost = fragment_estimate(discs, window, end_row - first_row)
    total = float(cost.index_select(0, chosen).sum(dtype=torch.float64))
    pieces = min(math.ceil(total / PIECE), MOST_PIECES)
    for rows in _cut(chosen, cost.index_select(0, chosen), pieces):
        if full is not None:
            rows = rows[_touches_open_pixel(discs, rows, full, width, first_row, end_row)]
        left = cost.index_select(0, rows)
        for part in _cut(rows, left, math.ceil(float(left.sum(dtype=torch.float64)) / PIECE)):
            pixel, owner = _lay_out(discs, part, width, first_row, end_row)
            if full is not None:
                kept = full.index_select(0, pixel).logical_not_().nonzero().squeeze(1)
                pixel, owner = pixel.index_select(0, kept), owner.index_select(0, kept)
            pixels.append(pixel)
            owners.append(owner)
            counts += torch.bincount(pixel, minlength=len(counts))
        if layers is not None and pieces > 1:
            full = counts >= layers
            full = full if bool(full.any()) else None
    if not pixels:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Layers(empty, empty.int(), [])
    return _by_layer(torch.cat(pixels), torch.cat(owners), counts, layers, first_row * width)


def layer_indices(
    discs: Discs, window: Window, layers: int, *, first_row: int = 0, end_row: int | None = None
) -> Int64[Tensor, "h w k"]:
    """Row of the input in each layer of each pixel, front to back; -1 where there is none (for tests and views).

    Arguments as in `front_layers`.
    """
    found = front_layers(discs, window, layers, first_row=first_row, end_row=end_row)
    image = torch.full((window.height * window.width, layers), -1, dtype=torch.int64, device=discs.u.device)
    begin = 0
    for k, size in enumerate(found.sizes):
        image[found.pixel[:size], k] = discs.index[found.disc[begin : begin + size]]
        begin += size
    return image.reshape(window.height, window.width, layers)


def fragment_estimate(discs: Discs, window: Window, rows: int) -> Float[Tensor, "n"]:
    """At least as many fragments as each disc has in an image of this many rows, and rarely twice as many."""
    span = 2.0 * discs.drawn + 1.0
    return span.clamp_max(window.width) * span.clamp_max(rows)


def _ascending(z: Float[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Stable order of positive numbers, whose bits, read as integers, sort alike."""
    return _stable_order(z.view(torch.int32 if z.dtype == torch.float32 else torch.int64))


def _stable_order(keys: Int[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Rows of integers in ascending order; equal ones keep their order."""
    count = len(keys)
    if keys.device.type == "cpu" and RADIX // 16 < count < RADIX:
        keys = torch.nn.functional.pad(keys, (0, RADIX - count), value=torch.iinfo(keys.dtype).max)
    return keys.sort(stable=True).indices[:count]


def _cut(rows: Int32[Tensor, "m"], cost: Float[Tensor, "m"], pieces: int) -> tuple[Tensor, ...]:
    """Cut a list into consecutive pieces of similar cost."""
    if pieces <= 1:
        return (rows,) if len(rows) else ()
    cost = cost.cumsum(0, dtype=torch.float64)
    marks = torch.arange(1, pieces, device=cost.device, dtype=torch.float64) * (cost[-1] / pieces)
    return rows.tensor_split(torch.searchsorted(cost, marks).cpu())


def _repeat_rows(ends: Int32[Tensor, "m"], total: int) -> Int32[Tensor, "t"]:
    """Row k as often as ``ends[k] - ends[k - 1]`` says: how many rows have ended at each place."""
    ended = torch.zeros(total + 1, dtype=torch.int32, device=ends.device)
    ended.index_add_(0, ends, torch.ones_like(ends))
    return ended[:total].cumsum(0, dtype=torch.int32)


def _margin(drawn: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Added to a disc's extent so that rounding does not lose a pixel; less than one pixel, which one test undoes."""
    return (1e-3 * drawn).add_(1e-3).clamp_max_(0.99)


def _touches_open_pixel(
    discs: Discs, rows: Int[Tensor, "m"], full: Tensor, width: int, first_row: int, end_row: int
) -> Tensor:
    """Which discs have a pixel in their bounding box that still takes fragments, by a summed-area table."""
    table = torch.zeros(end_row - first_row + 1, width + 1, dtype=torch.int32, device=full.device)
    table[1:, 1:] = full.view(-1, width).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    u, v, drawn = (part.index_select(0, rows) for part in (discs.u, discs.v, discs.drawn))
    reach = drawn + _margin(drawn)
    low_x = (u - reach - 0.5).ceil_().clamp_(0, width).int()
    high_x = (u + reach + 0.5).floor_().clamp_(0, width).int()
    low_y = (v - reach - (first_row + 0.5)).ceil_().clamp_(0, end_row - first_row).int()
    high_y = (v + reach - (first_row - 0.5)).floor_().clamp_(0, end_row - first_row).int()
    area = (high_x - low_x).clamp_min_(0) * (high_y - low_y).clamp_min_(0)
    flat, stride = table.view(-1), width + 1
    inside = flat.index_select(0, high_y * stride + high_x) - flat.index_select(0, high_y * stride + low_x)
    inside += flat.index_select(0, low_y * stride + low_x) - flat.index_select(0, low_y * stride + high_x)
    return inside < area


def _lay_out(
    discs: Discs, rows: Int32[Tensor, "m"], width: int, first_row: int, end_row: int
) -> tuple[Int32[Tensor, "f"], Int32[Tensor, "f"]]:
    """All fragments of some discs, disc by disc: flat pixel within the range of rows, and row of `discs`.

    First the rows of pixels each disc crosses, then the run of pixels in each row, whose two ends are tested exactly.
    """
    u, v, drawn = (part.index_select(0, rows) for part in (discs.u, discs.v, discs.drawn))
    margin = _margin(drawn)
    reach = drawn + margin
    top = (v - reach - 0.5).ceil_().clamp_(first_row, end_row)
    tall = (v + reach + 0.5).floor_().clamp_(first_row, end_row).sub_(top).clamp_min_(0).int()
    lines_end = tall.cumsum(0, dtype=torch.int32)
    lines = int(lines_end[-1]) if len(lines_end) else 0
    disc = _repeat_rows(lines_end, lines)
    y = torch.arange(lines, dtype=torch.int32, device=u.device)
    y += (top.int() - lines_end + tall).index_select(0, disc)

    centre = u.index_select(0, disc) - 0.5
    rest = (y + 0.5).to(u.dtype).sub_(v.index_select(0, disc)).square_()
    rest = drawn.square().index_select(0, disc).sub_(rest)
    half = rest.clamp_min(0).sqrt_().add_(margin.index_select(0, disc))
    left = (centre - half).ceil_().clamp_min_(0)
    right = (centre + half).floor_().clamp_max_(width - 1)
    left += ((left - centre).square_() >= rest).to(left.dtype)
    right -= ((right - centre).square_() >= rest).to(left.dtype)
    count = right.sub_(left).add_(1).clamp_min_(0).int()

    ends = count.cumsum(0, dtype=torch.int32)
    total = int(ends[-1]) if lines else 0
    line = _repeat_rows(ends, total)
    pixel = torch.arange(total, dtype=torch.int32, device=u.device)
    pixel += ((y - first_row) * width + left.int() - ends + count).index_select(0, line)
    return pixel, rows.index_select(0, disc).index_select(0, line)


def _by_layer(
    pixel: Int32[Tensor, "f"],
    owner: Int32[Tensor, "f"],
    counts: Int64[Tensor, "a"],
    layers: int | None,
    first_pixel: int,
) -> Layers:
    """Sort fragments by pixel, keep the first ones of each, and order them by layer."""
    used = (counts if layers is None else counts.clamp_max(layers)).int()
    # Pixels with more than k fragments, for each k.
    sizes = torch.bincount(used)[1:].flip(0).cumsum(0).flip(0).tolist()
    if not sizes:
        return Layers(counts.new_zeros(0), owner, [])
    owner = _grouped(pixel, owner, len(counts))
    every = torch.arange(len(used), dtype=torch.int32, device=used.device)
    hit = _grouped(len(sizes) - used, every, len(sizes) + 1)[: sizes[0]].long()
    first = (counts.cumsum(0) - counts).index_select(0, hit)
    place = torch.cat([first[:size] + k for k, size in enumerate(sizes)])
    return Layers(hit + first_pixel, owner.index_select(0, place), sizes)


def _grouped(keys: Int32[Tensor, "n"], values: Int32[Tensor, "n"], count: int) -> Int32[Tensor, "n"]:
    """Values in the order of their keys, which are below ``count``; those of equal keys keep their order."""
    sparse = _sparse() if keys.device.type == "cpu" else None
    if sparse is None:
        return values.index_select(0, _stable_order(keys))
    # Turning a sparse matrix from columns to rows is a counting sort that carries the values along: on a CPU two to
    # three times as fast as torch's sort and a lookup.
    starts = np.arange(len(keys) + 1, dtype=np.int32)
    columns = sparse.csc_matrix((values.numpy(), keys.numpy(), starts), shape=(count, len(keys)), copy=False)
    return torch.from_numpy(columns.tocsr().data)


@cache
def _sparse() -> Any:
    """scipy's sparse matrices; None where the package is absent: torch's sort gives the same, later."""
    return importlib.import_module("scipy.sparse") if is_importable("scipy.sparse") else None
