"""Which photo shows which camera at which moment: from the names, folders, poses and times of other formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple, Optional, Union

import numpy as np

from core_ns.errors import DataError
from core_ns.images import IMAGE_SUFFIXES, has_alpha, read_image
from dataparsers.easymocap_camera import CameraModel

Layout = Literal["auto", "photos", "rig", "moving", "timed"]
"""How photos become cameras and frames, see `arrange`."""
ALPHA: Final = "alpha"
"""In place of a mask's path: the photo's own transparency."""

_FIRST = "000000"


@dataclass(frozen=True)
class Shot:
    """One photo of one camera at one moment. ``model`` is for photos of its own width and height; ``mask`` a file,
    `ALPHA`, or None; ``place`` what errors name."""

    camera: str
    frame: str
    image: Path
    model: CameraModel
    mask: Optional[Union[Path, Literal["alpha"]]] = None
    place: str = ""


class Source(NamedTuple):
    """A photo of the outside format: its name there (with folders), its camera and, in some formats, its time."""

    name: str
    image: Path
    model: CameraModel
    mask: Path | None = None
    time: float | None = None


def _clean(text: str) -> str:
    """A camera's name out of a path: what yml keys and every file system take."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("._") or "camera"


def _frame(stem: str) -> str:
    """A frame's name, its numbers padded: frames are sorted as text, and 10 must not come before 2."""
    return _clean(re.sub("[0-9]+", lambda match: match.group().zfill(len(_FIRST)), stem))


def _relative_parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The parts of each name without the folders that all have in common."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    parts = [tuple(part for part in path.parts if part not in ("/", "..")) for path in paths]
    shared = 0
    while parts and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return [each[shared:] for each in parts]


def _timed(sources: Sequence[Source], file: Path) -> list[Shot]:
    """Photos of the same pose, lens and size are one camera; frames are numbered by their times."""
    for source in sources:
        if source.time is None:
            raise DataError(file, source.name, "has no 'time'.", "Give every frame a time, or choose a --layout.")
    times = sorted({source.time for source in sources if source.time is not None})
    frames = {time: f"{i:06d}" for i, time in enumerate(times)}
    cameras: dict[bytes, str] = {}
    shots = []
    for source in sources:
        stand = np.round([*source.model.stand, source.model.width or 0, source.model.height or 0], 9) + 0.0
        camera = cameras.setdefault(stand.tobytes(), f"{len(cameras):03d}")
        frame = frames[source.time] if source.time is not None else _FIRST
        shots.append(Shot(camera, frame, source.image, source.model, source.mask, source.name))
    return shots


def arrange(sources: Sequence[Source], layout: Layout, file: Path) -> list[Shot]:
    """Tell cameras from moments.

    Args:
        layout: "photos": every photo is a camera, one moment. "rig": a folder for each camera, which stands still; the
            first of its sources gives its pose, all photos in the folder are its frames. "moving": a folder for each
            camera, every photo has its own pose. "timed": photos of one pose are one camera, sorted by time. "auto":
            by folders (a rig if each holds one source, else moving), without folders by times, else photos.
        file: what errors name.

    Raises:
        DataError: a photo outside of all folders, a missing time, two folders whose names become one.
    """
    parts = _relative_parts([source.name for source in sources])
    folders = {each[:-1] for each in parts}
    if layout == "auto":
        layout = "photos"
        if len(folders) > 1 and () not in folders:
            layout = "moving" if len(folders) < len(parts) else "rig"
        elif len({source.time for source in sources}) > 1:
            layout = "timed"
    if layout == "timed":
        return _timed(sources, file)
    shots = []
    owners: dict[str, tuple[str, ...]] = {}
    for source, each in zip(sources, parts, strict=True):
        stem = PurePosixPath(each[-1]).stem
        if layout != "photos" and len(each) < 2:
            remedy = "Put every camera's photos into a folder of its own, or use --layout photos."
            raise DataError(file, source.name, "lies in no camera's folder.", remedy)
        owner = (*each[:-1], stem) if layout == "photos" else each[:-1]
        camera, frame = _clean("_".join(owner)), _FIRST if layout == "photos" else _frame(stem)
        if owners.setdefault(camera, owner) != owner:
            problem = f"and {'/'.join(owners[camera])} would both be the camera '{camera}'."
            raise DataError(file, source.name, problem, "Rename one of them.")
        shots.append(Shot(camera, frame, source.image, source.model, source.mask, source.name))
    return _whole_folders(shots) if layout == "rig" else shots


def _whole_folders(shots: Sequence[Shot]) -> list[Shot]:
    """Every photo in the folders of the registered ones, with the camera of the first registered photo there."""
    first: dict[str, Shot] = {}
    for shot in sorted(shots, key=lambda shot: shot.image.name):
        first.setdefault(shot.camera, shot)
    filled = []
    for shot in first.values():
        for image in sorted(shot.image.parent.iterdir(), key=lambda path: path.name):
            if image.suffix.lower() in IMAGE_SUFFIXES and not image.name.startswith(".") and image.is_file():
                place = f"{shot.camera}/{image.name}"
                mask = shot.mask if image == shot.image else None
                filled.append(Shot(shot.camera, _frame(image.stem), image, shot.model, mask, place))
    return filled


def _mask_finder(images: Path, masks: Path) -> Callable[[Shot], Shot]:
    """Attach ``masks/NAME.png``, ``masks/NAME.jpg`` or COLMAP's ``masks/NAME.jpg.png`` to ``images/NAME.jpg``."""

    def attach(shot: Shot) -> Shot:
        if not shot.image.is_relative_to(images):
            remedy = "Masks are found by the photos' names below that folder."
            raise DataError(shot.image, "path", f"does not lie in {images}.", remedy)
        relative = shot.image.relative_to(images)
        candidates = [masks / relative.with_suffix(suffix) for suffix in (".png", *IMAGE_SUFFIXES)]
        candidates.insert(1, masks / f"{relative}.png")
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise DataError(candidates[0], "path", f"is missing, the mask of {relative}.", "Every photo needs a mask.")
        return replace(shot, mask=found)

    return attach


def with_masks(shots: Sequence[Shot], images: Path, masks: Path | None) -> list[Shot]:
    """Shots with the masks of a folder, else with their own, else with their transparency if all have some."""
    if masks is not None:
        if not masks.is_dir():
            raise DataError(masks, "--masks", "is not a folder.", "Name the folder with a mask for every photo.")
        return [_mask_finder(images, masks)(shot) for shot in shots]
    given = not shots or any(shot.mask is not None for shot in shots)
    if given or not all(has_alpha(shot.image) for shot in shots) or _is_opaque(shots[0].image):
        return list(shots)
    return [replace(shot, mask=ALPHA) for shot in shots]


def _is_opaque(image: Path) -> bool:
    """Whether a photo stores a transparency that it does not use, as screenshots do."""
    _, alpha = read_image(image)
    return alpha is None or bool(alpha.min() == 255)
