"""The block against loops in float64 over views, tokens and heads (spec xfactor 3.1, 3.2)."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import SMALL, random_network
from torch import Tensor

from xfactor_ns.attention import Dense, Mlp, dense_kernels, rotary_table, rotate, unturned
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size


def literal_turn(x: Tensor, row: int, col: int) -> Tensor:
    """One token of one head: x cos + rot(x) sin, angle by angle."""
    d, out = len(x), x.clone()
    for pair in range(d // 2):
        position, i = (row, pair) if pair < d // 4 else (col, pair - d // 4)
        angle = position * 10000.0 ** (-i / (d / 4))
        a, b = x[2 * pair], x[2 * pair + 1]
        out[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def test_rotary_positions_turn_pairs_by_row_and_column():
    rows, cols, d = 3, 5, 8
    table = rotary_table(rows, cols, d)
    x = torch.randn(2, 1, rows * cols, 2, 3, d, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, table[None])
    for token in range(rows * cols):
        wanted = literal_turn(x[1, 0, token, 1, 2].double(), *divmod(token, cols))
        torch.testing.assert_close(turned[1, 0, token, 1, 2].double(), wanted, rtol=0, atol=2e-6)
    assert (rotate(x[:, :, :2], unturned(table[None, :0], 2)) == x[:, :, :2]).all()


def test_the_compilers_rotation_is_the_same(monkeypatch):
    x = torch.randn(2, 2, 6, 4, 3, 8, generator=torch.Generator().manual_seed(0))
    table = rotary_table(2, 3, 8)[None]
    plain = rotate(x, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, table), plain, rtol=0, atol=1e-6)


def literal_block(block, z: Tensor, rows: int, cols: int) -> Tensor:
    """One item, views x tokens x channels, in float64: heads and tokens one by one."""
    weight = {name: value.detach().double() for name, value in block.state_dict().items()}
    views, count, width = z.shape
    heads, d = weight["q_norm.weight"].shape
    flat = z.reshape(-1, width)

    def norm(x, gain, bias):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain + bias

    made = norm(flat, weight["norm_attn.weight"], 0) @ weight["qkv.weight"].T
    parts = dict(zip(("q", "k", "v", "q_self", "k_self", "v_self"), made.split(width, -1), strict=True))
    for name in ("q", "k", "q_self", "k_self"):
        x = parts[name].view(-1, heads, d)
        x = weight[f"{name}_norm.weight"] * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        for i in range(len(flat)):
            for h in range(heads):
                x[i, h] = literal_turn(x[i, h], *divmod(i % count, cols))
        parts[name] = x
    both = torch.zeros(len(flat), 2, heads, d, dtype=torch.float64)
    for i in range(len(flat)):
        for h in range(heads):
            for kind, (q, k, v) in enumerate((("q", "k", "v"), ("q_self", "k_self", "v_self"))):
                seen = [j for j in range(len(flat)) if kind == 0 or j // count == i // count]
                score = torch.stack([parts[q][i, h] @ parts[k][j, h] for j in seen]) / d**0.5
                value = torch.stack([parts[v].view(-1, heads, d)[j, h] for j in seen])
                both[i, kind, h] = score.softmax(0) @ value
    out = both.flatten(1) @ weight["proj.weight"].T + weight["proj.bias"]
    flat = flat + weight["scale_attn"] * out

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))

    hidden = gelu(norm(flat, weight["norm_mlp.weight"], weight["norm_mlp.bias"]))
    hidden = gelu(hidden @ weight["mlp.fc0.weight"].T + weight["mlp.fc0.bias"])
    out = hidden @ weight["mlp.fc1.weight"].T + weight["mlp.fc1.bias"]
    return (flat + weight["scale_mlp"] * out).view(views, count, width)


def test_the_block_is_its_formula():
    block = random_network().renderer.blocks[1]
    z = torch.randn(1, 2, 6, SMALL.width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        made = block(z, rotary_table(2, 3, SMALL.head)[None])
    torch.testing.assert_close(made[0].double(), literal_block(block, z[0].double(), 2, 3), rtol=0, atol=5e-6)


def test_what_is_kept_does_not_change():
    block = random_network().renderer.blocks[0]
    z = torch.randn(2, 3, 6, SMALL.width, generator=torch.Generator().manual_seed(3))
    table = rotary_table(2, 3, SMALL.head)[None]
    with torch.no_grad():
        whole = block(z, table)
        for keep in ((slice(-1, None), slice(None)), (slice(None), slice(2, 3)), (slice(0, 2), slice(1, 6, 4))):
            torch.testing.assert_close(block(z, table, keep), whole[:, keep[0], keep[1]], rtol=0, atol=1e-6)


def test_fresh_weights_have_their_spreads_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    size = Size(width=128, heads=4, blocks=1, patch=8, pose=32, registers=16)
    first, again, other = (XFactorNet(size, seed=seed) for seed in (3, 3, 4))
    assert (torch.get_rng_state() == before).all()
    kernels = {id(kernel) for kernel in dense_kernels(first)}
    for (name, value), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert (value == same).all()
        if id(value) in kernels:
            limit = math.sqrt(6 / sum(value.shape))
            assert value.abs().max() <= limit
            assert value.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
            assert (value != different).any()
        elif name == "pose_encoder.registers":
            assert value.std().item() == pytest.approx(0.02, rel=0.1)
        elif "scale_" in name:
            assert (value == 0.01).all()
        elif "norm" in name:
            assert (value == float(name.endswith("weight"))).all()
        else:
            assert name.endswith("bias")
            assert 0 < value.abs().max() < 1e-5
    assert not torch.equal(first.pose_encoder.blocks[0].qkv.weight, first.renderer.blocks[0].qkv.weight)


def test_weight_decay_acts_on_dense_kernels_alone():
    """75 leaves of the released size (spec xfactor 4.5)."""
    with torch.device("meta"):
        net = XFactorNet(Size())
    assert len(dense_kernels(net)) == 75
    assert sum(kernel.numel() for kernel in dense_kernels(net)) == 304_873_472


def test_an_mlp_has_gelu_between_its_layers():
    mlp = Mlp(3, 4, 5, 2)
    for layer in mlp.modules():
        if isinstance(layer, Dense):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    x = torch.randn(7, 3)
    parts = [mlp.get_submodule(f"fc{i}") for i in range(3)]
    wanted = parts[2](torch.nn.GELU("tanh")(parts[1](torch.nn.GELU("tanh")(parts[0](x)))))
    torch.testing.assert_close(mlp(x), wanted, rtol=0, atol=0)
