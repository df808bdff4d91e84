"""Random pixels of all views, every valid pixel equally likely, from three kinds of storage with one ``draw``.

`TilePool` (storage ``tiles``) holds some thousand random tiles of a store; `RamPixels` (``ram``) holds every photo as
uint8; `DecodePool` (``decode-pool``) holds a few decoded photos. The pools bound memory whatever the number and size of
the views (spec xscale 4.2).

How the pools stay unbiased. All slots are replaced in turn, oldest first, at the pace at which the pool as a whole
gives 25 % of its pixels: every tile stays equally long. (Counting per tile would let one with a single valid pixel stay
longer: it cannot give a quarter of it.) Then either of two choices is uniform over pixels:

- tiles enter equally often and each *pixel* of the pool is equally likely (`TilePool`: one pass visits each tile once;
  the share of a tile in the pool fluctuates by about 1 / tiles, invisible with thousands of tiles);
- photos enter in proportion to their pixels and each *slot* is equally likely (`DecodePool`: exact for a few slots).

Doing both, entering in proportion and drawing pixels uniformly, would count the number of pixels twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8

from core_ns.errors import DataError
from xscale_ns.tile_format import TILE, HitsCallback, ViewSource, load_mask, load_view, ray_distances
from xscale_ns.tiles import Tile, TileStore

Array = np.ndarray
Tensor = torch.Tensor


class PixelBatch(NamedTuple):
    """Drawn pixels, on the CPU: view index, integer column and row, colour, ray distance (None: not stored)."""

    view: Int64[Tensor, "n"]
    xy: Int32[Tensor, "n 2"]
    rgb: UInt8[Tensor, "n 3"]
    t: Float32[Tensor, "n"] | None


def _batch(view: Array, x: Array, y: Array, rgb: Array, t: Array | None) -> PixelBatch:
    xy = np.stack([x, y], axis=-1).astype(np.int32)
    distance = None if t is None else torch.from_numpy(t)
    return PixelBatch(torch.from_numpy(view.astype(np.int64)), torch.from_numpy(xy), torch.from_numpy(rgb), distance)


def _integers(bound: int, n: int, generator: torch.Generator | None) -> Int64[Array, "n"]:
    return torch.randint(bound, (n,), generator=generator).numpy()


def _starts(counts: Sequence[int] | Array) -> Int64[Array, "k+1"]:
    """Prefix sums with a leading 0."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])


def _pick(starts: Int64[Array, "k+1"], index: Any) -> tuple[Any, Any]:
    """Which group an index into the concatenation of all groups falls into, and its place there; skips empty groups."""
    group = np.searchsorted(starts, index, side="right") - 1
    return group, index - starts[group]


def _require_pixels(total: int, where: Any) -> None:
    if total == 0:
        raise DataError(where, "", "holds no pixel to train on.", "Check that the masks are not all black.")


