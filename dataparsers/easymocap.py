"""Calibrations of EasyMocap and EasyVolcap: ``intri.yml`` and ``extri.yml`` (spec r4dv 2.1, 2.2).

Cameras are OpenCV's: x_camera = R x_world + T, x right, y down, z forward, world and lengths as in the files. A camera
that moves has a folder ``cameras/CAM`` with such a pair of files, whose ``names`` are frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Union

import numpy as np
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from dataparsers.easymocap_camera import (
    FAR,
    NEAR,
    CameraModel,
    rotation_from_vector,
    unlimited_box,
    vector_from_rotation,
)
from dataparsers.opencv_yml import Value, format_yml, read_yml

__all__ = ["FAR", "NEAR", "Calibrated", "CameraModel", "find_calibration", "read_cameras", "write_cameras"]

Array = np.ndarray

REPAIR, WARN, REFUSE = 1e-6, 1e-3, 1e-1
"""Defects ||R R^T - I|| of a rotation matrix that are repaired silently, with a warning, and not at all."""
_HUGE = 1e9


Calibrated = Union[CameraModel, dict[str, CameraModel]]
"""A camera that stands still, or one that moves: a camera for each frame's stem."""


def is_name(name: str) -> bool:
    """Whether a camera or frame can have this name: it becomes a folder, a file name and the end of a key."""
    if not name or name != name.strip() or name in (".", ".."):
        return False
    return not re.search(r"""[/\\:#"'\x00-\x1f\x7f]""", name)


class _Keys:
    """The keys of one yml file, checked as they are asked for."""

    def __init__(self, file: Path) -> None:
        self.file, self.content = file, read_yml(file)

    def bad(self, key: str, problem: str, remedy: str) -> DataError:
        return DataError(self.file, key, problem, remedy)

    def names(self) -> list[str]:
        """The entries of ``names``, in the file's order."""
        names = self.content.get("names")
        if not isinstance(names, list) or not names:
            remedy = "Write 'names:' and below it one line '  - \"CAM\"' for each camera."
            raise self.bad("names", "is missing, empty or no list.", remedy)
        for name in names:
            if not is_name(name):
                problem = f"{name[:40]!r} cannot be the name of a camera or frame."
                raise self.bad("names", problem, "Use letters, digits, '_', '-' and '.'.")
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise self.bad("names", f"'{double}' stands there twice.", "Name every camera once.")
        return names

    def matrix(self, key: str, shapes: tuple[tuple[int, int], ...], meaning: str) -> Array | None:
        """A matrix of one of the shapes with finite numbers, float64, or None where the key is absent."""
        value = self.content.get(key)
        if value is None:
            return None
        wanted = " or ".join(f"{rows}x{cols}" for rows, cols in shapes)
        remedy = f"Write {meaning} as a {wanted} !!opencv-matrix."
        if not isinstance(value, np.ndarray):
            raise self.bad(key, f"is {_shown(value)}, not a matrix.", remedy)
        if value.shape not in shapes:
            raise self.bad(key, f"is {value.shape[0]}x{value.shape[1]}, not {wanted}.", remedy)
        if not np.isfinite(value).all():
            raise self.bad(key, "holds NaN or infinity.", remedy)
        matrix = value.astype(np.float64)
        if np.abs(matrix).max() > _HUGE:
            raise self.bad(key, f"holds {np.abs(matrix).max():g}, which is absurdly large.", remedy)
        return matrix

    def number(self, key: str, default: float, remedy: str) -> float:
        """A number (infinity allowed), also in a 1x1 matrix; the default where the key is absent."""
        value: Value | None = self.content.get(key)
        if value is None:
            return default
        if isinstance(value, np.ndarray) and value.size == 1:
            value = float(value.reshape(-1)[0])
        if not isinstance(value, int | float) or math.isnan(value):
            raise self.bad(key, f"is {_shown(value)}, not a number.", remedy)
        return float(value)


def _shown(value: Value) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.shape[0]}x{value.shape[1]} matrix"
    return f"{str(value)[:40]!r}" if value != [] else "empty"


