"""Scale and shift that bring disparity to a reconstruction's points, found by RANSAC (spec megascenes 3.1)."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

from megascenes_ns.depth import Alignment

Array = np.ndarray

TOLERANCE = 0.1
"""An inlier's 1/z is met to this share of it."""
LEAST_INLIERS = 30
TRIALS = 2000
"""Random pairs of points; where there are no more pairs than that, each is tried."""
INVERSE_RANGE = (1e-3, 1e3)
"""Aligned 1/z is clipped to this."""
_BLOCK = 1 << 20
"""Residuals that are in memory at a time."""


def align_disparity(
    disparity: Float[Array, "k"],
    depth: Float[Array, "k"],
    *,
    tolerance: float = TOLERANCE,
    least: int = LEAST_INLIERS,
    trials: int = TRIALS,
    seed: int = 0,
) -> Alignment:
    """Find a and b of 1/z = a * disparity + b among points of which many are wrong.

    Lines through two points; the one that most points agree with (|a * disparity + b - 1/z| < tolerance / z, the first
    of equals); least squares on those points. Spec megascenes 3.1.

    Args:
        disparity: of the network, at each point's pixel.
        depth: z of the points, positive.
        tolerance: see `TOLERANCE`.
        least: fewer inliers are rejected.
        trials: see `TRIALS`.
        seed: of the pairs: the same points give the same answer.

    Returns:
        ``rejected`` says why it cannot be used: too few points or inliers, or disparity that falls with nearness.

    Raises:
        ValueError: arrays of different lengths.
    """
    x, z = np.asarray(disparity, np.float64), np.asarray(depth, np.float64)
    if x.shape != z.shape or x.ndim != 1:
        raise ValueError(f"expected two lists of one length, got {x.shape} and {z.shape}")
    usable = np.isfinite(x) & np.isfinite(z) & (z > 0.0)
    x, y = x[usable], 1.0 / z[usable]
    least = max(least, 2)
    if len(x) < least:
        return Alignment(math.nan, math.nan, 0, len(x), f"only {len(x)} points, of at least {least}")
    slopes, offsets = _lines(x, y, _pairs(len(x), trials, seed))
    if not len(slopes):
        return Alignment(math.nan, math.nan, 0, len(x), "the disparity is the same at all points")
    counts = np.concatenate(
        [
            _agreeing(x, y, slopes[start:stop], offsets[start:stop], tolerance).sum(axis=1)
            for start, stop in _blocks(len(slopes), len(x))
        ]
    )
    best = int(np.argmax(counts))
    inliers = _agreeing(x, y, slopes[best : best + 1], offsets[best : best + 1], tolerance)[0]
    count = int(inliers.sum())
    slope, offset = _least_squares(x[inliers], y[inliers]) if count >= 2 else (math.nan, math.nan)
    reason = ""
    if count < least:
        reason = f"only {count} of {len(x)} points agree, of at least {least}"
    elif not slope > 0.0:
        reason = f"the slope is {slope:.3g}: far is large"
    return Alignment(slope, offset, count, len(x), reason)


def aligned_depth(disparity: Float[Array, "h w"], alignment: Alignment) -> Float64[Array, "h w"]:
    """d = 1 / clip(a * disparity + b, 1e-3, 1e3), in the reconstruction's units.

    Raises:
        ValueError: the alignment was rejected.
    """
    if alignment.rejected:
        raise ValueError(f"a rejected alignment ({alignment.rejected})")
    return 1.0 / np.clip(alignment.slope * np.asarray(disparity, np.float64) + alignment.offset, *INVERSE_RANGE)


def sample_bilinear(picture: Shaped[Array, "h w"], pixels: Float[Array, "k 2"]) -> Float64[Array, "k"]:
    """Values at continuous pixel places (x, y), (0, 0) being the outer corner; NaN outside the picture."""
    height, width = picture.shape
    limits = np.array([width, height], np.float64)
    inside = np.all((pixels >= 0.0) & (pixels <= limits), axis=1)
    at = np.clip(np.where(inside[:, None], pixels, 0.0) - 0.5, 0.0, limits - 1.0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, [width - 1, height - 1])
    part = at - low
    values = np.asarray(picture, np.float64)
    top = values[low[:, 1], low[:, 0]] * (1.0 - part[:, 0]) + values[low[:, 1], high[:, 0]] * part[:, 0]
    bottom = values[high[:, 1], low[:, 0]] * (1.0 - part[:, 0]) + values[high[:, 1], high[:, 0]] * part[:, 0]
    return np.where(inside, top * (1.0 - part[:, 1]) + bottom * part[:, 1], np.nan)


def _pairs(count: int, trials: int, seed: int) -> Int[Array, "n 2"]:
    """Pairs of different points: all of them, or so many random ones."""
    if count * (count - 1) // 2 <= trials:
        return np.stack(np.triu_indices(count, 1), axis=1)
    random = np.random.default_rng(seed)
    first = random.integers(count, size=trials)
    return np.stack([first, (first + random.integers(1, count, size=trials)) % count], axis=1)


def _lines(x: Array, y: Array, pairs: Int[Array, "n 2"]) -> tuple[Float64[Array, "m"], Float64[Array, "m"]]:
    """Slope and offset through each pair; pairs of one disparity have none."""
    first, second = pairs.T
    pairs = pairs[x[first] != x[second]]
    first, second = pairs.T
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    finite = np.isfinite(slopes)
    return slopes[finite], (y[first] - slopes * x[first])[finite]


def _agreeing(x: Array, y: Array, slopes: Array, offsets: Array, tolerance: float) -> Shaped[Array, "n k"]:
    return np.abs(slopes[:, None] * x + offsets[:, None] - y) < tolerance * y


def _blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK // columns)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _least_squares(x: Array, y: Array) -> tuple[float, float]:
    """Slope and offset of the line nearest in y. Centred first: disparities may lie far from 0."""
    middle_x, middle_y = x.mean(), y.mean()
    spread = float(((x - middle_x) ** 2).sum())
    if spread <= 0.0:
        return math.nan, math.nan
    slope = float(((x - middle_x) * (y - middle_y)).sum() / spread)
    return slope, float(middle_y - slope * middle_x)
