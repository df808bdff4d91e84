"""How well photos, cameras and a mesh agree: coverage, warps between neighbouring photos, and searches over both.

All of it happens in the mesh's unit frame (centred and scaled in float64, spec xscale 2.8), with cameras that may be
any similarity away from it. So the same code measures a scene as given and under a suspected mistake, and the mesh is
prepared for casting only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from core_ns.images import area_downscale, read_image
from core_ns.raycast import Hits, RayCaster, make_caster
from dataparsers.mesh import Mesh
from dataparsers.mvsnet_parser import View

Array = np.ndarray

PHOTO_WIDTH = 400
"""Photos are compared at this width: small enough to be fast, and insensitive to sensor noise."""
FEWEST_POINTS = 150
"""A pair of photos with fewer common points tells nothing."""
SAME_SURFACE = 0.01
"""Relative distance within which a point counts as the first surface another camera sees."""


@dataclass(frozen=True, eq=False)
class Rig:
    """Cameras that see the unit mesh: pixel ~ K (L x + t), x in the mesh's unit frame.

    L is a rotation, mirrored if a mirrored mesh is supposed. K maps to pixels of the stored photos; under a supposed
    turn of the photos it is not upper triangular.
    """

    intrinsics: Float[Array, "n 3 3"]
    linear: Float[Array, "n 3 3"]
    offset: Float[Array, "n 3"]

    @property
    def centres(self) -> Float[Array, "n 3"]:
        """Camera centres, unit frame."""
        return -np.einsum("nij,nj->ni", np.linalg.inv(self.linear), self.offset)

    def rays(self, view: int, pixels: Float[Array, "m 2"]) -> tuple[Float[Array, "m 3"], Float[Array, "m 3"]]:
        """Origins and unit directions through pixels of one view, unit frame."""
        to_mesh = np.linalg.inv(self.intrinsics[view] @ self.linear[view])
        directions = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ to_mesh.T
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return np.broadcast_to(self.centres[view], directions.shape), directions

    def project(self, view: int, points: Float[Array, "m 3"]) -> tuple[Float[Array, "m 2"], Bool[Array, "m"]]:
        """Pixels of unit-frame points in one view, and which points lie ahead of it."""
        camera = points @ self.linear[view].T + self.offset[view]
        ahead = camera[:, 2] > 1e-9
        image = np.where(ahead[:, None], camera, [0.0, 0.0, 1.0]) @ self.intrinsics[view].T
        return image[:, :2] / image[:, 2:], ahead


@dataclass(frozen=True, eq=False)
class UnitFrame:
    """unit = (file - centre) / extent, of the mesh's bounding box; float64."""

    centre: Float[Array, "3"]
    extent: float

    @classmethod
    def of(cls, mesh: Mesh) -> UnitFrame:
        """The frame of a mesh."""
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        return cls((low + high) / 2, float((high - low).max()))

    def rig(
        self,
        intrinsics: Float[Array, "n 3 3"],
        w2c: Float[Array, "n 4 4"],
        linear: Float[Array, "3 3"] | None = None,
        shift: Float[Array, "3"] | None = None,
    ) -> Rig:
        """Cameras over a mesh whose true place is ``linear`` x + ``shift``, x being the vertices in the file."""
        linear = np.eye(3) if linear is None else linear
        centre = linear @ self.centre + (0.0 if shift is None else shift)
        turn = self.extent * w2c[:, :3, :3] @ linear
        # The size of camera coordinates cancels in every projection; one keeps the numbers tame.
        size = np.cbrt(np.abs(np.linalg.det(turn)))
        offset = np.einsum("nij,j->ni", w2c[:, :3, :3], centre) + w2c[:, :3, 3]
        return Rig(intrinsics, turn / size[:, None, None], offset / size[:, None])


class Pair(NamedTuple):
    """Pixels of the same surface points in two stored photos; ``share`` of the first one's grid is comparable."""

    first: int
    second: int
    pixels_first: Float[Array, "m 2"]
    pixels_second: Float[Array, "m 2"]
    share: float


