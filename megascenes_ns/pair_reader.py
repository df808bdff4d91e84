"""Pairs as training and evaluation need them: photos in their squares, references with depth, warps, pose vectors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from core_ns.errors import DataError
from core_ns.images import read_image
from dataparsers.megascenes_parser import Pairs
from dataparsers.megascenes_paths import relative_path
from dataparsers.megascenes_table import Pair
from megascenes_ns.depth import Depth, DepthSource
from megascenes_ns.depth_cache import FOLDER as DEPTH_FOLDER
from megascenes_ns.depth_cache import SETTINGS, DepthCache
from megascenes_ns.depth_sources import PlaneDepth, open_source
from megascenes_ns.pair_warps import PairWarps, reference_mesh
from megascenes_ns.pose_vector import Squash, pose_vector
from megascenes_ns.prepare import Prepared, fitted_size, prepare, scaled_intrinsics
from megascenes_ns.reference import Reference
from megascenes_ns.warp import LowMode, warp_bytes, warp_low
from megascenes_ns.warp_cache import CachedWarp, WarpCache, WarpSettings

Array = np.ndarray
Side = Literal["ref", "tgt"]


@dataclass(frozen=True)
class ReaderOptions:
    """How pairs are read."""

    picture: int = 256
    """Side of the networks' squares."""
    cells: int = 32
    """Side of their latents."""
    spp: int = 4
    """Samples per pixel of warps that are not stored."""
    low: LowMode = "original"
    squash: Squash = "none"
    memory: int = 256 << 20
    """Bytes of warps and photos kept."""


