"""The running mean of weights against its formula in float64 (spec megascenes 4.5)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from megascenes_ns.ema import WeightMean, mean_weight


def test_the_mean_follows_its_formula():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    mean = WeightMean(0.9, unet=layer)
    expected = layer.weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        mean.update(step, unet=layer)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * layer.weight.detach().double()
    torch.testing.assert_close(mean.unet.weight.double(), expected, atol=1e-5, rtol=0)
    assert not any(each.requires_grad for each in mean.parameters())
    assert not mean.train().unet.training


def test_it_moves_with_the_weights_and_catches_up():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    mean = WeightMean(0.5, part=layer)
    nn.init.ones_(layer.weight)
    for step in range(60):
        mean.update(step, part=layer)
    assert float(mean.part.weight) == pytest.approx(1.0, abs=1e-6)


def test_a_loaded_mean_goes_on_as_if_nothing_had_happened():
    torch.manual_seed(1)
    layer = nn.Linear(4, 4)
    through = WeightMean(0.99, unet=layer)
    for step in range(3):
        through.update(step, unet=layer)
    loaded = WeightMean(0.99, unet=copy.deepcopy(layer))
    loaded.load_state_dict(through.state_dict())
    with torch.no_grad():
        layer.weight.mul_(2)
    for mean in (through, loaded):
        mean.update(3, unet=layer)
    assert torch.equal(through.unet.weight, loaded.unet.weight)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightMean(decay, unet=nn.Linear(1, 1))


def test_early_steps_keep_less():
    assert mean_weight(0.9999, 0) == 0.1
    assert mean_weight(0.9999, 10**7) == 0.9999
