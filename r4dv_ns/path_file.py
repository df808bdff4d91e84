"""Camera paths on disk: nerfstudio's camera path JSON and EasyMocap's yml with a time for each camera (spec r4dv 6.3).

In memory a path lies in the files' world with OpenGL cameras; JSON holds it in the world that nerfstudio sees
(``Sequence.transform``), the yml as OpenCV cameras of the files' world. Cameras are perspective, with square pixels and
the principal point in the middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from jaxtyping import Float

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from core_ns.frames import (
    c2w_opengl_from_w2c_opencv,
    rigid_from_w2c,
    transform_cameras,
    w2c_opencv_from_c2w_opengl,
)
from dataparsers.easymocap import CameraModel, format_cameras, read_cameras
from dataparsers.mvsnet import read_small_text
from dataparsers.opencv_yml import read_yml
from r4dv_ns.path_options import MOST_POSES

Array = np.ndarray

MAX_BYTES = 256_000_000
MOST_KEYFRAMES = 25
"""Poses of the path that the viewer's render tab gets to edit."""
_EXPORT = "Write the path with 'ns-r4dv path', or with 'Generate Command' in the viewer's render tab."


@dataclass(frozen=True, eq=False)
class CameraPath:
    """What ``ns-render camera-path`` draws, picture by picture."""

    c2w: Float[Array, "n 4 4"]
    """Camera to world, OpenGL axes, files' world."""
    fov: Float[Array, "n"]
    """Vertical field of view, degrees."""
    times: Float[Array, "n"]
    """In [0, 1]."""
    width: int
    height: int
    fps: float = 60.0
    """Pictures per second."""
    closed: bool = False
    """Whether the path leads back to its beginning."""

    def __post_init__(self) -> None:
        count = len(self.c2w)
        if self.c2w.shape != (count, 4, 4) or self.fov.shape != (count,) or self.times.shape != (count,) or not count:
            raise ValueError(f"shapes {self.c2w.shape}, {self.fov.shape}, {self.times.shape} are no path")
        if not np.isfinite(self.c2w).all() or not ((self.fov > 0) & (self.fov < 180)).all():
            raise ValueError("a path needs finite poses and fields of view between 0 and 180 degrees")
        if not ((self.times >= 0) & (self.times <= 1)).all():
            raise ValueError("times lie outside [0, 1]")

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def focal(self) -> Float[Array, "n"]:
        """Focal lengths in pixels."""
        return focal_of(self.fov, self.height)


def focal_of(fov: Float[Array, "n"], height: int) -> Float[Array, "n"]:
    """Focal length in pixels of a vertical field of view in degrees."""
    return 0.5 * height / np.tan(np.radians(fov) / 2)


def fov_of(focal: Float[Array, "n"], height: int) -> Float[Array, "n"]:
    """Vertical field of view in degrees of a focal length in pixels: the inverse of `focal_of`."""
    return np.degrees(2 * np.arctan2(0.5 * height, np.asarray(focal, dtype=np.float64)))


# ---------------------------------------------------------------------- nerfstudio's JSON


def path_content(path: CameraPath, transform: Float[Array, "4 4"]) -> dict[str, Any]:
    """The path as nerfstudio 1.1.5 reads and writes it.

    ``camera_path`` and the sizes are for ``get_path_from_json``, ``seconds`` for ``ns-render``, which makes the rate of
    it; ``keyframes`` and the defaults for "Load Path" in the viewer.

    Args:
        transform: rigid map from the files' world to nerfstudio's.
    """
    aspect = path.width / path.height
    c2w = transform_cameras(path.c2w, transform[:3])
    entries = [
        {"camera_to_world": pose.ravel().tolist(), "fov": float(fov), "aspect": aspect, "render_time": float(time)}
        for pose, fov, time in zip(c2w, path.fov, path.times, strict=True)
    ]
    chosen = np.unique(np.linspace(0, len(path) - 1, min(MOST_KEYFRAMES, len(path))).round().astype(int))
    seconds = len(path) / path.fps
    keyframes = [
        {
            "matrix": entries[i]["camera_to_world"], "fov": entries[i]["fov"], "aspect": aspect,
            "override_transition_enabled": False, "override_transition_sec": None,
            "render_time": entries[i]["render_time"], "override_time_enabled": True,
        }
        for i in chosen
    ]  # fmt: skip
    return {
        "default_fov": float(path.fov[0]),
        "default_time": float(path.times[0]),
        "default_transition_sec": seconds / max(len(keyframes) - (not path.closed), 1),
        "keyframes": keyframes,
        "camera_type": "perspective",
        "render_height": path.height,
        "render_width": path.width,
        "fps": int(path.fps) if float(path.fps).is_integer() else path.fps,
        "seconds": seconds,
        "is_cycle": path.closed,
        "smoothness_value": 0.0,
        "camera_path": entries,
    }


