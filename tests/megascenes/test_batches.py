"""What is drawn for a step: shares of what is left out (check 8), and draws that do not depend on the sharing out."""

from __future__ import annotations

import numpy as np
import torch

from megascenes_ns.batches import PairBatch, draw, fixed_draws, seeded, training_draws


def batch(update: int, first: int, count: int, whole: int) -> PairBatch:
    return PairBatch(tuple(range(count)), (), (), np.zeros((count, 19), np.float32), None, update=update, first=first,
                     whole=whole)  # fmt: skip


def test_what_is_left_out_for_guidance_has_the_papers_shares():
    drawn = draw(200_000, 1, seeded(3))
    embedding, latent = drawn.drop_embedding.double(), drawn.drop_latent.double()
    assert abs(float(embedding.mean()) - 0.10) < 0.003
    assert abs(float(latent.mean()) - 0.10) < 0.003
    assert abs(float((embedding * latent).mean()) - 0.05) < 0.003


def test_times_and_noise_are_uniform_and_normal():
    drawn = draw(20_000, 2, seeded(5))
    assert int(drawn.times.min()) == 0
    assert int(drawn.times.max()) == 999
    assert abs(float(drawn.times.double().mean()) - 499.5) < 6
    assert abs(float(drawn.noise.mean())) < 0.01
    assert abs(float(drawn.noise.std()) - 1) < 0.01
    assert not torch.equal(drawn.noise, drawn.posterior)


def test_without_dropout_everything_else_is_the_same():
    first, second = draw(64, 4, seeded(1)), draw(64, 4, seeded(1), dropout=False)
    assert bool(first.drop_latent.any())
    assert not bool(second.drop_embedding.any() | second.drop_latent.any())
    for name in ("times", "noise", "posterior"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_parts_of_an_update_are_parts_of_its_draws():
    whole = training_draws(batch(7, 0, 12, 12), 4, seed=2)
    parts = [training_draws(batch(7, first, 3, 12), 4, seed=2) for first in (0, 3, 6, 9)]
    for index, name in enumerate(whole._fields):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index]), name
    assert not torch.equal(whole.noise, training_draws(batch(8, 0, 12, 12), 4, seed=2).noise)
    assert not torch.equal(whole.noise, training_draws(batch(7, 0, 12, 12), 4, seed=3).noise)


def test_fixed_draws_are_fixed():
    first, second = fixed_draws([50, 950], 8, 4), fixed_draws([50, 950], 8, 4)
    assert torch.equal(first.noise, second.noise)
    assert first.times.tolist() == [50, 950]
    assert not bool(first.drop_embedding.any())
