"""A photo's depth in the unit of all poses: what a fifth of the photo lies nearer than (spec megascenes 3.1).

``q20`` is the 20 % quantile of the reference's depth. Translations of a pair are divided by it, and so is depth, or the
warp would not fit the pose. Depth is z in the camera (not the length of the ray); 0 stands for "no surface".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Shaped, UInt8

Array = np.ndarray

QUANTILE = 0.2
STEP = 8
"""Every how many pixels the original samples a full-size depth map for the quantile (spec megascenes 2.1)."""
FARTHEST = 100.0
"""Depths are clipped there, in units of q20."""
SMALLEST_DISPARITY = 1e-3
SMALLEST_SCALE = 1e-7
"""The pair lists' scales are clipped there when poses are divided; one that small says nothing about depth."""


@dataclass(frozen=True)
class Alignment:
    """How a network's disparity was brought to a reconstruction's scale: 1/z = ``slope`` * disparity + ``offset``."""

    slope: float
    offset: float
    inliers: int
    """Points that agreed."""
    points: int
    """Points there were."""
    rejected: str = ""
    """Why it cannot be used; empty: it can."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; numbers that are not finite become None."""
        numbers = {"slope": self.slope, "offset": self.offset}
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {**plain, "inliers": self.inliers, "points": self.points, "rejected": self.rejected}


@dataclass(frozen=True)
class Depth:
    """Depth of a photo."""

    values: Float32[Array, "h w"]
    """z in units of ``q20``, at most 100; 0 where there is no surface."""
    q20: float
    """Length of that unit: in the reconstruction's own units where these are known, else in the source's."""
    source: str
    """What it comes from, in a few words."""
    alignment: Alignment | None = None
    """Of depth that was aligned to a reconstruction, or should have been."""
    unit_known: bool = True
    """Whether ``q20`` is in the units of the photo's reconstruction; else only ratios of depths are known."""

    @property
    def valid(self) -> Bool[Array, "h w"]:
        """Where there is a surface."""
        return self.values > 0.0


class DepthSource(Protocol):
    """Where depth comes from. Instances are plain enough to be sent to another process before their first use."""

    name: str
    """In a few words, for messages."""

    def settings(self) -> dict[str, Any]:
        """What decides about its results, for JSON: a cache made with other settings is another one.

        Raises:
            DataError: its files cannot be read.
        """
        ...

    def depth(
        self,
        image: UInt8[Array, "h w 3"],
        K: Float[Array, "3 3"],
        key: str,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        w2c: Float[Array, "4 4"] | None = None,
    ) -> Depth:
        """Depth of one photo.

        Args:
            image: as large as there is: networks see more in the photo itself than in one of 256 pixels.
            K: of ``image``, in pixels.
            key: the photo's path relative to the folder of all photos, with slashes.
            size: (height, width) of the result; None: that of ``image``. Another size, never another crop.
            scale: unit of the poses in the reconstruction's units: a pair's fifth item. Depth that is in these units is
                divided by it; None, or one that the pose clips (below 1e-7): by its own quantile.
            w2c: the photo's pose in the reconstruction, for sources with several reconstructions to choose from.

        Raises:
            DataError: there is none for this photo, or it cannot be used.
        """
        ...


def q20(depth: Shaped[Array, "h w"], step: int = 1) -> float | None:
    """The 20 % quantile of positive, finite depths; None where there are none.

    Args:
        depth: z in any unit.
        step: take every so many rows and columns: 8 gives the scale of the pair lists from a full-size map.
    """
    sampled = np.asarray(depth, np.float64)[::step, ::step]
    sampled = sampled[np.isfinite(sampled) & (sampled > 0.0)]
    return float(np.quantile(sampled, QUANTILE)) if len(sampled) else None


def usable_scale(scale: float | None) -> float | None:
    """A pair's scale if it says something, else None (absent, not finite, or where poses are clipped)."""
    if scale is None or not math.isfinite(scale) or scale <= SMALLEST_SCALE:
        return None
    return float(scale)


