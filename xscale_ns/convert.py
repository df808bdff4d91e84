"""Metashape and COLMAP projects to a scene folder that the dataparsers read (spec xscale 2.4, 2.5)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv
from core_ns.images import area_downscale, image_size, read_image, write_image
from dataparsers.colmap_model import calibration_of, depth_range, read_model
from dataparsers.mesh import load_mesh
from dataparsers.metashape import ImageFolder, MetashapeCamera, MetashapeScene, read_metashape
from dataparsers.mvsnet import MvsCamera, write_cam
from dataparsers.undistort import Calibration, pinhole_target, undistort_image
from xscale_ns.frame_choice import FrameTest, View, choose_frame, describe, is_usable, sample_views

Array = np.ndarray
Say = Callable[[str], None]

SKEW_PIXELS = 0.25  # spec xscale 2.3: nerfstudio's cameras have no skew, more than this shows
_DEPTHS = 192  # MVSNet's customary number of sweep planes


@dataclass(frozen=True)
class Shot:
    """A photo to be written: its camera refers to the photo as it lies on the disk."""

    key: str
    image: Path
    calibration: Calibration
    w2c: Float[Array, "4 4"]
    depth: tuple[float, float] | None = None


@dataclass(frozen=True)
class Conversion:
    """What was written; ``skipped`` lists cameras left out with the reason."""

    out: Path
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    frame: str | None


def convert_metashape(
    xml: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    mesh: str | Path | None = None,
    frame: Literal["auto", "local", "world"] = "auto",
    downscale: int = 1,
    keep_distortion: bool = False,
    model_shift: tuple[float, float, float] | None = None,
    chunk: str | None = None,
    link: bool = False,
    say: Say = print,
) -> Conversion:
    """Turn a Metashape camera export and its photos into a scene folder (spec xscale 2.4).

    Args:
        xml: File > Export > Export Cameras.
        images: folder of the original photos.
        out: folder to make; may exist if it is empty.
        mesh: exported model; copied into ``out`` and needed by ``frame="auto"``.
        frame: coordinate system of the mesh: the chunk's local one, its world, or whichever fits.
        downscale: images become (floor(W/D), floor(H/D)), area-averaged.
        keep_distortion: write transforms.json with the lens terms and leave the photos as they are, instead of
            images_D and cams_D with undistorted photos.
        model_shift: the shift entered at the model export; subtracted from world coordinates (world units).
        chunk: label, when the file holds several.
        link: hard-link unchanged files instead of copying them, where the file system can.
        say: receives every line of the report.

    Raises:
        DataError: nothing is left behind in that case.
    """
    _check_request(out, downscale, mesh)
    scene = read_metashape(xml, chunk)
    shift = None if model_shift is None else np.asarray(model_shift, dtype=np.float64)
    if shift is not None and not (shift.shape == (3,) and np.isfinite(shift).all()):
        raise DataError(xml, "model shift", f"{model_shift} is not three finite numbers.", "Give x y z.")
    folder, shots, skipped = ImageFolder(images), [], list(scene.skipped)
    posed: list[MetashapeCamera] = []
    for camera in scene.cameras:
        image = folder.find(camera.label)
        if image is None:
            skipped.append((camera.label, f"no photo in {folder.folder}"))
            continue
        calibration = _fit_to_photo(camera.calibration, image, Path(xml), f"camera '{camera.label}'")
        shots.append(Shot(image.stem, image, calibration, camera.w2c_local))
        posed.append(camera)
    _report_skipped(skipped, say)
    _check_shots(shots, Path(xml))
    scene = MetashapeScene(tuple(posed), scene.skipped)
    name, poses = _metashape_poses(Path(xml), scene, shots, frame, shift, mesh, say)
    shots = [replace(shot, w2c=w2c) for shot, w2c in zip(shots, poses, strict=True)]
    _write_scene(Path(out), shots, mesh, downscale, keep_distortion, link, Path(xml), say)
    return Conversion(Path(out), tuple(shot.key for shot in shots), tuple(skipped), name)


def convert_colmap(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    mesh: str | Path | None = None,
    downscale: int = 1,
    keep_distortion: bool = False,
    depth_line: bool = True,
    link: bool = False,
    say: Say = print,
) -> Conversion:
    """Turn a COLMAP sparse model (binary or text) and its photos into a scene folder (spec xscale 2.5).

    ``depth_line`` adds MVSNet's sweep range from the 1 % and 99 % quantiles of the visible points' depth. Photos in
    sub-folders are written as ``folder__name``. ``mesh`` is e.g. COLMAP's meshed-poisson.ply. The other arguments and
    errors are those of `convert_metashape`.
    """
    _check_request(out, downscale, mesh)
    source = read_model(model)
    file = source.folder
    root = Path(images)
    if not root.is_dir():
        raise DataError(root, "", "is not a folder.", "Name the folder that COLMAP called image_path.")
    by_lower: dict[str, list[Path]] | None = None
    shots, skipped = [], []
    for record in sorted(source.images.values(), key=lambda image: image.name):
        place = f"image {record.image_id} '{record.name}'"
        relative = PurePosixPath(record.name)
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(file, place, "its name leaves the image folder.", "Rename it in the model.")
        path = root / relative
        if not path.is_file():
            if by_lower is None:
                by_lower = _files_by_lower_name(root)
            others = by_lower.get(record.name.lower(), [])
            if len(others) != 1:
                skipped.append((record.name, f"no photo in {root}" if not others else "several photos fit"))
                continue
            path = others[0]
        calibration = calibration_of(source.cameras[record.camera_id], file)
        calibration = _fit_to_photo(calibration, path, file, place)
        depth = depth_range(record, source.points) if depth_line else None
        key = "__".join(relative.with_suffix("").parts)
        shots.append(Shot(key, path, calibration, record.w2c, depth))
    _report_skipped(skipped, say)
    _check_shots(shots, file)
    if mesh is not None:
        _warn_if_off(FrameTest(load_mesh(mesh)), [View(s.calibration, s.w2c) for s in shots], say)
    _write_scene(Path(out), shots, mesh, downscale, keep_distortion, link, file, say)
    return Conversion(Path(out), tuple(shot.key for shot in shots), tuple(skipped), None)


def _metashape_poses(
    xml: Path,
    scene: MetashapeScene,
    shots: Sequence[Shot],
    frame: str,
    shift: Float[Array, "3"] | None,
    mesh: str | Path | None,
    say: Say,
) -> tuple[str, list[Float[Array, "4 4"]]]:
    """The frame's name and the world-to-camera matrices in it."""
    poses = {"local": [camera.w2c_local for camera in scene.cameras]}
    world = [camera.w2c_world for camera in scene.cameras if camera.w2c_world is not None]
    if len(world) == len(scene.cameras):
        poses["world"] = [_shifted(w2c, shift) for w2c in world]
    is_geocentric = any(camera.to_world is not None and camera.to_world.is_geocentric for camera in scene.cameras)
    geocentric_hint = (
        "The chunk is geographic (its transform is earth-centred), and a model exported in map coordinates does not "
        "match the cameras by any rigid motion. Export the model with coordinate system 'Local Coordinates' and use "
        "--frame local, or export it in geocentric coordinates and give its shift as --model-shift x y z."
    )
    if frame not in ("auto", "local", "world"):
        raise DataError(xml, "frame", f"'{frame}' is not a frame.", "Use auto, local or world.")
    if frame != "auto" and frame not in poses:
        raise DataError(xml, "chunk transform", "there is none for some cameras.", "Use --frame local.")
    if frame == "world" and is_geocentric and shift is None:
        raise DataError(xml, "chunk transform", "its world is earth-centred.", geocentric_hint)
    if frame == "auto" and mesh is None and len(poses) > 1:
        raise DataError(
            xml, "frame", "without a mesh its frame cannot be found.", "Give --mesh, or --frame local|world."
        )
    if frame == "auto" and len(poses) == 1:
        say("frame: local (the file holds no chunk transform)")
        frame = "local"
    if mesh is not None:
        test = FrameTest(load_mesh(mesh))
        views = {
            name: [View(s.calibration, w2c, s.image) for s, w2c in zip(shots, matrices, strict=True)]
            for name, matrices in poses.items()
        }
        if frame == "auto":
            frame = choose_frame(test, views, Path(mesh), say, geocentric_hint if is_geocentric else "")
        else:
            _warn_if_off(test, views[frame], say)
    if frame == "local" and len(scene.components) > 1:
        say("warning: the cameras belong to several components, whose local frames are unrelated; use --frame world")
    return frame, poses[frame]


