"""A14: the basis is orthonormal by quadrature and equals the original's, signs and order included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r4dv_ns.harmonics import basis, evaluate, terms


def sphere_quadrature(order: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials of degree 2 order - 1 over the sphere exactly."""
    heights, height_weights = np.polynomial.legendre.leggauss(order)
    angles = 2 * np.pi * np.arange(2 * order) / (2 * order)
    height, angle = (grid.reshape(-1) for grid in np.meshgrid(heights, angles, indexing="ij"))
    ring = np.sqrt(1 - height**2)
    weights = np.repeat(height_weights, 2 * order) * np.pi / order
    return torch.tensor(np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)), torch.tensor(weights)


def test_the_basis_is_orthonormal():
    directions, weights = sphere_quadrature()
    assert float(weights.sum()) == pytest.approx(4 * np.pi)
    values = basis(directions, 3)
    gram = values.T @ (values * weights[:, None])
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_basis_and_values_equal_the_original(shared_fixtures, degree):
    with np.load(shared_fixtures / "r4dv" / "sh.npz", allow_pickle=False) as stored:
        directions = torch.from_numpy(stored["dirs"])
        expected = {name: torch.from_numpy(stored[f"{name}_deg{degree}"]) for name in ("basis", "coeffs", "value")}
    torch.testing.assert_close(basis(directions, degree), expected["basis"], atol=1e-12, rtol=0)
    torch.testing.assert_close(evaluate(expected["coeffs"], directions), expected["value"], atol=1e-12, rtol=0)


def test_lower_degrees_are_the_first_terms():
    directions = torch.nn.functional.normalize(torch.randn(5, 7, 3, dtype=torch.float64), dim=-1)
    everything = basis(directions)
    assert everything.shape == (5, 7, 16)
    for degree in range(4):
        assert torch.equal(basis(directions, degree), everything[..., : terms(degree)])


def test_signs_of_degree_one():
    axes = torch.eye(3, dtype=torch.float64)
    c = np.sqrt(3 / (4 * np.pi))
    torch.testing.assert_close(basis(axes, 1)[:, 1:], torch.tensor([[0, 0, -c], [-c, 0, 0], [0, c, 0]]))


def test_gradients():
    directions = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=-1).requires_grad_()
    coefficients = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(evaluate, (coefficients, directions))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="degree 0 to 3"):
        basis(torch.zeros(1, 3), 4)
    with pytest.raises(ValueError, match="got 5"):
        evaluate(torch.zeros(1, 3, 5), torch.zeros(1, 3))
