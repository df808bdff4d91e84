"""Converted pair lists: a few plain arrays that every process maps and none copies.

A folder of converted splits holds one folder per split (``train``, ``test``), each with

    pairs.npy         per pair: numbers of the reference's and the target's view, scale (NaN where the list had none),
                      row in the list
    views.npy         per view (a photo with a camera; stored once, however many pairs it is in): number of its path,
                      quaternion w x y z and translation as listed, fx fy cx cy, width, height
    path_ends.npy     where each path ends in
    path_bytes.npy    all paths, UTF-8, without gaps
    meta.json         written last: sizes of the arrays, where they come from

Numbers stay float64: relative poses are differences of positions that may lie far from the origin. Source: spec
megascenes 2.6.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError

Array = np.ndarray
SCHEMA = 1
META = "meta.json"
PAIR = np.dtype([("ref", "<u4"), ("tgt", "<u4"), ("scale", "<f8"), ("row", "<u4")])
VIEW = np.dtype(
    [
        ("path", "<u4"),
        ("q", "<f8", (4,)),
        ("t", "<f8", (3,)),
        ("f", "<f8", (2,)),
        ("c", "<f8", (2,)),
        ("size", "<u4", (2,)),
    ]
)
_FILES = {"pairs": PAIR, "views": VIEW, "path_ends": np.dtype("<i8"), "path_bytes": np.dtype("u1")}
_AGAIN = "Convert the list again (ns-megascenes convert-splits)."


@dataclass(frozen=True, eq=False)
class Pair:
    """One ordered pair as listed. Matrices are float64, sizes (width, height) in pixels of the stored photos."""

    ref_path: str
    tgt_path: str
    ref_w2c: Float[Array, "4 4"]
    """World to camera, OpenCV, units of the reconstruction. As rigid as the stored quaternion is of unit length."""
    tgt_w2c: Float[Array, "4 4"]
    ref_K: Float[Array, "3 3"]
    tgt_K: Float[Array, "3 3"]
    ref_size: tuple[int, int]
    tgt_size: tuple[int, int]
    scale: float | None
    """20 % quantile of the reference's depth, units of the reconstruction; None where the list had none."""
    index: int
    """Row in the list, from 0; rows that were left out leave gaps."""


class PairArrays:
    """The same for many pairs at once; each array is made when it is asked for, for two million pairs take 1 GB."""

    def __init__(self, pairs: Array, views: Array) -> None:
        self._pairs, self._views = pairs, views

    @cached_property
    def _ref(self) -> Array:
        return self._views[self._pairs["ref"]]

    @cached_property
    def _tgt(self) -> Array:
        return self._views[self._pairs["tgt"]]

    @cached_property
    def ref_w2c(self) -> Float[Array, "n 4 4"]:
        """World to camera of the references."""
        return _w2c(self._ref)

    @cached_property
    def tgt_w2c(self) -> Float[Array, "n 4 4"]:
        """World to camera of the targets."""
        return _w2c(self._tgt)

    @cached_property
    def ref_K(self) -> Float[Array, "n 3 3"]:
        """Intrinsics of the references."""
        return _K(self._ref)

    @cached_property
    def tgt_K(self) -> Float[Array, "n 3 3"]:
        """Intrinsics of the targets."""
        return _K(self._tgt)

    @cached_property
    def ref_size(self) -> Int[Array, "n 2"]:
        """(width, height) of the references."""
        return self._ref["size"].astype(np.int64)

    @cached_property
    def tgt_size(self) -> Int[Array, "n 2"]:
        """(width, height) of the targets."""
        return self._tgt["size"].astype(np.int64)

    @cached_property
    def scale(self) -> Float[Array, "n"]:
        """Depth quantiles of the references; NaN where the list has none."""
        return self._pairs["scale"].astype(np.float64)

    @cached_property
    def index(self) -> Int[Array, "n"]:
        """Rows in the list."""
        return self._pairs["row"].astype(np.int64)