class PairReader:
    """See the module docstring. Any thread may ask.

    Args:
        pairs: all of them.
        source: of depth that is not stored; None: there is no other.
        depths: stored depth, or None.
        warps: stored warps, and what draws the others.
        options: see `ReaderOptions`.
    """

    def __init__(
        self,
        pairs: Pairs,
        source: DepthSource | None,
        depths: DepthCache | None,
        warps: PairWarps,
        options: ReaderOptions,
    ) -> None:
        self.pairs, self.source, self.depths, self.warps, self.options = pairs, source, depths, warps, options
        self._kept: OrderedDict[tuple[str, Any], tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ photos

    def pair(self, number: int) -> Pair:
        """The pair as listed.

        Raises:
            DataError: there is no such pair.
        """
        try:
            table, row = self.pairs.at(number)
        except IndexError as error:
            raise DataError("pairs", str(number), "is no pair's number.", "Choose a smaller one.") from error
        found: Any = table[row]
        return found

    def file(self, path: str) -> Path:
        """The photo of a listed path.

        Raises:
            DataError: it is gone.
        """
        found = self.pairs.resolver.find(path)
        if found is None:
            raise DataError(path, "photo", "is not there any more.", "Put it back.")
        return found

    def prepared(self, number: int, side: Side) -> Prepared:
        """A pair's photo, its longest side that of the networks' squares.

        Raises:
            DataError: it does not decode, or its aspect is not that of its camera.
        """
        pair = self.pair(number)
        path, K, size = (pair.ref_path, pair.ref_K, pair.ref_size) if side == "ref" else (
            pair.tgt_path, pair.tgt_K, pair.tgt_size)  # fmt: skip

        def make() -> tuple[Prepared, int]:
            image, K_stored = self._decoded(path, K, size)
            small, stored = fitted_size(*size, self.options.picture), (image.shape[1], image.shape[0])
            if fitted_size(*stored, self.options.picture) != small:  # a copy's aspect is rounded another way
                image = np.array(Image.fromarray(image).resize(small, Image.Resampling.LANCZOS))
                K_stored = scaled_intrinsics(K_stored, stored, small)
            found = prepare(image, K_stored, self.options.picture)
            return found, found.image.nbytes

        # Two lists may give a photo two cameras.
        return self._remembered(("photo", (path, K.tobytes())), make)

    def _decoded(self, path: str, K: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """A photo as stored, and its K for that size: copies may be smaller than what was reconstructed from."""
        file = self.file(path)
        image, _ = read_image(file)
        stored = (image.shape[1], image.shape[0])
        if stored == size:
            return image, K
        # Resizing rounds each side by less than a pixel.
        if abs(stored[0] * size[1] - stored[1] * size[0]) > max(*stored, *size):
            problem = f"is {stored[0]}x{stored[1]}, and its camera {size[0]}x{size[1]}: another aspect."
            raise DataError(file, "size", problem, "Take the photo that was reconstructed, or a resized copy.")
        return image, scaled_intrinsics(K, size, stored)

    # ------------------------------------------------------------------ references and warps

    def depth(self, number: int, prepared: Prepared) -> Depth:
        """Depth of a pair's reference, at the size of its prepared photo, in units of the pair's scale.

        Raises:
            DataError: there is none.
        """
        pair = self.pair(number)
        shape = prepared.image.shape[:2]
        if self.depths is not None:
            found = self.depths.read(pair.ref_path, pair.scale)
            if found is not None:
                if found.values.shape != shape:
                    problem = f"is {found.values.shape[::-1]}, pictures are {shape[::-1]}."
                    raise DataError(self.depths.folder, pair.ref_path, problem, "Precompute depth for this size.")
                return found
        if self.source is None:
            raise DataError(
                relative_path(pair.ref_path), "depth", "has no depth.",
                "Name where it comes from with --pipeline.datamanager.depth, or run ns-megascenes precompute.",
            )  # fmt: skip
        image, K = self._decoded(pair.ref_path, pair.ref_K, pair.ref_size)
        return self.source.depth(
            image, K, relative_path(pair.ref_path), size=(shape[0], shape[1]), scale=pair.scale, w2c=pair.ref_w2c
        )

    def reference(self, number: int) -> Reference:
        """A pair's reference, to draw views from.

        Raises:
            DataError: its photo or its depth cannot be used.
        """
        prepared = self.prepared(number, "ref")
        name = relative_path(self.pair(number).ref_path)
        return Reference(name, prepared, self.depth(number, prepared))

    def warp(self, number: int) -> CachedWarp:
        """A pair's warp, at the target's size: 8 bit colours and coverage, whether it was stored or is drawn now.

        Raises:
            DataError: it can be neither read nor drawn.
        """
        pair = self.pair(number)
        found = self.warps.read(pair)
        if found is not None:
            return found
        prepared = self.prepared(number, "ref")
        depth = self.depth(number, prepared)
        mesh = reference_mesh(prepared, depth, self.warps.settings)
        (drawn,) = self.warps.draw([pair], mesh, depth)
        return CachedWarp(warp_bytes(drawn.rgb), drawn.coverage)

    def low(self, number: int) -> Float32[Array, "l l 3"]:
        """A pair's warp at the latents' size, [0, 1] on white.

        Raises:
            DataError: see `warp`.
        """

        def make() -> tuple[Array, int]:
            found = warp_low(self.warp(number).rgb, self.options.cells, self.options.low)
            return found, found.nbytes

        return self._remembered(("low", number), make)

    def poses(self, numbers: Sequence[int]) -> Float32[Array, "b 19"]:
        """Pose vectors of pairs."""
        return np.stack([self._pose(number) for number in numbers])

    def _pose(self, number: int) -> Float32[Array, "19"]:
        pair = self.pair(number)
        assert pair.scale is not None  # the data parser leaves others out
        return pose_vector(
            pair.ref_w2c, pair.tgt_w2c, pair.scale, pair.tgt_K, pair.tgt_size, self.options.squash
        )  # fmt: skip

    def _remembered(self, key: tuple[str, Any], make: Callable[[], tuple[Any, int]]) -> Any:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[0]
        value, size = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (value, size)
                self._bytes += size
                while self._bytes > self.options.memory and len(self._kept) > 1:
                    self._bytes -= self._kept.popitem(last=False)[1][1]
        return value


def open_reader(
    pairs: Pairs,
    options: ReaderOptions,
    *,
    depth: str = "",
    data: Path,
    cache: Path | None = None,
    original_warps: Path | None = None,
    takes_warp: bool = True,
    device: str = "cpu",
) -> PairReader:
    """A reader of what the options and the data folder name.

    Args:
        pairs: all of them.
        options: see `ReaderOptions`.
        depth: see `depth_sources.open_source`; empty: the folder ``depth`` of the data, if there is one.
        data: the data folder.
        cache: what ns-megascenes precompute wrote; None: the folder ``cache`` of the data, if there is one.
        original_warps: folder of warps that the original's code wrote, or None.
        takes_warp: False: the networks do not need depth; where there is none, a wall stands in for what is shown.
        device: of a depth network.

    Raises:
        DataError: no source of depth, or a cache made for other sizes.
    """
    cache = data / "cache" if cache is None and (data / "cache").is_dir() else cache
    if not depth and (data / "depth").is_dir():
        depth = str(data / "depth")
    stored = cache is not None and (cache / DEPTH_FOLDER / SETTINGS).is_file()
    depths = DepthCache.open(cache) if stored and cache is not None else None
    source: DepthSource | None = open_source(depth, device=device) if depth else None
    stored_warps = cache is not None and (cache / "warp" / SETTINGS).is_file()
    if source is None and depths is None and not stored_warps:
        if takes_warp:
            raise DataError(
                data, "depth", "has none, and nothing says how far anything is.",
                "Name it with --pipeline.datamanager.depth: a folder of .npy files, of COLMAP depth maps or of a "
                "transformers depth model, or plane; or run ns-megascenes precompute.",
            )  # fmt: skip
        source = PlaneDepth()
    if stored_warps and cache is not None:
        warps = PairWarps.open(cache, original_warps)
        if warps.settings.canvas != options.picture:
            problem = f"are {warps.settings.canvas} pixels large, the networks' pictures {options.picture}."
            raise DataError(cache / "warp", "warps", problem, "Precompute them for this size, or name another cache.")
    else:
        about = source.settings() if source is not None else {}
        folder = cache if cache is not None else data / "cache"
        kind = WarpSettings.of(about, canvas=options.picture, spp=options.spp)
        warps = PairWarps(WarpCache(folder, original=original_warps), kind)
    return PairReader(pairs, source, depths, warps, options)
