"""Depth maps of several cameras to points in the world, and which of them other cameras confirm (spec r4dv 3.4)."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

Array = np.ndarray
PIXELS_SQUARED, RELATIVE_DEPTH = 2.0, 0.05
"""A point that comes back to its own pixel with less than these errors is confirmed (spec r4dv 3.4)."""


@dataclass(frozen=True, eq=False)
class DepthView:
    """What one OpenCV camera measures; world of the files, pixel centres at +0.5."""

    K: Float[Array, "3 3"]
    w2c: Float[Array, "4 4"]
    depth: Float[Array, "h w"]
    """Along the camera's axis, world units; 0 or less where unknown."""
    rgb: UInt8[Array, "h w 3"]

    @property
    def known(self) -> Bool[Array, "h w"]:
        """Pixels with a depth."""
        return np.isfinite(self.depth) & (self.depth > 0)

    def nothing(self) -> DepthView:
        """The same view without depths."""
        return DepthView(self.K, self.w2c, np.zeros_like(self.depth), self.rgb)

    @property
    def centre(self) -> Float[Array, "3"]:
        """Camera centre, world."""
        return -self.w2c[:3, :3].T @ self.w2c[:3, 3]

    def points(self, rows: Int64[Array, "n"], columns: Int64[Array, "n"]) -> Float[Array, "n 3"]:
        """World points of pixels."""
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1)
        camera = pixels @ np.linalg.inv(self.K).T * self.depth[rows, columns][:, None]
        return (camera - self.w2c[:3, 3]) @ self.w2c[:3, :3]

    def look_up(
        self, points: Float[Array, "n 3"]
    ) -> tuple[Int64[Array, "n"], Int64[Array, "n"], Float[Array, "n"], Bool[Array, "n"]]:
        """(row, column, depth, whether the point falls on a known pixel) of world points; nearest pixel."""
        camera = points @ self.w2c[:3, :3].T + self.w2c[:3, 3]
        depth = camera[:, 2]
        pixel = (camera @ self.K.T)[:, :2] / np.maximum(depth, 1e-9)[:, None]
        height, width = self.depth.shape
        inside = (depth > 1e-9) & (pixel >= 0).all(axis=1) & (pixel < (width, height)).all(axis=1)
        column, row = np.where(inside[:, None], pixel, 0).astype(np.int64).T
        return row, column, depth, inside & self.known[row, column]


def neighbours(views: Items[DepthView], view: int, count: int) -> list[int]:
    """The ``count`` views whose cameras stand nearest to a view's, best first."""
    centres = np.stack([each.centre for each in views])
    order = np.argsort(np.linalg.norm(centres - centres[view], axis=1), kind="stable")
    return [int(other) for other in order if other != view][:count]


def confirmations(views: Items[DepthView], view: int, others: Items[int]) -> Int64[Array, "h w"]:
    """How many other cameras confirm each pixel's depth.

    A pixel's point is looked up in another depth map, and the point found there in this camera: it must come back
    within `PIXELS_SQUARED`, and to a depth that differs by less than `RELATIVE_DEPTH`.
    """
    own = views[view]
    rows, columns = np.nonzero(own.known)
    points, counts = own.points(rows, columns), np.zeros(own.depth.shape, np.int64)
    for other in others:
        there_rows, there_columns, _, seen = views[other].look_up(points)
        back = views[other].points(there_rows, there_columns)
        camera = back @ own.w2c[:3, :3].T + own.w2c[:3, 3]
        with np.errstate(invalid="ignore", divide="ignore"):
            pixel = (camera @ own.K.T)[:, :2] / camera[:, 2:]
            error = np.square(pixel - np.stack([columns + 0.5, rows + 0.5], axis=1)).sum(axis=1)
            depth = own.depth[rows, columns]
            close = np.abs(camera[:, 2] - depth) < RELATIVE_DEPTH * depth
        counts[rows, columns] += seen & close & (error < PIXELS_SQUARED)
    return counts


def contradictions(views: Items[DepthView], points: Float[Array, "n 3"]) -> Int64[Array, "n"]:
    """How many cameras look through each world point at something clearly behind it: free space, where nothing is."""
    counts = np.zeros(len(points), np.int64)
    for view in views:
        rows, columns, depth, seen = view.look_up(points)
        counts += seen & (view.depth[rows, columns] > (1 + 2 * RELATIVE_DEPTH) * depth)
    return counts


def outside(points: Float[Array, "n 3"], box: Float[Array, "2 3"]) -> Bool[Array, "n"]:
    """Points that are not in the box."""
    return ((points < box[0]) | (points > box[1])).any(axis=1)


def evenly(points: Float[Array, "n 3"], count: int, middle: Float[Array, "3"], radius: float) -> Int64[Array, "m"]:
    """Rows of at most ``count`` points that cover space evenly: one in each cell of a grid, the first there is.

    What many cameras see is measured many times, and would otherwise get most of the points. Beyond ``radius`` cells
    grow with the distance from ``middle``.
    """
    offset = points - middle
    far = np.maximum(np.linalg.norm(offset, axis=1) / radius, 1.0)[:, None]
    place = offset / far * (1 + np.log(far))  # directions stay; distances go on as logarithms
    low, high = 0.0, 2 * float(np.abs(place).max(initial=1e-9))
    chosen = np.arange(len(points))
    if len(points) <= count:
        return chosen
    for _ in range(20):
        cell = (low + high) / 2
        _, first = np.unique(np.floor(place / cell).astype(np.int64), axis=0, return_index=True)
        if len(first) <= count:
            chosen, high = np.sort(first), cell
            if len(first) > 0.97 * count:
                break
        else:
            low = cell
    return chosen


def lonely(points: Float[Array, "n 3"], neighbours: int = 8, factor: float = 6.0) -> Bool[Array, "n"]:
    """Points whose mean distance to their nearest others is above ``factor`` times the median of those distances,
    measured relative to the distance from the middle of the cloud: far points may be far apart."""
    from scipy.spatial import KDTree

    if len(points) <= neighbours:
        return np.zeros(len(points), bool)
    distances, _ = KDTree(points).query(points, k=neighbours + 1)
    out = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    relative = np.asarray(distances)[:, 1:].mean(axis=1) / np.maximum(out, np.median(out))
    return relative > factor * np.median(relative)
