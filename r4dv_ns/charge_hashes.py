"""``hashes.json``: the SHA-256 of every file of a charge, for whoever checks it; opening a charge does not read it.

The manifest holds the SHA-256 of this file, so that manifest and files still belong together (spec r4dv 5.2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core_ns.atomic import write_bytes
from core_ns.errors import DataError
from r4dv_ns.charge_fields import REMEDY, Fields, inside, read_fields

if TYPE_CHECKING:
    from r4dv_ns.charge_manifest import Manifest

HASHES = "hashes.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises OSError."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_sha256(value: object) -> bool:
    """Whether something is a SHA-256 as `file_sha256` writes it."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def write_hashes(folder: Path, manifest: Manifest, hashes: Mapping[str, str]) -> str:
    """Write the table, atomically; its own SHA-256.

    Args:
        folder: of the charge.
        manifest: whose files these are.
        hashes: SHA-256 by path relative to the folder, with slashes.

    Raises:
        DataError: a file of the manifest is missing, or one is none of a charge; nothing is written.
    """
    table = checked_hashes(Fields(dict(hashes), folder / HASHES), manifest)
    data = (json.dumps(table, indent=1) + "\n").encode()
    write_bytes(folder / HASHES, data)
    return hashlib.sha256(data).hexdigest()


def read_hashes(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file that the manifest speaks of (of the chosen frames alone: `Manifest.select`), by path.

    Raises:
        DataError: the table is absent, not the one that was written with the manifest, or incomplete.
    """
    file = Path(folder) / HASHES
    fields = read_fields(file)
    if file_sha256(file) != manifest.hashes:
        raise DataError(file, "SHA-256", "is not the file that was written.", REMEDY)
    table, wanted = checked_hashes(fields, manifest), set(manifest.paths())
    return {path: value for path, value in table.items() if path in wanted}


def checked_hashes(fields: Fields, manifest: Manifest) -> dict[str, str]:
    """A table that has every file of the manifest, and none outside of the folder.

    Raises:
        DataError: it has not.
    """
    for path, value in fields.content.items():
        if not inside(path, "frames", "static", "eval"):
            raise fields.wrong(path, "is no file of a charge")
        if not is_sha256(value):
            raise fields.wrong(path, "is not the SHA-256 of a file")
    for path in manifest.paths():
        if path not in fields.content:
            raise fields.wrong(path, "is missing")
    return dict(fields.content)
