"""The usual mistakes between cameras, photos and mesh, as rigs to be tried.

Each `Suspect` says what the files would be if it were true, and what to do about it. Whether it is true is measured
elsewhere (`xscale_ns.check`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core_ns.frames import OPENGL_FROM_OPENCV
from xscale_ns.consistency import Judge, Rig

Array = np.ndarray

SCALES = {
    0.001: "millimetres, read as metres",
    0.01: "centimetres, read as metres",
    0.1: "ten times too large",
    0.0254: "inches, read as metres",
    0.3048: "feet, read as metres",
    3.280839895: "metres, read as feet",
    10.0: "ten times too small",
    100.0: "metres, read as centimetres",
    1000.0: "metres, read as millimetres",
}
"""What to multiply the mesh by, and what its units would then be."""
EXPORT_BOTH = "Export mesh and cameras from the same chunk in the same coordinate system."


@dataclass(frozen=True, eq=False)
class Suspect:
    """A mistake that may have been made.

    Attributes:
        key: short name, for report.json.
        problem: what is wrong with the files, a full sentence.
        remedy: what to do, a full sentence.
        rig: the cameras as they would really be, over the mesh as it would really lie.
    """

    key: str
    problem: str
    remedy: str
    rig: Rig


@dataclass(frozen=True, eq=False)
class Cameras:
    """All cameras as in the files, pixels of the stored photos; ``factor`` is the downscale factor of the folder."""

    intrinsics: Float[Array, "n 3 3"]
    w2c: Float[Array, "n 4 4"]
    sizes: Float[Array, "n 2"]
    factor: int


def suspects(judge: Judge, cameras: Cameras) -> Iterator[Suspect]:
    """All mistakes that need no search, the likelier ones first."""
    yield from _poses(judge, cameras)
    yield from _lenses(judge, cameras)
    yield from _axes(judge, cameras)
    for factor, unit in SCALES.items():
        yield Suspect(
            f"mesh-scale-{factor:g}",
            f"The mesh has another scale than the cameras: its coordinates are in {unit}.",
            f"Multiply the vertices by {factor:g}, or export the mesh in the units of the cameras.",
            judge.frame.rig(cameras.intrinsics, cameras.w2c, np.eye(3) * factor),
        )


def _poses(judge: Judge, cameras: Cameras) -> Iterator[Suspect]:
    k, w2c = cameras.intrinsics, cameras.w2c
    inverse = np.linalg.inv(w2c)
    wanted = "cam files must hold world-to-camera matrices with OpenCV axes (x right, y down, z forward)"
    yield Suspect(
        "camera-to-world",
        "The cam files hold camera-to-world matrices.",
        f"Write the inverse of each matrix: {wanted}.",
        judge.frame.rig(k, inverse),
    )
    yield Suspect(
        "opengl-axes",
        "The cam files hold cameras with OpenGL axes (y up, looking along -z).",
        f"Negate the second and third row of each matrix: {wanted}.",
        judge.frame.rig(k, OPENGL_FROM_OPENCV @ w2c),
    )
    yield Suspect(
        "opengl-camera-to-world",
        "The cam files hold camera-to-world matrices with OpenGL axes (nerfstudio's and Blender's).",
        f"Negate the second and third column of each matrix, then invert it: {wanted}.",
        judge.frame.rig(k, OPENGL_FROM_OPENCV @ inverse),
    )


def _lenses(judge: Judge, cameras: Cameras) -> Iterator[Suspect]:
    k, w2c, sizes = cameras.intrinsics, cameras.w2c, cameras.sizes
    for ratio in (2.0, 0.5, 4.0, 0.25, 8.0, 0.125):
        scaled = k.copy()
        scaled[:, :2] *= ratio
        made_for = cameras.factor * ratio
        folder = f"images_{made_for:g}" if made_for >= 1 else f"photos {1 / made_for:g} times the full size"
        yield Suspect(
            f"intrinsics-for-another-size-{ratio:g}",
            f"The intrinsics belong to photos {1 / ratio:g} times as large as these ({folder}).",
            f"Multiply fx, fy, cx, cy and the skew by {ratio:g}, or use the photos they were made for.",
            judge.frame.rig(scaled, w2c),
        )
    centred = k.copy()
    centred[:, :2, 2] = sizes / 2
    if np.abs(centred - k).max() > 0.25:
        yield Suspect(
            "principal-point-should-be-centred",
            "The principal point in the cam files is not that of these photos, whose principal point is central.",
            "Set cx, cy to half the width and height (as after an undistortion that centres the photos).",
            judge.frame.rig(centred, w2c),
        )
    swapped = k.copy()
    swapped[:, [0, 1], [0, 1]] = k[:, [1, 0], [1, 0]]
    swapped[:, [0, 1], 2] = k[:, [1, 0], 2]
    yield Suspect(
        "intrinsics-swapped",
        "x and y are swapped in the intrinsics.",
        "Exchange fx with fy and cx with cy.",
        judge.frame.rig(swapped, w2c),
    )
    zero = np.zeros(len(k))
    width, height = sizes.T
    turns = {
        "turned by 90 degrees": [[zero, zero - 1, width], [zero + 1, zero, zero]],
        "turned by 180 degrees": [[zero - 1, zero, width], [zero, zero - 1, height]],
        "turned by 270 degrees": [[zero, zero + 1, zero], [zero - 1, zero, height]],
        "mirrored": [[zero - 1, zero, width], [zero, zero + 1, zero]],
    }
    for name, rows in turns.items():
        turn = np.broadcast_to(np.eye(3), k.shape).copy()
        turn[:, :2] = np.moveaxis(np.array(rows), 2, 0)
        yield Suspect(
            f"photos-{name.replace(' ', '-')}",
            f"The photos are {name} against the cameras.",
            "Store the photos as the photogrammetry program saw them: do not apply the EXIF orientation.",
            judge.frame.rig(turn @ k, w2c),
        )


def _axes(judge: Judge, cameras: Cameras) -> Iterator[Suspect]:
    """Permuted and negated axes of the mesh: 23 rotations, then the mirrored ones."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            words = ", ".join(("-" if sign < 0 else "") + "xyz"[axis] for axis, sign in zip(order, signs, strict=True))
            found.append((matrix, words))
    found.sort(key=lambda item: (np.linalg.det(item[0]) < 0, -np.trace(np.abs(item[0])), -np.trace(item[0])))
    about_x = "The mesh is turned by 90 degrees about x against the cameras, as a Y-up export is against a Z-up one."
    named = {
        "x, -z, y": ("mesh-turned-about-x", about_x),
        "x, z, -y": ("mesh-turned-about-x", about_x),
        "y, z, x": ("mesh-rows-permuted", "The mesh's axes are permuted as nerfstudio's Metashape reader does."),
        "x, z, y": ("mesh-y-z-swapped", "y and z of the mesh are swapped, which also mirrors it."),
    }
    for matrix, words in found:
        if words == "x, y, z":
            continue
        kind = "mirrored" if np.linalg.det(matrix) < 0 else "turned"
        key, problem = f"mesh-{kind}", f"The mesh is {kind} against the cameras."
        key, problem = named.get(words, (key, problem))
        yield Suspect(
            key,
            problem,
            f"Replace its coordinates (x, y, z) by ({words}), or export it with the axes of the cameras.",
            judge.frame.rig(cameras.intrinsics, cameras.w2c, matrix),
        )
