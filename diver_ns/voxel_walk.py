"""Cut rays at the faces of the voxels they cross (spec diver 3.1, 11).

A ray ``u(t) = o + t d`` meets plane ``k`` of an axis at ``t = (k - o) / d``; the sorted times are its cuts and the
middle of a piece tells its voxel. `walk_sorted` does exactly that with all planes of the fine grid. `walk` starts on a
coarse grid instead and cuts only pieces inside occupied cells further, level by level: planes of a coarse level are
planes of every finer one, so the cuts are the same.

All times are float64: near a grid-parallel ray a rounding of one float32 unit moves a cut by whole voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SLIVER = 1e-4
"""Pieces shorter than this (voxels) are dropped: rounding makes them, and each would count as a full voxel."""
NUDGE = 1e-4
"""The original rounds coordinates down after adding this (voxels)."""
COARSEST = 24
"""The walk starts on the first level with at most this many cells per axis."""
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Times held at once; on a CPU they should fit its second-level cache."""


class Segments(NamedTuple):
    """Pieces of rays inside single voxels, ordered by ray, then by distance."""

    ray: Int64[Tensor, "s"]
    """Index of the ray, ascending."""
    voxel: Int64[Tensor, "s 3"]
    """x, y, z in [0, N-1]."""
    u_in: Float[Tensor, "s 3"]
    """Entry in the voxel's own coordinates, [0, 1]^3 (with `parity` up to 1e-4 below 0)."""
    u_out: Float[Tensor, "s 3"]
    """Exit, likewise."""
    t_in: Float[Tensor, "s"]
    """Entry distance, in the unit of the directions."""
    t_out: Float[Tensor, "s"]
    """Exit distance."""
    rays: int
    """How many rays were asked for, also those that hit nothing."""


class _Rays(NamedTuple):
    """Rays that meet the box, float64, one row of each tensor per axis."""

    index: Int64[Tensor, "r"]
    origin: Float[Tensor, "3 r"]
    direction: Float[Tensor, "3 r"]
    inverse: Float[Tensor, "3 r"]
    first: Float[Tensor, "r"]
    last: Float[Tensor, "r"]
    shortest: Float[Tensor, "r"]
    """Times; `shortest` is a sliver's."""

    def part(self, start: int, stop: int) -> _Rays:
        return _Rays(*(field[..., start:stop] for field in self))


class _Pieces(NamedTuple):
    """Pieces of rays inside the cells of one level; the cell's index is kept as float64, one tensor per axis."""

    ray: Int64[Tensor, "p"]
    t_in: Float[Tensor, "p"]
    t_out: Float[Tensor, "p"]
    cell: list[Float[Tensor, "p"]]

    def select(self, kept: Bool[Tensor, "p"]) -> _Pieces:
        chosen = _nonzero(kept)
        ray, t_in, t_out, *cell = (x.index_select(0, chosen) for x in (self.ray, self.t_in, self.t_out, *self.cell))
        return _Pieces(ray, t_in, t_out, cell)


class _Level(NamedTuple):
    """A grid of ``resolution`` cells per axis and which of its cells to go on in (None: all)."""

    resolution: int
    mask: Bool[Tensor, "l l l"] | None


Times = Float[Tensor, "r"] | float


