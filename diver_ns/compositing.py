"""From densities and colours of ray segments to pixels: front-to-back blending on packed segments (spec diver 3.5).

Packed: all segments of all rays in one list, ordered by ray, then by distance; ``ray`` says whose each one is. Opacity
does not depend on a segment's length (spec diver 1); a caller who wants it to can scale the raw density by the length,
for a relu commutes with a positive factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

OPAQUE = 64.0
"""Densities are cut here: exp(-64) is 1e-28, so no colour and no gradient changes, but an unbounded density cannot
spoil the running sums of the rays behind it in the list."""


class Composite(NamedTuple):
    """Pixels, one row per ray."""

    rgb: Float[Tensor, "r 3"]
    """Over the background; the background itself where nothing is hit."""
    accumulation: Float[Tensor, "r"]
    """Sum of the weights, in [0, 1]."""
    depth: Float[Tensor, "r"]
    """Sum of weight times distance, in the unit of ``t``; not divided by the accumulation."""
    weights: Float[Tensor, "s"]
    """Blending weights of the segments."""


def composite(
    raw_sigma: Float[Tensor, "s"],
    rgb: Float[Tensor, "s 3"],
    t: Float[Tensor, "s"],
    ray: Int64[Tensor, "s"],
    rays: int,
    background: Float[Tensor, "3"],
) -> Composite:
    """Blend segments front to back: ``C = sum w c + (1 - sum w) background`` (spec diver 3.5).

    Differentiable in everything but ``ray``. Works without any segment. Sums are taken in float64, so that the result
    does not depend on how rays are grouped into batches.

    Args:
        raw_sigma: density per voxel crossing before the relu.
        rgb: colours in [0, 1].
        t: distances along the rays, any unit.
        ray: ray of each segment, sorted.
        rays: number of rays, those without segments included.
        background: colour behind everything.
    """
    weights = _weights(raw_sigma, ray, rays)
    parts = torch.cat([weights[:, None] * rgb, weights[:, None], (weights * t)[:, None]], dim=1)
    sums = parts.new_zeros(rays, 5).index_add(0, ray, parts)
    pixels = sums[:, :3] + (1.0 - sums[:, 3:4]) * background
    dtype = rgb.dtype
    return Composite(pixels.to(dtype), sums[:, 3].to(dtype), sums[:, 4].to(dtype), weights.to(raw_sigma.dtype))


def blending_weights(raw_sigma: Float[Tensor, "s"], ray: Int64[Tensor, "s"], rays: int) -> Float[Tensor, "s"]:
    """``w_i = T_i alpha_i``: ``alpha_i = 1 - exp(-relu(sigma_i))``, ``T_i`` the light left by the segments before.

    The alpha map of the pruning steps is the largest of these per voxel (spec diver 2). Arguments as in `composite`.
    """
    return _weights(raw_sigma, ray, rays).to(raw_sigma.dtype)


def sparsity(raw_sigma: Float[Tensor, "s"], ray: Int64[Tensor, "s"], rays: int) -> Float[Tensor, ""]:
    """Mean of ``log(1 + 2 sigma^2)`` over the matrix of rays times the most segments of any ray (spec diver 3.5).

    The density is the raw one, before the relu; empty slots count as zero. Zero without segments. Not yet multiplied by
    the loss weight. Arguments as in `composite`.
    """
    total = torch.log1p(2.0 * raw_sigma**2).sum()
    if rays == 0:
        return total
    most = ray_offsets(ray, rays).diff().max()
    return total / (rays * most.clamp_min(1))


def ray_offsets(ray: Int64[Tensor, "s"], rays: int) -> Int64[Tensor, "r1"]:
    """Where each ray's segments begin in the list; one more entry, the number of segments, ends it.

    Args:
        ray: ray of each segment, sorted.
        rays: number of rays.
    """
    return torch.searchsorted(ray, torch.arange(rays + 1, device=ray.device))


def _weights(raw_sigma: Float[Tensor, "s"], ray: Int64[Tensor, "s"], rays: int) -> Float[Tensor, "s"]:
    """`blending_weights` in float64: the running sum goes over all rays, and float32 would lose the last ones."""
    density = torch.relu(raw_sigma.double()).clamp_max(OPAQUE)
    before = density.cumsum(0) - density
    before = before - before[ray_offsets(ray, rays)[ray]]
    return torch.exp(-before) * -torch.expm1(-density)


def mean_distance(weighted: Float[Tensor, "*rays"], opacity: Float[Tensor, "*rays"]) -> Float[Tensor, "*rays"]:
    """Distance of what a ray shows, as nerfstudio's ``depth`` means it: the original's sum of weight times distance
    (spec diver 3.5), divided by the opacity, so that a half covered edge pixel does not seem half as far."""
    return torch.where(opacity > 1e-6, weighted / opacity.clamp_min(1e-6), 0.0)
