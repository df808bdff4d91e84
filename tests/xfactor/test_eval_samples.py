"""Which frames are judged."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xfactor_ns.eval_samples import stereo_samples, window_samples

NUMBERS = st.lists(st.integers(0, 300), min_size=0, max_size=16, unique=True).map(sorted)


@settings(deadline=None)
@given(NUMBERS, st.integers(1, 60), st.integers(1, 6))
def test_pairs_are_as_far_apart_as_can_be_wished(numbers, gap, count):
    pairs = stereo_samples(numbers, gap, count)
    if len(numbers) < 2:
        assert pairs == []
        return
    assert 1 <= len(pairs) <= count
    assert len({reference for reference, _ in pairs}) == len(pairs)
    for reference, target in pairs:
        assert reference != target
        forward = numbers[reference] + gap <= numbers[-1]
        wanted = numbers[reference] + (gap if forward else -gap)
        misses = [abs(number - wanted) for k, number in enumerate(numbers) if k != reference]
        assert abs(numbers[target] - wanted) == min(misses)


def test_pairs_of_an_even_clip():
    numbers = list(range(0, 32, 2))
    assert stereo_samples(numbers, 10, 4) == [(0, 5), (5, 10), (10, 15), (15, 10)]


@settings(deadline=None)
@given(NUMBERS, st.integers(1, 300), st.integers(3, 7), st.integers(1, 6))
def test_windows_hold_different_frames_and_an_interior_target(numbers, window, frames, count):
    samples = window_samples(numbers, window, frames, count)
    if len(numbers) < frames:
        assert samples == []
        return
    assert 1 <= len(samples) <= count
    for sample in samples:
        assert len(set(sample)) == frames
        reference, *others, target = sample
        context = sorted([reference, *others])
        assert context[0] < target < context[-1]
        assert others == sorted(others)
        times = np.asarray(numbers)
        ends = times[[context[0], context[-1]]]
        reach = {k: np.abs(times[k] - ends).max() for k in context}
        assert reach[reference] == min(reach.values()), "the most central frame"


def test_windows_of_an_even_clip():
    samples = window_samples(list(range(16)), 10, 6, 3)
    assert samples[0] == (4, 0, 6, 8, 10, 2)
    assert len(samples) == 3
    assert max(max(sample) - min(sample) for sample in samples) == 10


def test_too_few_frames_for_the_window_take_what_there_is():
    samples = window_samples(list(range(0, 60, 10)), 20, 6, 2)
    assert samples == [(2, 0, 3, 4, 5, 1)]
