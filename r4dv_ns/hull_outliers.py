"""Statistical outlier removal for points of a voxel grid (spec r4dv 3.1): the exact result without a search tree.

A voxel's nearest neighbours are nearly always among the 26 around it, at distances 1, sqrt(2) and sqrt(3): counting
each kind by sums over the grid gives the mean distance. Only voxels with too few occupied neighbours need a tree.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from scipy.spatial import KDTree

_SMALLEST_LIMIT = 2.0
"""Voxels. A smooth hull has hardly any spread, and five deviations of it would cut every finger that is one voxel thick
(mean distance of five neighbours in a line: 1.8)."""
_MOST_CELLS = 1 << 29


def _pair(grid: np.ndarray, axis: int) -> np.ndarray:
    """Per cell, the sum of its two neighbours along an axis; the grid's outer layers are empty."""
    return np.roll(grid, 1, axis) + np.roll(grid, -1, axis)


def mean_distances(voxels: Int64[np.ndarray, "n 3"], neighbours: int) -> Float[np.ndarray, "n"]:
    """Mean distance, in voxels, from each voxel to its nearest others; infinite where there are not enough of them."""
    if len(voxels) <= neighbours:
        return np.full(len(voxels), np.inf)
    low = voxels.min(0) - 1
    dims = voxels.max(0) - low + 2
    if neighbours > 26 or int(np.prod(dims.astype(object))) > _MOST_CELLS:
        return _by_tree(voxels, voxels, neighbours)
    grid = np.zeros(dims, dtype=np.uint8)
    flat = ((voxels[:, 0] - low[0]) * dims[1] + voxels[:, 1] - low[1]) * dims[2] + voxels[:, 2] - low[2]
    grid.reshape(-1)[flat] = 1
    result = np.zeros(len(voxels))
    left = np.full(len(voxels), neighbours, dtype=np.uint8)
    rows = np.arange(len(voxels))
    for counts, distance in zip(_neighbours(grid), (1.0, np.sqrt(2.0), np.sqrt(3.0)), strict=True):
        taken = np.minimum(left[rows], counts.reshape(-1)[flat[rows]])
        result[rows] += taken * distance
        left[rows] -= taken
        rows = rows[left[rows] > 0]  # nearly all voxels have enough neighbours across their faces
    result /= neighbours
    if len(rows):
        result[rows] = _by_tree(voxels, voxels[rows], neighbours)
    return result


def _neighbours(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Occupied neighbours across faces (6), edges (12) and corners (8) of every cell."""
    x, y, z = (_pair(grid, axis) for axis in range(3))
    xy = _pair(x, 1)
    return x + y + z, xy + _pair(x, 2) + _pair(y, 2), _pair(xy, 2)


def _by_tree(
    voxels: Int64[np.ndarray, "n 3"], wanted: Int64[np.ndarray, "m 3"], neighbours: int
) -> Float[np.ndarray, "m"]:
    """The plain definition."""
    # Built for a handful of queries, and points of a grid are well spread anyway.
    tree = KDTree(voxels.astype(np.float64), balanced_tree=False, compact_nodes=False)
    distance, _ = tree.query(wanted.astype(np.float64), k=neighbours + 1)
    return np.asarray(distance)[:, 1:].mean(axis=1)


def without_outliers(voxels: Int64[np.ndarray, "n 3"], neighbours: int, sigma: float) -> Int64[np.ndarray, "m 3"]:
    """Drop voxels whose mean distance to their ``neighbours`` nearest exceeds mean + sigma deviations over all voxels.

    Sigma 0 keeps all; so do fewer voxels than neighbours. A limit below two voxels counts as two voxels.
    """
    if sigma == 0 or len(voxels) <= neighbours:
        return voxels
    distance = mean_distances(voxels, neighbours)
    limit = max(_SMALLEST_LIMIT, float(distance.mean() + sigma * distance.std()))
    return voxels[distance <= limit]
