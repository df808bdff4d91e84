"""Depth peeling as CUDA kernels in Triton, forward and backward (spec r4dv 6.1).

The image is cut into square tiles. Each disc is listed in the tiles it touches; a stable sort by tile of the list, laid
out in order of depth, leaves each tile's discs nearest first. One program walks a tile's list with all its pixels at
once and ends when each has its K fragments. The backward pass walks the list from its end, where the gradient of
`r4dv_ns.peel_blend` is a recursion; a disc's part is summed over the tile before it is added to memory. Transmittances
are stored, one per fragment, instead of being divided out again: behind opaque points they are too small for that.

The kernels compute what `r4dv_ns.peel_blend` does, to which the tests compare them, in Triton's interpreter on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Int32
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import knobs

from r4dv_ns.peel_blend import Blended, Settings, to_points
from r4dv_ns.peel_fragments import Discs, Window, visible_discs

TILE = 16
"""Pixels along a tile's edge."""


def can_run(device: torch.device) -> bool:
    """Whether kernels run on tensors of this device: on CUDA, or anywhere under ``TRITON_INTERPRET=1``."""
    return device.type == "cuda" or bool(knobs.runtime.interpret)


@triton.jit
def _forward(
    u_ptr, v_ptr, square_ptr, alpha_ptr, slope_ptr, values_ptr, list_ptr, start_ptr,
    sums_ptr, accumulation_ptr, count_ptr, last_ptr, light_ptr,
    tiles_x, width, height, layers,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    lane = tl.arange(0, TILE * TILE)
    x = tile % tiles_x * TILE + lane % TILE
    y = tile // tiles_x * TILE + lane // TILE
    inside = (x < width) & (y < height)
    kind = sums_ptr.dtype.element_ty
    channel = tl.arange(0, PADDED)
    px = x.to(kind) + 0.5
    py = y.to(kind) + 0.5
    pixel = (y * width + x).to(tl.int64)
    area = (width * height).to(tl.int64)

    light = tl.full([TILE * TILE], 1.0, kind)
    accumulation = tl.zeros([TILE * TILE], kind)
    sums = tl.zeros([TILE * TILE, PADDED], kind)
    count = tl.zeros([TILE * TILE], tl.int32)
    last = tl.zeros([TILE * TILE], tl.int32)
    still = inside.to(tl.int32)
    at = tl.load(start_ptr + tile)
    end = tl.load(start_ptr + tile + 1)
    while (at < end) & (tl.max(still, axis=0) > 0):
        disc = tl.load(list_ptr + at).to(tl.int64)
        dx = tl.load(u_ptr + disc) - px
        dy = tl.load(v_ptr + disc) - py
        square = dx * dx + dy * dy
        hit = (still > 0) & (square < tl.load(square_ptr + disc))
        if tl.max(hit.to(tl.int32), axis=0) > 0:
            opacity = tl.maximum(tl.load(alpha_ptr + disc) - tl.load(slope_ptr + disc) * square, 0.0)
            weight = tl.where(hit, light * opacity, 0.0)
            if STORE:
                tl.store(light_ptr + count.to(tl.int64) * area + pixel, light, mask=hit)
            values = tl.load(values_ptr + disc * CHANNELS + channel, mask=channel < CHANNELS, other=0.0)
            sums += weight[:, None] * values[None, :]
            accumulation += weight
            light -= weight
            count += hit.to(tl.int32)
            last = tl.where(hit, at + 1, last)
            still = (inside & (count < layers)).to(tl.int32)
        at += 1

    where = pixel[:, None] * CHANNELS + channel[None, :]
    tl.store(sums_ptr + where, sums, mask=inside[:, None] & (channel < CHANNELS)[None, :])
    tl.store(accumulation_ptr + pixel, tl.minimum(accumulation, 1.0), mask=inside)
    tl.store(count_ptr + pixel, count, mask=inside)
    tl.store(last_ptr + pixel, last, mask=inside)


@triton.jit
def _backward(
    u_ptr, v_ptr, square_ptr, alpha_ptr, slope_ptr, values_ptr, list_ptr, start_ptr,
    count_ptr, last_ptr, light_ptr, seeds_ptr, base_ptr, per_disc_ptr, per_value_ptr,
    tiles_x, width, height, discs,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    lane = tl.arange(0, TILE * TILE)
    x = tile % tiles_x * TILE + lane % TILE
    y = tile // tiles_x * TILE + lane // TILE
    inside = (x < width) & (y < height)
    kind = seeds_ptr.dtype.element_ty
    channel = tl.arange(0, PADDED)
    px = x.to(kind) + 0.5
    py = y.to(kind) + 0.5
    pixel = (y * width + x).to(tl.int64)
    area = (width * height).to(tl.int64)

    where = pixel[:, None] * CHANNELS + channel[None, :]
    seeds = tl.load(seeds_ptr + where, mask=inside[:, None] & (channel < CHANNELS)[None, :], other=0.0)
    base = tl.load(base_ptr + pixel, mask=inside, other=0.0)
    left = tl.load(count_ptr + pixel, mask=inside, other=0)
    last = tl.load(last_ptr + pixel, mask=inside, other=0)
    behind = tl.zeros([TILE * TILE], kind)
    begin = tl.load(start_ptr + tile)
    at = tl.max(last, axis=0) - 1
    while at >= begin:
        disc = tl.load(list_ptr + at).to(tl.int64)
        dx = tl.load(u_ptr + disc) - px
        dy = tl.load(v_ptr + disc) - py
        square = dx * dx + dy * dy
        hit = inside & (at < last) & (square < tl.load(square_ptr + disc))
        if tl.max(hit.to(tl.int32), axis=0) > 0:
            left -= hit.to(tl.int32)
            light = tl.load(light_ptr + left.to(tl.int64) * area + pixel, mask=hit, other=0.0)
            opacity = tl.maximum(tl.load(alpha_ptr + disc) - tl.load(slope_ptr + disc) * square, 0.0)
            opacity = tl.where(hit, opacity, 0.0)
            values = tl.load(values_ptr + disc * CHANNELS + channel, mask=channel < CHANNELS, other=0.0)
            here = tl.sum(seeds * values[None, :], axis=1) + base
            g = tl.where(hit, light * (here - behind), 0.0)
            behind += opacity * (here - behind)
            tl.atomic_add(per_disc_ptr + disc, tl.sum(g, axis=0))
            tl.atomic_add(per_disc_ptr + discs + disc, tl.sum(g * dx, axis=0))
            tl.atomic_add(per_disc_ptr + 2 * discs + disc, tl.sum(g * dy, axis=0))
            tl.atomic_add(per_disc_ptr + 3 * discs + disc, tl.sum(g * square, axis=0))
            g_values = tl.sum(seeds * (light * opacity)[:, None], axis=0)
            tl.atomic_add(per_value_ptr + disc * CHANNELS + channel, g_values, mask=channel < CHANNELS)
        at -= 1


def tile_lists(discs: Discs, window: Window, tile: int) -> tuple[Int32[Tensor, "e"], Int32[Tensor, "t1"]]:
    """Which discs touch each tile, nearest first.

    Args:
        discs: see `r4dv_ns.peel_fragments.visible_discs`.
        window: camera and image size.
        tile: pixels along a tile's edge.

    Returns:
        Rows of ``discs``, tile by tile, and where each tile's begin; one more entry, their number, ends it. Tiles are
        numbered row by row. A disc is listed where its bounding box touches the tile.
    """
    tiles_x, tiles_y = -(-window.width // tile), -(-window.height // tile)
    # Half a pixel beyond the last centre inside, for rounding: the kernels test every centre.
    reach = discs.drawn + 0.5
    low_x, low_y = ((part - reach).div_(tile).floor_().clamp_min_(0).int() for part in (discs.u, discs.v))
    high_x = (discs.u + reach).div_(tile).floor_().clamp_max_(tiles_x - 1).int()
    high_y = (discs.v + reach).div_(tile).floor_().clamp_max_(tiles_y - 1).int()
    across = high_x - low_x + 1
    count = across * (high_y - low_y + 1)
    ends = count.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    disc = torch.repeat_interleave(count, output_size=total)
    number = torch.arange(total, device=count.device) - (ends - count)[disc]
    across = across[disc]
    row = torch.div(number, across, rounding_mode="floor")
    where = (low_y[disc] + row) * tiles_x + low_x[disc] + (number - row * across)
    where, order = where.int().sort(stable=True)
    starts = torch.searchsorted(where, torch.arange(tiles_x * tiles_y + 1, dtype=torch.int32, device=where.device))
    return disc[order].int(), starts.int()


def blend(points_camera: Tensor, radius: Tensor, alpha: Tensor, color: Tensor, settings: Settings) -> Blended:
    """Peel and blend; as `r4dv_ns.peel_blend.blend`, on a device for which `can_run` holds.

    ``max_fragment_bytes`` has no effect: the list takes 16 bytes per disc and tile, and the transmittances kept for the
    gradient 4 bytes per pixel and layer.
    """
    inputs = (points_camera, radius, alpha, color)
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    return Blended(*_Blend.apply(*inputs, settings, keep))  # pyright: ignore[reportGeneralTypeIssues]


class _Blend(torch.autograd.Function):
    """`blend`."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, radius: Tensor, alpha: Tensor, color: Tensor, settings: Settings, keep: bool):
        window = settings.window
        discs = visible_discs(points, radius, alpha, window, near=settings.near, min_radius=settings.min_radius)
        values = torch.cat([color.index_select(0, discs.index), discs.depth[:, None]], dim=1)
        lists = tile_lists(discs, window, TILE)
        layers = settings.layers
        if layers is None:
            # As many as any pixel has; without a gradient the number does not matter.
            layers = int(_walk(discs, values, lists, window, 1 << 30, None)[2].max()) if keep else 1 << 30
        light = values.new_empty(max(layers, 1), window.height * window.width) if keep else None
        sums, accumulation, count, last = _walk(discs, values, lists, window, layers, light)
        if light is not None:
            ctx.settings, ctx.points = settings, len(points)
            ctx.save_for_backward(*discs, values, *lists, count, last, light)
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        return sums[:, :-1].contiguous(), accumulation, sums[:, -1].contiguous(), count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *parts, values, rows, starts, count, last, light = ctx.saved_tensors
        discs, window = Discs(*parts), ctx.settings.window
        g_color, g_accumulation, g_depth, _ = grads
        area, channels = len(count), values.shape[1]
        seeds = values.new_zeros(area, channels)
        if g_color is not None:
            seeds[:, :-1] = g_color
        if g_depth is not None:
            seeds[:, -1] = g_depth
        base = values.new_zeros(area) if g_accumulation is None else g_accumulation.contiguous()
        per_disc, per_value = values.new_zeros(4, len(discs.u)), torch.zeros_like(values)
        if len(rows):
            arguments = [*_columns(discs), values, rows, starts, count, last, light, seeds, base, per_disc, per_value]
            arguments += [-(-window.width // TILE), window.width, window.height, len(discs.u)]
            with torch.cuda.device_of(values):
                _backward[(len(starts) - 1,)](*arguments, **constants_of(channels))
        g_z = per_value[:, -1] if g_depth is not None else None
        points, radius, alpha = to_points(discs, per_disc, g_z, ctx.settings, ctx.points)
        color = values.new_zeros(ctx.points, channels - 1)
        color.index_copy_(0, discs.index, per_value[:, :-1])
        return points, radius, alpha, color, None, None


def constants_of(channels: int) -> dict[str, Any]:
    """Compile-time arguments that both kernels share, for values of this many channels (colour and depth)."""
    return {"CHANNELS": channels, "PADDED": triton.next_power_of_2(channels), "TILE": TILE}


def _columns(discs: Discs) -> list[Any]:
    """What the kernels read of a disc: u, v, squared radius, opacity, and opacity over squared radius."""
    square = discs.drawn.square()
    return [discs.u, discs.v, square, discs.alpha, discs.alpha / square]


def _walk(
    discs: Discs, values: Tensor, lists: tuple[Tensor, Tensor], window: Window, layers: int, light: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward kernel: sums of values and weights, counts, and where in its tile's list each pixel ended."""
    rows, starts = lists
    area = window.height * window.width
    sums, accumulation = values.new_zeros(area, values.shape[1]), values.new_zeros(area)
    count, last = (torch.zeros(area, dtype=torch.int32, device=values.device) for _ in range(2))
    if len(rows):
        stored = sums if light is None else light
        arguments = [*_columns(discs), values, rows, starts, sums, accumulation, count, last, stored]
        arguments += [-(-window.width // TILE), window.width, window.height, layers]
        constants = {**constants_of(values.shape[1]), "STORE": light is not None}
        with torch.cuda.device_of(values):
            _forward[(len(starts) - 1,)](*arguments, **constants)
    return sums, accumulation, count, last
