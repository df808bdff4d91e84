"""Weights to start from: an imported file, the original's checkpoint, or another run (spec xfactor 4.5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core_ns.errors import DataError
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size

PREFIX = "_model.net."
"""Of the networks in a checkpoint of nerfstudio's."""


def read_weights(path: Path, size: Size) -> dict[str, Tensor]:
    """Weights of both networks under this package's names.

    Args:
        path: ``.safetensors``, ``.flax`` or a folder of the original (`checkpoint_import.load_weights`); a ``.ckpt`` of
            a run of this package, or its ``nerfstudio_models``.
        size: of the networks they are for; another start of the residual scales is no obstacle.

    Raises:
        DataError: unreadable, not XFactor's, or of another size.
    """
    found, state = _read(path)
    if replace(found, layer_scale=size.layer_scale) != size:
        fields = ("width", "heads", "blocks", "patch", "pose", "registers")
        wrong = [name for name in fields if getattr(found, name) != getattr(size, name)]
        told = ", ".join(f"{name} {getattr(found, name)} instead of {getattr(size, name)}" for name in wrong)
        options = " ".join(f"--pipeline.model.{name} {getattr(found, name)}" for name in wrong)
        raise DataError(path, "sizes", f"are of other networks: {told}.", f"Train with {options}.")
    with torch.device("meta"):
        own = XFactorNet(size).state_dict()
    odd = sorted(set(own) ^ set(state)) or sorted(key for key in own if own[key].shape != state[key].shape)
    if odd:
        raise DataError(path, odd[0], "does not fit these networks.", "Give weights of XFactor.")
    return state


def _read(path: Path) -> tuple[Size, dict[str, Tensor]]:
    if not path.exists():
        raise DataError(path, "", "does not exist.", "Name weights for --pipeline.model.init-from.")
    if path.suffix == ".ckpt" or (path.is_dir() and any(path.glob("step-*.ckpt"))):
        from core_ns.trainer import read_checkpoint, valid_checkpoint

        saved, path = (read_checkpoint(path), path) if path.is_file() else valid_checkpoint(path)
        pipeline = saved["pipeline"]
        state = {key.removeprefix(PREFIX): value for key, value in pipeline.items() if key.startswith(PREFIX)}
        return Size.of(state), state
    from xfactor_ns.checkpoint_import import load_weights

    return load_weights(path)
