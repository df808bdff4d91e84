"""NSVF scene folders: photos, one pose file per photo, one intrinsics file, a bounding box (spec diver 4.2).

    SCENE/rgb/<p>_<name>.png   SCENE/pose/<p>_<name>.txt   SCENE/intrinsics.txt   SCENE/bbox.txt

Tanks and Temples, BlendedMVS and Synthetic_NSVF come this way. Text and image headers only; no pixel is decoded here.
`write_nsvf` writes the layout; `dataparsers.object_scene` has a small rendered object to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_text
from core_ns.errors import DataError
from core_ns.frames import homogeneous
from core_ns.images import IMAGE_SUFFIXES, image_size, write_image
from dataparsers.mvsnet import content_lines, read_small_text
from dataparsers.object_scene import ObjectScene, new_folder

Array = np.ndarray

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PREFIX = re.compile(r"([012])_.")
_LONGEST_SIDE = 1_000_000
_INTRINSICS = (
    "Write a 3x3 or 4x4 matrix in pixels, or NSVF's short form: 'f cx cy 0', then three numbers, one number, one "
    "number, 'height width', each on its own line."
)
_POSE = "Write the 4x4 camera-to-world matrix (OpenCV axes: x right, y down, z forward), one row a line."
_BBOX = "Write 'xmin ymin zmin xmax ymax zmax voxel_size' in the units of the poses."


class Intrinsics(NamedTuple):
    """``matrix`` float64 [3, 3] in pixels, (0, 0) at the outer corner of the top-left pixel; ``size`` (width, height)
    of the pictures it belongs to where the file says so (the short form does)."""

    matrix: Float[Array, "3 3"]
    size: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class NsvfView:
    """One photo and its camera. ``c2w`` float64 [4, 4], rigid, OpenCV axes, units of the files; ``intrinsics``
    float64 [3, 3] in pixels of this photo; ``size`` (width, height)."""

    name: str
    image: Path
    c2w: Float[Array, "4 4"]
    intrinsics: Float[Array, "3 3"]
    size: tuple[int, int]


def _rows(text: str, file: str | Path, layout: str) -> list[tuple[int, list[float]]]:
    """(line number, numbers) of every line that holds any. Raises DataError for words, NaN, infinity, no numbers."""
    rows = []
    for number, line in content_lines(text):
        values = []
        for word in line.split():
            value = float(word) if _NUMBER.fullmatch(word) else math.nan
            if not math.isfinite(value):
                raise DataError(file, f"line {number}", f"'{word[:40]}' is not a finite number.", layout)
            values.append(value)
        rows.append((number, values))
    if not rows:
        raise DataError(file, "line 1", "is empty.", layout)
    return rows


def _matrix(values: Array, file: str | Path) -> Float[Array, "3 3"]:
    """Check a 3x3, 3x4 or 4x4 intrinsic matrix and return its 3x3 part."""
    matrix = values[:3, :3].copy()
    if not np.allclose(matrix[2], [0.0, 0.0, 1.0], rtol=0.0, atol=1e-6):
        raise DataError(file, "row 3", f"begins with {matrix[2].tolist()}, not 0 0 1.", _INTRINSICS)
    if values.shape[1] == 4 and np.abs(values[:3, 3]).max() > 1e-9:
        raise DataError(file, "column 4", f"is {values[:3, 3].tolist()}, not zero.", _INTRINSICS)
    if values.shape[0] == 4 and (np.abs(values[3, :3]).max() > 1e-9 or values[3, 3] not in (0.0, 1.0)):
        raise DataError(file, "row 4", f"is {values[3].tolist()}, not 0 0 0 1.", _INTRINSICS)
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        problem = f"focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g} must be positive."
        raise DataError(file, "diagonal", problem, _INTRINSICS)
    if abs(matrix[1, 0]) > 1e-9 * matrix[1, 1]:
        raise DataError(file, "row 2", f"begins with {matrix[1, 0]:g}, not 0.", _INTRINSICS)
    matrix[1, 0], matrix[2] = 0.0, (0.0, 0.0, 1.0)
    return matrix


def _short_form(rows: list[tuple[int, list[float]]], file: str | Path) -> Intrinsics:
    """``f cx cy 0``, barycentre, near, scale, ``height width``[, a flag]; all but the first line may be absent."""
    for (line, values), wanted in zip(rows, (4, 3, 1, 1, 2, 1), strict=False):
        if len(values) != wanted:
            raise DataError(file, f"line {line}", f"{len(values)} numbers where {wanted} belong.", _INTRINSICS)
    if len(rows) > 6:
        raise DataError(file, f"line {rows[6][0]}", "is one line too many.", _INTRINSICS)
    line, (focal, cx, cy, last) = rows[0]
    if last != 0:
        problem = f"the fourth number is {last:g}, not 0: this may be 'fx fy cx cy'."
        raise DataError(file, f"line {line}", problem, _INTRINSICS)
    if focal <= 0:
        raise DataError(file, f"line {line}", f"focal length {focal:g} must be positive.", _INTRINSICS)
    size = None
    if len(rows) > 4:
        line, (height, width) = rows[4]
        if not all(side == int(side) and 1 <= side <= _LONGEST_SIDE for side in (height, width)):
            problem = f"'{height:g} {width:g}' is no height and width in pixels."
            raise DataError(file, f"line {line}", problem, _INTRINSICS)
        size = int(width), int(height)
    return Intrinsics(np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]]), size)


def parse_intrinsics(text: str, file: str | Path) -> Intrinsics:
    """Read either form of ``intrinsics.txt``: a matrix (3x3, 3x4, 4x4, or 9 or 16 numbers in one line), or the short
    form of the synthetic sets, which the original answers with nothing (spec diver 4.2, 8).

    Raises:
        DataError: anything else; the place names the line or matrix part.
    """
    rows = _rows(text, file, _INTRINSICS)
    shape = [len(values) for _, values in rows]
    if shape in ([3] * 3, [4] * 3, [4] * 4):
        return Intrinsics(_matrix(np.array([values for _, values in rows]), file), None)
    if shape in ([9], [16]):
        side = math.isqrt(shape[0])
        return Intrinsics(_matrix(np.array(rows[0][1]).reshape(side, side), file), None)
    if shape[0] == 4 and shape[1:2] != [4]:
        return _short_form(rows, file)
    raise DataError(file, f"line {rows[-1][0]}", f"lines of {shape[:8]} numbers are neither form.", _INTRINSICS)


def fit_intrinsics(
    intrinsics: Intrinsics, size: tuple[int, int], file: str | Path, native: tuple[int, int] | None = None
) -> Float[Array, "3 3"]:
    """The matrix in pixels of a photo of ``size`` (width, height).

    Args:
        native: (width, height) the file is for, if the user knows better. Without it and without a size in the file,
            a principal point near the middle means these pixels; one that fits 1/8 to 8 times the photo (powers of
            two) means that resolution. Real lenses are off the middle by some per cent, so nothing finer can be told.

    Raises:
        DataError: the photo is a crop of what the intrinsics are for, or they fit no such factor.
    """
    matrix, (width, height) = intrinsics.matrix.copy(), size
    known = native or intrinsics.size
    remedy = "Name the size the intrinsics are for with --intrinsics-size WIDTH HEIGHT."
    if known is not None:
        scale_x, scale_y = width / known[0], height / known[1]
        if abs(width - known[0] * scale_y) > 1 + width / height:  # what rounding to whole pixels explains
            problem = f"is for {known[0]}x{known[1]} pictures, of another shape than the {width}x{height} photos."
            raise DataError(file, "size", problem, remedy)
    else:
        ratios = [side / max(2 * matrix[axis, 2], 1e-9) for axis, side in enumerate(size)]
        factors = [2.0**power for power in (0, -1, 1, -2, 2, -3, 3)]
        fits = [factor for factor in factors if all(0.75 <= ratio / factor <= 4 / 3 for ratio in ratios)]
        if not fits:
            principal = f"({matrix[0, 2]:.1f}, {matrix[1, 2]:.1f})"
            problem = f"principal point {principal} does not fit {width}x{height} photos."
            raise DataError(file, "principal point", problem, remedy)
        scale_x = scale_y = fits[0]
    matrix[0] *= scale_x
    matrix[1] *= scale_y
    if not (0 < matrix[0, 2] < width and 0 < matrix[1, 2] < height):
        problem = f"principal point ({matrix[0, 2]:.1f}, {matrix[1, 2]:.1f}) is outside the {width}x{height} photos."
        raise DataError(file, "principal point", problem, remedy)
    return matrix


def rigid_c2w(matrix: Float[Array, "_ 4"]) -> Float[Array, "4 4"]:
    """A 3x4 or 4x4 camera-to-world matrix as a rigid float64 [4, 4]; the camera centre is kept to the last bit.

    A uniform scale of the rotation is divided out, rounding beyond 1e-5 repaired; a rotation good to float32
    passes unchanged, so that other readers of the same numbers see the same rays.

    Raises:
        ValueError: not finite, last row not 0 0 0 1, mirrored, singular, or no rotation.
    """
    c2w = homogeneous(matrix).copy()
    if not (np.isfinite(c2w).all() and np.abs(c2w).max() < 1e12):
        raise ValueError("the matrix holds NaN, infinity or absurdly large numbers")
    if not np.allclose(c2w[3], [0.0, 0.0, 0.0, 1.0], rtol=0.0, atol=1e-6):
        raise ValueError(f"the last row is {c2w[3].tolist()}, not 0 0 0 1")
    determinant = float(np.linalg.det(c2w[:3, :3]))
    if determinant < 0:
        raise ValueError("the rotation mirrors (its determinant is negative)")
    scale = float(np.cbrt(determinant))
    if scale < 1e-9:
        raise ValueError("the rotation is singular (its determinant is zero)")
    rotation = c2w[:3, :3] / scale if abs(scale - 1) > 1e-4 else c2w[:3, :3]
    defect = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if defect > 1e-3:
        raise ValueError(f"the rotation is not orthonormal (defect {defect:.2g})")
    if defect > 1e-5:
        left, _, right = np.linalg.svd(rotation)
        rotation = left @ right
    c2w[:3, :3], c2w[3] = rotation, (0.0, 0.0, 0.0, 1.0)
    return c2w


def parse_pose(text: str, file: str | Path) -> Float[Array, "4 4"]:
    """Read a pose file: 4x4 (or 3x4, or 12 or 16 numbers in any lines) camera-to-world, OpenCV axes.

    Raises:
        DataError: another count of numbers, or not a rigid motion.
    """
    rows = _rows(text, file, _POSE)
    values = [value for _, row in rows for value in row]
    if len(values) not in (12, 16):
        problem = f"{len(values)} numbers where 16 (4x4) or 12 (3x4) belong."
        raise DataError(file, f"line {rows[-1][0]}", problem, _POSE)
    try:
        return rigid_c2w(np.array(values).reshape(-1, 4))
    except ValueError as error:
        raise DataError(file, "matrix", f"{error}.", _POSE) from error


def parse_bbox(text: str, file: str | Path) -> Float[Array, "2 3"]:
    """Read ``bbox.txt``: lower and upper corner, and a voxel size that is checked and dropped.

    Raises:
        DataError: not 6 or 7 numbers, an empty box, or a voxel size that is not positive.
    """
    rows = _rows(text, file, _BBOX)
    values = [value for _, row in rows for value in row]
    if len(values) not in (6, 7):
        raise DataError(file, f"line {rows[-1][0]}", f"{len(values)} numbers where 7 (or 6) belong.", _BBOX)
    low, high = np.array(values[:3]), np.array(values[3:6])
    for axis, name in enumerate("xyz"):
        if not low[axis] < high[axis]:
            problem = f"{name}min {low[axis]:g} is not below {name}max {high[axis]:g}."
            raise DataError(file, f"{name} range", problem, _BBOX)
    if np.abs(values[:6]).max() > 1e12:
        raise DataError(file, "box", "holds absurdly large numbers.", _BBOX)
    if len(values) == 7 and values[6] <= 0:
        raise DataError(file, "voxel size", f"{values[6]:g} is not positive.", _BBOX)
    return np.stack([low, high])


def normalization(bbox: Float[Array, "2 3"], legacy_scale: bool = False) -> tuple[Float[Array, "3"], float]:
    """``(mid, s)`` of ``p' = (p - mid) / s``; the box then fits [-1, 1]^3 (spec diver 4.2).

    Args:
        legacy_scale: take the third extent as ``ymax - zmin``, the original's slip, which its published weights for
            Tanks and Temples and BlendedMVS have built in.
    """
    extent = bbox[1] - bbox[0]
    if legacy_scale:
        extent[2] = bbox[1, 1] - bbox[0, 2]
    return (bbox[0] + bbox[1]) / 2, 0.5 * float(extent.max())


def pair_files(scene: Path) -> tuple[list[tuple[str, Path, Path]], list[str], list[str]]:
    """``(name, photo, pose file)`` sorted by name, the names of photos without a pose, of poses without a photo.

    Raises:
        DataError: no scene, no rgb or pose folder, two photos of one name, or fewer than two pairs.
    """
    if not scene.is_dir():
        raise DataError(scene, "--data", "is not a folder.", "Name the scene folder that holds rgb and pose.")
    for name, content in (("rgb", "photos"), ("pose", "pose files")):
        if not (scene / name).is_dir():
            raise DataError(scene, name, "is missing.", f"An NSVF scene holds its {content} in the folder '{name}'.")
    photos: dict[str, Path] = {}
    for path in sorted((scene / "rgb").iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in photos:
            problem = f"has the same name as {photos[path.stem].name}, so one pose would serve both."
            raise DataError(path, "name", problem, "Remove or rename one of the two.")
        photos[path.stem] = path
    poses = {path.stem: path for path in (scene / "pose").glob("*.txt") if not path.name.startswith(".")}
    pairs = [(name, photos[name], poses[name]) for name in sorted(photos) if name in poses]
    if len(pairs) < 2:
        problem = f"{len(photos)} photos and {len(poses)} poses make {len(pairs)} pair(s); at least 2 are needed."
        raise DataError(scene, "rgb, pose", problem, "Each rgb/NAME.png needs a pose/NAME.txt.")
    return pairs, sorted(set(photos) - set(poses)), sorted(set(poses) - set(photos))


def read_views(
    pairs: Sequence[tuple[str, Path, Path]], intrinsics_file: Path, native: tuple[int, int] | None = None
) -> list[NsvfView]:
    """Cameras of the pairs of `pair_files`; ``native`` as in `fit_intrinsics`.

    Raises:
        DataError: an unusable intrinsics file, pose file or photo header.
    """
    intrinsics = parse_intrinsics(read_small_text(intrinsics_file), intrinsics_file)
    views = []
    for name, photo, pose in pairs:
        size = image_size(photo)
        matrix = fit_intrinsics(intrinsics, size, intrinsics_file, native)
        views.append(NsvfView(name, photo, parse_pose(read_small_text(pose), pose), matrix, size))
    return views


def split_names(names: Sequence[str], file: str | Path, interval: int = 8) -> dict[str, list[int]]:
    """Positions in ``names`` of each split, by prefix (spec diver 4.2).

    ``0_`` trains. With any ``2_``, that is test and ``1_`` is val; else ``1_`` is test, and val shows the same
    views. Names without prefixes, and sets that hold ``0_`` alone: every ``interval``-th is held out.

    Raises:
        DataError: some names have a prefix and others not, or a split is empty.
    """
    prefixes = [match[1] if (match := _PREFIX.match(name)) else "" for name in names]
    groups = {prefix: [index for index, found in enumerate(prefixes) if found == prefix] for prefix in ("0", "1", "2")}
    if any(prefixes) and not all(prefixes):
        odd = names[prefixes.index("")]
        problem = f"{prefixes.count('')} of {len(names)} photos have no prefix 0_, 1_ or 2_, such as '{odd}'."
        raise DataError(file, "rgb", problem, "Prefix all photos (0_ train, 1_ and 2_ held out) or none.")
    if set(prefixes) <= {""} or set(prefixes) == {"0"}:
        if interval < 2:
            problem = f"eval_interval {interval} holds out every photo."
            raise DataError(file, "eval_interval", problem, "Use 2 or more.")
        test = list(range(0, len(names), interval))
        return {"train": [index for index in range(len(names)) if index % interval], "val": test, "test": test}
    test = groups["2"] or groups["1"]
    val = groups["1"] if groups["2"] and groups["1"] else test
    if not groups["0"]:
        remedy = "Photos to train on are named 0_NAME."
        raise DataError(file, "rgb", "no photo has the prefix 0_, so there is nothing to train on.", remedy)
    return {"train": groups["0"], "val": val, "test": test}


def write_nsvf(
    folder: Path,
    scene: ObjectScene,
    *,
    form: Literal["matrix", "short"] = "matrix",
    background: Literal["white", "black"] | None = None,
) -> None:
    """Write a scene folder; it appears complete or not at all. Numbers survive exactly (17 digits).

    Args:
        form: of intrinsics.txt; the short one holds one focal length.
        background: composite on this colour and write RGB; by default RGBA.

    Raises:
        DataError: ``folder`` is a file or holds something.
        ValueError: the short form cannot hold these intrinsics.
    """
    k = scene.intrinsics
    if form == "short" and (k[0, 0] != k[1, 1] or k[0, 1] != 0):
        raise ValueError("the short form of intrinsics.txt holds one focal length and no skew")
    prefix = {"train": "0", "val": "1", "test": "2"}
    if not any(picture.split == "val" for picture in scene.pictures):
        prefix["test"] = "1"
    width, height = scene.size
    short = f"{k[0, 0]:.17g} {k[0, 2]:.17g} {k[1, 2]:.17g} 0.\n0. 0. 0.\n0.\n1.\n{height} {width}\n"
    voxel = float((scene.bbox[1] - scene.bbox[0]).max()) / 10
    with new_folder(folder) as draft:
        write_text(draft / "intrinsics.txt", short if form == "short" else _text(homogeneous(np.c_[k, np.zeros(3)])))
        write_text(draft / "bbox.txt", _text(np.append(scene.bbox.reshape(-1), voxel)[None]))
        for index, picture in enumerate(scene.pictures):
            name = f"{prefix[picture.split]}_{index:04d}"
            write_image(draft / "rgb" / f"{name}.png", picture.over(background) if background else picture.rgba)
            write_text(draft / "pose" / f"{name}.txt", _text(picture.c2w))


def _text(matrix: Float[Array, "n m"]) -> str:
    return "".join(" ".join(f"{value:.17g}" for value in row) + "\n" for row in matrix)
