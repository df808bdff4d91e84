"""The order of training targets: complete, balanced, the same again, different where it should be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r4dv_ns.target_choice import TargetChoice


@given(
    frames=st.integers(1, 7), views=st.integers(1, 5), block=st.integers(1, 6), world=st.integers(1, 3),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_every_pair_is_met_equally_often(frames, views, block, world, seed):
    # views x frames blocks per process hold views whole epochs for each process.
    names = [10 + 3 * view for view in range(views)]
    steps = frames * views * block
    ranks = [TargetChoice(frames, names, block=block, seed=seed, rank=rank, world_size=world) for rank in range(world)]
    counts = Counter(choice.at(step) for choice in ranks for step in range(steps))
    assert set(counts) == {(frame, view) for frame in range(frames) for view in names}
    assert set(counts.values()) == {block * world}


@given(frames=st.integers(1, 9), views=st.integers(1, 6), block=st.integers(1, 5), steps=st.integers(1, 80))
def test_after_any_number_of_steps_frames_and_views_are_balanced(frames, views, block, steps):
    choice = TargetChoice(frames, range(views), block=block)
    drawn = [choice.at(step) for step in range(steps)]
    by_frame = Counter(frame for frame, _ in drawn)
    assert max(by_frame.values()) - min(by_frame.get(frame, 0) for frame in range(frames)) <= block
    for frame in by_frame:
        met = Counter(view for at, view in drawn if at == frame)
        assert max(met.values()) - min(met.get(view, 0) for view in range(views)) <= 1


def test_a_block_keeps_its_frame_and_changes_its_view():
    choice = TargetChoice(30, range(8), block=4)
    for block in range(60):
        drawn = [choice.at(4 * block + step) for step in range(4)]
        assert len({frame for frame, _ in drawn}) == 1
        assert len({view for _, view in drawn}) == 4


def test_steps_may_be_asked_in_any_order():
    steps = list(range(200))
    forwards = [TargetChoice(11, [0, 2, 5]).at(step) for step in steps]
    choice = TargetChoice(11, [0, 2, 5])
    shuffled = {step: choice.at(step) for step in np.random.default_rng(0).permutation(steps).tolist()}
    assert [shuffled[step] for step in steps] == forwards


def test_seed_and_rank_change_the_order():
    def drawn(**options: int) -> list[tuple[int, int]]:
        choice = TargetChoice(20, range(6), **options)
        return [choice.at(step) for step in range(100)]

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn(rank=0, world_size=2) != drawn(rank=1, world_size=2)


def test_processes_never_share_a_frame_at_the_same_time():
    ranks = [TargetChoice(20, range(6), block=2, rank=rank, world_size=4) for rank in range(4)]
    for step in range(200):
        assert len({choice.at(step)[0] for choice in ranks}) == 4


@pytest.mark.parametrize(
    ("frames", "views", "options"),
    [(0, [1], {}), (3, [], {}), (3, [1], {"block": 0}), (3, [1], {"seed": -1}), (3, [1], {"rank": 1})],
)
def test_nothing_to_choose_from_is_refused(frames, views, options):
    with pytest.raises(ValueError, match="cannot choose among"):
        TargetChoice(frames, views, **options)
