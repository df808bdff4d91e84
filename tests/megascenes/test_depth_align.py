"""RANSAC of disparity against points: exact data, outliers, an exhaustive twin, and what is rejected."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascenes_ns.depth_align import align_disparity, aligned_depth, sample_bilinear


def scene(count: int, share: float, seed: int, slope: float = 0.7, offset: float = 0.05, noise: float = 0.0):
    """Disparities and depths of which a share obeys 1/z = slope * disparity + offset."""
    random = np.random.default_rng(seed)
    disparity = random.uniform(0.1, 5.0, count)
    depth = 1.0 / (slope * disparity + offset)
    depth *= 1.0 + noise * random.standard_normal(count)
    wrong = random.permutation(count)[: round(count * (1 - share))]
    depth[wrong] = random.uniform(0.05, 30.0, len(wrong))
    return disparity, depth, wrong


def test_exact_points_give_the_line_exactly():
    disparity, depth, _ = scene(200, 1.0, 0)
    found = align_disparity(disparity, depth)
    assert (found.inliers, found.points, found.rejected) == (200, 200, "")
    assert found.slope == pytest.approx(0.7, rel=1e-12)
    assert found.offset == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_outliers_change_nothing(share):
    disparity, depth, wrong = scene(1500, share, 3, noise=0.01)
    found = align_disparity(disparity, depth)
    good = np.setdiff1d(np.arange(1500), wrong)
    assert found.inliers >= len(good)
    error = np.abs(found.slope * disparity[good] + found.offset - 1 / depth[good]) * depth[good]
    assert np.median(error) < 0.02


def slow_align(disparity, depth, tolerance=0.1):
    """All pairs, one by one; then numpy's least squares on the inliers."""
    y, best, members = 1.0 / depth, -1, None
    for i, j in itertools.combinations(range(len(y)), 2):
        if disparity[i] == disparity[j]:
            continue
        slope = (y[j] - y[i]) / (disparity[j] - disparity[i])
        offset = y[i] - slope * disparity[i]
        inside = [abs(slope * x + offset - t) < tolerance * t for x, t in zip(disparity, y, strict=True)]
        if sum(inside) > best:
            best, members = sum(inside), np.array(inside)
    design = np.stack([disparity[members], np.ones(best)], axis=1)
    return *np.linalg.lstsq(design, y[members], rcond=None)[0], best


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0), st.floats(0, 0.03))
def test_small_sets_equal_the_exhaustive_twin(seed, share, noise):
    disparity, depth, _ = scene(40, share, seed, noise=noise)
    found = align_disparity(disparity, depth, least=2)
    slope, offset, inliers = slow_align(disparity, depth)
    assert found.inliers == inliers
    assert found.slope == pytest.approx(slope, rel=1e-7)
    assert found.offset == pytest.approx(offset, rel=1e-7, abs=1e-9)


def test_the_same_points_give_the_same_answer_and_another_seed_nearly():
    disparity, depth, _ = scene(3000, 0.6, 5, noise=0.02)
    first, again = align_disparity(disparity, depth), align_disparity(disparity, depth)
    assert first == again
    other = align_disparity(disparity, depth, seed=1)
    assert other.slope == pytest.approx(first.slope, rel=0.02)


def test_fewer_than_thirty_inliers_are_rejected():
    disparity, depth, _ = scene(29, 1.0, 0)
    assert "29 points" in align_disparity(disparity, depth).rejected
    disparity, depth, _ = scene(30, 1.0, 0)
    assert align_disparity(disparity, depth).rejected == ""
    disparity, depth, _ = scene(100, 0.2, 1)
    found = align_disparity(disparity, depth)
    assert found.inliers < 30
    assert "points agree" in found.rejected


def test_disparity_that_falls_with_nearness_is_rejected():
    disparity, depth, _ = scene(200, 1.0, 0, slope=-0.15, offset=1.0)
    found = align_disparity(disparity, depth)
    assert "slope" in found.rejected
    with pytest.raises(ValueError, match="rejected"):
        aligned_depth(disparity[None], found)


def test_points_that_say_nothing_are_left_out():
    disparity, depth, _ = scene(60, 1.0, 0)
    disparity[:3], depth[3:6] = [np.nan, np.inf, -np.inf], [0.0, -1.0, np.nan]
    found = align_disparity(disparity, depth)
    assert (found.points, found.inliers, found.rejected) == (54, 54, "")
    assert "same at all points" in align_disparity(np.ones(50), np.linspace(1, 2, 50)).rejected
    assert align_disparity(np.zeros(0), np.zeros(0)).rejected
    with pytest.raises(ValueError, match="one length"):
        align_disparity(np.zeros(3), np.zeros(4))


def test_aligned_depth_is_clipped():
    disparity, depth, _ = scene(100, 1.0, 0, slope=1.0, offset=0.0)
    found = align_disparity(disparity, depth)
    values = aligned_depth(np.array([[-5.0, 0.0, 0.5, 1e9]]), found)
    np.testing.assert_allclose(values, [[1e3, 1e3, 2.0, 1e-3]], rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7))
def test_sampling_a_linear_picture(seed, height, width):
    random = np.random.default_rng(seed)
    a, b, c = random.standard_normal(3)
    v, u = np.mgrid[0:height, 0:width] + 0.5
    pixels = random.uniform([0, 0], [width, height], (20, 2))
    clamped = np.clip(pixels, 0.5, [width - 0.5, height - 0.5])
    np.testing.assert_allclose(sample_bilinear(a * u + b * v + c, pixels), clamped @ [a, b] + c, atol=1e-12)
    assert np.isnan(sample_bilinear(u, np.array([[-0.1, 0.0], [0.0, height + 0.1], [np.nan, 0.0]]))).all()