class Score(NamedTuple):
    """Photo-consistency over pairs of neighbouring views."""

    psnr: float
    """Mean PSNR of warps over the overlap, gain and bias per channel fitted, dB; NaN without comparable pixels."""
    detail: float
    """Mean correlation of band-passed brightness, -1 ... 1; 0 without comparable pixels. Wrong geometry has about 0
    whatever the photos' contrast, which a PSNR does not tell."""
    share: float
    """Mean share of a photo's grid that is comparable with a neighbour."""
    pairs: int


class Judge:
    """A mesh ready for casting, the photos of its views, and the measurements on both.

    Args:
        mesh: float64, the file's frame.
        views: photos with their file cameras; photos are decoded when first needed and kept reduced.
    """

    def __init__(self, mesh: Mesh, views: Sequence[View]) -> None:
        self.frame = UnitFrame.of(mesh)
        self.sizes = np.array([view.size for view in views], dtype=np.float64)
        self.vertices = ((mesh.vertices - self.frame.centre) / self.frame.extent).astype(np.float32)
        self.faces = torch.from_numpy(mesh.faces)
        self.caster: RayCaster = make_caster(torch.from_numpy(self.vertices), self.faces, "cpu")
        self._views = views
        self._photos: dict[int, tuple[Array, Array, Array]] = {}

    def photo(self, view: int) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Float[Array, "h w"]]:
        """(colour 0 ... 1, fine detail, coarse detail) of a photo reduced to `PHOTO_WIDTH`; kept."""
        if view not in self._photos:
            rgb, _ = read_image(self._views[view].image)
            factor = min(1.0, PHOTO_WIDTH / rgb.shape[1])
            size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
            colour = area_downscale(rgb, *size).astype(np.float32) / 255.0
            grey = np.ascontiguousarray(colour.mean(axis=2))
            blurred = {sigma: cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (0.8, 3.0, 6.0, 12.0)}
            self._photos[view] = colour, blurred[0.8] - blurred[6.0], blurred[3.0] - blurred[12.0]
        return self._photos[view]

    def cast(self, origins: Float[Array, "n 3"], directions: Float[Array, "n 3"]) -> Hits:
        """First hits, unit frame."""
        return self.caster.cast(
            torch.from_numpy(np.ascontiguousarray(origins, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32)),
        )

    def grid(self, view: int, columns: int, rows: int | None = None) -> Float[Array, "m 2"]:
        """Centres of a grid of cells over a photo, row-major; square cells unless ``rows`` is given."""
        width, height = self.sizes[view]
        rows = rows or max(1, round(columns * height / width))
        x, y = np.meshgrid((np.arange(columns) + 0.5) / columns * width, (np.arange(rows) + 0.5) / rows * height)
        return np.stack([x.ravel(), y.ravel()], axis=1)

    def coverage(self, rig: Rig, views: Sequence[int], cells: int = 48) -> Float[Array, "n"]:
        """Share of a ``cells`` x ``cells`` grid of pixels that hits the mesh, per view."""
        return np.array([float(self.cast(*rig.rays(v, self.grid(v, cells, cells))).hit.float().mean()) for v in views])

    def inside(self, view: int, pixels: Float[Array, "m 2"]) -> Bool[Array, "m"]:
        """Which pixels lie on the photo."""
        return ((pixels >= 0.0) & (pixels < self.sizes[view])).all(axis=1)

    def neighbours(self, rig: Rig, view: int, among: Sequence[int], count: int) -> list[int]:
        """The nearest other views that look the same way within 60 degrees."""
        centres, axes = rig.centres, rig.linear[:, 2]
        gaps = {
            other: float(np.linalg.norm(centres[other] - centres[view]))
            for other in among
            if other != view and axes[other] @ axes[view] > 0.5
        }
        return sorted(gaps, key=lambda other: gaps[other])[:count]

    def pairs(
        self,
        rig: Rig,
        wanted: Sequence[tuple[int, int]],
        columns: int = 128,
    ) -> list[Pair]:
        """Surface points the first view sees, with their pixels in the second, where that sees them first as well."""
        seen: dict[int, tuple[Array, Array, int]] = {}
        found = []
        for first, second in wanted:
            if first not in seen:
                pixels = self.grid(first, columns)
                origins, directions = rig.rays(first, pixels)
                hits = self.cast(origins, directions)
                hit = hits.hit.numpy()
                points = origins[hit] + directions[hit] * hits.t.numpy()[hit, None].astype(np.float64)
                seen[first] = pixels[hit], points, len(pixels)
            pixels, points, count = seen[first]
            other, ahead = rig.project(second, points)
            index = (ahead & self.inside(second, other)).nonzero()[0]
            towards = points[index] - rig.centres[second]
            distance = np.linalg.norm(towards, axis=1)
            towards /= np.maximum(distance, 1e-30)[:, None]
            first_t = self.cast(np.broadcast_to(rig.centres[second], towards.shape), towards).t.numpy()
            index = index[np.abs(first_t - distance) <= SAME_SURFACE * distance]
            found.append(Pair(first, second, pixels[index], other[index], len(index) / count))
        return found

    def sample(self, image: Array, view: int, pixels: Float[Array, "m 2"]) -> Array:
        """Bilinear values of a reduced photo at pixels of the stored one."""
        at = pixels * (np.array([image.shape[1], image.shape[0]]) / self.sizes[view]) - 0.5
        at = at.astype(np.float32)
        rows = [
            cv2.remap(image, part[:, None, :], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]  # pyright: ignore[reportCallIssue, reportArgumentType]
            for part in np.split(at, range(30000, len(at), 30000))  # cv2 counts rows in 16 bits
        ]
        return np.concatenate(rows)

    def warp_psnr(self, pair: Pair) -> float:
        """PSNR in dB of the second photo, warped onto the first with gain and bias per channel."""
        target = self.sample(self.photo(pair.first)[0], pair.first, pair.pixels_first)
        source = self.sample(self.photo(pair.second)[0], pair.second, pair.pixels_second)
        target, source = target - target.mean(axis=0), source - source.mean(axis=0)
        gain = (target * source).sum(axis=0) / np.maximum((source**2).sum(axis=0), 1e-12)
        return float(-10.0 * np.log10(max(float(((target - gain * source) ** 2).mean()), 1e-10)))

    def detail(self, pair: Pair, coarse: bool = False) -> float:
        """Correlation of band-passed brightness over a pair; 0 where there is nothing to compare."""
        if len(pair.pixels_first) < FEWEST_POINTS:
            return 0.0
        band = 2 if coarse else 1
        a = self.sample(self.photo(pair.first)[band], pair.first, pair.pixels_first)
        b = self.sample(self.photo(pair.second)[band], pair.second, pair.pixels_second)
        a, b = a - a.mean(), b - b.mean()
        return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-9))

    def wanted(self, rig: Rig, references: Sequence[int], among: Sequence[int], count: int) -> list[tuple[int, int]]:
        """(reference, neighbour) of each reference's nearest views."""
        return [(view, other) for view in references for other in self.neighbours(rig, view, among, count)]

    def score(self, pairs: Sequence[Pair]) -> Score:
        """Photo-consistency of pairs that share enough."""
        usable = [pair for pair in pairs if len(pair.pixels_first) >= FEWEST_POINTS]
        if not usable:
            return Score(float("nan"), 0.0, 0.0, 0)
        return Score(
            float(np.mean([self.warp_psnr(pair) for pair in usable])),
            float(np.mean([self.detail(pair) for pair in usable])),
            float(np.mean([pair.share for pair in pairs])),
            len(usable),
        )

    # ------------------------------------------------------------------ searches that need no new casts

    def moved(
        self, pair: Pair, first: Callable[[Array], Array] | None, second: Callable[[Array], Array] | None
    ) -> Pair:
        """The pair with changed pixels; points that leave a photo are dropped."""
        a = pair.pixels_first if first is None else first(pair.pixels_first)
        b = pair.pixels_second if second is None else second(pair.pixels_second)
        keep = self.inside(pair.first, a) & self.inside(pair.second, b)
        return replace_pixels(pair, a[keep], b[keep])

    def principal_point_shift(self, pairs: Sequence[Pair], widest: float = 0.045) -> Float[Array, "2"]:
        """The shift of all principal points, as a share of the photo's width, that makes the photos agree best.

        A shifted principal point sends the same ray through a shifted pixel, so points and visibility stay: only the
        photos are sampled elsewhere.
        """
        thin = [thinned(pair, 1000) for pair in pairs]

        def quality(shift: Array, coarse: bool) -> float:
            values = []
            for pair in thin:
                step_a, step_b = (shift * self.sizes[view][0] for view in (pair.first, pair.second))
                values.append(
                    self.detail(self.moved(pair, lambda p, s=step_a: p + s, lambda p, s=step_b: p + s), coarse)
                )
            return float(np.mean(values)) if values else 0.0

        return climb(quality, 2, widest, coarse_step=0.0075, finest=0.0004)

    def view_turn(
        self, rig: Rig, pairs: Sequence[Pair], widest: float = 0.09
    ) -> tuple[Float[Array, "3"], float, float]:
        """The small turn of one camera that makes its photo agree best with its neighbours'.

        Args:
            pairs: each with the camera in question as ``second``; a turn about its centre keeps what is visible.

        Returns:
            Rotation vector in the camera's axes (radians), and the mean `detail` without and with it.
        """
        view = pairs[0].second
        thin = [thinned(pair, 1000) for pair in pairs]
        k, k_inverse = rig.intrinsics[view], np.linalg.inv(rig.intrinsics[view])

        def turned(vector: Array, pixels: Array) -> Array:
            rotation, _ = cv2.Rodrigues(vector)
            image = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ (k @ rotation @ k_inverse).T
            return image[:, :2] / image[:, 2:]

        def quality(vector: Array, coarse: bool) -> float:
            full = np.zeros(3)
            full[: len(vector)] = vector
            moved = [self.moved(pair, None, lambda p: turned(full, p)) for pair in thin]
            return float(np.mean([self.detail(pair, coarse) for pair in moved]))

        across = climb(quality, 2, widest, coarse_step=0.015, finest=0.004)
        best = descend(quality, np.array([*across, 0.0]), 0.02, 0.0005)
        still = quality(np.zeros(3), False)
        # Rolled cameras have no optimum on the way above.
        for roll in (-0.06, -0.03, 0.03, 0.06):
            other = descend(quality, np.array([0.0, 0.0, roll]), 0.02, 0.0005)
            best = max(best, other, key=lambda vector: quality(vector, False))
        return best, still, quality(best, False)