@torch.no_grad()
def walk(
    origins_u: Float[Tensor, "r 3"],
    dirs_u: Float[Tensor, "r 3"],
    resolution: int,
    *,
    t_near: Times = 0.0,
    t_far: Times = float("inf"),
    occupied: Bool[Tensor, "m m m"] | None = None,
    lower: Float[Tensor, "3"] | None = None,
    upper: Float[Tensor, "3"] | None = None,
    parity: bool = False,
) -> Segments:
    """Pieces of rays inside the (occupied) voxels of a grid, without gradient.

    Args:
        origins_u: in grid coordinates, the grid being ``[0, resolution]^3``.
        dirs_u: change of grid coordinates per unit of t; any component may be 0, of either sign.
        resolution: voxels per axis, N.
        t_near, t_far: range of t, of all rays or of each; what lies behind the origin is never crossed.
        occupied: [z, y, x] over cells of any number M per axis; voxel v is kept iff ``occupied[floor(v M / N)]``.
        lower, upper: corners of a crop box in grid coordinates.
        parity: the original's rule for the voxel of a piece, ``min(int(u_in + 1e-4), int(u_out + 1e-4))`` per axis,
            instead of its middle's: differs for rays within 1e-4 voxel below a plane (spec diver 11).

    Returns:
        float32 or float64 as `origins_u`, on its device. Pieces shorter than 1e-4 voxel are dropped.

    Raises:
        ValueError: a resolution below 1, or a mask that is not a cube.
    """
    mask = None if occupied is None else _cube(occupied)
    levels = _pyramid(mask, resolution, parity)

    def descend(rays: _Rays) -> _Pieces:
        pieces = _cut_rays(rays, resolution // levels[0].resolution, resolution, _sort_rows)
        pieces = _keep(pieces, levels[0].mask, levels[0].resolution)
        for parent, child in pairwise(levels):
            step = resolution // child.resolution
            pieces = _cut_cells(rays, pieces, resolution // parent.resolution, step)
            pieces = _keep(_place(rays, pieces, step, child.resolution), child.mask, child.resolution)
        return _keep(_nudge(rays, pieces, resolution), mask, resolution) if parity else pieces

    rays = _meet_box(origins_u, dirs_u, resolution, t_near, t_far, lower, upper)
    return _in_chunks(rays, descend, 3 * levels[0].resolution, origins_u, parity)


@torch.no_grad()
def walk_sorted(
    origins_u: Float[Tensor, "r 3"],
    dirs_u: Float[Tensor, "r 3"],
    resolution: int,
    *,
    t_near: Times = 0.0,
    t_far: Times = float("inf"),
    occupied: Bool[Tensor, "m m m"] | None = None,
    lower: Float[Tensor, "3"] | None = None,
    upper: Float[Tensor, "3"] | None = None,
    parity: bool = False,
) -> Segments:
    """The plain form of `walk`: every plane of the grid, one sort, the mask last. Same arguments and result."""
    mask = None if occupied is None else _cube(occupied)

    def cut(rays: _Rays) -> _Pieces:
        pieces = _cut_rays(rays, 1, resolution, lambda times: torch.sort(times, dim=1).values)
        return _keep(_nudge(rays, pieces, resolution) if parity else pieces, mask, resolution)

    rays = _meet_box(origins_u, dirs_u, resolution, t_near, t_far, lower, upper)
    return _in_chunks(rays, cut, 3 * resolution, origins_u, parity)


def _meet_box(
    origins: Tensor,
    directions: Tensor,
    resolution: int,
    t_near: Times,
    t_far: Times,
    lower: Tensor | None,
    upper: Tensor | None,
) -> _Rays:
    """Slab test: the rays whose stretch inside grid, crop box and [t_near, t_far] is longer than a sliver."""
    if resolution < 1:
        raise ValueError(f"a grid has at least 1 voxel per axis; got {resolution}")
    o, d = (x.detach().t().double() for x in (origins, directions))
    low, high = torch.zeros_like(o[:, :1]), torch.full_like(o[:, :1], resolution)
    if lower is not None:
        low = torch.maximum(low, lower.to(low)[:, None])
    if upper is not None:
        high = torch.minimum(high, upper.to(high)[:, None])
    # An axis along which the ray stands still has no crossing times. Times 0 / 0 would be nan: inverse 0 puts all its
    # planes at t = 0, which clamping moves to the start of the piece, where they cut nothing.
    still = d.abs() < 1e-200
    inverse = torch.where(still, 0.0, 1 / d)
    at_low, at_high = (low - o) * inverse, (high - o) * inverse
    inside = (low <= o) & (o <= high)
    infinity = torch.full_like(o, float("inf"))
    near = torch.where(still, torch.where(inside, -infinity, infinity), torch.minimum(at_low, at_high)).amax(0)
    far = torch.where(still, infinity, torch.maximum(at_low, at_high)).amin(0)
    first = torch.maximum(near, torch.as_tensor(t_near, device=o.device, dtype=o.dtype).reshape(-1)).clamp(min=0)
    last = torch.minimum(far, torch.as_tensor(t_far, device=o.device, dtype=o.dtype).reshape(-1))
    shortest = SLIVER / d.norm(dim=0)
    hit = _nonzero((last - first > shortest) & last.isfinite())
    fields = (x.index_select(-1, hit) for x in (o, d, inverse, first, last, shortest))
    return _Rays(hit, *fields)


def _sort_rows(times: Float[Tensor, "r k"]) -> Float[Tensor, "r k"]:
    """Ascending rows, possibly in place. numpy sorts short rows of doubles several times faster than torch on a CPU."""
    if times.device.type != "cpu":
        return torch.sort(times, dim=1).values
    times.numpy().sort(axis=1)
    return times


def _cut_rays(rays: _Rays, step: int, resolution: int, sort: Callable[[Tensor], Tensor]) -> _Pieces:
    """Whole rays cut at every `step`-th plane of the grid."""
    planes = torch.arange(step, resolution, step, device=rays.first.device, dtype=torch.float64)
    count = len(planes)
    first, last = rays.first[:, None], rays.last[:, None]
    times = rays.first.new_empty(len(rays.first), 3 * count + 2)
    times[:, 0], times[:, -1] = rays.first, rays.last
    for axis in range(3):
        block = times[:, 1 + axis * count : 1 + (axis + 1) * count]
        torch.mul(planes - rays.origin[axis][:, None], rays.inverse[axis][:, None], out=block)
        block.clamp_(first, last)
    row, t_in, t_out = _between(sort(times), rays.shortest)
    return _place(rays, _Pieces(row, t_in, t_out, []), step, resolution // step)


def _cut_cells(rays: _Rays, pieces: _Pieces, parent: int, child: int) -> _Pieces:
    """Pieces inside cells `parent` voxels wide, cut at the cells' inner planes `child` voxels apart; not yet placed."""
    inner = parent // child - 1
    times = pieces.t_in.new_empty(len(pieces.ray), 3 * inner + 2)
    times[:, 0], times[:, -1] = pieces.t_in, pieces.t_out
    for axis in range(3):
        inverse = rays.inverse[axis].index_select(0, pieces.ray)
        face = (pieces.cell[axis] * parent - rays.origin[axis].index_select(0, pieces.ray)) * inverse
        for k in range(inner):
            crossing = torch.add(face, inverse, alpha=(k + 1) * child)
            times[:, 1 + axis * inner + k] = crossing.clamp_(pieces.t_in, pieces.t_out)
    row, t_in, t_out = _between(_sort_rows(times), rays.shortest.index_select(0, pieces.ray))
    return _Pieces(pieces.ray.index_select(0, row), t_in, t_out, [])


def _between(times: Float[Tensor, "r k"], shortest: Float[Tensor, "r"]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, start and end of the gaps between neighbouring times of a row, slivers left out."""
    columns = times.shape[1]
    kept = torch.zeros(times.shape, dtype=torch.bool, device=times.device)
    torch.gt(times[:, 1:] - times[:, :-1], shortest[:, None], out=kept[:, :-1])
    start = _nonzero(kept.view(-1))
    flat = times.view(-1)
    return start.div(columns, rounding_mode="floor"), flat.index_select(0, start), flat.index_select(0, start + 1)


def _nonzero(flags: Bool[Tensor, "n"]) -> Int64[Tensor, "k"]:
    """Indices of set flags; numpy finds them four times as fast as torch on a CPU."""
    if flags.device.type != "cpu":
        return flags.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(flags.numpy()))


def _place(rays: _Rays, pieces: _Pieces, step: int, resolution: int) -> _Pieces:
    """The cells, `step` voxels wide, that hold the middles of the pieces."""
    middle = (pieces.t_in + pieces.t_out).mul_(0.5)
    cell = [_along(rays, pieces.ray, axis, middle) for axis in range(3)]
    if step > 1:
        cell = [c.div_(step) for c in cell]
    cell = [c.floor_().clamp_(0, resolution - 1) for c in cell]
    return pieces._replace(cell=cell)


def _along(rays: _Rays, ray: Int64[Tensor, "p"], axis: int, t: Float[Tensor, "p"]) -> Float[Tensor, "p"]:
    """One grid coordinate at time t."""
    return torch.addcmul(rays.origin[axis].index_select(0, ray), rays.direction[axis].index_select(0, ray), t)


def _nudge(rays: _Rays, pieces: _Pieces, resolution: int) -> _Pieces:
    """The original's voxels: that of the middle or, along an axis, the next one up."""
    cell = []
    for axis in range(3):
        u_in, u_out = (_along(rays, pieces.ray, axis, t) for t in (pieces.t_in, pieces.t_out))
        cell.append(torch.minimum(u_in, u_out).add_(NUDGE).floor_().clamp_(0, resolution - 1))
    return pieces._replace(cell=cell)


def _keep(pieces: _Pieces, mask: Bool[Tensor, "m m m"] | None, resolution: int) -> _Pieces:
    """The pieces in set cells of a mask, read at `floor(cell * m / resolution)`."""
    if mask is None:
        return pieces
    size = len(mask)
    x, y, z = pieces.cell if size == resolution else [(c * size).div_(resolution).floor_() for c in pieces.cell]
    flat = torch.add(torch.add(x, y, alpha=size), z, alpha=size**2).long()
    return pieces.select(mask.view(-1).index_select(0, flat))


def _in_chunks(
    rays: _Rays, cut: Callable[[_Rays], _Pieces], columns: int, like: Float[Tensor, "r 3"], parity: bool
) -> Segments:
    """`cut` for as many rays at once as memory should hold, joined to the packed result."""
    size = max(64, CHUNK["cuda" if like.is_cuda else "cpu"] // columns)
    parts = []
    for start in range(0, max(1, len(rays.index)), size):
        part = rays.part(start, start + size)
        parts.append(_finish(part, cut(part), like.dtype, parity))
    joined = parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]
    return Segments(*joined, rays=len(like))


def _finish(rays: _Rays, pieces: _Pieces, dtype: torch.dtype, parity: bool) -> list[Tensor]:
    """The tensors of `Segments` for pieces of single voxels."""
    count = len(pieces.ray)
    u_in, u_out = (pieces.t_in.new_empty(count, 3, dtype=dtype) for _ in range(2))
    voxel = pieces.ray.new_empty(count, 3)
    for axis in range(3):
        origin = rays.origin[axis].index_select(0, pieces.ray).sub_(pieces.cell[axis])
        direction = rays.direction[axis].index_select(0, pieces.ray)
        for out, t in ((u_in, pieces.t_in), (u_out, pieces.t_out)):
            local = torch.addcmul(origin, direction, t)
            out[:, axis] = local.clamp_(-NUDGE if parity else 0.0, 1.0)
        voxel[:, axis] = pieces.cell[axis]
    return [rays.index.index_select(0, pieces.ray), voxel, u_in, u_out, pieces.t_in.to(dtype), pieces.t_out.to(dtype)]


def _cube(mask: Tensor) -> Tensor:
    if mask.dim() != 3 or len(set(mask.shape)) != 1 or not len(mask):
        raise ValueError(f"a mask has as many cells along z, y and x; got shape {tuple(mask.shape)}")
    return mask.bool().contiguous()


def _resample(mask: Bool[Tensor, "m m m"], resolution: int) -> Bool[Tensor, "n n n"]:
    """The mask read at every voxel."""
    place = torch.arange(resolution, device=mask.device) * len(mask) // resolution
    return mask[place[:, None, None], place[:, None], place]


def _pool(mask: Bool[Tensor, "m m m"], ratio: int) -> Bool[Tensor, "l l l"]:
    """Cells `ratio` times as wide, set where any of the cells inside is."""
    for axis in range(3):  # whole slabs first, single bytes last
        strided = [mask[(slice(None),) * axis + (slice(k, None, ratio),)] for k in range(ratio)]
        mask = strided[0].clone()
        for other in strided[1:]:
            mask |= other
    return mask


def _reach_up(mask: Bool[Tensor, "l l l"]) -> Bool[Tensor, "l l l"]:
    """Also the cells just below set ones along any of the axes: from there the original's rule may step into them."""
    for axis in range(3):
        reached = mask.clone()
        reached.narrow(axis, 0, len(mask) - 1).logical_or_(mask.narrow(axis, 1, len(mask) - 1))
        mask = reached
    return mask


def _ratio(cells: int) -> int:
    """How many cells of this level the next coarser level joins along an axis; 1 ends the pyramid."""
    if cells > COARSEST:
        for ratio in (4, 2, 3):
            if cells % ratio == 0 and cells // ratio >= COARSEST // 2:
                return ratio
    return 1


def _pyramid(occupied: Bool[Tensor, "m m m"] | None, resolution: int, parity: bool) -> list[_Level]:
    """Levels from coarse to fine; the last has the grid's resolution, and each divides the next."""
    if occupied is None:
        return [_Level(resolution, None)]
    masks = [_resample(occupied, resolution) if resolution % len(occupied) else occupied]
    while (ratio := _ratio(len(masks[0]))) > 1:
        masks.insert(0, _pool(masks[0], ratio))
    levels = [_Level(len(mask), _reach_up(mask) if parity else mask) for mask in masks]
    return levels if levels[-1].resolution == resolution else [*levels, _Level(resolution, None)]
