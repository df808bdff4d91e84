"""Visual hull: the voxels that the masks of enough cameras agree on (spec r4dv 3.1).

A voxel is kept when at least ``count_thresh`` views see its centre and it lies in the mask of at least
``vhull_thresh`` of those. Testing every voxel against every view is wasteful: nearly all of a box is either outside in
some view or deep inside. Blocks of 16^3 voxels, then of 4^3 and 2^3, are tested first; a block whose projections leave
no doubt is dropped or kept whole, only the rest is cut up. The result is that of testing all voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from r4dv_ns.hull_outliers import without_outliers
from r4dv_ns.silhouette import Placed, Silhouette, silhouette

_EPS = 1e-6
"""0.9 x 10 views must mean 9, however the product is rounded."""


@dataclass(frozen=True)
class Grid:
    """Voxel (i, j, k) has its centre at ``low + (i + 1/2, j + 1/2, k + 1/2) voxel``."""

    low: Float[np.ndarray, "3"]
    voxel: float
    dims: tuple[int, int, int]

    @classmethod
    def covering(cls, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"], voxel: float) -> Grid:
        """The grid that begins at ``low`` and reaches ``high`` (world units).

        Raises:
            ValueError: an empty box, a voxel that is not positive, or more than 2^31 voxels along an axis.
        """
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if not (np.isfinite([low, high]).all() and (low < high).all() and voxel > 0):
            raise ValueError(f"no grid from {low} to {high} with voxels of {voxel}")
        dims = np.maximum(np.ceil((high - low) / voxel - _EPS), 1)
        if not (dims < 2**20).all():
            raise ValueError(f"voxels of {voxel} are too small for a box from {low} to {high}")
        return cls(low, float(voxel), (int(dims[0]), int(dims[1]), int(dims[2])))

    @classmethod
    def aligned(cls, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"], voxel: float) -> Grid:
        """As `covering`, on the lattice that has a voxel corner at the world's origin: frames share their voxels."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        return cls.covering(np.floor(low / voxel + _EPS) * voxel, np.ceil(high / voxel - _EPS) * voxel, voxel)

    def centres(self, index: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """World positions, float64."""
        return self.low + (index + 0.5) * self.voxel


@dataclass(frozen=True)
class Rule:
    """When a voxel is kept."""

    thresh: float
    count: int

    def allowed_misses(self, seen: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Views among ``seen`` whose mask a kept voxel may lie outside of; never falls as ``seen`` rises."""
        return ((1.0 - self.thresh) * seen.double() + _EPS).floor().short()


@dataclass
class _Blocks:
    """Blocks of one size on their way through the views."""

    index: Int[Tensor, "b 3"]
    """First voxel."""
    seen: Int[Tensor, "b"]
    missed: Int[Tensor, "b"]
    pending: Int[Tensor, "b"]
    """Views not decided yet."""
    hopeful: Int[Tensor, "b"]
    """Views that hit, or may."""
    state: UInt8[Tensor, "b views"]
    """0: decided. 1: open. 2: open, but nothing of the block is hit: what is seen of it is missed."""
    level: int = 0

    def __getitem__(self, rows: Tensor) -> _Blocks:
        return _Blocks(
            self.index[rows],
            self.seen[rows],
            self.missed[rows],
            self.pending[rows],
            self.hopeful[rows],
            self.state[rows],
            self.level,
        )

    def __len__(self) -> int:
        return len(self.index)


def _test(blocks: _Blocks, views: Sequence[Placed], rule: Rule, side: int, half: float) -> _Blocks:
    """Decide views where possible; return the blocks that may hold kept voxels. ``half`` = 0 tests the centre alone."""
    most = int(rule.allowed_misses(torch.tensor(len(views))))
    fewest = math.ceil(rule.thresh * rule.count - _EPS)

    def alive() -> Int64[Tensor, "b"]:
        possible = (blocks.missed <= most) & (blocks.hopeful >= fewest)
        return (possible & (blocks.seen + blocks.pending >= rule.count)).nonzero()[:, 0]

    for number, view in enumerate(views):
        state = blocks.state[:, number]
        rows = state.nonzero()[:, 0]
        if not len(rows):
            continue
        centre = blocks.index[rows].float() + 0.5 * side
        if half == 0.0:
            seen, hit = view.points(centre)
            unseen, never = ~seen, ~hit
        else:
            unseen, seen, hit, never = view.blocks(centre, half)
        missed = seen & never
        decided = unseen | missed | hit
        before = state[rows]
        blocks.seen[rows] += (missed | hit).short()
        blocks.missed[rows] += missed.short()
        blocks.pending[rows] -= decided.short()
        blocks.hopeful[rows] -= ((before == 1) & never).short()
        state[rows] = torch.where(decided, 0, torch.where(never, 2, before)).to(torch.uint8)
        rows = alive()
        if len(rows) < 0.9 * len(blocks):
            blocks = blocks[rows]
    return blocks[alive()]


def _search(
    views: Sequence[Placed], grid: Grid, rule: Rule, sides: tuple[int, ...], solid: bool, max_voxels: int
) -> list[tuple[Int[Tensor, "b 3"], int]]:
    """Blocks (first voxel, side) that hold the result, disjoint.

    Args:
        sides: sides of the blocks in voxels, each a divisor of the one before.
        solid: False: the last side is 1, and the blocks' voxels are exactly those kept. True: blocks stand for the
            space they fill, not for voxel centres, and all are given that may contain any kept point at all.
    """
    device = views[0].matrix.device
    found: list[tuple[Tensor, int]] = []
    dims = torch.tensor(grid.dims, device=device, dtype=torch.int32)
    root = torch.cartesian_prod(*(torch.arange(0, n, sides[0], device=device, dtype=torch.int32) for n in grid.dims))
    none = torch.zeros(len(root), dtype=torch.int16, device=device)
    state = torch.ones(len(root), len(views), dtype=torch.uint8, device=device)
    stack = [_Blocks(root, none, none.clone(), none + len(views), none + len(views), state)]
    while stack:
        blocks = stack.pop()
        side = sides[blocks.level]
        blocks = _test(blocks, views, rule, side, 0.5 * side if solid else 0.5 * (side - 1))
        final = blocks.level + 1 == len(sides)
        done = blocks.pending == 0
        keep = done & (blocks.seen >= rule.count) & (blocks.missed <= rule.allowed_misses(blocks.seen))
        if final and solid:
            keep |= ~done
        found.append((blocks.index[keep.nonzero()[:, 0]], side))
        if final:
            continue
        blocks = blocks[(~done).nonzero()[:, 0]]
        smaller = sides[blocks.level + 1]
        steps = torch.arange(0, side, smaller, device=device, dtype=torch.int32)
        offsets = torch.cartesian_prod(steps, steps, steps)
        # A chunk's descendants down to single voxels fit into the limit, whichever of them survive.
        chunk = max(1, max_voxels // side**3) if not solid else max(1, max_voxels // len(offsets))
        for start in range(0, len(blocks), chunk):
            part = blocks[torch.arange(start, min(start + chunk, len(blocks)), device=device)]
            index = (part.index[:, None] + offsets).reshape(-1, 3)
            parent = torch.arange(len(part), device=device).repeat_interleave(len(offsets))
            inside = (index < dims).all(1).nonzero()[:, 0]
            children = part[parent[inside]]
            children.index, children.level = index[inside], blocks.level + 1
            stack.append(children)
    return found


def _voxels(found: list[tuple[Int[Tensor, "b 3"], int]], dims: tuple[int, int, int]) -> Int64[np.ndarray, "n 3"]:
    """All voxels of disjoint blocks, in the grid's order (x slowest)."""
    parts = []
    for index, side in found:
        steps = torch.arange(side, device=index.device, dtype=torch.int32)
        parts.append(
            (index[:, None] + torch.cartesian_prod(steps, steps, steps)[None].reshape(1, -1, 3)).reshape(-1, 3)
        )
    voxels = torch.cat(parts).long()
    limit = torch.tensor(dims, device=voxels.device)
    voxels = voxels[(voxels < limit).all(1)]
    flat = ((voxels[:, 0] * dims[1] + voxels[:, 1]) * dims[2] + voxels[:, 2]).sort().values.cpu().numpy()
    return np.stack(np.unravel_index(flat, dims), axis=-1).astype(np.int64)


def _spread(silhouettes: Sequence[Silhouette]) -> list[Silhouette]:
    """Neighbours in a ring tell the same: take views in steps of the golden section, so that voxels fall early."""
    return [silhouettes[i] for i in np.argsort((np.arange(len(silhouettes)) * 0.6180339887) % 1.0)]


def carve_voxels(
    silhouettes: Sequence[Silhouette],
    grid: Grid,
    vhull_thresh: float,
    count_thresh: int,
    near: float = 1e-4,
    max_voxels: int = 1 << 21,
) -> Int64[np.ndarray, "p 3"]:
    """The kept voxels of a grid, as indices in order (x slowest).

    Raises:
        ValueError: no views.
    """
    if not silhouettes:
        raise ValueError("a hull needs at least one mask")
    views = [each.placed(grid.low, grid.voxel, near) for each in _spread(silhouettes)]
    rule = Rule(vhull_thresh, max(1, count_thresh))
    return _voxels(_search(views, grid, rule, (16, 4, 2, 1), False, max_voxels), grid.dims)


def carve(
    masks: Sequence,
    K: Float[np.ndarray, "v 3 3"],
    w2c: Float[np.ndarray, "v 4 4"],
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    voxel: float,
    *,
    vhull_thresh: float = 0.95,
    count_thresh: int = 16,
    valid: Sequence | None = None,
    near: float = 1e-4,
    max_voxels: int = 1 << 21,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "p 3"]:
    """Centres of the kept voxels ``low + (i + 1/2) voxel`` of the box (spec r4dv 3.1), world, float64, x slowest.

    Args:
        masks: V arrays or tensors uint8 [h, w], of any sizes; foreground above one half.
        K: pixels. w2c: OpenCV world to camera.
        vhull_thresh: share of the views that see a voxel whose mask it must lie in.
        count_thresh: fewest views that must see it, at most V counts.
        valid: V bool [h, w] or None: pixels with data (all); a voxel on other pixels is not seen.
        near: smallest depth at which a camera sees.
        max_voxels: held at once.
        device: where to compute.

    Raises:
        ValueError: an empty box, no masks, or shapes that do not fit.
    """
    prepared = _prepared(masks, K, w2c, valid, device)
    grid = Grid.covering(low, high, voxel)
    count = min(count_thresh, len(prepared))
    return grid.centres(carve_voxels(prepared, grid, vhull_thresh, count, near, max_voxels))


def _prepared(masks: Sequence, K, w2c, valid: Sequence | None, device: torch.device | str) -> list[Silhouette]:
    """Silhouettes of all masks."""
    return [silhouette(mask, K[i], w2c[i], None if valid is None else valid[i], device) for i, mask in enumerate(masks)]


def hull_box(
    silhouettes: Sequence[Silhouette],
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    vhull_thresh: float,
    count_thresh: int,
    *,
    near: float = 1e-4,
    cells: int = 64,
    passes: int = 3,
) -> Float[np.ndarray, "2 3"] | None:
    """A box around everything the rule can keep inside the search box; None where it can keep nothing.

    Whole cells are tested, so that no limb is thin enough to slip between samples. Each pass divides the box that is
    left into ``cells`` along its longest side.
    """
    box = np.stack([np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)])
    rule = Rule(vhull_thresh, max(1, count_thresh))
    silhouettes = _spread(silhouettes)
    for _ in range(passes):
        grid = Grid.covering(box[0], box[1], float((box[1] - box[0]).max()) / cells)
        views = [each.placed(grid.low, grid.voxel, near) for each in silhouettes]
        found = [each for each in _search(views, grid, rule, (16, 4, 1), True, 1 << 21) if len(each[0])]
        if not found:
            return None
        first = torch.stack([index.amin(0) for index, _ in found]).amin(0).cpu().numpy()
        last = torch.stack([index.amax(0) + side for index, side in found]).amax(0).cpu().numpy()
        # Only the search box itself may cut: a cell that reaches beyond it does not widen it.
        box = np.stack([grid.low + first * grid.voxel, np.minimum(grid.low + last * grid.voxel, box[1])])
    return box


@dataclass(frozen=True)
class Hull:
    """A frame's hull."""

    points: Float[np.ndarray, "p 3"]
    """Centres of its voxels, world."""
    thresh: float
    """vhull_thresh that gave it; lower than asked for where that one left nothing."""
    count: int
    """count_thresh likewise."""
    dropped: int = 0
    """Voxels removed as outliers."""


def default_count(views: int) -> int:
    """Views that must see a voxel unless told otherwise: 60 % of them, 16 at most."""
    return max(1, min(16, math.ceil(0.6 * views - _EPS)))


def visual_hull(
    silhouettes: Sequence[Silhouette],
    low: Float[np.ndarray, "3"],
    high: Float[np.ndarray, "3"],
    voxel: float,
    *,
    vhull_thresh: float = 0.95,
    count_thresh: int | None = None,
    lowest_thresh: float = 0.7,
    padding: float | None = None,
    coarse_thresh_factor: float = 1.0,
    coarse_count_factor: float = 1.0,
    near: float = 1e-4,
    outlier_neighbours: int = 5,
    outlier_sigma: float = 5.0,
    max_voxels: int = 1 << 21,
) -> Hull | None:
    """Coarse search, fine carving on the lattice through the world's origin, outliers removed; None if nothing is left.

    Views whose mask is empty are left out: a lost mask must not delete the subject. Where nothing is left the rule is
    relaxed step by step (see `HullOptions`, which explains every argument).
    """
    silhouettes = [each for each in silhouettes if not each.is_empty]
    if not silhouettes:
        return None
    count = default_count(len(silhouettes)) if count_thresh is None else min(count_thresh, len(silhouettes))
    thresh, count = vhull_thresh, max(1, count)
    padding = 4 * voxel if padding is None else padding
    while True:
        coarse = (thresh / max(1.0, coarse_thresh_factor), math.ceil(count / max(1.0, coarse_count_factor)))
        # One pass: carving drops what surrounds the subject as whole blocks, a tighter box would save it nothing.
        box = hull_box(silhouettes, low, high, *coarse, near=near, passes=1)
        if box is not None:
            # Padding must not leave the search box, which may exclude something on purpose.
            box = np.stack([np.maximum(box[0] - padding, low), np.minimum(box[1] + padding, high)])
            grid = Grid.aligned(box[0], box[1], voxel)
            voxels = carve_voxels(silhouettes, grid, thresh, count, near, max_voxels)
            kept = without_outliers(voxels, outlier_neighbours, outlier_sigma)
            if len(kept):
                return Hull(grid.centres(kept), thresh, count, len(voxels) - len(kept))
        if thresh <= lowest_thresh + _EPS:
            return None
        thresh, count = max(lowest_thresh, thresh - 0.05), max(1, count - 1)


def frustum_box(
    K: Float[np.ndarray, "3 3"], w2c: Float[np.ndarray, "4 4"], width: int, height: int, near: float, far: float
) -> Float[np.ndarray, "2 3"]:
    """The axis-aligned box (world) of what a camera sees between two depths."""
    u, v, z = np.meshgrid([0.0, width], [0.0, height], [near, far], indexing="ij")
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    camera = (pixels @ np.linalg.inv(K).T) * z.reshape(-1, 1)
    world = (camera - w2c[:3, 3]) @ w2c[:3, :3]
    return np.stack([world.min(0), world.max(0)])
