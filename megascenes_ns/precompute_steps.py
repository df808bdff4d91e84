"""What can be precomputed for listed pairs: depth of the references, warps of the pairs (spec megascenes 2.5, 12).

A step is a plain description that travels to other processes; opened there, it becomes the maker that works. Whatever
follows `Step` and `Maker` can be precomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from core_ns.images import read_image
from dataparsers.megascenes_paths import Resolver, read_categories, relative_path
from dataparsers.megascenes_table import Pair, PairTable
from megascenes_ns.depth import Depth, DepthSource
from megascenes_ns.depth_cache import DepthCache
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.pair_warps import PairWarps, reference_mesh
from megascenes_ns.prepare import CANVAS, Prepared, prepare, scaled_intrinsics
from megascenes_ns.warp import Backend
from megascenes_ns.warp_cache import WarpCache, WarpSettings

Array = np.ndarray


class Thing(NamedTuple):
    """One file to be made."""

    row: int
    """Of the table: a pair that it is for."""
    photo: int = 0
    """Which of the pair's photos it is of, where it is of one: 0 the reference, 1 the target."""


class Maker(Protocol):
    """A step at work, in one process."""

    def things(self, rows: Sequence[int]) -> dict[Path, Thing]:
        """What some rows need, each once, by the file that it is in once it is made."""
        ...

    def make(self, thing: Thing) -> int:
        """Make one and write it, whole or not at all; bytes written.

        Raises:
            DataError: it cannot be made.
        """
        ...


class Step(Protocol):
    """One kind of thing. Can be pickled."""

    @property
    def name(self) -> str:
        """For messages and options: depth, warp, latents."""
        ...

    @property
    def photos(self) -> PairPhotos:
        """The pairs that they are for."""
        ...

    def check(self, cache: Path) -> None:
        """Refuse a cache with things of another kind. Writes nothing. Raises DataError."""
        ...

    def begin(self, cache: Path) -> None:
        """Note in the cache what makes them. Once, before the first one is made. Raises DataError as `check`."""
        ...

    def open(self, cache: Path) -> Maker:
        """Get ready to work in this process."""
        ...


def pair_of(table: PairTable, row: int) -> Pair:
    """One pair of a table."""
    return pairs_of(table, [row])[0]


def pairs_of(table: PairTable, rows: Sequence[int]) -> list[Pair]:
    """Some pairs of a table, several times as fast as one by one: lists have millions."""
    a = table.arrays(rows)
    sizes, scales = zip(a.ref_size.tolist(), a.tgt_size.tolist(), strict=True), a.scale.tolist()
    found = []
    for at, (row, (ref, tgt), scale) in enumerate(zip(rows, sizes, scales, strict=True)):
        names, size = table.paths(row), ((ref[0], ref[1]), (tgt[0], tgt[1]))
        matrices = a.ref_w2c[at], a.tgt_w2c[at], a.ref_K[at], a.tgt_K[at]
        found.append(Pair(*names, *matrices, *size, None if math.isnan(scale) else scale, int(a.index[at])))
    return found


@dataclass(frozen=True)
class PairPhotos:
    """Listed pairs and where their photos are. Can be pickled."""

    table: PairTable
    images: Path
    """See `dataparsers.megascenes_paths.Resolver`."""
    categories: Path | None = None
    """metadata/categories.json of the bucket, for photos under their scene's number."""
    canvas: int = CANVAS
    """Longest side of the networks' pictures."""

    @cached_property
    def resolver(self) -> Resolver:
        """Finds the files; one for each process."""
        return Resolver(self.images, {} if self.categories is None else read_categories(self.categories))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "resolver"}

    def photo(self, path: str, K: Float[Array, "3 3"], size: tuple[int, int]) -> tuple[UInt8[Array, "h w 3"], Array]:
        """A photo as stored, and its K for that size.

        Args:
            path: as listed.
            K: as listed, for photos of ``size``.
            size: (width, height).

        Raises:
            DataError: it is nowhere, does not decode, or is of another aspect than listed.
        """
        file = self.resolver.find(path)
        if file is None:
            raise DataError(self.images, relative_path(path), "is not there.", "Complete the folder of photos.")
        pixels, _ = read_image(file)
        height, width = pixels.shape[:2]
        if abs(width * size[1] - height * size[0]) > max(width, height, *size):
            problem = f"is {width}x{height}, and listed as {size[0]}x{size[1]}: another aspect."
            raise DataError(file, "size", problem, "Fetch the photo that belongs to the list.")
        return pixels, scaled_intrinsics(K, size, (width, height))


class _References:
    """The photo of the row at hand and what was made from it: the rows of a reference come one after the other."""

    def __init__(self, photos: PairPhotos) -> None:
        self.photos = photos
        self._known: tuple[Any, ...] | None = None

    def of(self, pair: Pair) -> tuple[UInt8[Array, "h w 3"], Array, Prepared]:
        """(photo as stored, its K, photo as the networks see it)."""
        name = (pair.ref_path, pair.ref_K.tobytes(), pair.ref_size)
        if self._known is None or self._known[0] != name:
            pixels, K = self.photos.photo(pair.ref_path, pair.ref_K, pair.ref_size)
            self._known = (name, pixels, K, prepare(pixels, K, self.photos.canvas))
        return self._known[1], self._known[2], self._known[3]


