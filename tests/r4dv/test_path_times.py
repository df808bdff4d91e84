"""Which moment each picture shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r4dv_ns.path_times import played, temporal_range

knots = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(st.integers(1, 50), knots)
def test_ranges_begin_and_end_exactly(count, range_):
    times = temporal_range(count, range_)
    assert times.shape == (count,)
    assert times[0] == range_[0]
    assert count == 1 or times[-1] == range_[-1]
    assert ((times >= min(range_)) & (times <= max(range_))).all()


def test_ranges_by_hand():
    np.testing.assert_allclose(temporal_range(5, (0, 1)), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(temporal_range(9, (0, 1, 0, 1, 0)), [0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5, 0], atol=1e-12)
    assert set(temporal_range(7, (0.5, 0.5))) == set(temporal_range(7, (0.5,))) == {0.5}
    for bad in ((), (0, 1.1), (-0.1,), (float("nan"), 1)):
        with pytest.raises(ValueError, match="list of times"):
            temporal_range(3, bad)


def test_playing_by_hand():
    times = [0.0, 0.25, 0.5, 1.0]
    np.testing.assert_array_equal(played(10, 60, 30, times), [0, 0, 0.25, 0.25, 0.5, 0.5, 1, 1, 0, 0])
    np.testing.assert_array_equal(played(5, 30, 30, times), [0, 0.25, 0.5, 1, 0])
    np.testing.assert_array_equal(played(4, 30, 60, times), [0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(played(4, 30, 30, times, (0.25, 0.5)), [0.25, 0.5, 0.25, 0.5])
    np.testing.assert_array_equal(played(5, 30, 30, times, (1, 0)), [1, 0.5, 0.25, 0, 1])
    np.testing.assert_array_equal(played(3, 30, 30, times, (0.5,)), [0.5] * 3)


@given(st.integers(1, 20), st.integers(1, 8))
def test_every_frame_stands_equally_long(frames, pictures_each):
    """29.97 times some number is no whole number in binary; still no frame may be a picture longer."""
    count = frames * pictures_each * 2
    times = np.linspace(0, 1, frames)
    shown = played(count, 29.97 * pictures_each, 29.97, list(times))
    np.testing.assert_array_equal(shown, np.tile(np.repeat(times, pictures_each), 2))


def test_what_cannot_be_played():
    with pytest.raises(ValueError, match="turning points"):
        played(3, 30, 30, [0.0, 1.0], (0, 1, 0))
    with pytest.raises(ValueError, match="no frame"):
        played(3, 30, 30, [0.0, 1.0], (0.4, 0.6))
    for rates in ((0, 30), (30, 0), (30, float("inf")), (float("nan"), 30)):
        with pytest.raises(ValueError, match="cannot be played"):
            played(3, *rates, [0.0, 1.0])
