"""Schedules against the closed form, and checkpoints that open without unpickling numpy."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
import textwrap

import pytest
import torch

from core_ns.schedules import (
    CosineSchedulerConfig,
    ExponentialSchedulerConfig,
    allow_numpy_scalars,
    cosine_factor,
)


def _train(config: CosineSchedulerConfig | ExponentialSchedulerConfig, steps: int, lr: float = 1e-2):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=lr)
    scheduler = config.setup().get_scheduler(optimizer, lr)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler, rates


def test_rates_follow_the_closed_form():
    _, _, rates = _train(CosineSchedulerConfig(max_steps=40, final_ratio=1 / 30), 60)
    for step, rate in enumerate(rates):
        angle = math.pi * min(step, 40) / 40
        assert rate == pytest.approx(1e-2 * (1 / 30 + (29 / 30) * (0.5 + 0.5 * math.cos(angle))), rel=1e-12)
    assert rates[0] == pytest.approx(1e-2)
    assert rates[40] == rates[59] == pytest.approx(1e-2 / 30)


def test_exponential_rates_are_a_geometric_sequence_that_ends_at_the_ratio():
    _, scheduler, rates = _train(ExponentialSchedulerConfig(max_steps=20, final_ratio=0.1), 30, lr=1.0)
    quotients = [b / a for a, b in itertools.pairwise(rates[:21])]
    assert quotients == pytest.approx([0.1 ** (1 / 20)] * 20)
    assert rates[20] == rates[29] == pytest.approx(0.1)
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "max_steps"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 5, "final_ratio": 0.0}, "final_ratio"),
        ({"max_steps": 5, "final_ratio": 1.5}, "final_ratio"),
    ],
)
def test_impossible_exponential_schedules_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        _train(ExponentialSchedulerConfig(**options), 1)


def test_warm_up_starts_at_its_ratio_rises_in_a_line_and_meets_the_cosine():
    config = CosineSchedulerConfig(max_steps=50, warmup_steps=10, warmup_ratio=0.2)
    _, _, rates = _train(config, 52, lr=1.0)
    assert rates[0] == pytest.approx(0.2)
    differences = [b - a for a, b in itertools.pairwise(rates[:11])]
    assert differences == pytest.approx([0.08] * 10)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.5 * (1 + 1 / 30))  # half way down


def test_start_step_shifts_the_schedule_and_holds_it_still_before():
    warm_up = {"warmup_steps": 5, "warmup_ratio": 0.1}
    shifted = [cosine_factor(step, max_steps=130, start_step=100, **warm_up) for step in range(140)]
    plain = [cosine_factor(step, max_steps=30, **warm_up) for step in range(40)]
    assert shifted[:100] == [0.1] * 100
    assert shifted[100:] == pytest.approx(plain)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_steps": 10, "warmup_steps": 10}, "nothing is left"),
        ({"max_steps": 10, "start_step": 12}, "nothing is left"),
        ({"max_steps": 10, "warmup_steps": -1}, "negative"),
        ({"max_steps": 10, "final_ratio": 1.5}, r"\[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused_before_training(options, text):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=text):
        CosineSchedulerConfig(**options).setup().get_scheduler(optimizer, 1.0)


def test_checkpoint_opens_with_weights_only_and_resumes_the_same_rates():
    config = CosineSchedulerConfig(max_steps=20, warmup_steps=3)
    _, _, uninterrupted = _train(config, 20)
    optimizer, scheduler, _ = _train(config, 8)
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(type(rate) is float for rate in state["scheduler"]["_last_lr"])

    resumed, resumed_scheduler, _ = _train(config, 0)
    resumed.load_state_dict(state["optimizer"])
    resumed_scheduler.load_state_dict(state["scheduler"])
    rates = []
    for _ in range(8, 20):
        rates.append(resumed.param_groups[0]["lr"])
        resumed.step()
        resumed_scheduler.step()
    assert rates == uninterrupted[8:]


def test_the_config_survives_the_yaml_of_a_run():
    import yaml

    config = CosineSchedulerConfig(max_steps=7, start_step=2)
    assert yaml.unsafe_load(yaml.dump(config)) == config  # nerfstudio's own round trip of config.yml


STOCK_CHECKPOINT = """
import io, sys
import numpy as np, torch
from nerfstudio.engine.schedulers import CosineDecaySchedulerConfig, ExponentialDecaySchedulerConfig

def checkpoint(config, steps):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=1e-2)
    scheduler = config.setup().get_scheduler(optimizer, 1e-2)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, buffer)
    return buffer.getvalue(), optimizer.param_groups[0]["lr"]

stock = [
    checkpoint(ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=100), 5),
    checkpoint(ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=100, warmup_steps=10), 5),
    checkpoint(CosineDecaySchedulerConfig(warm_up_end=3, max_steps=100), 5),
]
plain = io.BytesIO()
torch.save([np.dtype(code).type(1) for code in "?bhilqBHILQefd"], plain)
"""


def _run(script: str) -> None:
    """In a fresh process: the safe list is global, so this process cannot tell 'before' from 'after'."""
    code = STOCK_CHECKPOINT + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_stock_checkpoints_fail_before_the_helper_and_load_after_it():
    _run(
        """
        import pickle
        for data, _ in stock:
            try:
                torch.load(io.BytesIO(data), weights_only=True)
            except pickle.UnpicklingError as error:
                assert "scalar" in str(error), error
            else:
                raise SystemExit("a stock checkpoint loaded without the helper: the helper has become pointless")
        from core_ns.schedules import allow_numpy_scalars
        load = torch.load
        allow_numpy_scalars()
        assert torch.load is load
        for data, rate in stock:
            state = torch.load(io.BytesIO(data), weights_only=True)
            assert float(state["scheduler"]["_last_lr"][0]) == float(rate)
            assert state["optimizer"]["param_groups"][0]["lr"] == rate
        numbers = torch.load(io.BytesIO(plain.getvalue()), weights_only=True)
        assert [float(number) for number in numbers] == [1.0] * 14
        # Objects inside a numpy scalar stay locked out.
        bad = io.BytesIO()
        torch.save(np.array([print], dtype=object), bad)
        try:
            torch.load(io.BytesIO(bad.getvalue()), weights_only=True)
        except pickle.UnpicklingError:
            pass
        else:
            raise SystemExit("an object array was let through")
        """
    )


def test_the_helper_adds_nothing_the_second_time():
    allow_numpy_scalars()
    before = list(torch.serialization.get_safe_globals())
    allow_numpy_scalars()
    assert list(torch.serialization.get_safe_globals()) == before
