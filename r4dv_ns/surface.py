"""From all voxels of a hull to exactly N points near its surface, without a mesh and without loops (spec r4dv 3.3)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy import ndimage

_SMALLEST_PIECE = 0.02
"""Pieces below this share of the volume are noise."""
_FADE = 6.0
"""A voxel at the radius is exp(-6) times as likely to be chosen as one at the surface: most points lie in the outermost
fifth, as with the original, which takes those nearest to its mesh; some lie deeper, where the hull is too fat."""
_MOST_CELLS = 1 << 30


def voxel_grid(
    points: Float[np.ndarray, "p 3"], voxel: float
) -> tuple[Bool[np.ndarray, "x y z"], Float[np.ndarray, "3"]]:
    """The occupancy grid of voxel centres, with one empty layer around, and the centre of its first cell.

    Raises:
        ValueError: no points, points that are not finite, or a voxel so small that the grid passes 2^30 cells.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise ValueError("a surface needs finite points [p, 3], at least one")
    low = points.min(0) - voxel
    dims = np.rint((points.max(0) - low) / voxel) + 2 if voxel > 0 else np.full(3, np.inf)
    if not float(np.prod(dims)) <= _MOST_CELLS:
        raise ValueError(f"voxels of {voxel} are too small for points that span {points.max(0) - points.min(0)}")
    grid = np.zeros(dims.astype(np.int64), dtype=bool)
    grid[tuple(np.rint((points - low) / voxel).astype(np.int64).T)] = True
    return grid, low


def solid(grid: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Cavities filled, pieces below 2 % of the volume removed (the largest always stays).

    Args:
        grid: its outermost layer is empty.
    """
    # Cells of the outside's component (six neighbours) are empty, whatever is enclosed is full.
    outside, _ = ndimage.label(~grid)  # pyright: ignore
    filled = outside != outside[0, 0, 0]
    pieces, count = ndimage.label(filled, structure=np.ones((3, 3, 3)))  # pyright: ignore
    if count <= 1:
        return filled
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return ((sizes >= _SMALLEST_PIECE * sizes.sum()) | (sizes == sizes.max()) & (sizes > 0))[pieces]


def surface_depths(
    grid: Bool[np.ndarray, "x y z"], voxel: float, reach: float
) -> tuple[Int64[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Full cells at most ``reach`` deep, and how deep: from the cell's centre to the nearest empty centre, less v/2.

    The exact Euclidean distance transform, axis by axis, but over full cells only (a twentieth of a person's box) and
    no farther than needed: each cell looks along its column for the best sum of squares.

    Args:
        grid: its outermost layer is empty.
        reach: world units.
    """
    flat = np.flatnonzero(grid)
    farthest = int(np.ceil(reach / voxel + 0.5)) + 1
    places = np.full(grid.size, len(flat), dtype=np.int32)
    places[flat] = np.arange(len(flat), dtype=np.int32)
    # Along z the nearest empty cell is an end of the run of full ones; the empty outer layer parts the columns' runs.
    ends = np.flatnonzero(np.diff(flat, append=-1) != 1)
    lengths = np.diff(ends, prepend=-1)
    place = np.arange(len(flat)) - np.repeat(ends - lengths + 1, lengths)
    across = np.minimum(np.minimum(place + 1, np.repeat(lengths, lengths) - place), farthest)
    # The last entry stands for every empty cell.
    squares = np.append(across * across, 0).astype(np.int32)
    for stride in (grid.shape[2], grid.shape[1] * grid.shape[2]):
        best = squares.copy()
        for direction in (stride, -stride):
            following = np.append(places[flat + direction], np.int32(len(flat)))
            rows, at = np.arange(len(flat), dtype=np.int32), following[:-1]
            for step in range(1, farthest + 1):
                nearer = np.minimum(best[rows], squares[at] + step * step)
                best[rows] = nearer
                # Beyond an empty cell, or farther than the best known, nothing nearer can come.
                going = np.flatnonzero((at < len(flat)) & (nearer > (step + 1) ** 2))
                rows, at = rows[going], following[at[going]]
        squares = best
    depth = (np.sqrt(squares[:-1]) - 0.5) * voxel
    shell = depth <= reach
    return np.stack(np.unravel_index(flat[shell], grid.shape), axis=1), depth[shell]


def surface_points(
    hull: Float[np.ndarray, "p 3"], voxel: float, count: int, radius: float, seed: int
) -> Float[np.ndarray, "count 3"]:
    """Exactly ``count`` points of the hull, at most ``radius`` below its surface, more of them the nearer they are.

    Voxel centres are drawn without replacement, with weights exp(-6 depth / radius). Where there are too few, all are
    taken and further points are spread evenly inside voxels drawn with the same weights.

    Args:
        hull: voxel centres, world.
        voxel: side, world units.
        radius: world units; the outermost layer of voxels counts, however small it is.
        seed: equal seeds give equal points.

    Returns:
        World positions, float64; those at voxel centres come first.

    Raises:
        ValueError: no points, points that are not finite, a voxel too small for them, or a count below one.
    """
    if count < 1:
        raise ValueError(f"cannot choose {count} points")
    grid, origin = voxel_grid(hull, voxel)
    radius = max(radius, 0.5 * voxel)
    cells, depth = surface_depths(solid(grid), voxel, radius)
    weights = np.exp(-_FADE * depth / radius)
    rng = np.random.default_rng(seed)
    if len(cells) > count:
        # The largest u^(1/w) are a weighted sample without replacement (Efraimidis and Spirakis 2006).
        keys = np.log(rng.random(len(cells))) / weights
        chosen = np.sort(np.argpartition(-keys, count - 1)[:count])
        return origin + cells[chosen] * voxel
    again = rng.choice(len(cells), size=count - len(cells), p=weights / weights.sum())
    jitter = rng.uniform(-0.5, 0.5, size=(len(again), 3))
    return origin + np.concatenate([cells, cells[again] + jitter]) * voxel
