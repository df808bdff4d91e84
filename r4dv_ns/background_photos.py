"""Points of the background from the photos: every pixel of every camera gets one, none hangs where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

from dataparsers.easymocap_plates import Plates
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import PointCloud
from r4dv_ns.background_depth import DepthView, confirmations, contradictions, evenly, lonely, neighbours
from r4dv_ns.background_points import BackgroundOptions, _nothing
from r4dv_ns.background_stills import make_still
from r4dv_ns.background_sweep import OTHERS, found_depths
from r4dv_ns.joint_sources import widened

Array = np.ndarray
SPARE = 6.0
"""Pixels looked at for each point that is wanted."""
LARGEST = 384
"""Longest side of the pictures that are compared."""
MARGIN = 0.12
"""Width around the pictures, of the longer side, in which walls and floors go on: other cameras look there."""
GAP = 2
"""Pixels between points that are no hole."""
BEYOND = 1.15
"""Radius of the sphere that nothing is guessed in, in distances of the farthest camera from the subject."""


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
    stills = [make_still(sequence, view, plates, scale) for view in train]
    ranges = [options.range(sequence, view) for view in train]
    margin = round(MARGIN * max(stills[0].valid.shape))
    views, beyond = found_depths(stills, ranges, options.depths, options.seed, margin)
    if not any(view.known.any() for view in views):
        raise _nothing(sequence, "photos agree nowhere outside the masks")
    middle = sequence.bounds.mean(axis=0)
    rows = chosen_points(views, beyond, [still.valid for still in stills], middle, options.points)
    return PointCloud(rows[:, :3], rows[:, 3:].astype(np.uint8))


def chosen_points(
    views: list[DepthView],
    beyond: list[DepthView],
    shown: list[Bool[Array, "h w"]],
    middle: Float[Array, "3"],
    count: int,
) -> Float[Array, "n 6"]:
    """Positions and colours of points to start from, at most ``count``.

    A depth is trusted where at least as many cameras confirm it as look through it. What has none gets that of its
    surroundings, but farther away than the cameras (`filled`). What lies beyond the pictures counts where no picture
    reaches, and farther away than the cameras.

    Args:
        views, beyond: of `found_depths`.
        shown: pixels that want a point.
        middle: what the cameras stand around, world.
    """
    trusted = []
    for number, view in enumerate(views):
        rows, columns = np.nonzero(view.known)
        against = contradictions(views, view.points(rows, columns))
        votes = confirmations(views, number, neighbours(views, number, OTHERS))[rows, columns]
        depth = np.zeros_like(view.depth)
        depth[rows, columns] = np.where(against <= votes, view.depth[rows, columns], 0.0)
        trusted.append(replace(view, depth=depth))
    sure = _rows(trusted)
    sure = sure[~lonely(sure[:, :3])]
    bare = [area & ~covered(view, sure[:, :3]) for view, area in zip(trusted, shown, strict=True)]
    guessed = _rows(filled(trusted, bare, middle))
    guessed = guessed[contradictions(trusted, guessed[:, :3]) == 0]
    around = _rows(beyond)
    radius = _cameras_sphere(views, middle)
    around = around[np.linalg.norm(around[:, :3] - middle, axis=1) > radius]
    around = around[~np.any([view.look_up(around[:, :3])[3] for view in views], axis=0)]
    found = np.concatenate([sure, guessed, around])  # where several are, what is trusted comes first
    return found[evenly(found[:, :3], count, middle, radius)]


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
