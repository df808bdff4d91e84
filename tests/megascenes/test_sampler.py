"""Samplers: the original's runs, an independent twin, exact solutions, determinism (acceptance 1, 2, 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from original_networks import HAVE, DDIMScheduler, arrays, imported, largest, small

from megascenes_ns.autoencoder import decode_raw
from megascenes_ns.conditioning import Conditioning, condition
from megascenes_ns.networks import Encoded
from megascenes_ns.noise_schedule import DIFFUSERS, alphas_cumprod, legacy_times
from megascenes_ns.sampler import (
    Cancelled,
    DdimSolver,
    guided_noise,
    limited_noise,
    make_solver,
    sample,
    view_generators,
)

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
SAMPLERS: Any = ["legacy", "ddim", "dpm", "unipc"]


@needs_fixtures
@pytest.mark.parametrize(("variant", "steps"), [("warp_plus_pose", 20), ("warp_plus_pose", 15), ("zeronvs", 10)])
def test_the_legacy_sampler_draws_what_the_original_draws(variant, steps):
    io, nets = arrays(variant), imported(variant).networks
    given = Conditioning(io["c_crossattn"], io["c_concat"], torch.zeros_like(io["c_crossattn"]))
    noises = io[f"ddim{steps}_noise"]
    found = sample(nets, given, steps, "legacy", 3.0, "legacy", start=io[f"ddim{steps}_x_T"], step_noise=list(noises))
    assert largest(found, io[f"ddim{steps}_latent"]) < 5e-4  # the fixtures' tolerance; acceptance asks for 1e-3
    if f"ddim{steps}_image_first" in io:
        assert largest(decode_raw(nets.vae, found[:1]), io[f"ddim{steps}_image_first"]) < 2e-3


def reference_ddim(predict: Callable, start: np.ndarray, times: list[int], noises: list[np.ndarray]) -> np.ndarray:
    """DDIM with eta 1 in float64, written from the paper alone (Song et al. 2021, equations 12 and 16)."""
    betas = [((0.00085**0.5) + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
    kept = np.cumprod([1 - beta for beta in betas])
    noisy = start.astype(np.float64)
    for index, time in enumerate(times):
        now = kept[time]
        then = kept[times[index + 1]] if index + 1 < len(times) else kept[0]
        noise = predict(noisy, time)
        sigma = np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
        clean = (noisy - np.sqrt(1 - now) * noise) / np.sqrt(now)
        noisy = np.sqrt(then) * clean + np.sqrt(1 - then - sigma**2) * noise + sigma * noises[index]
    return noisy


def example(in_channels: int = 11, count: int = 3) -> Conditioning:
    """Random conditioning of the small networks."""
    generator = torch.Generator().manual_seed(1)
    encoded = Encoded(torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 24, generator=generator))
    pose, warp = torch.randn(count, 19, generator=generator), torch.rand(count, 8, 8, 3, generator=generator)
    return condition(small(in_channels), encoded, pose, warp)


@torch.no_grad()
def test_the_legacy_preset_of_50_steps_is_a_reference_sampler():
    """Acceptance 2: 49 evaluations from 961 to 1, eta 1, with injected noise."""
    nets, given = small(), example(count=1)
    generator = torch.Generator().manual_seed(2)
    start, noises = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(49, 1, 4, 8, 8, generator=generator)
    visited = []

    def predict(noisy: np.ndarray, time: int) -> np.ndarray:
        visited.append(time)
        value = torch.from_numpy(noisy).float()
        full, empty = (
            nets.predict_noise(value, torch.tensor([time]), context, concat).double()
            for context, concat in ((given.context, given.concat), given.unconditional("legacy"))
        )
        return (empty + 3 * (full - empty)).numpy()

    wanted = reference_ddim(predict, start.numpy(), list(range(961, 0, -20)), [each.numpy() for each in noises])
    found = sample(nets, given, 50, "legacy", 3.0, "legacy", start=start, step_noise=list(noises))
    assert visited == legacy_times(50)
    assert len(visited) == 49
    assert largest(found, torch.from_numpy(wanted)) < 1e-4 * max(1.0, float(np.abs(wanted).max()))


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("legacy", 1.0)])
@pytest.mark.parametrize("steps", [10, 15])
def test_our_ddim_steps_are_diffusers_steps(sampler, eta, steps):
    scheduler: Any = DDIMScheduler(
        **DIFFUSERS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    noises = iter(torch.randn(steps, 2, 4, 3, 3, generator=generator))
    drawn: list[torch.Tensor] = []

    def fresh() -> torch.Tensor:
        drawn.append(next(noises))
        return drawn[-1]

    solver: Any = make_solver(sampler, steps, fresh)
    mine = theirs = torch.randn(2, 4, 3, 3, generator=generator)
    for index, time in enumerate(solver.times):
        predicted = torch.randn(2, 4, 3, 3, generator=generator)
        mine = solver.step(index, predicted, mine)
        noise = drawn[-1] if eta else None
        theirs = scheduler.step(predicted, time, theirs, eta=eta, variance_noise=noise, return_dict=False)[0]
        assert largest(mine, theirs) < 1e-5 * max(1.0, float(theirs.abs().max()))
    assert len(drawn) == (len(solver.times) if eta else 0)


class Gaussian:
    """A network for latents that are normally distributed: the best noise estimate is known, and so is every path."""

    mean, spread = 0.7, 0.4

    def predict_noise(self, noisy, times, context, concat):
        kept = alphas_cumprod().double()[times].reshape(-1, 1, 1, 1)
        variance = kept * self.spread**2 + 1 - kept
        return ((1 - kept).sqrt() * (noisy - kept.sqrt() * self.mean) / variance).float()

    def end(self, start: torch.Tensor, first: int) -> torch.Tensor:
        """Where the path that starts at a time ends without noise: as many deviations from the mean."""
        kept = alphas_cumprod().double()[first]
        deviations = (start - kept.sqrt() * self.mean) / (kept * self.spread**2 + 1 - kept).sqrt()
        return self.mean + self.spread * deviations


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm", 2), ("unipc", 2)])
def test_solvers_converge_to_the_exact_path(sampler, order):
    nets: Any = Gaussian()
    given = Conditioning(torch.zeros(2, 1, 4), torch.zeros(2, 4, 6, 6), torch.zeros(2, 1, 4))
    start = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4))
    errors = []
    for steps in (10, 40, 160):
        found = sample(nets, given, steps, sampler, 1.0, start=start)
        first = make_solver(sampler, steps, lambda: start).times[0]
        errors.append(largest(found, nets.end(start, first)))
    if order == 2:
        assert errors[1] < 0.02
        assert errors[1] < errors[0] / 2
        assert errors[2] < 0.02
    else:  # the last time keeps the original's floor: DDIM ends at time 0, not without noise
        assert errors[1] < errors[0]
        assert errors[2] < 0.03


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_one_picture_whatever_the_batch(sampler):
    """Acceptance 10, of the sampler."""
    nets, given = small(), example()
    seeds = [5, 6, 7]
    together = sample(nets, given, 4, sampler, generators=view_generators(seeds))
    again = sample(nets, given, 4, sampler, generators=view_generators(seeds))
    assert torch.equal(together, again)
    alone = sample(nets, given[1:2], 4, sampler, generators=view_generators([6]))
    assert largest(alone[0], together[1]) < 1e-4 * max(1.0, float(together.abs().max()) / 10)
    other = sample(nets, given[1:2], 4, sampler, generators=view_generators([8]))
    assert largest(other[0], together[1]) > 0.1


def test_equal_seeds_share_their_noise():
    given = example()
    same = Conditioning(*(value[:1].expand(2, *value.shape[1:]) for value in vars(given).values()))
    found = sample(small(), same, 4, "legacy", generators=view_generators([3, 3]))
    assert largest(found[0], found[1]) < 1e-4


def test_guidance_weighs_the_two_halves():
    nets, given = small(), example()
    noisy = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, empty, guided = (guided_noise(nets, noisy, 400, given, weight, "legacy") for weight in (1, 0, 3))
        consistent = guided_noise(nets, noisy, 400, given, 3, "consistent")
    assert largest(guided, empty + 3 * (full - empty)) < 1e-4
    assert largest(guided, consistent) > 1e-4


def test_guidance_can_be_kept_to_the_middle():
    nets, given = small(), example(count=1)
    sizes = []

    class Counting:
        def predict_noise(self, noisy, times, context, concat):
            sizes.append((int(times[0]), len(noisy)))
            return nets.predict_noise(noisy, times, context, concat)

    counting: Any = Counting()
    sample(counting, given, 10, "ddim", generators=view_generators([0]), guidance_interval=(200, 700))
    assert dict(sizes) == {time: 2 if 200 <= time < 700 else 1 for time in range(901, 0, -100)}


def test_drawing_stops_between_two_steps_when_cancelled():
    """Acceptance 12, of the sampler: within one step."""
    seen: list[tuple[int, int]] = []
    with pytest.raises(Cancelled):
        sample(
            small(), example(), 10, "unipc", generators=view_generators([0, 1, 2]), cancel=lambda: len(seen) == 2,
            on_step=lambda step, count: seen.append((step, count)),
        )  # fmt: skip
    assert seen == [(1, 10), (2, 10)]


def test_impossible_requests_are_refused():
    nets, given = small(), example()
    with pytest.raises(ValueError, match="2 generators for 3 views"):
        sample(nets, given, 4, generators=view_generators([0, 1]))
    with pytest.raises(ValueError, match="one generator per view"):
        sample(nets, given, 4)
    with pytest.raises(ValueError, match="one generator per view"):
        sample(nets, given, 4, "legacy", start=torch.zeros(3, 4, 8, 8))
    with pytest.raises(ValueError, match="called euler"):
        sample(nets, given, 4, "euler", generators=view_generators([0, 1, 2]))  # pyright: ignore
    for sampler in SAMPLERS:
        with pytest.raises(ValueError, match="steps"):
            sample(nets, given, 0, sampler, generators=view_generators([0, 1, 2]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 12])
def test_every_sampler_ends_with_finite_latents(sampler, steps):
    found = sample(small(), example(count=1), steps, sampler, generators=view_generators([1]))
    assert found.shape == (1, 4, 8, 8)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_one_step_of_the_modern_samplers_is_enough_to_end():
    for sampler in ("ddim", "dpm", "unipc"):
        assert bool(sample(small(), example(count=1), 1, sampler, generators=view_generators([1])).isfinite().all())


@pytest.mark.parametrize("sampler", ["dpm", "unipc"])
def test_times_that_repeat_confuse_no_solver(sampler):
    nets: Any = Gaussian()
    given = Conditioning(torch.zeros(1, 1, 4), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 4))
    start = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(4))
    found = sample(nets, given, 600, sampler, 1.0, start=start)
    assert largest(found, nets.end(start, 999)) < 0.02


def test_the_last_kept_share_is_that_of_time_0():
    """Acceptance 2."""
    solver = DdimSolver([1], 0.0, lambda: torch.zeros(()))
    start = torch.full((1, 4, 1, 1), 0.3)
    kept = alphas_cumprod().double()
    clean = (start.double() - (1 - kept[1]).sqrt() * 0.5) / kept[1].sqrt()
    wanted = kept[0].sqrt() * clean + (1 - kept[0]).sqrt() * 0.5
    assert largest(solver.step(0, torch.full_like(start, 0.5), start), wanted) < 1e-6


def test_noise_estimates_keep_within_the_latents_limits():
    clean = torch.tensor([[[[-3.0, -0.5, 0.2, 4.0]]]])
    noise, time = torch.tensor([[[[0.3, -1.0, 0.8, 0.1]]]]), 700
    kept = float(alphas_cumprod()[time])
    noisy = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
    found = limited_noise(noise, noisy, time, 1.0)
    torch.testing.assert_close(found[..., 1:3], noise[..., 1:3])
    back = (noisy - (1 - kept) ** 0.5 * found) / kept**0.5
    torch.testing.assert_close(back, clean.clamp(-1, 1), atol=1e-5, rtol=0)