class _Ring:
    """Slots whose contents are replaced in turn while pixels are drawn.

    A subclass fetches what enters next (without the lock, only ever from one thread), places it into a slot, and
    gathers pixels (both with the lock held). An error of the background thread is raised by the next ``draw``.
    """

    SHARE = 0.25
    """Share of its pixels that the pool gives before all of its slots have been replaced."""

    def __init__(self, slots: int, resident: bool, background: bool) -> None:
        self._slots, self._resident = slots, resident
        self._next, self._owed, self._closed = 0, 0.0, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = None
        if background and not resident:
            self._thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)
            self._thread.start()

    def _fetch(self) -> Any:
        raise NotImplementedError

    def _place(self, slot: int, item: Any) -> None:
        raise NotImplementedError

    def _gather(self, n: int, generator: torch.Generator | None) -> PixelBatch:
        raise NotImplementedError

    def _pixels(self) -> float:
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator | None = None) -> PixelBatch:
        """Draw ``n`` pixels, with replacement, all valid pixels of all views equally likely in the long run.

        Raises:
            DataError: the files behind the pool became unreadable.
            RuntimeError: the pool is closed.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise RuntimeError("the pool is closed")
            batch = self._gather(n, generator)
            if not self._resident:
                # Never more than a full turn behind: a slow disk slows the turnover down, not the training.
                self._owed = min(self._owed + n * self._slots / (self.SHARE * self._pixels()), float(self._slots))
                self._changed.notify()
        if self._thread is None:
            while self._owed >= 1:
                self._replace(self._fetch())
        return batch

    def _replace(self, item: Any) -> None:
        with self._changed:
            self._place(self._next, item)
            self._next = (self._next + 1) % self._slots
            self._owed -= 1

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._owed >= 1)
                    if self._closed:
                        return
                self._replace(self._fetch())
        except BaseException as error:
            with self._changed:
                self._error = error

    def close(self) -> None:
        """Stop the background thread and wait for it. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TilePool(_Ring):
    """Pixels from ``tiles`` random tiles of a store; 12 KB per tile, 28 KB with distances, 8 KB more with masks.
    A store with no more tiles than that is resident as a whole and nothing is ever replaced.

    Args:
        store: its views define the view index of the drawn pixels.
        tiles: slots of the pool.
        seed, rank, step: name the order in which tiles enter. Give each process its rank, and a resumed training the
            step it resumes from. (``draw``'s own generator has to differ between ranks too.)
        background: replace tiles in a thread. Without, ``draw`` does it and the sequence is reproducible.

    Raises:
        DataError: the store holds no valid pixel, or a damaged file.
    """

    def __init__(
        self,
        store: TileStore,
        tiles: int = 4096,
        *,
        seed: int = 0,
        rank: int = 0,
        step: int = 0,
        background: bool = True,
    ) -> None:
        if tiles < 1:
            raise ValueError(f"a pool of {tiles} tiles")
        _require_pixels(sum(view.valid for view in store.views), store.folder)
        self._store, self._entropy = store, (seed, rank, step)
        self._first_tile = _starts([view.grid[0] * view.grid[1] for view in store.views])
        self._total, self._entered = int(self._first_tile[-1]), 0
        slots, resident = min(tiles, self._total), self._total <= tiles
        self._rgb = np.zeros((slots, TILE, TILE, 3), dtype=np.uint8)
        self._t = np.zeros((slots, TILE, TILE), dtype=np.float32) if store.has_distances else None
        masked = any("mask" in view.parts for view in store.views)
        # Valid pixels of a tile without mask are a rectangle at its top left; with one they need a list.
        self._order = np.zeros((slots, TILE * TILE), dtype=np.uint16) if masked else None
        self._width = np.ones(slots, dtype=np.int64)
        self._count = np.zeros(slots, dtype=np.int64)
        self._where = np.zeros((slots, 3), dtype=np.int64)
        for slot in range(slots):
            self._place(slot, self._read(slot) if resident else self._fetch())
        if resident:
            store.close()
        super().__init__(slots, resident, background)

    @property
    def nbytes(self) -> int:
        """Memory of the slots in bytes."""
        arrays = (self._rgb, self._t, self._order, self._width, self._count, self._where)
        return sum(array.nbytes for array in arrays if array is not None)

    def _read(self, index: int) -> tuple[tuple[int, int, int], Tile]:
        view, tile = _pick(self._first_tile, index)
        row, column = divmod(int(tile), self._store.views[view].grid[1])
        return (int(view), row, column), self._store.read_tile(int(view), row, column)

    def _fetch(self) -> tuple[tuple[int, int, int], Tile]:
        while True:
            turn, place = divmod(self._entered, self._total)
            self._entered += 1
            found = self._read(permuted(place, self._total, (*self._entropy, turn)))
            if found[1].valid.any():
                return found

    def _place(self, slot: int, item: tuple[tuple[int, int, int], Tile]) -> None:
        self._where[slot], tile = item
        self._rgb[slot] = tile.rgb
        if self._t is not None:
            self._t[slot] = tile.t
        self._count[slot] = np.count_nonzero(tile.valid)
        self._width[slot] = max(1, np.count_nonzero(tile.valid[0]))
        if self._order is not None:
            self._order[slot, : self._count[slot]] = np.flatnonzero(tile.valid)

    def _pixels(self) -> float:
        return float(self._count.sum())

    def _gather(self, n: int, generator: torch.Generator | None) -> PixelBatch:
        starts = _starts(self._count)
        slot, local = _pick(starts, _integers(int(starts[-1]), n, generator))
        if self._order is not None:
            y, x = np.divmod(self._order[slot, local].astype(np.int64), TILE)
        else:
            y, x = np.divmod(local, self._width[slot])
        view, row, column = self._where[slot].T
        t = self._t[slot, y, x] if self._t is not None else None
        return _batch(view, column * TILE + x, row * TILE + y, self._rgb[slot, y, x], t)

    def close(self) -> None:
        """Stop the background thread and close the store's files (the store opens them again when read)."""
        super().close()
        self._store.close()


