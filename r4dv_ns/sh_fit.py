"""Spherical harmonics that look like a point's colour from everywhere: ridge regression over viewpoints (r4dv 5.3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from r4dv_ns import harmonics

RIDGE = 0.05


def fit_sh(
    colours: Float[Tensor, "d n 3"],
    weights: Float[Tensor, "d n"],
    directions: Float[Tensor, "d n 3"],
    degree: int,
    ridge: float = RIDGE,
) -> Float[Tensor, "n k 3"]:
    """Harmonics of n points from colours seen along d directions each.

    ``(Y^T W Y + ridge tr(Y^T W Y) / K diag(0, 1, ..., 1))^-1 Y^T W c`` (spec r4dv 5.3): what is not seen is taken to
    look like the mean of what is. The scale of the weights does not matter. A point without any weight gets all
    directions alike.

    Args:
        colours: of each point from each viewpoint, with whatever offset the harmonics shall not hold taken off.
        weights: how far each colour counts, not negative.
        directions: unit vectors from the camera to the point, world.
        degree: 0 to 3.
        ridge: pull of the view-dependent terms towards zero, above 0.

    Raises:
        ValueError: shapes that do not fit, no direction, degree or ridge out of range.
    """
    count, points = weights.shape
    k = harmonics.terms(degree)
    if not count or colours.shape != (count, points, 3) or directions.shape != (count, points, 3):
        raise ValueError(
            f"colours {list(colours.shape)}, weights {list(weights.shape)}, directions do not fit together"
        )
    if not ridge > 0:
        raise ValueError(f"the ridge must be above 0, not {ridge}")
    total = weights.sum(dim=0)
    share = torch.where(total > 0, weights / total.clamp_min(1e-30), 1.0 / count).t()
    basis = harmonics.basis(directions, degree).transpose(0, 1)
    weighted = (basis * share[..., None]).transpose(1, 2)
    # Orthonormal harmonics of unit vectors: sum_k Y_k^2 = K / 4 pi, so with weights that add up to 1 tr = K / 4 pi.
    penalty = torch.full((k,), ridge * k / (4 * torch.pi) / k, dtype=basis.dtype, device=basis.device)
    penalty[0] = 0.0
    matrix = weighted @ basis + torch.diag(penalty)
    return torch.linalg.solve(matrix, weighted @ colours.transpose(0, 1))
