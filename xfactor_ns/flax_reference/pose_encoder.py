"""PoseEnc in Flax (spec xfactor 3.4)."""

from __future__ import annotations

from typing import Any, Optional

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from xfactor_ns.flax_reference.blocks import MLP3, MVLayer, dense, gelu, patchify, rotary
from xfactor_ns.size import Size


class PoseHead(nn.Module):
    """Latent of each view beside view 0, minus that of view 0 beside itself."""

    size: Size

    @nn.compact
    def __call__(self, z: Float[Array, "B V 2 C"]) -> Float[Array, "B V 2 Dp"]:
        mlp = MLP3(4 * self.size.width, self.size.width, self.size.pose)
        first = jnp.broadcast_to(z[:, :1], z.shape)
        return mlp(jnp.concatenate([z, first], -1)) - mlp(jnp.concatenate([first, first], -1))


class PoseEnc(nn.Module):
    """Frames in [-1, 1] to latents: [B V Dp], or with a mask [B V 2 Dp], one per group."""

    size: Size
    attention_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B V H W 3"], mask: Optional[Int[Array, "B T"]] = None) -> Any:
        s = self.size
        (batch, views, height, width, _), count = x.shape, s.registers
        patches = patchify(x, s.patch)
        groups = jnp.zeros((batch, patches.shape[2]), int) if mask is None else mask
        groups = jnp.concatenate([groups, jnp.tile(jnp.repeat(jnp.arange(2), count), (batch, 1))], 1)
        registers = self.param("global_embed", nn.initializers.normal(0.02), (count, s.width))
        registers = jnp.broadcast_to(registers, (batch, views, count, s.width))
        z = jnp.concatenate([dense(s.width)(patches), registers, registers], 2)
        cos, sin = rotary(height // s.patch, width // s.patch, s.head, 2 * count)
        layer = nn.remat(MVLayer) if self.remat else MVLayer
        for i in range(s.blocks):
            z = layer(s.heads, s.layer_scale, self.attention_dtype, name=f"layers_{i}")(z, groups, cos, sin)
        carriers = jnp.stack([z[:, :, -2 * count], z[:, :, -count]], 2)
        latents = PoseHead(s)(gelu(nn.LayerNorm()(carriers)))
        return latents[:, :, 0] if mask is None else latents