def _intrinsics(keys: _Keys, name: str) -> Float[Array, "3 3"]:
    key, remedy = f"K_{name}", "Write [fx, 0, cx, 0, fy, cy, 0, 0, 1] in pixels of the original photo."
    matrix = keys.matrix(key, ((3, 3),), "the intrinsics")
    if matrix is None:
        raise keys.bad(key, "is missing.", f"{remedy} Or take '{name}' out of the names.")
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise keys.bad(key, f"focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g} must be positive.", remedy)
    if not np.allclose(matrix[2], [0.0, 0.0, 1.0], rtol=0.0, atol=1e-6) or abs(matrix[1, 0]) > 1e-9 * matrix[1, 1]:
        raise keys.bad(key, "is no intrinsic matrix: the numbers below its diagonal are not 0, the last not 1.", remedy)
    matrix[1, 0], matrix[2] = 0.0, (0.0, 0.0, 1.0)
    return matrix


def _distortion(keys: _Keys, name: str) -> tuple[Float[Array, "5"], Float[Array, "4"] | None]:
    """D (``D_`` wins over ``dist_``; absent is zero, spec 15) and the fisheye terms, if any."""
    key = f"D_{name}" if f"D_{name}" in keys.content else f"dist_{name}"
    shapes = tuple(shape for count in (5, 4, 8, 12, 14) for shape in ((count, 1), (1, count)))
    found = keys.matrix(key, shapes, "k1, k2, p1, p2, k3")
    terms = np.zeros(5)
    if found is not None:
        values = found.reshape(-1)
        if np.any(values[5:]):
            problem = "has a rational, prism or tilted lens model (terms after the fifth)."
            raise keys.bad(key, problem, "Calibrate with k1, k2, p1, p2, k3 alone, or undistort the photos first.")
        terms[: min(5, values.size)] = values[:5]
    fisheye = keys.matrix(f"rdist_{name}", ((4, 1), (1, 4)), "the fisheye terms k1..k4")
    if fisheye is not None and np.any(terms):
        problem = f"is given beside {key}: two lens models."
        raise keys.bad(f"rdist_{name}", problem, "Remove the one that does not belong.")
    return terms, None if fisheye is None else fisheye.reshape(4)


def _side(keys: _Keys, key: str) -> int | None:
    remedy = "Write the photo's size in pixels, or leave the key out: then the first photo tells."
    value = keys.number(key, -1.0, remedy)
    if value == -1:
        return None
    if not 1 <= value <= 1_000_000 or value != int(value):
        raise keys.bad(key, f"is {value:g}, not a number of pixels.", remedy)
    return int(value)


def _rotation(keys: _Keys, name: str) -> Float[Array, "3 3"]:
    """``R_`` (Rodrigues vector; a 3x3 matrix is taken too) wins over ``Rot_``."""
    remedy = f"Write R_{name} (3x1 Rodrigues vector) or Rot_{name} (3x3), world to camera."
    given = keys.matrix(f"R_{name}", ((3, 1), (1, 3), (3, 3)), "the rotation vector")
    if given is not None and given.size == 3:
        return rotation_from_vector(given.reshape(3))
    key = f"Rot_{name}" if given is None else f"R_{name}"
    matrix = keys.matrix(key, ((3, 3),), "the rotation") if given is None else given
    if matrix is None:
        raise keys.bad(f"R_{name}", f"and Rot_{name} are missing.", remedy)
    defect = float(np.linalg.norm(matrix @ matrix.T - np.eye(3)))
    if defect > REFUSE:
        raise keys.bad(key, f"is not a rotation: ||R R^T - I|| is {defect:.2g}.", remedy)
    if np.linalg.det(matrix) < 0:
        raise keys.bad(key, "mirrors: its determinant is -1.", remedy)
    if defect > REPAIR:
        if defect > WARN:
            CONSOLE.print(f"[yellow]{keys.file} ({key}): ||R R^T - I|| is {defect:.2g}; the nearest rotation is used.")
        left, _, right = np.linalg.svd(matrix)
        matrix = left @ right
    return matrix


def _clip_range(keys: _Keys, name: str) -> tuple[float, float]:
    remedy = "Write 0 < n < f in world units, or leave the keys out."
    near = keys.number(f"n_{name}", NEAR, remedy)
    far = keys.number(f"f_{name}", FAR, remedy)
    if not 0 < near < math.inf:
        raise keys.bad(f"n_{name}", f"near {near:g} is not positive and finite.", remedy)
    if not near < far:
        raise keys.bad(f"f_{name}", f"far {far:g} is not beyond near {near:g}.", remedy)
    return near, FAR if math.isinf(far) else far


