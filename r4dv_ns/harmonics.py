"""Real spherical harmonics of degrees 0 to 3 with the order and signs of 3D Gaussian splatting (spec r4dv 4.5)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MAX_DEGREE = 3


def terms(degree: int) -> int:
    """Number of basis functions up to ``degree``: ``(degree + 1)^2``.

    Raises:
        ValueError: degree outside 0 to 3.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"spherical harmonics of degree 0 to {MAX_DEGREE} are available, not {degree}")
    return (degree + 1) ** 2


def _norm(numerator: float, denominator: float) -> float:
    return math.sqrt(numerator / (denominator * math.pi))


def basis(directions: Float[Tensor, "*n 3"], degree: int = MAX_DEGREE) -> Float[Tensor, "*n k"]:
    """Orthonormal real harmonics at index ``l (l + 1) + m``, with the Condon-Shortley sign (degree 1 is -y, z, -x).

    Args:
        directions: unit vectors, world axes.
        degree: highest degree, 0 to 3.

    Raises:
        ValueError: degree outside 0 to 3.
    """
    x, y, z = directions.unbind(-1)
    return torch.stack(_functions(x, y, z, degree), dim=-1)


def basis_rows(directions: Float[Tensor, "3 n"], degree: int = MAX_DEGREE) -> Float[Tensor, "k n"]:
    """`basis` with the axes first, which is faster for many directions."""
    x, y, z = directions
    return torch.stack(_functions(x, y, z, degree))


def _functions(x: Tensor, y: Tensor, z: Tensor, degree: int) -> list[Tensor]:
    count = terms(degree)
    xx, yy, zz = x * x, y * y, z * z
    out = [torch.full_like(x, _norm(1, 4))]
    if degree > 0:
        c = _norm(3, 4)
        out += [-c * y, c * z, -c * x]
    if degree > 1:
        c = _norm(15, 4)
        out += [c * x * y, -c * y * z, _norm(5, 16) * (2 * zz - xx - yy), -c * x * z, 0.5 * c * (xx - yy)]
    if degree > 2:
        a, b, c = _norm(35, 32), _norm(105, 4), _norm(21, 32)
        out += [
            -a * y * (3 * xx - yy),
            b * x * y * z,
            -c * y * (4 * zz - xx - yy),
            _norm(7, 16) * z * (2 * zz - 3 * xx - 3 * yy),
            -c * x * (4 * zz - xx - yy),
            0.5 * b * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]
    assert len(out) == count
    return out


def evaluate(coefficients: Float[Tensor, "*n c k"], directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n c"]:
    """``sum_k s_k Y_k(d)`` per channel, before any limit.

    Args:
        coefficients: k = 1, 4, 9 or 16 per channel.
        directions: unit vectors, world axes, from the camera to the point.

    Raises:
        ValueError: another number of coefficients.
    """
    degree = math.isqrt(coefficients.shape[-1]) - 1
    if (degree + 1) ** 2 != coefficients.shape[-1]:
        raise ValueError(f"expected 1, 4, 9 or 16 coefficients per channel, got {coefficients.shape[-1]}")
    return torch.einsum("...ck,...k->...c", coefficients, basis(directions, degree))
