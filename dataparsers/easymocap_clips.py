"""Clips in the place of a folder of photos or masks (spec r4dv 2.5): found by camera, and looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from dataparsers.clip_masks import FILLED, brightness_mask
from dataparsers.video_names import list_clips, parse_clip_name
from dataparsers.video_read import LONG_GROUP, Clip, open_clip

_SURVEYED = 4


def find_clips(folder: Path, names: Sequence[str]) -> dict[str, Clip]:
    """The clips of the chosen cameras, opened.

    Raises:
        DataError: a camera has none, or one cannot be used.
    """
    files = list_clips(folder)
    for name in names:
        if name not in files:
            problem = "has no clip, though the calibration has the camera."
            raise DataError(folder, f"camera {name}", problem, "Add it, or choose cameras with --view-sample.")
    unknown = [name for name in files if name not in names]
    if unknown:
        listed = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        CONSOLE.print(f"{folder.name}: {len(unknown)} clips are of no chosen camera: {listed}")
    return {name: open_clip(files[name]) for name in names}


def clip_frames(place: Path, clip: Clip) -> dict[str, Path]:
    """By stem, the path that each frame of a clip would have below ``place`` had it been extracted."""
    return {f"{number:06d}": place / f"{number:06d}.png" for number in range(clip.name.frames)}


def say_if_slow(folder: str, clip: Clip) -> None:
    """Warn where key frames are so rare that reading frames in any order takes long."""
    group = clip.longest_group
    if group > LONG_GROUP:
        CONSOLE.print(
            f"[yellow]{folder}: only every {group}th frame decodes by itself, so photos are read slowly. Extract them "
            "with: ns-r4dv process images"
        )


def shows_subject_on_black(clips: Mapping[str, Clip]) -> bool:
    """Whether clips hold a subject cut out on black: a few pictures are looked at, all must have both."""
    encoded = [clip for clip in clips.values() if parse_clip_name(clip.file) is not None]
    if not encoded or len(encoded) < len(clips):
        return False
    surveyed = encoded[:: max(1, len(encoded) // _SURVEYED)]
    shares = [float((brightness_mask(clip.read_brightness(clip.name.frames // 2)) > 0).mean()) for clip in surveyed]
    return all(share < FILLED for share in shares) and any(share > 0 for share in shares)