def _bounds(keys: _Keys, name: str) -> Float[Array, "2 3"]:
    key = f"bounds_{name}"
    box = keys.matrix(key, ((2, 3),), "xmin, ymin, zmin, xmax, ymax, zmax")
    if box is None:
        return unlimited_box()
    for axis in range(3):
        if not box[0, axis] < box[1, axis]:
            problem = f"{'xyz'[axis]}min {box[0, axis]:g} is not below {'xyz'[axis]}max {box[1, axis]:g}."
            raise keys.bad(key, problem, "Swap or correct the corners, or leave the key out.")
    return box


def _camera(intri: _Keys, extri: _Keys, name: str) -> CameraModel:
    distortion, fisheye = _distortion(intri, name)
    translation = extri.matrix(f"T_{name}", ((3, 1), (1, 3)), "the translation")
    rotation = _rotation(extri, name)
    if translation is None:
        raise extri.bad(f"T_{name}", "is missing.", "Write the translation (3x1), x_camera = R x_world + T.")
    near, far = _clip_range(extri, name)
    colour = intri.matrix(f"ccm_{name}", ((3, 3),), "the colour correction")
    latents = [extri.number(f"{letter}_{name}", 0.0, "Write a number or leave it out.") for letter in "tv"]
    for letter, value in zip("tv", latents, strict=True):
        if math.isinf(value):
            raise extri.bad(f"{letter}_{name}", "is infinite.", "Write a number or leave it out.")
    return CameraModel(
        name,
        _intrinsics(intri, name),
        distortion,
        fisheye,
        _side(intri, f"W_{name}"),
        _side(intri, f"H_{name}"),
        rotation,
        translation.reshape(3),
        near,
        far,
        _bounds(extri, name),
        np.eye(3) if colour is None else colour,
        *latents,
    )


def read_cameras(intri: str | Path, extri: str | Path) -> dict[str, CameraModel]:
    """The cameras of a pair of yml files, sorted by name as the original does (spec 2.2).

    Names come from ``intri``; ``extri`` may do without its own list. ``R_`` wins over ``Rot_``, ``D_`` over ``dist_``;
    an infinite ``f_`` means the default. A rotation matrix that is off by more than 1e-6 is replaced by the nearest
    rotation, from 1e-3 on with a warning.

    Raises:
        DataError: malformed files, a camera that one file lacks, values that no camera can have; with file, key and
            remedy.
    """
    first, second = _Keys(Path(intri)), _Keys(Path(extri))
    names = first.names()
    if "names" in second.content:
        remedy = "Give both files the same names."
        posed = second.names()
        for keys, other, lacking in (
            (first, second, set(posed) - set(names)),
            (second, first, set(names) - set(posed)),
        ):
            if lacking:
                raise keys.bad("names", f"lacks '{min(lacking)}', which {other.file.name} has.", remedy)
    return {name: _camera(first, second, name) for name in sorted(names)}


def format_cameras(cameras: Mapping[str, CameraModel]) -> tuple[str, str]:
    """The texts of ``intri.yml`` and ``extri.yml``, names sorted, numbers without loss, ``R_`` and ``Rot_`` both.

    Keys whose value every reader assumes in their absence are left out (ccm, t, v, n, f, bounds).

    Raises:
        ValueError: no camera, a name that cannot be a key (see `is_name`), numbers that are not finite.
    """
    if not cameras:
        raise ValueError("there is no camera to write")
    names = sorted(cameras)
    intri: dict[str, object] = {"names": names}
    extri: dict[str, object] = {"names": names}
    for name in names:
        c = cameras[name]
        numbers = np.concatenate([c.stand, c.ccm.ravel(), c.bounds.ravel(), [c.t, c.v, c.near, c.far]])
        if not is_name(name) or not np.isfinite(numbers).all():
            raise ValueError(f"camera '{name}' has a name that cannot be a key, or NaN or infinity among its numbers")
        intri[f"K_{name}"], intri[f"D_{name}"] = _float64(c.K), _float64(c.D)
        if c.fisheye is not None:
            intri[f"rdist_{name}"] = _float64(c.fisheye)
        for letter, side in (("H", c.height), ("W", c.width)):
            if side is not None:
                intri[f"{letter}_{name}"] = float(side)
        if not np.array_equal(c.ccm, np.eye(3)):
            intri[f"ccm_{name}"] = _float64(c.ccm)
        extri[f"R_{name}"], extri[f"Rot_{name}"] = vector_from_rotation(c.R), _float64(c.R)
        extri[f"T_{name}"] = _float64(c.T)
        for letter, value, default in (("t", c.t, 0.0), ("v", c.v, 0.0), ("n", c.near, NEAR), ("f", c.far, FAR)):
            if value != default:
                extri[f"{letter}_{name}"] = float(value)
        if not np.array_equal(c.bounds, unlimited_box()):
            extri[f"bounds_{name}"] = _float64(c.bounds)
    return format_yml(intri), format_yml(extri)


