"""Spec xfactor 12, check 13: windows grow, stay in bounds, differ between epochs, resume exactly, ranks share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataparsers.clips_sequence import Sequence
from dataparsers.clips_windows import PlanSet, SamplePlan, counter_rng, length_weights, longest_window, window


def clip(id: str, frames: int = 60) -> Sequence:
    return Sequence(id, frames, (64, 64), None, Path(id), "natural")


def plan(clips: int = 7, n: int = 2, frames: int = 60, **options) -> SamplePlan:
    sequences = [clip(f"clip{number}", frames) for number in range(clips)]
    return SamplePlan([PlanSet(sequences, [(5.0, 40.0)] * clips)], n, **options)


def slow_window(step, count, n, begin, end, bump, warmup, rng):
    """Spec 2.2 line by line, with the same draws."""
    curr_max = int(begin + min(max(step - 0, 0), warmup) / warmup * (end - begin))
    lengths = list(range(n, max(n, min(count, curr_max)) + 1))
    if bump:
        weights = []
        for place in range(len(lengths)):
            u = place / (len(lengths) - 1) if len(lengths) > 1 else 0.0
            weights.append(0.2 + 0.8 * np.exp(-(((u - 0.7) / 0.25) ** 2)))
        length = lengths[rng.choice(len(lengths), p=np.array(weights) / sum(weights))]
    else:
        length = lengths[rng.integers(len(lengths))]
    start = rng.integers(count - length + 1)
    interior = start + 1 + rng.choice(length - 2, n - 2, replace=False) if n > 2 else []
    frames = sorted([start, start + length - 1, *interior])
    return frames[::-1] if rng.random() < 0.5 else frames


@given(
    step=st.integers(0, 120_000), count=st.integers(6, 300), n=st.sampled_from([2, 3, 6]), begin=st.floats(2, 50),
    more=st.floats(0, 150), bump=st.booleans(), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_windows_are_those_of_the_spec(step, count, n, begin, more, bump, seed) -> None:
    drawn = window(step, count, n, counter_rng(seed, 1, 2, 3), begin, begin + more, bump)
    assert drawn.tolist() == slow_window(step, count, n, begin, begin + more, bump, 50_000, counter_rng(seed, 1, 2, 3))
    ordered = np.sort(drawn)
    assert len(set(drawn.tolist())) == n
    assert ordered[0] >= 0
    assert ordered[-1] < count
    assert ordered[-1] - ordered[0] < max(n, longest_window(step, begin, begin + more))
    assert (drawn == ordered).all() or (drawn == ordered[::-1]).all()


def test_the_warm_up_ends_where_it_should() -> None:
    """The paper's numbers: RE10K stereo."""
    assert [longest_window(step, 40, 100) for step in (0, 1, 25_000, 49_999, 50_000, 10**9)] == [
        40,
        40,
        70,
        99,
        100,
        100,
    ]
    assert [longest_window(step, 5, 9, warmup=4) for step in range(7)] == [5, 6, 7, 8, 9, 9, 9]
    assert longest_window(0, 5, 9, warmup=0) == 9
    assert longest_window(9, 5, 9, warmup=4, delay=8) == 6


def spans(step: int, **options) -> np.ndarray:
    rows = [
        window(step, 60, options.get("n", 2), counter_rng(0, 9, 0, k), 9, 40, options.get("bump", False))
        for k in range(3000)
    ]
    return np.array([abs(int(row[-1]) - int(row[0])) + 1 for row in rows])


def test_all_lengths_and_both_directions_come() -> None:
    lengths = spans(10**6)
    assert set(lengths) == set(range(2, 41))
    counts = np.bincount(lengths, minlength=41)[2:]
    expected = 3000 / 39
    assert ((counts - expected) ** 2 / expected).sum() < 75, "chi squared, 38 degrees of freedom, p = 3e-4"
    assert spans(0).max() == 9
    signs = [np.sign(np.diff(window(0, 60, 2, counter_rng(0, 9, 0, k), 9, 40))[0]) for k in range(1000)]
    assert abs(np.mean(signs)) < 0.12
    starts = [min(window(10**6, 60, 2, counter_rng(0, 9, 1, k), 9, 40)) for k in range(3000)]
    assert min(starts) == 0
    assert max(starts) >= 55


def test_the_bump_prefers_long_windows() -> None:
    weights = length_weights(35)
    assert weights.sum() == pytest.approx(1.0)
    assert int(weights.argmax()) == round(0.7 * 34)
    lengths = spans(10**6, n=6, bump=True)
    counts = np.bincount(lengths, minlength=41)[6:] / 3000
    assert np.abs(counts - weights).max() < 0.015
    assert length_weights(1).tolist() == [1.0]