def permuted(index: int, size: int, entropy: tuple[int, ...]) -> int:
    """Element ``index`` of a pseudo-random permutation of ``range(size)``, without the memory of a shuffled list.

    A four-round Feistel network over the next even number of bits is a permutation whatever its round function; walking
    along its cycle until the value is in range restricts it to ``size`` (Black and Rogaway 2002, "cycle walking").
    """
    keys = [int(key) for key in np.random.SeedSequence(entropy).generate_state(4, np.uint64)]
    half = max(1, -(-(size - 1).bit_length() // 2))
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for key in keys:
            mixed = ((right + 1) * 0x9E3779B97F4A7C15 ^ key) & 0xFFFFFFFFFFFFFFFF
            mixed = (mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (mixed >> 40 & low)
        index = left << half | right
        if index < size:
            return index


class RamPixels:
    """Every valid pixel of every view in memory: 3 bytes each, 4 more with masks (its place), 4 more with distances.

    Args:
        views: photos, decoded once, ``jobs`` at a time.
        hits: computes ray distances to keep, see `HitsCallback`; never called from two threads at once.

    Raises:
        DataError: an unreadable photo or mask, or no valid pixel at all.
    """

    def __init__(self, views: Sequence[ViewSource], *, hits: HitsCallback | None = None, jobs: int = 2) -> None:
        masked, casting = any(view.mask is not None for view in views), threading.Lock()
        self._width = np.array([view.width for view in views], dtype=np.int64)
        with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="decode") as pool:
            self._starts = _starts(list(pool.map(_valid_count, views)))
            total = int(self._starts[-1])
            _require_pixels(total, views[0].image.parent if views else "")
            self._rgb = np.empty((total, 3), dtype=np.uint8)
            self._place = np.empty(total, dtype=np.int32) if masked else None
            self._t = np.empty(total, dtype=np.float32) if hits is not None else None

            def load(index: int) -> None:
                view, span = views[index], slice(self._starts[index], self._starts[index + 1])
                rgb, valid = load_view(view)
                chosen = slice(None) if valid is None else np.flatnonzero(valid)
                self._rgb[span] = rgb.reshape(-1, 3)[chosen]
                if self._place is not None:
                    self._place[span] = np.arange(view.width * view.height, dtype=np.int32)[chosen]
                if self._t is not None and hits is not None:
                    with casting:
                        t = ray_distances(hits, index, 0, view.height, view.width)
                    self._t[span] = t.reshape(-1)[chosen]

            for _ in pool.map(load, range(len(views))):
                pass

    @property
    def nbytes(self) -> int:
        """Memory of the pixels in bytes."""
        return sum(array.nbytes for array in (self._rgb, self._place, self._t) if array is not None)

    def draw(self, n: int, generator: torch.Generator | None = None) -> PixelBatch:
        """Draw ``n`` pixels with replacement, all valid pixels of all views equally likely."""
        index = _integers(len(self._rgb), n, generator)
        view, place = _pick(self._starts, index)
        if self._place is not None:
            place = self._place[index].astype(np.int64)
        y, x = np.divmod(place, self._width[view])
        return _batch(view, x, y, self._rgb[index], self._t[index] if self._t is not None else None)

    def close(self) -> None:
        """Nothing to stop; the pools have one."""


def _valid_count(view: ViewSource) -> int:
    mask = load_mask(view)
    return view.width * view.height if mask is None else int(np.count_nonzero(mask))


class DecodePool(_Ring):
    """Pixels from ``images`` decoded photos (3 bytes per pixel, 4 more under a mask), replaced in the background.

    Needs no disk space; each photo is decoded again and again. With no more views than ``images`` all stay resident.
    ``seed``, ``rank``, ``step``, ``background``: as in `TilePool`.

    Raises:
        DataError: an unreadable photo or mask, or no valid pixel at all.
    """

    GOLDEN = 0.6180339887498949

    def __init__(
        self,
        views: Sequence[ViewSource],
        images: int = 16,
        *,
        seed: int = 0,
        rank: int = 0,
        step: int = 0,
        background: bool = True,
    ) -> None:
        if images < 1:
            raise ValueError(f"a pool of {images} images")
        self._views, counts = views, np.array([_valid_count(view) for view in views], dtype=np.int64)
        _require_pixels(int(counts.sum()), views[0].image.parent if views else "")
        self._valid, present = _starts(counts), np.flatnonzero(counts)
        slots, resident = min(images, len(present)), len(present) <= images
        # Mean size of what enters: photos enter in proportion to their pixels.
        self._mean = float((counts.astype(np.float64) ** 2).sum() / counts.sum())
        self._turn = float(np.random.default_rng((seed, rank, step)).random())
        self._held: list[Any] = [None] * slots
        for slot in range(slots):
            self._place(slot, self._load(int(present[slot])) if resident else self._fetch())
        super().__init__(slots, resident, background)

    def _load(self, view: int) -> tuple[int, Array, Array | None]:
        rgb, valid = load_view(self._views[view])
        return view, rgb, None if valid is None else np.flatnonzero(valid).astype(np.int32)

    def _fetch(self) -> tuple[int, Array, Array | None]:
        # Golden-ratio steps visit every stretch of the pixels in proportion to its length, without long gaps.
        self._turn = (self._turn + self.GOLDEN) % 1.0
        return self._load(int(_pick(self._valid, int(self._turn * self._valid[-1]))[0]))

    def _place(self, slot: int, item: tuple[int, Array, Array | None]) -> None:
        self._held[slot] = item

    def _pixels(self) -> float:
        return self._mean * self._slots

    def _gather(self, n: int, generator: torch.Generator | None) -> PixelBatch:
        view = np.array([held[0] for held in self._held], dtype=np.int64)
        count = np.diff(self._valid)[view]
        if self._resident:
            slot, local = _pick(_starts(count), _integers(int(count.sum()), n, generator))
        else:
            slot = _integers(self._slots, n, generator)
            # The remainder of a 62-bit number is uniform to 1e-10.
            local = _integers(1 << 62, n, generator) % count[slot]
        x, y, rgb = np.empty(n, np.int64), np.empty(n, np.int64), np.empty((n, 3), np.uint8)
        for index, (_, image, place) in enumerate(self._held):
            mine = np.flatnonzero(slot == index)
            flat = local[mine] if place is None else place[local[mine]]
            y[mine], x[mine] = np.divmod(flat, image.shape[1])
            rgb[mine] = image[y[mine], x[mine]]
        return _batch(view[slot], x, y, rgb, None)
