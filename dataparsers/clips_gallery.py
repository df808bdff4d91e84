"""A few frames of a few clips, with cameras to show them by: what nerfstudio's viewer and tools see of a collection.

A clip whose poses are known keeps them, turned and scaled so that its reference (middle) frame is the origin and the
median distance to it is 1. A clip without poses becomes a film strip: its frames in a row, 0.2 units apart. Clips lie
below each other. Source: spec xfactor 8.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from core_ns.errors import DataError
from core_ns.frames import homogeneous
from dataparsers.clips_poses import clip_poses
from dataparsers.clips_sequence import Sequence

Array = np.ndarray

SPACING = 0.2
"""Between neighbours on a film strip, world units."""
MARGIN = 0.4
"""Between clips, world units."""
FOV = 60.0
"""Horizontal and vertical field of view of squares whose lens is not known, degrees."""
HELD_OUT_SHARE = 4
"""At most one in so many clips of a full gallery is a held-out one."""
STILL = 1e-6

# Cameras of the reference frames look along world +y, world z is up.
_FACING = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


@dataclass(frozen=True, eq=False)
class GalleryClip:
    """A clip of the gallery."""

    number: int
    """Its place in the gallery: what ``Cameras.metadata["clip_id"]`` holds."""
    id: str
    split: Literal["train", "test"]
    frames: tuple[int, ...]
    """Which of the clip's frames are shown, ascending; ``Cameras.metadata["frame_pos"]`` counts these."""
    cameras: Float[Array, "f 4 4"]
    """Camera to gallery world of the shown frames, OpenGL axes, float64."""
    poses: Float[Array, "f 4 4"] | None
    """The same relative to the reference frame's, where the data have poses: camera to reference, scaled."""
    focal: float
    """Focal length in units of the square's side."""
    window: float | None = None
    """The longest window of training samples from this clip, frames; no shown frame is as far from the middle one.
    None: not known, and all of the clip is shown."""

    @property
    def reference(self) -> int:
        """The middle one of the shown frames."""
        return len(self.frames) // 2

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        poses = None if self.poses is None else self.poses.tolist()
        return {
            "number": self.number, "id": self.id, "split": self.split, "frames": list(self.frames),
            "cameras": self.cameras.tolist(), "poses": poses, "focal": self.focal, "window": self.window,
        }  # fmt: skip

    @staticmethod
    def from_json(data: dict[str, Any]) -> GalleryClip:
        """The inverse of `to_json`.

        Raises:
            DataError: it is something else.
        """
        try:
            frames = tuple(int(frame) for frame in data["frames"])
            cameras = np.array(data["cameras"], np.float64).reshape(len(frames), 4, 4)
            poses = None if data["poses"] is None else np.array(data["poses"], np.float64).reshape(len(frames), 4, 4)
            if data["split"] not in ("train", "test") or not frames:
                raise ValueError("no such split, or no frames")
            window = None if data["window"] is None else float(data["window"])
            return GalleryClip(
                int(data["number"]), str(data["id"]), data["split"], frames, cameras, poses, float(data["focal"]),
                window,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            problem = f"is no clip of a gallery ({type(error).__name__}: {error})."
            raise DataError("gallery", "clip", problem, "Train again, or restore the run's scene folder.") from error


def choose_clips(train: Items[Sequence], test: Items[Sequence], most: int) -> tuple[list[Sequence], list[Sequence]]:
    """Evenly spread clips of both splits, at most ``most`` together and at least one of each."""
    held_out = min(len(test), max(1, most // HELD_OUT_SHARE, most - len(train)))
    return _spread(train, max(1, most - held_out)), _spread(test, held_out)


def _spread(items: Items[Any], most: int) -> list[Any]:
    return [items[k] for k in _places(len(items), most)]


def _places(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly, both ends included."""
    if count <= most:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist() if most > 1 else [count // 2]


def make_gallery(
    train: Items[Sequence], test: Items[Sequence], frames: int, windows: Mapping[str, float] | None = None
) -> list[GalleryClip]:
    """Cameras for clips, the training clips first.

    Args:
        train: clips of the training split.
        test: held-out clips.
        frames: at most so many of each, evenly spread (over those with poses, where there are any).
        windows: longest window of training samples by id, frames: only frames less far from the middle one are shown,
            because poses relative to it are learnt so far and no farther.

    Raises:
        DataError: a file of poses cannot be used.
    """
    gallery: list[GalleryClip] = []
    bottom = MARGIN
    splits: tuple[tuple[Literal["train", "test"], Items[Sequence]], ...] = (("train", train), ("test", test))
    for split, sequences in splits:
        for sequence in sequences:
            window = None if windows is None else windows[sequence.id]
            shown, poses, focal = _shown(sequence, frames, window)
            local = poses if poses is not None else _film_strip(len(shown))
            cameras = _FACING @ local
            heights = cameras[:, 2, 3]
            cameras[:, 2, 3] += bottom - MARGIN - heights.max()
            bottom = float(cameras[:, 2, 3].min())
            gallery.append(GalleryClip(len(gallery), sequence.id, split, tuple(shown), cameras, poses, focal, window))
    return gallery


def _shown(
    sequence: Sequence, most: int, window: float | None
) -> tuple[list[int], Float[Array, "f 4 4"] | None, float]:
    """Frames to show, their poses relative to the reference and the focal length."""
    known = clip_poses(sequence)
    unknown_lens = 0.5 / math.tan(math.radians(FOV / 2))
    if known is None or int(known.known.sum()) < 2:
        near = _about_middle(np.arange(sequence.frames), window)
        return [int(near[k]) for k in _places(len(near), most)], None, unknown_lens
    near = _about_middle(np.flatnonzero(known.known), window)
    shown = [int(near[k]) for k in _places(len(near), most)]
    return shown, relative_poses(known.c2w[shown], len(shown) // 2), known.focal


def _about_middle(numbers: Int[Array, "n"], window: float | None) -> Int[Array, "m"]:
    """Those of ascending numbers that are less than a window from the middle one; at least two, where there are."""
    if window is None:
        return numbers
    middle = len(numbers) // 2
    near = np.flatnonzero(np.abs(numbers - numbers[middle]) < window)
    return numbers[near] if len(near) > 1 else numbers[max(middle - 1, 0) : middle + 1]


def relative_poses(c2w: Float[Array, "f 4 4"], reference: int) -> Float[Array, "f 4 4"]:
    """Camera-to-reference matrices, translations scaled so that the median of their lengths (without the reference's
    own) is 1; cameras that do not move stay at 0. OpenGL axes, rigid matrices."""
    rotation, centre = c2w[reference, :3, :3], c2w[reference, :3, 3]
    relative = homogeneous(c2w).copy()
    relative[:, :3, :3] = rotation.T @ c2w[:, :3, :3]
    relative[:, :3, 3] = (c2w[:, :3, 3] - centre) @ rotation
    lengths = np.linalg.norm(np.delete(relative[:, :3, 3], reference, axis=0), axis=1)
    scale = float(np.median(lengths)) if len(lengths) else 0.0
    if scale < STILL:  # half of the frames stand still: the farthest sets the scale, if any moves
        scale = float(lengths.max(initial=0.0))
    if scale >= STILL:
        relative[:, :3, 3] /= scale
    return relative


def _film_strip(count: int) -> Float[Array, "count 4 4"]:
    strip = np.tile(np.eye(4), (count, 1, 1))
    strip[:, 0, 3] = (np.arange(count) - count // 2) * SPACING
    return strip