def write_path(file: Path, path: CameraPath, transform: Float[Array, "4 4"]) -> None:
    """Write `path_content` atomically."""
    write_json(file, path_content(path, transform))


class _Entry:
    """The keys of one object of the JSON, checked as they are asked for."""

    def __init__(self, file: Path, place: str, content: Any) -> None:
        self.file, self.place = file, place
        if not isinstance(content, dict):
            raise self.bad("", f"is a {type(content).__name__}, not an object.")
        self.content: Mapping[str, Any] = content

    def bad(self, key: str, problem: str) -> DataError:
        return DataError(self.file, ", ".join(filter(None, (self.place, key))), problem, _EXPORT)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number from ``low`` to ``high``; the default, if there is one, where the key is absent or null."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        # bool is an int to Python; JSON's true is no number.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            problem = "is missing." if key not in self.content else f"is {str(value)[:40]}, not in [{low:g}, {high:g}]."
            raise self.bad(key, problem)
        return float(value)

    def pose(self) -> Float[Array, "4 4"]:
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


def read_path(file: Path, transform: Float[Array, "4 4"] | None = None) -> CameraPath:
    """A path that `write_path` or nerfstudio's viewer wrote.

    Args:
        transform: of the recording, see `path_content`; None: none.

    Times that are absent are 0; those that the viewer's splines carry a little beyond the first and last frame are
    clamped, as everything that draws them does.

    Raises:
        DataError: no such file, no JSON, or no perspective camera path.
    """
    try:
        content = json.loads(read_small_text(file, MAX_BYTES))
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}", f"is not JSON ({error.msg}).", _EXPORT) from error
    except RecursionError as error:
        raise DataError(file, "content", "is nested too deeply.", _EXPORT) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, "content", f"is not usable JSON ({type(error).__name__}).", _EXPORT) from error
    whole = _Entry(file, "", content)
    kind = whole.content.get("camera_type", "perspective")
    if not isinstance(kind, str) or kind.lower() != "perspective":
        raise whole.bad("camera_type", f"is {str(kind)[:40]!r}: only perspective cameras are drawn.")
    width, height = (whole.number(f"render_{side}", 1, 100_000) for side in ("width", "height"))
    if width != int(width) or height != int(height):
        raise whole.bad("render_width, render_height", "are no numbers of pixels.")
    listed = whole.content.get("camera_path")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_POSES:
        raise whole.bad("camera_path", f"is no list of 1 to {MOST_POSES} cameras.")
    entries = [_Entry(file, f"camera {index}", each) for index, each in enumerate(listed)]
    poses = np.stack([entry.pose() for entry in entries])
    back = np.eye(4) if transform is None else np.linalg.inv(transform)
    return CameraPath(
        transform_cameras(poses, back[:3]),
        np.array([entry.number("fov", 1e-3, 179.999) for entry in entries]),
        np.array([entry.number("render_time", -1, 2, 0.0) for entry in entries]).clip(0.0, 1.0),
        int(width),
        int(height),
        len(entries) / whole.number("seconds", 1e-6, 1e9, len(entries) / whole.number("fps", 1e-6, 1e9, 60.0)),
        closed=whole.content.get("is_cycle") is True,
    )


# ---------------------------------------------------------------------- EasyMocap's yml


