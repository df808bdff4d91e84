"""The text form of COLMAP models: cameras.txt, images.txt, points3D.txt (spec xscale 2.5)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core_ns.errors import DataError
from dataparsers.colmap_model import (
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    points_from_rows,
)

_AGAIN = "Export the model again (colmap model_converter --output_type TXT)."


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, comments left out, empty lines kept (an image without key points has one)."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, "", f"cannot be read ({error}).", _AGAIN) from error
    # Not splitlines(): it also breaks at characters that a file name may hold.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.lstrip().startswith("#"):
            yield number, line.strip()


def _bad(file: Path, number: int, problem: str) -> DataError:
    return DataError(file, f"line {number}", problem, _AGAIN)


def read_text_cameras(file: Path) -> list[ColmapCamera]:
    """cameras.txt. Raises DataError with the line number."""
    cameras = []
    for number, line in _lines(file):
        words = line.split()
        if not words:
            continue
        if len(words) < 4:
            raise _bad(file, number, "a camera needs id, model, width, height and parameters.")
        if words[1] not in CAMERA_MODELS:
            raise _bad(file, number, f"the camera model '{words[1]}' is unknown.")
        count = CAMERA_MODELS[words[1]][1]
        if len(words) != 4 + count:
            raise _bad(file, number, f"{words[1]} has {count} parameters, {len(words) - 4} found.")
        try:
            params = tuple(float(word) for word in words[4:])
            cameras.append(ColmapCamera(int(words[0]), words[1], int(words[2]), int(words[3]), params))
        except ValueError as error:
            raise _bad(file, number, f"{error}.") from error
    return cameras


def read_text_images(file: Path) -> list[ColmapImage]:
    """images.txt: two lines for each image, the second one may be empty. Raises DataError with the line number."""
    images = []
    lines = _lines(file)
    for number, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        if len(words) != 10:
            raise _bad(file, number, "an image needs id, four rotation and three translation numbers, camera and name.")
        point_number, point_line = next(lines, (number + 1, ""))
        values = point_line.split()
        if len(values) % 3:
            raise _bad(file, point_number, "key points need three numbers each (x, y, point id).")
        try:
            pose = [float(word) for word in words[1:8]]
            image_id, camera_id = int(words[0]), int(words[8])
        except ValueError as error:
            raise _bad(file, number, f"{error}.") from error
        try:
            xy = np.array([values[0::3], values[1::3]], dtype=np.float64).T.reshape(-1, 2)
            point_ids = np.array([int(value) for value in values[2::3]], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise _bad(file, point_number, f"{error}.") from error
        images.append(
            ColmapImage(
                image_id,
                (pose[0], pose[1], pose[2], pose[3]),
                (pose[4], pose[5], pose[6]),
                camera_id,
                words[9],
                xy,
                point_ids,
            )
        )
    return images


def read_text_points(file: Path) -> ColmapPoints:
    """points3D.txt. Raises DataError with the line number."""
    rows: list[tuple] = []
    tracks = []
    for number, line in _lines(file):
        words = line.split()
        if not words:
            continue
        if len(words) < 8 or len(words) % 2:
            raise _bad(file, number, "a point needs id, position, colour, error and pairs of its track.")
        try:
            colour = [int(word) for word in words[4:7]]
            if not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"the colour {colour} is not 8 bit")
            rows.append((int(words[0]), *map(float, words[1:4]), *colour, float(words[7])))
            tracks.append(np.array([int(word) for word in words[8:]], dtype=np.int64).reshape(-1, 2))
        except (ValueError, OverflowError) as error:
            raise _bad(file, number, f"{error}.") from error
    return points_from_rows(rows, tracks)


def write_text(model: ColmapModel, folder: str | Path) -> None:
    """Write cameras.txt, images.txt and points3D.txt into an existing folder (for tests and small exports)."""
    folder = Path(folder)
    lines = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"]
    for c in model.cameras.values():
        lines.append(" ".join([str(c.camera_id), c.model, str(c.width), str(c.height), *map(_number, c.params)]))
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then X Y POINT3D_ID of each key point"]
    for image in model.images.values():
        pose = " ".join(map(_number, (*image.quaternion, *image.translation)))
        lines.append(f"{image.image_id} {pose} {image.camera_id} {image.name}")
        lines.append(
            " ".join(
                f"{_number(x)} {_number(y)} {point}"
                for (x, y), point in zip(image.keypoints, image.point_ids, strict=True)
            )
        )
    (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    p = model.points
    lines = ["# POINT3D_ID X Y Z R G B ERROR then IMAGE_ID POINT2D_IDX pairs"]
    for i, track in enumerate(p.tracks):
        numbers = [*map(_number, p.xyz[i]), *map(str, p.rgb[i]), _number(p.errors[i]), *map(str, track.ravel())]
        lines.append(" ".join([str(p.ids[i]), *numbers]))
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{float(value):.17g}"