def _shifted(w2c: Float[Array, "4 4"], shift: Float[Array, "3"] | None) -> Float[Array, "4 4"]:
    """World-to-camera after ``shift`` was subtracted from all world coordinates."""
    if shift is None:
        return w2c
    moved = w2c.copy()
    centre = -w2c[:3, :3].T @ w2c[:3, 3] - shift
    moved[:3, 3] = -w2c[:3, :3] @ centre
    return moved


def _warn_if_off(test: FrameTest, views: Sequence[View], say: Say) -> None:
    shares = test.hit_shares([views[i] for i in sample_views(len(views))])
    warning = "" if is_usable(shares) else "warning: cameras and mesh do not share a frame: "
    say(warning + describe(shares))


def _fit_to_photo(calibration: Calibration, image: Path, file: Path, place: str) -> Calibration:
    """The calibration for the photo's real size: photos scaled as a whole are fine, cropped or turned ones are not."""
    width, height = image_size(image)
    if (width, height) == (calibration.width, calibration.height):
        return calibration
    # Both sides rounded to whole pixels may differ from one ratio by a pixel.
    if abs(width * calibration.height / calibration.width - height) > 1.0:
        raise DataError(
            file,
            place,
            f"{image.name} is {width}x{height}, its calibration {calibration.width}x{calibration.height}.",
            "Use the photos that were aligned: not cropped, not rotated.",
        )
    return calibration.resized(width, height)


