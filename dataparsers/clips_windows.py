"""Which frames of which clips a training sample shows: windows that grow with training, from any mix of collections.

Nothing here has a state: a sample is a function of the seed, its epoch and its record, so a resumed training goes on
with the same samples, and any number of processes shares out the same ones (spec xfactor 2.2, 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dataparsers.clips_sequence import Sequence

Array = np.ndarray

WARMUP = 50_000
"""Optimiser updates until windows are as long as they get."""
_ORDER, _FRAMES, _EVAL = 0, 1, 2


def longest_window(step: int, begin: float, end: float, warmup: int = WARMUP, delay: int = 0) -> int:
    """The longest window at an optimiser update, in frames; a ``warmup`` of 0 has no growth."""
    grown = 1.0 if warmup == 0 else min(max(step - delay, 0), warmup) / warmup
    return int(begin + grown * (end - begin))


def length_weights(lengths: int) -> Float[Array, "lengths"]:
    """Probabilities of window lengths, shortest first, with a bump at 70 %: w(u) = 0.2 + 0.8 exp(-((u - 0.7) / 0.25)²).

    Source: spec xfactor 2.2 (the original's ``upweight``, used with several context frames).
    """
    places = np.linspace(0.0, 1.0, lengths)
    weights = 0.2 + 0.8 * np.exp(-(((places - 0.7) / 0.25) ** 2))
    return weights / weights.sum()


def window(
    step: int,
    count: int,
    n: int,
    rng: np.random.Generator,
    begin: float,
    end: float,
    bump: bool = False,
    warmup: int = WARMUP,
) -> Int[Array, "n"]:
    """Draw the frames of a sample: both ends of a window and distinct frames between, in time order or reversed.

    Args:
        step: optimiser update; windows grow with it.
        count: frames of the clip.
        n: frames to draw.
        rng: where all draws come from.
        begin: longest window at update 0, frames.
        end: longest window from update ``warmup`` on.
        bump: prefer long windows, see `length_weights`; else all lengths are as likely.
        warmup: updates.

    Raises:
        ValueError: fewer than two frames asked for, or more than there are.

    Source: spec xfactor 2.2.
    """
    if not 2 <= n <= count:
        raise ValueError(f"cannot draw {n} frames of {count}")
    longest = max(n, min(count, longest_window(step, begin, end, warmup)))
    lengths = longest - n + 1
    pick = rng.choice(lengths, p=length_weights(lengths)) if bump else rng.integers(lengths)
    length = n + int(pick)
    start = int(rng.integers(count - length + 1))
    between = start + 1 + rng.choice(length - 2, n - 2, replace=False) if n > 2 else np.empty(0, np.int64)
    frames = np.sort(np.concatenate([[start, start + length - 1], between])).astype(np.int64)
    return frames[::-1].copy() if rng.random() < 0.5 else frames


def counter_rng(seed: int, purpose: int, epoch: int, record: int) -> np.random.Generator:
    """A generator of its own for every record of every epoch (Philox, whose counter starts where they say)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, record, epoch]))


class Draw(NamedTuple):
    """One sample: a clip and its frames."""

    sequence: Sequence
    frames: tuple[int, ...]
    epoch: int
    record: int

    @property
    def relative(self) -> tuple[int, ...]:
        """The frames' numbers counted from the first; negative in reversed samples."""
        return tuple(frame - self.frames[0] for frame in self.frames)


@dataclass(frozen=True)
class PlanSet:
    """A collection's part in a plan."""

    sequences: Items[Sequence]
    windows: Items[tuple[float, float]]
    """(begin, end) of each clip's longest window, in frames; see `window`."""
    weight: int = 1
    """Its share in the samples, whatever its size."""


class SamplePlan:
    """All samples of a training, by position.

    Each set is repeated to the length of the largest, then ``weight`` times; all together is an epoch's records, in an
    order of its own every epoch. So a set's share follows its weight, not its size (spec xfactor 2.1).
    """

    def __init__(
        self, sets: Items[PlanSet], n: int, *, seed: int = 0, bump: bool = False, warmup: int = WARMUP
    ) -> None:
        """Plan samples of ``n`` frames.

        Raises:
            ValueError: no set, an empty one, a weight below 1, or a clip of fewer than ``n`` frames.
        """
        if not sets or any(not each.sequences or each.weight < 1 for each in sets):
            raise ValueError("a plan needs sets with clips, and weights from 1 on")
        short = [sequence.id for each in sets for sequence in each.sequences if sequence.frames < n]
        if short:
            raise ValueError(f"clip {short[0]!r} has fewer than {n} frames")
        self.sets, self.n, self.seed, self.bump, self.warmup = tuple(sets), n, seed, bump, warmup
        longest = max(len(each.sequences) for each in sets)
        self._ends = np.cumsum([longest * each.weight for each in sets])
        self.records = int(self._ends[-1])
        """Samples of an epoch."""
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def locate(self, record: int) -> tuple[int, int]:
        """(set, clip in it) of a record."""
        which = int(np.searchsorted(self._ends, record, side="right"))
        start = int(self._ends[which - 1]) if which else 0
        return which, (record - start) % len(self.sets[which].sequences)

    def at(self, position: int, update: int) -> Draw:
        """The sample at a position of the endless sequence of samples, at an optimiser update."""
        epoch, slot = divmod(position, self.records)
        record = int(self._order(epoch)[slot])
        return self._draw(counter_rng(self.seed, _FRAMES, epoch, record), epoch, record, update)

    def held_out(self, number: int) -> Draw:
        """A sample for evaluation: the clips in turn, windows as long as at the end of training."""
        record = number % self.records
        return self._draw(counter_rng(self.seed, _EVAL, 0, number), 0, record, self.warmup)

    def batch(self, update: int, micro: int, *, size: int, micros: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
        """The samples of one process in one micro step.

        An update's ``size`` samples are the same ones however many processes and micro steps share them.

        Raises:
            ValueError: they cannot be shared out evenly, or there is no such process or micro step.
        """
        if size % (micros * ranks) or not 0 <= micro < micros or not 0 <= rank < ranks:
            raise ValueError(
                f"cannot give micro step {micro} of {micros}, process {rank} of {ranks}, its part of {size}"
            )
        each = size // (micros * ranks)
        first = update * size + (micro * ranks + rank) * each
        return [self.at(first + k, update) for k in range(each)]

    def _draw(self, rng: np.random.Generator, epoch: int, record: int, update: int) -> Draw:
        which, clip = self.locate(record)
        sequence, (begin, end) = self.sets[which].sequences[clip], self.sets[which].windows[clip]
        frames = window(update, sequence.frames, self.n, rng, begin, end, self.bump, self.warmup)
        return Draw(sequence, tuple(frames.tolist()), epoch, record)

    def _shuffled(self, epoch: int) -> Int[Array, "records"]:
        dtype = np.int32 if self.records < 1 << 31 else np.int64
        return counter_rng(self.seed, _ORDER, epoch, 0).permutation(np.arange(self.records, dtype=dtype))
