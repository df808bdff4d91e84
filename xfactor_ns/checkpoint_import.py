"""Weights from files: the original's checkpoints, safetensors files of this package, its own runs (spec xfactor 5).

A file is untrusted input: nothing in it is executed, every weight must be known, and of its shape.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from xfactor_ns.flax_file import FOREIGN, read_flax, write_flax
from xfactor_ns.network import XFactorNet
from xfactor_ns.parameter_names import flax_names, is_kernel
from xfactor_ns.size import Size

MODEL = "_model.net."
"""Beginning of the networks' names in a checkpoint of ns-train."""
_KINDS = "Give a .safetensors of ns-xfactor import, a ckpt-N.flax of the original, its folder, or a run's .ckpt."
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"(?:.*[/\\])?(ckpt-\d+)"\s*$', re.MULTILINE)
_NUMBER = re.compile(r"ckpt-(\d+)\.flax")


def expected_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the networks (spec xfactor 3.8)."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in XFactorNet(size).state_dict().items()}


def load_weights(path: str | Path, number: Optional[int] = None) -> tuple[Size, dict[str, Tensor]]:
    """Size and state dict of `XFactorNet` from any file that holds one.

    Args:
        path: ``.safetensors`` or the ``.json`` beside it; a ``.flax`` of the original, its folder, or the folder around
            it; a ``.ckpt`` of an own run, or its ``nerfstudio_models``.
        number: which ``ckpt-N.flax`` of a folder; None: the newest.

    Returns:
        Float32 on the CPU. The size's ``layer_scale`` is the default one (it only matters for fresh weights).

    Raises:
        DataError: absent, torn or foreign content; a weight missing, unknown or of another shape. The message names it.
    """
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        path = path.with_suffix(".safetensors")
    if path.suffix == ".safetensors":
        state, names = _read_safetensors(path), {}
    elif path.suffix == ".ckpt" or (path.is_dir() and any(path.glob("step-*.ckpt"))):
        state, names = _read_run(path), {}
    else:
        path = checkpoint_file(path, number)
        state, names = _from_flax(path, read_flax(path))
    return _checked(path, state, names)


def checkpoint_file(path: str | Path, number: Optional[int] = None) -> Path:
    """The ``.flax`` file that a path of the original means (spec xfactor 5).

    Args:
        path: the file; the folder ``checkpoints-0``; or the one around it.
        number: N of ``ckpt-N.flax``; None: the one that the file ``checkpoint`` names, else the highest.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if path.suffix != ".flax" or not path.is_file():
            problem = "is not a file." if not path.exists() else "is no file of weights that can be read."
            raise DataError(path, "", problem, _KINDS)
        return path
    folder = path / "checkpoints-0" if (path / "checkpoints-0").is_dir() else path
    present = {int(match[1]): file for file in folder.iterdir() if (match := _NUMBER.fullmatch(file.name))}
    if number is not None:
        if number not in present:
            raise DataError(folder, f"ckpt-{number}.flax", "is missing.", f"There are {sorted(present) or 'none'}.")
        return present[number]
    note = folder / "checkpoint"
    named = _NEWEST.search(note.read_text(encoding="utf-8", errors="replace")) if note.is_file() else None
    if named is not None:
        file = folder / f"{named[1]}.flax"
        if not file.is_file():
            raise DataError(note, named[1], "is named but not there.", f"Name one of {sorted(present) or 'none'}.")
        return file
    if not present:
        raise DataError(folder, "", "holds no ckpt-N.flax.", FOREIGN)
    return present[max(present)]


def _from_flax(path: Path, weights: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Under our names; and theirs by ours, for messages."""
    layers = [int(match[1]) for name in weights if (match := re.match(r"(?:PoseEnc|Render)/layers_(\d{1,4})/", name))]
    names = flax_names(1 + max(layers, default=0))
    state = {}
    for ours, theirs in names.items():
        if theirs not in weights:
            raise DataError(path, theirs, "is missing.", FOREIGN)
        value = torch.from_numpy(weights.pop(theirs))
        if is_kernel(theirs):
            if value.ndim != 2:
                raise DataError(path, theirs, f"has the shape {list(value.shape)}.", FOREIGN)
            value = value.T.contiguous()
        state[ours] = value
    if weights:
        raise DataError(path, min(weights), "is not a weight of XFactor.", FOREIGN)
    return state, names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    if not path.is_file():
        raise DataError(path, "", "is not a file.", _KINDS)
    state = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                state[name] = file.get_tensor(name)
    except Exception as error:  # safetensors has its own kind, the system others
        problem = f"is not a whole safetensors file ({type(error).__name__}: {str(error)[:200]})."
        raise DataError(path, "", problem, "Copy it again, or import it again.") from error
    return state


