"""How much noise at which time (spec megascenes 4.5), and which times a sampler visits (spec 7, 14)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

TIMES = 1000
"""Times of the diffusion; 0 is almost clean, 999 almost noise."""
DIFFUSERS: dict[str, Any] = {
    "num_train_timesteps": TIMES,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The same schedule in the words of diffusers' schedulers."""


@cache
def _betas() -> Float64[np.ndarray, "1000"]:
    return np.linspace(0.00085**0.5, 0.012**0.5, TIMES, dtype=np.float64) ** 2


@cache
def _alphas_cumprod() -> Float64[np.ndarray, "1000"]:
    return np.cumprod(1 - _betas())


def betas() -> Float[Tensor, "1000"]:
    """Noise variance that each time adds (spec 4.5: linear in the square root)."""
    return torch.from_numpy(_betas()).float()


def alphas_cumprod() -> Float[Tensor, "1000"]:
    """Share of the picture's variance that is left at each time (the bar-alpha of spec 4.5)."""
    return torch.from_numpy(_alphas_cumprod()).float()


def add_noise(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], times: Int64[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Noisy latents at given times.

    Args:
        clean: latents, scaled by `sizes.SCALE`.
        noise: standard normal.
        times: in [0, 1000), one per sample.
    """
    kept = alphas_cumprod().to(clean.device)[times].reshape(-1, 1, 1, 1)
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def legacy_times(steps: int) -> list[int]:
    """Times that the original evaluates when asked for ``steps`` (spec 7, 14), descending.

    It spaces stamps by 1000 // steps and leaves the noisiest out: one less than asked for where that divides 1000.

    Raises:
        ValueError: no steps, or none left.
    """
    if not 2 <= steps <= TIMES:
        raise ValueError(f"{steps} steps: the original's sampler takes 2 to {TIMES}")
    return [time + 1 for time in range(0, TIMES, TIMES // steps)][:-1][::-1]


def spaced_times(steps: int) -> list[int]:
    """As many evenly spaced times as asked for, descending (diffusers' leading spacing with an offset of 1).

    Raises:
        ValueError: ``steps`` is not in 1 to 999.
    """
    if not 1 <= steps < TIMES:
        raise ValueError(f"{steps} steps: at least 1 and less than {TIMES}")
    return [time * (TIMES // steps) + 1 for time in range(steps)][::-1]


def schedule_buffers() -> dict[str, Float[Tensor, "1000"]]:
    """The twelve tables that checkpoints of the original carry; the importer compares them."""
    beta, kept = _betas(), _alphas_cumprod()
    before = np.append(1.0, kept[:-1])
    variance = beta * (1 - before) / (1 - kept)
    tables = {
        "betas": beta,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - beta) / (1 - kept),
    }
    return {name: torch.from_numpy(table).float() for name, table in tables.items()}
