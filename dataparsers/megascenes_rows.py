"""Rows of a MegaScenes pair list to columns, every number looked at (spec megascenes 2.1).

A row is ``[path1, path2, dict1, dict2, scale]``; the scale may be missing. Numbers may be text, NumPy scalars or
arrays; COLMAP's ``extrinsics`` are ``qw qx qy qz tx ty tz``, world to camera, and ``intrinsics`` are ``[model, width,
height, parameters...]``.
"""

from __future__ import annotations

import math
import re
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core_ns.errors import DataError
from dataparsers.megascenes_paths import path_problem
from dataparsers.megascenes_pickle import ArrayValue
from dataparsers.megascenes_table import PAIR, VIEW

PARAMETERS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4}
"""Camera models of the lists, and their numbers of parameters. The lens term of SIMPLE_RADIAL is ignored everywhere."""

MAX_SIDE = 1 << 20
_NORM = (0.9, 1.1)
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_ROW = "A row is [path1, path2, dict1, dict2, scale]; see docs/megascenes.md."
_CAMERA = "A camera is {'extrinsics': [qw qx qy qz tx ty tz], 'intrinsics': [model, width, height, parameters]}."


class Camera(NamedTuple):
    """One camera as listed, all numbers float or int; `VIEW` without the path."""

    q: tuple[float, float, float, float]
    t: tuple[float, float, float]
    f: tuple[float, float]
    c: tuple[float, float]
    size: tuple[int, int]


class _Bad(ValueError):
    """Place within the row, problem, remedy."""


def _number(value: Any, place: str) -> float:
    """A finite float from a number, a numeric text or an array of one of them."""
    if type(value) is ArrayValue and value.values is not None and len(value.values) == 1:
        value = value.values[0]
    if isinstance(value, str) and len(value) <= 64 and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shown = repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"
        raise _Bad(place, f"is {shown}, not a number.", _CAMERA)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Bad(place, "is not finite.", "Remove the pair from the list.")
    return number


def _items(value: Any, place: str) -> list[Any]:
    if type(value) is ArrayValue:
        value = value.values
    if not isinstance(value, (list, tuple)):
        raise _Bad(place, f"is a {type(value).__name__}, not a list.", _CAMERA)
    return list(value) if len(value) <= 64 else [None] * 65


def _pose(value: Any) -> tuple[tuple, tuple]:
    items = _items(value, "extrinsics")
    if len(items) != 7:
        raise _Bad("extrinsics", f"has {'over 64' if len(items) > 64 else len(items)} numbers, not 7.", _CAMERA)
    numbers = [_number(item, f"extrinsics[{i}]") for i, item in enumerate(items)]
    norm = math.sqrt(sum(number * number for number in numbers[:4]))
    if not _NORM[0] <= norm <= _NORM[1]:
        problem = f"has a quaternion of length {norm:.3g}, not 1."
        raise _Bad("extrinsics", problem, "It is qw qx qy qz tx ty tz, world to camera.")
    return tuple(numbers[:4]), tuple(numbers[4:])


def _lens(value: Any) -> tuple[tuple, tuple, tuple]:
    items = _items(value, "intrinsics")
    model = items[0] if items else None
    if not isinstance(model, str) or model not in PARAMETERS:
        shown = repr(model[:40]) if isinstance(model, str) else f"a {type(model).__name__}"
        known = ", ".join(PARAMETERS)
        remedy = f"Known: {known}. Undistort the photos (colmap image_undistorter) and list them as PINHOLE."
        raise _Bad("intrinsics", f"has the camera model {shown}.", remedy)
    if len(items) != 3 + PARAMETERS[model]:
        problem = f"has {len(items) - 3} parameters; {model} has {PARAMETERS[model]}."
        raise _Bad("intrinsics", problem, _CAMERA)
    numbers = [_number(item, f"intrinsics[{i}]") for i, item in enumerate(items[1:], start=1)]
    for name, side in zip(("width", "height"), numbers[:2], strict=True):
        if side != int(side) or not 1 <= side <= MAX_SIDE:
            raise _Bad("intrinsics", f"has the {name} {side:g}, not a number of pixels.", _CAMERA)
    parameters = numbers[2:]
    focal = (parameters[0], parameters[1]) if model == "PINHOLE" else (parameters[0], parameters[0])
    if min(focal) <= 0.0:
        raise _Bad("intrinsics", f"has the focal length {min(focal):g}, not a positive one.", _CAMERA)
    centre = (parameters[2], parameters[3]) if model == "PINHOLE" else (parameters[1], parameters[2])
    return focal, centre, (int(numbers[0]), int(numbers[1]))


