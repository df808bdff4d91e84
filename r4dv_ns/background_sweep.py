"""Where the background is, from photos alone: depths at which neighbouring cameras see the same (spec r4dv 3.4 c).

A plane sweep: for every training camera, planes parallel to its picture are moved through the scene evenly in
1 / depth; the pictures of its neighbours, projected by way of each plane, are compared with its own. What agrees best
over a small window is the depth; what other cameras look through is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from dataparsers.easymocap_plates import Plates
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import PointCloud
from r4dv_ns.background_depth import DepthView, confirmations, contradictions, evenly, lonely, neighbours
from r4dv_ns.background_points import BackgroundOptions, _nothing
from r4dv_ns.joint_sources import DILATION, widened

Array = np.ndarray
OTHERS = 4
"""Neighbours that a camera is compared with."""
WINDOW = 7
"""Pixels across of the window that must agree."""
TOLERANCE = 40.0
"""Difference of colours (of 255, mean over the channels) from which on pictures simply disagree."""
MOMENTS = 7
"""Frames that a missing plate is put together from."""
SPARE = 6.0
"""Pixels looked at for each point that is wanted."""
FEWEST = 100
"""With no more anchors than this all likely points are taken."""
REACH = 5.0
"""Usual gaps between anchors within which points are believed."""
GAP = 2
"""Pixels between points that are no hole."""
BEYOND = 1.15
"""Radius of the sphere that nothing is guessed in, in distances of the farthest camera from the subject."""
LARGEST = 640
"""Longest side of the pictures that are compared."""


@dataclass(frozen=True, eq=False)
class _Still:
    """A camera's view of the background, reduced."""

    image: Float[Array, "h w 3"]
    valid: Bool[Array, "h w"]
    K: Float[Array, "3 3"]
    w2c: Float[Array, "4 4"]


def swept_points(sequence: Sequence, options: BackgroundOptions, plates: Plates) -> PointCloud:
    """Points of the background; world of the files.

    Args:
        sequence: with ``bounds``.
        plates: views without one are put together from photos, outside of the widened masks.

    Raises:
        DataError: a photo or plate does not decode, or nothing is found.
    """
    assert sequence.bounds is not None
    train = sequence.train_views
    area = sum(sequence.views[view].width * sequence.views[view].height for view in train)
    scale = min(1.0, float(np.sqrt(SPARE * options.points / area)))
    scale = min(scale, LARGEST / max(max(sequence.views[view].width, sequence.views[view].height) for view in train))
    stills = [_still(sequence, view, plates, scale) for view in train]
    depths = [_sweep(stills, number, options, *options.range(sequence, view)) for number, view in enumerate(train)]
    views = [
        DepthView(still.K, still.w2c, depth, still.image.round().astype(np.uint8))
        for still, depth in zip(stills, depths, strict=True)
    ]
    rows = _agreed(views, [still.valid for still in stills], sequence.bounds.mean(axis=0), options)
    if not len(rows):
        raise _nothing(sequence, "photos agree nowhere outside the masks")
    return PointCloud(rows[:, :3], rows[:, 3:].astype(np.uint8))


def _agreed(
    views: list[DepthView], shown: list[Bool[Array, "h w"]], middle: Float[Array, "3"], options: BackgroundOptions
) -> Float[Array, "n 6"]:
    """Positions and colours of points to start from.

    Anchors are points that two cameras confirm (three, inside the sphere that the cameras stand on) and no two
    contradict. Others count where more cameras confirm than contradict them, or where none says anything (bare walls
    are seldom confirmed), but only near an anchor: what floats alone is a mistake, and would hang before some camera.
    """
    found, votes = [], []
    for number, view in enumerate(views):
        rows, columns = np.nonzero(view.known)
        found.append(view.points(rows, columns))
        votes.append(confirmations(views, number, neighbours(views, number, OTHERS))[rows, columns])
    points, confirmed = np.concatenate(found), np.concatenate(votes)
    against = contradictions(views, points)
    likely = ((confirmed > 0) & (against <= confirmed)) | (against == 0)
    radius = _cameras_sphere(views, middle)
    inside = np.linalg.norm(points - middle, axis=1) < radius
    for place, least in ((~inside, 2), (inside, 3)):
        anchors = (confirmed >= least) & (against < 2)
        if np.count_nonzero(anchors) > FEWEST:
            likely &= ~place | near_anchors(points, points[anchors])
    ends = np.cumsum([len(part) for part in found])
    trusted = []
    for view, part in zip(views, np.split(likely, ends[:-1]), strict=True):
        kept = view.depth.copy()
        kept[view.known] = np.where(part, kept[view.known], 0.0)
        trusted.append(replace(view, depth=kept))
    sure = _rows(trusted)
    bare = [area & ~covered(view, sure[:, :3]) for view, area in zip(trusted, shown, strict=True)]
    guessed = _rows(filled(trusted, bare, middle))
    guessed = guessed[contradictions(trusted, guessed[:, :3]) == 0]
    found = np.concatenate([sure, guessed])  # where both are, what is trusted comes first
    found = found[evenly(found[:, :3], options.points, middle, radius)]
    return found[~lonely(found[:, :3])]


