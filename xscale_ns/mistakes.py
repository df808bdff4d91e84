"""The usual mistakes between cameras, photos and mesh, as rigs to be tried; and where matched features put the mesh.

Each `Suspect` says what the files would be if it were true, and what to do about it. Whether it is true is measured
elsewhere (`xscale_ns.check`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

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


# ---------------------------------------------------------------------- features matched between photos


class Sparse(NamedTuple):
    """Points triangulated from features of neighbouring photos, without the mesh."""

    points: Float[Array, "m 3"]
    """Unit frame of the mesh as given."""
    fitting: float
    """Share of the matches that the cameras explain within 1.5 px of the reduced photos; NaN without matches."""
    matches: int


def triangulate(judge: Judge, rig: Rig, wanted: Sequence[tuple[int, int]]) -> Sparse:
    """Match SIFT features of pairs of photos and triangulate them: what the cameras say without the mesh."""
    sift, matcher = cv2.SIFT.create(nfeatures=1500), cv2.BFMatcher(cv2.NORM_L2)  # pyright: ignore
    features: dict[int, tuple[Array, Array]] = {}
    origin = rig.centres.mean(axis=0)  # geo-referenced cameras may be far from a mesh that is not
    points, fitting, matches = [], 0, 0
    for pair in {(min(pair), max(pair)) for pair in wanted}:
        for view in pair:
            if view not in features:
                grey = np.round(judge.photo(view)[0].mean(axis=2) * 255).astype(np.uint8)
                keys, codes = sift.detectAndCompute(grey, None)  # pyright: ignore
                to_stored = judge.sizes[view] / (grey.shape[1], grey.shape[0])
                at = np.array([key.pt for key in keys], dtype=np.float64).reshape(-1, 2)
                features[view] = (at + 0.5) * to_stored, codes
        if min(len(features[view][0]) for view in pair) < 10:
            continue
        nearest = matcher.knnMatch(features[pair[0]][1], features[pair[1]][1], k=2)
        # Lowe's ratio test: a feature that resembles two others is no match.
        found = [two[0] for two in nearest if len(two) == 2 and two[0].distance < 0.8 * two[1].distance]
        if not found:
            continue
        pixels = [
            features[view][0][[getattr(match, name) for match in found]]
            for view, name in zip(pair, ("queryIdx", "trainIdx"), strict=True)
        ]
        world, good = _meet(judge, rig, pair, pixels, origin)
        points.append(world[good])
        fitting, matches = fitting + int(good.sum()), matches + len(found)
    cloud = np.concatenate(points) if points else np.zeros((0, 3))
    return Sparse(cloud, fitting / matches if matches else float("nan"), matches)


def _meet(
    judge: Judge, rig: Rig, pair: tuple[int, int], pixels: Sequence[Array], origin: Array
) -> tuple[Float[Array, "m 3"], Array]:
    """Midpoints of rays through matched pixels, and which of them are ahead, well conditioned and on both pixels."""
    (start_a, along_a), (start_b, along_b) = (rig.rays(v, p) for v, p in zip(pair, pixels, strict=True))
    between = start_b - start_a
    cosine = (along_a * along_b).sum(axis=1)
    sine2 = np.maximum(1.0 - cosine**2, 1e-12)
    to_a, to_b = (between * along_a).sum(axis=1), (between * along_b).sum(axis=1)
    t_a, t_b = (to_a - cosine * to_b) / sine2, (cosine * to_a - to_b) / sine2
    middle = ((start_a - origin) + t_a[:, None] * along_a + (start_b - origin) + t_b[:, None] * along_b) / 2 + origin
    good = (t_a > 0) & (t_b > 0) & (sine2 > np.sin(np.radians(1.0)) ** 2)
    for view, wanted in zip(pair, pixels, strict=True):
        again, ahead = rig.project(view, middle)
        tolerance = 1.5 * judge.sizes[view][0] / judge.photo(view)[0].shape[1]
        good &= ahead & (np.linalg.norm(again - wanted, axis=1) < tolerance)
    return middle, good


class Placement(NamedTuple):
    """The mesh's true place is scale x + shift, x being the vertices in the file."""

    scale: float
    shift: Float[Array, "3"]


def register(judge: Judge, sparse: Sparse, with_scale: bool) -> Placement | None:
    """Move (and scale) the mesh onto triangulated points: trimmed ICP from several starts; None with too few points."""
    if len(sparse.points) < 50:
        return None
    rng = np.random.default_rng(0)
    points = rng.permutation(sparse.points)[:800]
    centroids = judge.vertices[judge.faces.numpy()].mean(axis=1, dtype=np.float64)
    surface = rng.permutation(centroids)[:20000]
    tree = cKDTree(surface)
    middle = np.median(points, axis=0)
    spread = float(np.median(np.linalg.norm(points - middle, axis=1)))
    own = float(np.median(np.linalg.norm(surface - np.median(surface, axis=0), axis=1)))
    scales = [spread / own * step for step in (0.6, 0.85, 1.2, 1.7)] if with_scale else [1.0]
    sides = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]) * 0.15
    starts = [(s, middle - s * (np.median(surface, axis=0) + side)) for s in scales for side in sides]
    starts += [(1.0, np.zeros(3))]
    # Residuals are taken in the mesh's units: shrinking the mesh to a point is no fit.
    ends = [_icp(points, surface, tree, scale, shift, with_scale, 8) for scale, shift in starts]
    ends = sorted(ends, key=lambda end: end[0])[:3]
    _, scale, shift = min(
        (_icp(points, surface, tree, *end[1:], with_scale, 60) for end in ends), key=lambda end: end[0]
    )
    frame = judge.frame
    return Placement(scale, frame.centre * (1.0 - scale) + frame.extent * shift)


def _icp(
    points: Array, surface: Array, tree: cKDTree, scale: float, shift: Array, with_scale: bool, rounds: int
) -> tuple[float, float, Array]:
    """(trimmed mean distance in mesh units, scale, shift) with points ~ scale * surface + shift."""
    residual = np.inf
    for _ in range(rounds):
        distance, index = tree.query((points - shift) / scale)
        kept = distance <= np.quantile(distance, 0.8)
        target, own = points[kept], surface[index[kept]]
        if with_scale:
            centred = own - own.mean(axis=0)
            scale = float((centred * target).sum() / max(float((centred**2).sum()), 1e-12))
            if not scale > 1e-9:
                return np.inf, 1.0, np.zeros(3)
        shift = (target - scale * own).mean(axis=0)
        before, residual = residual, float(distance[kept].mean())
        if before - residual < 1e-5 * residual:
            break
    return residual, scale, shift