def _camera(value: Any) -> Camera:
    if type(value) is not dict:
        raise _Bad("camera", f"is a {type(value).__name__}, not a dictionary.", _CAMERA)
    for key in ("extrinsics", "intrinsics"):
        if key not in value:
            raise _Bad(key, "is missing.", _CAMERA)
    return Camera(*_pose(value["extrinsics"]), *_lens(value["intrinsics"]))


def parse_row(row: Any, number: int, file: str | Path) -> tuple[str, str, Camera, Camera, float]:
    """A row of a list to (reference path, target path, reference camera, target camera, scale or NaN).

    Raises:
        DataError: it does not fit the description above; the place is the row (from 0), which of the photos, and what.
    """
    if not isinstance(row, (list, tuple)):
        raise DataError(file, f"row {number}", f"is a {type(row).__name__}, not a list.", _ROW)
    if len(row) not in (4, 5):
        raise DataError(file, f"row {number}", f"has {len(row)} items, not 5.", _ROW)
    for i in (0, 1):
        problem = path_problem(row[i])
        if problem is not None:
            remedy = "Names lead from '.../main/images/' to a photo, and never out of it."
            raise DataError(file, f"row {number}, path{i + 1}", f"{problem}.", remedy)
    place = ""
    try:
        place = "camera 1"
        ref = _camera(row[2])
        place = "camera 2"
        tgt = _camera(row[3])
        place, scale = "scale", math.nan
        if len(row) == 5 and row[4] is not None:
            scale = _number(row[4], "value")
            if scale < 0.0:
                raise _Bad("value", f"is {scale:g}; a depth is not negative.", "Remove the pair from the list.")
    except _Bad as bad:
        what, problem, remedy = bad.args
        raise DataError(file, f"row {number}, {place}, {what}", problem, remedy) from None
    return row[0], row[1], ref, tgt, scale


class ColumnBuilder:
    """Gathers pairs; paths and views that occur again are stored once."""

    def __init__(self) -> None:
        self._paths: dict[str, int] = {}
        self._views: dict[tuple, int] = {}
        self._pairs = {name: array(code) for name, code in (("ref", "I"), ("tgt", "I"), ("scale", "d"), ("row", "I"))}

    def __len__(self) -> int:
        return len(self._pairs["row"])

    def add(self, ref_path: str, tgt_path: str, ref: Camera, tgt: Camera, scale: float, row: int) -> None:
        """Append one pair."""
        values = (self._view(ref_path, ref), self._view(tgt_path, tgt), scale, row)
        for column, value in zip(self._pairs.values(), values, strict=True):
            column.append(value)

    def _view(self, path: str, camera: Camera) -> int:
        number = self._paths.setdefault(path, len(self._paths))
        return self._views.setdefault((number, *camera), len(self._views))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that `megascenes_table.write_table` takes."""
        pairs = np.empty(len(self), PAIR)
        for name, column in self._pairs.items():
            pairs[name] = np.frombuffer(column, column.typecode) if len(column) else 0
        encoded = [path.encode("utf-8") for path in self._paths]
        return {
            "pairs": pairs,
            "views": np.fromiter(self._views, VIEW, len(self._views)),
            "path_ends": np.cumsum([len(each) for each in encoded], dtype=np.int64),
            "path_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        }


def compact(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of some pairs only, without the views and paths that none of them uses."""
    pairs = np.array(columns["pairs"][rows])
    used, numbers = np.unique(np.concatenate([pairs["ref"], pairs["tgt"]]), return_inverse=True)
    pairs["ref"], pairs["tgt"] = numbers[: len(pairs)], numbers[len(pairs) :]
    views = np.array(columns["views"][used])
    kept, views["path"] = np.unique(views["path"], return_inverse=True)
    ends = columns["path_ends"]
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    blob = columns["path_bytes"]
    texts = [blob[starts[each] : ends[each]].tobytes() for each in kept]
    return {
        "pairs": pairs,
        "views": views,
        "path_ends": np.cumsum([len(each) for each in texts], dtype=np.int64),
        "path_bytes": np.frombuffer(b"".join(texts), np.uint8),
    }
