"""Do cameras and mesh share a frame? Ray-grid hit shares and photo-consistency (spec xscale 2.4, item 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from core_ns.errors import DataError
from core_ns.images import area_downscale, read_image
from core_ns.raycast import RayCaster, make_caster
from dataparsers.mesh import Mesh
from dataparsers.undistort import (
    Calibration,
    distorted_from_pixels,
    pixels_from_normalised,
    undistort_where_possible,
)

Array = np.ndarray

GRID = 64
HIT_SHARE = 0.05  # of a camera's rays, below it the camera looks past the mesh
_BATCH = 64  # cameras cast at once: 262 144 rays
_MOST_CAMERAS = 256
_REFERENCES, _NEIGHBOURS = 12, 2
_PHOTO_SIDE = 512  # pixels; area-averaged photos tolerate small misalignment and decode only once


@dataclass(frozen=True)
class View:
    """A camera under test: lens, pose (rigid OpenCV world-to-camera, scene units) and its photo."""

    calibration: Calibration
    w2c: Float[Array, "4 4"]
    image: Path | None = None

    @property
    def centre(self) -> Float[Array, "3"]:
        """Camera centre in the world, scene units."""
        return -self.w2c[:3, :3].T @ self.w2c[:3, 3]


class FrameTest:
    """A mesh prepared for the questions of this module; centred in float64 before it is cast to float32."""

    def __init__(self, mesh: Mesh) -> None:
        self.centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2.0
        vertices = torch.from_numpy((mesh.vertices - self.centre).astype(np.float32))
        self._caster: RayCaster = make_caster(vertices, torch.from_numpy(mesh.faces), torch.device("cpu"))

    def _cast(self, origins: Float[Array, "n 3"], directions: Float[Array, "n 3"]) -> Float[Array, "n"]:
        """Distance along unit directions, +inf on a miss."""
        hits = self._caster.cast(
            torch.from_numpy((origins - self.centre).astype(np.float32)),
            torch.from_numpy(directions.astype(np.float32)),
        )
        return torch.where(hits.hit, hits.t, torch.inf).numpy().astype(np.float64)

    def hit_shares(self, views: Sequence[View]) -> Float[Array, "n"]:
        """Share of each view's 64x64 ray grid that meets the mesh."""
        shares = np.zeros(len(views))
        for start in range(0, len(views), _BATCH):
            batch = views[start : start + _BATCH]
            rays = [_grid_rays(view) for view in batch]
            origins = np.repeat(np.stack([view.centre for view in batch]), GRID * GRID, axis=0)
            distance = self._cast(origins, np.concatenate([r[0] for r in rays]))
            is_hit = np.isfinite(distance).reshape(len(batch), -1)
            is_valid = np.stack([r[1] for r in rays])
            shares[start : start + len(batch)] = (is_hit & is_valid).sum(1) / np.maximum(is_valid.sum(1), 1)
        return shares

    def photo_consistency(self, views: Sequence[View]) -> float | None:
        """Mean correlation (-1 ... 1) of grey values at hit points between neighbouring views; None without evidence.

        Each of up to 12 reference views casts its ray grid; the hit points are looked up in its two nearest views
        wherever those see the same point first.
        """
        views = [view for view in views if view.image is not None]
        if len(views) < 2:
            return None
        photo = lru_cache(maxsize=2 * _REFERENCES * (_NEIGHBOURS + 1))(_grey)
        centres = np.stack([view.centre for view in views])
        axes = np.stack([view.w2c[2, :3] for view in views])
        scores = []
        for index in np.unique(np.linspace(0, len(views) - 1, min(_REFERENCES, len(views))).round().astype(int)):
            view = views[index]
            directions, is_valid = _grid_rays(view)
            distance = self._cast(np.broadcast_to(view.centre, directions.shape), directions)
            is_hit = np.isfinite(distance) & is_valid
            points = view.centre + directions[is_hit] * distance[is_hit, None]
            gaps = np.linalg.norm(centres - centres[index], axis=1)
            gaps[(axes @ axes[index] < 0.5)] = np.inf  # more than 60 degrees apart: few common points
            gaps[index] = np.inf
            for neighbour in np.argsort(gaps)[:_NEIGHBOURS]:
                if np.isfinite(gaps[neighbour]):
                    score = self._correlation(points, view, views[neighbour], photo)
                    scores += [] if score is None else [score]
        return float(np.mean(scores)) if scores else None

    def _correlation(
        self, points: Float[Array, "n 3"], first: View, second: View, photo: Callable[[Path], Array]
    ) -> float | None:
        if len(points) < 50 or first.image is None or second.image is None:
            return None
        towards = points - second.centre
        distance = np.linalg.norm(towards, axis=1)
        pixels, is_inside = _look_up(points, second)
        seen_at = self._cast(
            np.broadcast_to(second.centre, towards.shape), towards / np.maximum(distance, 1e-30)[:, None]
        )
        is_common = is_inside & (np.abs(seen_at - distance) <= 0.01 * distance)
        if is_common.sum() < 50:
            return None
        a = _sample(photo(first.image), _look_up(points[is_common], first)[0], first.calibration)
        b = _sample(photo(second.image), pixels[is_common], second.calibration)
        if min(a.std(), b.std()) < 1e-3:
            return None
        return float(np.corrcoef(a, b)[0, 1])


