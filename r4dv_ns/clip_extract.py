"""Pictures out of clips, and masks out of pictures: a file per camera and frame (spec r4dv 2.5, 8.7)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from jaxtyping import UInt8

from core_ns.errors import DataError
from core_ns.images import image_size, write_image
from dataparsers.easymocap_files import PhotoFiles
from dataparsers.picture_record import Record, begin, stamp_of
from dataparsers.video_names import parse_clip_name
from r4dv_ns.picture_jobs import Step, each_camera, open_photos

Array = np.ndarray
Convert = Callable[[UInt8[Array, "h w *c"]], UInt8[Array, "h w *d"]]
"""A camera's photo to what is written for it."""


class Matting(Protocol):
    """A way to masks."""

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, for the record."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether a mask depends on the frames before it."""
        ...

    @property
    def by_brightness(self) -> bool:
        """Whether `start`'s function wants `PhotoFiles.read_brightness` rather than photos."""
        ...

    def check(self, name: str, size: tuple[int, int]) -> list[Path]:
        """Raise DataError if a camera's photos of ``size`` (width, height) cannot be served; else the files used."""
        ...

    def start(self, name: str) -> Convert:
        """What turns the camera's photos, frame by frame, into masks of 0 to 255."""
        ...


def extract_images(
    root: Path,
    *,
    video_dir: str = "videos_libx265",
    image_dir: str | None = None,
    full_size: bool = False,
    frames: Sequence[int | None] = (0, None, 1),
    suffix: str = "auto",
    workers: int = 0,
) -> Path:
    """Write the frames of clips as ``IMAGE_DIR/CAM/000000.png``.

    Interrupted at any moment, the same call writes what is missing.

    Args:
        root: the recording; no calibration is needed.
        video_dir: clips, encoded or plain ``CAM.mp4``.
        image_dir: by default ``images_libx265`` for encoded clips, ``images`` for plain ones.
        full_size: enlarge to the calibrated photos' size, as the original does. Otherwise pictures are of the canvas,
            and ``ns-r4dv.json`` tells readers to scale the calibration.
        frames: begin, end, step, or a list; files keep the clip's numbers.
        suffix: "png", "jpg", or "auto": png for encoded clips, jpg for plain ones.

    Returns:
        The folder.

    Raises:
        DataError: a clip that cannot be used, a folder that holds something else; nothing is written then.
    """
    photos, stems = open_photos(root, video_dir, frames)
    if not photos.clips:
        raise DataError(root / video_dir, "--video-dir", "holds no clips.", "Name the folder of CAM.mp4 files.")
    plain = all(parse_clip_name(clip.file) is None for clip in photos.clips.values())
    kind = ("jpg" if plain else "png") if suffix == "auto" else suffix
    target = root / (image_dir or ("images" if plain else "images_libx265"))
    settings = {"frames": list(frames), "suffix": kind, "full_size": full_size}
    work = _Work(photos, stems, target, kind, full_size)

    def start(name: str) -> Convert:
        full = photos.full_sizes[name]
        return (lambda picture: _enlarged(picture, full)) if full_size else (lambda picture: picture)

    work.run("images", settings, start, "Extracting", workers=workers)
    return target


def extract_masks(
    root: Path,
    matting: Matting,
    *,
    source_dir: str = "videos_libx265",
    mask_dir: str | None = None,
    full_size: bool = False,
    frames: Sequence[int | None] = (0, None, 1),
    workers: int = 0,
) -> Path:
    """Write a mask for every frame of clips or photos, ``MASK_DIR/CAM/000000.png``.

    Args:
        matting: the way to masks.
        source_dir: clips or photos.
        mask_dir: by default ``masks_libx265`` for encoded clips, else ``masks``.
        full_size: enlarge to the calibrated photos' size; to be chosen as for `extract_images`.

    Returns:
        The folder.

    Raises:
        DataError: as `extract_images`, and what the way to masks lacks.
    """
    photos, stems = open_photos(root, source_dir, frames)
    encoded = any(parse_clip_name(clip.file) is not None for clip in photos.clips.values())
    target = root / (mask_dir or ("masks_libx265" if encoded else "masks"))
    work = _Work(photos, stems, target, "png", full_size)
    used = {name: stamp_of(matting.check(name, work.size(name))) for name in photos.names}

    def start(name: str) -> Convert:
        own, full = matting.start(name), photos.full_sizes.get(name)
        if not full_size or full is None:
            return own
        return lambda picture: _enlarged(own(picture), full)

    settings = {"frames": list(frames), "full_size": full_size, **matting.settings}
    read = photos.read_brightness if matting.by_brightness else photos.read
    work.run("masks", settings, start, "Masks", workers=workers, used=used, in_order=matting.in_order, read=read)
    return target


def _enlarged(picture: UInt8[Array, "h w *c"], size: tuple[int, int]) -> UInt8[Array, "h2 w2 *c"]:
    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)


class _Work:
    """The pictures of a folder to be."""

    def __init__(self, photos: PhotoFiles, stems: Sequence[str], target: Path, suffix: str, full_size: bool) -> None:
        self.photos, self.stems, self.target, self.suffix, self.full_size = photos, stems, target, suffix, full_size
        self.own = {name: [stem for stem in stems if stem in photos.found[name]] for name in photos.names}
        for name, own in self.own.items():
            if not own:
                raise DataError(
                    photos.root / photos.folder, f"camera {name}", "has none of the frames.", "Choose others."
                )

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) of a camera's photos as they are read."""
        if name in self.photos.clips:
            return self.photos.clips[name].name.canvas
        return image_size(self.photos.found[name][self.own[name][0]])

    def run(
        self,
        what: str,
        settings: dict[str, Any],
        start: Callable[[str], Convert],
        shown: str,
        *,
        workers: int,
        used: dict[str, list[Any]] | None = None,
        in_order: bool = False,
        read: Callable[[str, str], UInt8[Array, "h w *c"]] | None = None,
    ) -> None:
        """Write what is missing.

        Args:
            used: what else each camera's pictures come from, for the record.
            in_order: a picture needs those before it: cameras are done whole.
            read: a camera's picture of a stem; by default the photo.
        """
        sources, sizes = {}, {}
        for name in self.photos.names:
            stamps = [stamp_of(self.photos.sources(name)), self.own[name], (used or {}).get(name)]
            sources[name] = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]
            full = self.photos.full_sizes.get(name, self.size(name))
            if not self.full_size and full != self.size(name):
                sizes[name] = [*self.size(name), *full]
        record, lock = begin(self.target, Record(what, settings, sources, sizes)), threading.Lock()

        def job(name: str, step: Step) -> None:
            files = {stem: self._file(name, stem) for stem in self.own[name]}
            whole = name in record.done and all(file.is_file() for file in files.values())
            convert = start(name)
            for stem, file in files.items():
                if not whole and (in_order or not file.is_file()):
                    picture = convert((read or self.photos.read)(name, stem))
                    if not file.is_file():
                        write_image(file, picture)
                step()
            with lock:
                record.done = sorted({*record.done, name})
                record.write(self.target)

        each_camera(self.photos.names, job, sum(map(len, self.own.values())), shown, workers)

    def _file(self, name: str, stem: str) -> Path:
        return self.target / name / f"{stem}.{self.suffix}"
