"""The batched rasteriser in torch: triangles against the samples in their bounding boxes (spec megascenes 3.4).

Triangles of a depth map are about as large as a pixel, so their bounding boxes hold few samples. The boxes of all
triangles, samples and cameras are unrolled into one list of candidates; those inside their triangle compete for their
pixel with a 64-bit key, depth above, index below, by an atomic minimum. No compiler, any torch device, the same
triangles as the ray caster's down to rounding.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from megascenes_ns.edge_functions import SeenFaces, evaluate, pick

CANDIDATES = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Candidates at a time, at some 250 bytes each; on a CPU few enough to stay in its cache."""
MARGIN = 1e-6
"""Pixels that bounding boxes are widened by, so that rounding them loses no sample that lies on an edge."""
SLACK = 1e-9
"""Weight below zero that still counts as inside: rounding must lose no sample at the centre of a fan of triangles."""
_NOTHING = torch.iinfo(torch.int64).max


def rasterise(
    seen: SeenFaces, count: int, offsets: Float64[Tensor, "spp 2"], height: int, width: int, near: float, far: float
) -> Int64[Tensor, "n spp p"]:
    """Which triangle each sample of n pictures sees, back faces culled.

    Args:
        seen: triangles before ``count`` cameras.
        offsets: of the samples from the pixel's centre.
        near, far: depths between which surfaces are drawn.

    Returns:
        Index into the last axis of ``seen``, -1 where nothing is hit; pixels row by row.
    """
    device, spp, pixels = seen.volume.device, len(offsets), height * width
    low, high, kept = bounds(seen, near)
    kept &= (seen.volume > 0) & (high > -1.0).all(dim=0)
    kept &= (low[0] < width + 1) & (low[1] < height + 1)
    ids = kept.nonzero()[:, 0]
    low, high = pick(low, ids) - 0.5 - MARGIN, pick(high, ids) - 0.5 + MARGIN
    edges, volume = pick(seen.edges.reshape(9, -1), ids), seen.volume.index_select(0, ids)
    picture = ids // (len(seen.volume) // count) * (spp * pixels)
    last = torch.tensor([[width - 1.0], [height - 1.0]], dtype=torch.float64, device=device)
    race = _Race(torch.full((count * spp * pixels,), _NOTHING, dtype=torch.int64, device=device), near, far)
    for sample in range(spp):
        offset = offsets[sample].to(device)[:, None]
        first = torch.ceil(low - offset).clamp(min=0.0)
        size = (torch.minimum(torch.floor(high - offset), last) - first + 1).clamp(min=0.0).long()
        area = size[0] * size[1]
        at_first = evaluate(edges, first[0] + (0.5 + offset[0]), first[1] + (0.5 + offset[1]))
        place = picture + sample * pixels + first[1].long() * width + first[0].long()
        race.enter(at_first, volume, place, ids, area > 0)
        # Most boxes hold one sample; the others' further ones are unrolled.
        more = (area > 1).nonzero()[:, 0]
        further = area[more] - 1
        for part in _pieces(further.cumsum(0), CANDIDATES.get(device.type, 1 << 18)):
            box = torch.repeat_interleave(more[part], further[part])
            ends = further[part].cumsum(0)
            index = torch.arange(1, len(box) + 1, device=device)
            index -= torch.repeat_interleave(ends - further[part], further[part])
            columns = size[0].index_select(0, box)
            down = index // columns
            across = index - down * columns
            values = pick(at_first, box) + across * pick(edges[0::3], box) + down * pick(edges[1::3], box)
            where = place.index_select(0, box) + down * width + across
            race.enter(values, volume.index_select(0, box), where, ids.index_select(0, box))
    visible = torch.where(race.best == _NOTHING, -1, race.best & 0xFFFFFFFF)
    return visible.reshape(count, spp, pixels)


class _Race:
    """Samples of all pictures, and the nearest triangle that has been entered for each.

    Args:
        best: a key for each sample: float bits of the depth above, index of the triangle below.
        near, far: depths that may be entered.
    """

    def __init__(self, best: Int64[Tensor, "nsp"], near: float, far: float) -> None:
        self.best, self.near, self.far = best, near, min(far, torch.finfo(torch.float32).max)

    def enter(
        self,
        values: Float64[Tensor, "3 m"],
        volume: Float64[Tensor, "m"],
        place: Int64[Tensor, "m"],
        face: Int64[Tensor, "m"],
        there: Bool[Tensor, "m"] | None = None,
    ) -> None:
        """Enter triangles at places by their edge functions there; those that do not cover their place drop out."""
        total = values.sum(dim=0)
        depth = volume / total
        inside = (values.amin(dim=0) >= -SLACK * total) & (depth >= self.near) & (depth <= self.far)
        if there is not None:
            inside &= there
        hit = inside.nonzero()[:, 0]
        # Positive floats sort like their bits.
        bits = depth.index_select(0, hit).float().view(torch.int32).long()
        key = (bits << 32) | face.index_select(0, hit)
        self.best.scatter_reduce_(0, place.index_select(0, hit), key, "amin")


def _pieces(ends: Int64[Tensor, "m"], limit: int) -> list[slice]:
    """Slices of consecutive boxes with about ``limit`` candidates each, given the running totals."""
    if len(ends) == 0:
        return []
    total = int(ends[-1])
    marks = torch.arange(limit, total + limit, limit, device=ends.device)
    cuts = torch.searchsorted(ends, marks, right=True).clamp(max=len(ends)).tolist()
    edges = sorted({0, *cuts, len(ends)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def bounds(seen: SeenFaces, near: float) -> tuple[Float64[Tensor, "2 nf"], Float64[Tensor, "2 nf"], Tensor]:
    """Bounding boxes in pixels of the parts of triangles beyond ``near``.

    Returns:
        Lowest and highest (x, y), and whether there is such a part; where there is none the box means nothing.
    """
    depth = seen.corners[:, 2]
    beyond = depth > near
    flat = seen.corners[:, :2] / torch.where(beyond, depth, 1.0)[:, None]
    low, high = flat.amin(dim=0), flat.amax(dim=0)
    some = beyond.any(dim=0)
    crossing = (some & ~beyond.all(dim=0)).nonzero()[:, 0]
    if len(crossing):
        corners, beyond = seen.corners[:, :, crossing], beyond[:, crossing]
        points, there = [*flat[:, :, crossing]], [*beyond]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            cut = beyond[a] != beyond[b]
            span = torch.where(cut, corners[b, 2] - corners[a, 2], 1.0)
            share = (near - corners[a, 2]) / span
            points.append((corners[a, :2] + share * (corners[b, :2] - corners[a, :2])) / near)
            there.append(cut)
        stacked, used = torch.stack(points), torch.stack(there)[:, None]
        low[:, crossing] = torch.where(used, stacked, torch.inf).amin(dim=0)
        high[:, crossing] = torch.where(used, stacked, -torch.inf).amax(dim=0)
    return low, high, some
