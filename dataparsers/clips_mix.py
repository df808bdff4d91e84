"""Several collections at once: ``--mix LAYOUT:PATH[:WEIGHT[:BEGIN:END]]`` (spec xfactor 2.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from core_ns.errors import DataError
from dataparsers.clips_layouts import Dataset

_FORM = "Write LAYOUT:PATH, LAYOUT:PATH:WEIGHT or LAYOUT:PATH:WEIGHT:BEGIN:END, such as re10k:/data/re10k:3:40:200."
MAX_WEIGHT = 1000


@dataclass(frozen=True)
class MixEntry:
    """One collection of a mix."""

    dataset: Dataset
    path: Path
    weight: int | None = None
    """Share in the samples, whole; None: the layout's default."""
    begin: float | None = None
    """Longest window at the first update, frames; None: the layout's default."""
    end: float | None = None
    """Longest window after the warm-up, frames."""


def parse_mix(text: str, root: Path = Path()) -> MixEntry:
    """Read one entry; a relative path starts from ``root``.

    Raises:
        DataError: it has another form.
    """
    name, colon, rest = text.partition(":")
    if not colon or name not in get_args(Dataset):
        problem = f"names no layout; there are {', '.join(get_args(Dataset))}."
        raise DataError("options", f"mix {text[:80]!r}", problem, _FORM)
    parts = rest.split(":")
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) < 3 and (number := _number(parts[-1])) is not None:
        numbers.insert(0, number)
        parts.pop()
    path = ":".join(parts)
    if not path or len(numbers) == 2:
        raise DataError("options", f"mix {text[:80]!r}", "cannot be read.", _FORM)
    weight = numbers[0] if numbers else None
    begin, end = (numbers[1], numbers[2]) if len(numbers) == 3 else (None, None)
    if weight is not None and (weight != int(weight) or not 1 <= weight <= MAX_WEIGHT):
        problem = f"has the weight {weight:g}, not a whole number from 1 to {MAX_WEIGHT}."
        raise DataError("options", f"mix {text[:80]!r}", problem, _FORM)
    if begin is not None and end is not None and not 2 <= begin <= end:
        raise DataError("options", f"mix {text[:80]!r}", f"grows windows from {begin:g} to {end:g} frames.", _FORM)
    return MixEntry(name, root / path, None if weight is None else int(weight), begin, end)  # type: ignore[arg-type]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
