"""COLMAP sparse models, binary and text, without pycolmap (spec xscale 2.5).

Poses are COLMAP's own: world-to-camera, OpenCV axes, quaternion (w, x, y, z). Ids may have gaps and stand in any order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from core_ns.errors import DataError
from dataparsers.undistort import Calibration

Array = np.ndarray

# name -> (id in binary files, number of parameters)
CAMERA_MODELS: dict[str, tuple[int, int]] = {
    "SIMPLE_PINHOLE": (0, 3),
    "PINHOLE": (1, 4),
    "SIMPLE_RADIAL": (2, 4),
    "RADIAL": (3, 5),
    "OPENCV": (4, 8),
    "OPENCV_FISHEYE": (5, 8),
    "FULL_OPENCV": (6, 12),
    "FOV": (7, 5),
    "SIMPLE_RADIAL_FISHEYE": (8, 4),
    "RADIAL_FISHEYE": (9, 5),
    "THIN_PRISM_FISHEYE": (10, 12),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, 16),
    "SIMPLE_DIVISION": (12, 4),
    "DIVISION": (13, 5),
    "SIMPLE_FISHEYE": (14, 3),
    "FISHEYE": (15, 4),
    "EUCM": (16, 6),
    "EQUIRECTANGULAR": (17, 2),
}
_MODEL_OF_ID = {number: name for name, (number, _) in CAMERA_MODELS.items()}
_AGAIN = "Export the model again (colmap model_converter)."


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics as stored; pixels with (0, 0) at the outer corner."""

    camera_id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """One registered photo. ``point_ids`` is -1 for key points without a 3D point."""

    image_id: int
    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera_id: int
    name: str
    keypoints: Float[Array, "n 2"]
    point_ids: Int[Array, "n"]

    @property
    def w2c(self) -> Float[Array, "4 4"]:
        """E = [R(q) | t], rigid, float64; the quaternion is normalised first."""
        w, x, y, z = np.asarray(self.quaternion) / np.linalg.norm(self.quaternion)
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, 3] = self.translation
        return matrix


@dataclass(frozen=True)
class ColmapPoints:
    """Sparse points, world frame. ``tracks[i]`` lists (image id, key point index) pairs."""

    ids: Int[Array, "p"]
    xyz: Float[Array, "p 3"]
    rgb: UInt8[Array, "p 3"]
    errors: Float[Array, "p"]
    tracks: tuple[Int[Array, "_ 2"], ...]


@dataclass(frozen=True)
class ColmapModel:
    """A sparse model; ``folder`` is where the files were found."""

    folder: Path
    cameras: dict[int, ColmapCamera]
    images: dict[int, ColmapImage]
    points: ColmapPoints


def no_points() -> ColmapPoints:
    """An empty point set."""
    return ColmapPoints(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0), ())