def covered(view: DepthView, points: Float[Array, "n 3"]) -> Bool[Array, "h w"]:
    """Pixels with a point within `GAP` pixels."""
    camera = points @ view.w2c[:3, :3].T + view.w2c[:3, 3]
    camera = camera[camera[:, 2] > 1e-9]
    column, row = np.floor((camera @ view.K.T)[:, :2] / camera[:, 2:]).clip(-1, 1 << 20).astype(np.int64).T
    height, width = view.depth.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = np.zeros((height, width), np.uint8)
    hit[row[inside], column[inside]] = 255
    return widened(hit, GAP)


def filled(views: list[DepthView], shown: list[Bool[Array, "h w"]], middle: Float[Array, "3"]) -> list[DepthView]:
    """Depths for the pixels that have none: that of the nearest pixel with one in the same picture, else of any; but
    beyond the sphere on which the cameras stand.

    Walls that only one camera sees would stay holes without this. A guess inside the sphere would hang before the
    cameras on the other side.

    Args:
        shown: pixels that want one.
        middle: what the cameras stand around, world.

    Returns:
        Views that know the missing pixels alone.
    """
    known = np.concatenate([view.depth[view.known] for view in views])
    usual = float(np.median(known)) if len(known) else 0.0
    radius = _cameras_sphere(views, middle)
    result = []
    for view, area in zip(views, shown, strict=True):
        depth = np.full(view.depth.shape, usual)
        if view.known.any():
            place = distance_transform_edt(~view.known, return_distances=False, return_indices=True)
            depth = view.depth[tuple(np.asarray(place))]
        depth = np.maximum(depth, _exit_depths(view, middle, radius))
        result.append(replace(view, depth=np.where(area & ~view.known, depth, 0.0)))
    return result


def _cameras_sphere(views: list[DepthView], middle: Float[Array, "3"]) -> float:
    """Radius within which all cameras stand, and a little more."""
    return BEYOND * max(float(np.linalg.norm(view.centre - middle)) for view in views)


def _exit_depths(view: DepthView, middle: Float[Array, "3"], radius: float) -> Float[Array, "h w"]:
    """Depth along the axis at which each pixel's ray leaves a sphere that the camera stands in."""
    height, width = view.depth.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(view.K).T @ view.w2c[:3, :3]
    offset = view.centre - middle
    # |offset + t ray|^2 = radius^2; rays are 1 long along the axis, so t is the depth.
    square, along = np.square(rays).sum(axis=-1), rays @ offset
    return (np.sqrt(along**2 + square * (radius**2 - offset @ offset)) - along) / square


def _rows(views: list[DepthView]) -> Float[Array, "n 6"]:
    """Positions and colours of all known pixels."""
    parts = []
    for view in views:
        rows, columns = np.nonzero(view.known)
        parts.append(np.column_stack([view.points(rows, columns), view.rgb[rows, columns]]))
    return np.concatenate(parts)


def near_anchors(points: Float[Array, "n 3"], anchors: Float[Array, "m 3"]) -> Bool[Array, "n"]:
    """Points not farther from an anchor than `REACH` times the usual gap between anchors; both are relative to the
    distance from the middle of the anchors, since far points may be far apart."""
    middle = np.median(anchors, axis=0)
    out = np.linalg.norm(anchors - middle, axis=1)
    usual = np.median(out)
    tree = KDTree(anchors)
    gaps = np.asarray(tree.query(anchors, k=9)[0])[:, 1:].mean(axis=1) / np.maximum(out, usual)
    distances = np.asarray(tree.query(points)[0]) / np.maximum(np.linalg.norm(points - middle, axis=1), usual)
    return distances <= REACH * np.median(gaps)


