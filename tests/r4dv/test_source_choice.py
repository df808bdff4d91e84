"""Source views: order, exclusion, and the statistics of the training choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r4dv_ns.source_choice import choose_sources, rank_sources, training_sources

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4), np.zeros(8)], axis=1)


def test_distance_ranks_by_camera_centres_and_ties_by_row():
    assert rank_sources(RING[2], RING) == [2, 1, 3, 0, 4, 5, 7, 6]
    assert choose_sources(RING[2], RING, 3, exclude=[2]) == [1, 3, 0]
    assert choose_sources(RING[2], RING, 99, exclude=range(1, 8)) == [0]
    assert choose_sources(RING[2], np.zeros((0, 3)), 3) == []


def test_angle_ignores_how_far_a_camera_stands():
    centres = np.array([[1.0, 0.1, 0.0], [9.0, 0.05, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    target = np.array([1.2, 0.0, 0.0])
    assert rank_sources(target, centres) == [0, 2, 3, 1]
    assert rank_sources(target, centres, "angle", np.zeros(3)) == [1, 0, 2, 3]
    with pytest.raises(ValueError, match="scene's centre"):
        rank_sources(target, centres, "angle")
    with pytest.raises(ValueError, match="unknown metric"):
        rank_sources(target, centres, "nearest")  # pyright: ignore[reportArgumentType]


def test_the_target_s_own_photo_is_kept_in_one_step_of_ten():
    rng = np.random.default_rng(0)
    drawn = [training_sources(3, RING, 4, rng) for _ in range(4000)]
    assert all(len(rows) == len(set(rows)) == 4 for rows in drawn)
    # Kept in the pool of five with probability 0.1, then chosen with 4 / 5.
    assert np.mean([3 in rows for rows in drawn]) == pytest.approx(0.08, abs=0.015)
    others = [rows for rows in drawn if 3 not in rows]
    pool = set(choose_sources(RING[3], RING, 5, exclude=[3]))
    assert set().union(*others) == pool
    assert all(3 in training_sources(3, RING, 8, rng, keep_target=1.0) for _ in range(20))
    assert not any(3 in training_sources(3, RING, 8, rng, keep_target=0.0) for _ in range(20))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_any_rig_gives_a_deterministic_nonempty_choice_of_distinct_views(views, count, extra, seed):
    centres = np.random.default_rng(seed).normal(size=(views, 3))
    target = seed % views
    runs = [training_sources(target, centres, count, np.random.default_rng(seed), extra=extra) for _ in range(2)]
    assert runs[0] == runs[1]
    assert 1 <= len(runs[0]) <= count
    assert len(set(runs[0])) == len(runs[0])
    assert set(runs[0]) <= set(range(views))


def test_the_same_number_of_draws_whatever_is_decided():
    """So that a resumed run, or another choice of options, does not shift every later batch."""
    after = set()
    for keep in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(5)
        training_sources(1, RING, 3, rng, keep_target=keep)
        after.add(rng.random())
    assert len(after) == 1
