"""Weights of the Flax networks: fresh ones, and those of the torch networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from torch import Tensor

from xfactor_ns.flax_reference.pose_encoder import PoseEnc
from xfactor_ns.flax_reference.renderer import Render
from xfactor_ns.parameter_names import flax_names, is_kernel
from xfactor_ns.size import Size


def init(size: Size, seed: int = 0) -> dict[str, Any]:
    """Fresh weights of both networks: ``{"PoseEnc": ..., "Render": ...}``, the original's tree."""
    first, second = jax.random.split(jax.random.key(seed))
    x, poses = jnp.zeros((1, 2, size.patch, size.patch, 3)), jnp.zeros((1, 2, size.pose))
    # Runs once: optimising the code for all these leaves would take longer than anything else.
    quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    return {
        "PoseEnc": quickly(PoseEnc(size).init)(first, x)["params"],
        "Render": quickly(Render(size).init)(second, x[:, :1], poses)["params"],
    }


def from_torch(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree of a state dict of `xfactor_ns.network.XFactorNet`.

    Raises:
        KeyError: a weight is missing.
    """
    flat = {}
    for ours, theirs in flax_names(Size.of(state).blocks).items():
        value = state[ours].detach().cpu().float().numpy()
        flat[tuple(theirs.split("/"))] = jnp.array(value.T if is_kernel(theirs) else value)
    return unflatten_dict(flat)


def to_torch(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inverse of `from_torch`; of gradients as well."""
    flat = {"/".join(path): value for path, value in flatten_dict(dict(params)).items()}
    blocks = sum(path.startswith("Render/layers_") and path.endswith("/Dense_0/kernel") and path.count("/") == 3
                 for path in flat)  # fmt: skip
    found = {}
    for ours, theirs in flax_names(blocks).items():
        value = torch.from_numpy(np.array(flat[theirs]))
        found[ours] = value.T.contiguous() if is_kernel(theirs) else value
    return found
