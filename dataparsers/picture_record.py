"""``ns-r4dv.json``: what made the pictures of a folder, so that an interrupted command goes on and never mixes two.

    {"what": "images", "settings": {...}, "sources": {CAM: ...}, "sizes": {CAM: [W, H, FW, FH]}, "done": [CAM, ...]}

``sizes`` serves readers too: pictures of W x H whose calibration is of photos of FW x FH (r4dv 2.5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core_ns.atomic import write_json
from core_ns.errors import DataError

RECORD = "ns-r4dv.json"

_DELETE = "Delete the folder, or name another one."


@dataclass
class Record:
    """See the module docstring. ``sizes`` only of cameras whose pictures are not of the calibrated size."""

    what: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write it atomically."""
        write_json(folder / RECORD, asdict(self))


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        record = Record(**{name: content[name] for name in ("what", "settings", "sources", "sizes", "done")})
        sides = [side for size in record.sizes.values() for side in size]
        sound = all(len(size) == 4 for size in record.sizes.values()) and all(type(side) is int for side in sides)
        named = isinstance(record.what, str) and isinstance(record.settings, dict) and isinstance(record.sources, dict)
        if not (sound and named and all(0 < side < 1 << 17 for side in sides) and set(map(type, record.done)) <= {str}):
            raise ValueError("a field has the wrong type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"cannot be used ({type(error).__name__}: {error})."
        raise DataError(file, "record", problem, _DELETE) from error
    return record


def refuse_unfinished(folder: Path, record: Record | None, names: Sequence[str]) -> None:
    """Refuse pictures of a command that was interrupted.

    Raises:
        DataError: it had not come to the end of one of the cameras.
    """
    left = [] if record is None else [name for name in names if name in record.sources and name not in record.done]
    if record is not None and left:
        problem = f"holds the {record.what} of a command that was interrupted: {len(left)} cameras are not finished."
        raise DataError(folder, f"camera {left[0]}", problem, "Give the same command again: it goes on.")


def stamp_of(files: Sequence[Path]) -> list[Any]:
    """Name, size and time of change of each file: tells a changed source from the same one.

    Raises:
        DataError: one is gone.
    """
    stamps = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(file, "path", f"cannot be read ({error}).", "Check the folder.") from error
        stamps.append([file.name, status.st_size, status.st_mtime_ns])
    return stamps


def refuse_other(folder: Path, record: Record) -> Record | None:
    """The record on disk, which tells of the same work; None where nothing is there yet. Writes nothing.

    Raises:
        DataError: the folder holds other pictures.
    """
    known = read_record(folder)
    if known is not None:
        fresh = json.loads(json.dumps(asdict(record)))  # tuples become lists, as in the file
        for name in ("what", "settings", "sources", "sizes"):
            if getattr(known, name) != fresh[name]:
                problem = f"holds the pictures of another run of this or another command ({name} differ)."
                raise DataError(folder, RECORD, problem, _DELETE)
    elif folder.exists() and (
        not folder.is_dir() or any(not each.name.startswith(".tmp-") for each in folder.iterdir())
    ):
        raise DataError(folder, "folder", "holds something that this command did not write.", _DELETE)
    return known


def begin(folder: Path, record: Record) -> Record:
    """Start, or go on with, filling a folder.

    Returns:
        The record to go on with: that on disk where it tells of the same work. Files that a killed process left
        half-written are removed.

    Raises:
        DataError: the folder holds other pictures; nothing is written then.
    """
    known = refuse_other(folder, record)
    if known is None:
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)
        known = record
    for left in folder.rglob(".tmp-*"):
        left.unlink(missing_ok=True)
    return known
