"""The files of the original DIVeR, read and written: Lightning checkpoint, ``weight.pth``, ``serialize.pth``
(spec diver 2 and 5.6). The compact export of this package is in `diver_ns.compact_file`.

A file is untrusted input. It is read with torch's restricted unpickler; the few classes that Lightning checkpoints name
are replaced by stand-ins that do nothing; every key must be known and every shape must fit.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from diver_ns.compact_file import read_safetensors, write_safetensors
from diver_ns.deploy import FusedDecoder
from diver_ns.field import CHANNELS
from diver_ns.occupancy import active_vertices
from diver_ns.voxel_model import (
    LARGEST_RESOLUTION,
    VoxelModel,
    fits_resolution,
    infer_resolution,
    lower_corners,
    mask_from_lower_corners,
)

__all__ = [
    "VoxelModel", "infer_resolution", "read_original", "read_safetensors", "write_safetensors", "write_serialize",
    "write_weight",
]  # fmt: skip

ORIGINAL_SIDE = 2.8
"""Side of the original's cube, about the origin."""
_ENCODED_DIRECTION, _ENCODED_VERTEX = 27, 63
_OTHER_FILE = "Give a checkpoint, weight.pth or serialize.pth of DIVeR with 32 channels and a 32 or 64 wide decoder."
_PASS_RESOLUTION = "Pass the number of voxels per axis (voxel_num of the original's configuration)."
_TABLE_NAMES = {"voxels", "voxel_mask"}


class _StandIn:
    """Takes the place of a class that a checkpoint names: remembers plain state, runs nothing."""

    values: dict[str, Any]

    def __new__(cls, *_: object) -> _StandIn:
        made = object.__new__(cls)
        made.values = {}
        return made

    def __setstate__(self, state: object) -> None:
        self.values = state if type(state) is dict else {}