def find_model(folder: str | Path) -> Path:
    """The folder with cameras.* and images.*: ``folder`` itself, its sparse/0, sparse or 0.

    Raises:
        DataError: when there is none.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse", folder / "0"):
        for suffix in ("bin", "txt"):
            if all((candidate / f"{name}.{suffix}").is_file() for name in ("cameras", "images")):
                return candidate
    raise DataError(
        folder,
        "",
        "neither cameras.bin with images.bin nor cameras.txt with images.txt is here or in sparse/0.",
        "Name the folder of the sparse model.",
    )


def read_model(folder: str | Path) -> ColmapModel:
    """Read a sparse model; binary files win over text files. A missing points3D file means no points.

    Raises:
        DataError: no model, truncated (with the byte offset), malformed, non-finite, duplicate or dangling ids.
    """
    # colmap_text builds the classes of this module, hence not at the top.
    from dataparsers.colmap_text import read_text_cameras, read_text_images, read_text_points

    folder = find_model(folder)
    is_binary = all((folder / f"{name}.bin").is_file() for name in ("cameras", "images"))
    suffix = "bin" if is_binary else "txt"
    readers = (
        (read_binary_cameras, read_binary_images, read_binary_points)
        if is_binary
        else (read_text_cameras, read_text_images, read_text_points)
    )
    cameras = _checked_cameras(readers[0](folder / f"cameras.{suffix}"), folder / f"cameras.{suffix}")
    images = _checked_images(readers[1](folder / f"images.{suffix}"), folder / f"images.{suffix}", cameras)
    points_file = folder / f"points3D.{suffix}"
    points = readers[2](points_file) if points_file.is_file() else no_points()
    if not (np.isfinite(points.xyz).all()):
        raise DataError(points_file, "", "a point is not finite.", _AGAIN)
    if len(np.unique(points.ids)) != len(points.ids):
        raise DataError(points_file, "", "a point id occurs twice.", _AGAIN)
    return ColmapModel(folder, cameras, images, points)


def _checked_cameras(found: list[ColmapCamera], file: Path) -> dict[int, ColmapCamera]:
    cameras = {camera.camera_id: camera for camera in found}
    if len(cameras) != len(found):
        raise DataError(file, "", "a camera id occurs twice.", _AGAIN)
    for camera in found:
        place = f"camera {camera.camera_id}"
        if camera.width < 1 or camera.height < 1:
            raise DataError(file, place, f"the size {camera.width}x{camera.height} is not positive.", _AGAIN)
        if not all(math.isfinite(value) for value in camera.params):
            raise DataError(file, place, "a parameter is not finite.", _AGAIN)
    return cameras


def _checked_images(found: list[ColmapImage], file: Path, cameras: dict[int, ColmapCamera]) -> dict[int, ColmapImage]:
    images = {image.image_id: image for image in found}
    if len(images) != len(found):
        raise DataError(file, "", "an image id occurs twice.", _AGAIN)
    for image in found:
        place = f"image {image.image_id} '{image.name}'"
        if image.camera_id not in cameras:
            raise DataError(file, place, f"its camera {image.camera_id} is not in the cameras file.", _AGAIN)
        if not all(math.isfinite(value) for value in (*image.quaternion, *image.translation)):
            raise DataError(file, place, "its pose is not finite.", _AGAIN)
        if np.linalg.norm(image.quaternion) < 1e-9:
            raise DataError(file, place, "its quaternion is zero.", _AGAIN)
        if not image.name:
            raise DataError(file, place, "its name is empty.", _AGAIN)
    return images


def calibration_of(camera: ColmapCamera, file: str | Path) -> Calibration:
    """The camera in the six distortion terms of nerfstudio (see `Calibration`).

    Raises:
        DataError: fisheye and other models that these terms cannot represent, FULL_OPENCV with a denominator,
            focal lengths that are not positive.
    """
    p = camera.params
    size = (camera.width, camera.height)
    if camera.model == "SIMPLE_PINHOLE":
        result = Calibration(*size, p[0], p[0], p[1], p[2])
    elif camera.model == "PINHOLE":
        result = Calibration(*size, *p)
    elif camera.model == "SIMPLE_RADIAL":
        result = Calibration(*size, p[0], p[0], p[1], p[2], k1=p[3])
    elif camera.model == "RADIAL":
        result = Calibration(*size, p[0], p[0], p[1], p[2], k1=p[3], k2=p[4])
    elif camera.model == "OPENCV":
        result = Calibration(*size, *p[:4], k1=p[4], k2=p[5], p1=p[6], p2=p[7])
    elif camera.model == "FULL_OPENCV" and not any(p[9:12]):
        result = Calibration(*size, *p[:4], k1=p[4], k2=p[5], p1=p[6], p2=p[7], k3=p[8])
    else:
        detail = " with k4, k5 or k6" if camera.model == "FULL_OPENCV" else ""
        raise DataError(
            file,
            f"camera {camera.camera_id}",
            f"the model {camera.model}{detail} cannot be written with the terms k1-k4, p1, p2.",
            "Run 'colmap image_undistorter' and convert its output folder, or reconstruct with OPENCV.",
        )
    if result.fx <= 0.0 or result.fy <= 0.0:
        raise DataError(file, f"camera {camera.camera_id}", "the focal length is not positive.", _AGAIN)
    return result


def depth_range(
    image: ColmapImage, points: ColmapPoints, low: float = 0.01, high: float = 0.99
) -> tuple[float, float] | None:
    """Quantiles of the depth along z of the points the image sees (world units); None with fewer than two of them."""
    wanted = np.unique(image.point_ids[image.point_ids >= 0])
    order = np.argsort(points.ids)
    where = np.searchsorted(points.ids, wanted, sorter=order)
    inside = where < len(order)
    where, wanted = where[inside], wanted[inside]
    rows = order[where]
    rows = rows[points.ids[rows] == wanted]
    depths = points.xyz[rows] @ image.w2c[2, :3] + image.w2c[2, 3]
    depths = depths[depths > 0.0]
    if len(depths) < 2:
        return None
    near, far = np.quantile(depths, [low, high])
    return (float(near), float(far)) if far > near else None


class _Bytes:
    """A cursor over a binary file that names the byte offset where the file ends too early."""

    def __init__(self, file: Path) -> None:
        self.file, self.offset = file, 0
        try:
            self.data = file.read_bytes()
        except OSError as error:
            raise DataError(file, "", f"cannot be read ({error}).", _AGAIN) from error

    def require(self, count: int, what: str) -> None:
        left = len(self.data) - self.offset
        if count > left:
            raise DataError(
                self.file, f"byte {self.offset}", f"truncated: {what} needs {count} bytes, {left} are left.", _AGAIN
            )

    def take(self, layout: str, what: str) -> tuple:
        size = struct.calcsize(layout)
        self.require(size, what)
        values = struct.unpack_from(layout, self.data, self.offset)
        self.offset += size
        return values

    def array(self, dtype: np.dtype, count: int, what: str) -> Array:
        self.require(dtype.itemsize * count, what)
        values = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += dtype.itemsize * count
        return values

    def name(self) -> str:
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise DataError(self.file, f"byte {self.offset}", "truncated inside an image name.", _AGAIN)
        raw, start = self.data[self.offset : end], self.offset
        self.offset = end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(self.file, f"byte {start}", "an image name is not UTF-8.", _AGAIN) from error

    def records(self, smallest: int, what: str) -> Iterator[int]:
        """Yield as many times as the leading count says, then insist on the end of the file."""
        (count,) = self.take("<Q", f"the number of {what}s")
        # Checked first, so that a damaged count cannot make us loop or allocate for hours.
        self.require(count * smallest, f"{count} {what}s")
        yield from range(count)
        if self.offset != len(self.data):
            raise DataError(
                self.file,
                f"byte {self.offset}",
                f"{len(self.data) - self.offset} bytes follow the last {what}.",
                _AGAIN,
            )


def read_binary_cameras(file: Path) -> list[ColmapCamera]:
    """cameras.bin. Raises DataError, see `read_model`."""
    cursor = _Bytes(file)
    cameras = []
    for _ in cursor.records(24, "camera"):
        start = cursor.offset
        camera_id, model_id, width, height = cursor.take("<IiQQ", "a camera")
        model = _MODEL_OF_ID.get(model_id)
        if model is None:
            raise DataError(file, f"byte {start}", f"camera {camera_id} has the unknown model {model_id}.", _AGAIN)
        params = cursor.take(f"<{CAMERA_MODELS[model][1]}d", f"the parameters of camera {camera_id}")
        cameras.append(ColmapCamera(camera_id, model, width, height, params))
    return cameras


_KEYPOINT = np.dtype([("xy", "<f8", (2,)), ("point", "<i8")])
_TRACK = np.dtype("<u4")


def read_binary_images(file: Path) -> list[ColmapImage]:
    """images.bin. Raises DataError, see `read_model`."""
    cursor = _Bytes(file)
    images = []
    for _ in cursor.records(73, "image"):
        image_id, *pose, camera_id = cursor.take("<I7dI", "an image")
        name = cursor.name()
        (count,) = cursor.take("<Q", f"the number of key points of '{name}'")
        points = cursor.array(_KEYPOINT, count, f"the key points of '{name}'")
        images.append(
            ColmapImage(
                image_id,
                (pose[0], pose[1], pose[2], pose[3]),
                (pose[4], pose[5], pose[6]),
                camera_id,
                name,
                points["xy"].astype(np.float64),
                points["point"].astype(np.int64),
            )
        )
    return images


def read_binary_points(file: Path) -> ColmapPoints:
    """points3D.bin. Raises DataError, see `read_model`."""
    cursor = _Bytes(file)
    rows: list[tuple] = []
    tracks: list[Array] = []
    for _ in cursor.records(51, "point"):
        row = cursor.take("<q3d3BdQ", "a point")
        rows.append(row)
        tracks.append(cursor.array(_TRACK, 2 * row[8], f"the track of point {row[0]}").reshape(-1, 2).astype(np.int64))
    return points_from_rows([row[:8] for row in rows], tracks)


def points_from_rows(rows: list[tuple], tracks: list[Array]) -> ColmapPoints:
    """Rows (id, x, y, z, r, g, b, error) and their tracks to arrays."""
    if not rows:
        return no_points()
    columns = list(zip(*rows, strict=True))
    return ColmapPoints(
        np.array(columns[0], np.int64),
        np.array(columns[1:4], np.float64).T,
        np.array(columns[4:7], np.uint8).T,
        np.array(columns[7], np.float64),
        tuple(tracks),
    )


def write_binary(model: ColmapModel, folder: str | Path) -> None:
    """Write cameras.bin, images.bin and points3D.bin into an existing folder (for tests and small exports)."""
    folder = Path(folder)
    parts = [struct.pack("<Q", len(model.cameras))]
    for camera in model.cameras.values():
        number, count = CAMERA_MODELS[camera.model]
        parts.append(struct.pack("<IiQQ", camera.camera_id, number, camera.width, camera.height))
        parts.append(struct.pack(f"<{count}d", *camera.params))
    (folder / "cameras.bin").write_bytes(b"".join(parts))
    parts = [struct.pack("<Q", len(model.images))]
    for image in model.images.values():
        parts.append(struct.pack("<I7dI", image.image_id, *image.quaternion, *image.translation, image.camera_id))
        parts.append(image.name.encode() + b"\0" + struct.pack("<Q", len(image.keypoints)))
        packed = np.empty(len(image.keypoints), _KEYPOINT)
        packed["xy"], packed["point"] = image.keypoints, image.point_ids
        parts.append(packed.tobytes())
    (folder / "images.bin").write_bytes(b"".join(parts))
    p = model.points
    parts = [struct.pack("<Q", len(p.ids))]
    for i, track in enumerate(p.tracks):
        parts.append(struct.pack("<q3d3BdQ", p.ids[i], *p.xyz[i], *p.rgb[i], p.errors[i], len(track)))
        parts.append(track.astype(_TRACK).tobytes())
    (folder / "points3D.bin").write_bytes(b"".join(parts))
