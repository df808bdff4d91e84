"""Best of several samples, check 14: floating point and true coverage where bytes wrap around and black is a colour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascenes_ns.best_of import best_of


def original_errors(samples: np.ndarray, warp: np.ndarray) -> list[float]:
    """The original's way, in bytes: (sample - warp)^2 wraps around; black means hole."""
    mask = (warp > 0).any(axis=2)
    return [float(((sample - warp) ** 2)[mask].mean()) for sample in samples]


def test_bytes_would_pick_the_wrong_sample():
    """An error of 16 everywhere has the square 256, which is 0 in a byte (spec megascenes 10.4)."""
    rng = np.random.default_rng(0)
    warp = rng.integers(20, 200, (12, 16, 3), dtype=np.uint8)
    near = warp + rng.integers(1, 3, warp.shape, dtype=np.uint8)
    samples = np.stack([warp + np.uint8(16), near])
    assert int(np.argmin(original_errors(samples, warp))) == 0
    found = best_of(samples, warp / 255.0, np.ones((12, 16)))
    assert found.index == 1
    assert found.errors[0] == pytest.approx((16 / 255) ** 2)


def test_black_content_counts_and_holes_do_not():
    warp, coverage = np.zeros((4, 6, 3)), np.ones((4, 6))
    coverage[:, 3:] = 0
    dark_left, dark_right = np.zeros((4, 6, 3)), np.zeros((4, 6, 3))
    dark_left[:, 3:], dark_right[:, :3] = 1, 1
    found = best_of(np.stack([dark_right, dark_left]), warp, coverage)
    assert (found.index, found.errors.tolist()) == (1, [1.0, 0.0])


def test_borders_blended_with_black_do_not_count_against_the_right_colour():
    colour = np.full((1, 2, 3), 0.8)
    coverage = np.array([[1.0, 0.25]])
    found = best_of(np.stack([colour * [[[1], [0.25]]], colour]), colour * coverage[..., None], coverage)
    assert found.index == 1
    assert found.errors[1] == pytest.approx(0, abs=1e-15)
    assert found.errors[0] == pytest.approx(0.25 * 0.6**2 / 1.25)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_errors_are_the_weighted_mean(count, seed):
    rng = np.random.default_rng(seed)
    samples, coverage = rng.random((count, 3, 4, 3)), rng.integers(0, 5, (3, 4)) / 4
    warp = rng.random((3, 4, 3)) * coverage[..., None]
    found = best_of(samples, warp, coverage)
    if coverage.max() == 0:
        assert found.index == 0
        assert np.isnan(found.errors).all()
        return
    slow = []
    for sample in samples:
        total = weight = 0.0
        for v in range(3):
            for u in range(4):
                for k in range(3):
                    if coverage[v, u]:
                        total += coverage[v, u] * (sample[v, u, k] - warp[v, u, k] / coverage[v, u]) ** 2
                        weight += coverage[v, u]
        slow.append(total / weight)
    np.testing.assert_allclose(found.errors, slow)
    assert found.index == int(np.argmin(slow))


def test_bytes_and_floats_are_the_same_pictures():
    rng = np.random.default_rng(1)
    samples, warp = rng.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8), rng.random((5, 6, 3))
    as_bytes, as_floats = (best_of(s, warp, np.ones((5, 6))) for s in (samples, samples / 255.0))
    np.testing.assert_allclose(as_bytes.errors, as_floats.errors)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 5, 3), (4, 4, 3)])
def test_sizes_must_fit(shape):
    with pytest.raises(ValueError, match="do not fit"):
        best_of(np.zeros(shape), np.zeros((4, 4, 3)), np.zeros((4, 4)))
