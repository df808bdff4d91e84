"""The photo that views are made from: pixels, camera and depth in the canonical world (spec megascenes 8.1, 8.3).

The world of a run is the first reference's: it stands at the origin and looks along +y (nerfstudio's axes), lengths are
in units of its depth quantile. A reference that a view became ("use this view") stands elsewhere and has a unit of its
own; both are kept, so that cameras stay where they are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from megascenes_ns.depth import FARTHEST, Depth, DepthSource, q20
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.photo import read_photo
from megascenes_ns.prepare import CANVAS, Prepared, paste_offset, prepare

Array = np.ndarray

FOLDER = "reference"
"""Of a run folder: the photo that its views are made from."""
_PHOTO, _DEPTH, _CAMERA = "photo.png", "depth.npy", "reference.json"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Reference:
    """A photo with depth. Two with equal ``key`` are the same."""

    name: str
    """For messages and file names."""
    prepared: Prepared
    """Unpadded pixels, the longest side that of the networks' square, and their camera."""
    depth: Depth
    """Of exactly these pixels, in units of its own quantile."""
    pose: Float[Array, "4 4"] = field(default_factory=lambda: np.eye(4))
    """Camera to the canonical world, OpenCV axes. float64."""
    unit: float = 1.0
    """Length of the depth's unit in the canonical world."""

    def __post_init__(self) -> None:
        if self.depth.values.shape != self.prepared.image.shape[:2]:
            raise ValueError(f"depth {self.depth.values.shape} of a photo {self.prepared.image.shape}")

    @cached_property
    def key(self) -> str:
        """Hash of pixels, camera and depth; the place in the world is not part of it."""
        found = hashlib.sha256()
        for part in (self.prepared.image, self.prepared.K.astype(np.float64), self.depth.values):
            found.update(repr(part.shape).encode())
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:24]

    @cached_property
    def mesh(self) -> DepthMesh:
        """Its surface, in its own frame and unit."""
        return DepthMesh.from_depth(self.depth.values, self.prepared.K, self.prepared.image)

    def rel(self, pose: Float[Array, "4 4"]) -> Float[Array, "4 4"]:
        """A camera of the canonical world (OpenCV axes, camera to world) as the networks are told of it.

        Returns:
            Camera to the reference's frame, translation in its depth's unit. float64.
        """
        found = np.linalg.inv(self.pose) @ np.asarray(pose, np.float64)
        found[:3, 3] /= self.unit
        found[3] = (0.0, 0.0, 0.0, 1.0)
        return found


def reference_of_array(
    image: UInt8[Array, "h w 3"],
    K: Float[Array, "3 3"],
    source: DepthSource,
    key: str,
    *,
    name: str | None = None,
    canvas: int = CANVAS,
    scale: float | None = None,
    w2c: Float[Array, "4 4"] | None = None,
) -> Reference:
    """A reference from decoded pixels: of a pair, or any.

    Args:
        image: as large as there is.
        K: of it.
        source: of its depth.
        key: what the source knows the photo as.
        name: for messages; default: the key.
        canvas: side of the networks' square.
        scale: a pair's, so that depth and poses have the same unit.
        w2c: see `DepthSource.depth`.

    Raises:
        DataError: there is no depth of it.
    """
    prepared = prepare(image, K, canvas)
    depth = source.depth(image, K, key, size=prepared.image.shape[:2], scale=scale, w2c=w2c)
    return Reference(key if name is None else name, prepared, depth)


def reference_of_photo(file: Path, depth: str = "", fov: str = "auto", canvas: int = CANVAS) -> Reference:
    """A reference from a photo nobody calibrated.

    Args:
        file: the photo.
        depth: see `view_options.ViewOptions`.
        fov: see `photo.parse_fov`.
        canvas: side of the networks' square.

    Raises:
        DataError: no photo, no lens, or no depth.
    """
    from megascenes_ns.depth_sources import open_source

    source = open_source(depth_option(file, depth))
    photo = read_photo(file, fov)
    return reference_of_array(photo.image, photo.K, source, file.name, name=file.stem, canvas=canvas)


