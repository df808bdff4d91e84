"""Work on all pictures of all cameras, several cameras side by side."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import Progress

from core_ns.errors import DataError
from dataparsers.easymocap_files import PhotoFiles, find_photos, photo_cameras
from dataparsers.easymocap_options import sampled

Step = Callable[[], None]
"""To be called after each picture: shows progress, and ends the thread when another one has failed."""


class _Stopped(Exception):
    """Another camera's job failed."""


def each_camera(names: Sequence[str], job: Callable[[str, Step], None], pictures: int, what: str, workers: int) -> None:
    """Run a job for every camera, the cameras side by side.

    Args:
        job: called with a camera and `Step`.
        pictures: steps of all jobs together, for the bar.
        what: what the bar says.
        workers: cameras at a time; 0: as many as processor cores.

    Raises:
        Whatever a job raised first; the others end after the picture they are at.
    """
    stop = threading.Event()
    with Progress() as progress, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        bar = progress.add_task(what, total=pictures)

        def step() -> None:
            progress.advance(bar)
            if stop.is_set():
                raise _Stopped

        def guarded(name: str) -> None:
            if stop.is_set():
                return
            try:
                job(name, step)
            except _Stopped:
                pass
            except BaseException:
                stop.set()
                raise

        jobs = [pool.submit(guarded, name) for name in names]
        try:
            for each in jobs:
                each.result()
        except BaseException:
            stop.set()
            raise


def open_photos(root: Path, folder: str, frames: Sequence[int | None]) -> tuple[PhotoFiles, list[str]]:
    """All cameras' photos in a folder below ``root``, or their clips, and the stems of the chosen frames.

    Args:
        folder: relative to ``root``, or absolute; relative to the working folder where only that is there.
        frames: begin, end, step, or a list.

    Raises:
        DataError: no such folder, a clip that cannot be used, or a frame that is not there.
    """
    place = place_below(root, folder)
    photos = find_photos(place.parent, place.name, photo_cameras(place.parent, place.name))
    return photos, [photos.stems[number] for number in sampled(len(photos.stems), frames, place, "--frames")]


def place_below(root: Path, folder: str) -> Path:
    """Where a folder's name points; see `open_photos`."""
    if Path(folder).is_absolute() or (not (root / folder).exists() and Path(folder).is_dir()):
        return Path(folder).absolute()
    if not root.is_dir():
        raise DataError(root, "sequence", "is not a folder.", "Name the folder of the recording.")
    return root / folder