def _files_by_lower_name(root: Path) -> dict[str, list[Path]]:
    result: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            result.setdefault(path.relative_to(root).as_posix().lower(), []).append(path)
    return result


def _report_skipped(skipped: Sequence[tuple[str, str]], say: Say) -> None:
    for name, reason in skipped:
        say(f"skipped {name}: {reason}")


def _check_request(out: str | Path, downscale: int, mesh: str | Path | None) -> None:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(out, "", "exists and is not an empty folder.", "Choose another output folder, or remove it.")
    if downscale < 1:
        raise DataError(out, "downscale", f"{downscale} is not a positive whole number.", "Use 1, 2, 4, ...")
    if mesh is not None and not Path(mesh).is_file():
        raise DataError(mesh, "", "is not a file.", "Name the mesh file.")


def _check_shots(shots: Sequence[Shot], file: Path) -> None:
    if not shots:
        raise DataError(file, "cameras", "no camera has a photo.", "Check the image folder.")
    taken: dict[str, Path] = {}
    for shot in shots:
        # Compared without case: the folder may be copied to Windows or macOS.
        key = shot.key.lower()
        if key in taken:
            problem = f"it would be written under the same name as {taken[key]}."
            raise DataError(file, f"photo {shot.image}", problem, "Rename one of them, or remove the double camera.")
        taken[key] = shot.image


def _write_scene(
    out: Path,
    shots: Sequence[Shot],
    mesh: str | Path | None,
    downscale: int,
    keep_distortion: bool,
    link: bool,
    file: Path,
    say: Say,
) -> None:
    with _new_folder(out) as folder:
        if keep_distortion:
            _write_transforms(folder, shots, downscale, link, say)
        else:
            _write_mvsnet(folder, shots, downscale, link, file)
        if mesh is not None:
            _copy(Path(mesh), folder / Path(mesh).name, link)
    say(f"{len(shots)} views written to {out}")


