"""A clip of a collection: a video file, or a folder of pictures in the order of their numbers (spec xfactor 2.1, 2.5).

A collection may hold a hundred thousand clips: what is kept of each fits a few hundred bytes. The names of a folder's
pictures are read when a frame is wanted, and forgotten again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from core_ns.errors import DataError
from core_ns.images import IMAGE_SUFFIXES

Order = Literal["natural", "trailing", "frame_n", "first3", "co3d"]
"""How a folder's pictures are told from other files, and what orders them; see `picture_key`."""
ORDERS: tuple[str, ...] = get_args(Order)

_FRAME_N = re.compile(r"frame_([0-9]+)\.png")
_FIRST3 = re.compile(r"[0-9]{3}\.jpg")
_CO3D = re.compile(r"frame([0-9]{6})\.jpg")
_TRAILING = re.compile(r"([0-9]+)$")
_DIGITS = re.compile(r"([0-9]+)")
_FOLDERS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Sequence:
    """One clip. Small and picklable: decoders and lists of files live elsewhere."""

    id: str
    """Unique in its collection."""
    frames: int
    """Number of frames, after ``stride``."""
    size: tuple[int, int]
    """(width, height) of every frame, pixels."""
    fps: float | None
    """Frames per second, after ``stride``; None of pictures."""
    source: Path
    """The video file, or the folder of pictures."""
    order: Order | None
    """Which of the folder's files are its frames; None of a video."""
    transforms: Path | None = None
    """The transforms.json that has the poses of its frames."""
    stride: int = 1
    """Every how many stored frames there is one of ours."""
    first: int = 0
    """The stored frame that is our first."""

    @property
    def has_poses(self) -> bool:
        """Whether a file with poses lies where it belongs to these frames; see `clips_poses.clip_poses`."""
        return self.transforms is not None

    @property
    def is_video(self) -> bool:
        """A video file rather than a folder of pictures."""
        return self.order is None

    def stored(self, index: int) -> int:
        """The number of a frame in the file or folder.

        Raises:
            DataError: there is no such frame.
        """
        if not 0 <= index < self.frames:
            problem = f"is not there; clip {self.id!r} has {self.frames}."
            raise DataError(self.source, f"frame {index}", problem, "Count frames from 0.")
        return self.first + index * self.stride

    def files(self) -> tuple[Path, ...]:
        """The pictures that are its frames, in order; of a video the file itself.

        Raises:
            DataError: pictures were added or removed since the clip was found.
        """
        if self.order is None:
            return (self.source,)
        return tuple(self.file(index) for index in range(self.frames))

    def file(self, index: int) -> Path:
        """The picture that is a frame; of a video the file itself.

        Raises:
            DataError: there is no such frame, or pictures were removed since the clip was found.
        """
        stored = self.stored(index)
        if self.order is None:
            return self.source
        names = picture_names(str(self.source), self.order)
        if stored >= len(names):
            problem = f"holds {len(names)} pictures, fewer than when the clips were found."
            raise DataError(self.source, "pictures", problem, "Start again (or run ns-xfactor index again).")
        return self.source / names[stored]

    def thinned(self, stride: int) -> Sequence:
        """Every ``stride``-th frame of this, the first one included."""
        if stride == 1:
            return self
        count = -(-self.frames // stride)
        fps = None if self.fps is None else self.fps / stride
        return replace(self, frames=count, fps=fps, stride=self.stride * stride)

    def part(self, id: str, start: int, stop: int) -> Sequence:
        """The frames from ``start`` to before ``stop`` as a clip of its own."""
        return replace(self, id=id, frames=stop - start, first=self.stored(start))


def picture_key(name: str, order: Order) -> tuple | None:
    """What a file name sorts by among a folder's frames; None of files that are no frames.

    * ``natural``: any picture; runs of digits count as numbers, so 2 comes before 10.
    * ``trailing``: a PNG by the integer its stem ends with (RE10K).
    * ``frame_n``: frame_N.png (DL3DV). ``first3``: NNN.jpg (MVImgNet). ``co3d``: frameNNNNNN.jpg.

    Source: spec xfactor 2.1.
    """
    stem, suffix = os.path.splitext(name)
    if name.startswith(".") or suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if order == "natural":
        parts = _DIGITS.split(stem)
        return tuple((int(part), part) if k % 2 else part for k, part in enumerate(parts)), suffix
    if order == "trailing":
        found = _TRAILING.search(stem) if suffix == ".png" else None
    else:
        pattern = {"frame_n": _FRAME_N, "first3": _FIRST3, "co3d": _CO3D}[order]
        found = pattern.fullmatch(name)
    if found is None:
        return None
    return (int(found[1] if found.re.groups else name[:3]), name)


def ordered_pictures(names: list[str], order: Order) -> tuple[str, ...]:
    """The frames among a folder's file names, in order."""
    keyed = [(key, name) for name in names if (key := picture_key(name, order)) is not None]
    return tuple(name for _, name in sorted(keyed))  # type: ignore[type-var]


@lru_cache(maxsize=_FOLDERS_KEPT)
def picture_names(folder: str, order: Order) -> tuple[str, ...]:
    """The frames of a folder, by name; the last folders asked for are remembered.

    Raises:
        DataError: the folder is gone.
    """
    try:
        return ordered_pictures(os.listdir(folder), order)
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})."
        raise DataError(folder, "folder", problem, "Check that the clips are where they were.") from error


def forget_pictures() -> None:
    """Forget which pictures folders hold: they are listed anew."""
    picture_names.cache_clear()
