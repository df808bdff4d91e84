"""Photos and masks of an EasyMocap sequence on disk: which are there, and whether their headers agree (r4dv 2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.images import image_size
from dataparsers.easymocap_camera import CameraModel
from dataparsers.easymocap_view import read_mask, wrong_size

SUFFIXES = (".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG", ".webp")
"""In the order they are preferred where a frame exists in several."""
MASK_SUFFIXES = (".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".JPEG", ".webp")
IMAGE_FOLDERS = ("images", "images_libx265")
"""Tried in this order where the option is left alone."""
MASK_FOLDERS = ("masks", "mask", "bgmtv2", "rvm", "masks_libx265")

_SURVEYED_MASKS = 4
_FOREGROUND = 127


@dataclass(frozen=True, eq=False)
class PhotoFiles:
    """The photos of the chosen cameras: ``found[camera][stem]``. ``stems`` are those of any camera, in frame order."""

    root: Path
    folder: str
    names: list[str]
    stems: list[str]
    found: dict[str, dict[str, Path]]

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
            sizes[name] = image_size(files[name][0])
            for model in models[name]:
                if model.width is not None and model.height is not None:
                    expected = (model.width, model.height)
                    if expected != sizes[name]:
                        raise wrong_size(files[name][0], name, sizes[name], expected, "its calibration")
        listed: list[tuple[str, Path]] = []
        for name in self.names:
            mask_files = masks.files[name] if masks is not None else []
            listed += [(name, path) for path in ([*files[name][1:], *mask_files] if every else mask_files[:1])]
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

    def survey(self) -> None:
        """Refuse label images and masks of 0 and 1: of a few masks, all hold something but none any foreground.

        Raises:
            DataError: so it is.
        """
        middle = [files[len(files) // 2] for files in self.files.values()]
        surveyed = middle[:: max(1, len(middle) // _SURVEYED_MASKS)]
        largest = [int(read_mask(path).max()) for path in surveyed]
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
        raise DataError(root, "--images-dir", f"holds no folder {images_dir}.", "Photos are images/CAMERA/000000.jpg.")
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
    counts = {name: len(found[name]) for name in names}
    few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[few] != counts[many]:
        CONSOLE.print(f"[yellow]{folder}: {counts[few]} photos of camera {few}, but {counts[many]} of camera {many}")
    used = {path.suffix for each in found.values() for path in each.values()}
    if used != {SUFFIXES[0]}:
        CONSOLE.print(f"{folder}: photos are {', '.join(sorted(used))}")
    unknown = sorted(path.name for path in (root / folder).iterdir() if path.is_dir() and path.name not in names)
    if unknown:
        listed = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        CONSOLE.print(f"{folder}: {len(unknown)} folders are no chosen camera: {listed}")
    return PhotoFiles(root, folder, list(names), stems, found)


def find_masks(
    root: Path, masks_dir: str, photos: Mapping[str, Sequence[Path]], frames: Sequence[str]
) -> MaskFiles | None:
    """The masks of the chosen photos; None where there is no folder of them, or "none" is asked for.

    Raises:
        DataError: a named folder is absent, or some masks are missing; names the camera and the first missing frame.
    """
    folder = None if masks_dir == "none" else _pick_folder(root, masks_dir, MASK_FOLDERS, "masks")
    if folder is None:
        if masks_dir != "none":
            CONSOLE.print(f"[yellow]{root} has no {masks_dir}/: no visual hull can be made, and no mask loss")
        return None
    files = {}
    for name in photos:
        place = root / folder / name
        if not place.is_dir():
            problem = "has no folder of masks, though other cameras may."
            raise DataError(place, f"camera {name}", problem, 'Add it, or use no masks with --masks-dir "none".')
        files[name] = _complete(_list_folder(place, MASK_SUFFIXES), place, name, frames, "mask")
    return MaskFiles(folder, files)
