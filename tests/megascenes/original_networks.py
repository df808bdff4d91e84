"""The shared fixtures of the original's networks, read once per process, and small networks of our own."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # diffusers' and transformers' own imports warn; ours must not
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPVisionModelWithProjection  # noqa: F401

from megascenes_ns.checkpoint_import import Imported, read_original
from megascenes_ns.networks import Networks
from megascenes_ns.sizes import ClipSize, Sizes, UNetSize, VaeSize

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "megascenes"
VARIANTS = ["warp_plus_pose", "zeronvs"]
CHECKPOINTS = {"warp_plus_pose": "iter_112000", "zeronvs": "iter_0/zeronvs.ckpt"}
HAVE = FOLDER.is_dir()


@cache
def arrays(variant: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of the original."""
    with np.load(FOLDER / variant / "io.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name].copy()) for name in file.files}


@cache
def imported(variant: str) -> Imported:
    """The original's checkpoint in our networks."""
    return read_original(FOLDER / variant / CHECKPOINTS[variant])


def checkpoint(variant: str) -> Path:
    """The file of weights."""
    path = FOLDER / variant / CHECKPOINTS[variant]
    return path / "pytorch_model.bin" if path.is_dir() else path


@cache
def full_size_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's full-size state dict."""
    content = json.loads((FOLDER / "full_size_keys.json").read_text())
    shapes = {name: tuple(shape) for name, shape in content["warp_plus_pose"].items()}
    if variant == "zeronvs":
        shapes.update({name: tuple(shape) for name, shape in content["zeronvs_differs"].items()})
    return shapes


@cache
def small(in_channels: int = 11) -> Networks:
    """Networks of 3 levels with random weights (`Networks.fresh`), not trained; do not write to them."""
    return fresh_small(in_channels)


def fresh_small(in_channels: int = 11, seed: int = 0) -> Networks:
    """See `small`; a copy of your own."""
    sizes = Sizes(
        UNetSize(in_channels, width=32, multipliers=(1, 2, 1), blocks=1, heads=4, context=24),
        VaeSize(width=32, multipliers=(1, 1), blocks=1),
        ClipSize(width=32, layers=1, heads=2, patch=14, image=56),
    )
    return Networks.fresh(sizes, seed).eval()


def largest(first: Any, second: Any) -> float:
    """Largest absolute difference."""
    assert first.shape == second.shape, (first.shape, second.shape)
    if not first.numel():  # the pose-only model has no warp
        return 0.0
    return float((first.detach().double() - second.detach().double()).abs().max())
