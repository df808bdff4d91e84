"""Camera paths on disk: nerfstudio's camera path JSON, which ``ns-render`` and the viewer read (spec megascenes 8.3).

In memory a path is made of OpenCV cameras in the reference's frame (see `paths`); in the file they are nerfstudio's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.frames import rigid_from_w2c
from dataparsers.mvsnet import read_small_text
from megascenes_ns.canonical import c2w_ns_from_rel, rel_from_c2w_ns

Array = np.ndarray
Poses = Float64[Array, "n 4 4"]

KEYFRAMES = 25
"""Poses of a path that the viewer's render tab gets to edit."""
MAX_BYTES = 64_000_000
MOST_FRAMES = 10_000
_EXPORT = "Write the path with 'ns-megascenes path', or with 'Generate Command' in the viewer's render tab."


class CameraPath(NamedTuple):
    """What ``ns-render camera-path`` draws, picture by picture."""

    c2w_opencv: Poses
    """Camera to the reference's frame, OpenCV axes, units of its depth quantile."""
    fov: Float64[Array, "n"]
    """Vertical, degrees."""
    width: int
    height: int
    fps: float = 10.0
    """Pictures per second."""
    closed: bool = False
    """Whether the path leads back to its beginning."""

    @property
    def K(self) -> Float64[Array, "n 3 3"]:
        """Intrinsics, pixel centres at +0.5: square pixels, principal point in the middle."""
        focal = 0.5 * self.height / np.tan(np.radians(self.fov) / 2)
        K = np.tile(np.eye(3), (len(focal), 1, 1))
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, :2, 2] = self.width / 2, self.height / 2
        return K


def path_content(path: CameraPath) -> dict[str, Any]:
    """A path as nerfstudio 1.1.5 reads it: ``ns-render camera-path``, and "Load Path" in the viewer.

    Raises:
        ValueError: shapes that do not fit, or numbers that no camera has.
    """
    poses, fov = path.c2w_opencv, path.fov
    if len(poses) == 0 or poses.shape[1:] != (4, 4) or fov.shape != (len(poses),):
        raise ValueError(f"poses {poses.shape} and fields of view {fov.shape} are no path")
    if not np.isfinite(poses).all() or not ((fov > 0) & (fov < 180)).all():
        raise ValueError("a path needs finite poses and fields of view between 0 and 180 degrees")
    if min(path.width, path.height) < 1 or not 0 < path.fps < math.inf:
        raise ValueError(f"no film has {path.width}x{path.height} pixels and {path.fps} pictures a second")
    aspect = path.width / path.height
    entries = [
        {"camera_to_world": pose.ravel().tolist(), "fov": float(angle), "aspect": aspect}
        for pose, angle in zip(c2w_ns_from_rel(poses), fov, strict=True)
    ]
    chosen = np.unique(np.linspace(0, len(entries) - 1, min(KEYFRAMES, len(entries))).round().astype(int))
    seconds = len(entries) / path.fps
    keyframes = [
        {
            "matrix": entries[i]["camera_to_world"], "fov": entries[i]["fov"], "aspect": aspect,
            "override_transition_enabled": False, "override_transition_sec": None,
        }
        for i in chosen
    ]  # fmt: skip
    return {
        "default_fov": float(fov[0]),
        "default_transition_sec": seconds / max(len(keyframes) - (not path.closed), 1),
        "keyframes": keyframes,
        "camera_type": "perspective",
        "render_height": path.height,
        "render_width": path.width,
        "fps": path.fps,
        "seconds": seconds,
        "is_cycle": path.closed,
        "smoothness_value": 0.0,
        "camera_path": entries,
    }


def write_path(file: str | Path, path: CameraPath) -> None:
    """Write `path_content` atomically; raises as it does."""
    write_json(file, path_content(path))


class _Object:
    """The keys of one object of the JSON, checked as they are asked for."""

    def __init__(self, file: Path, place: str, content: Any) -> None:
        self.file, self.place = file, place
        if not isinstance(content, dict):
            raise self.bad("", f"is a {type(content).__name__}, not an object.")
        self.content: dict[str, Any] = content

    def bad(self, key: str, problem: str) -> DataError:
        return DataError(self.file, ", ".join(filter(None, (self.place, key))), problem, _EXPORT)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number from ``low`` to ``high``; the default, if there is one, where the key is absent or null."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        # bool is an int to Python; JSON's true is no number.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            problem = "is missing." if value is None else f"is {str(value)[:40]}, not in [{low:g}, {high:g}]."
            raise self.bad(key, problem)
        return float(value)

    def pose(self) -> Float64[Array, "4 4"]:
        """``camera_to_world``: 16 numbers in rows, or nested, made exactly rigid."""
        key = "camera_to_world"
        try:
            matrix = np.asarray(self.content[key], dtype=np.float64)
            if matrix.size != 16:
                raise ValueError(f"{matrix.size} numbers, not 16")
            return rigid_from_w2c(matrix.reshape(4, 4))
        except KeyError as error:
            raise self.bad(key, "is missing.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise self.bad(key, f"is no camera-to-world matrix ({error}).") from error


def read_path(file: Path) -> CameraPath:
    """A path that `write_path` or nerfstudio's viewer wrote.

    Raises:
        DataError: no such file, no JSON, or no perspective camera path.
    """
    text = read_small_text(file, MAX_BYTES)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}", f"is not JSON ({error.msg}).", _EXPORT) from error
    except (ValueError, RecursionError) as error:
        raise DataError(file, "content", f"is not usable JSON ({type(error).__name__}).", _EXPORT) from error
    whole = _Object(file, "", content)
    kind = whole.content.get("camera_type", "perspective")
    if not isinstance(kind, str) or kind.lower() != "perspective":
        raise whole.bad("camera_type", f"is {str(kind)[:40]!r}: only perspective cameras are drawn.")
    width, height = (whole.number(f"render_{side}", 1, 16384) for side in ("width", "height"))
    if width != int(width) or height != int(height):
        raise whole.bad("render_width, render_height", "are no numbers of pixels.")
    listed = whole.content.get("camera_path")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_FRAMES:
        raise whole.bad("camera_path", f"is no list of 1 to {MOST_FRAMES} cameras.")
    entries = [_Object(file, f"camera {index}", each) for index, each in enumerate(listed)]
    return CameraPath(
        rel_from_c2w_ns(np.stack([entry.pose() for entry in entries])),
        np.array([entry.number("fov", 1e-3, 179.999) for entry in entries]),
        int(width),
        int(height),
        len(entries) / whole.number("seconds", 1e-6, 1e9, len(entries) / whole.number("fps", 1e-6, 1e9, 10.0)),
        whole.content.get("is_cycle") is True,
    )
