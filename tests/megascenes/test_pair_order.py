"""Who trains on which pairs: every sample once an epoch, whatever the processes and micro batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascenes_ns.pair_order import epoch_order, samples, share


def test_every_pair_comes_once_an_epoch_and_the_order_changes():
    seen = samples(0, 30, 10, seed=4)
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert seen != samples(0, 30, 10, seed=5)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 4), micros=st.integers(1, 4), each=st.integers(1, 5), total=st.integers(1, 40),
    update=st.integers(0, 50), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_processes_and_micro_batches_share_an_update_without_gaps(ranks, micros, each, total, update, seed):
    size = ranks * micros * each
    whole = samples(update * size, size, total, seed)
    places, parts = [], []
    for micro in range(micros):
        for rank in range(ranks):
            first, rows = share(
                update, micro, size=size, micros=micros, rank=rank, ranks=ranks, total=total, seed=seed
            )  # fmt: skip
            assert len(rows) == each
            places += range(first, first + each)
            parts += rows
    assert sorted(places) == list(range(size))
    assert [row for _, row in sorted(zip(places, parts, strict=True))] == whole


def test_the_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 1
    assert np.array_equal(epoch_order(5, 0, 0), epoch_order(5, 0, 0))
