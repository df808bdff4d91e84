"""Carving against brute force and against the analytic ball (acceptance A1, A2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hull_scenes import as_flags, ball_mask, ball_views, brute_force, intrinsics, look_at, random_view
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from r4dv_ns.hull import Grid, carve, default_count, frustum_box, hull_box, visual_hull
from r4dv_ns.hull_outliers import mean_distances, without_outliers
from r4dv_ns.silhouette import silhouette

BOX = (np.full(3, -0.45), np.full(3, 0.45))


@pytest.mark.parametrize(
    ("cameras", "most", "reach"), [(8, 1.05, 0.025), (16, 1.03, 0.015), (24, 1.03, 0.012), (48, 1.03, 0.012)]
)
def test_analytic_ball(cameras: int, most: float, reach: float) -> None:
    """A1."""
    masks, K, w2c = ball_views(cameras)
    points = carve(masks, K, w2c, *BOX, 0.01)
    ratio = len(points) * 0.01**3 / (4 / 3 * np.pi * 0.3**3)
    assert 0.98 <= ratio <= most
    assert np.linalg.norm(points, axis=1).max() <= 0.3 + reach
    centres = Grid.covering(*BOX, 0.01).centres(np.argwhere(np.ones((90, 90, 90))))
    deep = np.linalg.norm(centres, axis=1) < 0.3 - 0.01
    assert as_flags(points, *BOX, 0.01).reshape(-1)[deep].all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.75, 0.9, 1.0]), st.integers(1, 4))
def test_same_as_brute_force(seed: int, thresh: float, count: int) -> None:
    views = [random_view(seed + 10 * i) for i in range(6)]
    masks, K, w2c, _ = zip(*views, strict=True)
    valid = [np.ones(mask.shape, bool) if flags is None else flags for mask, _, _, flags in views]
    low, high = np.array([-0.5, -0.6, -0.4]), np.array([0.5, 0.43, 0.55])
    arguments = {"vhull_thresh": thresh, "count_thresh": count, "valid": valid}
    points = carve(masks, np.stack(K), np.stack(w2c), low, high, 0.05, **arguments)
    expected = brute_force(masks, K, w2c, low, high, 0.05, thresh, count, valid)
    # float32 against float64: single voxels on an edge may differ.
    assert int((as_flags(points, low, high, 0.05) != expected).sum()) <= 3
    few = carve(masks, np.stack(K), np.stack(w2c), low, high, 0.05, max_voxels=3000, **arguments)
    np.testing.assert_array_equal(few, points)


def test_order_and_dtype() -> None:
    masks, K, w2c = ball_views(5, size=64, focal=140.0)
    points = carve([torch.from_numpy(mask) for mask in masks], K, w2c, *BOX, 0.03)
    index = np.rint((points - BOX[0]) / 0.03 - 0.5).astype(int)
    assert points.dtype == np.float64
    flat = np.ravel_multi_index(tuple(index.T), (30, 30, 30))
    assert (np.diff(flat) > 0).all()


def test_a_camera_that_looks_away_counts_nothing() -> None:
    """A2: behind a camera, everything projects into its mask; the original counted it."""
    masks, K, w2c = ball_views(6)
    away = look_at(np.array([2.5, 0, 0]), np.array([5.0, 0, 0]))
    ball = carve(masks, K, w2c, *BOX, 0.02, count_thresh=6)
    empty, full = np.zeros((256, 256), np.uint8), np.full((256, 256), 255, np.uint8)
    for mask in (empty, full):
        points = carve([*masks, mask], [*K, K[0]], [*w2c, away], *BOX, 0.02, count_thresh=6)
        np.testing.assert_array_equal(points, ball)
    assert not len(carve([*masks, full], [*K, K[0]], [*w2c, away], *BOX, 0.02, count_thresh=7))


def test_thresholds_are_met_however_they_are_rounded() -> None:
    """0.55 of 20 views is 11, though 0.55 * 20 > 11 in floating point."""
    masks, K, w2c = ball_views(20, size=64, focal=140.0)
    for view in range(9):
        masks[view][:] = 0
    assert len(carve(masks, K, w2c, *BOX, 0.05, vhull_thresh=0.55))
    masks[9][:] = 0
    assert not len(carve(masks, K, w2c, *BOX, 0.05, vhull_thresh=0.55))


@pytest.mark.parametrize("width", [0.004, 0.05])
def test_coarse_box_contains_even_a_wire(width: float) -> None:
    """A limb far thinner than the coarse cells; its box is tight."""
    masks, K, w2c = ball_views(8, size=512, focal=900.0)
    ends = np.array([[0.11, -0.07, -0.3], [0.11, -0.07, 0.2]])
    for i in range(len(masks)):
        masks[i] = wire_mask(K[i], w2c[i], ends, width)
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    box = hull_box(prepared, np.full(3, -1.0), np.full(3, 1.0), 0.95, 8)
    assert box is not None
    points = carve(masks, K, w2c, np.array([-0.2, -0.2, -0.5]), np.array([0.2, 0.2, 0.5]), 0.004, vhull_thresh=0.95)
    assert len(points)
    assert (points.min(0) >= box[0]).all()
    assert (points.max(0) <= box[1]).all()
    assert ((box[1] - box[0]) < points.max(0) - points.min(0) + 0.06).all()


def wire_mask(K: np.ndarray, w2c: np.ndarray, ends: np.ndarray, radius: float) -> np.ndarray:
    """A thick line between two projected points, at least three pixels wide."""
    camera = ends @ w2c[:3, :3].T + w2c[:3, 3]
    (a, b), depth = (camera @ K.T)[:, :2] / camera[:, 2:], camera[:, 2].mean()
    pixels = np.stack(np.meshgrid(np.arange(512) + 0.5, np.arange(512) + 0.5), -1)
    along = np.clip((pixels - a) @ (b - a) / ((b - a) @ (b - a) + 1e-12), 0, 1)
    distance = np.linalg.norm(pixels - a - along[..., None] * (b - a), axis=-1)
    return np.where(distance < max(K[0, 0] * radius / depth, 1.5), 255, 0).astype(np.uint8)


def test_box_of_nothing() -> None:
    masks, K, w2c = ball_views(4, size=32, focal=70.0)
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    assert hull_box(prepared, np.full(3, 0.5), np.full(3, 0.9), 0.95, 4) is None


def test_visual_hull_is_the_carving_on_the_common_lattice() -> None:
    masks, K, w2c = ball_views(12)
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    hull = visual_hull(prepared, np.full(3, -1.503), np.full(3, 1.497), 0.02, outlier_sigma=0)
    assert hull is not None
    assert (hull.thresh, hull.count, hull.dropped) == (0.95, 8, 0)
    expected = carve(masks, K, w2c, np.full(3, -1.52), np.full(3, 1.5), 0.02, count_thresh=8)
    np.testing.assert_allclose(hull.points, expected, atol=1e-12)


def test_rule_is_relaxed_until_something_is_left() -> None:
    """A2: one view contradicts the others, then all of them do."""
    masks, K, w2c = ball_views(8, size=64, focal=140.0)
    masks[3] = ball_mask(K[3], w2c[3], 64, 64, np.array([0.0, 0, 3.0]), 0.3)
    masks[3][:2, :2] = 255
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    hull = visual_hull(prepared, *BOX, 0.03, count_thresh=8)
    assert hull is not None
    assert hull.thresh == pytest.approx(0.85)  # 7 of 8
    assert hull.count == 6
    for i in range(8):
        masks[i][:] = 0
        masks[i][0, 0] = 255
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    assert visual_hull(prepared, *BOX, 0.03) is None


def test_empty_masks_are_left_out() -> None:
    """A2."""
    masks, K, w2c = ball_views(8, size=64, focal=140.0)
    masks[2][:] = 100
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    hull = visual_hull(prepared, *BOX, 0.03)
    others = [each for i, each in enumerate(prepared) if i != 2]
    alone = visual_hull(others, *BOX, 0.03)
    assert hull is not None
    assert alone is not None
    assert hull.thresh == 0.95
    np.testing.assert_array_equal(hull.points, alone.points)
    assert visual_hull([prepared[2]], *BOX, 0.03) is None


def test_default_count() -> None:
    assert [default_count(views) for views in (1, 2, 4, 5, 10, 18, 26, 27, 60)] == [1, 2, 3, 3, 6, 11, 16, 16, 16]


def test_padding_stays_in_the_search_box() -> None:
    masks, K, w2c = ball_views(8, size=64, focal=140.0)
    prepared = [silhouette(mask, K[i], w2c[i]) for i, mask in enumerate(masks)]
    hull = visual_hull(prepared, np.full(3, -0.1), np.full(3, 0.1), 0.02, padding=0.3)
    assert hull is not None
    assert len(hull.points) == 1000


def test_frustum_box() -> None:
    """The box of many points that the camera sees, drawn at random."""
    K, w2c = intrinsics(80.0, 60, 40), look_at(np.array([1.0, 2.0, -0.5]), np.array([0.2, 0.1, 0.3]))
    rng = np.random.default_rng(0)
    u, v, z = rng.uniform(0, 60, 20000), rng.uniform(0, 40, 20000), rng.uniform(0.5, 4, 20000)
    camera = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T * z[:, None]
    world = (camera - w2c[:3, 3]) @ w2c[:3, :3]
    box = frustum_box(K, w2c, 60, 40, 0.5, 4.0)
    assert (world >= box[0]).all()
    assert (world <= box[1]).all()
    assert (np.abs(np.stack([world.min(0), world.max(0)]) - box) < 0.15).all()


@pytest.mark.parametrize(
    ("low", "high", "voxel"), [((0, 0, 0), (1, 0, 1), 0.1), ((0, 0, 0), (1, 1, 1), 0.0), ((0, 0, 0), (1, 1, 1), 1e-9)]
)
def test_grids_that_cannot_be(low: tuple, high: tuple, voxel: float) -> None:
    with pytest.raises(ValueError, match="voxels of"):
        Grid.covering(np.array(low), np.array(high), voxel)


def test_no_masks() -> None:
    with pytest.raises(ValueError, match="at least one mask"):
        carve([], np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), *BOX, 0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_mean_distances_are_those_of_a_tree(seed: int, neighbours: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.random((9, 8, 7)) < rng.choice([0.03, 0.3, 0.8])
    voxels = np.argwhere(grid) + rng.integers(-50, 50, 3)
    found = mean_distances(voxels, neighbours)
    if len(voxels) <= neighbours:
        assert np.isinf(found).all()
        return
    expected = cKDTree(voxels).query(voxels, k=neighbours + 1)[0][:, 1:].mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_outliers_go_and_fingers_stay() -> None:
    block = np.argwhere(np.ones((12, 12, 12)))
    finger = np.stack([np.arange(12, 24), np.full(12, 5), np.full(12, 5)], 1)
    stray = np.array([[40, 5, 5], [41, 5, 5], [5, 60, 5]])
    voxels = np.concatenate([block, finger, stray])
    np.testing.assert_array_equal(without_outliers(voxels, 5, 5.0), voxels[: len(block) + 12])
    np.testing.assert_array_equal(without_outliers(voxels, 5, 0.0), voxels)
