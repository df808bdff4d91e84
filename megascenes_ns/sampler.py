"""From noise to latents: the original's stochastic DDIM, and modern solvers (spec megascenes 4.4, 7, 14).

Every view has its own random generator, so that a view does not depend on the batch it is drawn in. Drawing stops
between two steps when it is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Optional, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from core_ns.errors import need
from megascenes_ns.conditioning import Conditioning, Uncond
from megascenes_ns.networks import Networks
from megascenes_ns.noise_schedule import DIFFUSERS, TIMES, alphas_cumprod, legacy_times, spaced_times
from megascenes_ns.sizes import LATENT
from megascenes_ns.unet import INSTALL

Sampler = Literal["legacy", "ddim", "dpm", "unipc"]
Noise = Float[Tensor, "b 4 h w"]


class Cancelled(Exception):
    """Drawing was cancelled between two steps; nothing of it is to be kept."""


class Solver(Protocol):
    """Steps of one drawing, from the noisiest time down."""

    times: list[int]
    """To evaluate the network at, descending."""

    def step(self, index: int, predicted: Noise, noisy: Noise) -> Noise:
        """Latents at the next time.

        Args:
            index: into ``times``.
            predicted: noise estimate.
            noisy: latents at this time.
        """
        ...


class DdimSolver:
    """Denoising diffusion implicit models (Song et al. 2021, equation 12).

    Below the last time the kept share of variance is that of time 0, not 1 (spec 11.2).
    """

    def __init__(self, times: Sequence[int], eta: float, fresh_noise: Callable[[], Noise]) -> None:
        """Set up.

        Args:
            times: descending.
            eta: 0: deterministic; 1: as much new noise as the diffusion itself.
            fresh_noise: standard normal, called once per step if ``eta`` is not 0.
        """
        self.times, self.eta, self.fresh_noise = list(times), eta, fresh_noise
        kept = alphas_cumprod().double()
        self._kept = [float(kept[time]) for time in self.times] + [float(kept[0])]

    def step(self, index: int, predicted: Noise, noisy: Noise) -> Noise:
        """See `Solver.step`."""
        now, then = self._kept[index], self._kept[index + 1]
        spread = self.eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        clean = (noisy - (1 - now) ** 0.5 * predicted) / now**0.5
        found = then**0.5 * clean + (1 - then - spread**2) ** 0.5 * predicted
        return found + spread * self.fresh_noise() if self.eta else found


class DiffusersSolver:
    """DPM-Solver++ (Lu et al. 2022) or UniPC (Zhao et al. 2023), of second order, from diffusers.

    Noise levels are spaced as by Karras et al. (2022, equation 5): even spacing in time takes the last step from so
    much noise that fine detail is lost (of a normal distribution with deviation 0.4, 12 % at 20 steps; 1 % with these).
    """

    def __init__(self, kind: Literal["dpm", "unipc"], steps: int) -> None:
        """Set up.

        Args:
            kind: which.
            steps: 1 to 999.

        Raises:
            MissingExtra: diffusers is not installed.
        """
        schedulers = need("diffusers", "These samplers", INSTALL)
        options: dict[str, Any] = {**DIFFUSERS, "solver_order": 2, "use_karras_sigmas": True}
        name = {"dpm": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}[kind]
        self._scheduler = getattr(schedulers, name)(**options)
        # diffusers hands this tensor to numpy.array, which numpy 2 deprecates.
        self._scheduler.alphas_cumprod = self._scheduler.alphas_cumprod.numpy()
        self._scheduler.set_timesteps(steps)
        self._scheduler.set_begin_index(0)  # else it looks its place up by a time, which may occur twice
        self.times = [int(time) for time in self._scheduler.timesteps]  # the lowest may repeat: levels between two

    def step(self, index: int, predicted: Noise, noisy: Noise) -> Noise:
        """See `Solver.step`."""
        return self._scheduler.step(predicted, self._scheduler.timesteps[index], noisy, return_dict=False)[0]


def view_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per view; equal seeds give views the same noise. On the processor, so that noise is the same on
    every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn_noise(generators: Sequence[torch.Generator], height: int, width: int) -> Noise:
    """Standard normal latents, one generator per view."""
    return torch.cat([torch.randn((1, LATENT, height, width), generator=each) for each in generators])


def make_solver(sampler: Sampler, steps: int, fresh_noise: Callable[[], Noise]) -> Solver:
    """The solver of a name.

    Args:
        sampler: ``legacy``: the original's DDIM with eta 1 and without its noisiest stamp; ``ddim``: eta 0, all stamps;
            ``dpm``, ``unipc``: second-order solvers.
        steps: asked for; ``legacy`` evaluates one less where it divides 1000.
        fresh_noise: for ``legacy``.

    Raises:
        ValueError: unknown name or impossible number of steps.
    """
    if sampler == "legacy":
        return DdimSolver(legacy_times(steps), 1.0, fresh_noise)
    if not 1 <= steps < TIMES:
        raise ValueError(f"{steps} steps: at least 1 and less than {TIMES}")
    if sampler == "ddim":
        return DdimSolver(spaced_times(steps), 0.0, fresh_noise)
    if sampler not in ("dpm", "unipc"):
        raise ValueError(f"no sampler is called {sampler}")
    return DiffusersSolver(sampler, steps)


def guided_noise(
    nets: Networks, noisy: Noise, time: int, conditioning: Conditioning, guidance: float, uncond: Uncond
) -> Noise:
    """Noise estimate with classifier-free guidance: e_u + g (e_c - e_u), both halves in one batch (spec 4.4).

    Args:
        nets: the networks.
        noisy: scaled latents at this time.
        time: in [0, 1000).
        conditioning: of the views.
        guidance: g; 1 needs one half only.
        uncond: see `Conditioning.unconditional`.
    """
    context, concat = conditioning.context, conditioning.concat
    times = torch.full((len(noisy),), time, dtype=torch.int64, device=noisy.device)
    if guidance == 1:
        return nets.predict_noise(noisy, times, context, concat).float()
    empty_context, empty_concat = conditioning.unconditional(uncond)
    both = nets.predict_noise(
        torch.cat([noisy, noisy]),
        torch.cat([times, times]),
        torch.cat([empty_context, context]),
        torch.cat([empty_concat, concat]),
    )
    empty, full = both.float().chunk(2)
    return empty + guidance * (full - empty)


def limited_noise(predicted: Noise, noisy: Noise, time: int, limit: float) -> Noise:
    """The noise estimate that goes with a clean latent within its known limits (Ho et al. 2020, ``clip_denoised``).

    Networks that were trained for minutes only err most where there is almost nothing but noise; without this the
    error stays in the picture, as a cast of colour.

    Args:
        predicted: noise estimate.
        noisy: scaled latents at this time.
        time: in [0, 1000).
        limit: largest absolute value of a clean latent.
    """
    kept = float(alphas_cumprod()[time])
    clean = ((noisy - (1 - kept) ** 0.5 * predicted) / kept**0.5).clamp(-limit, limit)
    return (noisy - kept**0.5 * clean) / (1 - kept) ** 0.5


@torch.no_grad()
def sample(
    nets: Networks,
    conditioning: Conditioning,
    steps: int = 20,
    sampler: Sampler = "unipc",
    guidance: float = 3.0,
    uncond: Uncond = "legacy",
    generators: Optional[Sequence[torch.Generator]] = None,
    cancel: Optional[Callable[[], bool]] = None,
    *,
    start: Optional[Noise] = None,
    step_noise: Optional[Sequence[Noise]] = None,
    on_step: Optional[Callable[[int, int], None]] = None,
    guidance_interval: tuple[int, int] = (0, TIMES),
    limit: float | None = None,
) -> Noise:
    """Draw latents of views (spec 7). Decode them with `Networks.decode`.

    Args:
        nets: the networks; their mode is left alone (there is no dropout in them).
        conditioning: of b views.
        steps, sampler: see `make_solver`.
        guidance: weight of classifier-free guidance; 1: none.
        uncond: what guidance starts from, see `Conditioning.unconditional`.
        generators: one per view, see `view_generators`; only ``start`` and ``step_noise`` together do without.
        cancel: asked before every step.
        start: first noise, instead of drawn.
        step_noise: noise of each step of ``legacy``, instead of drawn.
        on_step: called after every step with its number, from 1, and the number of all.
        limit: of clean latents, see `limited_noise`; None: not known.
        guidance_interval: guide at times in [low, high) only; elsewhere one half of the batch is saved.

    Returns:
        Scaled latents, float32, on the networks' device.

    Raises:
        Cancelled: ``cancel`` said so.
        ValueError: unknown names, impossible numbers, or as many generators as there are no views.
    """
    height, width = conditioning.concat.shape[2:]
    if generators is not None and len(generators) != len(conditioning):
        raise ValueError(f"{len(generators)} generators for {len(conditioning)} views")
    given = iter(step_noise) if step_noise is not None else None

    def fresh() -> Noise:
        if given is not None:
            return next(given).to(device)
        if generators is None:
            raise ValueError("drawing noise takes one generator per view")
        return drawn_noise(generators, height, width).to(device)

    device = conditioning.concat.device
    solver = make_solver(sampler, steps, fresh)
    if start is None:
        if generators is None:
            raise ValueError("drawing noise takes one generator per view")
        start = drawn_noise(generators, height, width)
    noisy = start.to(device, torch.float32)
    for index, time in enumerate(solver.times):
        if cancel is not None and cancel():
            raise Cancelled
        weight = guidance if guidance_interval[0] <= time < guidance_interval[1] else 1.0
        predicted = guided_noise(nets, noisy, time, conditioning, weight, uncond)
        if limit is not None:
            predicted = limited_noise(predicted, noisy, time, limit)
        noisy = solver.step(index, predicted, noisy)
        if on_step is not None:
            on_step(index + 1, len(solver.times))
    return noisy
