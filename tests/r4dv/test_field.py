"""Radius and opacity: the original's numbers, limits, start at the spacing."""

from __future__ import annotations

import math

import pytest
import torch

from r4dv_ns.field import GeometryHead, relu_mlp


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_upstream_constants_start_at_1_09_mm_and_993_thousandths():
    head = GeometryHead(32, radius_init="upstream")
    assert head.initialise(0.4) == head.start_radius == pytest.approx(1.0937e-3, rel=1e-3)
    radius, alpha = head((torch.rand(2000, 32) * 2 - 1) * 0.1)
    assert radius.mean().item() == pytest.approx(1.09e-3, rel=0.05)
    assert alpha.mean().item() == pytest.approx(0.993, abs=0.002)


@pytest.mark.parametrize("spacing", [0.002, 0.005, 0.0075, 0.05, 3.0])
def test_points_start_as_large_as_their_spacing(spacing):
    head = GeometryHead(32)
    assert head.initialise(spacing) == pytest.approx(spacing, rel=1e-4)
    radius, _ = head((torch.rand(2000, 32) * 2 - 1) * 0.1)
    assert radius.mean().item() == pytest.approx(spacing, rel=0.15)
    assert float(head.limits[1]) >= 0.999 * max(0.015, 4 * spacing)


def test_fixed_limits_clip_the_start():
    head = GeometryHead(8, radius_min=0.01, radius_max=0.1)
    assert head.initialise(1e-9) == pytest.approx(0.012, rel=1e-4)
    assert head.initialise(5.0) == pytest.approx(0.05, rel=1e-4)
    assert GeometryHead(8, radius_min=0.01, radius_max=0.011).initialise(1.0) < 0.011


def test_outputs_stay_inside_the_limits_and_finite():
    head = GeometryHead(8, scale=10.0)
    low, high = head.limits.tolist()
    assert (low, high) == pytest.approx((0.01, 0.15))
    radius, alpha = head(torch.randn(500, 8) * 1e4)
    assert low <= radius.min().item()
    assert radius.max().item() <= high * (1 + 1e-6)
    assert bool(((alpha >= 0) & (alpha <= 1)).all())


def test_a_checkpoint_renders_the_same_without_initialisation():
    trained, fresh = GeometryHead(8), GeometryHead(8)
    trained.initialise(0.02)
    fresh.load_state_dict(trained.state_dict())
    f = torch.randn(10, 8)
    assert all(torch.equal(a, b) for a, b in zip(trained(f), fresh(f), strict=True))


def test_formula_and_gradient():
    head, f = GeometryHead(4).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    low, high = head.limits.tolist()
    raw = head.mlp(f)[0].tolist()
    radius, alpha = head(f)
    assert radius[0].item() == pytest.approx(low + (high - low) / (1 + math.exp(5 - raw[0])))
    assert alpha[0].item() == pytest.approx(1 / (1 + math.exp(-5 - raw[1])))
    assert torch.autograd.gradcheck(head, (f,))


def test_layers_of_the_original():
    shapes = [tuple(parameter.shape) for parameter in relu_mlp(32, 64, 2).parameters()]
    assert shapes == [(64, 32), (64,), (64, 64), (64,), (2, 64), (2,)]
    biases = torch.cat([list(relu_mlp(4, 4, 64).parameters())[-1].detach() for _ in range(50)])
    assert float(biases.std()) == pytest.approx(1e-4, rel=0.1)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="radius_init"):
        GeometryHead(8, radius_init="big")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="limits"):
        GeometryHead(8, radius_min=0.1, radius_max=0.05)