_CALLBACKS = (
    "model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "lr_monitor.LearningRateMonitor",
    "progress.ProgressBar", "gpu_stats_monitor.GPUStatsMonitor",
)  # fmt: skip
# Lightning's AttributeDict is a dict; torch fills nothing but real ones, so a plain dict stands in.
_STAND_INS = [
    (_StandIn, "argparse.Namespace"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    *((_StandIn, f"pytorch_lightning.callbacks.{name}") for name in _CALLBACKS),
]


def read_original(path: str | Path, resolution: Optional[int] = None, parity: bool = True) -> VoxelModel:
    """Read a file of the original: kind, resolution, decoder width and mask scale are inferred.

    Cube side and background come from the hyper-parameters in the file where it has them, else 2.8 and white.

    Args:
        path: Lightning ``.ckpt`` of any stage, ``weight.pth`` or ``serialize.pth``.
        resolution: voxels per axis; needed only where the file leaves it open, checked otherwise.
        parity: ask for the original's voxel rule when rendering.

    Raises:
        DataError: unreadable, foreign or inconsistent content; the message names the key.
    """
    path = Path(path)
    content = _load(path)
    if {"f", "i", "m", "p"} <= set(content):
        return _from_serialized(path, content, resolution, parity)
    settings: Mapping[str, Any] = {}
    if "state_dict" in content:
        settings = _settings(content.get("hyper_parameters"))
        content = content["state_dict"]
        if not isinstance(content, Mapping):
            raise DataError(path, "state_dict", f"Holds a {type(content).__name__}.", _OTHER_FILE)
        content = {str(key).removeprefix("model."): value for key, value in content.items()}
    return _from_state(path, content, settings, resolution, parity)


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(path, "", "There is no such file.", _OTHER_FILE)
    try:
        # Sparse indices are checked in `_sparse_table`; torch wants a decision.
        with (
            torch.serialization.safe_globals(_STAND_INS),  # pyright: ignore[reportArgumentType]
            torch.sparse.check_sparse_tensor_invariants(False),
        ):
            # Mapped, so that optimiser states (twice the table) are never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # torch raises half a dozen types here, depending on where a damaged or foreign file stops making sense.
        reason = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        problem = f"names the class {reason[1]}" if reason else (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            path, "", f"Not readable as tensors and plain values ({type(error).__name__}: {problem}).",
            "If you made this file yourself, load it in the original's environment and save only its state_dict with "
            "torch.save; a damaged file has to be copied again.",
        ) from error  # fmt: skip
    if not isinstance(content, Mapping):
        raise DataError(path, "top level", f"Holds a {type(content).__name__}, not a dictionary.", _OTHER_FILE)
    return content


def _settings(found: object) -> Mapping[str, Any]:
    """The hyper-parameters that are of use, each only when it makes sense."""
    values: Mapping[str, Any] = (
        found.values if isinstance(found, _StandIn) else found if isinstance(found, Mapping) else {}
    )
    side: Any = values.get("grid_size")
    size: Any = values.get("voxel_num")
    white: Any = values.get("white_back")
    kept: dict[str, Any] = {}
    if type(side) in (int, float) and 0 < side < 1e6:
        kept["side"] = float(side)
    if type(size) is int and size > 0:
        kept["resolution"] = size
    if type(white) in (bool, int):
        kept["background"] = "white" if white else "black"
    return kept


def _from_state(
    path: Path, state: Mapping[str, Any], settings: Mapping[str, Any], resolution: Optional[int], parity: bool
) -> VoxelModel:
    decoder, used = _decoder(path, state)
    implicit = None
    if "mlp_voxel.pts_linears.0.weight" in state:
        implicit, names = _vertex_network(path, state)
        used |= names
    unknown = sorted(set(map(str, state)) - used - _TABLE_NAMES)
    if unknown:
        raise DataError(path, unknown[0], "Is not a key of DIVeR.", _OTHER_FILE)
    mask = _mask(path, state["voxel_mask"]) if "voxel_mask" in state else None
    if "voxels" in state:
        implicit = None  # a baked checkpoint: the network is no longer used
        found = _table_resolution(path, state["voxels"])
    elif implicit is None:
        raise DataError(path, "voxels", "Is missing, and there is no vertex network instead.", _OTHER_FILE)
    else:
        found = resolution or settings.get("resolution")
        if found is None:
            raise DataError(path, "mlp_voxel", "A vertex network does not tell the grid's size.", _PASS_RESOLUTION)
    if resolution not in (None, found):
        raise DataError(path, "voxels", f"Has {found} voxels per axis, not {resolution}.", "Leave out the resolution.")
    if not 1 <= found <= LARGEST_RESOLUTION:
        raise DataError(path, "voxels", f"Has {found} voxels per axis; at most {LARGEST_RESOLUTION} work.", _OTHER_FILE)
    if mask is not None and len(mask) > found:
        raise DataError(path, "voxel_mask", f"Is finer ({len(mask)}) than the grid ({found}).", _PASS_RESOLUTION)
    needed = active_vertices(mask, found) if mask is not None else torch.arange((found + 1) ** 3)
    if implicit is not None:
        ids, features = needed, torch.zeros(0, CHANNELS)
    elif state["voxels"].is_sparse:
        ids, features = _sparse_table(path, state["voxels"], needed)
    else:
        ids, features = needed, state["voxels"].detach().reshape(-1, CHANNELS)[needed].float()
    _check_finite(path, "voxels", features)
    return VoxelModel(
        found, settings.get("side", ORIGINAL_SIDE), (0.0, 0.0, 0.0), settings.get("background", "white"), ids, features,
        mask, decoder, len(decoder["view.0.weight"]), implicit, parity,
    )  # fmt: skip


def _decoder(path: Path, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """The decoder under our names, and the original's keys it used."""
    if "mlp1.0.weight" not in state:
        raise DataError(path, "mlp1.0.weight", "Is missing.", _OTHER_FILE)
    first = state["mlp1.0.weight"]
    width = first.shape[0] if isinstance(first, Tensor) and first.ndim == 2 else 0
    if width not in (32, 64):
        raise DataError(path, "mlp1.0.weight", "Is not the first layer of a 32 or 64 wide decoder.", _OTHER_FILE)
    last = 4 if width == 32 else 2
    shapes = {f"mlp1.{layer}": (width, CHANNELS if layer == 0 else width) for layer in range(0, last, 2)}
    shapes |= {
        f"mlp1.{last}": (1 + width, width),
        "mlp2.0": (width, width + _ENCODED_DIRECTION),
        "mlp2.2": (3, width),
    }
    ours = {}
    for name, shape in shapes.items():
        new = name.replace("mlp1", "point").replace("mlp2", "view")
        ours[f"{new}.weight"] = _weight(path, state, f"{name}.weight", shape)
        ours[f"{new}.bias"] = _weight(path, state, f"{name}.bias", shape[:1])
    return ours, {f"{name}.{kind}" for name in shapes for kind in ("weight", "bias")}


def _vertex_network(path: Path, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """The network that predicts vertex features under our names; its width, depth and skip follow from the shapes."""
    prefix, ours, used, depth = "mlp_voxel.pts_linears", {}, set(), 0
    first = state[f"{prefix}.0.weight"]
    width = first.shape[0] if isinstance(first, Tensor) and first.ndim == 2 else 0
    while f"{prefix}.{depth}.weight" in state:
        depth += 1
    for layer in range(depth + 1):
        name = f"{prefix}.{layer}" if layer < depth else "mlp_voxel.feature_linear"
        new = f"layers.{layer}" if layer < depth else "head"
        outputs, inputs = (width, width) if layer < depth else (CHANNELS, width)
        found = state.get(f"{name}.weight")
        if layer == 0:
            inputs = _ENCODED_VERTEX
        elif layer < depth and isinstance(found, Tensor) and found.shape[-1] == width + _ENCODED_VERTEX:
            inputs = width + _ENCODED_VERTEX
        ours[f"{new}.weight"] = _weight(path, state, f"{name}.weight", (outputs, inputs))
        ours[f"{new}.bias"] = _weight(path, state, f"{name}.bias", (outputs,))
        used |= {f"{name}.weight", f"{name}.bias"}
    return ours, used


def _weight(path: Path, state: Mapping[str, Any], key: str, shape: Optional[tuple[int, ...]]) -> Tensor:
    """A dense float32 copy of ``state[key]``; its shape is checked when one is given."""
    value: Any = state.get(key)
    if not _stored(value) or not value.is_floating_point():
        kind = f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(path, key, f"Is missing or not a tensor of real numbers ({kind}).", _OTHER_FILE)
    if shape is not None and tuple(value.shape) != shape:
        raise DataError(path, key, f"Has shape {list(value.shape)}, but the rest needs {list(shape)}.", _OTHER_FILE)
    value = value.detach().to(torch.float32, copy=True)
    _check_finite(path, key, value)
    return value


def _stored(value: Any) -> bool:
    """Whether this is a dense tensor whose values are all in the file: strides of 0 make terabytes of one number."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return dense and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _check_finite(path: Path, key: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise DataError(path, key, "Holds NaN or infinity.", "Take an earlier checkpoint: this training diverged.")


def _mask(path: Path, value: Any) -> Bool[Tensor, "M M M"]:
    if (
        not _stored(value)
        or value.dtype != torch.bool
        or value.ndim != 3
        or len(set(value.shape)) != 1
        or not len(value)
    ):
        raise DataError(path, "voxel_mask", "Is not a cube of truth values.", _OTHER_FILE)
    return value.clone()


def _table_resolution(path: Path, table: Any) -> int:
    sparse = isinstance(table, Tensor) and table.layout == torch.sparse_coo
    good = (_stored(table._values()) and _stored(table._indices())) if sparse else _stored(table)
    shape = tuple(table.shape) if good and table.is_floating_point() else ()
    if len(shape) != 4 or len(set(shape[:3])) != 1 or shape[0] < 2 or shape[3] != CHANNELS:
        raise DataError(path, "voxels", f"Has shape {list(shape)}, not (N+1, N+1, N+1, {CHANNELS}).", _OTHER_FILE)
    if sparse and (table.sparse_dim(), table.dense_dim()) != (3, 1):
        raise DataError(path, "voxels", "Is not sparse over its first three axes.", _OTHER_FILE)
    return shape[0] - 1


def _sparse_table(path: Path, table: Tensor, needed: Int64[Tensor, "K"]) -> tuple[Tensor, Tensor]:
    """Ids and features of a sparse table; a needed vertex that it leaves out is zero, as in the original."""
    # Not coalesced first: that trusts the indices, which come from the file.
    where, values, across = table._indices(), table._values().detach().float(), table.shape[0]
    if where.numel() and (int(where.min()) < 0 or int(where.max()) >= across):
        raise DataError(path, "voxels", "Has an index outside the grid.", _OTHER_FILE)
    stored = (where[0] * across + where[1]) * across + where[2]
    ids = torch.unique(torch.cat([stored, needed]))
    features = torch.zeros(len(ids), CHANNELS).index_add_(0, torch.searchsorted(ids, stored), values)
    return ids, features


def _from_serialized(path: Path, content: Mapping[str, Any], resolution: Optional[int], parity: bool) -> VoxelModel:
    features, packed = _weight(path, content, "f", None), _weight(path, content, "p", None)
    ids, lower = content["i"], content["m"]
    for key, value, dtypes in (("i", ids, (torch.int32, torch.int64)), ("m", lower, (torch.bool,))):
        if not _stored(value) or value.dtype not in dtypes or tuple(value.shape) != tuple(features.shape[:1]):
            raise DataError(path, key, f"Is not one value per row of f {list(features.shape)}.", _OTHER_FILE)
    if tuple(features.shape[1:]) != (CHANNELS,):
        raise DataError(path, "f", f"Has shape {list(features.shape)}, not (V, {CHANNELS}).", _OTHER_FILE)
    ids, order = ids.to(torch.int64).sort()
    lower = lower[order]
    if len(ids) and (int(ids[0]) < 0 or bool((ids[1:] == ids[:-1]).any())):
        raise DataError(path, "i", "Has negative or repeated vertices.", _OTHER_FILE)
    try:
        decoder = FusedDecoder.from_packed(packed)
    except ValueError as error:
        raise DataError(path, "p", f"Not a packed decoder: {error}.", _OTHER_FILE) from error
    if resolution is None:
        resolution = infer_resolution(ids, lower)
        if resolution is None:
            raise DataError(path, "i", "Fits a grid of no size.", _PASS_RESOLUTION)
    elif not fits_resolution(ids, ids[lower], resolution):
        raise DataError(path, "i", f"Does not fit a grid of {resolution} voxels per axis.", "Leave out the resolution.")
    mask = mask_from_lower_corners(ids, lower, resolution)
    return VoxelModel(
        resolution, ORIGINAL_SIDE, (0.0, 0.0, 0.0), "white", ids, features[order], mask, decoder.to_state(),
        decoder.width, None, parity,
    )  # fmt: skip


def write_weight(path: str | Path, model: VoxelModel) -> None:
    """Write the original's ``weight.pth``: sparse table, mask at the grid's resolution, decoder.

    Raises:
        DataError: the model has no table. Nothing is written.
    """
    compact = _compact(path, model)
    across = compact.resolution + 1
    where = torch.stack([compact.ids // across**2, compact.ids // across % across, compact.ids % across])
    size = (across, across, across, CHANNELS)
    with torch.sparse.check_sparse_tensor_invariants(True):
        table = torch.sparse_coo_tensor(where, compact.features.float(), size, is_coalesced=True)
    content: dict[str, Tensor] = {"voxels": table, "voxel_mask": compact.fine_mask()}
    for name, value in model.decoder_state.items():
        content[name.replace("point.", "mlp1.").replace("view.", "mlp2.")] = value.detach().float().cpu()
    _save(path, content)


def write_serialize(path: str | Path, model: VoxelModel) -> None:
    """Write the original's ``serialize.pth`` for its real-time viewer (which knows N = 128 and 256, white background).

    Raises:
        DataError: the model has no table. Nothing is written.
    """
    compact = _compact(path, model)
    fused = compact.fused()
    _save(
        path,
        {
            "f": fused.first(compact.features),
            "i": compact.ids.to(torch.int32),
            "m": lower_corners(compact.ids, compact.fine_mask()),
            "p": fused.to_packed(),
        },
    )


def _compact(path: str | Path, model: VoxelModel) -> VoxelModel:
    try:
        return model.compact()
    except ValueError as error:
        _refuse(path, str(error))


def _refuse(path: str | Path, problem: str) -> NoReturn:
    raise DataError(path, "", f"Not written: {problem}.", "Convert a finished model, or write safetensors.")


def _save(path: str | Path, content: dict[str, Tensor]) -> None:
    # Through a handle: torch would put the temporary file's name into the archive.
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        torch.save(content, handle)
