"""Patches, rotary positions and the transformer layer in Flax (spec xfactor 3.1 to 3.3, 3.6)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

dense = partial(
    nn.Dense, kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal(1e-6), dtype=jnp.float32
)
gelu = partial(nn.gelu, approximate=True)


def patchify(x: Float[Array, "*n H W 3"], p: int) -> Float[Array, "*n T pixels"]:
    """Row-major patches; inside one: row, column, channel."""
    *n, height, width, _ = x.shape
    x = x.reshape(*n, height // p, p, width // p, p, 3)
    return jnp.swapaxes(x, -4, -3).reshape(*n, (height // p) * (width // p), p * p * 3)


def unpatchify(x: Float[Array, "n T pixels"], rows: int, cols: int, p: int) -> Float[Array, "n H W 3"]:
    """Inverse of `patchify`."""
    x = x.reshape(-1, rows, cols, p, p, 3)
    return jnp.swapaxes(x, -4, -3).reshape(-1, rows * p, cols * p, 3)


def rotary(rows: int, cols: int, d: int, registers: int = 0) -> tuple[Float[Array, "N d"], Float[Array, "N d"]]:
    """Cosine and sine for each token and channel; registers, at the end, are not turned."""
    frequency = 10000.0 ** (-jnp.arange(d // 4) / (d // 4))
    row, col = jnp.repeat(jnp.arange(rows), cols), jnp.tile(jnp.arange(cols), rows)
    angle = jnp.concatenate([row[:, None] * frequency, col[:, None] * frequency], -1)
    angle = jnp.pad(jnp.repeat(angle, 2, -1), ((0, registers), (0, 0)))
    return jnp.cos(angle), jnp.sin(angle)


def turn(x: Float[Array, "B V N h d"], cos: Float[Array, "N d"], sin: Float[Array, "N d"]) -> Float[Array, "B V N h d"]:
    """Rotate neighbouring channels."""
    swapped = jnp.stack([-x[..., 1::2], x[..., 0::2]], -1).reshape(x.shape)
    return x * cos[:, None] + swapped * sin[:, None]


def attention(q: Any, k: Any, v: Any, groups: Int[Array, "B N"], dtype: Any) -> Float[Array, "B N h d"]:
    """Softmax attention among tokens of one group.

    Args:
        q, k, v: [B N h d].
        groups: of each token.
        dtype: the inputs are rounded to it (the original: bfloat16); sums are float32.
    """
    q, k, v = (part.astype(dtype).astype(jnp.float32) for part in (q, k, v))
    score = jnp.einsum("bihd,bjhd->bhij", q, k) / jnp.sqrt(q.shape[-1])
    score = jnp.where(groups[:, None, :, None] == groups[:, None, None, :], score, -jnp.inf)
    return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(score, -1), v)


class RMSNorm(nn.Module):
    """Root mean square 1 over the channels of a head, then gains per head and channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n h d"]) -> Float[Array, "*n h d"]:
        alpha = self.param("alpha", nn.initializers.ones, x.shape[-2:])
        return alpha * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)


class LayerScale(nn.Module):
    """A gain per channel for a residual branch."""

    start: float

    @nn.compact
    def __call__(self, x: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
        return x * self.param("alpha", nn.initializers.constant(self.start), x.shape[-1:])


class MLP2(nn.Module):
    """Two dense layers."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n out"]:
        # Flax numbers layers in the order they are made: inner ones first, so not in one expression.
        x = gelu(dense(self.hidden)(x))
        return dense(self.out)(x)


class MLP3(nn.Module):
    """Three dense layers."""

    hidden: int
    middle: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n out"]:
        x = gelu(dense(self.hidden)(x))
        x = gelu(dense(self.middle)(x))
        return dense(self.out)(x)


class MVLayer(nn.Module):
    """Attention over all views beside attention in each view, then an MLP; groups never see each other."""

    heads: int
    scale: float = 0.01
    attention_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B V N C"], groups: Int[Array, "B N"], cos: Float[Array, "N d"], sin: Float[Array, "N d"]
    ) -> Float[Array, "B V N C"]:
        batch, views, count, width = z.shape
        parts = jnp.split(dense(6 * width, use_bias=False)(nn.LayerNorm(use_bias=False)(z)), 6, -1)
        q, k, v, q_own, k_own, v_own = (part.reshape(batch, views, count, self.heads, -1) for part in parts)
        q, k, q_own, k_own = (turn(RMSNorm()(part), cos, sin) for part in (q, k, q_own, k_own))
        q, k, v = (part.reshape(batch, views * count, self.heads, -1) for part in (q, k, v))
        q_own, k_own, v_own = (part.reshape(batch * views, count, self.heads, -1) for part in (q_own, k_own, v_own))
        over_all = attention(q, k, v, jnp.tile(groups, (1, views)), self.attention_dtype)
        inside = attention(q_own, k_own, v_own, jnp.repeat(groups, views, 0), self.attention_dtype)
        both = jnp.concatenate([over_all.reshape(z.shape), inside.reshape(z.shape)], -1)
        z = z + LayerScale(self.scale)(dense(width)(both))
        return z + LayerScale(self.scale)(MLP2(4 * width, width)(gelu(nn.LayerNorm()(z))))
