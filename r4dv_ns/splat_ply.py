"""Points as 3D Gaussian splats in the PLY layout that splat viewers read (spec r4dv 5.3, 6.1).

The layout is that of 3D Gaussian Splatting: x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3, all float.
``f_rest`` runs channel by channel, opacities are logits, scales logarithms, quaternions begin with their real part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError
from dataparsers.point_ply import read_vertices, write_vertices
from r4dv_ns.harmonics import MAX_DEGREE, terms

Array = np.ndarray
SHARE = 0.46
"""Standard deviation of the Gaussian over the radius of the disc that it stands for: composited, this comes nearest to
discs with the falloff 1 - q of 4K4D (spec r4dv 6.1, measured)."""
FAINTEST = 1e-6
"""Opacities are kept this far from 0 and 1, whose logits are infinite."""
_ANY = "Name a PLY file of Gaussian splats with x y z, f_dc_*, opacity, scale_* and rot_*."


@dataclass(frozen=True, eq=False)
class Splats:
    """Gaussians with view-dependent colour ``max(0, 0.5 + sum_k sh_k Y_k(d))``, d from the camera to the splat."""

    xyz: Float[Array, "n 3"]
    """World."""
    scale: Float[Array, "n 3"]
    """Standard deviations along the splat's own axes, world units."""
    rotation: Float[Array, "n 4"]
    """Unit quaternions, real part first."""
    opacity: Float[Array, "n"]
    """In (0, 1)."""
    sh: Float[Array, "n k 3"]
    """Harmonics of degree 0 to 3 (k = 1, 4, 9, 16), ordered as in `harmonics.basis`."""

    def __len__(self) -> int:
        return len(self.xyz)


def splats_of_points(
    xyz: Float[Array, "n 3"], radius: Float[Array, "n"], alpha: Float[Array, "n"], sh: Float[Array, "n k 3"]
) -> Splats:
    """Isotropic splats that look like the discs of 4K4D: scale 0.46 r, the same opacity (spec r4dv 6.1).

    Args:
        xyz, radius: world units.
        sh: of the colour, 0.5 taken off (`ChargedFrame` without sources).
    """
    count = len(xyz)
    scale = np.repeat(SHARE * np.asarray(radius, np.float32)[:, None], 3, axis=1)
    upright = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    return Splats(
        np.asarray(xyz, np.float32), scale, upright, np.asarray(alpha, np.float32), np.asarray(sh, np.float32)
    )


def write_splats(path: str | Path, splats: Splats) -> None:
    """Write a splat file atomically.

    Raises:
        ValueError: shapes that do not fit, scales that are not positive, or numbers that are not finite.
    """
    count, k = len(splats), splats.sh.shape[1] if splats.sh.ndim == 3 else 0
    shapes = {"xyz": (count, 3), "scale": (count, 3), "rotation": (count, 4), "opacity": (count,), "sh": (count, k, 3)}
    for name, shape in shapes.items():
        if getattr(splats, name).shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(getattr(splats, name).shape)}")
    if k not in [terms(degree) for degree in range(MAX_DEGREE + 1)]:
        raise ValueError(f"expected 1, 4, 9 or 16 harmonics, got {k}")
    scale = np.asarray(splats.scale, np.float64)
    if not (scale > 0).all():
        raise ValueError("a splat has a size that is not positive")
    opacity = np.clip(np.asarray(splats.opacity, np.float64), FAINTEST, 1 - FAINTEST)
    rest = splats.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1)
    values = {
        "xyz": splats.xyz, "normals": np.zeros((count, 3), np.float32), "f_dc": splats.sh[:, 0], "f_rest": rest,
        "opacity": (np.log(opacity) - np.log1p(-opacity))[:, None], "scale": np.log(scale), "rot": splats.rotation,
    }  # fmt: skip
    names = {"xyz": ["x", "y", "z"], "normals": ["nx", "ny", "nz"], "opacity": ["opacity"]}
    columns = {
        name: ("f4", table[:, index])
        for key, table in values.items()
        for index, name in enumerate(names.get(key) or [f"{key}_{i}" for i in range(table.shape[1])])
    }
    write_vertices(path, columns)


def read_splats(path: str | Path) -> Splats:
    """Read a splat file of any program; properties of no meaning here are left out.

    Raises:
        DataError: not a PLY file, properties missing, a number of harmonics that no degree has, or numbers that are not
            finite.
    """
    path = Path(path)
    single = [*"xyz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    needed = single + [f"scale_{i}" for i in range(3)] + [f"rot_{i}" for i in range(4)]
    table = read_vertices(path, needed)
    names = table.dtype.names or ()
    rest = sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names)
    kinds = {3 * (terms(degree) - 1): terms(degree) for degree in range(MAX_DEGREE + 1)}
    if rest not in kinds or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise DataError(path, "element vertex", f"has {rest} properties f_rest_*, not 0, 9, 24 or 45.", _ANY)

    def columns(*wanted: str) -> Float[Array, "n c"]:
        values = np.zeros((len(table), len(wanted)), np.float32)
        for index, name in enumerate(wanted):
            with np.errstate(over="ignore"):
                values[:, index] = table[name]
        if not np.isfinite(values).all():
            raise DataError(path, f"properties {wanted[0]} ...", "hold numbers that are not finite.", _ANY)
        return values

    higher = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(len(table), 3, kinds[rest] - 1)
    sh = np.concatenate([columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None], higher.transpose(0, 2, 1)], axis=1)
    rotation = columns(*needed[-4:]).astype(np.float64)
    length = np.linalg.norm(rotation, axis=1, keepdims=True)
    if (length < 1e-12).any():
        raise DataError(path, "properties rot_*", "hold a quaternion of length zero.", _ANY)
    with np.errstate(over="ignore"):
        scale = np.exp(columns(*needed[-7:-4]))
        opacity = 1 / (1 + np.exp(-columns("opacity")[:, 0].astype(np.float64)))
    if not np.isfinite(scale).all():
        raise DataError(path, "properties scale_*", "hold sizes beyond all numbers.", _ANY)
    return Splats(columns(*"xyz"), scale, (rotation / length).astype(np.float32), opacity.astype(np.float32), sh)
