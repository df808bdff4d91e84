"""Hulls of a whole sequence: one call from masks to point clouds, made once, resumable after kill -9 (r4dv 3.1-3.3).

Each finished frame leaves ``r4dv/progress/STEM.json`` beside its two clouds; ``r4dv/meta.json`` follows when all are
done.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import Progress

from core_ns.atomic import write_bytes, write_json
from core_ns.errors import DataError
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import ply_comments, read_ply, write_ply
from r4dv_ns.hull import visual_hull
from r4dv_ns.hull_meta import HullMeta, HullOptions, read_json, read_meta
from r4dv_ns.hull_plan import (
    BOX_PER_VOXEL,
    NEAR,
    Plan,
    cameras_hash,
    frame_hash,
    make_plan,
    nothing_found,
    silhouettes,
    with_hull_preset,
)
from r4dv_ns.hull_series import aggregate, flag_volumes, nearest_filled
from r4dv_ns.surface import surface_points

__all__ = ["HullMeta", "HullOptions", "ensure_hulls", "read_meta"]

_PROGRESS = Path("r4dv") / "progress"
_PLAN = _PROGRESS / "plan.json"
_CARVED = "carved from masks by ns-r4dv"
"""Comment in the surface points made here: without their record they are made again, and not taken for given ones."""


def ensure_hulls(sequence: Sequence, folder: str | Path, options: HullOptions, *, progress: bool = True) -> HullMeta:
    """The hulls of all selected frames: those of earlier runs where nothing changed, the rest carved now.

    A frame is made anew when its cameras, its masks (names, sizes, times of change) or the options changed. Point
    clouds that someone else put into ``surfs`` for all frames (no meta.json beside them) are used as they are. Frames
    that are not selected keep theirs for another time.
    Processes that ask at the same time wait for one another.

    Args:
        folder: receives vhulls/, surfs/ and r4dv/; usually the sequence's own.
        progress: show a bar.

    Raises:
        DataError: no masks, nothing found in any frame, a damaged meta.json, options out of range, or a folder that
            cannot be written.
    """
    folder = Path(folder)
    options = with_hull_preset(options, sequence.hull_preset)
    options.check()
    try:
        (folder / _PROGRESS.parent).mkdir(parents=True, exist_ok=True)
        with _alone(folder / _PROGRESS.parent / "lock"):
            given = _given(sequence, folder)
            return _ensure(sequence, folder, options, progress) if given is None else given
    except OSError as error:
        remedy = "Free some space, or name a folder that can be written (--pipeline.datamanager.points-dir)."
        raise DataError(error.filename or folder, "point clouds", f"cannot be written ({error}).", remedy) from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process in at a time; the lock ends with its process.

    Systems without flock go without, as do folders that cannot be written (complete hulls may lie there).
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            handle = stack.enter_context(open(file, "ab"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _ensure(sequence: Sequence, folder: Path, options: HullOptions, progress: bool) -> HullMeta:
    """`ensure_hulls` once the folder is ours."""
    if not sequence.has_masks:
        remedy = "Add masks/CAMERA/FRAME.png (white where the subject is), or name their folder with --masks-dir."
        raise DataError(sequence.root, "masks", "are absent, and points to start from are carved from them.", remedy)
    if sequence.options.undistort == "none" and any(m.is_distorted for view in sequence.views for m in view.cameras):
        remedy = "Use --undistort same or optimal."
        raise DataError(sequence.root, "--undistort none", "leaves lens distortion, which hulls cannot use.", remedy)
    known = read_meta(folder)
    settings = make_plan(sequence, options, folder / _PLAN, known.settings if known else {})
    plan = Plan(**settings["plan"])
    hashes = [plan.hash(frame_hash(sequence, frame)) for frame in range(len(sequence.frames))]
    run = _Run(sequence, folder, settings, known)
    entries = [run.kept(stem, wanted) for stem, wanted in zip(sequence.frames, hashes, strict=True)]
    if known is not None and entries == known.frames and known.cameras_hash == cameras_hash(sequence):
        return known
    # A copy depends on its neighbours: it is decided again with them.
    missing = [frame for frame, entry in enumerate(entries) if entry is None or "copied_from" in entry]
    with ThreadPoolExecutor(options.workers) as pool, Progress(console=CONSOLE, disable=not progress) as bar:
        task = bar.add_task("Visual hulls", total=len(missing))
        futures = {pool.submit(run.carve, frame, hashes[frame], options.max_voxels): frame for frame in missing}
        try:
            for future in as_completed(futures):
                entries[futures[future]] = future.result()
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return run.finish([entry for entry in entries if entry is not None])


def _given(sequence: Sequence, folder: Path) -> HullMeta | None:
    """Points that were there before us, such as the original's own; None where there are none.

    Raises:
        DataError: there are some, but not for all frames, or one cannot be read.
    """
    known = read_meta(folder)
    if (known is not None and not known.settings.get("given")) or (folder / _PROGRESS).exists():
        return None
    meta = HullMeta(folder, np.zeros((2, 3)), 1.0, [], "", {"given": True})
    files = [meta.surface_file(stem) for stem in sequence.frames]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return None
    if (
        known is None
        and sequence.has_masks
        and all(_CARVED in ply_comments(each) for each in set(files) - set(missing))
    ):
        return None
    if missing:
        problem = f"is absent, though other frames have points that were not made here ({len(missing)} are missing)."
        raise DataError(missing[0], "points", problem, "Complete or move the folder, or choose other frames.")
    sizes = [file.stat().st_size for file in files]
    if known is not None and [(entry["stem"], entry.get("sizes", [0])[0]) for entry in known.frames] == [
        *zip(sequence.frames, sizes, strict=True)
    ]:
        return known
    for stem, file, size in zip(sequence.frames, files, sizes, strict=True):
        points = read_ply(file).xyz
        if len(points) < 2:
            raise DataError(file, "element vertex", f"holds {len(points)} points.", "Move the folder away.")
        entry = {"stem": stem, "count": len(points), "points": len(points), "volume": 0.0, "flags": [], "sizes": [size]}
        box = [points.min(0).tolist(), points.max(0).tolist()]
        meta.frames.append({**entry, "bbox": box, "hash": "given"})
    extents = [np.linalg.norm(np.diff(np.asarray(entry["bbox"]), axis=0)) for entry in meta.frames]
    meta.voxel = float(np.median(extents)) / BOX_PER_VOXEL
    meta.bounds = aggregate(meta.frames, meta.voxel)
    meta.write()
    way_out = " (to have them carved from the masks, move the folder away)" if sequence.has_masks else ""
    CONSOLE.print(f"{files[0].parent}: using the points that lie there{way_out}")
    return meta


class _Run:
    """One sequence's way into one folder."""

    def __init__(self, sequence: Sequence, folder: Path, settings: dict[str, Any], known: HullMeta | None) -> None:
        self.sequence, self.plan = sequence, Plan(**settings["plan"])
        self.meta = HullMeta(folder, np.zeros((2, 3)), self.plan.voxel, [], cameras_hash(sequence), settings)
        self.known = {entry["stem"]: entry for entry in [*known.others, *known.frames]} if known is not None else {}

    def kept(self, stem: str, wanted: str) -> dict[str, Any] | None:
        """The entry of an earlier run for a frame, if it was made from the same things and its files are whole."""
        entry, files = self.last(stem), self.files(stem)
        if entry is None or entry.get("hash") != wanted or not all(file.is_file() for file in files):
            return None
        return entry if [file.stat().st_size for file in files] == entry.get("sizes") else None

    def last(self, stem: str) -> dict[str, Any] | None:
        """What the run that wrote a frame's files last has noted: one that was killed, else the one of the record."""
        progress = self.meta.folder / _PROGRESS / f"{stem}.json"
        return read_json(progress) if progress.is_file() else self.known.get(stem)

    def files(self, stem: str) -> tuple[Path, Path]:
        """(hull, surface points) of a frame."""
        return self.meta.hull_file(stem), self.meta.surface_file(stem)

    def carve(self, frame: int, wanted: str, max_voxels: int) -> dict[str, Any]:
        """Carve one frame and write its clouds; an empty frame gets an entry without files."""
        plan, stem = self.plan, self.sequence.frames[frame]
        box = np.asarray(plan.box)
        prepared, empty = silhouettes(self.sequence, frame, plan.voxel, box.mean(0))
        seed = plan.seed + zlib.crc32(stem.encode())
        try:
            hull = visual_hull(
                prepared, box[0], box[1], plan.voxel, vhull_thresh=plan.vhull_thresh, count_thresh=plan.count_thresh,
                lowest_thresh=plan.lowest_thresh, padding=plan.padding, coarse_thresh_factor=plan.coarse_thresh_factor,
                coarse_count_factor=plan.coarse_count_factor, near=NEAR, outlier_neighbours=plan.outlier_neighbours,
                outlier_sigma=plan.outlier_sigma, max_voxels=max_voxels,
            )  # fmt: skip
            surface = hull and surface_points(hull.points, plan.voxel, plan.points, plan.surface_radius, seed)
        except ValueError as error:  # a grid beyond all bounds
            remedy = "Give a larger one, or none: it then follows from the subject's size."
            raise DataError("hull options", "voxel", f"is {plan.voxel:g}: {error}.", remedy) from error
        entry: dict[str, Any] = {"stem": stem, "hash": wanted, "flags": []}
        if empty:
            entry["flags"].append(f"empty masks left out: {', '.join(empty)}")
        if hull is None or surface is None:
            return {**entry, "count": 0}
        if hull.thresh < plan.vhull_thresh - 1e-9:
            entry["flags"].append(f"empty with vhull_thresh {plan.vhull_thresh:g}: made with {hull.thresh:.2f}")
        hull_file, surface_file = self.files(stem)
        write_ply(hull_file, hull.points)
        write_ply(surface_file, surface, comment=_CARVED)
        half = 0.5 * plan.voxel
        entry |= {
            "count": len(hull.points),
            "points": plan.points,
            "bbox": [(hull.points.min(0) - half).tolist(), (hull.points.max(0) + half).tolist()],
            "volume": len(hull.points) * plan.voxel**3,
            "outliers": hull.dropped,
            "thresh": hull.thresh,
            "count_thresh": hull.count,
            "sizes": [hull_file.stat().st_size, surface_file.stat().st_size],
        }
        write_json(self.meta.folder / _PROGRESS / f"{stem}.json", entry)
        return entry

    def finish(self, entries: list[dict[str, Any]]) -> HullMeta:
        """Fill empty frames from their neighbours, flag odd ones, write the record, drop the notes of progress."""
        for entry, source in zip(entries, nearest_filled([entry["count"] for entry in entries]), strict=True):
            if source is None:
                raise nothing_found(self.sequence, np.asarray(self.plan.box))
            if entry["count"] == 0:
                neighbour = entries[source]
                for target, origin in zip(self.files(entry["stem"]), self.files(neighbour["stem"]), strict=True):
                    write_bytes(target, origin.read_bytes())
                own = {name: entry[name] for name in ("stem", "hash")}
                flags = [*entry["flags"], f"empty: copied from {neighbour['stem']}"]
                entry |= {**neighbour, **own, "flags": flags, "copied_from": neighbour["stem"]}
        flag_volumes(entries)
        self.meta.frames, self.meta.bounds = entries, aggregate(entries, self.plan.voxel)
        noted = {file.stem for file in (self.meta.folder / _PROGRESS).glob("*.json")} - {_PLAN.stem}
        others = sorted({*self.known, *noted} - set(self.sequence.frames))
        self.meta.others = [entry for entry in map(self.last, others) if entry is not None]
        self.meta.write()
        shutil.rmtree(self.meta.folder / _PROGRESS, ignore_errors=True)
        for entry in entries:
            for flag in entry["flags"]:
                CONSOLE.print(f"[yellow]Hull of frame {entry['stem']}: {flag}")
        return self.meta
