"""Clean plates of a recording: what each camera sees when the subject is not there (spec r4dv 2.1, 3.4).

DIR/bkgd/CAM.jpg   or   DIR/bkgd/images/CAM/000000.jpg (and any other name)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from core_ns.images import area_downscale, image_size, read_image
from dataparsers.easymocap_files import SUFFIXES
from dataparsers.easymocap_lens import deliver, valid_area
from dataparsers.easymocap_sequence import Sequence
from dataparsers.easymocap_view import View, wrong_size

Array = np.ndarray
PLATES = "bkgd"
"""Folder of the plates."""
_SAME_SHAPE = 0.01
"""Plates of another size are shrunk when their aspect ratio differs by no more than this share."""


@dataclass(eq=False)
class Plates:
    """Plates of the views that have one, undistorted and resized as the photos are; decoded once, then kept as uint8.

    Thread-safe. Pixels: sum of width x height x 3 bytes over the views in use.
    """

    sequence: Sequence
    files: dict[int, Path]
    """By view, a number of the sequence."""
    _decoded: dict[int, UInt8[Array, "h w 3"]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, view: object) -> bool:
        return view in self.files

    def get(self, view: int) -> UInt8[Array, "h w 3"]:
        """The plate of a view, in the pixels of its delivered photos; shared: read only.

        Raises:
            KeyError: the view has none.
            DataError: it does not decode.
        """
        known = self._decoded.get(view)
        if known is None:
            with self._lock:
                known = self._decoded.get(view)
                if known is None:
                    known = _decode(self.sequence.views[view], self.files[view])
                    known.setflags(write=False)
                    self._decoded[view] = known
        return known

    def valid(self, view: int) -> Bool[Array, "h w"] | None:
        """Where the plate shows something; None: everywhere."""
        return valid_area(self.sequence.views[view].lens(0))


def find_plates(sequence: Sequence, folder: Path | None = None) -> Plates:
    """List the plates of a recording; headers are read, pixels are not. Moving cameras have none.

    Args:
        folder: of the plates; default: ``bkgd`` in the sequence's own.

    Raises:
        DataError: a plate that is no image, or not of its camera's size or shape.
    """
    folder = sequence.root / PLATES if folder is None else folder
    files = {}
    for number, view in enumerate(sequence.views):
        found = None if view.is_moving else _plate_file(folder, view.name)
        if found is not None:
            _check_shape(found, view)
            files[number] = found
    return Plates(sequence, files)


def _plate_file(folder: Path, name: str) -> Path | None:
    """A camera's plate; of several in its own folder the first by name."""
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    linked = folder / "images" / name
    photos = sorted(path for path in linked.glob("*") if path.suffix in SUFFIXES) if linked.is_dir() else []
    return photos[0] if photos else None


def _check_shape(file: Path, view: View) -> None:
    width, height = image_size(file)
    expected = view.stored_size
    if (width, height) == expected:
        return
    share = (width / height) / (expected[0] / expected[1]) - 1
    if width < expected[0] or height < expected[1] or abs(share) > _SAME_SHAPE:
        raise wrong_size(file, view.name, (width, height), expected, "its camera's photos")


def _decode(view: View, file: Path) -> UInt8[Array, "h w 3"]:
    image = read_image(file)[0]
    _check_shape(file, view)
    if image.shape[1::-1] != view.stored_size:
        image = area_downscale(image, *view.stored_size)
    if view.colour_matrix:
        coloured = image.astype(np.float32) @ view.model(0).ccm.T.astype(np.float32)
        image = np.clip(coloured + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(deliver(image, view.lens(0), "cubic"))
