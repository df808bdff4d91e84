"""Checkpoints of the original, read key by key (spec megascenes 2.6, 5).

Such a file is untrusted input: it is read with torch's restricted unpickler, every tensor must be known and of its
shape, and the EMA copies, which the original never updates, are never used.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional

import torch
from torch import Tensor

from core_ns.errors import DataError
from megascenes_ns.key_map import Origin, expected_shapes, key_map, unread_kind
from megascenes_ns.networks import Networks
from megascenes_ns.noise_schedule import schedule_buffers
from megascenes_ns.sizes import Sizes
from megascenes_ns.weights_folder import (
    WeightsInfo,
    check_free,
    empty_networks,
    fill,
    read_safetensors,
    save,
    sha256,
)

_KINDS = "Give iter_N (a folder with model.safetensors or pytorch_model.bin) or a .ckpt of MegaScenes or ZeroNVS."
_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""Of accelerate's state dumps; what lies beside them (optimiser, random states) is never opened."""
_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_INERT = ("pytorch_lightning.", "lightning.", "omegaconf.", "argparse.", "ldm.", "typing.", "collections.defaultdict")
"""Beginnings of class names that training leaves in checkpoints; placeholders stand for them."""
_TOLERANCE = 1e-5
"""Relative, of the noise schedule's tables, which are stored in float32."""


class _Placeholder:
    """Stands for a class that a checkpoint names: takes anything, keeps nothing, runs nothing."""

    def __new__(cls, *_: object) -> _Placeholder:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Imported:
    """A checkpoint of the original as networks."""

    networks: Networks
    """Float32, on the processor, in evaluation mode."""
    info: WeightsInfo
    """Origin, and what became of each tensor: ``mapped``, ``ema``, ``text``, ``schedule``."""


def checkpoint_file(path: str | Path) -> Path:
    """The file of weights that a path means.

    Args:
        path: the file, or a folder with ``model.safetensors``, ``pytorch_model.bin`` or a single ``.ckpt``.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in _FOLDER:
            if (path / name).is_file():
                return path / name
        found = sorted(path.glob("*.ckpt"))
        if len(found) != 1:
            raise DataError(path, "", f"holds none of {', '.join(_FOLDER)} and {len(found)} .ckpt.", _KINDS)
        return found[0]
    if not path.is_file():
        raise DataError(path, "", "does not exist.", _KINDS)
    if path.suffix not in _SUFFIXES:
        raise DataError(path, "", "is no file of weights that can be read.", _KINDS)
    return path


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the original's names, ``module.`` of several processes removed.

    Args:
        file: ``.safetensors``, a plain state dict, or a Lightning checkpoint.

    Raises:
        DataError: unreadable, or holds something else.
    """
    content: Any = read_safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise DataError(file, "", f"holds a {type(content).__name__} in place of named tensors.", _KINDS)
    for name, value in content.items():
        if type(name) is not str or not isinstance(value, Tensor):
            problem = f"is a {type(value).__name__}, not a tensor."
            raise DataError(file, str(name)[:100], problem, _KINDS)
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _unpickled(file: Path) -> Any:
    if not zipfile.is_zipfile(file):
        problem = "is not a whole file of torch.save (of torch 1.6 or later)."
        raise DataError(file, "", problem, "Copy it again, or save it again with a newer torch.")
    try:
        inert = []
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(file):
            if not name.startswith(_INERT):
                problem = f"names '{name[:100]}', which no checkpoint of this method needs; nothing was run."
                remedy = "If you trust it, load it in the original's environment and save only its state_dict."
                raise DataError(file, "", problem, remedy)
            inert.append((type("Placeholder", (_Placeholder,), {}), name))
        with torch.serialization.safe_globals(inert):
            # Mapped, so that an optimiser's state is never read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except DataError:
        raise
    except Exception as error:
        # torch raises half a dozen types here, depending on where a damaged or foreign file stops making sense.
        first = (str(error).strip().splitlines() or [""])[0][:200]
        problem = f"is not readable as tensors and plain values ({type(error).__name__}: {first})."
        raise DataError(file, "", problem, "Copy it again.") from error


