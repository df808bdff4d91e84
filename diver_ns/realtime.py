"""Real-time rendering of a tabulated model: rays leap over empty space, stop when opaque, and shade what shows.

Spec diver 6. Each ray is a small automaton: it stands in a voxel, whose byte in `DeployModel.cells` says either "empty,
and so is everything within r voxels", so that it may leap to the far side of that box, or "occupied", which is a hit.
Rays advance together, hits are decoded in waves, rays that became opaque or left the cube are dropped. What a ray sees
does not depend on its neighbours or on the size of the waves, because its hits are blended one after the other.

Differences from the exact path (`diver_ns.voxel_walk` to `diver_ns.compositing`), both the original's and both with a
threshold here: opacities below ``skip`` are ignored, and a ray ends when less than ``stop`` of its light is left. The
torch code here runs anywhere; `diver_ns.realtime_triton` is the same in one CUDA kernel.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from core_ns.errors import is_importable
from diver_ns.deploy_model import BLOCK, DeployModel, make_deploy
from diver_ns.integrator import chord_weights, integrate
from diver_ns.voxel_walk import SLIVER

__all__ = ["DeployModel", "make_deploy", "render_rays"]

Backend = Literal["auto", "torch", "triton"]

PARALLEL = 1e-12
"""A direction component this much smaller than the largest one counts as zero."""
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 20}
"""Rays at once. On a CPU the state of all rays should stay in the cache."""
ENOUGH = 1 << 13
"""On a CPU a wave ends early with this many hits: they decode efficiently, and few of them lie behind opaque ones."""


class OrientedBoxLike(Protocol):
    """nerfstudio's crop box: rotation R [3, 3] and centre T [3] to the world, edge lengths S [3]."""

    R: Tensor
    T: Tensor
    S: Tensor


class RayState(NamedTuple):
    """Rays that meet the cube.

    Positions [3, r] are grid coordinates relative to the lower corner of the voxel in which the ray begins: along an
    axis on which it hardly moves they stay small and hence precise. ``t`` counts from the entry into the cube.
    """

    entry: Tensor
    direction: Tensor
    inverse: Tensor
    """1 / direction, infinite with the sign of ``sign`` along axes that the ray does not move on."""
    sign: Tensor
    behind: Tensor
    """``entry``, minus one where the ray moves upwards: ``(last voxel - behind) * inverse`` is when that voxel ends."""
    base: Tensor
    """Flat number [r] of the voxel in which the ray begins."""
    voxel: Tensor
    t: Tensor
    end: Tensor
    shortest: Tensor
    """Duration of the shortest piece that counts."""

    def take(self, rows: Int64[Tensor, "k"]) -> RayState:
        """Some of the rays."""
        return RayState(*(part.index_select(-1, rows) for part in self))


class Sums(NamedTuple):
    """What has been gathered along each ray."""

    optical: Float32[Tensor, "r"]
    """Sum of densities; exp(-optical) is the light that is left."""
    rgb: Float32[Tensor, "r 3"]
    depth: Float32[Tensor, "r"]
    """Sum of weight times t."""
    hits: Float32[Tensor, "r"]


