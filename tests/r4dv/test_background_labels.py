"""Smooth labels against a slow twin, and what they are for: gaps are filled from around, up to edges."""

from __future__ import annotations

import numpy as np
import pytest

from r4dv_ns.background_labels import DIRECTIONS, between, summed_costs


def slow(costs: np.ndarray, change: np.ndarray, step: float | None) -> np.ndarray:
    """`summed_costs` pixel by pixel, as it is written in the paper."""
    height, width, count = costs.shape
    total = np.zeros_like(costs)
    for down, across in DIRECTIONS:
        paths = np.zeros_like(costs)
        for row in range(height)[:: down or 1]:
            for column in range(width)[:: across or 1]:
                before = row - down, column - across
                paths[row, column] = costs[row, column]
                if not (0 <= before[0] < height and 0 <= before[1] < width):
                    continue
                earlier = paths[before]
                for label in range(count):
                    ways = [earlier[label], earlier.min() + change[row, column]]
                    if step is not None:
                        ways += [earlier[other] + step for other in (label - 1, label + 1) if 0 <= other < count]
                    paths[row, column, label] += min(ways) - earlier.min()
        total += paths
    return total


@pytest.mark.parametrize("step", [None, 0.3])
@pytest.mark.parametrize("shape", [(5, 7, 4), (1, 6, 3), (6, 1, 2), (3, 3, 1)])
def test_against_the_slow_twin(shape, step):
    rng = np.random.default_rng(0)
    costs = (5 * rng.random(shape)).astype(np.float32)
    change = (1 + rng.random(shape[:2])).astype(np.float32)
    np.testing.assert_allclose(summed_costs(costs, change, step), slow(costs, change, step), atol=1e-5)


def test_gaps_are_filled_from_around_and_labels_change_at_edges():
    rng = np.random.default_rng(1)
    truth = np.repeat([[0] * 20 + [2] * 20], 30, axis=0)
    costs = (2 + rng.random((30, 40, 3))).astype(np.float32)
    np.put_along_axis(costs, truth[..., None], 1.5, axis=2)
    costs[8:22, 12:26] = 5.0  # nothing is known here
    change = np.full((30, 40), 3.0, np.float32)
    change[:, 19:22] = 0.5
    assert (costs.argmin(axis=2) == truth).mean() < 0.95
    found = summed_costs(costs, change).argmin(axis=2)
    assert (found == truth).mean() > 0.98


def test_the_place_between_labels_is_that_of_a_parabola():
    labels = np.arange(9.0)
    places = np.array([[3.2, 4.0, 4.45]])
    total = np.square(labels - places[..., None]).astype(np.float32)
    np.testing.assert_allclose(between(total, total.argmin(axis=2)), places, atol=1e-5)
    edge = between(total[..., ::-1] * 0 + np.linspace(0, 1, 9, dtype=np.float32), np.zeros((1, 3), np.int64))
    assert edge.tolist() == [[0.0] * 3], "the first and last label stay"
    assert between(total[..., :2], np.ones((1, 3), np.int64)).tolist() == [[1.0] * 3]
