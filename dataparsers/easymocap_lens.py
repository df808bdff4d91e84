"""From a photo as stored to the pinhole photo that is delivered: resize, then undistort, with exact intrinsics.

The photo is shrunk first and resampled at its delivered size: distortion lives in normalised coordinates, so both
orders are the same map, and this one needs tables and time for the small photo only. Pixel coordinates are continuous,
(0, 0) is the outer corner of the first pixel; cv2 counts from that pixel's centre, hence the halves below.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from core_ns.images import area_downscale
from dataparsers.undistort import (
    Calibration,
    distorted_from_pixels,
    monotone_radius,
    normalised_from_pixels,
    pixels_from_normalised,
)

Array = np.ndarray
Fisheye = tuple[float, float, float, float]

_BAND_ROWS = 64
_TABLE_BYTES = 512 << 20


@dataclass(frozen=True)
class Lens:
    """How one camera's photo is resampled.

    ``source`` is the calibration of the photo shrunk to its delivered size, ``target`` the pinhole camera delivered,
    without skew. ``fisheye`` holds OpenCV's k1..k4 of theta; the source's own terms are zero then.
    """

    source: Calibration
    target: Calibration
    fisheye: Fisheye | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the shrunk photo is delivered as it is."""
        return self.source == self.target and self.fisheye is None

    def source_pixels(self, pixels: Float[Array, "n 2"]) -> tuple[Float[Array, "n 2"], Bool[Array, "n"]]:
        """Where in the shrunk photo the delivered pixels come from, and whether the photo shows that place.

        False outside of the photo, and where the lens polynomial has folded back.
        """
        ideal = distorted_from_pixels(pixels, self.target)  # the target has no distortion: K^-1 alone
        if self.fisheye is None:
            radius, limit = np.linalg.norm(ideal, axis=1), monotone_radius(self.source)
            found = pixels_from_normalised(ideal, self.source)
        else:
            radius, bent = _fisheye(ideal, self.fisheye)
            limit = monotone_radius(_theta_polynomial(self.fisheye))
            found = pixels_from_normalised(bent, self.source)
        inside = (found >= 0).all(axis=1) & (found <= (self.source.width, self.source.height)).all(axis=1)
        return found, inside & (radius <= limit)


class Tables(NamedTuple):
    """cv2's fixed-point remap tables (positions to 1/32 pixel) and where the delivered photo is valid."""

    coarse: Array
    fine: Array
    valid: Bool[Array, "h w"]


def _theta_polynomial(fisheye: Fisheye) -> Calibration:
    """The fisheye polynomial in theta in the place of the radial one in r: it folds back where that would."""
    k1, k2, k3, k4 = fisheye
    return Calibration(1, 1, 1.0, 1.0, 0.5, 0.5, k1=k1, k2=k2, k3=k3, k4=k4)


def _bend(theta: Array, fisheye: Fisheye) -> Array:
    t2 = theta * theta
    k1, k2, k3, k4 = fisheye
    return theta * (1.0 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))


def _fisheye(ideal: Float[Array, "n 2"], fisheye: Fisheye) -> tuple[Float[Array, "n"], Float[Array, "n 2"]]:
    """OpenCV's fisheye model: theta = atan r, and the point moved to radius theta (1 + k1 theta^2 + ...)."""
    radius = np.linalg.norm(ideal, axis=1)
    theta = np.arctan(radius)
    scale = np.where(radius > 1e-9, _bend(theta, fisheye) / np.maximum(radius, 1e-9), 1.0)
    return theta, ideal * scale[:, None]


def _ideal_from_pixels(pixels: Float[Array, "n 2"], source: Calibration, fisheye: Fisheye | None) -> Array:
    """Photo pixels to ideal normalised coordinates.

    Raises:
        ValueError: the lens cannot be inverted there, or looks sideways (90 degrees or more).
    """
    if fisheye is None:
        return normalised_from_pixels(pixels, source)
    bent = distorted_from_pixels(pixels, source)
    length = np.linalg.norm(bent, axis=1)
    limit = min(monotone_radius(_theta_polynomial(fisheye)), 1.55)
    # Bisection: the polynomial grows up to the limit, and this runs once per camera.
    low, high = np.zeros_like(length), np.full_like(length, limit)
    if (length > _bend(high, fisheye)).any():
        raise ValueError("the fisheye photo reaches beyond what a pinhole photo can show")
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = _bend(middle, fisheye) > length
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return bent * (np.tan(low) / np.maximum(length, 1e-12))[:, None]


def filling_target(source: Calibration, fisheye: Fisheye | None) -> Calibration:
    """The pinhole camera of the photo's own size whose four borders lie inside what the lens recorded (alpha = 0).

    Raises:
        ValueError: the lens cannot be inverted on the photo's border, or nothing is left of the photo.
    """
    c = source
    across, down = np.linspace(0.0, c.width, 129), np.linspace(0.0, c.height, 129)

    def border(u: Array | float, v: Array | float) -> Array:
        pixels = np.stack(np.broadcast_arrays(u, v), axis=-1).astype(np.float64)
        return _ideal_from_pixels(pixels, source, fisheye)

    left, right = border(0.0, down)[:, 0].max(), border(float(c.width), down)[:, 0].min()
    top, bottom = border(across, 0.0)[:, 1].max(), border(across, float(c.height))[:, 1].min()
    if not (right > left and bottom > top):
        raise ValueError("nothing is left of the photo")
    fx, fy = c.width / (right - left), c.height / (bottom - top)
    return Calibration(c.width, c.height, float(fx), float(fy), float(-left * fx), float(-top * fy))


