"""The noise schedule against the original's tables, and the times that its sampler visits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from original_networks import CHECKPOINTS, HAVE, VARIANTS, DDIMScheduler, arrays, checkpoint, largest

from megascenes_ns.noise_schedule import (
    DIFFUSERS,
    add_noise,
    alphas_cumprod,
    betas,
    legacy_times,
    schedule_buffers,
    spaced_times,
)

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schedule_is_the_originals(variant):
    assert largest(betas(), arrays(variant)["betas"]) < 1e-9
    assert largest(alphas_cumprod(), arrays(variant)["alphas_cumprod"]) < 1e-7


@needs_fixtures
def test_all_twelve_tables_are_the_originals():
    stored = torch.load(checkpoint("warp_plus_pose"), weights_only=True)
    for name, table in schedule_buffers().items():
        torch.testing.assert_close(table, stored[name], rtol=1e-6, atol=1e-7)


def test_the_last_time_is_almost_noise():
    assert float(alphas_cumprod()[999]) == pytest.approx(0.0047, abs=5e-5)  # spec 4.5


def test_diffusers_words_mean_the_same_schedule():
    assert largest(DDIMScheduler(**DIFFUSERS).alphas_cumprod, alphas_cumprod()) < 1e-6


@needs_fixtures
@pytest.mark.parametrize(("variant", "steps"), [("warp_plus_pose", 20), ("warp_plus_pose", 15), ("zeronvs", 10)])
def test_legacy_times_are_the_originals(variant, steps):
    assert CHECKPOINTS[variant]
    stored = arrays(variant)[f"ddim{steps}_timesteps"].tolist()
    assert sorted(stored, reverse=True) == legacy_times(steps)


def test_the_legacy_preset_has_49_steps():
    assert legacy_times(50) == list(range(961, 0, -20))  # spec 11.2
    assert legacy_times(50) == spaced_times(50)[1:]


@given(st.integers(2, 999))
def test_legacy_times_descend_and_are_diffusers_times_or_all_but_the_first(steps):
    times = legacy_times(steps)
    assert times == sorted(set(times), reverse=True)
    assert times[-1] == 1
    assert 1 <= times[0] < 1000
    if steps <= 31:  # fewer stamps than 1000 // steps: one more than asked for at most
        assert times == (spaced_times(steps)[1:] if 1000 % steps == 0 else spaced_times(steps))


@given(st.integers(1, 999))
def test_spaced_times_are_diffusers_leading_spacing(steps):
    scheduler = DDIMScheduler(**DIFFUSERS, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == spaced_times(steps)


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        legacy_times(steps)
    if steps != 1:
        with pytest.raises(ValueError, match="steps"):
            spaced_times(steps)


def test_noise_is_added_as_diffusers_adds_it():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn((2, 5, 4, 3, 3), generator=generator)
    times = torch.tensor([0, 1, 500, 998, 999])
    wanted = DDIMScheduler(**DIFFUSERS).add_noise(clean, noise, times)  # pyright: ignore
    assert largest(add_noise(clean, noise, times), wanted) < 1e-6