def depth_option(file: Path, depth: str) -> str:
    """Where the depth of a photo comes from, with the empty option resolved.

    Raises:
        DataError: nothing is named and nothing lies beside the photo.
    """
    if depth:
        return depth
    beside = file.with_suffix(".npy")
    if beside.is_file():
        return str(beside)
    raise DataError(
        file, "depth", "has none, and nothing says how far anything is.",
        f"Put {beside.name} beside it, or name one: --pipeline.model.view.depth (--depth of ns-megascenes) with a .npy "
        "file, a folder of a transformers depth model, or plane.",
    )  # fmt: skip


def reference_of_view(
    picture: UInt8[Array, "h w 3"],
    K: Float[Array, "3 3"],
    depth: Float32[Array, "h w"],
    pose: Float[Array, "4 4"],
    canvas: int,
    name: str,
) -> Reference:
    """A drawn view as the next reference; its depth is the warp's, holes filled from the nearest pixel that has some.

    Args:
        picture: of the view, longest side ``canvas``.
        K: of it.
        depth: of the warp, z in units of the canonical world; 0 in holes.
        pose: of the view's camera in the canonical world, OpenCV, camera to world.
        canvas: side of the networks' square.
        name: for messages.

    Raises:
        DataError: the warp shows nothing, so nothing is known of the depth.
    """
    from scipy.ndimage import distance_transform_edt

    seen = depth > 0
    unit = q20(depth)
    if unit is None:
        raise DataError("view", name, "shows nothing of its reference.", "Move the camera back, then use the view.")
    places = np.asarray(distance_transform_edt(~seen, return_distances=False, return_indices=True))
    filled = depth[tuple(places)] / unit
    values = np.clip(filled, 0.0, FARTHEST).astype(np.float32)
    height, width = picture.shape[:2]
    prepared = Prepared(picture, np.asarray(K, np.float64), paste_offset(width, height, canvas), canvas)
    return Reference(
        name, prepared, Depth(values, 1.0, "warp of another reference"), np.asarray(pose, np.float64), unit
    )


def save_reference(folder: Path, reference: Reference) -> None:
    """Write a reference into a run folder, each file atomically, the one that names the others last."""
    write_image(folder / _PHOTO, reference.prepared.image)
    with atomic_path(folder / _DEPTH) as temporary:
        np.save(temporary, reference.depth.values, allow_pickle=False)
    content = {
        "format": _FORMAT,
        "name": reference.name,
        "canvas": reference.prepared.canvas,
        "K": reference.prepared.K.tolist(),
        "q20": reference.depth.q20,
        "depth_source": reference.depth.source,
        "pose": reference.pose.tolist(),
        "unit": reference.unit,
        "key": reference.key,
    }
    write_json(folder / _CAMERA, content)


def has_reference(folder: Path) -> bool:
    """Whether `save_reference` has been there."""
    return (folder / _CAMERA).is_file()


def load_reference(folder: Path) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        DataError: a file is missing or does not fit the others.
    """
    file = folder / _CAMERA
    remedy = "Make the run again."
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise DataError(file, "format", f"is {content['format']}.", "It is of another version of nvs-zoo.")
        K, pose = (np.array(content[name], np.float64) for name in ("K", "pose"))
        canvas, unit, q = int(content["canvas"]), float(content["unit"]), float(content["q20"])
        name, source, key = (str(content[each]) for each in ("name", "depth_source", "key"))
        values = np.load(folder / _DEPTH, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, "", f"cannot be read ({type(error).__name__}).", remedy) from error
    image, _ = read_image(folder / _PHOTO)
    height, width = image.shape[:2]
    if values.shape != (height, width) or values.dtype != np.float32 or K.shape != (3, 3) or pose.shape != (4, 4):
        raise DataError(file, "sizes", "do not fit photo.png and depth.npy.", remedy)
    prepared = Prepared(image, K, paste_offset(width, height, canvas), canvas)
    found = Reference(name, prepared, Depth(values, q, source), pose, unit)
    if found.key != key:
        raise DataError(file, "key", "does not fit photo.png and depth.npy.", remedy)
    return found
