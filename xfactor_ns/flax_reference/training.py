"""One optimiser step of the transfer objective in JAX (spec xfactor 4.2, 4.5), for ``benchmarks/xfactor_step.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from xfactor_ns.flax_reference.pose_encoder import PoseEnc
from xfactor_ns.flax_reference.renderer import Render
from xfactor_ns.size import Size


def optimizer(peak: float = 4e-4, warm_up: int = 4000, steps: int = 100_000) -> optax.GradientTransformation:
    """Clip, then AdamW with decay on dense kernels alone, linear warm-up and cosine to a quarter of the peak."""
    schedule = optax.warmup_cosine_decay_schedule(1e-12, peak, warm_up, steps, peak / 4)

    def kernels(params: Any) -> Any:
        return unflatten_dict({path: path[-1] == "kernel" for path in flatten_dict(params)})

    adam = optax.adamw(schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=5e-3, mask=kernels)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def loss(
    params: Any,
    size: Size,
    x: Float[Array, "B 2 H W 3"],
    mask: Int[Array, "B T"],
    remat: bool = False,
    attention_dtype: Any = jnp.float32,
) -> Float[Array, ""]:
    """Mean |rendered - second frame| when each half is rendered with the pose that was read from the other half.

    Args:
        params: both networks.
        size: of them.
        x: pairs in [-1, 1]; no augmentation here.
        mask: group of each patch; samples without ones are unmasked.
        remat: recompute layers in the backward pass.
        attention_dtype: see `blocks.attention`.
    """
    poses: Any = PoseEnc(size, attention_dtype, remat).apply({"params": params["PoseEnc"]}, x, mask)
    unmasked = ~jnp.any(mask == 1, 1)[:, None, None]
    other = jnp.where(unmasked, poses[:, :, 0], poses[:, :, 1])
    swapped = jnp.stack([other, poses[:, :, 0]], 2)
    made: Any = Render(size, attention_dtype, remat).apply({"params": params["Render"]}, x[:, :1], swapped, mask)
    return jnp.mean(jnp.abs(made - x[:, 1]))


def train_step(
    size: Size, update: optax.GradientTransformation, remat: bool = False, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """A jitted ``(params, state, x, mask) -> (params, state, loss)``; the first two arguments are given away.

    Args:
        size: of the networks.
        update: of `optimizer`.
        remat: recompute layers in the backward pass.
        options: for XLA's compiler.
    """

    def step(params: Any, state: Any, x: Float[Array, "B 2 H W 3"], mask: Int[Array, "B T"]) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, size, x, mask, remat)
        change, state = update.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    return jax.jit(step, donate_argnums=(0, 1), compiler_options=dict(options or {}))