def read_original(path: str | Path, heads: int = 8, pose_squash: Literal["none", "zeronvs"] = "none") -> Imported:
    """Networks of a checkpoint of the original; every tensor is accounted for.

    Args:
        path: see `checkpoint_file`.
        heads: attention heads of the UNet, which the weights do not tell; the original has 8.
        pose_squash: noted for use, see `weights_folder.WeightsInfo`.

    Raises:
        DataError: unreadable; a tensor is missing, unknown, of another shape or not finite; another noise schedule.
    """
    file = checkpoint_file(path)
    state = read_state(file)
    try:
        sizes = Sizes.of_original({name: tuple(value.shape) for name, value in state.items()}, heads)
    except DataError as error:
        raise DataError(file, error.place, error.problem, error.remedy) from error
    return Imported(
        _networks(file, state, sizes),
        WeightsInfo(
            pose_squash=pose_squash,
            uncond="legacy",
            source=f"{file.parent.name}/{file.name}",
            sha256=sha256(file),
            accounted=account(file, state, sizes),
        ),
    )


def account(file: Path, names: Mapping[str, Tensor], sizes: Sizes) -> dict[str, int]:
    """What becomes of each tensor of a checkpoint: how many are ``mapped``, ``ema``, ``text``, ``schedule``.

    Args:
        file: for messages.
        names: the tensors by the original's names.
        sizes: of the networks.

    Raises:
        DataError: a tensor that is unknown, or the noise schedule is another.
    """
    mapped = {origin.name for origin in key_map(sizes).values()}
    kinds: Counter[str] = Counter(mapped=0, ema=0, text=0, schedule=0)
    for name in names:
        kind = "mapped" if name in mapped else unread_kind(name, mapped)
        if kind is None:
            raise DataError(file, name, "is not a tensor of this method's checkpoints.", _KINDS)
        kinds[kind] += 1
    for name, wanted in schedule_buffers().items():
        found = names.get(name)
        if found is None or found.is_meta:
            continue
        if found.shape != wanted.shape or not torch.allclose(found.float(), wanted, rtol=_TOLERANCE, atol=1e-6):
            raise DataError(file, name, "is of another noise schedule.", _KINDS)
    return dict(kinds)


def _networks(file: Path, state: Mapping[str, Tensor], sizes: Sizes) -> Networks:
    """Networks with the weights of a state dict, checked one by one."""
    nets = empty_networks(sizes)
    shapes = expected_shapes(sizes)
    found: dict[str, dict[str, Tensor]] = {}
    for name, origin in key_map(sizes).items():
        part, _, inner = name.partition(".")
        found.setdefault(part, {})[inner] = _weight(file, state.get(origin.name), origin, shapes[name])
    account(file, state, sizes)
    for part, weights in found.items():
        fill(getattr(nets, part), weights)
    return nets.eval()


def _weight(file: Path, stored: Optional[Tensor], origin: Origin, shape: tuple[int, ...]) -> Tensor:
    def refuse(problem: str) -> DataError:
        return DataError(file, origin.name, problem, _KINDS)

    if stored is None:
        raise refuse("is missing.")
    if not stored.dtype.is_floating_point:
        raise refuse(f"holds {stored.dtype}.")
    try:
        value = origin.take(stored)
    except (ValueError, RuntimeError) as error:
        raise refuse(f"has the shape {list(stored.shape)} ({error}).") from error
    if tuple(value.shape) != shape:
        raise refuse(f"has the shape {list(stored.shape)}, which does not fit the other tensors.")
    if not bool(value.isfinite().all()):
        raise refuse("holds numbers that are not finite.")
    return value.to(torch.float32, copy=True).contiguous()


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    heads: int = 8,
    pose_squash: Literal["none", "zeronvs"] = "none",
) -> tuple[Path, Sizes, WeightsInfo]:
    """Rewrite a checkpoint of the original as a folder of safetensors (`weights_folder`).

    Args:
        path: see `checkpoint_file`.
        out: folder to make.
        dtype: of the weights in the files.
        heads, pose_squash: see `read_original`.

    Returns:
        The folder, sizes and what became of each tensor.

    Raises:
        DataError: see `read_original`; or ``out`` is there already. Nothing is written then.
    """
    check_free(Path(out))
    found = read_original(path, heads, pose_squash)
    step = re.search(r"iter_(\d+)", str(path))
    info = replace(found.info, step=int(step[1])) if step else found.info
    return save(found.networks, out, info, dtype), found.networks.sizes, info
