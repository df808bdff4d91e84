"""The compact export of a voxel model: one safetensors file, no unpickling, no guessing (spec diver 6.3, 10).

Vertex ids are stored as runs along x, the mask as one bit per vertex, the table as fp32, fp16 or int8 with a scale per
channel; resolution, cube and background are in the header. The container (eight bytes of length, a JSON header, raw
little-endian arrays) is read and written here, so that nothing beyond torch is needed.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from diver_ns.deploy import FusedDecoder
from diver_ns.field import CHANNELS
from diver_ns.voxel_model import LARGEST_RESOLUTION, VoxelModel, lower_corners, mask_from_lower_corners

_FORMAT = "diver-1"
_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I32": np.int32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 2**20
_FOREIGN = "Give a file that `ns-diver convert` wrote."


def write_safetensors(path: str | Path, model: VoxelModel, dtype: Literal["fp32", "fp16", "int8"] = "fp16") -> None:
    """Write the compact export.

    int8 values are ``round(feature / scale)`` with ``scale`` = the channel's largest magnitude / 127. The decoder is
    always fp32.

    Raises:
        DataError: the model has no table, or a feature exceeds fp16. Nothing is written.
        ValueError: unknown ``dtype``.
    """
    if dtype not in ("fp32", "fp16", "int8"):
        raise ValueError(f"dtype is fp32, fp16 or int8, not {dtype!r}")
    try:
        compact = model.compact()
    except ValueError as error:
        raise DataError(path, "", f"Not written: {error}.", "Convert a finished model.") from error
    table = compact.features.float()
    largest = table.abs().amax(0) if len(table) else torch.zeros(CHANNELS)
    if not bool(torch.isfinite(largest).all()) or (dtype == "fp16" and float(largest.max()) > 65504):
        raise DataError(path, "features", "Not written: a feature exceeds the number format.", "Choose fp32.")
    starts, lengths = runs_from_ids(compact.ids)
    arrays = {
        "run_starts": starts.to(torch.int32).numpy(),
        "run_lengths": lengths.to(torch.int32).numpy(),
        "lower_corners": np.packbits(lower_corners(compact.ids, compact.fine_mask()).numpy()),
    }
    if dtype == "int8":
        scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
        arrays["features"] = (table / scale).round().clamp(-127, 127).to(torch.int8).numpy()
        arrays["scale"] = scale.numpy()
    else:
        arrays["features"] = (table.half() if dtype == "fp16" else table).contiguous().numpy()
    for name, value in model.decoder_state.items():
        arrays[f"decoder.{name}"] = value.detach().float().cpu().contiguous().numpy()
    about = {
        "format": _FORMAT,
        "resolution": compact.resolution,
        "side": compact.side,
        "center": list(compact.center),
        "background": compact.background,
        "width": compact.width,
        "parity": compact.parity,
    }
    _write_arrays(Path(path), arrays, {"diver": json.dumps(about, allow_nan=False)})


def read_safetensors(path: str | Path) -> VoxelModel:
    """Read the compact export; the table comes back as float32, the mask at the grid's resolution.

    Raises:
        DataError: unreadable, foreign or inconsistent content.
    """
    path = Path(path)
    arrays, metadata = _read_arrays(path)
    about = _about(path, metadata)
    needed = {"run_starts": "I32", "run_lengths": "I32", "lower_corners": "U8"}
    for name, dtype in needed.items():
        if name not in arrays or arrays[name].ndim != 1 or _NAMES[arrays[name].dtype] != dtype:
            raise DataError(path, name, f"Is missing or not a list of {dtype}.", _FOREIGN)
    table = arrays.get("features")
    if (
        table is None
        or table.ndim != 2
        or table.shape[1] != CHANNELS
        or table.dtype not in (np.float32, np.float16, np.int8)
    ):
        raise DataError(path, "features", f"Is missing or not (V, {CHANNELS}) in fp32, fp16 or int8.", _FOREIGN)
    features = torch.from_numpy(table.astype(np.float32))
    if table.dtype == np.int8:
        scale = arrays.get("scale")
        if scale is None or scale.shape != (CHANNELS,) or scale.dtype != np.float32:
            raise DataError(path, "scale", f"Is missing or not {CHANNELS} fp32 numbers.", _FOREIGN)
        features *= torch.from_numpy(scale)
    decoder = {
        name.removeprefix("decoder."): torch.from_numpy(value.copy())
        for name, value in arrays.items()
        if name.startswith("decoder.")
    }
    _check_decoder(path, decoder, about["width"])
    for name, value in (("features", features), *decoder.items()):
        if not bool(torch.isfinite(value).all()):
            raise DataError(path, name, "Holds NaN or infinity.", "Convert the model again.")
    starts, lengths = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("run_starts", "run_lengths"))
    bits = arrays["lower_corners"]
    try:
        ids = ids_from_runs(starts, lengths, len(features))
        if len(bits) != -(-len(ids) // 8):
            raise ValueError("one mask bit per vertex is needed")
        lower = torch.from_numpy(np.unpackbits(bits, count=len(ids)).astype(bool))
        mask = mask_from_lower_corners(ids, lower, about["resolution"])
        return VoxelModel(
            about["resolution"], about["side"], tuple(about["center"]), about["background"], ids, features, mask,
            decoder, about["width"], None, about["parity"],
        ).compact()  # fmt: skip
    except ValueError as error:
        raise DataError(path, "", f"Is inconsistent: {error}.", "Convert the model again.") from error


def runs_from_ids(ids: Int64[Tensor, "V"]) -> tuple[Int64[Tensor, "K"], Int64[Tensor, "K"]]:
    """Starts and lengths of the runs of consecutive numbers in ascending ``ids``."""
    if not len(ids):
        return ids, ids
    begins = torch.cat([torch.tensor([0]), torch.nonzero(ids[1:] != ids[:-1] + 1)[:, 0] + 1])
    ends = torch.cat([begins[1:], torch.tensor([len(ids)])])
    return ids[begins], ends - begins


def ids_from_runs(starts: Int64[Tensor, "K"], lengths: Int64[Tensor, "K"], count: int) -> Int64[Tensor, "V"]:
    """Inverse of `runs_from_ids`.

    Args:
        count: V, checked before anything of that size is made.

    Raises:
        ValueError: the runs overlap, do not ascend, or do not add up to ``count``.
    """
    if len(starts) != len(lengths) or bool((lengths < 1).any()) or int(lengths.sum()) != count:
        raise ValueError("the runs of vertex ids do not add up to the rows of the table")
    if len(starts) and (int(starts[0]) < 0 or bool((starts[1:] <= starts[:-1] + lengths[:-1] - 1).any())):
        raise ValueError("the runs of vertex ids overlap")
    before = lengths.cumsum(0) - lengths
    return torch.repeat_interleave(starts - before, lengths) + torch.arange(count)


def _about(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        about = json.loads(metadata["diver"])
        center, side = [float(value) for value in about["center"]], float(about["side"])
        good = (
            about["format"] == _FORMAT
            and type(about["resolution"]) is int
            and 1 <= about["resolution"] <= LARGEST_RESOLUTION
            and len(center) == 3
            and all(map(math.isfinite, [*center, side]))
            and side > 0
            and about["background"] in ("white", "black")
            and about["width"] in (32, 64)
            and type(about["parity"]) is bool
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(path, "header", f"Has no usable description ({error!r}).", _FOREIGN) from error
    if not good:
        raise DataError(path, "header", f"Describes no voxel model of the form {_FORMAT}.", _FOREIGN)
    return about | {"center": center, "side": side}


def _check_decoder(path: Path, state: Mapping[str, Tensor], width: int) -> None:
    wanted = FusedDecoder(width).to_state()
    for name in sorted(set(wanted) | set(state)):
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape:
            raise DataError(path, f"decoder.{name}", f"Does not fit a decoder of width {width}.", _FOREIGN)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors container."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    # Widest numbers first, so that every array starts at a multiple of its item size.
    ordered: list[tuple[str, Any]] = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    for name, array in ordered:
        place = [position, position + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)))
        handle.write(text)
        for _, array in ordered:
            little = array if sys.byteorder == "little" else array.astype(array.dtype.newbyteorder("<"))
            handle.write(np.ascontiguousarray(little).tobytes())


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Read a safetensors container: arrays by name, and its metadata."""
    if not path.is_file():
        raise DataError(path, "", "There is no such file.", _FOREIGN)
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER + 1
        text = handle.read(length) if length <= _LARGEST_HEADER else b""
        data = handle.read() if len(text) == length else b""
    try:
        if len(text) != length:
            raise ValueError("the header is cut off or too long")
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        arrays, position = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (begin, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError(f"{name} has a size that is no count")
            if begin != position or end > len(data) or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} does not lie where the header says")
            position = end
            arrays[name] = (
                np.frombuffer(data, dtype.newbyteorder("<"), math.prod(shape), begin).reshape(shape).astype(dtype)
            )
        if position != len(data):
            raise ValueError("bytes are left over")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(path, "", f"Not a safetensors file of a voxel model ({error}).", _FOREIGN) from error
    if not isinstance(metadata, dict):
        raise DataError(path, "header", "Has no metadata.", _FOREIGN)
    return arrays, metadata
