"""Pickled pair lists to converted splits: once, and nothing else ever opens a pickle (spec megascenes 2.6)."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core_ns.errors import DataError
from dataparsers.megascenes_missing import MISSING_FILE, MissingPair, drop_missing, write_missing
from dataparsers.megascenes_paths import Resolver
from dataparsers.megascenes_pickle import read_rows
from dataparsers.megascenes_rows import ColumnBuilder, compact, parse_row
from dataparsers.megascenes_table import PairTable, write_table


@dataclass(frozen=True)
class Converted:
    """One list after conversion."""

    split: str
    table: PairTable
    listed: int
    """Rows in the list."""
    missing: list[MissingPair] = field(default_factory=list)


def split_name(file: str | Path) -> str:
    """What a list's split is called: its file name without ``.pkl``, and without a ``split`` at the end of it."""
    stem = Path(file).name.removesuffix(".pkl")
    name = stem.removesuffix("split").rstrip("_-") or stem
    return name.lstrip(".") or "pairs"


def columns_of(file: str | Path) -> tuple[dict[str, np.ndarray], int]:
    """The columns of a pickled list, and its number of rows.

    Raises:
        DataError: see `read_rows` and `parse_row`; or a list of nothing.
    """
    # Millions of small lists and no cycles among them: looking for cycles would double the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        rows = read_rows(file)
        if not rows:
            raise DataError(file, "list", "holds no pair.", "Name another list.")
        builder = ColumnBuilder()
        for number in range(len(rows)):
            row, rows[number] = rows[number], None
            builder.add(*parse_row(row, number, file), number)
        return builder.columns(), len(rows)
    finally:
        if collecting:
            gc.enable()


def convert_splits(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    images: str | Path | None = None,
    categories: Mapping[str, str] | None = None,
    cache: str | Path | None = None,
    strict: bool = False,
) -> list[Converted]:
    """Convert pickled lists into ``out/SPLIT`` each (`split_name`); all are read before anything is written.

    Args:
        files: ``.pkl`` lists.
        out: folder of converted splits; splits of the same name in it are replaced.
        images: folder of photos; pairs without their photos are left out and listed in ``missing_pairs.txt``.
        categories: see `megascenes_paths.read_categories`.
        cache: folder of resized copies, see `Resolver`.
        strict: refuse lists with missing photos instead.

    Raises:
        DataError: a list that cannot be used, two lists of one name, missing photos with ``strict``.
    """
    names = [split_name(file) for file in files]
    for name, file in zip(names, files, strict=True):
        if names.count(name) > 1:
            raise DataError(file, "name", f"gives split {name!r}, and so does another list.", "Rename one of them.")
    resolver = Resolver(
        Path(images), dict(categories or {}), None if cache is None else Path(cache)
    ) if images is not None else None  # fmt: skip
    ready = []
    for name, file in zip(names, files, strict=True):
        columns, listed = columns_of(file)
        missing: list[MissingPair] = []
        if resolver is not None:
            whole = PairTable(Path(file), columns, {}, None)
            kept, missing = drop_missing(whole, resolver, strict)
            if missing:
                columns = compact(columns, kept.positions)
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        meta = {"split": name, "source": Path(file).name, "source_sha256": digest, "source_rows": listed,
                "missing": len(missing), "photos_checked": resolver is not None}  # fmt: skip
        ready.append((name, columns, meta, listed, missing))
    return [_write(Path(out) / name, *rest) for name, *rest in ready]


def _write(
    folder: Path, columns: dict[str, np.ndarray], meta: dict, listed: int, missing: list[MissingPair]
) -> Converted:
    (folder / MISSING_FILE).unlink(missing_ok=True)
    if missing:
        write_missing(folder / MISSING_FILE, missing)
    return Converted(folder.name, write_table(folder, columns, meta), listed, missing)
