"""Reading a JSON file that a stranger may have written: every entry is checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError

REMEDY = "Bake the charge again, or copy it again."


def plain_name(name: Any) -> bool:
    """Whether a text can be one part of a path on every system: no separator, no drive, not "", "." or ".."."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0") and name.isprintable()
    )


def inside(path: Any, *folders: str) -> bool:
    """Whether a text is the path of a file below one of the folders of a charge, with slashes, and in one spelling."""
    if not isinstance(path, str):
        return False
    parts = PurePosixPath(path).parts
    return len(parts) > 1 and parts[0] in folders and "/".join(parts) == path and all(map(plain_name, parts))


class Fields:
    """The entries of a JSON object, each fetched with its type.

    Args:
        content: the object.
        file: where it was read, for errors.
        place: of the object in the file, for errors; "" for the whole.

    Every method raises `DataError` (naming file and entry) when the entry is absent or of another kind.
    """

    def __init__(self, content: Any, file: Path, place: str = "") -> None:
        self.file, self.place = file, place
        if not isinstance(content, dict):
            raise self.wrong("", "is not an object")
        self.content = content

    def wrong(self, key: str, problem: str) -> DataError:
        """The error about an entry."""
        place = ".".join(part for part in (self.place, key) if part)
        return DataError(self.file, place, f"{problem}.", REMEDY)

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise self.wrong(key, "is missing")
        return self.content[key]

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str:
        """A string, one of ``choices`` if there are any."""
        value = self[key]
        if not isinstance(value, str) or (choices and value not in choices):
            raise self.wrong(key, f"is {_short(value)}, not {' or '.join(choices) or 'a text'}")
        return value

    def name(self, key: str) -> str:
        """A string that can be a file's name (`plain_name`)."""
        value = self[key]
        if not plain_name(value):
            raise self.wrong(key, f"is {_short(value)}, not a plain name")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self[key]
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {_short(value)}, not true or false")
        return value

    def whole(self, key: str, low: int, high: int = 2**31 - 1) -> int:
        """A whole number within [low, high]."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"is {_short(value)}, not a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within [low, high]."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise self.wrong(key, f"is {_short(value)}, not a number")
        if not low <= value <= high:
            raise self.wrong(key, f"is {value}, outside of {low} to {high}")
        return float(value)

    def array(self, key: str, *shapes: tuple[int, ...]) -> Float[np.ndarray, "*n"]:
        """Nested lists of finite numbers as float64, of one of the shapes."""
        try:
            value = np.array(self[key])
        except (ValueError, OverflowError, RecursionError):
            value = np.zeros(0, object)
        if value.dtype.kind not in "if" or value.shape not in shapes or not np.isfinite(value).all():
            wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
            raise self.wrong(key, f"is not {wanted} finite numbers")
        return value.astype(np.float64)

    def items(self, key: str) -> list[Any]:
        """A list."""
        value = self[key]
        if not isinstance(value, list):
            raise self.wrong(key, "is not a list")
        return value

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        for index, item in enumerate(self.items(key)):
            yield Fields(item, self.file, f"{self.place}{key}[{index}]")

    def child(self, key: str) -> Fields:
        """An object."""
        return Fields(self[key], self.file, f"{self.place}{key}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_fields(file: Path) -> Fields:
    """The object in a JSON file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(file, "", "is not there.", "Name a finished charge; an unfinished one: bake again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(file, "", f"cannot be read as JSON ({error}).", REMEDY) from error
    return Fields(content, file)