def make_lens(
    intrinsics: Float[Array, "3 3"],
    distortion: Float[Array, "5"],
    fisheye: Float[Array, "4"] | None,
    size: tuple[int, int],
    ratio: float = 1.0,
    pixel_centre_shift: float = 0.0,
    undistort: Literal["same", "optimal", "none"] = "same",
) -> Lens:
    """The lens of a photo of ``size`` (width, height) delivered at ``ratio`` of it (r4dv 2.3).

    Args:
        intrinsics: K in pixels of the stored photo.
        distortion: OpenCV's k1, k2, p1, p2, k3; ignored with a fisheye.
        fisheye: OpenCV's fisheye k1..k4.
        undistort: "none" delivers the shrunk photo, whatever its lens.

    Raises:
        ValueError: "optimal" and the lens cannot be inverted.
    """
    k1, k2, p1, p2, k3 = (float(value) for value in distortion) if fisheye is None else (0.0,) * 5
    width, height = (max(1, int(length * ratio + 0.5)) for length in size)
    stored = Calibration(
        width=size[0],
        height=size[1],
        fx=float(intrinsics[0, 0]),
        fy=float(intrinsics[1, 1]),
        cx=float(intrinsics[0, 2]) + pixel_centre_shift,
        cy=float(intrinsics[1, 2]) + pixel_centre_shift,
        skew=float(intrinsics[0, 1]),
        k1=k1, k2=k2, k3=k3, p1=p1, p2=p2,
    )  # fmt: skip
    source = stored.resized(width, height)
    bends: Fisheye | None = None
    if fisheye is not None:
        a, b, c, d = (float(value) for value in fisheye)
        bends = (a, b, c, d)
    if undistort == "none":
        return Lens(source, source)
    if undistort == "optimal" and (source.is_distorted or bends is not None):
        return Lens(source, filling_target(source, bends), bends)
    pinhole = replace(source, skew=0.0, k1=0.0, k2=0.0, k3=0.0, k4=0.0, p1=0.0, p2=0.0)
    return Lens(source, pinhole, bends)


def _make_tables(lens: Lens) -> Tables:
    width, height = lens.target.width, lens.target.height
    positions = np.empty((height, width, 2), np.float32)
    valid = np.empty((height, width), bool)
    columns = np.arange(width) + 0.5
    for start in range(0, height, _BAND_ROWS):
        rows = slice(start, min(start + _BAND_ROWS, height))
        u, v = np.meshgrid(columns, np.arange(rows.start, rows.stop) + 0.5)
        found, shown = lens.source_pixels(np.stack([u.ravel(), v.ravel()], axis=-1))
        # cv2's tables are 16 bit; what is not shown may lie anywhere.
        positions[rows] = np.clip(found - 0.5, -16000, 16000).reshape(-1, width, 2)
        valid[rows] = shown.reshape(-1, width)
    coarse, fine = cv2.convertMaps(positions, None, cv2.CV_16SC2)  # pyright: ignore
    return Tables(coarse, fine, valid)


class _TableCache:
    """Tables of the lenses used last, up to a number of bytes; shared by all sequences and threads of the process."""

    def __init__(self, limit: int) -> None:
        self.limit, self._lock = limit, threading.Lock()
        self._tables: OrderedDict[Lens, Tables] = OrderedDict()

    def get(self, lens: Lens) -> Tables:
        """The lens's tables, made if need be (two threads may make the same; both are equal)."""
        with self._lock:
            if lens in self._tables:
                self._tables.move_to_end(lens)
                return self._tables[lens]
        made = _make_tables(lens)
        with self._lock:
            self._tables[lens] = made
            while len(self._tables) > 1 and self.bytes() > self.limit:
                self._tables.popitem(last=False)
        return made

    def bytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for tables in self._tables.values() for array in tables)


_cache = _TableCache(_TABLE_BYTES)


def valid_area(lens: Lens) -> Bool[Array, "h w"] | None:
    """Where the delivered photo shows what the lens recorded; None: everywhere. The array is shared: do not write."""
    return None if lens.is_identity else _cache.get(lens).valid


def resized(image: UInt8[Array, "h w *c"], width: int, height: int) -> UInt8[Array, "height width *c"]:
    """Exact area averages when shrinking, bicubic when enlarging; pixel corners map to pixel corners."""
    if image.shape[:2] == (height, width):
        return image
    if width <= image.shape[1] and height <= image.shape[0]:
        return area_downscale(image, width, height)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def deliver(
    image: UInt8[Array, "h w *c"], lens: Lens, interpolation: Literal["cubic", "linear"]
) -> UInt8[Array, "h2 w2 *c"]:
    """A stored photo or mask as ``lens.target`` sees it; zero where it shows nothing. Thread-safe."""
    small = resized(image, lens.source.width, lens.source.height)
    if lens.is_identity:
        return small
    tables = _cache.get(lens)
    kind = cv2.INTER_CUBIC if interpolation == "cubic" else cv2.INTER_LINEAR
    # Samples within half a pixel of the border are valid: they must not mix with black.
    result = cv2.remap(small, tables.coarse, tables.fine, kind, borderMode=cv2.BORDER_REPLICATE)
    return cv2.bitwise_and(result, result, mask=tables.valid.view(np.uint8))