@dataclass(frozen=True)
class DepthStep:
    """Depth of every reference, at the networks' size."""

    photos: PairPhotos
    source: DepthSource
    name: str = "depth"

    def settings(self) -> dict[str, Any]:
        """What decides about the depth, as JSON. Raises DataError as `DepthSource.settings`."""
        return {**self.source.settings(), "canvas": self.photos.canvas}

    def cache(self, folder: Path) -> DepthCache:
        """Where the depth is."""
        return DepthCache(folder, self.settings())

    def check(self, cache: Path) -> None:
        """See `Step`."""
        self.cache(cache).check()

    def begin(self, cache: Path) -> None:
        """See `Step`."""
        self.cache(cache).begin()

    def open(self, cache: Path) -> DepthMaker:
        """See `Step`."""
        return DepthMaker(self, self.cache(cache))


class DepthMaker:
    """Makes and reads the depth of references."""

    def __init__(self, step: DepthStep, cache: DepthCache) -> None:
        self.step, self.cache, self.table = step, cache, step.photos.table
        self.references = _References(step.photos)
        self._last: tuple[Path, Depth] | None = None

    def things(self, rows: Sequence[int]) -> dict[Path, Thing]:
        """See `Maker`; one for each photo and scale."""
        found: dict[Path, Thing] = {}
        for row, scale in zip(rows, self.table.arrays(rows).scale, strict=True):
            found.setdefault(self.cache.file(self.table.paths(row)[0], float(scale)), Thing(row))
        return found

    def make(self, thing: Thing) -> int:
        """See `Maker`."""
        pair = pair_of(self.table, thing.row)
        self.cache.write(pair.ref_path, pair.scale, self._made(pair))
        return self.cache.file(pair.ref_path, pair.scale).stat().st_size

    def depth(self, pair: Pair) -> Depth:
        """Of a pair's reference: the stored one, else made now and stored.

        Raises:
            DataError: it cannot be made, or the stored one is damaged.
        """
        file = self.cache.file(pair.ref_path, pair.scale)
        if self._last is None or self._last[0] != file:
            found = self.cache.read(pair.ref_path, pair.scale)
            if found is None:
                found = self.cache.write(pair.ref_path, pair.scale, self._made(pair))
            self._last = (file, found)
        return self._last[1]

    def _made(self, pair: Pair) -> Depth:
        pixels, K, prepared = self.references.of(pair)
        key = relative_path(pair.ref_path)
        height, width = prepared.image.shape[:2]
        return self.step.source.depth(pixels, K, key, size=(height, width), scale=pair.scale, w2c=pair.ref_w2c)


@dataclass(frozen=True)
class WarpStep:
    """The warp of every pair, from the stored depth of its reference; depth that is not there is made and stored."""

    depth: DepthStep
    spp: int = 4
    backend: Backend = "auto"
    device: str = "cpu"
    name: str = "warp"

    @property
    def photos(self) -> PairPhotos:
        """See `Step`."""
        return self.depth.photos

    def warps(self, folder: Path) -> PairWarps:
        """Where the warps are."""
        settings = WarpSettings.of(self.depth.settings(), canvas=self.depth.photos.canvas, spp=self.spp)
        return PairWarps(WarpCache(folder), settings, backend=self.backend, device=self.device)

    def check(self, cache: Path) -> None:
        """See `Step`."""
        self.depth.check(cache)
        self.warps(cache).check()

    def begin(self, cache: Path) -> None:
        """See `Step`."""
        self.depth.begin(cache)
        self.warps(cache).begin()

    def open(self, cache: Path) -> WarpMaker:
        """See `Step`."""
        return WarpMaker(self, self.depth.open(cache), self.warps(cache))


class WarpMaker:
    """Draws the warps of pairs."""

    def __init__(self, step: WarpStep, depths: DepthMaker, warps: PairWarps) -> None:
        self.step, self.depths, self.warps, self.table = step, depths, warps, depths.table
        self._mesh: tuple[Depth, DepthMesh] | None = None

    def things(self, rows: Sequence[int]) -> dict[Path, Thing]:
        """See `Maker`."""
        keys = {self.warps.key(pair): row for row, pair in zip(rows, pairs_of(self.table, rows), strict=True)}
        return {self.warps.cache.path(key): Thing(row) for key, row in keys.items()}

    def make(self, thing: Thing) -> int:
        """See `Maker`."""
        pair = pair_of(self.table, thing.row)
        depth = self.depths.depth(pair)
        prepared = self.depths.references.of(pair)[2]
        # One depth, one mesh: `depth` gives the same object as long as the reference is the same.
        if self._mesh is None or self._mesh[0] is not depth:
            self._mesh = (depth, reference_mesh(prepared, depth, self.warps.settings))
        (warp,) = self.warps.draw([pair], self._mesh[1], depth)
        return self.warps.cache.put(self.warps.key(pair), warp).stat().st_size