def write_path_yml(folder: Path, path: CameraPath) -> None:
    """Write ``intri.yml`` and ``extri.yml`` into a folder, cameras named 000000, 000001, ..., both files or neither.

    Every camera has ``t_``, also at time 0, so that a path without times cannot be mistaken for one that stands still.
    """
    w2c = w2c_opencv_from_c2w_opengl(path.c2w)
    cameras = {}
    for index, (matrix, focal, time) in enumerate(zip(w2c, path.focal, path.times, strict=True)):
        name = f"{index:06d}"
        K = np.array([[focal, 0.0, path.width / 2], [0.0, focal, path.height / 2], [0.0, 0.0, 1.0]])
        cameras[name] = CameraModel(
            name, K, width=path.width, height=path.height, R=matrix[:3, :3], T=matrix[:3, 3], t=float(time)
        )
    intri, extri = format_cameras(cameras)
    extri += "".join(f"t_{name}: 0.\n" for name, camera in cameras.items() if camera.t == 0)
    with atomic_path(folder / "intri.yml") as first, atomic_path(folder / "extri.yml") as second:
        first.write_bytes(intri.encode())
        second.write_bytes(extri.encode())


@dataclass(frozen=True, eq=False)
class YmlPath:
    """Cameras of a pair of yml files in the order of their names, as a path to follow."""

    c2w: Float[Array, "n 4 4"]
    """OpenGL axes, files' world."""
    focal: Float[Array, "n 2"]
    """Focal lengths over the picture's width and height."""
    times: Optional[Float[Array, "n"]]
    """In [0, 1]; None where no camera has a ``t_``."""
    size: Optional[tuple[int, int]]
    """Width and height, where all cameras name the same."""
    plain: bool
    """Whether all cameras are centred and without a lens, as a path can be drawn."""


def read_path_yml(folder: Path) -> YmlPath:
    """Read ``folder/{intri,extri}.yml``: an exported path, or any calibration.

    Where a camera names no size, its principal point is taken for the middle of the picture.

    Raises:
        DataError: see `read_cameras`; or a time outside [0, 1].
    """
    extri = folder / "extri.yml"
    cameras = read_cameras(folder / "intri.yml", extri)
    if len(cameras) > MOST_POSES:
        raise DataError(extri, "names", f"are {len(cameras)} cameras.", f"A path has at most {MOST_POSES}.")
    timed = any(key in read_yml(extri) for key in (f"t_{name}" for name in cameras))
    focal = []
    for name, camera in cameras.items():
        if timed and not 0 <= camera.t <= 1:
            problem = f"{camera.t:g} is no time between 0 and 1."
            raise DataError(extri, f"t_{name}", problem, "Divide by the recording's last time, or leave t_ out.")
        width, height = camera.width or 2 * camera.K[0, 2], camera.height or 2 * camera.K[1, 2]
        if not (width > 0 and height > 0):
            problem = "names no size, and its principal point none either."
            raise DataError(folder / "intri.yml", f"camera {name}", problem, f"Write H_{name} and W_{name}.")
        focal.append((camera.K[0, 0] / width, camera.K[1, 1] / height))
    models = list(cameras.values())
    sizes = {(camera.width, camera.height) for camera in models}
    width, height = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    return YmlPath(
        c2w_opengl_from_w2c_opencv(np.stack([camera.w2c for camera in models])),
        np.array(focal),
        np.array([camera.t for camera in models]) if timed else None,
        None if width is None or height is None else (width, height),
        plain=not any(camera.is_distorted or not _centred(camera) for camera in models),
    )


def _centred(camera: CameraModel) -> bool:
    """Whether the principal point is the picture's middle, to a hundredth of a pixel, and pixels are square."""
    middle = [side / 2 for side in (camera.width, camera.height) if side is not None]
    found = [value for value, side in zip(camera.K[:2, 2], (camera.width, camera.height), strict=True) if side]
    return np.allclose(middle, found, atol=0.01) and math.isclose(camera.K[0, 0], camera.K[1, 1], rel_tol=1e-4)
