"""A clip as the commands name it: a video, a folder of pictures, or the id of a clip that a run was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from core_ns.frames import w2c_opencv_from_c2w_opengl
from dataparsers.clips_frames import ResizeMode, read_frame, read_squares
from dataparsers.clips_index import take_inventory
from dataparsers.clips_poses import clip_poses
from dataparsers.clips_sequence import Sequence

Array = np.ndarray


@dataclass(frozen=True)
class Span:
    """Which frames of a clip."""

    start: int = 0
    """The first, counted from 0."""
    frames: int = 60
    """At most so many; 0: all there are."""
    stride: int = 1
    """Every so manieth."""

    def numbers(self, sequence: Sequence) -> list[int]:
        """The frames' numbers in the clip.

        Raises:
            DataError: it has none there, or the numbers make no sense.
        """
        if self.start < 0 or self.frames < 0 or self.stride < 1:
            problem = f"are {self.start}, {self.frames}, {self.stride}."
            raise DataError("options", "start, frames, stride", problem, "Give 0 or more, and a stride from 1.")
        found = list(range(self.start, sequence.frames, self.stride))
        if not found:
            problem = f"is not there: the clip has {sequence.frames} frames."
            raise DataError(sequence.source, f"frame {self.start}", problem, "Start earlier.")
        return found[: self.frames or None]


@dataclass(frozen=True)
class ReadClip:
    """Frames of a clip in memory.

    Attributes:
        name: as it was asked for.
        id: of the clip.
        numbers: of the frames, in the clip.
        frames: display sRGB.
        fps: of these frames; None of pictures.
        w2c: world-to-camera, OpenCV; NaN where a frame has none; None where the clip has no poses at all.
    """

    name: str
    id: str
    numbers: list[int]
    frames: UInt8[Array, "F h w 3"]
    fps: Optional[float]
    w2c: Optional[Float[Array, "F 4 4"]]


def find_clip(name: str, known: Optional[Mapping[str, Sequence]] = None) -> Sequence:
    """The clip of a name.

    Args:
        name: a video; a folder whose pictures are one clip (or that has them in ``images``); COLLECTION/ID of a
            clip within a collection; or an id among ``known``. An id wins over a path of the same name.
        known: clips of a run.

    Raises:
        DataError: no such clip, several in the folder, or one that does not open.
    """
    if known is not None and name in known:
        return known[name]
    path = Path(name)
    if not name.strip() or not path.exists():
        return _within(name, path, known)
    found = take_inventory(path, "folder" if path.is_dir() else "auto").clips  # never none
    if len(found) != 1:
        some = ", ".join(repr(str(path / each.id)) for each in found[:3])
        raise DataError(path, "folder", f"holds {len(found)} clips.", f"Name one of them: {some}.")
    return _with_poses(found[0], path)


def _within(name: str, path: Path, known: Optional[Mapping[str, Sequence]]) -> Sequence:
    """A clip by collection and id: ids leave out the suffix of a video."""
    folder = next((parent for parent in path.parents if parent != Path() and parent.is_dir()), None)
    if folder is not None:
        wanted = path.relative_to(folder).as_posix()
        for each in take_inventory(folder).clips:
            if each.id == wanted:
                return each
    some = f" Clips of the run: {', '.join(list(known)[:5])}." if known else ""
    raise DataError(name or "clip", "path", "is no clip.", f"Name a video or a folder of pictures.{some}")


def _with_poses(clip: Sequence, folder: Path) -> Sequence:
    """Poses that lie beside the folder instead of in it."""
    if clip.transforms is not None or clip.is_video:
        return clip
    folder = folder.resolve()
    beside = [folder.parent / f"{folder.name}_transforms.json"]
    beside += [folder.parent / "transforms.json"] if folder.name == "images" else []
    file = next((each for each in beside if each.is_file()), None)
    return clip if file is None else replace(clip, transforms=file)


def read_clip(
    name: str,
    size: Optional[int],
    mode: ResizeMode,
    span: Optional[Span] = None,
    known: Optional[Mapping[str, Sequence]] = None,
    poses: bool = False,
    stored: Optional[Mapping[str, Callable[[], ReadClip]]] = None,
) -> ReadClip:
    """Find a clip and read its frames.

    Args:
        size: side of the square pictures; None: the frames as they are.
        mode: see `clips_frames.square`.
        span: which frames; default: the first 60.
        known: see `find_clip`.
        poses: read the poses too, where there are some.
        stored: frames that a run keeps of its clips, for ids whose clips are gone; ``span`` does not apply to them.

    Raises:
        DataError: see `find_clip`, `Span.numbers`, `clips_frames.read_frame`; poses that cannot be read.
    """
    if stored is not None and name in stored and name not in (known or {}) and not Path(name).exists():
        kept = stored[name]()
        if size is not None and kept.frames.shape[1] != size:
            problem = f"is kept at {kept.frames.shape[1]} pixels only: the clip itself is gone."
            raise DataError(name, "frames", problem, "Leave --image-size out, or bring the clips back.")
        return kept
    clip = find_clip(name, known)
    span = Span() if span is None else span
    return read_numbers(name, clip, span.numbers(clip), size, mode, poses)


def read_numbers(
    name: str, clip: Sequence, numbers: list[int], size: Optional[int], mode: ResizeMode, poses: bool = False
) -> ReadClip:
    """Certain frames of a clip; arguments and errors as of `read_clip`.

    Args:
        numbers: ascending.
    """
    found = clip_poses(clip) if poses else None
    stride = (numbers[-1] - numbers[0]) / (len(numbers) - 1) if len(numbers) > 1 else 1
    return ReadClip(
        name,
        clip.id,
        numbers,
        read_whole(clip, numbers) if size is None else read_squares(clip, numbers, size, mode),
        None if clip.fps is None else clip.fps / stride,
        None if found is None else _w2c(found.c2w[numbers]),
    )


def stored_clip(manager: Any, id: str) -> ReadClip:
    """The frames of a clip that a run keeps for its viewer.

    Args:
        manager: the run's `ClipDataManager`.
    """
    shown = manager.gallery_clip(id)
    w2c = None if shown.poses is None else _w2c(np.array(shown.poses))
    return ReadClip(id, id, list(shown.frames), manager.clip(id), None, w2c)


def read_whole(clip: Sequence, numbers: list[int]) -> UInt8[Array, "n h w 3"]:
    """Frames in full size; see `clips_frames.read_frame`."""
    return np.stack([read_frame(clip, number) for number in numbers])


def _w2c(c2w: Float[Array, "F 4 4"]) -> Float[Array, "F 4 4"]:
    known = np.isfinite(c2w).all(axis=(1, 2))
    w2c = np.full_like(c2w, np.nan)
    w2c[known] = w2c_opencv_from_c2w_opengl(c2w[known])
    return w2c


def place_of(clip: ReadClip, frame: Optional[int], option: str) -> int:
    """Where a frame, by its number in the clip, stands among those read; the middle one by default.

    Raises:
        DataError: it is not among them.
    """
    if frame is None:
        return len(clip.numbers) // 2
    if frame not in clip.numbers:
        first, last = clip.numbers[0], clip.numbers[-1]
        step = f" in steps of {clip.numbers[1] - first}" if len(clip.numbers) > 1 else ""
        problem = f"{frame} is not among the frames read, {first} to {last}{step}."
        raise DataError(clip.name, option, problem, "Choose one of them, or read others (--start, --frames, --stride).")
    return clip.numbers.index(frame)
