"""Ridge regression of spherical harmonics against a loop over points (spec r4dv 5.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from r4dv_ns import harmonics
from r4dv_ns.sh_fit import RIDGE, fit_sh


def scattered(d: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colours, weights and unit directions, float64."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(d, n, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(d, n, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(d, n, 3, generator=generator, dtype=torch.float64), dim=-1)
    return colours, weights, directions


def slow_fit(colours, weights, directions, degree, ridge):
    """The normal equations of each point by themselves, the trace taken from the matrix."""
    k = (degree + 1) ** 2
    found = np.zeros((colours.shape[1], k, 3))
    for point in range(colours.shape[1]):
        basis = harmonics.basis(directions[:, point], degree).numpy()
        weight = np.diag((weights[:, point] / weights[:, point].sum()).numpy())
        normal = basis.T @ weight @ basis
        pull = ridge * np.trace(normal) / k * np.diag([0.0] + [1.0] * (k - 1))
        found[point] = np.linalg.inv(normal + pull) @ basis.T @ weight @ colours[:, point].numpy()
    return found


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_fit_is_the_normal_equations_of_each_point(degree):
    given = scattered(20, 7)
    found = fit_sh(*given, degree, RIDGE)
    np.testing.assert_allclose(found.numpy(), slow_fit(*given, degree, RIDGE), atol=1e-10)


def test_harmonics_that_were_there_are_found_again():
    colours, weights, directions = scattered(40, 5)
    truth = torch.randn(5, 9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    colours = torch.einsum("dnk,nkc->dnc", harmonics.basis(directions, 2), truth)
    np.testing.assert_allclose(fit_sh(colours, weights, directions, 2, 1e-12).numpy(), truth.numpy(), atol=1e-7)


def test_a_colour_that_does_not_change_stays_in_the_first_term():
    colours, weights, directions = scattered(6, 9)
    colours = colours[:1].expand(6, -1, -1)
    found = fit_sh(colours, weights, directions, 2)
    assert found[:, 1:].abs().max() < 1e-12, "six directions, nine terms: the ridge decides"
    np.testing.assert_allclose(found[:, 0].numpy() * math.sqrt(1 / (4 * math.pi)), colours[0].numpy(), atol=1e-12)


def test_only_the_ratio_of_the_weights_matters_and_none_at_all_means_all_alike():
    colours, weights, directions = scattered(12, 4)
    base = fit_sh(colours, weights, directions, 2)
    np.testing.assert_allclose(fit_sh(colours, 1e-6 * weights, directions, 2).numpy(), base.numpy(), atol=1e-10)
    none = weights.clone()
    none[:, 0] = 0
    found = fit_sh(colours, none, directions, 2)
    same = fit_sh(colours, torch.ones_like(weights), directions, 2)
    np.testing.assert_allclose(found[0].numpy(), same[0].numpy(), atol=1e-10)
    np.testing.assert_allclose(found[1:].numpy(), base[1:].numpy(), atol=1e-10)


def test_a_wrong_call_is_refused():
    colours, weights, directions = scattered(5, 3)
    with pytest.raises(ValueError, match="do not fit"):
        fit_sh(colours[:4], weights, directions, 2)
    with pytest.raises(ValueError, match="do not fit"):
        fit_sh(colours[:0], weights[:0], directions[:0], 2)
    with pytest.raises(ValueError, match="ridge"):
        fit_sh(colours, weights, directions, 2, 0.0)
    with pytest.raises(ValueError, match="degree"):
        fit_sh(colours, weights, directions, 4)
