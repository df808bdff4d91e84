"""AdamW as torch's own, and the warm-up's numbers (spec megascenes 6)."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import NOISE
from torch.nn import Parameter

from megascenes_ns.optimizers import AdamWOptimizerConfig, WarmupSchedulerConfig, warmup_factor

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


def test_the_warm_up_is_linear_then_flat():
    assert warmup_factor(0, 100, 1e-6) == 1e-6
    assert warmup_factor(50, 100, 1e-6) == pytest.approx(0.5, abs=1e-6)
    assert [warmup_factor(step, 100, 1e-6) for step in (100, 101, 10**6)] == [1.0, 1.0, 1.0]
    assert warmup_factor(0, 0, 0.5) == 1.0


def test_the_optimiser_is_adamw_with_the_originals_numbers():
    optimiser = AdamWOptimizerConfig().setup([Parameter(torch.ones(2))])
    assert type(optimiser) is torch.optim.AdamW
    group = optimiser.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.01)


def test_states_are_plain_numbers_that_load_strictly(tmp_path):
    weight = Parameter(torch.ones(2))
    optimiser = AdamWOptimizerConfig(lr=1e-2).setup([weight])
    scheduler = WarmupSchedulerConfig(warmup_steps=4).setup().get_scheduler(optimiser, 1e-2)
    rates = []
    for _ in range(6):
        weight.sum().backward()
        optimiser.step()
        scheduler.step()
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[3:] == [1e-2] * 3
    assert all(type(rate) is float for rate in rates)
    torch.save({"o": optimiser.state_dict(), "s": scheduler.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["s"]["last_epoch"] == 6


@pytest.mark.parametrize("options", [{"warmup_steps": -1}, {"first_ratio": 1.5}])
def test_impossible_warm_ups_are_refused(options):
    optimiser = AdamWOptimizerConfig().setup([Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="warmup_steps"):
        WarmupSchedulerConfig(**options).setup().get_scheduler(optimiser, 1e-3)
