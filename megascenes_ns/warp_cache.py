"""Warps on disk: colours and coverage in one RGBA file per pair, named by a hash (spec megascenes 2.5).

FOLDER/warp/12/3456...cdef.webp       ours: key = SHA-1 of both paths, the pair's geometry and the settings
FOLDER/SHA1.png                       the original's, read only: no coverage, black is hole
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from dataparsers import megascenes_paths as paths
from megascenes_ns.edge_functions import Shading
from megascenes_ns.mesh import MAX_ANGLE
from megascenes_ns.warp import NEAR, Warp, warp_bytes

Array = np.ndarray

VERSION = 1
"""Raised whenever the same settings would give other pixels."""
DIGITS = 9
"""Significant digits of a pair's geometry that its key depends on: the same pair read twice gives the same key."""


@dataclass(frozen=True)
class WarpSettings:
    """What the pixels of a cached warp depend on besides the pair."""

    depth: str = ""
    """Of the depth's source: JSON of ``DepthSource.settings()``."""
    canvas: int = 256
    """Longest side."""
    spp: int = 4
    max_angle: float = MAX_ANGLE
    near: float = NEAR
    shading: Shading = "centre"
    version: int = VERSION

    @classmethod
    def of(cls, depth_settings: dict[str, Any], **changes: Any) -> WarpSettings:
        """Settings for a depth source."""
        return cls(depth=json.dumps(depth_settings, sort_keys=True, ensure_ascii=False), **changes)


class CachedWarp(NamedTuple):
    """What the disk keeps of a `Warp`: no depth."""

    rgb: UInt8[Array, "h w 3"]
    """Holes are black; their borders are blended with black."""
    coverage: Float32[Array, "h w"]
    """[0, 1], in steps of 1/255. Of the original's files: 1 where the warp is not black."""


def pair_key(reference: str, target: str, settings: WarpSettings, geometry: Float[Array, "..."] | None = None) -> str:
    """SHA-1, 40 hex digits.

    Args:
        reference, target: paths of both photos, as listed or relative to the folder of all photos.
        settings: of the renderer.
        geometry: numbers that the warp depends on as well (relative pose, both K): a pair of the same photos in another
            reconstruction is another one.

    Raises:
        ValueError: a path that cannot be used.
    """
    text = json.dumps(asdict(settings), sort_keys=True, ensure_ascii=False)
    if geometry is not None:
        flat = np.asarray(geometry, np.float64).ravel() + 0.0  # no negative zero
        text += "\n" + " ".join(f"{value:.{DIGITS}g}" for value in flat)
    return paths.pair_key(reference, target, text)


class WarpCache:
    """Warps of many pairs in one folder; several processes may write into it.

    Args:
        folder: of the cache; made at the first `put`.
        format: of new files. Both are lossless; webp takes a quarter of the time to write and four fifths of the room.
            Files of either are read.
        original: folder with files of the original's naming, looked into where ours has none.
    """

    def __init__(self, folder: Path, format: Literal["webp", "png"] = "webp", original: Path | None = None) -> None:
        if format not in ("webp", "png"):
            raise ValueError(f"unknown format {format!r}; there are webp and png")
        self.folder, self.format, self.original = Path(folder), format, original

    def path(self, key: str, format: str | None = None) -> Path:
        """Where a warp is, or would be, kept."""
        return self.folder / "warp" / key[:2] / f"{key[2:]}.{format or self.format}"

    def __contains__(self, key: str) -> bool:
        return self._found(key) is not None

    def get(self, key: str) -> CachedWarp | None:
        """A warp of ours; None where there is none.

        Raises:
            DataError: a file that is damaged.
        """
        file = self._found(key)
        if file is None:
            return None
        pixels = _read(file)
        if pixels.ndim != 3 or pixels.shape[2] != 4:
            raise DataError(file, "pixels", f"have the shape {pixels.shape}, not 4 channels.", "Delete it.")
        coverage = np.divide(pixels[..., 3], 255, dtype=np.float32)
        return CachedWarp(np.ascontiguousarray(pixels[..., :3]), coverage)

    def get_original(self, reference: str, target: str) -> CachedWarp | None:
        """A warp that the original's code wrote; None where there is none, or its folder was not named.

        Args:
            reference, target: paths, as listed.

        Raises:
            ValueError: a path that cannot be used.
            DataError: a file that is damaged.
        """
        if self.original is None:
            return None
        file = self.original / paths.original_warp_name(reference, target)
        if not file.is_file():
            return None
        pixels = _read(file)
        if pixels.ndim != 3:
            raise DataError(file, "pixels", f"have the shape {pixels.shape}, not 3 channels.", "Delete it.")
        rgb = np.ascontiguousarray(pixels[..., :3])
        return CachedWarp(rgb, np.where((rgb > 0).any(axis=2), np.float32(1), np.float32(0)))

    def put(self, key: str, warp: Warp) -> Path:
        """Write a warp atomically, without its depth; the same warp gives the same bytes."""
        alpha = np.rint(np.clip(warp.coverage, 0.0, 1.0) * 255).astype(np.uint8)
        pixels = np.concatenate([warp_bytes(warp.rgb), alpha[..., None]], axis=2)
        file = self.path(key)
        with atomic_path(file) as temporary:
            # exact: colours under low coverage are data, not something to be tidied away.
            options = {"lossless": True, "exact": True, "quality": 0, "method": 0} if self.format == "webp" else {}
            Image.fromarray(pixels, "RGBA").save(temporary, **options)
        return file

    def _found(self, key: str) -> Path | None:
        places = (self.path(key, format) for format in ("webp", "png"))
        return next((place for place in places if place.is_file()), None)


def _read(file: Path) -> Array:
    try:
        with Image.open(file, formats=("WEBP", "PNG")) as image:
            image.load()
            return np.array(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        problem = f"does not decode ({type(error).__name__})."
        raise DataError(file, "pixels", problem, "Delete it: it is made again.") from error
