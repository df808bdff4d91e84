"""Torch networks and Flax reference are one function: outputs, gradients, weights (spec xfactor 12, check 1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict
from small_networks import CHECK, SMALL, latents, pictures, quadrants, random_network
from torch import Tensor

from xfactor_ns.checkpoint_import import expected_shapes
from xfactor_ns.flax_reference.parameters import from_torch, init, to_torch
from xfactor_ns.flax_reference.pose_encoder import PoseEnc
from xfactor_ns.flax_reference.renderer import Render
from xfactor_ns.flax_reference.training import optimizer, train_step
from xfactor_ns.network import XFactorNet
from xfactor_ns.parameter_names import flax_names
from xfactor_ns.size import Size

QUICKLY = {"xla_backend_optimization_level": 0}
"""Each function runs once: less work for the compiler."""


def arrays(*values: Tensor | None) -> list[Any]:
    return [None if value is None else jnp.array(value.numpy()) for value in values]


def both(part: str, net: XFactorNet, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs of either side."""
    modules = {"PoseEnc": (net.pose_encoder, PoseEnc), "Render": (net.renderer, Render)}
    ours, theirs = modules[part]
    with torch.no_grad():
        made = ours(*inputs)
    run = jax.jit(theirs(net.size).apply, compiler_options=QUICKLY)
    wanted = run({"params": from_torch(net.state_dict())[part]}, *arrays(*inputs))
    return made, torch.from_numpy(np.array(wanted))


@pytest.mark.parametrize("masked", [False, True])
def test_latents_agree(masked):
    mask = quadrants(8, 8)[[1, 5, 6]] if masked else None
    made, wanted = both("PoseEnc", random_network(CHECK), pictures(3, 2, 128), mask)
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() <= 1e-5
    assert wanted.abs().max() > 0.1


@pytest.mark.parametrize(("views", "masked"), [(2, False), (2, True), (6, False)])
def test_frames_agree(views, masked):
    mask = quadrants(8, 8)[[1, 6]] if masked else None
    inputs = pictures(2, views - 1, 128), latents(2, views, CHECK), mask
    made, wanted = both("Render", random_network(CHECK), *inputs)
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() <= 1e-5
    assert wanted.std() > 0.02


def transfer_loss(net: XFactorNet, x: Tensor, mask: Tensor) -> Tensor:
    """Of spec 4.2, on torch's side."""
    first, second = net.pose_encoder(x, mask).unbind(2)
    second = torch.where((mask == 0).all(1)[:, None, None], first, second)
    return (net.renderer(x[:, :1], torch.stack([second, first], 2), mask) - x[:, 1]).abs().mean()


def test_gradients_agree():
    """Of the whole objective, masked and unmasked samples, every weight: 1e-4 of its largest entry."""
    net, x, mask = random_network(SMALL), pictures(7, 2, 16), quadrants(4, 4)
    transfer_loss(net, x, mask).backward()
    params = from_torch(net.state_dict())
    keep = optax.trace(0.0)  # an optimiser whose state is the gradient
    _, state, value = train_step(SMALL, keep, options=QUICKLY)(params, keep.init(params), *arrays(x, mask))
    gradient = state.trace
    assert float(value) == pytest.approx(transfer_loss(net, x, mask).item(), abs=1e-6)
    wanted = to_torch(gradient)
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        scale = wanted[name].abs().max()
        if name == "pose_encoder.head.fc2.bias":
            assert scale <= 1e-6
            assert (weight.grad == 0).all()
        else:
            assert scale > 0, name
            assert (weight.grad - wanted[name]).abs().max() <= 1e-4 * scale, name


def test_weights_go_there_and_back():
    state = random_network().state_dict()
    back = to_torch(from_torch(state))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_tree_is_the_originals():
    """Check 3, by `jax.eval_shape` at the released size: 283 leaves, 305,178,624 parameters, the table's shapes."""
    key, x, poses = jax.random.key(0), jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros((1, 2, 256))
    tree = {
        "PoseEnc": jax.eval_shape(PoseEnc(Size()).init, key, x)["params"],
        "Render": jax.eval_shape(Render(Size()).init, key, x[:, :1], poses)["params"],
    }
    flat = {"/".join(path): value.shape for path, value in flatten_dict(tree).items()}
    assert len(flat) == 283
    assert sum(int(np.prod(shape)) for shape in flat.values()) == 305_178_624
    wanted = expected_shapes(Size())
    names = flax_names(8)
    assert set(names) == set(wanted)
    assert set(names.values()) == set(flat)
    for ours, theirs in names.items():
        assert flat[theirs] == (wanted[ours][::-1] if theirs.endswith("/kernel") else wanted[ours]), theirs
    assert flat["Render/layers_7/Dense_0/kernel"] == (1024, 6144)
    assert flat["PoseEnc/PoseHead_0/MLP3_0/Dense_2/kernel"] == (1024, 256)


def test_fresh_weights_have_the_same_spreads_on_both_sides():
    size = Size(width=64, heads=2, blocks=1, patch=4, pose=16, registers=16)
    ours, theirs = XFactorNet(size).state_dict(), to_torch(init(size))
    for name, value in ours.items():
        if value.numel() >= 500:
            assert theirs[name].std().item() == pytest.approx(value.std().item(), rel=0.1), name
        assert theirs[name].abs().max().item() == pytest.approx(value.abs().max().item(), rel=0.5), name


def test_the_optimiser_of_the_benchmark_decays_kernels_alone():
    """Clipped to norm 1, then AdamW: with a zero gradient, only kernels shrink, by rate times decay (spec 4.5)."""
    params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    rule = optimizer(peak=1.0, warm_up=1, steps=3)
    state = rule.init(params)
    for rate in (0.0, 1.0):  # the first update uses the schedule's first value, 1e-12
        change, state = rule.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(change["Dense_0"]["kernel"], -rate * 5e-3, atol=1e-9)
        assert (change["Dense_0"]["bias"] == 0).all()