def quaternion_rotation(q: Float[Array, "*n 4"]) -> Float[Array, "*n 3 3"]:
    """R(q) of (w, x, y, z) by COLMAP's formula, without normalising, as the original has it."""
    w, x, y, z = np.moveaxis(np.asarray(q, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


class PairTable(Sequence[Pair]):
    """The pairs of one split, or some of them: ``len(table)``, ``table[i]``, ``table.arrays(rows)``.

    Open one with `PairTable.open`. Pickling (data loader workers) sends the folder's name and the choice of rows, not
    the arrays; a worker maps the same pages.
    """

    def __init__(self, folder: Path, columns: dict[str, Array], meta: dict[str, Any], rows: Array | None) -> None:
        self.folder, self.meta = folder, meta
        self._pairs, self._views = columns["pairs"], columns["views"]
        self._ends, self._bytes = columns["path_ends"], columns["path_bytes"]
        self._rows = rows

    @classmethod
    def open(cls, folder: str | Path) -> PairTable:
        """Map a converted split.

        Raises:
            DataError: no converted split, one that was not written to its end, or damaged.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        columns = {name: _map(folder / f"{name}.npy", dtype, meta) for name, dtype in _FILES.items()}
        table = cls(folder, columns, meta, None)
        table._check()
        return table

    def __reduce__(self):
        return _reopen, (self.folder, None if self._rows is None else np.asarray(self._rows))

    def __len__(self) -> int:
        return len(self._pairs) if self._rows is None else len(self._rows)

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        """A `Pair`; negative numbers count from the end; a slice gives a table."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        a = self.arrays([index])
        ref, tgt = self.paths(index)
        scale = float(a.scale[0])
        return Pair(
            ref,
            tgt,
            a.ref_w2c[0],
            a.tgt_w2c[0],
            a.ref_K[0],
            a.tgt_K[0],
            (int(a.ref_size[0, 0]), int(a.ref_size[0, 1])),
            (int(a.tgt_size[0, 0]), int(a.tgt_size[0, 1])),
            None if np.isnan(scale) else scale,
            int(a.index[0]),
        )

    def arrays(self, rows: Sequence[int] | Int[Array, "n"] | slice = slice(None)) -> PairArrays:
        """Cameras, sizes and scales of many pairs (default: of all)."""
        return PairArrays(self._chosen(rows), self._views)

    def select(self, rows: Sequence[int] | Int[Array, "n"]) -> PairTable:
        """A table of these pairs of this one, in this order; shares its pages. Negative numbers count from the end.

        Raises:
            IndexError: a number beyond the table.
        """
        rows = np.asarray(rows, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError("a row is outside the table")
        chosen = rows if self._rows is None else self._rows[rows]
        columns = {"pairs": self._pairs, "views": self._views, "path_ends": self._ends, "path_bytes": self._bytes}
        return PairTable(self.folder, columns, self.meta, chosen.astype(np.uint32))

    def paths(self, index: int) -> tuple[str, str]:
        """(reference, target) as listed, without looking at the cameras."""
        ref, tgt = self.path_numbers([index])[0]
        return self.path(ref), self.path(tgt)

    def path_numbers(self, rows: Sequence[int] | Int[Array, "n"] | slice = slice(None)) -> Int[Array, "n 2"]:
        """Numbers of the reference's and the target's path: equal numbers, equal photos."""
        pairs = self._chosen(rows)
        views = np.stack([pairs["ref"], pairs["tgt"]], axis=-1)
        return self._views["path"][views].astype(np.int64)

    def path(self, number: int) -> str:
        """A path by its number."""
        end = int(self._ends[number])
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start:end].tobytes().decode("utf-8")

    @property
    def path_count(self) -> int:
        """Different paths in the whole split."""
        return len(self._ends)

    @property
    def positions(self) -> Int[Array, "n"]:
        """Where its pairs stand in `columns`."""
        return np.arange(len(self._pairs)) if self._rows is None else self._rows.astype(np.int64)

    @property
    def columns(self) -> dict[str, Array]:
        """The arrays of the whole split, as stored; for writers."""
        return {"pairs": self._pairs, "views": self._views, "path_ends": self._ends, "path_bytes": self._bytes}

    def _chosen(self, rows: Sequence[int] | Array | slice) -> Array:
        if self._rows is None:
            return self._pairs[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        return self._pairs[self._rows[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]]

    def _check(self) -> None:
        """A damaged number must not become an IndexError in the middle of training."""
        views, paths, size = len(self._views), len(self._ends), len(self._bytes)
        for column in ("ref", "tgt"):
            if len(self._pairs) and int(self._pairs[column].max()) >= views:
                raise DataError(
                    self.folder / "pairs.npy", column, f"names a view beyond the last, {views - 1}.", _AGAIN
                )
        if views and int(self._views["path"].max()) >= paths:
            raise DataError(self.folder / "views.npy", "path", f"names a path beyond the last, {paths - 1}.", _AGAIN)
        if paths and (int(self._ends[-1]) != size or int(self._ends[0]) < 0 or bool((np.diff(self._ends) < 0).any())):
            raise DataError(self.folder / "path_ends.npy", "content", "does not fit path_bytes.npy.", _AGAIN)


def _w2c(views: Array) -> Array:
    matrices = np.zeros((len(views), 4, 4))
    matrices[:, :3, :3], matrices[:, :3, 3], matrices[:, 3, 3] = quaternion_rotation(views["q"]), views["t"], 1.0
    return matrices


def _K(views: Array) -> Array:
    matrices = np.zeros((len(views), 3, 3))
    matrices[:, 0, 0], matrices[:, 1, 1] = views["f"].T
    matrices[:, :2, 2], matrices[:, 2, 2] = views["c"], 1.0
    return matrices


def _reopen(folder: Path, rows: Array | None) -> PairTable:
    table = PairTable.open(folder)
    return table if rows is None else table.select(rows)


def _read_meta(folder: Path) -> dict[str, Any]:
    file = folder / META
    if not file.is_file():
        hint = "Name a folder that ns-megascenes convert-splits wrote; after an interruption, convert again."
        inside = [each.name for each in folder.iterdir() if (each / META).is_file()] if folder.is_dir() else []
        if inside:
            hint = f"It is a folder of splits: name one of them ({', '.join(sorted(inside)[:5])})."
        raise DataError(folder, META, "is missing: this is no converted split.", hint)
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        lengths = meta["lengths"]
        if meta["schema"] != SCHEMA:
            raise ValueError(f"schema {meta['schema']}, this version reads {SCHEMA}")
        if not all(type(lengths[name]) is int and lengths[name] >= 0 for name in _FILES):
            raise ValueError("a length is no number")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(file, "content", f"cannot be used ({type(error).__name__}: {error}).", _AGAIN) from error
    return meta


def _map(file: Path, dtype: np.dtype, meta: dict[str, Any]) -> Array:
    length = meta["lengths"][file.stem]
    try:
        # The memory map of an empty array is an error, and it has nothing to map.
        array = np.load(file, mmap_mode="r" if length else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(file, "content", f"cannot be mapped ({type(error).__name__}: {error}).", _AGAIN) from error
    if array.dtype != dtype or array.shape != (length,):
        problem = f"is {array.dtype} {array.shape}, not {length} records as meta.json says."
        raise DataError(file, "content", problem[:300], _AGAIN)
    return np.asarray(array)  # still mapped, without the class whose slices cost more


def write_table(folder: str | Path, columns: dict[str, Array], meta: dict[str, Any]) -> PairTable:
    """Write a split, `META` last, so that a half-written one is none; open it.

    Args:
        folder: made if need be; an older table in it is replaced, processes that mapped it keep the old pages.
        columns: pairs, views, path_ends, path_bytes; see the module docstring.
        meta: more entries for meta.json, JSON values only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    for left in folder.glob(".tmp-*.npy"):  # of a conversion that was killed
        left.unlink(missing_ok=True)
    for name, dtype in _FILES.items():
        with atomic_path(folder / f"{name}.npy") as temporary, open(temporary, "wb") as handle:
            np.save(handle, np.ascontiguousarray(columns[name], dtype=dtype), allow_pickle=False)
    write_json(folder / META, {"schema": SCHEMA, **meta, "lengths": {name: len(columns[name]) for name in _FILES}})
    return PairTable.open(folder)


def list_splits(folder: str | Path) -> dict[str, Path]:
    """Name and folder of every converted split in a folder, by name; empty where there is none."""
    folder = Path(folder)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {each.name: each for each in found if (each / META).is_file()}
