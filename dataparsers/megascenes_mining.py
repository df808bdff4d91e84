"""Pairs from anyone's COLMAP model by the two numeric rules of the data set (spec megascenes 2.3).

Two photos make two pairs, one in each direction, when they share enough sparse points and were taken within hours of
each other. The scale of a pair is the 20 % quantile of the depths of the points that its reference sees.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array

from core_ns.errors import DataError
from dataparsers.colmap_model import ColmapImage, ColmapModel, depth_range, read_model
from dataparsers.megascenes_paths import path_problem
from dataparsers.megascenes_rows import PARAMETERS, Camera, ColumnBuilder
from dataparsers.megascenes_table import PairTable, write_table

MIN_SHARED = 50
MAX_HOURS = 3.0
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
_EXIF_FOLDER, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132


@dataclass(frozen=True)
class Mined:
    """What mining found, by split."""

    tables: dict[str, PairTable]
    untimed: int
    """Photos without a time of capture; the rule of hours does not count for them."""


def photo_time(file: Path) -> float | None:
    """When a photo was taken (EXIF), in seconds of its camera's own clock; None where it does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF is no reason to stop
            with Image.open(file, formats=_FORMATS) as image:
                exif = image.getexif()
                text = exif.get_ifd(_EXIF_FOLDER).get(_TAKEN) or exif.get(_CHANGED)
        moment = datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, ...
        return None
    return (moment - datetime(1970, 1, 1)).total_seconds()


def shared_points(images: list[ColmapImage]) -> dict[tuple[int, int], int]:
    """How many sparse points two images (numbers i < j in the list) both see; pairs without any are not in it."""
    seen = [np.unique(image.point_ids[image.point_ids >= 0]) for image in images]
    if not any(len(each) for each in seen):
        return {}
    points, columns = np.unique(np.concatenate(seen), return_inverse=True)
    rows = np.repeat(np.arange(len(images)), [len(each) for each in seen])
    sees = coo_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(images), len(points))).tocsr()
    counts = (sees @ sees.T).tocoo()
    return {
        (int(i), int(j)): int(count)
        for i, j, count in zip(counts.coords[0], counts.coords[1], counts.data, strict=True)
        if i < j
    }


def mine_pairs(
    model: ColmapModel,
    *,
    times: Mapping[int, float] | None = None,
    min_shared: int = MIN_SHARED,
    max_hours: float = MAX_HOURS,
    prefix: str = "",
    test_every: int = 0,
) -> dict[str, ColumnBuilder]:
    """Ordered pairs of a model, by split; images in the order of their names.

    Args:
        times: seconds by image id (`photo_time`); between two images without both, the rule of hours does not count.
        min_shared: sparse points that both must see.
        max_hours: longest time between the two.
        prefix: folder to put before each image's name.
        test_every: every so manieth image is kept for testing, with every pair that it is in; 0: none.

    Returns:
        "train", and with ``test_every`` "test".

    Raises:
        DataError: a camera model that the lists do not have, an impossible name, no pair at all.
    """
    images = sorted(model.images.values(), key=lambda image: image.name)
    cameras = {image.image_id: _camera(image, model) for image in images}
    paths = {image.image_id: _path(image, model, prefix) for image in images}
    scales = {image.image_id: _scale(image, model) for image in images}
    held_out = {image.image_id for image in images[:: test_every if test_every > 0 else len(images) + 1]}
    held_out = held_out if test_every > 0 else set()
    clock, builders = times or {}, {"train": ColumnBuilder()}
    if test_every > 0:
        builders["test"] = ColumnBuilder()
    for (i, j), count in sorted(shared_points(images).items()):
        one, two = images[i].image_id, images[j].image_id
        apart = abs(clock[one] - clock[two]) / 3600.0 if one in clock and two in clock else 0.0
        if count < min_shared or apart >= max_hours:
            continue
        builder = builders["test" if {one, two} & held_out else "train"]
        for ref, tgt in ((one, two), (two, one)):
            scale = scales[ref]
            if scale is not None:
                builder.add(paths[ref], paths[tgt], cameras[ref], cameras[tgt], scale, len(builder))
    if not any(len(builder) for builder in builders.values()):
        problem = f"has no two of {len(images)} images with {min_shared} shared points within {max_hours:g} hours."
        raise DataError(model.folder, "images", problem, "Lower the number of points, or allow more hours.")
    return {name: builder for name, builder in builders.items() if len(builder)}


def mine_splits(
    model_folder: str | Path, out: str | Path, *, images: str | Path | None = None, min_shared: int = MIN_SHARED,
    max_hours: float = MAX_HOURS, prefix: str = "", test_every: int = 0,
) -> Mined:  # fmt: skip
    """Mine a model's pairs into ``out/train`` (and ``out/test``), as `convert_splits` writes them.

    Args:
        images: the model's photos, for their times; without it the rule of hours does not count.

    Raises:
        DataError: see `read_model`, `mine_pairs`.
    """
    model = read_model(model_folder)
    times = {}
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(images, "path", "is no folder.", "Name the folder of the model's photos.")
        safe = [image for image in model.images.values() if path_problem(image.name) is None]
        found = ((image.image_id, photo_time(Path(images) / image.name)) for image in safe)
        times = {number: time for number, time in found if time is not None}
    builders = mine_pairs(
        model, times=times, min_shared=min_shared, max_hours=max_hours, prefix=prefix, test_every=test_every
    )
    meta = {"source": f"COLMAP model {model.folder.name}", "min_shared": min_shared, "max_hours": max_hours}
    tables = {
        name: write_table(
            Path(out) / name, builder.columns(), {"split": name, "source_rows": len(builder), "missing": 0, **meta}
        )
        for name, builder in builders.items()
    }
    return Mined(tables, len(model.images) - len(times))


def _camera(image: ColmapImage, model: ColmapModel) -> Camera:
    camera = model.cameras[image.camera_id]
    if camera.model not in PARAMETERS:
        problem = f"has the model {camera.model}; pairs are of {', '.join(PARAMETERS)}."
        remedy = "Run 'colmap image_undistorter' and use its output folder."
        raise DataError(model.folder, f"camera {camera.camera_id}", problem, remedy)
    p = camera.params
    focal, centre = ((p[0], p[1]), (p[2], p[3])) if camera.model == "PINHOLE" else ((p[0], p[0]), (p[1], p[2]))
    if min(focal) <= 0.0:
        raise DataError(
            model.folder, f"camera {camera.camera_id}", "the focal length is not positive.", "Fit it again."
        )
    # COLMAP itself makes its quaternions unit.
    w, x, y, z = (np.asarray(image.quaternion, np.float64) / np.linalg.norm(image.quaternion)).tolist()
    tx, ty, tz = (float(each) for each in image.translation)
    return Camera((w, x, y, z), (tx, ty, tz), focal, centre, (camera.width, camera.height))


def _path(image: ColmapImage, model: ColmapModel, prefix: str) -> str:
    path = f"{prefix.strip('/')}/{image.name}" if prefix.strip("/") else image.name
    problem = path_problem(path)
    if problem is not None:
        raise DataError(model.folder, f"image {image.image_id}", f"{path[:80]!r} {problem}.", "Rename it in the model.")
    return path


def _scale(image: ColmapImage, model: ColmapModel) -> float | None:
    span = depth_range(image, model.points, 0.2, 0.8)
    return span[0] if span is not None and span[0] > 0.0 else None
