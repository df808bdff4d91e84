"""Which pairs an update trains on: by seed and number alone, shared out between processes and micro batches."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int

Array = np.ndarray
_ORDER = 0x6F726465
"""Tag of the order's generators."""


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Int[Array, "count"]:
    """All samples once, in the order of an epoch."""
    order = np.random.default_rng((seed, _ORDER, epoch)).permutation(count)
    order.setflags(write=False)
    return order


def samples(start: int, count: int, total: int, seed: int) -> list[int]:
    """Samples ``start`` to ``start + count`` of an endless sequence: all of them again and again, every time in another
    order."""
    found = []
    for place in range(start, start + count):
        epoch, within = divmod(place, total)
        found.append(int(epoch_order(total, seed, epoch)[within]))
    return found


def share(
    update: int, micro: int, *, size: int, micros: int, rank: int, ranks: int, total: int, seed: int
) -> tuple[int, list[int]]:
    """A process's part of a micro batch of an update.

    Args:
        update: number of the optimiser's step, from 0.
        micro: number of the micro batch in it.
        size: pairs of the whole update, a multiple of ``micros * ranks``.
        micros: micro batches.
        rank, ranks: which process, of how many.
        total: pairs that there are.
        seed: of the order.

    Returns:
        Place of its first pair in the update's whole batch, and the pairs.
    """
    each = size // (micros * ranks)
    first = (micro * ranks + rank) * each
    return first, samples(update * size + first, each, total, seed)
