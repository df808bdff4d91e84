"""Finished pictures, by everything that they depend on: in memory, and in a folder where one is named (spec 8.3)."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from core_ns.images import read_image, write_image

Array = np.ndarray

POSE_DIGITS = 4
"""Decimals of a pose in a key: cameras nearer than that are the same."""
VERSION = 1
"""Of what the pictures in a folder are made by; another number finds none of the older ones."""


@dataclass(frozen=True)
class PictureKey:
    """What a sampled picture depends on. Two equal keys are the same picture.

    Attributes:
        reference: hash of the reference's pixels, camera and depth.
        rel: rounded entries of the relative pose.
        lens: rounded fx, fy, cx, cy on the canvas, pixels.
        size: (width, height) of the picture.
        sampler: name.
        steps: of it.
        guidance: weight.
        uncond: what guidance starts from.
        seed: of the noise.
        warp: how the warp was drawn.
        weights: of the networks: hash.
    """

    reference: str
    rel: tuple[float, ...]
    lens: tuple[float, ...]
    size: tuple[int, int]
    sampler: str
    steps: int
    guidance: float
    uncond: str
    seed: int
    warp: str
    weights: str

    def digest(self) -> str:
        """SHA-1 in hex: the picture's file name."""
        content = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha1(content.encode()).hexdigest()


def rounded(values: Float[Array, "..."]) -> tuple[float, ...]:
    """Numbers of a key; minus zero is zero."""
    return tuple((np.round(np.asarray(values, np.float64).reshape(-1), POSE_DIGITS) + 0.0).tolist())


class PictureCache:
    """The pictures used last; only whole ones ever enter.

    Any thread may ask, and an exception at any line of it leaves the cache valid: single operations of the dictionary
    are whole, and there is no lock that could stay held. Files are another matter (decoders have locks): see ``disk``.

    Args:
        capacity: pictures in memory.
        folder: keeps all of them as PNG; made when the first is written.
    """

    def __init__(self, capacity: int, folder: Path | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {capacity}")
        self.capacity, self.folder = capacity, folder
        self.hits = self.misses = 0
        self._pictures: OrderedDict[PictureKey, UInt8[Array, "h w 3"]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, key: PictureKey, disk: bool = True) -> UInt8[Array, "h w 3"] | None:
        """The picture, or None. A damaged file in the folder counts as none and will be written again.

        Args:
            key: of it.
            disk: look into the folder too; not for threads that can be interrupted.
        """
        picture = self._pictures.get(key)
        if picture is not None:
            with suppress(KeyError):  # another thread may just have dropped it
                self._pictures.move_to_end(key)
        elif disk and self.folder is not None:
            picture = self._read(key)
            if picture is not None:
                self._keep(key, picture)
        if picture is None:
            self.misses += 1
        else:
            self.hits += 1
        return picture

    def put(self, key: PictureKey, picture: UInt8[Array, "h w 3"], store: bool = True) -> None:
        """Take in a finished picture; ``store`` False keeps it out of the folder.

        Raises:
            ValueError: not uint8 of the key's size.
        """
        if picture.dtype != np.uint8 or picture.shape != (key.size[1], key.size[0], 3):
            raise ValueError(f"expected uint8 {(key.size[1], key.size[0], 3)}, got {picture.dtype} {picture.shape}")
        self._keep(key, picture)
        if self.folder is not None and store:
            file = self.file(key)
            if not file.is_file():
                write_image(file, picture)

    def file(self, key: PictureKey) -> Path:
        """Where the folder keeps a picture."""
        if self.folder is None:
            raise ValueError("this cache has no folder")
        name = key.digest()
        return self.folder / name[:2] / f"{name}.png"

    def _keep(self, key: PictureKey, picture: UInt8[Array, "h w 3"]) -> None:
        picture.setflags(write=False)
        self._pictures[key] = picture
        while len(self._pictures) > self.capacity:
            self._pictures.popitem(last=False)

    def _read(self, key: PictureKey) -> UInt8[Array, "h w 3"] | None:
        file = self.file(key)
        if not file.is_file():
            return None
        with suppress(DataError):
            picture, _ = read_image(file)
            if picture.shape == (key.size[1], key.size[0], 3):
                return picture
        with suppress(OSError):
            file.unlink()
        return None
