"""Which photo each training step compares with, known from the step's number alone (spec r4dv 8.3).

Random, but without repetition: a frame comes back only after all others, and among the targets of one frame a view
comes back only after all others. Every (frame, view) pair is thus met equally often however short the training is, and
frames stay uniformly distributed as with independent draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

FRAMES, VIEWS, SOURCES, EVAL = range(4)
"""First number after the seed: what the random numbers are for."""


def seeded(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """Random numbers that depend on these numbers (all >= 0) and nothing else."""
    return np.random.default_rng([seed, purpose, *numbers])


@lru_cache(maxsize=4)
def _frame_order(frames: int, seed: int, epoch: int) -> Int64[np.ndarray, "frames"]:
    order = seeded(seed, FRAMES, epoch).permutation(frames)
    order.setflags(write=False)
    return order


class TargetChoice:
    """Frame and view of every step: ``choice.at(step) -> (frame, view)``."""

    def __init__(
        self, frames: int, views: Sequence[int], *, block: int = 4, seed: int = 9, rank: int = 0, world_size: int = 1
    ) -> None:
        """Describe the steps of one process.

        Args:
            frames: number of selected frames.
            views: training views to choose from.
            block: consecutive steps that keep their frame, so that its photos are decoded once; 1: none do.
            rank: of this process among ``world_size``; processes take turns in one common order of frames.

        Raises:
            ValueError: nothing to choose from, or a block, seed or rank that cannot be.
        """
        if frames < 1 or not views or block < 1 or seed < 0 or not 0 <= rank < world_size:
            raise ValueError(
                f"cannot choose among {frames} frames and {len(views)} views "
                f"(block {block}, seed {seed}, rank {rank} of {world_size})"
            )
        self.frames, self.views, self.block, self.seed = frames, tuple(views), block, seed
        self.rank, self.world_size = rank, world_size

    def at(self, step: int) -> tuple[int, int]:
        """(frame, view) of a step, 0 <= frame < frames."""
        number, within = divmod(step, self.block)
        epoch, place = divmod(number * self.world_size + self.rank, self.frames)
        frame = int(_frame_order(self.frames, self.seed, epoch)[place])
        # How often this frame was a target before, over all processes: it came once in each earlier epoch.
        cycle, spot = divmod(epoch * self.block + within, len(self.views))
        order = seeded(self.seed, VIEWS, frame, cycle).permutation(len(self.views))
        return frame, self.views[int(order[spot])]
