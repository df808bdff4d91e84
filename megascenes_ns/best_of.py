"""The best of several samples: the one that keeps most to what the warp shows (spec megascenes 7, check 14)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8

Array = np.ndarray


class Best(NamedTuple):
    """Which sample, and how far each is from the warp."""

    index: int
    """Of the sample with the least error, the first of several."""
    errors: Float64[Array, "n"]
    """Mean squared error per channel over what the warp covers, colours in [0, 1]; NaN where it covers nothing."""


def best_of(
    samples: Float[Array, "n h w 3"] | UInt8[Array, "n h w 3"],
    warp_rgb: Float[Array, "h w 3"],
    coverage: Float[Array, "h w"],
) -> Best:
    """Compare samples of one view with its warp, in floating point and by the true coverage.

    The original subtracts bytes, which wrap around, and takes black for holes. Here every pixel counts as much as it is
    covered, and colours are compared after the black that borders of holes are blended with is taken out.

    Args:
        samples: pictures of one view, uint8 or floats in [0, 1].
        warp_rgb, coverage: as `warp.Warp` holds them, of the same size.

    Returns:
        The best; where the warp covers nothing the first, for want of anything to go by.

    Raises:
        ValueError: no samples, or sizes that differ.
    """
    if (
        samples.ndim != 4
        or len(samples) == 0
        or samples.shape[1:] != warp_rgb.shape
        or coverage.shape != warp_rgb.shape[:2]
    ):
        raise ValueError(f"samples {samples.shape}, warp {warp_rgb.shape} and coverage {coverage.shape} do not fit")
    weight = coverage.astype(np.float64)
    if not weight.any():
        return Best(0, np.full(len(samples), np.nan))
    covered = weight > 0
    target = warp_rgb[covered] / weight[covered, None]
    scale = 255.0 if samples.dtype == np.uint8 else 1.0
    total = 3 * weight.sum()
    errors = np.array(
        [float((weight[covered, None] * (sample[covered] / scale - target) ** 2).sum() / total) for sample in samples]
    )
    return Best(int(np.argmin(errors)), errors)
