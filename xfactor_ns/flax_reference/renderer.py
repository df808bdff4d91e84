"""Render in Flax (spec xfactor 3.5)."""

from __future__ import annotations

from typing import Any, Optional

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from xfactor_ns.flax_reference.blocks import MLP2, MLP3, MVLayer, gelu, patchify, rotary, unpatchify
from xfactor_ns.size import Size


class Render(nn.Module):
    """Context frames and latents (the target's last) to the target frame, in (-1, 1)."""

    size: Size
    attention_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B V-1 H W 3"],
        poses: Float[Array, "B V Dp"] | Float[Array, "B V 2 Dp"],
        mask: Optional[Int[Array, "B T"]] = None,
    ) -> Float[Array, "B H W 3"]:
        s = self.size
        batch, _, height, width, _ = x.shape
        rows, cols = height // s.patch, width // s.patch
        groups = jnp.zeros((batch, rows * cols), int) if mask is None else mask
        poses = poses if poses.ndim == 4 else jnp.stack([poses, poses], 2)
        of_tokens = jnp.where(groups[:, None, :, None] == 0, poses[:, :, 0, None], poses[:, :, 1, None])
        context = jnp.concatenate([patchify(x, s.patch), of_tokens[:, :-1]], -1)
        context = MLP2(4 * s.width, s.width)(context)
        target = MLP2(4 * s.width, s.width)(of_tokens[:, -1:])
        z = jnp.concatenate([context, target], 1)
        cos, sin = rotary(rows, cols, s.head)
        layer = nn.remat(MVLayer) if self.remat else MVLayer
        for i in range(s.blocks):
            z = layer(s.heads, s.layer_scale, self.attention_dtype, name=f"layers_{i}")(z, groups, cos, sin)
        pixels = MLP3(4 * s.width, s.width, s.pixels)(gelu(nn.LayerNorm()(z[:, -1])))
        return unpatchify(2 * (jax.nn.sigmoid(pixels) - 0.5), rows, cols, s.patch)