def _read_run(path: Path) -> dict[str, Tensor]:
    from core_ns.trainer import read_checkpoint, valid_checkpoint

    stored = (valid_checkpoint(path)[0] if path.is_dir() else read_checkpoint(path))["pipeline"]
    state = {name.removeprefix(MODEL): value for name, value in stored.items() if name.startswith(MODEL)}
    if not state:
        raise DataError(path, "pipeline", "holds no networks of XFactor.", _KINDS)
    return state


def _checked(path: Path, state: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[Size, dict[str, Tensor]]:
    """Exactly the weights of a network, finite, as float32.

    Args:
        path, state: as read.
        names: what the file calls them, where that differs.
    """
    try:
        size = Size.of(state)
    except DataError as error:
        raise DataError(path, names.get(error.place, error.place), error.problem, error.remedy) from error
    wanted = expected_shapes(size)
    found = {}
    for name in sorted(set(wanted) | set(state)):
        problem = None
        if name not in state:
            problem = "is missing."
        elif name not in wanted:
            problem = "is not a weight of XFactor."
        elif tuple(state[name].shape) != wanted[name]:
            have, want = list(state[name].shape), list(wanted[name])
            if is_kernel(names.get(name, "")):
                have, want = have[::-1], want[::-1]
            problem = f"has the shape {have}, not {want}."
        elif not state[name].dtype.is_floating_point:
            problem = f"holds {state[name].dtype}."
        elif not bool(state[name].isfinite().all()):
            problem = "holds numbers that are not finite."
        if problem:
            raise DataError(path, names.get(name, name), problem, _KINDS)
        found[name] = state[name].float()
    return size, found


def import_checkpoint(path: str | Path, out: str | Path, number: Optional[int] = None) -> Path:
    """Rewrite weights as a safetensors file, with their sizes and origin in a JSON file beside it.

    Args:
        path, number: see `load_weights`.
        out: ``NAME.safetensors``.

    Returns:
        ``out``.

    Raises:
        DataError: see `load_weights`; or ``out`` has another suffix. Nothing is written then.
    """
    from safetensors.torch import save_file

    path, out = Path(path), Path(out)
    if out.suffix != ".safetensors":
        raise DataError(out, "", "is not the name of a safetensors file.", "End it in .safetensors.")
    size, state = load_weights(path, number)
    source = _file(path, number)
    sizes = {name: value for name, value in asdict(size).items() if name != "layer_scale"}
    with atomic_path(out) as temporary:
        save_file(state, temporary, {"xfactor": json.dumps(sizes)})
    write_json(
        out.with_suffix(".json"),
        {
            "method": "xfactor",
            "size": sizes,
            "weights": len(state),
            "parameters": sum(value.numel() for value in state.values()),
            "source": {"name": source.name, "sha256": _sha256(source)},
        },
    )
    return out


def export_checkpoint(path: str | Path, out: str | Path) -> Path:
    """Write weights as a ``.flax`` file that the original's code restores its ``params`` from.

    Args:
        path: see `load_weights`.
        out: ``NAME.flax``.

    Returns:
        ``out``.

    Raises:
        DataError: see `load_weights`; or ``out`` has another suffix. Nothing is written then.
    """
    out = Path(out)
    if out.suffix != ".flax":
        raise DataError(out, "", "is not the name of a flax file.", "End it in .flax.")
    size, state = load_weights(path)
    names = flax_names(size.blocks)
    write_flax(out, {names[n]: (v.T if is_kernel(names[n]) else v).contiguous().numpy() for n, v in state.items()})
    return out


def _file(path: Path, number: Optional[int]) -> Path:
    """What `load_weights` has read."""
    if path.is_dir() and (steps := sorted(path.glob("step-*.ckpt"))):
        return steps[-1]
    if path.suffix == ".json":
        return path.with_suffix(".safetensors")
    return path if path.is_file() else checkpoint_file(path, number)


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