def _float64(values: Array) -> Array:
    return np.asarray(values, dtype=np.float64)


def write_cameras(folder: str | Path, cameras: Mapping[str, CameraModel]) -> None:
    """Write ``intri.yml`` and ``extri.yml`` into a folder (made if absent), both or neither.

    Keys of the mapping are the names; for a moving camera, ``folder`` is ``cameras/CAM`` and they are frames.

    Raises:
        ValueError: see `format_cameras`; nothing is written.
    """
    intri, extri = format_cameras(cameras)
    folder = Path(folder)
    with atomic_path(folder / "intri.yml") as first, atomic_path(folder / "extri.yml") as second:
        first.write_bytes(intri.encode())
        second.write_bytes(extri.encode())


def _has_pair(folder: Path) -> bool:
    """Whether the folder holds a calibration; half of one is an error."""
    present = [(folder / name).is_file() for name in ("intri.yml", "extri.yml")]
    if any(present) and not all(present):
        lacking = folder / ("extri.yml" if present[0] else "intri.yml")
        raise DataError(lacking, "path", "is missing, its other half is there.", "Both files belong together.")
    return all(present)


def _read_folder(folder: Path) -> dict[str, Calibrated]:
    """Cameras of ``folder/{intri,extri}.yml`` and the moving ones of ``folder/cameras/CAM``, which win."""
    found: dict[str, Calibrated] = {}
    if _has_pair(folder):
        found.update(read_cameras(folder / "intri.yml", folder / "extri.yml"))
    if (folder / "cameras").is_dir():
        for each in sorted((folder / "cameras").iterdir(), key=lambda path: path.name):
            if each.is_dir() and not each.name.startswith(".") and _has_pair(each):
                if each.name in found:
                    CONSOLE.print(f"Camera {each.name} moves: {each} is used, not {folder / 'extri.yml'}.")
                found[each.name] = read_cameras(each / "intri.yml", each / "extri.yml")
    return dict(sorted(found.items()))


def find_calibration(
    sequence: str | Path, cameras: Literal["auto", "plain", "optimized"] = "auto"
) -> tuple[Path, dict[str, Calibrated]]:
    """The calibration of a sequence folder, sorted by camera name (spec 2.1).

    Args:
        cameras: "optimized" takes the refined cameras of ``sequence/optimized``, "plain" those of ``sequence``,
            "auto" the refined ones where they are present and says so.

    Returns:
        The folder used, and for each camera its model, or for one that moves its models by frame stem. Moving
        cameras that ``optimized`` lacks are those of ``sequence``.

    Raises:
        DataError: no calibration there, half of one, or an unusable one.
    """
    sequence = Path(sequence)
    if not sequence.is_dir():
        raise DataError(sequence, "--data", "is not a folder.", "Name the folder that holds images and intri.yml.")
    refined = sequence / "optimized"
    found = _read_folder(refined) if cameras != "plain" and refined.is_dir() else {}
    if found:
        if cameras == "auto":
            CONSOLE.print(f"Refined cameras of {refined} are used (--cameras plain takes those of {sequence}).")
        if (sequence / "cameras").is_dir():
            moving = {name: each for name, each in _read_folder(sequence).items() if isinstance(each, dict)}
            found = dict(sorted({**moving, **found}.items()))
        return refined, found
    if cameras == "optimized":
        remedy = "Write them with 'ns-r4dv cameras', or use --cameras plain."
        raise DataError(refined, "--cameras", "holds no intri.yml and extri.yml.", remedy)
    found = _read_folder(sequence)
    if not found:
        remedy = "Calibrate with EasyMocap, or convert a COLMAP model or transforms.json with 'ns-r4dv convert'."
        raise DataError(sequence / "intri.yml", "path", "is missing, and so is the folder 'cameras'.", remedy)
    return sequence, found
