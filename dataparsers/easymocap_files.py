"""Photos and masks of an EasyMocap sequence on disk: which are there, and whether their headers agree (r4dv 2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.images import image_size, read_image
from dataparsers.clip_masks import THRESHOLD, ClipMasks
from dataparsers.easymocap_camera import CameraModel
from dataparsers.easymocap_clips import clip_frames, find_clips, say_if_slow, shows_subject_on_black
from dataparsers.easymocap_view import frame_number, read_mask, wrong_size
from dataparsers.picture_record import read_record, refuse_unfinished
from dataparsers.video_names import fit_canvas, holds_clips, list_clips
from dataparsers.video_read import Clip

SUFFIXES = (".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".webp")
"""In the order they are preferred where a frame exists in several."""
MASK_SUFFIXES = (".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".JPEG", ".webp")
IMAGE_FOLDERS = ("images", "images_libx265", "videos_libx265", "videos")
"""Tried in this order where the option is left alone. Of photos, a folder for each camera; or of clips."""
MASK_FOLDERS = ("masks", "mask", "bgmtv2", "rvm", "masks_libx265", "videos_masks_libx265")
FROM_CLIPS = "threshold"
"""In place of a folder of masks: what is not black in the clips."""

_SURVEYED_MASKS = 4
_FOREGROUND = 127


@dataclass(frozen=True, eq=False)
class PhotoFiles:
    """The photos of the chosen cameras: ``found[camera][stem]``. ``stems`` are those of any camera, in frame order.

    Photos in a clip have paths as if they had been extracted, ``FOLDER/CAM/000000.png``; `read` knows better.
    """

    root: Path
    folder: str
    names: list[str]
    stems: list[str]
    found: dict[str, dict[str, Path]]
    clips: dict[str, Clip] = field(default_factory=dict)
    """The clips they lie in, by camera; empty where they are files."""
    full_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(width, height) of the calibrated photo, of cameras whose stored photos are known to be of another size."""

    def read(self, name: str, stem: str) -> UInt8[np.ndarray, "h w 3"]:
        """A photo as stored.

        Raises:
            DataError: it does not decode.
        """
        file = self.found[name][stem]
        return self.clips[name].read(frame_number(file)) if name in self.clips else read_image(file)[0]

    def read_brightness(self, name: str, stem: str) -> UInt8[np.ndarray, "h w *c"]:
        """What `brightness_mask` looks at: the luma [h, w] where there is a clip, else the photo. Raises as `read`."""
        if name in self.clips:
            return self.clips[name].read_brightness(frame_number(self.found[name][stem]))
        return self.read(name, stem)

    def sources(self, name: str) -> list[Path]:
        """The files on disk that a camera's photos come from: its clip, or its photos in frame order."""
        if name in self.clips:
            return [self.clips[name].file]
        return [self.found[name][stem] for stem in self.stems if stem in self.found[name]]

    def fitted(
        self, name: str, models: Sequence[CameraModel], files: Sequence[Path], centre_shift: float
    ) -> tuple[CameraModel, ...]:
        """A camera's calibration in pixels of its stored photos; changed only where they are known to be shrunk.

        Args:
            files: of the chosen frames.
            centre_shift: see `fit_canvas`.

        Raises:
            DataError: the calibration is of another photo.
        """
        if name not in self.full_sizes:
            return tuple(models)
        place = self.clips[name].file if name in self.clips else files[0]
        stored = self.clips[name].name.canvas if name in self.clips else image_size(files[0])
        return tuple(fit_canvas(model, stored, self.full_sizes[name], place, centre_shift) for model in models)

    def of(self, name: str, frames: Sequence[str]) -> list[Path]:
        """A camera's photos of the given frames.

        Raises:
            DataError: one is missing; names the camera and the first missing frame.
        """
        return _complete(self.found[name], self.root / self.folder / name, name, frames, "photo")

    def check(
        self,
        files: Mapping[str, Sequence[Path]],
        masks: MaskFiles | None,
        models: Mapping[str, Sequence[CameraModel]],
        every: bool = True,
    ) -> dict[str, tuple[int, int]]:
        """Read headers and compare sizes: photo, mask and calibration of a camera must agree.

        Args:
            every: look at all files, not only at each camera's first.

        Returns:
            (width, height) of each camera's stored photos.

        Raises:
            DataError: not an image, or another size.
        """
        sizes = {}
        for name in self.names:
            sizes[name] = self.clips[name].name.canvas if name in self.clips else image_size(files[name][0])
            for model in models[name]:
                if model.width is not None and model.height is not None:
                    expected = (model.width, model.height)
                    if expected != sizes[name]:
                        raise wrong_size(files[name][0], name, sizes[name], expected, "its calibration")
        listed: list[tuple[str, Path]] = []
        for name in self.names:
            photos = [] if name in self.clips else files[name][1:]
            mask_files = masks.files[name] if masks is not None and name not in masks.clips else []
            listed += [(name, path) for path in ([*photos, *mask_files] if every else mask_files[:1])]
            if masks is not None and name in masks.clips and masks.clips[name].clip.name.canvas != sizes[name]:
                clip = masks.clips[name].clip
                raise wrong_size(clip.file, name, clip.name.canvas, sizes[name], "its camera's photos")
        with ThreadPoolExecutor(8) as pool:
            for (name, path), size in zip(listed, pool.map(lambda item: image_size(item[1]), listed), strict=True):
                if size != sizes[name]:
                    raise wrong_size(path, name, size, sizes[name], f"{files[name][0].name} of its camera")
        if masks is not None:
            masks.survey()
        return sizes


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """The masks of the chosen cameras and frames."""

    folder: str
    files: dict[str, list[Path]]
    clips: dict[str, ClipMasks] = field(default_factory=dict)
    """The clips they come from, by camera; empty where they are files."""

    def survey(self) -> None:
        """Refuse label images and masks of 0 and 1: of a few masks, all hold something but none any foreground.

        Raises:
            DataError: so it is.
        """
        middle = [(name, files[len(files) // 2]) for name, files in self.files.items()]
        surveyed = [path for _, path in middle[:: max(1, len(middle) // _SURVEYED_MASKS)]]
        largest = [
            int((self.clips[name].read(frame_number(path)) if name in self.clips else read_mask(path)).max())
            for name, path in middle[:: max(1, len(middle) // _SURVEYED_MASKS)]
        ]
        if all(0 < value <= _FOREGROUND for value in largest):
            problem = f"holds no foreground: its largest value is {largest[0]}, above {_FOREGROUND} counts."
            remedy = "Masks must be 0 and 255 (soft values between); multiply masks of 0 and 1, or labels, accordingly."
            raise DataError(surveyed[0], "mask", problem, remedy)


def in_time_order(stems: Iterable[str]) -> list[str]:
    """Sorted by name, but whole numbers by value: 2 comes before 10 also where they are not padded with zeros."""
    stems = list(stems)
    if all(stem.isdecimal() and stem.isascii() for stem in stems):
        return sorted(stems, key=lambda stem: (int(stem), stem))
    return sorted(stems)


def _list_folder(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a camera by stem; of several of one stem, the one whose suffix comes first."""
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.suffix not in suffixes or path.name.startswith("."):
            continue
        other = found.get(path.stem)
        if other is None or suffixes.index(path.suffix) < suffixes.index(other.suffix):
            found[path.stem] = path
    return found


def _complete(found: Mapping[str, Path], folder: Path, name: str, frames: Sequence[str], kind: str) -> list[Path]:
    missing = [frame for frame in frames if frame not in found]
    if missing:
        problem = f"holds no {kind} of frame {missing[0]}; {len(missing)} of the {len(frames)} chosen are missing."
        remedy = f"All cameras need all chosen frames ({', '.join(SUFFIXES)}); choose others with --frame-sample."
        raise DataError(folder, f"camera {name}", problem, remedy)
    return [found[frame] for frame in frames]


def _pick_folder(root: Path, wanted: str, known: Sequence[str], kind: str) -> str | None:
    """The folder to use; another known one, said aloud, where the usual one is absent."""
    if (root / wanted).is_dir():
        return wanted
    if wanted != known[0]:
        problem = f"holds no folder {wanted}."
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
        raise DataError(root, f"--{kind}-dir", problem, f"Folders there: {there}.")
    for name in known[1:]:
        if (root / name).is_dir():
            CONSOLE.print(f"[yellow]{root} has no {wanted}/: using {name}/")
            return name
    return None


def find_photos(root: Path, images_dir: str, names: Sequence[str]) -> PhotoFiles:
    """List the photos of the chosen cameras; frames are numbered by the sorted stems of all of them together.

    Raises:
        DataError: no image folder, or a camera has none or no photo in it.
    """
    folder = _pick_folder(root, images_dir, IMAGE_FOLDERS, "images")
    if folder is None:
        remedy = "Photos are images/CAMERA/000000.jpg, or clips videos_libx265/CAMERA_N..._FH....mp4."
        raise DataError(root, "--images-dir", f"holds no folder {images_dir}.", remedy)
    if holds_clips(root / folder):
        clips = find_clips(root / folder, names)
        found = {name: clip_frames(root / folder / name, clip) for name, clip in clips.items()}
        stems = max(map(list, found.values()), key=len)
        say_if_slow(folder, next(iter(clips.values())))
        _say_if_uneven(folder, {name: len(found[name]) for name in names})
        full_sizes = {name: clip.name.full for name, clip in clips.items()}
        return PhotoFiles(root, folder, list(names), stems, found, clips, full_sizes)
    record = read_record(root / folder)
    refuse_unfinished(root / folder, record, names)
    found: dict[str, dict[str, Path]] = {}
    for name in names:
        place = root / folder / name
        if not place.is_dir():
            problem = "has no folder of photos, though the calibration has the camera."
            raise DataError(place, f"camera {name}", problem, "Add it, or choose cameras with --view-sample.")
        found[name] = _list_folder(place, SUFFIXES)
        if not found[name]:
            problem = f"holds no photo ({', '.join(SUFFIXES)})."
            raise DataError(place, f"camera {name}", problem, "Add them, or choose cameras with --view-sample.")
    stems = in_time_order(set().union(*found.values()))
    if stems != sorted(stems):
        CONSOLE.print(f"[yellow]{folder}: frames are ordered by number, not by name: {stems[0]}, ..., {stems[-1]}")
    _say_if_uneven(folder, {name: len(found[name]) for name in names})
    used = {path.suffix for each in found.values() for path in each.values()}
    if used != {SUFFIXES[0]}:
        CONSOLE.print(f"{folder}: photos are {', '.join(sorted(used))}")
    unknown = sorted(path.name for path in (root / folder).iterdir() if path.is_dir() and path.name not in names)
    if unknown:
        listed = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        CONSOLE.print(f"{folder}: {len(unknown)} folders are no chosen camera: {listed}")
    sizes = {} if record is None else {name: record.sizes[name] for name in names if name in record.sizes}
    full_sizes = {name: (width, height) for name, (_, _, width, height) in sizes.items()}
    return PhotoFiles(root, folder, list(names), stems, found, full_sizes=full_sizes)


def _say_if_uneven(folder: str, counts: Mapping[str, int]) -> None:
    few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[few] != counts[many]:
        CONSOLE.print(f"[yellow]{folder}: {counts[few]} photos of camera {few}, but {counts[many]} of camera {many}")


def photo_cameras(root: Path, images_dir: str) -> list[str]:
    """The cameras of which a folder holds photos or clips, sorted: for commands that need no calibration.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    folder = root / images_dir
    if not folder.is_dir():
        raise DataError(folder, "folder", "is not there.", "Name the folder of photos or clips.")
    if holds_clips(folder):
        return list(list_clips(folder))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(folder, "folder", "holds no camera.", "Photos are CAMERA/000000.jpg, clips CAMERA.mp4.")
    return names


def find_masks(
    root: Path, masks_dir: str, photos: PhotoFiles, frames: Sequence[str], threshold: int = THRESHOLD
) -> MaskFiles | None:
    """The masks of the chosen photos; None where there are none, or "none" is asked for.

    They are files, clips of masks, or (asked for with `FROM_CLIPS`, and where nothing else is there but clips of a
    subject on black) what is not black in the photos' own clips.

    Args:
        threshold: R + G + B that is not black.

    Raises:
        DataError: a named folder is absent, or some masks are missing; names the camera and the first missing frame.
    """
    if masks_dir == "none":
        return None
    if masks_dir == FROM_CLIPS and not photos.clips:
        problem = f"is {FROM_CLIPS}, but {photos.folder} holds no clips."
        raise DataError(root, "--masks-dir", problem, "Name a folder of masks (ns-r4dv process masks makes one).")
    folder = None if masks_dir == FROM_CLIPS else _pick_folder(root, masks_dir, MASK_FOLDERS, "masks")
    if folder is None:
        if masks_dir == FROM_CLIPS or shows_subject_on_black(photos.clips):
            CONSOLE.print(f"{photos.folder}: masks are what is brighter than {threshold} (R + G + B)")
            chosen = {name: _complete(photos.found[name], root, name, frames, "mask") for name in photos.names}
            own = {name: ClipMasks(clip, threshold) for name, clip in photos.clips.items()}
            return MaskFiles(photos.folder, chosen, own)
        CONSOLE.print(f"[yellow]{root} has no {masks_dir}/: no visual hull can be made, and no mask loss")
        return None
    if holds_clips(root / folder):
        clips = find_clips(root / folder, photos.names)
        found = {name: clip_frames(root / folder / name, clip) for name, clip in clips.items()}
        chosen = {name: _complete(found[name], clips[name].file, name, frames, "mask") for name in photos.names}
        return MaskFiles(folder, chosen, {name: ClipMasks(clip, None) for name, clip in clips.items()})
    refuse_unfinished(root / folder, read_record(root / folder), photos.names)
    files = {}
    for name in photos.names:
        place = root / folder / name
        if not place.is_dir():
            problem = "has no folder of masks, though other cameras may."
            raise DataError(place, f"camera {name}", problem, 'Add it, or use no masks with --masks-dir "none".')
        files[name] = _complete(_list_folder(place, MASK_SUFFIXES), place, name, frames, "mask")
    return MaskFiles(folder, files)
