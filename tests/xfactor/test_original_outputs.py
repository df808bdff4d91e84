"""Outputs of the original's own networks (shared fixtures): by the torch networks and by the Flax reference.

Every array of both folders (check 2). Float32 attention is the reference: latents within 2e-5, pictures within 1e-5;
against the original's bfloat16 attention 2e-2 and 5e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu

from xfactor_ns.attention import rotary_table
from xfactor_ns.checkpoint_import import load_weights
from xfactor_ns.network import XFactorNet
from xfactor_ns.packing import patchify
from xfactor_ns.size import Size

LATENT, FRAME, ROUGH_LATENT, ROUGH_FRAME = 2e-5, 1e-5, 2e-2, 5e-3
SIDES = ("torch", "flax")
FOLDERS = ("stereo_monocular", "multiview")


class Networks(Protocol):
    """Either side, on torch tensors."""

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def draw(self, x: Tensor, poses: Tensor, mask: Tensor | None = None) -> Tensor: ...


class TorchSide:
    def __init__(self, size: Size, state: dict[str, Tensor], rounded: bool = False) -> None:
        self.net = XFactorNet(size).eval()
        self.net.load_state_dict(state)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.net.pose_encoder(x, mask)

    def draw(self, x: Tensor, poses: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.net.renderer(x, poses, mask)


class FlaxSide:
    def __init__(self, size: Size, state: dict[str, Tensor], rounded: bool = False) -> None:
        from xfactor_ns.flax_reference.parameters import from_torch

        self.params = from_torch(state)
        self._encode, self._draw = compiled(size, rounded)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return padded(self._encode, {"params": self.params["PoseEnc"]}, x, mask)

    def draw(self, x: Tensor, poses: Tensor, mask: Tensor | None = None) -> Tensor:
        return padded(self._draw, {"params": self.params["Render"]}, x, poses, mask)


@cache
def compiled(size: Size, rounded: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both Flax networks; compiled in a hurry, since each runs only a few times."""
    import jax
    import jax.numpy as jnp

    from xfactor_ns.flax_reference.pose_encoder import PoseEnc
    from xfactor_ns.flax_reference.renderer import Render

    dtype, quickly = jnp.bfloat16 if rounded else jnp.float32, {"xla_backend_optimization_level": 0}
    encode = jax.jit(PoseEnc(size, dtype).apply, compiler_options=quickly)
    return encode, jax.jit(Render(size, dtype).apply, compiler_options=quickly)


def padded(function: Callable[..., Any], weights: Any, *arguments: Tensor | None) -> Tensor:
    """Call with ten samples, so that fewer shapes have to be compiled."""
    count = next(len(value) for value in arguments if value is not None)
    of_ten = torch.arange(10) % count
    return torch.from_numpy(
        np.array(function(weights, *(None if value is None else value[of_ten].numpy() for value in arguments)))
    )[:count]


MAKE = {"torch": TorchSide, "flax": FlaxSide}


