"""COLMAP's dense depth maps as a photo's depth (spec megascenes 3.1).

A map is text ``WIDTH&HEIGHT&CHANNELS&`` and then float32 numbers, little-endian, row after row; 0 where the stereo
found nothing. Maps belong to *undistorted* photos, which lie with their cameras in the same workspace.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from core_ns.errors import DataError
from dataparsers.colmap_model import ColmapCamera, calibration_of, find_model, read_model
from megascenes_ns.depth import Depth, in_units, resample_depth, resize_depth
from megascenes_ns.depth_sources import MAX_SIDE, checked_map, safe_key

Array = np.ndarray

MAPS = Path("stereo") / "depth_maps"
KINDS = ("geometric", "photometric")
"""The first is consistent between photos, with more holes."""
_AGAIN = "Run 'colmap patch_match_stereo' again."
_HEADER = re.compile(rb"(\d{1,6})&(\d{1,6})&(\d{1,6})&")


def read_depth_map(file: Path) -> Float32[Array, "h w"]:
    """One map: z in the model's units, 0 where unknown.

    Raises:
        DataError: it is no COLMAP depth map, or truncated.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(file, "", f"cannot be read ({error}).", _AGAIN) from error
    header = _HEADER.match(data)
    if header is None:
        raise DataError(file, "header", "is no COLMAP depth map (WIDTH&HEIGHT&1&...).", "Name a .geometric.bin file.")
    width, height, channels = map(int, header.groups())
    if channels != 1 or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        problem = f"says {width}x{height} pixels of {channels} channels."
        raise DataError(file, "header", problem, "Name a depth map, not a normal map.")
    if len(data) - header.end() != 4 * width * height:
        problem = f"holds {len(data) - header.end()} bytes of numbers, not {4 * width * height}."
        raise DataError(file, f"byte {header.end()}", problem, _AGAIN)
    return np.frombuffer(data, "<f4", offset=header.end()).reshape(height, width).astype(np.float32)


def write_depth_map(file: Path, depth: Float[Array, "h w"]) -> None:
    """Write one map in an existing folder (for tests and small exports)."""
    height, width = depth.shape
    file.write_bytes(f"{width}&{height}&1&".encode() + np.ascontiguousarray(depth, "<f4").tobytes())


class DenseDepth:
    """Depth maps of COLMAP's dense stereo.

    Args:
        path: the workspace of ``colmap image_undistorter`` (with stereo/depth_maps; where its sparse/ is there too,
            maps are brought to the photo's own camera), or one map of a photo.
    """

    name = "COLMAP depth map"

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self) -> dict[str, Any]:
        """See `DepthSource`."""
        return {"source": "dense", "path": str(self.path.resolve())}

    def depth(
        self,
        image: UInt8[Array, "h w 3"],
        K: Float[Array, "3 3"],
        key: str,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        w2c: Float[Array, "4 4"] | None = None,
    ) -> Depth:
        """See `DepthSource`."""
        photo = (image.shape[0], image.shape[1])
        height, width = size or photo
        file, name = self.file_of(key)
        stored = read_depth_map(file)
        camera = self._cameras.get(name)
        if camera is None:
            values = resize_depth(checked_map(stored, file, photo), height, width)
        else:
            lens = calibration_of(camera, self.path).resized(stored.shape[1], stored.shape[0])
            own = np.asarray(K, np.float64) * [[width / photo[1]], [height / photo[0]], [1.0]]
            columns = lens.fx * (np.arange(width) + 0.5 - own[0, 2]) / own[0, 0] + lens.cx - 0.5
            rows = lens.fy * (np.arange(height) + 0.5 - own[1, 2]) / own[1, 1] + lens.cy - 0.5
            values = resample_depth(stored, rows, columns)
        found = in_units(values, self.name, scale=scale)
        if found is None:
            raise DataError(file, "values", "shows no surface in this photo.", _AGAIN)
        return found

    def file_of(self, key: str) -> tuple[Path, str]:
        """The map of a photo and the photo's name in the workspace: the longest end of the key that has one.

        Raises:
            DataError: there is none, or the key leads out of the folder.
        """
        if not self.path.is_dir():
            return self.path, ""
        parts = safe_key(key).parts
        names = ["/".join(parts[start:]) for start in range(len(parts))]
        for kind in KINDS:
            for name in names:
                file = self.path / MAPS / f"{name}.{kind}.bin"
                if file.is_file():
                    return file, name
        problem = f"has no '{names[-1]}.geometric.bin' nor '.photometric.bin', in no folder of that photo."
        raise DataError(self.path / MAPS, key, problem, "Run 'colmap patch_match_stereo', or name another source.")

    @cached_property
    def _cameras(self) -> dict[str, ColmapCamera]:
        """Of the undistorted photos, by name; none where their model is not there.

        Raises:
            DataError: the model cannot be read.
        """
        if not self.path.is_dir() or not (self.path / "sparse").is_dir():
            return {}
        model = read_model(find_model(self.path))
        return {image.name: model.cameras[image.camera_id] for image in model.images.values()}
