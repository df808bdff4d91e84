"""Names of the clips of a minimal (video) data set: they say where in the camera's photo the clip lies (r4dv 2.5).

    CAM_N{frames}_x{x}_y{y}_W{W}_H{H}_FW{FW}_FH{FH}.mp4      CAM.mp4

The first form holds a crop whose first pixel is (x, y) of a canvas of W x H pixels, the whole photo shrunk; FW x FH is
the photo's own size, which the calibration refers to. The second holds whole photos.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core_ns.errors import DataError
from core_ns.images import MAX_PIXELS
from dataparsers.easymocap import CameraModel, is_name

CLIP_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Lower case; any case is read."""

_FIELDS = ("frames", "x", "y", "width", "height", "full_width", "full_height")
# Greedy: the camera's own name may hold anything, also what looks like a field.
_NAME = re.compile(r"(?P<camera>.+)_N([0-9]+)_x([0-9]+)_y([0-9]+)_W([0-9]+)_H([0-9]+)_FW([0-9]+)_FH([0-9]+)", re.DOTALL)
_LOOKS_ENCODED = re.compile(r"_FW[^_]*_FH[^_]*$")
_LARGEST = 1 << 16
_RENAME = "Names are CAM_N10_x0_y0_W960_H540_FW1920_FH1080.mp4, or CAM.mp4 for whole photos."


@dataclass(frozen=True)
class ClipName:
    """What a clip's name says. Sizes in pixels; ``x``, ``y``: the canvas pixel of the clip's first pixel."""

    camera: str
    frames: int
    x: int
    y: int
    width: int
    height: int
    full_width: int
    full_height: int

    @property
    def canvas(self) -> tuple[int, int]:
        """(width, height) of the whole photo at the clip's scale."""
        return self.width, self.height

    @property
    def full(self) -> tuple[int, int]:
        """(width, height) of the photo that was calibrated."""
        return self.full_width, self.full_height

    def __str__(self) -> str:
        place = f"x{self.x}_y{self.y}_W{self.width}_H{self.height}"
        return f"{self.camera}_N{self.frames}_{place}_FW{self.full_width}_FH{self.full_height}"


def parse_clip_name(file: Path) -> ClipName | None:
    """The geometry in a clip's name, read from the right; None of a plain ``CAM.mp4``.

    Raises:
        DataError: the name ends like such a name but is none, its numbers cannot be, or the camera's name cannot be.
    """
    found = _NAME.fullmatch(file.stem)
    if found is None:
        if _LOOKS_ENCODED.search(file.stem):
            raise DataError(file, "name", "tells no place and size: a field is missing or no number.", _RENAME)
        _check_camera(file, file.stem)
        return None
    if any(len(digits) > 9 for digits in found.groups()[1:]):
        raise DataError(file, "name", "holds a number that is too large.", _RENAME)
    name = ClipName(found["camera"], *(int(digits) for digits in found.groups()[1:]))
    _check_camera(file, name.camera)
    sides = (*name.canvas, *name.full)
    large = max(sides) > _LARGEST or name.width * name.height > MAX_PIXELS
    if name.frames < 1 or min(sides) < 1 or large:
        raise DataError(file, "name", f"gives {name.frames} frames and sizes {sides}.", _RENAME)
    if name.x >= name.width or name.y >= name.height:
        problem = f"puts the clip at ({name.x}, {name.y}), outside of its canvas of {name.width}x{name.height}."
        raise DataError(file, "name", problem, _RENAME)
    return name


def _check_camera(file: Path, camera: str) -> None:
    if not is_name(camera):
        raise DataError(file, "name", f"{camera[:40]!r} cannot be the name of a camera.", _RENAME)


def camera_of(file: Path) -> str:
    """The camera that a clip is of. Raises as `parse_clip_name`."""
    name = parse_clip_name(file)
    return file.stem if name is None else name.camera


def list_clips(folder: Path) -> dict[str, Path]:
    """The clips of a folder by camera, in the cameras' order; other files are left alone.

    Raises:
        DataError: a name that cannot be, or two clips of one camera.
    """
    clips: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in CLIP_SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        camera = camera_of(file)
        if camera in clips:
            problem = f"is a clip of camera {camera}, and so is {clips[camera].name}."
            raise DataError(file, "name", problem, "Remove one of them.")
        clips[camera] = file
    return dict(sorted(clips.items()))


def holds_clips(folder: Path) -> bool:
    """Whether a folder holds clips and no folders of photos."""
    if not folder.is_dir():
        return False
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    clips = any(path.suffix.lower() in CLIP_SUFFIXES and path.is_file() for path in entries)
    return clips and not any(path.is_dir() for path in entries)


def fit_canvas(
    model: CameraModel, canvas: tuple[int, int], full: tuple[int, int], file: Path, centre_shift: float = 0.0
) -> CameraModel:
    """The calibration of photos of ``full`` size for their canvas: K by the ratio of each axis (r4dv 2.3).

    A calibration that says it is the canvas's own stays.

    Args:
        file: what errors name.
        centre_shift: what is added to the principal point of the result later, in pixels of the canvas. It is meant in
            pixels of the photo: the difference is made up here.

    Raises:
        DataError: the calibration is of neither size.
    """
    own = (model.width, model.height)
    if own == canvas and canvas != full:
        return model
    for mine, side in zip(own, full, strict=True):
        if mine is not None and mine != side:
            problem = f"holds photos of {full[0]}x{full[1]} pixels, the calibration is of {own[0]}x{own[1]}."
            raise DataError(file, f"camera {model.name}, size", problem, "Give the calibration of these photos.")
    scale = np.array([canvas[0] / full[0], canvas[1] / full[1], 1.0])
    matrix = model.K * scale[:, None]
    matrix[:2, 2] += centre_shift * (scale[:2] - 1.0)
    return replace(model, K=matrix, width=canvas[0], height=canvas[1])
