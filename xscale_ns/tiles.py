"""The tile store: every training pixel on disk as 64x64 tiles, so that a step never decodes or loads a whole photo.

A surface hit is a function of (mesh, camera, pixel), so only pixels are stored, and on request the ray distance (spec
xscale 4.2). A view becomes ``done`` in the manifest only after its files were synchronised and renamed; whatever a kill
leaves behind is redone. Layout: `xscale_ns.tile_format`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from core_ns.errors import DataError
from xscale_ns.tile_format import (
    MANIFEST,
    PARTS,
    TILE,
    HitsCallback,
    StoredView,
    ViewSource,
    check_size,
    describe,
    npy_header,
    ray_distances,
    read_manifest,
    tile_bytes,
    write_manifest,
    write_view,
)

try:
    import fcntl
except ImportError:  # Windows: two builds into one folder are then not kept apart
    fcntl = None

__all__ = ["Problem", "Tile", "TileStore", "ViewSource"]

Array = np.ndarray
LOCK = "build.lock"


@dataclass(frozen=True)
class Problem:
    """What `TileStore.verify` finds: ``missing`` (view or file), ``damaged`` (hash) or ``stale`` (source changed)."""

    view: str
    kind: str
    detail: str


class Tile(NamedTuple):
    """One tile: colours, ray distances if stored, and which pixels count (false on padding and under the mask)."""

    rgb: UInt8[Array, "64 64 3"]
    t: Float32[Array, "64 64"] | None
    valid: Bool[Array, "64 64"]


class TileStore:
    """A finished store, read tile by tile with plain file reads.

    Mappings would count every touched page as resident memory; reading 12 KB per tile keeps the footprint at one tile
    and ``open_files`` descriptors, whatever the number and size of the views. Safe to read from several threads.
    """

    def __init__(self, folder: Path, views: Sequence[StoredView], open_files: int = 64) -> None:
        self.folder, self.views = Path(folder), tuple(views)
        self._files: OrderedDict[Path, FileIO] = OrderedDict()
        self._open_files, self._lock = open_files, threading.Lock()

    @property
    def has_distances(self) -> bool:
        """Whether every view holds ray distances."""
        return bool(self.views) and all("t" in view.parts for view in self.views)

    def read_tile(self, view: int, row: int, column: int) -> Tile:
        """Read one tile; ``view`` indexes `views`.

        Raises:
            DataError: a file is absent, truncated, or not the one the manifest describes.
        """
        stored = self.views[view]
        rgb = self._read(stored, "rgb", row, column)
        t = self._read(stored, "t", row, column) if "t" in stored.parts else None
        if "mask" in stored.parts:
            valid = np.unpackbits(self._read(stored, "mask", row, column), axis=-1).astype(bool)
        else:
            valid = np.zeros((TILE, TILE), dtype=bool)
            valid[: stored.height - row * TILE, : stored.width - column * TILE] = True
        return Tile(rgb, t, valid)

    def _read(self, view: StoredView, part: str, row: int, column: int) -> Shaped[Array, "..."]:
        rows, columns = view.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"tile ({row}, {column}) of a {rows}x{columns} grid")
        dtype, shape = PARTS[part]
        header, path = npy_header(part, view.grid), self.folder / view.file(part)
        with self._lock:
            file = self._open(path, header)
            file.seek(len(header) + (row * columns + column) * tile_bytes(part))
            data = file.read(tile_bytes(part))
        if data is None or len(data) != tile_bytes(part):
            raise _damaged(path, "ends early.")
        return np.frombuffer(data, dtype=dtype).reshape(shape)

    def _open(self, path: Path, header: bytes) -> FileIO:
        """The open file, the least recently used one closed in exchange. Call with the lock held."""
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        while len(self._files) >= self._open_files:
            self._files.popitem(last=False)[1].close()
        try:
            file = FileIO(path, "r")
        except OSError as error:
            raise _damaged(path, f"cannot be opened ({error.strerror}).") from error
        if file.read(len(header)) != header:
            file.close()
            raise _damaged(path, "is not the tile file the manifest describes.")
        self._files[path] = file
        return file

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    @classmethod
    def open(cls, folder: Path, names: Sequence[str] | None = None) -> TileStore:
        """Open a finished store with the named views in that order (default: all).

        Raises:
            DataError: no or malformed manifest, or a view that is absent or not finished.
        """
        folder = Path(folder)
        entries = read_manifest(folder)
        names = list(entries) if names is None else names
        for name in names:
            if name not in entries or entries[name].sha256 is None:
                raise DataError(folder / MANIFEST, f"view {name}", "is not finished.", "Build the tiles again.")
        return cls(folder, [entries[name] for name in names])

    @classmethod
    def build(
        cls,
        folder: Path,
        views: Sequence[ViewSource],
        *,
        hits: HitsCallback | None = None,
        mesh_hash: str = "",
        jobs: int = 2,
        progress: Callable[[str], None] = print,
        recheck: bool = False,
        disk_usage: Callable[[Path], Any] = shutil.disk_usage,
    ) -> TileStore:
        """Bring the store up to date with ``views`` and open it, its views in the given order.

        Finished views whose key (source files; camera; the mesh when distances are stored) is unchanged are not
        touched; the others are redone, each on its own. Views of the store that are not asked for stay. Memory: one
        decoded photo per job. A second build of the same folder waits for the first.

        Args:
            hits: computes the ray distances to store, see `HitsCallback`; never called from two threads at once.
            mesh_hash: sha256 of what ``hits`` casts against.
            progress: receives the size estimate, then a line per finished view.
            recheck: hash the finished views too and redo damaged ones (without it only file sizes are compared).

        Raises:
            DataError: a source that is absent, no image or of the wrong size, two views of one name, a malformed
                manifest, or too little free disk: nothing is written. A photo that does not decode stops the build
                later; what was finished by then stays finished.
        """
        folder = Path(folder)
        wanted = [describe(view, folder, mesh_hash if hits is not None else None) for view in views]
        if len({view.name for view in wanted}) != len(wanted):
            raise DataError(folder, "views", "two views have the same name.", "Rename one of the photos.")
        known = read_manifest(folder, absent_is_empty=True)
        todo = _unfinished(folder, wanted, known, recheck)
        for index in todo:
            check_size(views[index])
        _check_disk(folder, [wanted[index] for index in todo], len(wanted), disk_usage, progress)
        if not todo:
            return cls(folder, [known[view.name] for view in wanted])
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            latest = read_manifest(folder, absent_is_empty=True)
            if latest != known:  # another build got in between
                todo, known = _unfinished(folder, wanted, latest, recheck), latest
            entries = {view.name: known.get(view.name, view) for view in wanted} | known
            entries |= {wanted[index].name: wanted[index] for index in todo}
            _sweep(folder, entries.values(), temporary_only=True)
            # Announced before they are written, the files can be cleaned up after a kill at any moment.
            write_manifest(folder, entries)
            recording, casting = threading.Lock(), threading.Lock()

            def distances(index: int, top: int, bottom: int) -> Float32[Array, "h w"]:
                assert hits is not None
                with casting:
                    return ray_distances(hits, index, top, bottom, views[index].width)

            def work(index: int) -> None:
                rows = partial(distances, index) if hits is not None else None
                done = write_view(folder, wanted[index], views[index], rows)
                with recording:
                    entries[done.name] = done
                    write_manifest(folder, entries)
                    finished = sum(entries[view.name].sha256 is not None for view in wanted)
                    progress(f"tiles: {finished}/{len(wanted)} {done.name}")

            with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="tiles") as pool:
                futures = [pool.submit(work, index) for index in todo]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return cls(folder, [entries[view.name] for view in wanted])

    @staticmethod
    def verify(folder: Path, views: Sequence[ViewSource] | None = None, mesh_hash: str | None = None) -> list[Problem]:
        """Hash every file of the store and compare every key; changes nothing.

        With ``views`` their cameras are compared too, and those absent from the store are listed; without, only the
        photos and masks the manifest names. ``mesh_hash`` None leaves the mesh out. `build` redoes missing and stale
        views by itself, damaged ones with ``recheck=True``.

        Raises:
            DataError: no or malformed manifest.
        """
        folder = Path(folder)
        entries = read_manifest(folder)
        sources = {view.name: view for view in views or ()}
        problems = [Problem(name, "missing", "not in the store") for name in sources if name not in entries]
        for name, entry in entries.items():
            if entry.sha256 is None:
                problems.append(Problem(name, "missing", "not finished"))
                continue
            for part, digest in entry.sha256.items():
                path = folder / entry.file(part)
                if not path.is_file():
                    problems.append(Problem(name, "missing", path.name))
                elif _file_sha256(path) != digest:
                    problems.append(Problem(name, "damaged", path.name))
            problems += [Problem(name, "stale", why) for why in _stale(folder, entry, sources.get(name), mesh_hash)]
        return problems

    @staticmethod
    def clean(folder: Path) -> list[Path]:
        """Delete the store's own files and the temporary ones a kill left; the folder too if that empties it.

        Returns the deleted paths. Files the manifest does not announce stay.

        Raises:
            DataError: no or malformed manifest: nothing is deleted.
        """
        folder = Path(folder)
        read_manifest(folder)
        with _exclusive(folder):
            removed = _sweep(folder, read_manifest(folder).values())
            # Last of all: until here a kill leaves a store that can be cleaned again.
            for path in (folder / MANIFEST, folder / LOCK):
                path.unlink(missing_ok=True)
                removed.append(path)
        if not any(folder.iterdir()):
            folder.rmdir()
        return removed


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(path, "", problem, "Run `ns-xscale tiles verify`, then build the tiles again with a recheck.")


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unfinished(folder: Path, wanted: Sequence[StoredView], known: dict[str, StoredView], recheck: bool) -> list[int]:
    """Indices of the views to write."""

    def finished(view: StoredView) -> bool:
        entry = known.get(view.name)
        if entry is None or entry.sha256 is None or not entry.same_content(view):
            return False
        paths = {part: folder / view.file(part) for part in view.parts}
        if not all(path.is_file() and path.stat().st_size == view.bytes(part) for part, path in paths.items()):
            return False
        return not recheck or all(_file_sha256(path) == entry.sha256[part] for part, path in paths.items())

    return [index for index, view in enumerate(wanted) if not finished(view)]


def _stale(folder: Path, entry: StoredView, source: ViewSource | None, mesh_hash: str | None) -> Iterator[str]:
    """What changed since the view was stored."""
    if source is not None:
        try:
            now = describe(source, folder, entry.key["mesh"])
        except DataError as error:
            yield error.problem
            return
        if (now.width, now.height) != (entry.width, entry.height):
            yield "the size changed"
        key = now.key
    else:
        key = dict(entry.key)
        for kind in ("image", "mask"):
            if entry.key[kind] is not None:
                path = folder / entry.key[kind]["path"]
                found = path.stat() if path.is_file() else None
                seen = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns} if found else {"bytes": None}
                key[kind] = entry.key[kind] | seen
    if mesh_hash is not None and entry.key["mesh"] is not None:
        key = key | {"mesh": mesh_hash}
    yield from (f"the {kind} changed" for kind in entry.key if entry.key[kind] != key[kind])


def _check_disk(
    folder: Path, todo: Sequence[StoredView], total: int, disk_usage: Callable[[Path], Any], say: Callable[[str], None]
) -> None:
    """Say how much will be written, 2 % for file system overhead included, and refuse what does not fit."""
    needed = int(1.02 * sum(view.bytes(part) for view in todo for part in view.parts))
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    free = int(disk_usage(place).free)
    say(f"tiles: {len(todo)} of {total} views to write, {needed / 1e9:.3f} GB; {free / 1e9:.1f} GB free in {place}")
    if needed > free:
        problem = f"the tiles need {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free."
        raise DataError(folder, "", problem, "Free some space, name another folder, or downscale the photos.")


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it; the system frees it when the holder dies, kill -9 included."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(folder: Path, views: Iterable[StoredView], temporary_only: bool = False) -> list[Path]:
    """Delete the files of ``views`` and the temporary ones that a killed build left for them or the manifest."""
    names = {view.file(part) for view in views for part in PARTS}
    removed = []
    for path in sorted(folder.iterdir()):
        temporary = re.fullmatch(r"\.tmp-[0-9a-f]{12}-(.+)", path.name)
        ours = temporary[1] in names | {MANIFEST} if temporary else path.name in names and not temporary_only
        if ours and path.is_file():
            path.unlink()
            removed.append(path)
    return removed
