"""Recorded sequences in EasyMocap's layout: photos, masks and calibration in one folder, complete or not at all.

    SEQ/images/CAM/FRAME.jpg   SEQ/masks/CAM/FRAME.png   SEQ/{intri,extri}.yml   SEQ/cameras/CAM/{intri,extri}.yml

`write_sequence` writes what shots describe; `colmap_to_easymocap` and `transforms_to_easymocap` make shots of a COLMAP
model and of nerfstudio's ``transforms.json``. World, units and pixels stay those of the source.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError
from core_ns.images import has_alpha, image_size, read_image, write_image
from dataparsers.colmap_model import ColmapCamera, calibration_of, read_model
from dataparsers.easymocap import CameraModel, is_name, write_cameras
from dataparsers.easymocap_layout import ALPHA, Layout, Shot, Source, arrange, with_masks
from dataparsers.object_scene import new_folder
from dataparsers.transforms_json import read_transforms_json

Array = np.ndarray
Link = Literal["symlink", "copy"]
_KEPT = (".jpg", ".jpeg", ".png", ".webp")
_SAME_CAMERA = 1e-9
_GRID = "Every camera needs a photo of every moment, under the same file name. One moving camera alone cannot be used."


def fit_photo(model: CameraModel, size: tuple[int, int], file: str | Path, place: str) -> CameraModel:
    """The camera for a photo of ``size`` (width, height): K scaled by the ratio of each axis.

    Raises:
        DataError: the photo has another shape than the calibration, by more than rounding to whole pixels.
    """
    width, height = size
    native = model.width or width, model.height or height
    scale_x, scale_y = width / native[0], height / native[1]
    if abs(width - native[0] * scale_y) > 1 + width / height:
        problem = f"the photo is {width}x{height}, of another shape than the calibration's {native[0]}x{native[1]}."
        raise DataError(file, place, problem, "Give the photos that were calibrated (cropping changes the camera).")
    intrinsics = model.K * np.array([[scale_x], [scale_y], [1.0]])
    return replace(model, K=intrinsics, width=width, height=height)


def _is_same(a: CameraModel, b: CameraModel) -> bool:
    return bool(np.allclose(a.stand, b.stand, rtol=_SAME_CAMERA, atol=_SAME_CAMERA))


def _grid(shots: Sequence[Shot], source: Path) -> dict[str, dict[str, Shot]]:
    """Shots by camera and frame, both sorted, after all checks that need no pixel."""
    grid: dict[str, dict[str, Shot]] = {}
    for shot in shots:
        for name in (shot.camera, shot.frame):
            if not is_name(name):
                raise DataError(source, shot.place, f"'{name[:40]}' cannot be a camera or frame.", "Rename the photo.")
        if shot.frame in grid.setdefault(shot.camera, {}):
            other = grid[shot.camera][shot.frame]
            problem = f"is camera {shot.camera}, frame {shot.frame}, and so is {other.place or other.image.name}."
            raise DataError(source, shot.place or shot.image.name, problem, "Rename one of them, or choose a --layout.")
        grid[shot.camera][shot.frame] = shot
    if not grid:
        raise DataError(source, "", "holds no photo.", "Check that the reconstruction registered any.")
    frames = sorted({shot.frame for shot in shots})
    for camera in sorted(grid):
        for frame in frames:
            if frame not in grid[camera]:
                raise DataError(source, f"camera {camera}", f"has no photo of frame {frame}.", _GRID)
    return {camera: {frame: grid[camera][frame] for frame in frames} for camera in sorted(grid)}


def _check_masks(shots: Sequence[Shot], source: Path) -> None:
    masked = [shot for shot in shots if shot.mask is not None]
    if masked and len(masked) < len(shots):
        lacking = next(shot for shot in shots if shot.mask is None)
        problem = f"{lacking.camera}/{lacking.frame} has no mask, others have."
        raise DataError(source, lacking.place, problem, "Give a mask for every photo, or for none.")
    for shot in masked:
        if shot.mask == ALPHA and not has_alpha(shot.image):
            raise DataError(shot.image, "alpha", "holds no transparency, others do.", "Give masks for every photo.")
        if isinstance(shot.mask, Path) and image_size(shot.mask) != image_size(shot.image):
            sizes = "x".join(map(str, image_size(shot.mask))), "x".join(map(str, image_size(shot.image)))
            problem = f"is {sizes[0]}, its photo {sizes[1]}."
            raise DataError(shot.mask, "size", problem, "Give masks of the photos' size.")


def _fitted(shots: Mapping[str, Shot], source: Path) -> list[CameraModel]:
    """The cameras of one camera's frames for its photos, which must all be of one size."""
    sizes = {frame: image_size(shot.image) for frame, shot in shots.items()}
    first = next(iter(sizes.values()))
    for frame, size in sizes.items():
        if size != first:
            problem = f"is {size[0]}x{size[1]}, the camera's first photo {first[0]}x{first[1]}."
            raise DataError(shots[frame].image, "size", problem, "One camera's photos must have one size.")
    return [fit_photo(shot.model, first, source, shot.place or shot.camera) for shot in shots.values()]


def _place(source: Path, target: Path, link: Link) -> None:
    """Link or copy a picture; a format the layout does not know is written as PNG."""
    if source.suffix.lower() not in _KEPT:
        rgb, alpha = read_image(source)
        write_image(target.with_name(target.name + ".png"), rgb if alpha is None else np.dstack([rgb, alpha]))
        return
    target = target.with_name(target.name + source.suffix.lower())  # readers do not know every case
    target.parent.mkdir(parents=True, exist_ok=True)
    if link == "symlink":
        try:
            os.symlink(source.resolve(), target)
            return
        except OSError:  # file systems and Windows accounts without symbolic links
            pass
    shutil.copyfile(source, target)


