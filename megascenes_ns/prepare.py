"""Photos for the networks: longest side to 256, on a white square; intrinsics follow (spec megascenes 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Array = np.ndarray
CANVAS = 256


def fitted_size(width: int, height: int, canvas: int = CANVAS) -> tuple[int, int]:
    """(width, height) after resizing: the longest side becomes ``canvas``, the other is rounded down (at least 1).

    Raises:
        ValueError: a side is not positive.
    """
    if min(width, height, canvas) < 1:
        raise ValueError(f"cannot fit {width}x{height} into {canvas}")
    longest = max(width, height)
    ratio = canvas / longest
    # ratio * longest may round to a hair below the canvas: the long side is never taken from the product.
    across, down = (
        canvas if side == longest else max(math.floor(side * ratio), 1) for side in (width, height)
    )  # fmt: skip
    return across, down


def paste_offset(width: int, height: int, canvas: int = CANVAS) -> tuple[int, int]:
    """(x, y) of the upper left corner of a resized photo in the square."""
    return (canvas - width) // 2, (canvas - height) // 2


def scaled_intrinsics(
    intrinsics: Float[Array, "3 3"], size: tuple[int, int], new_size: tuple[int, int]
) -> Float[Array, "3 3"]:
    """K of a resized photo: each axis by its own factor (pixel centres lie at +0.5). Sizes are (width, height)."""
    factors = np.array([new_size[0] / size[0], new_size[1] / size[1], 1.0])
    return np.asarray(intrinsics, dtype=np.float64) * factors[:, None]


def resize_long(image: UInt8[Array, "h w 3"], canvas: int = CANVAS) -> UInt8[Array, "h2 w2 3"]:
    """Resize (Lanczos) so that the longest side is ``canvas``, up or down; the aspect stays.

    Raises:
        ValueError: not uint8 of three channels.
    """
    _check(image)
    size = fitted_size(image.shape[1], image.shape[0], canvas)
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def pad(image: UInt8[Array, "h w 3"], canvas: int = CANVAS) -> UInt8[Array, "canvas canvas 3"]:
    """Paste into the middle of a white square, without resizing.

    Raises:
        ValueError: not uint8 of three channels, or larger than the square.
    """
    _check(image)
    height, width = image.shape[:2]
    if max(height, width) > canvas:
        raise ValueError(f"a picture of {width}x{height} does not fit into {canvas}x{canvas}")
    x, y = paste_offset(width, height, canvas)
    square = np.full((canvas, canvas, 3), 255, np.uint8)
    square[y : y + height, x : x + width] = image
    return square


def resize_pad(image: UInt8[Array, "h w 3"], canvas: int = CANVAS) -> UInt8[Array, "canvas canvas 3"]:
    """`resize_long`, then `pad`: what the original feeds its networks (256), and how it shrinks warps (32)."""
    return pad(resize_long(image, canvas), canvas)


def crop(square: Array, width: int, height: int) -> Array:
    """Undo `pad`: the picture of the given size out of the middle of ``[canvas, canvas, ...]``."""
    x, y = paste_offset(width, height, square.shape[0])
    return square[y : y + height, x : x + width]


@dataclass(frozen=True)
class Prepared:
    """A resized photo and its camera; it knows where it lies in the square."""

    image: UInt8[Array, "h w 3"]
    """Longest side = ``canvas``, without padding."""
    K: Float[Array, "3 3"]
    """Of ``image``: without the offset. float64."""
    offset: tuple[int, int]
    """(x, y) of its upper left corner in the square."""
    canvas: int = CANVAS

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of ``image``."""
        return self.image.shape[1], self.image.shape[0]

    @property
    def padded(self) -> UInt8[Array, "canvas canvas 3"]:
        """On white, in the middle of the square."""
        return pad(self.image, self.canvas)

    @property
    def K_padded(self) -> Float[Array, "3 3"]:
        """K of ``padded``: the principal point moved by the offset."""
        moved = self.K.copy()
        moved[:2, 2] += self.offset
        return moved


def prepare(image: UInt8[Array, "h w 3"], intrinsics: Float[Array, "3 3"], canvas: int = CANVAS) -> Prepared:
    """Resize a photo with its camera.

    Args:
        image: as stored; no EXIF rotation.
        intrinsics: K for exactly this size. Cameras listed for another size go through `scaled_intrinsics` first.
        canvas: side of the square.

    Raises:
        ValueError: not uint8 of three channels.
    """
    small = resize_long(image, canvas)
    size = (small.shape[1], small.shape[0])
    scaled = scaled_intrinsics(intrinsics, (image.shape[1], image.shape[0]), size)
    return Prepared(small, scaled, paste_offset(*size, canvas), canvas)


def _check(image: Array) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
        raise ValueError(f"expected uint8 [h, w, 3], got {image.dtype} {image.shape}")