def _still(sequence: Sequence, view: int, plates: Plates, scale: float) -> _Still:
    """The plate, or the median of a few moments outside the masks; shrunk by area."""
    image, valid = (plates.get(view), plates.valid(view)) if view in plates else pieced_plate(sequence, view)
    height, width = image.shape[:2]
    small = max(round(width * scale), 8), max(round(height * scale), 8)
    share = np.ones((height, width), np.float32) if valid is None else valid.astype(np.float32)
    weight = cv2.resize(share, small, interpolation=cv2.INTER_AREA)
    mixed = cv2.resize(image.astype(np.float32) * share[..., None], small, interpolation=cv2.INTER_AREA)
    K, w2c = sequence.camera(view, 0)
    K = K.copy()
    K[0] *= small[0] / width
    K[1] *= small[1] / height
    return _Still(mixed / np.maximum(weight, 1e-6)[..., None], weight > 0.6, K, w2c)


def pieced_plate(sequence: Sequence, view: int) -> tuple[UInt8[Array, "h w 3"], Bool[Array, "h w"]]:
    """A plate from photos: per pixel the median of those moments that show the background, and where there is any.

    Raises:
        DataError: a photo or mask does not decode.
    """
    frames = sorted({round(float(place)) for place in np.linspace(0, len(sequence.frames) - 1, MOMENTS)})
    images, shown = [], []
    for frame in frames:
        photo = sequence.decode(view, frame)
        area = np.ones(photo.image.shape[:2], bool) if photo.valid is None else photo.valid
        if photo.mask is not None:
            pixels = max(2, round(DILATION * max(photo.image.shape[:2])))
            area = area & ~widened(photo.mask, pixels)
        images.append(photo.image)
        shown.append(area)
    stack = np.ma.array(np.stack(images), mask=~np.repeat(np.stack(shown)[..., None], 3, axis=3))
    return np.ma.median(stack, axis=0).filled(0).round().astype(np.uint8), np.any(shown, axis=0)


def _sweep(
    stills: list[_Still], number: int, options: BackgroundOptions, near: float, far: float
) -> Float[Array, "h w"]:
    """Depth of every pixel of a camera; 0 where its picture shows nothing."""
    own = stills[number]
    height, width = own.image.shape[:2]
    views = [DepthView(still.K, still.w2c, np.zeros((0, 0)), np.zeros((0, 0, 3), np.uint8)) for still in stills]
    others = [stills[other] for other in neighbours(views, number, OTHERS)]
    best, costs = np.full((height, width), np.inf, np.float32), np.zeros((height, width), np.float32)
    for inverse in np.linspace(1 / near, 1 / far, options.depths):
        cost = _disagreement(own, others, inverse)
        better = cost < best
        best, costs = np.where(better, cost, best), np.where(better, 1 / inverse, costs)
    # A pixel that no neighbour sees at any depth says nothing.
    return np.where(own.valid & np.isfinite(best) & (best < TOLERANCE), costs, 0.0)


def _disagreement(own: _Still, others: list[_Still], inverse: float) -> Float[Array, "h w"]:
    """Mean difference over a window to the better half of the neighbours, by way of the plane at ``1 / inverse``."""
    height, width = own.image.shape[:2]
    found = []
    for other in others:
        relative = other.w2c @ np.linalg.inv(own.w2c)
        plane = relative[:3, :3] + np.outer(relative[:3, 3], [0.0, 0.0, inverse])
        # Pixel centres lie at +0.5, cv2 counts them from 0.
        shift = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
        back = shift @ other.K @ plane @ np.linalg.inv(own.K) @ np.linalg.inv(shift)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpPerspective(other.image, back, (width, height), flags=flags)
        seen = cv2.warpPerspective(other.valid.astype(np.float32), back, (width, height), flags=flags) > 0.99
        difference = np.minimum(np.abs(image - own.image).mean(axis=2), TOLERANCE)
        usable = (seen & own.valid).astype(np.float32)
        total = cv2.boxFilter(difference * usable, -1, (WINDOW, WINDOW), normalize=False)
        count = cv2.boxFilter(usable, -1, (WINDOW, WINDOW), normalize=False)
        enough = count > 0.4 * WINDOW**2
        found.append(np.where(enough, total / np.maximum(count, 1), np.inf))
    ranked = np.sort(np.stack(found), axis=0)
    half = ranked[: max(1, len(ranked) // 2)]
    return np.where(np.isfinite(half).all(axis=0), half.mean(axis=0), ranked[0] + 0.25 * TOLERANCE).astype(np.float32)
