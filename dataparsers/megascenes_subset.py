"""The first scenes or pairs of a split, and a list of what to download for them (spec megascenes 2.2).

The whole set of photos takes 3.2 TB. The list is for ``s5cmd --no-sign-request run LIST``, which copies from the public
bucket; nothing here reaches for the network.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core_ns.errors import DataError
from dataparsers.megascenes_paths import bucket_path, split_path
from dataparsers.megascenes_rows import compact
from dataparsers.megascenes_table import PairTable, write_table

BUCKET = "s3://megascenes/"


@dataclass(frozen=True)
class Subset:
    """Chosen pairs, and the files they need."""

    table: PairTable
    files: list[str]
    """Inside the bucket (``images/AAA/BBB/...``), sorted, each once."""
    scenes: int
    unmapped: list[str]
    """Categories that ``categories.json`` does not have; their pairs are not in ``table``."""


def choose_subset(
    table: PairTable, categories: Mapping[str, str], scenes: int | None = None, pairs: int | None = None
) -> Subset:
    """The first so many scenes (by the reference's category), or the first so many pairs, or both.

    Raises:
        DataError: nothing is left.
    """
    numbers = table.path_numbers()
    used = np.unique(numbers)
    category: dict[int, str] = {}
    file: dict[int, str | None] = {}
    for number in used.tolist():
        path = table.path(number)
        category[number], file[number] = split_path(path).category, bucket_path(path, categories)
    there = np.zeros(table.path_count, dtype=bool)
    there[[number for number in used.tolist() if file[number] is not None]] = True
    unmapped = sorted({category[number] for number in used.tolist() if file[number] is None})
    rows = np.nonzero(there[numbers].all(axis=1))[0]
    order: dict[str, int] = {}
    scene = np.array([order.setdefault(category[number], len(order)) for number in numbers[rows, 0].tolist()], np.int64)
    if scenes is not None:
        rows, scene = rows[scene < scenes], scene[scene < scenes]
    if pairs is not None:
        rows, scene = rows[:pairs], scene[:pairs]
    if not len(rows):
        known = f"; {len(unmapped)} categories, first {unmapped[0]!r}, are not in categories.json" if unmapped else ""
        raise DataError(table.folder, "pairs", f"leave nothing to download{known}.", "Ask for at least one scene.")
    files = sorted({name for number in np.unique(numbers[rows]).tolist() if (name := file[number]) is not None})
    return Subset(table.select(rows), files, len(np.unique(scene)), unmapped)


def download_lines(files: Sequence[str], destination: str = ".") -> list[str]:
    """One ``s5cmd`` command per file; ``--raw``, because names hold brackets and stars.

    Args:
        files: names inside the bucket.
        destination: folder of the copy; it gets a folder ``images``.
    """
    root = destination.rstrip("/") or "/"
    return [f"cp --raw {shlex.quote(BUCKET + each)} {shlex.quote(f'{root}/{each}')}" for each in files]


def write_subset(folder: str | Path, subset: Subset) -> PairTable:
    """Write the chosen pairs as a split of their own; rows keep the numbers of the list they come from.

    Raises:
        DataError: the folder is the one that the pairs are taken from.
    """
    table = subset.table
    if Path(folder).resolve() == table.folder.resolve():
        problem = "is the split that the pairs are taken from."
        raise DataError(folder, "path", problem, "Name another folder for the subset.")
    keep = ("source", "source_sha256", "source_rows", "split")
    meta = {name: table.meta[name] for name in keep if name in table.meta}
    return write_table(folder, compact(table.columns, table.positions), {**meta, "missing": 0, "subset": True})
