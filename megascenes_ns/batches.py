"""What a training step gets: pairs with poses and warps, and photos or their latents; and what is drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from megascenes_ns.conditioning import drop_masks
from megascenes_ns.latent_cache import PhotoLatent
from megascenes_ns.noise_schedule import TIMES
from megascenes_ns.sizes import LATENT

Array = np.ndarray
_DRAWS = 0x6D656761
"""Tag of the draws' generators, apart from those of the samples' order."""


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Some pairs of an update: a process's part of one of its micro batches."""

    numbers: tuple[int, ...]
    """Of the pairs, see `dataparsers.megascenes_parser.Pairs`."""
    references: tuple[str, ...]
    """Keys of the references' latents."""
    targets: tuple[str, ...]
    pose: Float32[Array, "b 19"]
    low: Float32[Array, "b l l 3"] | None
    """Warps at the latents' size, [0, 1]; None for networks that take none."""
    photos: dict[str, UInt8[Array, "s s 3"]] = field(default_factory=dict)
    """White padded squares of the photos whose latents are not known yet, by key."""
    latents: dict[str, PhotoLatent] = field(default_factory=dict)
    """The others', by key."""
    update: int = 0
    first: int = 0
    """Place of the first pair in the update's whole batch."""
    whole: int = 0
    """Pairs of the whole update, over all processes and micro batches."""

    def __len__(self) -> int:
        return len(self.numbers)


class Draws(NamedTuple):
    """The random part of a step, on the CPU."""

    drop_embedding: Bool[Tensor, " b"]
    drop_latent: Bool[Tensor, " b"]
    times: Int64[Tensor, " b"]
    noise: Float[Tensor, "b 4 l l"]
    """That the network is to find."""
    posterior: Float[Tensor, "b 4 l l"]
    """That the target's latent is drawn with."""

    def part(self, first: int, count: int) -> Draws:
        """Those of some samples."""
        return Draws(*(each[first : first + count] for each in self))


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU that depends on all the numbers (0 or more)."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def draw(count: int, latent: int, generator: torch.Generator, dropout: bool = True) -> Draws:
    """Times, noise and what is left out for guidance, of a whole batch (spec megascenes 4.4, 4.5).

    Args:
        count: samples.
        latent: side of the latents.
        generator: on the CPU.
        dropout: False leaves nothing out, and draws the same of everything else.
    """
    embedding, reference = drop_masks(torch.rand(count, generator=generator))
    if not dropout:
        embedding, reference = torch.zeros_like(embedding), torch.zeros_like(reference)
    times = torch.randint(TIMES, (count,), generator=generator)
    noise, posterior = (torch.randn(count, LATENT, latent, latent, generator=generator) for _ in range(2))
    return Draws(embedding, reference, times, noise, posterior)


def training_draws(batch: PairBatch, latent: int, seed: int, dropout: bool = True) -> Draws:
    """The draws of a batch, by seed and update alone: a resumed run draws the same, and so do all processes and micro
    batches that share an update."""
    whole = draw(batch.whole, latent, seeded(seed, _DRAWS, batch.update), dropout)
    return whole.part(batch.first, len(batch))


def fixed_draws(times: list[int], latent: int, seed: int) -> Draws:
    """One sample at each time with nothing left out, the same whenever it is asked for."""
    drawn = draw(len(times), latent, seeded(seed, _DRAWS, 1, 1), dropout=False)
    return drawn._replace(times=torch.tensor(times))


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Everything of a step that touches no trained weight; on the model's device."""

    reference: Float[Tensor, "b 4 l l"]
    """Unscaled latents, zero where left out."""
    embedding: Float[Tensor, "b e"]
    """Zero where left out."""
    target: Float[Tensor, "b 4 l l"]
    """Scaled latents."""
    pose: Float[Tensor, "b 19"]
    low: Float[Tensor, "b l l 3"] | None
    times: Int64[Tensor, " b"]
    noise: Float[Tensor, "b 4 l l"]