@torch.no_grad()
def render_rays(
    model: DeployModel,
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    *,
    t_near: Float[Tensor, "*r"] | float = 0.0,
    t_far: Float[Tensor, "*r"] | float = math.inf,
    stop: float = 0.01,
    skip: float = 0.01,
    wave: int = 8,
    box: OrientedBoxLike | Float[Tensor, "2 3"] | None = None,
    backend: Backend = "auto",
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Render world rays (spec diver 6.2).

    ``|rgb - exact rgb| <= stop + sum of the exact path's weights of the skipped voxels``; both thresholds 0 give the
    exact path's result.

    Args:
        model: on the device of the rays.
        origins: world.
        directions: unit, world; a zero vector sees the background.
        t_near: distance where rays begin (at least 0); one number, [R] or [R, 1].
        t_far: distance where rays end.
        stop: a ray ends when its transmittance falls below this.
        skip: smallest opacity that counts; smaller ones neither shade nor shadow.
        wave: most voxels a ray is moved before the hits are decoded; no influence on the result.
        box: crop box, world: nerfstudio's oriented box, or lower and upper corner.
        backend: ``auto`` takes Triton on CUDA where it can be imported.
        chunk: rays at once; default by device.

    Returns:
        ``rgb`` [R, 3] over the background, ``accumulation`` [R, 1], ``depth`` [R, 1] (sum of weight times distance of
        the chord's middle, world units), ``hits`` [R, 1] (voxels evaluated until the ray ended).

    Raises:
        ValueError: a threshold or wave out of range, or Triton asked for where it cannot run.
    """
    if not 0 <= stop < 1 or not 0 <= skip < 1 or wave < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"need 0 <= stop, skip < 1, wave, chunk >= 1; got {stop}, {skip}, {wave}, {chunk}")
    on_triton = _choose(backend, origins.device)
    count, limit = len(origins), math.inf if stop == 0 else -math.log(stop)
    near, far = (_per_ray(t, origins) for t in (t_near, t_far))
    out = origins.new_zeros((count, 6), dtype=torch.float32)
    size = chunk or CHUNK.get(origins.device.type, 1 << 15)
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        rows, start, rays = _enter(model, origins[part], directions[part], near[part], far[part], box)
        facing = directions[part][rows]
        if on_triton:
            from diver_ns.realtime_triton import march

            optical, rgb, depth, hits = march(model, rays, facing, limit, skip)
        else:
            optical, rgb, depth, hits = _march(model, rays, facing, limit, skip, wave)
        opacity = -torch.expm1(-optical)
        # Weights sum to the opacity, so that distances from the entry become distances from the origin like this.
        pixels = torch.cat([rgb, opacity[:, None], (depth + opacity * start)[:, None], hits[:, None]], dim=1)
        out[part].index_copy_(0, rows, pixels)
    rgb, opacity, depth, hits = out.split([3, 1, 1, 1], dim=1)
    return {
        "rgb": rgb + (1 - opacity) * model.background,
        "accumulation": opacity,
        "depth": depth,
        "hits": hits,
    }


def _choose(backend: Backend, device: torch.device) -> bool:
    """Whether to render with Triton."""
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    if not is_importable("triton"):
        if backend == "auto":
            return False
        raise ValueError("backend 'triton' needs the package triton; use 'auto' or 'torch'")
    from diver_ns.realtime_triton import can_run

    if can_run(device):
        return True
    if backend == "auto":
        return False
    raise ValueError(f"Triton kernels do not run on {device}; use backend 'auto' or 'torch'")


def _per_ray(t: Tensor | float, origins: Tensor) -> Float[Tensor, "r"]:
    if isinstance(t, Tensor):
        return t.to(origins.device).reshape(-1).expand(len(origins))
    return origins.new_full((1,), t).expand(len(origins))


def _slab(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], lower: Any, upper: Any
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"]]:
    """Times of entry into and exit from a box; entry > exit where it is missed. Zero components are in or out."""
    still = directions == 0
    inverse = torch.where(still, 1.0, directions).reciprocal()
    one, other = (lower - origins) * inverse, (upper - origins) * inverse
    never = torch.where((origins >= lower) & (origins <= upper), -math.inf, math.inf)
    near = torch.where(still, never, torch.minimum(one, other))
    far = torch.where(still, -never, torch.maximum(one, other))
    return near.amax(1), far.amin(1)


def _enter(
    model: DeployModel,
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    near: Float[Tensor, "r"],
    far: Float[Tensor, "r"],
    box: OrientedBoxLike | Tensor | None,
) -> tuple[Int64[Tensor, "k"], Float32[Tensor, "k"], RayState]:
    """Rays that cross the cube, the box and their own range: which, where they begin, and their state there.

    In float64, because a camera may be far away; beginning at the cube, float32 is precise enough for the march. The
    conversion to grid coordinates stays in the rays' type as in the exact path, so that both put a ray that runs along
    a grid plane on the same side.
    """
    n = model.grid.resolution
    o, d = (part.double() for part in model.grid.to_grid(origins, directions))
    d = torch.where(d.abs() < PARALLEL * d.abs().amax(1, keepdim=True), 0.0, d)
    enter, leave = _slab(o, d, 0.0, float(n))
    if box is not None:
        o_box, d_box, half = _to_box(origins.double(), directions.double(), box)
        into, out_of = _slab(o_box, d_box, -half, half)
        enter, leave = torch.maximum(enter, into), torch.minimum(leave, out_of)
    enter = torch.maximum(enter, near.double()).clamp_min(0.0)
    leave = torch.minimum(leave, far.double())
    rows = ((leave > enter) & (d != 0).any(1) & enter.isfinite()).nonzero().squeeze(1)
    o, d, enter, leave = (part[rows] for part in (o, d, enter, leave))
    entry = (o + enter[:, None] * d).clamp(0.0, float(n))
    corner = entry.floor().clamp_max(n - 1)
    entry, x, y, z = entry - corner, *corner.to(torch.int32).unbind(1)
    # Along an axis the ray does not move on, the nearer face would do as well; the farther one is surely not touched.
    sign = torch.where(d == 0, torch.where(entry < 0.5, 1.0, -1.0), d.sign())
    inverse = torch.where(d == 0, sign * math.inf, d.reciprocal())
    columns = (entry, d, inverse, sign, entry - (sign > 0).double(), corner)
    entry, d, inverse, sign, behind, corner = (part.t().to(torch.float32).contiguous() for part in columns)
    outermost = ((sign > 0) * (n - 1.0) - corner - behind) * inverse
    # By the formula of the march itself, so that a ray which left the cube is past its end to the last bit.
    end = torch.minimum((leave - enter).float(), outermost.amin(0))
    state = torch.zeros_like(entry), torch.zeros_like(end), end, SLIVER / d.square().sum(0).sqrt()
    return rows, enter.float(), RayState(entry, d, inverse, sign, behind, (z * n + y) * n + x, *state)


def _to_box(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], box: OrientedBoxLike | Tensor
) -> tuple[Float[Tensor, "r 3"], Float[Tensor, "r 3"], Float[Tensor, "3"]]:
    """Rays in a box's own frame, and its half extent."""
    if isinstance(box, Tensor):
        lower, upper = box.to(origins)
        return origins - (lower + upper) / 2, directions, (upper - lower) / 2
    rotation = box.R.to(origins)
    return (origins - box.T.to(origins)) @ rotation, directions @ rotation, box.S.to(origins) / 2


class _Hits(NamedTuple):
    """Occupied voxels that rays passed in one move; no ray occurs twice."""

    row: Int64[Tensor, "k"]
    """Of the rays still alive."""
    ray: Int64[Tensor, "k"]
    """Of all rays."""
    voxel: Float32[Tensor, "3 k"]
    flat: Int32[Tensor, "k"]
    t_in: Float32[Tensor, "k"]
    t_out: Float32[Tensor, "k"]


def _march(
    model: DeployModel, rays: RayState, facing: Float[Tensor, "r 3"], limit: float, skip: float, wave: int
) -> Sums:
    """Move all rays until they are opaque or out of the cube."""
    count, cpu = len(rays.t), rays.t.device.type == "cpu"
    zeros = rays.t.new_zeros
    sums = Sums(zeros(count), zeros((count, 3)), zeros(count), zeros(count))
    shading = _Shading(model, facing)
    ids = torch.arange(count, device=rays.t.device)
    while len(ids):
        hits, found = [], 0
        for _ in range(wave):
            flat, cell, until, following = _step(model, rays)
            leave = torch.minimum(until, rays.end)
            row = ((cell < 0) & (leave - rays.t > rays.shortest)).nonzero().squeeze(1)
            if len(row):
                found += len(row)
                hits.append(_Hits(row, ids[row], rays.voxel.index_select(1, row), flat[row], rays.t[row], leave[row]))
            rays = rays._replace(t=until, voxel=following)
            if cpu and found >= ENOUGH:
                break
        if hits:
            _blend(model, shading, rays, sums, hits, limit, skip)
        opaque = sums.optical[ids] > limit
        alive = ((rays.t < rays.end) & ~opaque).nonzero().squeeze(1)
        if len(alive) < 0.9 * len(ids):
            rays, ids = rays.take(alive), ids[alive]
        elif hits:
            rays = rays._replace(end=rays.end.masked_fill(opaque, -math.inf))
    return sums


def _step(model: DeployModel, rays: RayState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One move of every ray; rays past their end move on harmlessly.

    Returns:
        Flat number and byte [r] of the present voxel; when the ray leaves it (occupied) or the empty box around it [r];
        the voxel [3, r] that it enters then.
    """
    n = model.grid.resolution
    x, y, z = rays.voxel.unbind(0)
    flat = torch.add(z * n, y).to(torch.int32).mul_(n).add_(x.to(torch.int32)).add_(rays.base).clamp_(0, n**3 - 1)
    cell = model.cells.index_select(0, flat)
    last = torch.addcmul(rays.voxel, rays.sign, cell.clamp_min(0).to(torch.float32))
    exits = (last - rays.behind).mul_(rays.inverse)
    until = torch.maximum(exits.amin(0), rays.t)
    inside = torch.addcmul(rays.entry, rays.direction, until).floor_()
    inside = inside.clamp_(torch.minimum(rays.voxel, last), torch.maximum(rays.voxel, last))
    return flat, cell, until, torch.where(exits <= until, last + rays.sign, inside)


class _Shading:
    """Colours; the direction's share of them is computed once per ray and only for rays that show something."""

    def __init__(self, model: DeployModel, facing: Float[Tensor, "r 3"]) -> None:
        self.decoder, self.facing = model.decoder, facing.to(torch.float32)
        self.term = self.facing.new_empty((len(facing), model.decoder.width))
        self.known = torch.zeros(len(facing), dtype=torch.bool, device=facing.device)

    def colour(self, hidden: Float[Tensor, "k w"], ray: Int64[Tensor, "k"]) -> Float[Tensor, "k 3"]:
        """Colours of hits on the given rays."""
        fresh = ray[~self.known[ray]]
        if len(fresh):
            self.term[fresh] = self.decoder.direction_term(self.facing[fresh])
            self.known[fresh] = True
        return self.decoder.colour(hidden, self.term.index_select(0, ray))


def _blend(
    model: DeployModel, shading: _Shading, rays: RayState, sums: Sums, steps: list[_Hits], limit: float, skip: float
) -> None:
    """Decode the hits of a wave and add them to the sums, in the order in which each ray met them."""
    hits = _Hits(*(torch.cat(parts, dim=-1) for parts in zip(*steps, strict=True)))
    density, hidden = model.decoder.density(_integrate(model, rays, hits))
    density = torch.relu_(density)
    alpha = -torch.expm1(-density)
    faint = alpha < skip
    alpha, density = alpha.masked_fill_(faint, 0.0), density.masked_fill_(faint, 0.0)
    weight, begin = torch.empty_like(alpha), 0
    for step in steps:
        part = slice(begin, begin + len(step.ray))
        before = sums.optical[step.ray]
        counts = before <= limit
        weight[part] = torch.exp(-before).mul_(alpha[part]).mul_(counts)
        sums.optical[step.ray] = before + density[part] * counts
        sums.hits[step.ray] += counts
        begin = part.stop
    seen = (weight > 0).nonzero().squeeze(1)
    ray, weight = hits.ray[seen], weight[seen]
    sums.depth.index_add_(0, ray, weight * (hits.t_in[seen] + hits.t_out[seen]).mul_(0.5))
    sums.rgb.index_add_(0, ray, shading.colour(hidden[seen], ray).mul_(weight[:, None]))


def _integrate(model: DeployModel, rays: RayState, hits: _Hits) -> Float32[Tensor, "k c"]:
    """Mean feature along each hit's chord (spec diver 3.2)."""
    entry, direction = rays.entry.index_select(1, hits.row).sub_(hits.voxel), rays.direction.index_select(1, hits.row)
    u_in, u_out = (torch.addcmul(entry, direction, t).clamp_(0.0, 1.0).t() for t in (hits.t_in, hits.t_out))
    weights = chord_weights(u_in, u_out)
    n = model.grid.resolution
    blocks, row = -(-n // BLOCK), hits.flat // n
    block = (row // n // BLOCK * blocks + row % n // BLOCK) * blocks + hits.flat % n // BLOCK
    corners = model.corners[model.first[block] - 1 - model.cells[hits.flat]]
    if model.table.dtype == torch.float32:
        return integrate(model.table, corners, weights)
    return (model.table[corners].to(torch.float32) * weights[:, :, None]).sum(1)
