"""The original's ``.flax`` files, read and written without JAX (spec xfactor 5).

A file is one msgpack map. An array in it is extension 1: shape, dtype name and C-order bytes, packed again. Of a
training state of 5 GB only ``params`` is decoded; the file is streamed, nothing in it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from jaxtyping import Float32

from core_ns.atomic import atomic_path
from core_ns.errors import DataError

ARRAY = 1
"""Number of flax's extension for arrays."""
FOREIGN = "Give a ckpt-N.flax of XFactor, or the folder it lies in."
_LARGEST_ARRAY = 1 << 30
"""Bytes. flax cuts larger arrays into pieces, which no weights of this method need."""
_MOST_ENTRIES = 1 << 20
"""In one map or list."""
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Weights = dict[str, Float32[np.ndarray, "..."]]
"""By path, ``PoseEnc/Dense_0/kernel``."""


class _Bad(str):
    """What is wrong with an array; becomes an error once its name is known."""


def _array(code: int, data: bytes) -> Float32[np.ndarray, "..."] | _Bad:
    """What an extension holds: float32, whatever it was stored as."""
    if code != ARRAY:
        return _Bad(f"is an extension of kind {code}, not an array of weights.")
    try:
        shape, dtype, raw = msgpack.unpackb(data, raw=False)
    except Exception as error:  # msgpack raises half a dozen kinds, depending on where bytes stop making sense
        return _Bad(f"is not shape, type and numbers ({type(error).__name__}: {error}).")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        return _Bad(f"has the shape {shape!r}.")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        return _Bad(f"holds {dtype!r}; weights are {', '.join(_TYPES)}.")
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape) * _TYPES[dtype].itemsize:
        return _Bad(f"has another number of bytes than {dtype} of the shape {shape} takes.")
    # numpy knows no bfloat16; torch converts all three.
    values = torch.frombuffer(bytearray(raw), dtype=_TYPES[dtype]) if raw else torch.empty(0)
    return values.float().reshape(shape).numpy()


def read_flax(file: str | Path) -> Weights:
    """All weights in a ``.flax`` file.

    Memory: the weights, once. Other parts of a training state are skipped as they stream past.

    Raises:
        DataError: absent, torn or foreign content; the place is the weight's path where only one is bad.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(file, "", "is not a file.", FOREIGN)
    found: Weights = {}
    with open(file, "rb") as handle:
        stream = msgpack.Unpacker(
            handle, raw=False, ext_hook=_array, max_buffer_size=2 * _LARGEST_ARRAY - 1, max_ext_len=_LARGEST_ARRAY,
            max_bin_len=_LARGEST_ARRAY, max_str_len=1 << 16, max_map_len=_MOST_ENTRIES, max_array_len=_MOST_ENTRIES,
        )  # fmt: skip
        place = "top level"
        try:
            tree: Any = None
            for _ in range(stream.read_map_header()):
                key = stream.unpack()
                place = key if isinstance(key, str) else place
                if key == "params" and tree is None:
                    tree = stream.unpack()
                else:
                    stream.skip()
            if stream.tell() != file.stat().st_size:
                raise ValueError("bytes are left over")
        except Exception as error:  # as in _array
            problem = f"does not read as flax's msgpack ({type(error).__name__}: {str(error)[:200]})."
            raise DataError(file, place, problem, f"Copy it again if it was cut off. {FOREIGN}") from error
    if not isinstance(tree, dict) or not tree:
        raise DataError(file, "params", "is missing or empty.", FOREIGN)
    _flatten(file, tree, "", found)
    return found


def _flatten(file: Path, tree: Mapping[Any, Any], prefix: str, found: Weights) -> None:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(key, str):
            _flatten(file, value, f"{path}/", found)
        elif not isinstance(value, np.ndarray) or not isinstance(key, str):
            problem = value if isinstance(value, _Bad) else "is no array."
            raise DataError(file, path, str(problem), FOREIGN)
        elif not np.isfinite(value).all():
            raise DataError(file, path, "holds numbers that are not finite.", "Take another checkpoint.")
        else:
            found[path] = value


def write_flax(file: str | Path, weights: Weights) -> None:
    """Write ``{"params": ...}`` as flax does, names in order; ``flax.serialization.msgpack_restore`` reads it.

    Args:
        file: written atomically.
        weights: by path.
    """
    tree: dict[str, Any] = {}
    for path, value in sorted(weights.items()):
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    packer = msgpack.Packer(use_bin_type=True)
    with atomic_path(file) as temporary, open(temporary, "wb") as handle:

        def write(node: Mapping[str, Any]) -> None:
            handle.write(packer.pack_map_header(len(node)))
            for key, value in node.items():
                handle.write(packer.pack(key))
                if isinstance(value, dict):
                    write(value)
                else:
                    numbers = np.asarray(value, "<f4", order="C")
                    triple = packer.pack((list(numbers.shape), "float32", numbers.tobytes()))
                    handle.write(packer.pack_ext_type(ARRAY, triple))

        write({"params": tree})