def write_sequence(folder: str | Path, shots: Sequence[Shot], source: str | Path, link: Link = "symlink") -> Path:
    """Write an EasyMocap sequence; it appears complete or not at all.

    A camera whose frames all have the same pose and lens goes to ``intri.yml`` and ``extri.yml``, another one to
    ``cameras/CAM``.

    Args:
        folder: new or empty.
        source: the file or folder that errors name.
        link: "symlink" points at the source's pictures (and copies where the file system has no links).

    Raises:
        DataError: a camera lacks a frame, sizes differ, some photos have masks and some not, a name that cannot be a
            folder, an unreadable picture, ``folder`` holds something.
    """
    source = Path(source)
    grid = _grid(shots, source)
    still: dict[str, CameraModel] = {}
    moving: dict[str, dict[str, CameraModel]] = {}
    for camera, frames in grid.items():
        models = _fitted(frames, source)
        if all(_is_same(models[0], model) for model in models[1:]):
            still[camera] = models[0]
        else:
            moving[camera] = dict(zip(frames, models, strict=True))
    _check_masks([shot for frames in grid.values() for shot in frames.values()], source)
    with new_folder(Path(folder)) as draft:
        for camera, frames in grid.items():
            for frame, shot in frames.items():
                _place(shot.image, draft / "images" / camera / frame, link)
                if isinstance(shot.mask, Path):
                    _place(shot.mask, draft / "masks" / camera / frame, link)
                elif shot.mask == ALPHA:
                    _, alpha = read_image(shot.image)
                    assert alpha is not None  # its header said so
                    write_image(draft / "masks" / camera / f"{frame}.png", alpha)
        if still:
            write_cameras(draft, still)
        for camera, models in moving.items():
            write_cameras(draft / "cameras" / camera, models)
    return Path(folder)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False


def _colmap_lens(camera: ColmapCamera, w2c: Float[Array, "4 4"], file: Path) -> CameraModel:
    """A COLMAP camera with its pose; OpenCV's fisheye models keep their terms."""
    p, pose = camera.params, (w2c[:3, :3], w2c[:3, 3])
    terms = {"OPENCV_FISHEYE": p[4:8], "SIMPLE_RADIAL_FISHEYE": p[3:4], "RADIAL_FISHEYE": p[3:5]}.get(camera.model)
    if terms is not None:
        fx, fy, cx, cy = p[:4] if camera.model == "OPENCV_FISHEYE" else (p[0], p[0], p[1], p[2])
        if not (fx > 0 and fy > 0):
            remedy = "Export the model again (colmap model_converter)."
            raise DataError(file, f"camera {camera.camera_id}", "the focal length is not positive.", remedy)
        fisheye = np.zeros(4)
        fisheye[: len(terms)] = terms
        intrinsics = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
        return CameraModel("", intrinsics, np.zeros(5), fisheye, camera.width, camera.height, *pose)
    lens = calibration_of(camera, file)
    distortion = np.array([lens.k1, lens.k2, lens.p1, lens.p2, lens.k3])
    return CameraModel("", lens.intrinsics, distortion, None, lens.width, lens.height, *pose)


def colmap_to_easymocap(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    masks: str | Path | None = None,
    layout: Layout = "auto",
    link: Link = "symlink",
) -> Path:
    """Write the cameras of a COLMAP model and its photos as an EasyMocap sequence.

    Args:
        model: folder of the sparse model.
        images: folder that the model's image names are relative to.
        output: new or empty folder.
        masks: folder with a mask for each photo, NAME.png (or COLMAP's NAME.jpg.png). None: transparency, if all
            photos have it.
        layout: how photos become cameras and frames, see `arrange`. Of a "rig" also the photos that the model lacks
            become frames: calibrate one moment, convert all of them.
        link: see `write_sequence`.

    Raises:
        DataError: unusable model, a lens that EasyMocap's terms cannot express, and those of `write_sequence`.
    """
    found, images = read_model(model), Path(images)
    sources = []
    for image in sorted(found.images.values(), key=lambda image: image.name):
        path = images / image.name
        if not _is_file(path):
            remedy = "Name the folder that the model's image names are relative to."
            raise DataError(path, "path", f"is missing, image {image.image_id} of the model.", remedy)
        sources.append(Source(image.name, path, _colmap_lens(found.cameras[image.camera_id], image.w2c, found.folder)))
    if layout == "timed":
        raise DataError(found.folder, "--layout", "COLMAP models hold no times.", "Use photos, rig or moving.")
    shots = with_masks(arrange(sources, layout, found.folder), images, None if masks is None else Path(masks))
    return write_sequence(output, shots, found.folder, link)


def transforms_to_easymocap(
    file: str | Path,
    output: str | Path,
    masks: str | Path | None = None,
    layout: Layout = "auto",
    link: Link = "symlink",
) -> Path:
    """Write the cameras and photos of a ``transforms.json`` as an EasyMocap sequence.

    Args:
        file: the json file, or the folder that holds ``transforms.json``.
        masks: folder with the photos' names below it, as file_path gives them; None: ``mask_path``, else transparency.
        layout: as in `colmap_to_easymocap`, and "timed": photos of one pose are one camera, sorted by ``time``
            ("auto" takes it when there are several times and no folders).

    Raises:
        DataError: see `read_transforms_json` and `write_sequence`.
    """
    file = Path(file)
    file = file / "transforms.json" if file.is_dir() else file
    sources = [
        Source(frame.name, frame.image, frame.model, frame.mask, frame.time) for frame in read_transforms_json(file)
    ]
    shots = with_masks(arrange(sources, layout, file), file.parent, None if masks is None else Path(masks))
    return write_sequence(output, shots, file, link)
