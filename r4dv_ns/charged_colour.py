"""Colour of stored points from a camera: blended photos plus harmonics, axes first (4K4D eq. 3; spec r4dv 5.2).

The slow twin is `r4dv_ns.harmonics.evaluate` on points last; here no tensor has a short last dimension.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from r4dv_ns.harmonics import basis_rows

CHUNK = 1 << 16
"""Points at a time on a CPU, so that the harmonics of a chunk stay in a core's cache."""


def harmonic_colour(
    xyz: Float[Tensor, "3 n"], coefficients: Float[Tensor, "3 k n"], centre: Float[Tensor, "3"]
) -> Float[Tensor, "3 n"]:
    """``sum_k s_k Y_k(d)`` with d the unit direction from the camera's centre to the point, world; no limit yet."""
    degree = math.isqrt(coefficients.shape[1]) - 1
    out = torch.empty_like(xyz)
    step = CHUNK if xyz.device.type == "cpu" else max(xyz.shape[1], 1)
    for start in range(0, xyz.shape[1], step):
        part = slice(start, start + step)
        directions = xyz[:, part] - centre[:, None]
        directions.mul_(directions.square().sum(dim=0).clamp_min_(1e-24).rsqrt_())
        basis = basis_rows(directions, degree)
        total, weights = out[:, part], coefficients[..., part].to(xyz.dtype)
        torch.mul(weights[:, 0], basis[0], out=total)
        for k in range(1, len(basis)):
            total.addcmul_(weights[:, k], basis[k])
    return out


def shaded(
    xyz: Float[Tensor, "3 n"],
    coefficients: Float[Tensor, "3 k n"],
    base: Float[Tensor, "3 n"] | None,
    centre: Float[Tensor, "3"],
    limit: float,
    *,
    show_base: bool = True,
    show_residual: bool = True,
) -> Float[Tensor, "3 n"]:
    """Colours in [0, 1]; see `r4dv_ns.charge_store.ChargedFrame` for both formulas.

    Args:
        base: blended photos; None: the harmonics are the whole colour.
        centre: of the camera, world.
        limit: largest view-dependent change.
        show_base, show_residual: the viewer's switches.
    """
    if base is None:
        return harmonic_colour(xyz, coefficients, centre).add_(0.5).clamp_(0, 1)
    if not show_residual:
        return (base if show_base else torch.zeros_like(base)).clamp(0, 1)
    residual = harmonic_colour(xyz, coefficients, centre).tanh_().mul_(limit)
    return (residual.add_(base) if show_base else residual).clamp_(0, 1)
