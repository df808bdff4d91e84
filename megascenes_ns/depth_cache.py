"""Depth on disk: ``depth/SHA1.npz`` for each photo, made once (spec megascenes 2.5).

A file holds the depth as float16 and, as JSON, its unit, its source and its alignment. ``depth/settings.json`` says
what made them: it is part of every name, so depth made otherwise is never found. What is read is what all others read,
so a warp made from a fresh depth and one made from a stored depth are the same.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from dataparsers.megascenes_paths import image_key
from megascenes_ns.depth import Alignment, Depth, usable_scale

Array = np.ndarray

FORMAT = 1
FOLDER = "depth"
SETTINGS = "settings.json"
_READING = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, RecursionError)
_DELETE = "Delete the file; it is made again."


class DepthCache:
    """Stored depth of one kind.

    Args:
        folder: of the cache; files are in its folder ``depth``.
        settings: what decides about the depth, as JSON values (`DepthSource.settings` and the size of the pictures).
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = Path(folder) / FOLDER
        self.settings = json.loads(json.dumps(settings, allow_nan=False))
        self._text = json.dumps({"format": FORMAT, **self.settings}, sort_keys=True)

    @classmethod
    def open(cls, folder: Path) -> DepthCache:
        """The depth in a folder, whatever made it.

        Raises:
            DataError: there is none, or what made it cannot be read.
        """
        settings = read_settings(Path(folder) / FOLDER / SETTINGS)
        if settings is None:
            remedy = "Make it with 'ns-megascenes precompute --what depth'."
            raise DataError(Path(folder) / FOLDER, SETTINGS, "is not there: no depth is stored.", remedy)
        return cls(folder, settings)

    def check(self) -> None:
        """Refuse a folder with depth of another kind. Writes nothing.

        Raises:
            DataError: it holds such, or its settings cannot be read.
        """
        refuse_other(self.folder / SETTINGS, self.settings)

    def begin(self) -> None:
        """Note what makes the depth, before the first file. Raises DataError as `check`."""
        self.check()
        if not (self.folder / SETTINGS).is_file():
            write_json(self.folder / SETTINGS, {"format": FORMAT, **self.settings})

    def file(self, path: str, scale: float | None) -> Path:
        """Where the depth of a photo is or will be.

        Args:
            path: as listed.
            scale: the pair's, which is the depth's unit and so part of the name.

        Raises:
            ValueError: the path cannot be used.
        """
        return self.folder / (image_key(path, "\n".join([self._text, repr(usable_scale(scale))])) + ".npz")

    def read(self, path: str, scale: float | None) -> Depth | None:
        """The stored depth of a photo; None where it is not made yet.

        Raises:
            DataError: the file is damaged.
        """
        file = self.file(path, scale)
        return read_depth(file) if file.is_file() else None

    def write(self, path: str, scale: float | None, depth: Depth) -> Depth:
        """Store the depth of a photo, whole or not at all; give it back as every later reader sees it."""
        file = self.file(path, scale)
        write_depth(file, depth)
        return read_depth(file)


def write_depth(file: Path, depth: Depth) -> None:
    """Write one depth, atomically; equal depths are equal files."""
    alignment = None if depth.alignment is None else depth.alignment.as_dict()
    about = {"q20": depth.q20, "source": depth.source, "unit_known": depth.unit_known, "alignment": alignment}
    text = np.frombuffer(json.dumps(about, allow_nan=False).encode("utf-8"), np.uint8)
    with atomic_path(file) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, depth=depth.values.astype(np.float16), about=text)


def read_depth(file: Path) -> Depth:
    """Read one depth.

    Raises:
        DataError: the file is none of ours, or damaged.
    """
    try:
        # numpy leaves a damaged archive open that it opened itself.
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            values, text = arrays["depth"], arrays["about"]
        about = json.loads(text.tobytes())
        alignment, unit, source = about["alignment"], about["q20"], about["source"]
        if values.dtype != np.float16 or values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"depth is {values.dtype} {list(values.shape)}, or not all of it is a number")
        if not (isinstance(unit, float) and math.isfinite(unit) and unit > 0.0 and isinstance(source, str)):
            raise ValueError(f"q20 is {unit!r}")
        if alignment is not None:
            numbers = {name: math.nan if alignment[name] is None else alignment[name] for name in ("slope", "offset")}
            alignment = Alignment(**{**alignment, **numbers})
        return Depth(values.astype(np.float32), unit, source, alignment, bool(about["unit_known"]))
    except _READING as error:
        raise DataError(file, "depth", f"is damaged ({type(error).__name__}: {error}).", _DELETE) from error


def read_settings(file: Path) -> dict[str, Any] | None:
    """What made the files of a folder; None where nothing says so.

    Raises:
        DataError: the file is damaged, or of another version.
    """
    if not file.is_file():
        return None
    remedy = f"Delete the folder {file.parent}; it is made again."
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        version = settings.pop("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(file, "", f"cannot be read ({type(error).__name__}: {error}).", remedy) from error
    if version != FORMAT:
        raise DataError(file, "format", f"is {version!r}; this version reads {FORMAT}.", remedy)
    return settings


def refuse_other(file: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder whose files were made with other settings. Writes nothing.

    Raises:
        DataError: they were, or ``file`` cannot be read.
    """
    known = read_settings(file)
    if known is None or known == settings:
        return
    other = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    was = {name: known.get(name) for name in other}
    problem = f"was made with other settings ({', '.join(other)}; there: {json.dumps(was)[:300]})."
    remedy = "Name another folder with --cache, or delete this one."
    raise DataError(file.parent, ", ".join(other), problem, remedy)