def test_impossible_windows() -> None:
    for count, n in ((5, 6), (5, 1), (1, 2)):
        with pytest.raises(ValueError, match="cannot draw"):
            window(0, count, n, counter_rng(0, 0, 0, 0), 5, 5)


def draws(plan: SamplePlan, updates: range, **shares) -> list:
    return [draw for update in updates for draw in plan.batch(update, 0, size=8, micros=1, **shares)]


def test_a_resumed_training_sees_the_same_samples() -> None:
    whole = draws(plan(seed=4), range(20))
    assert draws(plan(seed=4), range(11, 20)) == whole[88:]
    assert draws(plan(seed=5), range(20)) != whole


def test_every_clip_once_an_epoch_with_other_frames_each_time() -> None:
    """The original draws the same frames of a record in every epoch (spec 2.4)."""
    made = plan(clips=40, seed=1)
    epochs = [[made.at(40 * epoch + slot, 10**6) for slot in range(40)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(draw.record for draw in epoch) == list(range(40))
    orders = {tuple(draw.record for draw in epoch) for epoch in epochs}
    assert len(orders) == 4
    frames = [{draw.record: draw.frames for draw in epoch} for epoch in epochs]
    same = sum(frames[0][record] == frames[1][record] for record in range(40))
    assert same <= 2


@given(
    update=st.integers(0, 400), ranks=st.sampled_from([1, 2, 4]), micros=st.sampled_from([1, 2, 3]),
    clips=st.integers(1, 50),
)  # fmt: skip
def test_processes_and_micro_steps_share_one_batch(update: int, ranks: int, micros: int, clips: int) -> None:
    made = plan(clips=clips, seed=2)
    whole = made.batch(update, 0, size=24, micros=1)
    parts = [
        made.batch(update, micro, size=24, micros=micros, rank=rank, ranks=ranks)
        for micro in range(micros)
        for rank in range(ranks)
    ]
    assert [draw for part in parts for draw in part] == whole
    slots = [(draw.epoch, draw.record) for draw in whole]
    assert len(set(slots)) == len(slots), "no two processes see the same sample"


def test_batches_that_cannot_be_shared() -> None:
    made = plan()
    for options in ({"micros": 5}, {"micros": 1, "rank": 2, "ranks": 2}, {"micros": 1, "ranks": 3}):
        with pytest.raises(ValueError, match="cannot give"):
            made.batch(0, 0, size=8, **options)


def test_shares_follow_weights_not_sizes() -> None:
    sets = [
        PlanSet([clip(f"a{k}") for k in range(30)], [(5, 9)] * 30, 1),
        PlanSet([clip(f"b{k}") for k in range(4)], [(5, 9)] * 4, 3),
    ]
    made = SamplePlan(sets, 2, seed=0)
    assert made.records == 120
    ids = [made.at(slot, 0).sequence.id for slot in range(120)]
    assert sum(id.startswith("a") for id in ids) == 30
    counts = [ids.count(f"b{k}") for k in range(4)]
    assert sum(counts) == 90
    assert max(counts) - min(counts) <= 3, "the small set is repeated evenly"
    assert len({id for id in ids if id.startswith("a")}) == 30


def test_windows_are_each_clips_own() -> None:
    made = SamplePlan([PlanSet([clip("slow"), clip("fast")], [(3, 3), (30, 30)])], 2, seed=0, warmup=10)
    reach = {"slow": 0, "fast": 0}
    for slot in range(400):
        draw = made.at(slot, 10)
        reach[draw.sequence.id] = max(reach[draw.sequence.id], abs(draw.relative[-1]))
        assert draw.relative[0] == 0
    assert reach["slow"] == 2
    assert 25 <= reach["fast"] <= 29


def test_held_out_samples_come_in_turn() -> None:
    made = plan(clips=5, seed=3, warmup=100)
    first = [made.held_out(number) for number in range(10)]
    assert [draw.sequence.id for draw in first] == [f"clip{number % 5}" for number in range(10)]
    assert first == [plan(clips=5, seed=3, warmup=100).held_out(number) for number in range(10)]
    assert max(abs(made.held_out(number).relative[1]) for number in range(300)) == 39


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="weights"):
        SamplePlan([], 2)
    with pytest.raises(ValueError, match="weights"):
        SamplePlan([PlanSet([clip("a")], [(2, 2)], 0)], 2)
    with pytest.raises(ValueError, match="fewer than 6"):
        SamplePlan([PlanSet([clip("a", 5)], [(2, 2)])], 6)


def test_a_hundred_thousand_clips_are_planned_in_no_time() -> None:
    sequences = [clip(str(number), 100) for number in range(100_000)]
    made = SamplePlan([PlanSet(sequences, [(5, 9)] * len(sequences))], 2)
    assert len({draw.sequence.id for draw in made.batch(3, 0, size=256, micros=1)}) == 256
