"""The gallery's pictures: decoded from the clips when asked for, or kept in a run's folder for when the clips are gone.

RUN/scene/snapshot.json    cameras of all splits and the gallery (`dataparsers.snapshot_parser`)
RUN/scene/gallery/CLIP.png    a film strip: a clip's frames below each other, square, as the networks see them
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from dataparsers.clips_frames import ResizeMode, read_squares
from dataparsers.clips_gallery import GalleryClip
from dataparsers.clips_sequence import Sequence

Array = np.ndarray

KEPT_BYTES = 256 << 20


class GalleryPictures:
    """Frames of the gallery's clips, clip by clip; the clips asked for last stay in memory.

    nerfstudio's viewer raises exceptions at any line of the thread that renders: there is no lock here, and everything
    is read before anything is stored.
    """

    def __init__(
        self,
        gallery: list[GalleryClip],
        sequences: Callable[[], Mapping[str, Sequence]],
        folder: Path | None,
        size: int,
        mode: ResizeMode,
    ) -> None:
        """Nothing is read yet.

        Args:
            gallery: its clips.
            sequences: the clips by id; called only where ``folder`` has no pictures.
            folder: of stored pictures.
            size: side of the square pictures.
            mode: see `square`.
        """
        self.gallery, self.folder, self.size = gallery, folder, size
        self.mode: ResizeMode = mode
        self._sequences = sequences
        self._clips: OrderedDict[int, Array] = OrderedDict()

    def clip(self, number: int) -> UInt8[Array, "f s s 3"]:
        """All shown frames of a clip; read-only.

        Raises:
            DataError: a picture is gone, damaged or of another size.
        """
        found = self._clips.get(number)
        if found is None:
            found = self._read(self.gallery[number])
            found.flags.writeable = False
            self._clips[number] = found
            while len(self._clips) > 1 and len(self._clips) * found.nbytes > KEPT_BYTES:
                self._clips.popitem(last=False)
        return found

    def _read(self, clip: GalleryClip) -> UInt8[Array, "f s s 3"]:
        if self.folder is None:
            sequences = self._sequences()
            if clip.id not in sequences:
                raise DataError(clip.id, "clip", "is not among the clips.", "Check that the data are where they were.")
            return read_squares(sequences[clip.id], clip.frames, self.size, self.mode)
        file = self.folder / strip_name(clip.number)
        strip, _ = read_image(file)
        if strip.shape != (len(clip.frames) * self.size, self.size, 3):
            problem = f"is {strip.shape[1]}x{strip.shape[0]} pixels, not {len(clip.frames)} squares of {self.size}."
            raise DataError(file, "size", problem, "Restore the run's scene folder, or train again.")
        return strip.reshape(len(clip.frames), self.size, self.size, 3)

    def store(self, folder: Path, workers: int, progress: Callable[[Any, str, int], Any]) -> None:
        """Write all pictures; from then on they are read from there.

        Args:
            workers: threads.
            progress: wraps an iterable with a description and a length, such as rich's ``track``.

        Raises:
            DataError: a frame does not decode.
        """
        folder.mkdir(parents=True, exist_ok=True)

        def write(clip: GalleryClip) -> None:
            write_image(folder / strip_name(clip.number), self._read(clip).reshape(-1, self.size, 3))

        with ThreadPoolExecutor(workers) as pool:
            list(progress(pool.map(write, self.gallery), "Gallery", len(self.gallery)))
        self.folder = folder


def strip_name(number: int) -> str:
    """File of a clip's shown frames."""
    return f"{number:03d}.png"


class GalleryDataset(InputDataset):
    """One split of the gallery for nerfstudio's tools."""

    exclude_batch_keys_from_device: list[str] = []  # noqa: RUF012 (nerfstudio's name and type)

    def __init__(self, dataparser_outputs: DataparserOutputs, pictures: GalleryPictures) -> None:
        super().__init__(dataparser_outputs)
        self._pictures = pictures
        indices = dataparser_outputs.cameras.metadata
        assert indices is not None
        self._clips, self._places = (indices[name].flatten().tolist() for name in ("clip_id", "frame_pos"))

    def get_numpy_image(self, image_idx: int) -> UInt8[Array, "s s 3"]:
        """The square picture. Raises DataError when it cannot be read."""
        return self._pictures.clip(self._clips[image_idx])[self._places[image_idx]]

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "s s 3"]:
        """The picture in [0, 1]."""
        return torch.tensor(self.get_numpy_image(image_idx)).float() / 255.0

    def get_image_uint8(self, image_idx: int) -> UInt8[Tensor, "s s 3"]:
        """The picture."""
        return torch.tensor(self.get_numpy_image(image_idx))

    def get_metadata(self, data: dict[str, Any]) -> dict[str, Any]:
        """``clip_id`` and ``frame_pos`` of the picture, as in its camera's metadata."""
        index = data["image_idx"]
        return {"clip_id": self._clips[index], "frame_pos": self._places[index]}