def _write_mvsnet(folder: Path, shots: Sequence[Shot], downscale: int, link: bool, file: Path) -> None:
    targets: dict[Calibration, Calibration] = {}
    for shot in shots:
        lens = shot.calibration
        if lens not in targets:
            try:
                # A txt camera holds K but no distortion. A skew that nerfstudio would notice is resampled away too.
                needs_work = lens.is_distorted or lens.skew_pixels > SKEW_PIXELS
                targets[lens] = pinhole_target(lens) if needs_work else lens
            except ValueError as error:
                remedy = "Export undistorted photos and their cameras, or use --keep-distortion."
                raise DataError(file, f"lens of {shot.image.name}", f"{error}.", remedy) from error
        final = _write_photo(shot, targets[lens], folder / f"images_{downscale}", downscale, link)[1]
        depth = None
        if shot.depth is not None:
            near, far = shot.depth
            depth = (near, (far - near) / (_DEPTHS - 1), float(_DEPTHS), far)
        write_cam(folder / f"cams_{downscale}" / f"{shot.key}_cam.txt", MvsCamera(shot.w2c, final.intrinsics, depth))


def _write_transforms(folder: Path, shots: Sequence[Shot], downscale: int, link: bool, say: Say) -> None:
    """transforms.json of nerfstudio: per-frame intrinsics and lens terms, OpenGL camera-to-world."""
    # nerfstudio's own name for full-size photos; it looks for images_D beside it.
    images = folder / ("images" if downscale == 1 else f"images_{downscale}")
    frames = []
    skewed = [shot.key for shot in shots if shot.calibration.skew_pixels > SKEW_PIXELS]
    if skewed:
        worst = max(shot.calibration.skew_pixels for shot in shots)
        say(f"warning: transforms.json cannot hold the skew of {len(skewed)} views (up to {worst:.2f} px)")
    for shot in shots:
        path, lens = _write_photo(shot, shot.calibration, images, downscale, link)
        record: dict[str, Any] = {"file_path": path.relative_to(folder).as_posix()}
        record |= {"w": lens.width, "h": lens.height, "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy}
        record |= {name: getattr(lens, name) for name in ("k1", "k2", "k3", "k4", "p1", "p2")}
        record["transform_matrix"] = c2w_opengl_from_w2c_opencv(shot.w2c).tolist()
        frames.append(record)
    write_json(folder / "transforms.json", {"camera_model": "OPENCV", "frames": frames})


def _write_photo(shot: Shot, target: Calibration, folder: Path, downscale: int, link: bool) -> tuple[Path, Calibration]:
    """Write one photo as ``target`` sees it, shrunk by ``downscale``; its path and final calibration."""
    width, height = target.width // downscale, target.height // downscale
    if width < 1 or height < 1:
        problem = f"{target.width}x{target.height} pixels shrunk by {downscale} are none."
        raise DataError(shot.image, "downscale", problem, "Use a smaller factor.")
    path = folder / f"{shot.key}{shot.image.suffix}"
    if downscale == 1 and target == shot.calibration:
        _copy(shot.image, path, link)
        return path, target
    rgb, alpha = read_image(shot.image)
    pixels = rgb if alpha is None else np.dstack([rgb, alpha])
    if target != shot.calibration:
        pixels = undistort_image(pixels, shot.calibration, target)
    if (width, height) != (target.width, target.height):
        pixels = area_downscale(pixels, width, height)
    write_image(path, pixels)
    return path, target.resized(width, height)


def _copy(source: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without hard links
    shutil.copyfile(source, target)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` on success; on any error nothing is left behind."""
    out = Path(os.path.abspath(out))
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{out.name}")
    try:
        temporary.mkdir()
        yield temporary
        if out.exists():
            out.rmdir()  # fails, as it should, when somebody filled it meanwhile
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