@pytest.fixture(scope="module")
def originals(shared_fixtures) -> dict[str, tuple[Size, dict[str, Tensor], dict[str, Tensor]]]:
    """Size, weights and recorded arrays of each folder; pictures as the networks take them."""
    found = {}
    for name in FOLDERS:
        folder = shared_fixtures / "xfactor" / name
        with np.load(folder / "io.npz", allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        ready = {key: value.float() / 127.5 - 1 if key.endswith("_u8") else value for key, value in arrays.items()}
        found[name] = (*load_weights(folder), ready)
    return found


class Checked:
    """The recorded arrays, each to be compared once."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.left = dict(arrays)

    def take(self, name: str) -> Tensor:
        """An input."""
        return self.left[name]

    def close(self, name: str, made: Float[Tensor, "..."], bound: float) -> None:
        """Compare an output, and cross it off."""
        wanted = self.left.pop(name)
        assert made.shape == wanted.shape, name
        assert (made - wanted).abs().max().item() <= bound, name

    def done(self, *inputs: str) -> None:
        """Nothing but the inputs may be left."""
        assert sorted(self.left) == sorted(inputs)


def swapped(latents: Tensor, ones: Tensor) -> Tensor:
    """Copy for unmasked samples, then exchange the groups (spec 4.2)."""
    first, second = latents.unbind(2)
    second = torch.where((ones == 0)[:, None, None], first, second)
    return torch.stack([second, first], 2)


def pairwise(side: Networks, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Latents of all views of each sample, pair by pair with view 0."""
    batch, views = x.shape[:2]
    pairs = torch.stack([x[:, :1].expand(-1, views - 1, -1, -1, -1), x[:, 1:]], 2).flatten(0, 1)
    made = side.encode(pairs, None if mask is None else mask.repeat_interleave(views - 1, 0))[:, 1]
    made = made.unflatten(0, (batch, views - 1))
    return torch.cat([torch.zeros_like(made[:, :1]), made], 1)


@pytest.mark.parametrize("which", SIDES)
def test_stereo_outputs(originals, which):
    size, state, arrays = originals["stereo_monocular"]
    side, it = MAKE[which](size, state), Checked(arrays)
    x, real, train = it.take("x_pair_u8"), it.take("x_real_u8"), it.take("x_train_u8")
    mask, ones = it.take("train_pmask"), it.take("train_qc")
    latents = side.encode(x)
    it.close("render", side.draw(x[:, :1], it.take("pose_Z")), FRAME)
    it.close("transfer_render", side.draw(x[1:, :1], it.take("pose_Z")[:1]), FRAME)
    it.close("real_render", side.draw(real[:, :1], it.take("real_pose_Z")), FRAME)
    it.close("real_pose_Z", side.encode(real), LATENT)
    it.close("train_render", side.draw(train[:, :1], it.take("train_P_swapped"), mask), FRAME)
    masked = side.encode(train, mask)
    it.close("train_P", masked, LATENT)
    it.close("train_P_swapped", swapped(masked, ones), LATENT)
    it.close("pose_Z", latents, LATENT)
    for name, made in (("pose_Z", latents), ("train_P", masked)):
        it.close(f"bf16attn_{name}", made, ROUGH_LATENT)
    it.close("bf16attn_render_first", side.draw(x[:1, :1], arrays["pose_Z"][:1]), ROUGH_FRAME)
    it.done("x_pair_u8", "x_real_u8", "x_train_u8", "train_pmask", "train_qc", "pose_probe")


@pytest.mark.parametrize("which", SIDES)
def test_multi_view_outputs(originals, which):
    size, state, arrays = originals["multiview"]
    side, it = MAKE[which](size, state), Checked(arrays)
    x, many, mask = it.take("x_pair_u8"), it.take("x_multi_u8"), it.take("train_pmask")[:2]
    it.close("multi_render", side.draw(many[:, :5], it.take("multi_Z")), FRAME)
    context = torch.cat([it.take("multi_Z")[:1, :3], it.take("multi_Z")[:1, 5:]], 1)
    it.close("multi_render_3ctx", side.draw(many[:1, :3], context), FRAME)
    it.close("multi_Z", pairwise(side, many), LATENT)
    it.close("pose_Z", side.encode(x), LATENT)
    it.close("real_pose_Z", side.encode(it.take("x_real_u8")), LATENT)
    it.close("pose_Z_3views_joint", side.encode(many[:, :3]), LATENT)
    it.close("multi_train_render", side.draw(many[:, :5], it.take("multi_train_P_swapped"), mask), FRAME)
    it.close("multi_train_P_swapped", swapped(pairwise(side, many, mask), it.take("train_qc")[:2]), LATENT)
    it.close("bf16attn_pose_Z", side.encode(x), ROUGH_LATENT)
    it.close("bf16attn_multi_Z", pairwise(side, many), ROUGH_LATENT)
    it.close("bf16attn_multi_render_first", side.draw(many[:1, :5], arrays["multi_Z"][:1]), ROUGH_FRAME)
    it.close("bf16attn_render_first", side.draw(x[:1, :1], arrays["pose_Z"][:1]), ROUGH_FRAME)
    it.done("x_pair_u8", "x_real_u8", "x_multi_u8", "train_pmask", "train_qc", "pose_probe")


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokens_in_front_of_the_head(originals, folder):
    """The original's second output: the reference's token beside that of each view."""
    size, state, arrays = originals[folder]
    encoder = TorchSide(size, state).net.pose_encoder
    x = arrays["x_pair_u8"]
    table = rotary_table(x.shape[2] // size.patch, x.shape[3] // size.patch, size.head)[None]
    with torch.no_grad():
        z = gelu(encoder.norm(encoder.first_registers(patchify(x, size.patch), table)), approximate="tanh")
    Checked(arrays).close("pose_probe", torch.cat([z[:, :1].expand_as(z), z], -1), 1e-5)


@pytest.mark.parametrize("folder", FOLDERS)
def test_rounded_attention_of_the_reference_is_the_originals(originals, folder):
    """With its attention inputs rounded as the original rounds them, the Flax side agrees better than either float32
    side does."""
    size, state, arrays = originals[folder]
    x = arrays["x_pair_u8"]
    wanted = arrays["bf16attn_pose_Z"]
    rounded = (FlaxSide(size, state, rounded=True).encode(x) - wanted).abs().max()
    plain = (FlaxSide(size, state).encode(x) - wanted).abs().max()
    assert rounded < plain
    assert rounded <= 5e-3
