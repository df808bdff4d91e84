"""Clean plates: what each camera would see without the subject (spec r4dv 3.4, 8.7)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers.easymocap_files import SUFFIXES, MaskFiles, PhotoFiles, find_masks
from dataparsers.easymocap_view import frame_number, read_mask, wrong_size
from dataparsers.picture_record import Record, begin, stamp_of
from r4dv_ns.picture_jobs import Step, each_camera, open_photos, place_below

Array = np.ndarray

DILATIONS = (0.05, 0.01)
"""Widths that masks are grown by, of the photo's longer side: the original's 100 and 20 pixels at 2000."""


class PlateSum:
    """The mean of photos where no subject is (r4dv 3.4), one photo at a time.

    Where a pixel is free in some photo with the masks grown by the first width, the mean is over those photos: hair,
    shadows at the feet and motion blur stay out. Elsewhere the second, smaller width counts. Where no photo is free,
    colours are spread from around.
    """

    def __init__(self, dilations: tuple[int, int]) -> None:
        """Start with nothing; ``dilations`` in pixels, the larger one first."""
        self._sums: list[Float[Array, "h w 3"]] = []
        self._counts: list[Float[Array, "h w"]] = []
        self._dilations = dilations

    def add(self, photo: UInt8[Array, "h w 3"], mask: UInt8[Array, "h w"]) -> None:
        """One more photo and its mask, above 127 is the subject."""
        if not self._sums:
            self._sums = [np.zeros(photo.shape, np.float32) for _ in self._dilations]
            self._counts = [np.zeros(mask.shape, np.float32) for _ in self._dilations]
        free = (mask <= 127).astype(np.uint8)
        # Distance to the subject: one pass for both widths, at any width. Without a subject all is far.
        distance = cv2.distanceTransform(free, cv2.DIST_L2, 5) if (mask > 127).any() else None
        for total, count, width in zip(self._sums, self._counts, self._dilations, strict=True):
            used = np.ones(mask.shape, bool) if distance is None else np.asarray(distance) > width
            total[used] += photo[used]
            count[used] += 1

    def result(self) -> tuple[UInt8[Array, "h w 3"], Bool[Array, "h w"]]:
        """(plate, seen): where ``seen`` is False no photo shows the background, and colours are made up."""
        (wide, narrow), (often, seldom) = self._sums, self._counts
        first = often > 0
        total, count = np.where(first[..., None], wide, narrow), np.where(first, often, seldom)
        seen = count > 0
        mean = total / np.maximum(count, 1)[..., None]
        filled = spread(mean, seen) if seen.any() else mean
        return np.clip(filled + 0.5, 0, 255).astype(np.uint8), seen


def spread(colours: Float[Array, "h w 3"], known: Bool[Array, "h w"]) -> Float[Array, "h w 3"]:
    """Colours carried into the unknown pixels, smooth over long distances: means of ever larger blocks (pull-push).

    Known pixels stay as they are. At least one must be known.
    """
    if known.all():
        return colours
    height, width = known.shape
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    padded = np.zeros((2 * rows, 2 * columns, 4), np.float32)
    padded[:height, :width, :3], padded[:height, :width, 3] = colours * known[..., None], known
    blocks = padded.reshape(rows, 2, columns, 2, 4).sum(axis=(1, 3))
    coarse = spread(blocks[..., :3] / np.maximum(blocks[..., 3:], 1), blocks[..., 3] > 0)
    smooth = cv2.resize(np.ascontiguousarray(coarse), (2 * columns, 2 * rows), interpolation=cv2.INTER_LINEAR)
    return np.where(known[..., None], colours, np.asarray(smooth).reshape(2 * rows, -1, 3)[:height, :width])


def make_plates(
    root: Path,
    *,
    image_dir: str = "images",
    mask_dir: str = "masks",
    plate_dir: str = "bkgd",
    dilations: tuple[float, float] = DILATIONS,
    frames: Sequence[int | None] = (0, None, 1),
    workers: int = 0,
) -> dict[str, float]:
    """Write a clean plate for every camera, ``PLATE_DIR/CAM.jpg``, made of a recording and its masks.

    Where no frame shows the background, ``PLATE_DIR/unseen/CAM.png`` is white. Interrupted at any moment, the same call
    makes what is missing.

    Args:
        root: the recording; no calibration is needed, but cameras must stand still.
        dilations: see `DILATIONS`; shares of the longer side, the larger one first.

    Returns:
        Share of each camera's picture that no frame shows.

    Raises:
        DataError: masks are missing, a camera moves, a folder that holds something else; nothing is written then.
    """
    if not 0 <= dilations[1] <= dilations[0] <= 1:
        raise DataError(root, "--dilate", f"is {dilations}.", "Give two shares of the longer side, the larger first.")
    photos, stems = open_photos(root, image_dir, frames)
    place = place_below(root, mask_dir)
    if not place.is_dir():
        raise DataError(place, "masks", "is not there.", "Make masks first: they tell what is background.")
    masks = find_masks(place.parent, place.name, photos, stems)
    assert masks is not None
    files = {name: photos.of(name, stems) for name in photos.names}
    for name in photos.names:
        if (root / "cameras" / name).is_dir():
            raise DataError(root / "cameras" / name, f"camera {name}", "moves, so it has no plate.", "Leave it out.")
    sources = {name: _fingerprint(photos, masks, name, stems) for name in photos.names}
    settings = {"dilations": list(dilations), "frames": list(frames)}
    target = root / plate_dir
    record, lock, unseen = begin(target, Record("plates", settings, sources)), threading.Lock(), {}

    def job(name: str, step: Step) -> None:
        if name in record.done and (target / f"{name}.jpg").is_file():
            unseen[name] = _unseen_share(target / "unseen" / f"{name}.png")
            return
        total: PlateSum | None = None
        for stem, file, mask_file in zip(stems, files[name], masks.files[name], strict=True):
            photo = photos.read(name, stem)
            mask = masks.clips[name].read(frame_number(mask_file)) if name in masks.clips else read_mask(mask_file)
            if mask.shape != photo.shape[:2]:
                raise wrong_size(mask_file, name, mask.shape[::-1], photo.shape[1::-1], f"its photo {file.name}")
            total = total or PlateSum(_pixels(dilations, max(mask.shape)))
            total.add(photo, mask)
            step()
        assert total is not None
        plate, seen = total.result()
        if not seen.all():
            write_image(target / "unseen" / f"{name}.png", np.where(seen, 0, 255).astype(np.uint8))
        write_image(target / f"{name}.jpg", plate)
        unseen[name] = float(1 - seen.mean())
        with lock:
            record.done = sorted({*record.done, name})
            record.write(target)

    each_camera(photos.names, job, len(stems) * len(photos.names), "Plates", workers)
    return {name: unseen[name] for name in photos.names}


def _pixels(dilations: tuple[float, float], side: int) -> tuple[int, int]:
    return round(dilations[0] * side), round(dilations[1] * side)


def _fingerprint(photos: PhotoFiles, masks: MaskFiles, name: str, stems: Sequence[str]) -> str:
    own = [masks.clips[name].clip.file] if name in masks.clips else masks.files[name]
    stamps = [stamp_of(photos.sources(name)), stamp_of(own), list(stems)]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]


def _unseen_share(file: Path) -> float:
    return float((read_mask(file) > 127).mean()) if file.is_file() else 0.0


def link_backgrounds(root: Path, *, plate_dir: str = "bkgd", out_dir: str = "bkgd/images") -> list[Path]:
    """Give plates the layout of a recording of one moment, ``OUT_DIR/CAM/000000.jpg``: links, copies where a file
    system has none (r4dv 2.1, 3.4).

    Returns:
        The links, those that were there included.

    Raises:
        DataError: there is no plate, two of one camera, or another file in a link's place; nothing is written then.
    """
    folder = place_below(root, plate_dir)
    if not folder.is_dir():
        raise DataError(folder, "--plate-dir", "is not there.", "Put plates there as CAM.jpg, or make them.")
    plates: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith("."):
            if file.stem in plates:
                raise DataError(file, f"camera {file.stem}", f"has {plates[file.stem].name} too.", "Remove one.")
            plates[file.stem] = file
    if not plates:
        raise DataError(folder, "plates", f"holds no CAM.jpg ({', '.join(SUFFIXES)}).", "Put the plates there.")
    links = {root / out_dir / name / f"000000{file.suffix}": file for name, file in plates.items()}
    for link, file in links.items():
        others = [each for each in link.parent.iterdir() if each != link] if link.parent.is_dir() else []
        others = [each for each in others if not each.name.startswith(".tmp-")]
        if others or (link.exists() and not _is_same(link, file)) or (link.is_symlink() and not link.exists()):
            raise DataError(link.parent, "folder", "holds another picture.", "Delete it, or name another --out-dir.")
    for link, file in links.items():
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(os.path.relpath(file.resolve(), link.parent.resolve()), link)
        except OSError:  # file systems and Windows accounts without symbolic links
            with atomic_path(link) as temporary:
                shutil.copyfile(file, temporary)
    return list(links)


def _is_same(link: Path, file: Path) -> bool:
    return link.samefile(file) or link.read_bytes() == file.read_bytes()
