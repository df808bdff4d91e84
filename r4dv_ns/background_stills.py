"""What a camera sees of the background: its clean plate, or one put together from photos (spec r4dv 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from dataparsers.easymocap_plates import Plates
from dataparsers.easymocap_sequence import Sequence
from r4dv_ns.background_depth import DepthView
from r4dv_ns.joint_sources import DILATION, widened

Array = np.ndarray
MOMENTS = 7
"""Frames that a missing plate is put together from."""
SHOWN = 0.6
"""Share of a reduced pixel that must show the background."""


@dataclass(frozen=True, eq=False)
class Still:
    """A camera's view of the background, reduced."""

    image: Float32[Array, "h w 3"]
    """0 to 255."""
    valid: Bool[Array, "h w"]
    K: Float64[Array, "3 3"]
    """Pixels of the reduced picture; pixel centres at +0.5."""
    w2c: Float64[Array, "4 4"]
    """OpenCV, world of the files."""

    def with_depth(self, depth: Float64[Array, "h w"]) -> DepthView:
        """The view with depths along its axis, 0 where unknown."""
        return DepthView(self.K, self.w2c, depth, self.image.round().astype(np.uint8))

    def with_margin(self, pixels: int) -> Still:
        """The same camera with pixels around its picture that show nothing."""
        image = cv2.copyMakeBorder(self.image, pixels, pixels, pixels, pixels, cv2.BORDER_REPLICATE)
        K = self.K.copy()
        K[:2, 2] += pixels
        return Still(image, np.pad(self.valid, pixels), K, self.w2c)

    def rays(self) -> Float64[Array, "h w 3"]:
        """Of the pixels, camera axes, 1 long along the camera's own."""
        height, width = self.valid.shape
        rows, columns = np.mgrid[:height, :width] + 0.5
        return np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(self.K).T


def make_still(sequence: Sequence, view: int, plates: Plates, scale: float) -> Still:
    """The plate, or the median of a few moments outside the masks; shrunk by area.

    Args:
        scale: at most 1.

    Raises:
        DataError: a photo, mask or plate does not decode.
    """
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
    return Still(mixed / np.maximum(weight, 1e-6)[..., None], weight > SHOWN, K, w2c)


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
