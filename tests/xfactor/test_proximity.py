"""The reference is the most central frame (acceptance 10)."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from xfactor_ns.proximity import proximity_order, proximity_permutation


def slow(times: list[int]) -> list[int]:
    """Selection by hand: again and again the first frame of those nearest to the middle."""
    distance = [max(abs(t - times[0]), abs(t - times[-1])) for t in times]
    left, order = list(range(len(times))), []
    while left:
        best = min(left, key=lambda i: distance[i])  # the first of equals
        left.remove(best)
        order.append(best)
    return order


def test_the_published_example_and_its_reverse():
    assert proximity_order(torch.tensor([[0, 4, 9, 13, 17, 19]])).tolist() == [[2, 3, 1, 4, 0, 5]]
    backwards = [0, -2, -6, -10, -15, -19]
    assert proximity_order(torch.tensor([backwards])).tolist() == [slow(backwards)]
    assert proximity_order(torch.tensor([[0, 19], [0, -19]])).tolist() == [[0, 1], [0, 1]], "pairs keep their order"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from([1, -1]))
def test_order_is_the_slow_one_and_minimises_the_distance_to_the_ends(gaps, sign):
    times = [sign * t for t in itertools.accumulate(gaps, initial=0)]
    order = proximity_order(torch.tensor([times]))[0].tolist()
    assert order == slow(times)
    worst = [max(abs(t - times[0]), abs(t - times[-1])) for t in times]
    assert worst[order[0]] == min(worst)


def test_shuffling_leaves_the_reference_and_reaches_every_order():
    times = torch.tensor([[0, 4, 9, 13]]).expand(4000, -1)
    found = proximity_permutation(times, torch.Generator().manual_seed(0))
    assert (found[:, 0] == proximity_order(times)[:, 0]).all()
    assert (found.sort(dim=1).values == torch.arange(4)).all()
    counts = torch.unique(found, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 550
