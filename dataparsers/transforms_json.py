"""nerfstudio's ``transforms.json`` as calibrated cameras: the reading half of a converter.

Poses are OpenGL camera to world as stored; ``applied_transform`` is part of them and stays. Intrinsics and lens may
stand once for all frames or in each frame; ``time`` marks the moment of a frame of a moving scene.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core_ns.errors import DataError
from core_ns.frames import w2c_opencv_from_c2w_opengl
from core_ns.images import IMAGE_SUFFIXES, image_size
from dataparsers.easymocap_camera import CameraModel
from dataparsers.mvsnet import read_small_text
from dataparsers.nsvf import rigid_c2w

MAX_BYTES = 64_000_000
PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
FISHEYE = ("OPENCV_FISHEYE",)
_LAYOUT = "Expected: 'fl_x' (or 'camera_angle_x') and 'frames', each with 'file_path' and a 4x4 'transform_matrix'."
_MISSING = object()


class TransformsFrame(NamedTuple):
    """One entry of ``frames``. ``name`` is file_path as written; ``model`` is for the picture size that the file names,
    for the picture's own where it names none, and has no name."""

    place: str
    name: str
    image: Path
    mask: Path | None
    model: CameraModel
    time: float | None


class _Frame:
    """Values of one frame, with those of the whole file behind them."""

    def __init__(self, file: Path, place: str, frame: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
        self.file, self.place, self.frame, self.whole = file, place, frame, whole

    def bad(self, key: str, problem: str, remedy: str = _LAYOUT) -> DataError:
        return DataError(self.file, f"{self.place}, {key}", problem, remedy)

    def get(self, key: str) -> Any:
        return self.frame.get(key, self.whole.get(key, _MISSING))

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number strictly between two bounds; the default, if there is one, where the key is absent or null."""
        value = self.get(key)
        if default is not None and (value is _MISSING or value is None):
            return default
        if value is _MISSING:
            raise self.bad(key, "is missing.")
        # bool is an int to Python; JSON's true is no length.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise self.bad(key, f"is {str(value)[:40]}, not a number between {low:g} and {high:g}.")
        return float(value)

    def side(self, key: str) -> int | None:
        value = self.number(key, 0, 1e6, -1.0)
        if value != -1 and value != int(value):
            raise self.bad(key, f"is {value:g}, not a number of pixels.")
        return None if value == -1 else int(value)

    def path(self, key: str) -> Path:
        """An existing picture, named relative to the file; the suffix may be absent."""
        name = self.get(key)
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise self.bad(key, f"is {str(name)[:40]!r}, not a path." if name is not _MISSING else "is missing.")
        path = self.file.parent / name
        candidates = [path]
        if path.name and path.suffix.lower() not in IMAGE_SUFFIXES:
            candidates += [path.with_name(path.name + suffix) for suffix in (".png", *IMAGE_SUFFIXES)]
        try:
            found = next((candidate for candidate in candidates if candidate.is_file()), None)
        except OSError as error:  # a name longer than the file system takes
            raise self.bad(key, f"{name[:80]!r} cannot be opened ({error.strerror or error}).") from error
        if found is None:
            remedy = "Paths are relative to the folder of the json file."
            raise self.bad(key, f"there is no file {name[:200]!r}.", remedy)
        return found

    def named(self, folder: Path) -> Path | None:
        """The picture of this frame's name in a folder, wherever the file says it lies; None where there is none."""
        name = self.get("file_path")
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise self.bad("file_path", "is missing or no path.")
        path = folder / Path(name).name
        candidates = [path, *(path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES)]
        try:
            return next((candidate for candidate in candidates if candidate.is_file()), None)
        except OSError as error:  # a name longer than the file system takes
            raise self.bad("file_path", f"{name[:80]!r} cannot be opened ({error.strerror or error}).") from error


def _load(file: Path) -> dict[str, Any]:
    text = read_small_text(file, MAX_BYTES)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}", f"is not JSON ({error.msg}).", _LAYOUT) from error
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits, brackets thousands deep
        raise DataError(file, "content", f"is not usable JSON ({type(error).__name__}).", _LAYOUT) from error
    if not isinstance(content, dict):
        raise DataError(file, "content", f"is a {type(content).__name__}, not an object.", _LAYOUT)
    return content