def in_units(
    depth: Shaped[Array, "h w"],
    source: str,
    *,
    scale: float | None = None,
    relative: bool = False,
    alignment: Alignment | None = None,
) -> Depth | None:
    """Divide a depth map by its unit and clip it to 0..100; None where it shows no surface.

    Args:
        depth: z, 0, negative or NaN where there is no surface; infinity is the sky, and far.
        source: for `Depth`.
        scale: the poses' unit, see `DepthSource.depth`.
        relative: the map has a unit of its own, so only its own quantile can be divided by; ``scale`` is what that
            stands for.
        alignment: for `Depth`.
    """
    known, own = usable_scale(scale), q20(depth)
    if own is None:
        return None
    unit = own if relative or known is None else known
    values = np.where(np.isnan(depth) | (depth <= 0.0), 0.0, np.minimum(np.asarray(depth, np.float64) / unit, FARTHEST))
    return Depth(
        values.astype(np.float32), own if known is None else known, source, alignment, not relative or known is not None
    )


def pose_unit(depth: Depth, scale: float | None) -> float | None:
    """What a pair's translation is divided by to fit its depth: its scale, else the depth's unit; None if unknown."""
    known = usable_scale(scale)
    return known if known is not None else (depth.q20 if depth.unit_known else None)


def depth_from_disparity(disparity: Shaped[Array, "h w"]) -> Float[Array, "h w"]:
    """d = 1 / max(disparity, 1e-3); spec megascenes 3.1. NaN stays."""
    return 1.0 / np.maximum(np.asarray(disparity, np.float64), SMALLEST_DISPARITY)


def _taps(at: Float[Array, "n"], count: int) -> tuple[Array, Array, Array, Array]:
    """Neighbours of positions among ``count`` pixels: the lower, the upper, the upper's weight, the nearest."""
    at = np.clip(at, 0.0, count - 1.0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    return low, high, at - low, np.where(at - low < 0.5, low, high)


def resample_depth(
    depth: Shaped[Array, "h w"], rows: Float[Array, "h2"], columns: Float[Array, "w2"]
) -> Float64[Array, "h2 w2"]:
    """Look a depth map with holes up on a grid: bilinear in 1/z, exact on planes; holes neither shrink nor bleed.

    A result is a hole (0) when the nearest pixel is one or lies outside; elsewhere holes have no weight. Infinity is a
    surface very far away.

    Args:
        rows: places of the results, counted in pixels from the *centre* of the first one.
        columns: likewise.
    """
    depth = np.asarray(depth, np.float64)
    solid = ~np.isnan(depth) & (depth > 0.0)
    inverse = np.where(solid, 1.0 / np.where(solid, depth, 1.0), 0.0)
    top, bottom, down, nearest_row = _taps(rows, depth.shape[0])
    left, right, across, nearest_column = _taps(columns, depth.shape[1])

    def mixed(values: Array) -> Array:
        between = values[top] * (1.0 - down)[:, None] + values[bottom] * down[:, None]
        return between[:, left] * (1.0 - across) + between[:, right] * across

    inside = [
        np.abs(at - (count - 1) / 2) <= count / 2 for at, count in ((rows, depth.shape[0]), (columns, depth.shape[1]))
    ]
    kept = solid[nearest_row][:, nearest_column] & inside[0][:, None] & inside[1]
    # The nearest pixel has at least a quarter of the weight, so no division by zero where it is solid.
    inverse = mixed(inverse) / np.where(kept, mixed(solid.astype(np.float64)), 1.0)
    with np.errstate(divide="ignore"):
        return np.where(kept, 1.0 / np.where(kept, inverse, 1.0), 0.0)


def resize_depth(depth: Shaped[Array, "h w"], height: int, width: int) -> Float64[Array, "height width"]:
    """`resample_depth` to another size, pixel centres at +0.5. Of the same size the map comes back, holes as 0."""
    depth = np.asarray(depth, np.float64)
    if depth.shape == (height, width):
        return np.where(~np.isnan(depth) & (depth > 0.0), depth, 0.0)
    rows, columns = (
        (np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip((height, width), depth.shape, strict=True)
    )
    return resample_depth(depth, rows, columns)
