"""Pairs whose photos are not there: left out before training and listed, never black (spec megascenes 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from core_ns.atomic import write_text
from core_ns.errors import DataError
from dataparsers.megascenes_paths import Resolver
from dataparsers.megascenes_table import PairTable

MISSING_FILE = "missing_pairs.txt"


@dataclass(frozen=True)
class MissingPair:
    """A pair that was left out."""

    row: int
    """In the list, from 0."""
    ref_path: str
    tgt_path: str
    missing: Literal["reference", "target", "both"]


def drop_missing(table: PairTable, resolver: Resolver, strict: bool = False) -> tuple[PairTable, list[MissingPair]]:
    """The pairs whose two photos are there, and those that are not; every photo is looked up once.

    Args:
        strict: refuse a list of which anything is missing.

    Raises:
        DataError: nothing is there at all; or, with ``strict``, not everything.
    """
    numbers = table.path_numbers()
    used = np.unique(numbers)
    found = np.zeros(table.path_count, dtype=bool)
    for number in used:
        found[number] = resolver.find(table.path(int(number))) is not None
    there = found[numbers]
    whole = there.all(axis=1)
    gone = np.nonzero(~whole)[0]
    if len(gone) and (strict or not whole.any()):
        at = gone[0]
        first = table.path(int(numbers[at][~there[at]][0]))
        problem = f"lacks photos of {len(gone)} of {len(table)} pairs, first of row {_row(table, at)}: {first!r}."
        remedy = "Name the folder that holds AAA/BBB/commons (with --categories) or CATEGORY/commons; "
        raise DataError(resolver.images, "photos", problem, remedy + "ns-megascenes subset lists what to download.")
    rows = table.arrays(gone).index if len(gone) else gone
    missing = [
        MissingPair(int(row), *table.paths(int(at)), _which(there[at]))
        for row, at in zip(rows, gone, strict=True)
    ]  # fmt: skip
    return table.select(np.nonzero(whole)[0]), missing


def _row(table: PairTable, at: int) -> int:
    return int(table.arrays([at]).index[0])


def _which(there: np.ndarray) -> Literal["reference", "target", "both"]:
    if there.any():
        return "target" if there[0] else "reference"
    return "both"


def write_missing(file: str | Path, missing: list[MissingPair]) -> None:
    """Write the report, atomically: row, what is missing, the two paths; tabs between, no path holds one."""
    lines = ["row\tmissing\treference\ttarget"]
    lines += [f"{each.row}\t{each.missing}\t{each.ref_path}\t{each.tgt_path}" for each in missing]
    write_text(file, "\n".join(lines) + "\n")