def _w2c(frame: _Frame) -> np.ndarray:
    try:
        matrix = np.array(frame.frame["transform_matrix"], dtype=np.float64)
        if matrix.shape not in ((4, 4), (3, 4)):
            raise ValueError(f"its shape is {matrix.shape}, not 4x4")
        c2w = rigid_c2w(matrix)
        # Files hold float32 as often as not: the nearest rotation, and the centre as it is.
        left, _, right = np.linalg.svd(c2w[:3, :3])
        c2w[:3, :3] = left @ right
        return w2c_opencv_from_c2w_opengl(c2w)
    except KeyError as error:
        raise frame.bad("transform_matrix", "is missing.") from error
    except (ValueError, TypeError, OverflowError) as error:
        problem = f"is no camera-to-world matrix: {error}."
        raise frame.bad("transform_matrix", problem, "Export a rigid 4x4 matrix, OpenGL axes.") from error


def _model(frame: _Frame, image: Path) -> CameraModel:
    kind = frame.get("camera_model")
    kind = "OPENCV" if kind in (_MISSING, None) else kind
    if kind not in PERSPECTIVE + FISHEYE:
        problem = f"{str(kind)[:40]!r} is not one of {', '.join(PERSPECTIVE + FISHEYE)}."
        raise frame.bad("camera_model", problem, "Undistort the photos to pinhole cameras first.")
    width, height = frame.side("w"), frame.side("h")
    across, down = image_size(image) if width is None or height is None else (width, height)
    if frame.get("fl_x") is _MISSING:
        angle = frame.number("camera_angle_x", 1e-6, math.pi - 1e-6)
        fx = 0.5 * across / math.tan(0.5 * angle)
    else:
        fx = frame.number("fl_x", 0, 1e9)
    fy = frame.number("fl_y", 0, 1e9, fx)
    cx, cy = frame.number("cx", -1e9, 1e9, across / 2), frame.number("cy", -1e9, 1e9, down / 2)
    terms = {key: frame.number(key, -1e9, 1e9, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")}
    distortion, fisheye = np.zeros(5), None
    if kind in FISHEYE:
        fisheye = np.array([terms[f"k{i}"] for i in range(1, 5)])
    elif terms["k4"] != 0:
        raise frame.bad("k4", "has no place in OpenCV's k1, k2, p1, p2, k3.", "Undistort the photos first.")
    else:
        distortion = np.array([terms[key] for key in ("k1", "k2", "p1", "p2", "k3")])
    w2c = _w2c(frame)
    matrix = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return CameraModel("", matrix, distortion, fisheye, across, down, w2c[:3, :3], w2c[:3, 3])


def read_transforms_json(file: str | Path, folder: Path | None = None) -> list[TransformsFrame]:
    """Every frame of a ``transforms.json`` (or NeRF-synthetic ``transforms_*.json``), in its order.

    Picture headers are read where sizes are not in the file.

    Args:
        folder: where the pictures lie, by name, whatever the paths in the file; frames without a picture there are
            left out, and so are masks.

    Raises:
        DataError: unusable JSON, pose or lens, a picture or mask that is not there.
    """
    file = Path(file)
    whole = _load(file)
    entries = whole.get("frames")
    if not isinstance(entries, list) or not entries:
        raise DataError(file, "frames", "is missing, empty or not a list.", _LAYOUT)
    frames = []
    for number, entry in enumerate(entries):
        place = f"frames[{number}]"
        if not isinstance(entry, dict):
            raise DataError(file, place, f"is a {type(entry).__name__}, not an object.", _LAYOUT)
        frame = _Frame(file, place, entry, whole)
        image = frame.path("file_path") if folder is None else frame.named(folder)
        if image is None:
            continue
        mask = frame.path("mask_path") if folder is None and entry.get("mask_path") is not None else None
        time = frame.number("time", -1e12, 1e12) if entry.get("time") is not None else None
        frames.append(TransformsFrame(place, entry["file_path"], image, mask, _model(frame, image), time))
    return frames
