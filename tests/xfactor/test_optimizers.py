"""Weight decay, clipping and schedule against optax and the published numbers (acceptance 11, 12)."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    import nerfstudio.engine.optimizers  # noqa: F401

    from xfactor_ns.optimizers import DecayingAdamWConfig, tag_decay

from core_ns.schedules import CosineSchedulerConfig
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size

PUBLISHED = CosineSchedulerConfig(max_steps=100_000, warmup_steps=4_000, warmup_ratio=1e-12 / 4e-4, final_ratio=0.25)


def test_exactly_the_dense_kernels_of_the_full_model_decay():
    """Acceptance 12: 75 leaves, 304,873,472 numbers of 305,178,624."""
    with torch.device("meta"):
        net = XFactorNet(Size())
    kernels = tag_decay(net)
    assert len(kernels) == 75
    assert sum(kernel.numel() for kernel in kernels) == 304_873_472
    decaying, others = DecayingAdamWConfig().setup(net.parameters()).param_groups
    assert decaying["weight_decay"] == 5e-3
    assert others["weight_decay"] == 0.0
    assert sum(p.numel() for p in decaying["params"]) == 304_873_472
    assert sum(p.numel() for p in others["params"]) == 305_178_624 - 304_873_472
    names = {id(value): name for name, value in net.named_parameters()}
    for value in others["params"]:
        name = names[id(value)]
        assert name.endswith(".bias") or "norm" in name or "scale" in name or "registers" in name, name


def test_learning_rates_are_the_published_ones():
    """Acceptance 12: at updates 0, 2,000, 4,000, 52,000 and 100,000."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = DecayingAdamWConfig().setup([parameter])
    scheduler = PUBLISHED.setup().get_scheduler(optimizer, 4e-4)
    rates = {}
    factor = scheduler.lr_lambdas[0]
    for update in (0, 2_000, 4_000, 52_000, 100_000, 120_000):
        rates[update] = 4e-4 * factor(update)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-12, rel=1e-9), "of the first update"
    assert rates == pytest.approx({0: 1e-12, 2_000: 2e-4, 4_000: 4e-4, 52_000: 2.5e-4, 100_000: 1e-4, 120_000: 1e-4})


def test_twenty_updates_are_optaxs_with_accumulation_clipping_and_schedule():
    """Acceptance 11, second half: AdamW with a decay mask inside optax.MultiSteps, k = 4."""
    optax = pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp

    k, updates, lr = 4, 20, 4e-2
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4))
    tag_decay(module)
    start = {name: value.detach().numpy().copy() for name, value in module.named_parameters()}
    rng = np.random.default_rng(0)

    def gradient_like(value: np.ndarray) -> np.ndarray:
        return (rng.normal(size=value.shape) * 10.0 ** rng.uniform(-2, 1)).astype(np.float32)

    gradients = [{name: gradient_like(value) for name, value in start.items()} for _ in range(k * updates)]

    optimizer = DecayingAdamWConfig(lr=lr).setup(module.parameters())
    ours = CosineSchedulerConfig(max_steps=updates, warmup_steps=5, warmup_ratio=1e-12 / lr, final_ratio=0.25)
    scheduler = ours.setup().get_scheduler(optimizer, lr)
    for update in range(updates):
        optimizer.zero_grad()
        for micro in range(k):
            for name, value in module.named_parameters():
                part = torch.from_numpy(gradients[update * k + micro][name]) / k
                value.grad = part if value.grad is None else value.grad + part
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()

    schedule = optax.join_schedules(
        [optax.linear_schedule(1e-12, lr, 5), optax.cosine_decay_schedule(lr, updates - 5, alpha=0.25)], [5]
    )
    decays = {name: name == "0.weight" for name in start}
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=5e-3, mask=decays),
    )
    multi = optax.MultiSteps(chain, every_k_schedule=k)
    params = {name: jnp.asarray(value) for name, value in start.items()}
    state = multi.init(params)

    @jax.jit
    def update(gradient, state, params):
        change, state = multi.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    for gradient in gradients:
        params, state = update(gradient, state, params)
    ours = {name: value.detach().numpy() for name, value in module.named_parameters()}
    largest = max(float(np.abs(np.asarray(params[name]) - value).max()) for name, value in ours.items())
    print(f"torch against optax after {updates} updates: {largest:.1e}")
    assert largest <= 1e-6


def test_marks_are_set_on_the_parameters_that_train_and_groups_may_be_empty():
    module = torch.nn.Linear(2, 2)
    tag_decay(module)
    assert len(DecayingAdamWConfig().setup([module.weight]).param_groups) == 1
    twin = copy.deepcopy(module)
    tag_decay(twin)
    groups = DecayingAdamWConfig(weight_decay=0.5).setup(twin.parameters()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert groups[0]["params"][0] is twin.weight
