"""Points near the surface (acceptance A4)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from r4dv_ns.surface import solid, surface_depths, surface_points, voxel_grid


def ball(radius: float = 0.3, voxel: float = 0.01) -> np.ndarray:
    axis = (np.arange(-40, 40) + 0.5) * voxel
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return points[np.linalg.norm(points, axis=1) < radius] + [1.0, -2.0, 3.0]


def test_exactly_as_many_near_the_surface() -> None:
    """A4: the depth of a point is known from its distance to the ball's centre."""
    points = surface_points(ball(), 0.01, 20000, 0.05, seed=3)
    assert points.shape == (20000, 3)
    depth = 0.3 - np.linalg.norm(points - [1.0, -2.0, 3.0], axis=1)
    assert (depth < 0.05 + 0.01).mean() > 0.99
    assert len(np.unique(points.round(6), axis=0)) == 20000  # without replacement
    shallow, deep = ((depth > a) & (depth < b) for a, b in ((0.0, 0.02), (0.03, 0.05)))
    volume = [(0.3 - a) ** 3 - (0.3 - b) ** 3 for a, b in ((0.0, 0.02), (0.03, 0.05))]
    assert shallow.sum() / volume[0] > 1.5 * deep.sum() / volume[1]


def test_same_seed_same_points() -> None:
    hull = ball(0.1)
    first = surface_points(hull, 0.01, 500, 0.05, seed=1)
    np.testing.assert_array_equal(first, surface_points(hull, 0.01, 500, 0.05, seed=1))
    assert not np.array_equal(first, surface_points(hull, 0.01, 500, 0.05, seed=2))


@pytest.mark.parametrize("count", [1, 9, 10, 11, 5000])
def test_ten_voxels(count: int) -> None:
    """A4: ends, with any number of points; those beyond ten lie inside the voxels."""
    hull = np.array([[i, 0, 0] for i in range(10)]) * 0.02
    points = surface_points(hull, 0.02, count, 0.001, seed=0)
    assert points.shape == (count, 3)
    assert (np.abs(points[:, 1:]) <= 0.01 + 1e-12).all()
    assert points[:, 0].min() >= -0.01 - 1e-12
    assert points[:, 0].max() <= 0.19 + 1e-12


@pytest.mark.parametrize("fill", [0.3, 0.8, 0.97, 1.0])
@pytest.mark.parametrize("reach", [0.25, 0.8, 1.3, 50.0])
def test_depth_is_that_of_the_distance_transform(fill: float, reach: float) -> None:
    grid = np.pad(np.random.default_rng(0).random((12, 17, 15)) < fill, 1)
    cells, depth = surface_depths(grid, 0.5, reach)
    expected = (np.asarray(distance_transform_edt(grid)) - 0.5) * 0.5
    np.testing.assert_array_equal(cells, np.argwhere(grid & (expected <= reach)))
    np.testing.assert_allclose(depth, expected[tuple(cells.T)], rtol=1e-12)


def test_cavities_are_filled_and_crumbs_removed() -> None:
    grid = np.zeros((30, 30, 30), bool)
    grid[2:22, 2:22, 2:22] = True
    grid[10:13, 10:13, 10:13] = False  # a cavity
    grid[2:4, 10, 10] = False  # a dent, open to the outside
    grid[25:28, 25:28, 25:28] = True  # 27 of 8000: a crumb
    grid[24:29, 2:9, 2:9] = True  # 245 of 8000: a piece
    result = solid(grid)
    assert result[11, 11, 11]
    assert not result[3, 10, 10]
    assert not result[26, 26, 26]
    assert result[26, 5, 5]


def test_largest_piece_always_stays() -> None:
    """A hundred pieces of one voxel each: none reaches two percent alone."""
    hull = np.array([[3 * i, 3 * j, 0] for i in range(10) for j in range(10)], float)
    assert surface_points(hull, 1.0, 100, 1.0, 0).shape == (100, 3)


def test_points_return_to_their_places() -> None:
    hull = ball(0.05)
    grid, origin = voxel_grid(hull, 0.01)
    assert grid[1:-1, 1:-1, 1:-1].sum() == grid.sum() == len(hull)
    again = origin + np.argwhere(grid) * 0.01
    np.testing.assert_allclose(np.sort(again, axis=0), np.sort(hull, axis=0), atol=1e-9)


@pytest.mark.parametrize(
    ("hull", "voxel", "count"),
    [
        (np.zeros((0, 3)), 0.1, 5),
        (np.full((3, 3), np.nan), 0.1, 5),
        (np.array([[0.0, 0, 0], [1, 1, 1]]), 1e-7, 5),
        (np.array([[0.0, 0, 0], [1, 1, 1]]), 0.0, 5),
        (np.zeros((2, 3)), 0.1, 0),
    ],
)
def test_what_cannot_be_sampled(hull: np.ndarray, voxel: float, count: int) -> None:
    with pytest.raises(ValueError, match=r"surface|small|choose"):
        surface_points(hull, voxel, count, 0.05, 0)