def _grid_rays(view: View) -> tuple[Float[Array, "n 3"], Bool[Array, "n"]]:
    """Unit world directions of the 64x64 grid cells' centres, and which of them the lens model defines."""
    c = view.calibration
    steps = (np.arange(GRID) + 0.5) / GRID
    u, v = np.meshgrid(steps * c.width, steps * c.height)
    xy, is_valid = undistort_where_possible(
        distorted_from_pixels(np.stack([u.ravel(), v.ravel()], axis=-1), c), c, iterations=30
    )
    xy = np.where(is_valid[:, None], xy, 0.0)
    directions = np.concatenate([xy, np.ones((len(xy), 1))], axis=-1) @ view.w2c[:3, :3]
    return directions / np.linalg.norm(directions, axis=1, keepdims=True), is_valid


def _look_up(points: Float[Array, "n 3"], view: View) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
    """Pixels of world points and whether they lie in front and inside the image."""
    camera = points @ view.w2c[:3, :3].T + view.w2c[:3, 3]
    is_ahead = camera[:, 2] > 1e-9
    depth = np.where(is_ahead, camera[:, 2], 1.0)
    # Far outside the image the distortion polynomial overflows or folds back into it.
    xy = camera[:, :2] / depth[:, None]
    c = view.calibration
    widest = 1.5 * np.hypot(max(c.cx, c.width - c.cx) / c.fx, max(c.cy, c.height - c.cy) / c.fy)
    is_near = np.linalg.norm(xy, axis=1) <= widest
    pixels = pixels_from_normalised(np.where(is_near[:, None], xy, 0.0), c)
    is_inside = (pixels > 0.0).all(axis=1) & (pixels[:, 0] < c.width) & (pixels[:, 1] < c.height)
    return pixels, is_ahead & is_near & is_inside


def _grey(path: Path) -> Float[Array, "h w"]:
    rgb, _ = read_image(path)
    factor = min(1.0, _PHOTO_SIDE / max(rgb.shape[:2]))
    size = max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor))
    return area_downscale(rgb, *size).astype(np.float32).mean(axis=2)


def _sample(grey: Float[Array, "h w"], pixels: Float[Array, "n 2"], calibration: Calibration) -> Float[Array, "n"]:
    """Bilinear grey values at pixels of the full-size photo."""
    scale = np.array([grey.shape[1] / calibration.width, grey.shape[0] / calibration.height])
    # cv2 maps are limited to 32767 rows; a column of at most 4096 points fits.
    at = (pixels * scale - 0.5).astype(np.float32)[:, None, :]
    return cv2.remap(grey, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]  # pyright: ignore


def sample_views(count: int) -> list[int]:
    """Indices of at most 256 evenly spread cameras: enough to judge a frame."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_CAMERAS)).round().astype(int)).tolist()


def describe(shares: Float[Array, "n"]) -> str:
    """One line about hit shares."""
    return (
        f"{int((shares >= HIT_SHARE).sum())} of {len(shares)} cameras see the mesh "
        f"(median {100 * float(np.median(shares)):.1f} % of the rays hit)"
    )


def is_usable(shares: Float[Array, "n"]) -> bool:
    """Whether most cameras see the mesh."""
    return bool((shares >= HIT_SHARE).sum() * 2 > len(shares))


def choose_frame(
    test: FrameTest,
    candidates: Mapping[str, Sequence[View]],
    mesh_path: Path,
    say: Callable[[str], None],
    hint: str = "",
) -> str:
    """Pick the frame in which the cameras fit the mesh, and say why.

    Args:
        candidates: frame name to the same cameras posed in that frame; the first one wins when all are equal.
        hint: appended to the error when no frame fits.

    Raises:
        DataError: no frame fits, or several fit and neither photos nor hit shares tell them apart.
    """
    chosen = sample_views(len(next(iter(candidates.values()))))
    views = {name: [cameras[i] for i in chosen] for name, cameras in candidates.items()}
    shares = {name: test.hit_shares(cameras) for name, cameras in views.items()}
    for name, values in shares.items():
        say(f"frame {name}: {describe(values)}")
    usable = [name for name in views if is_usable(shares[name])]
    if not usable:
        raise DataError(
            mesh_path,
            "frame",
            "in no frame do most cameras see the mesh: "
            + "; ".join(f"{n}: {describe(s)}" for n, s in shares.items())
            + ".",
            hint or "Export mesh and cameras from the same chunk in the same coordinate system.",
        )
    if len(usable) == 1:
        say(f"frame: {usable[0]} (the only one in which the cameras see the mesh)")
        return usable[0]
    first, second = usable[:2]
    poses = [np.stack([view.w2c for view in views[name]]) for name in (first, second)]
    if np.allclose(*poses, rtol=0.0, atol=1e-9 * max(1.0, float(np.abs(poses[0]).max()))):
        say(f"frame: {first} (both frames are the same here)")
        return first
    scores = {name: test.photo_consistency(views[name]) for name in usable}
    known = {name: score for name, score in scores.items() if score is not None}
    if known:
        say("photo-consistency: " + ", ".join(f"{name} {score:.3f}" for name, score in known.items()))
    if len(known) == 2 and abs(known[first] - known[second]) > 0.02:
        best = max(known, key=lambda name: known[name])
        say(f"frame: {best} (the photos agree better there)")
        return best
    mean = {name: float(shares[name].mean()) for name in usable}
    if abs(mean[first] - mean[second]) > 0.01:
        best = max(mean, key=lambda name: mean[name])
        say(f"frame: {best} (more rays hit there)")
        return best
    raise DataError(
        mesh_path,
        "frame",
        f"the cameras fit the mesh in the frames {first} and {second} equally well.",
        f"Name the frame of the mesh: --frame {first} or --frame {second}.",
    )
