"""What a run's pictures are made from, and what its folder keeps of it: views outlive the data (spec megascenes 8.3).

RUN/reference/                the first reference: photo, depth, camera (`reference.save_reference`)
RUN/reference/cameras.json    cameras of all splits, the data's path, the pairs' numbers (`snapshot_parser`)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from core_ns.errors import DataError
from dataparsers.snapshot_parser import SPLITS, outputs_from_json, read_snapshot, write_snapshot
from megascenes_ns.reference import (
    FOLDER,
    Reference,
    depth_option,
    has_reference,
    load_reference,
    reference_of_photo,
    save_reference,
)

_CAMERAS = "cameras.json"


def photo_reference(photo: Path, options: Any) -> Reference:
    """The reference of data that are one photo.

    Args:
        photo: the file.
        options: `data_config.PairDataManagerConfig`.

    Raises:
        DataError: no photo, or nothing says how far anything in it is.
    """
    depth = options.photo_depth or options.depth
    return reference_of_photo(photo, depth_option(photo, depth), options.fov, options.picture)


class RunFolder:
    """A run's own copy of what it shows.

    Args:
        run: the run's folder, None where there is none.
    """

    def __init__(self, run: Path | None) -> None:
        self.folder = None if run is None else Path(run) / FOLDER
        self._known: dict[str, Any] | None = None

    def write(self, data: Path, number: int, reference: Reference, splits: dict[str, DataparserOutputs]) -> None:
        """Keep the first reference and all cameras, the file that makes them count last."""
        if self.folder is None:
            return
        save_reference(self.folder, reference)
        extra = {"data": str(data), "number": number, "pairs": {name: _numbers(each) for name, each in splits.items()}}
        write_snapshot(self.folder / _CAMERAS, splits, extra)
        self._known = None

    def read(self, data: Path) -> dict[str, Any] | None:
        """What the run keeps, if it was trained on these data; None where it keeps nothing.

        Raises:
            DataError: it is damaged.
        """
        if self._known is None:
            if self.folder is None or not has_reference(self.folder) or not (self.folder / _CAMERAS).is_file():
                return None
            self._known = read_snapshot(self.folder / _CAMERAS)
        return self._known if Path(self._known["extra"]["data"]) == data else None

    def outputs(self, known: dict[str, Any], split: str) -> DataparserOutputs:
        """A split's cameras as nerfstudio takes them."""
        found = outputs_from_json(known["splits"][split if split in SPLITS else "test"])
        numbers = known["extra"]["pairs"][split if split in SPLITS else "test"]
        found.cameras.metadata = {"pair_idx": torch.tensor(numbers, dtype=torch.int64)[:, None]}
        return found

    def reference(self) -> Reference:
        """The run's first reference. Raises DataError where it is damaged."""
        assert self.folder is not None
        return load_reference(self.folder)


def _numbers(outputs: DataparserOutputs) -> list[int]:
    metadata = outputs.cameras.metadata
    assert metadata is not None
    return [int(number) for number in metadata["pair_idx"].flatten()]


def opener(
    folder: RunFolder, known: dict[str, Any] | None, other: Callable[[int], Reference] | None
) -> Callable[[int], Reference]:
    """Pair number to reference: the run's own copy where it has one, else from the data.

    Args:
        folder: of the run.
        known: of `RunFolder.read`.
        other: reads the data; None: they are gone.
    """

    def opened(number: int) -> Reference:
        if known is not None and number == known["extra"]["number"]:
            return folder.reference()
        if other is None:
            remedy = "Put the data back, or choose the first pair."
            raise DataError("reference", f"pair {number}", "cannot be read: the run's data are gone.", remedy)
        return other(number)

    return opened