def replace_pixels(pair: Pair, first: Array, second: Array) -> Pair:
    """The pair with other pixels."""
    return pair._replace(pixels_first=first, pixels_second=second)


def thinned(pair: Pair, most: int) -> Pair:
    """At most ``most`` points of a pair, evenly taken."""
    step = max(1, -(-len(pair.pixels_first) // most))
    return replace_pixels(pair, pair.pixels_first[::step], pair.pixels_second[::step])


Quality = Callable[[Array, bool], float]
"""Of a parameter vector; on the coarse band, whose optimum is wide, or on the fine one."""


def climb(quality: Quality, axes: int, widest: float, coarse_step: float, finest: float) -> Array:
    """Maximum over a cube: a grid on the coarse band, then ever smaller steps on the fine one, also from zero."""
    ticks = np.arange(-round(widest / coarse_step), round(widest / coarse_step) + 1) * coarse_step
    cells = np.stack(np.meshgrid(*[ticks] * axes, indexing="ij"), axis=-1).reshape(-1, axes)
    start = max(cells, key=lambda cell: quality(cell, True))
    ends = [descend(quality, place, coarse_step / 2, finest) for place in (start, np.zeros(axes))]
    return max(ends, key=lambda place: quality(place, False))


def descend(quality: Quality, start: Array, step: float, finest: float) -> Array:
    """Pattern search: move along axes while that helps, else halve the step."""
    best, value = start, quality(start, False)
    while step >= finest:
        tried = [best + sign * step * axis for axis in np.eye(len(start)) for sign in (-1.0, 1.0)]
        values = [quality(place, False) for place in tried]
        if max(values) > value:
            best, value = tried[int(np.argmax(values))], max(values)
        else:
            step /= 2
    return best
