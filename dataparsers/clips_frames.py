"""Pixels of a clip: any frame by its number, and the square pictures that XFactor sees (spec xfactor 2.3)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from core_ns.errors import DataError
from core_ns.images import read_image
from dataparsers.clips_sequence import Sequence
from dataparsers.video_names import ClipName
from dataparsers.video_read import Clip

Array = np.ndarray
ResizeMode = Literal["reference", "antialias"]


def read_frame(sequence: Sequence, index: int) -> UInt8[Array, "h w 3"]:
    """A frame in full size, display sRGB; grey is repeated, transparency dropped. Thread-safe.

    Videos are decoded from the nearest key frame, by decoders that stay open for a while.

    Raises:
        DataError: no such frame, one that does not decode, or one of another size than the clip's first.
    """
    if sequence.is_video:
        return _video(sequence).read_crop(sequence.stored(index))
    return _picture(sequence, index, None)


def _picture(sequence: Sequence, index: int, at_least: int | None) -> UInt8[Array, "h w 3"]:
    file = sequence.file(index)
    picture, _ = read_image(file, at_least)
    (width, height), shares = sequence.size, (1,) if at_least is None else (1, 2, 4, 8)
    if picture.shape[1::-1] not in [(-(-width // share), -(-height // share)) for share in shares]:
        problem = f"is {picture.shape[1]}x{picture.shape[0]} pixels, the clip's frames are {width}x{height}."
        raise DataError(file, f"frame {index}", problem, "Frames of a clip are of one size: resize it.")
    return picture


def read_square(
    sequence: Sequence, index: int, size: int, mode: ResizeMode = "antialias"
) -> UInt8[Array, "size size 3"]:
    """A frame as the networks see it; see `read_frame` and `square`.

    Antialiased, a large JPEG is decoded at the smallest of a half, quarter or eighth of its size that still has twice
    the pixels asked for.
    """
    if mode == "reference" or sequence.is_video:
        return square(read_frame(sequence, index), size, mode)
    return square(_picture(sequence, index, 2 * size), size, mode)


def read_squares(
    sequence: Sequence, indices: Iterable[int], size: int, mode: ResizeMode = "antialias"
) -> UInt8[Array, "n size size 3"]:
    """Several frames, in the order given; read in ascending order, which is how videos decode."""
    indices = list(indices)
    out = np.empty((len(indices), size, size, 3), np.uint8)
    for place in sorted(range(len(indices)), key=indices.__getitem__):
        out[place] = read_square(sequence, indices[place], size, mode)
    return out


def _video(sequence: Sequence) -> Clip:
    width, height = sequence.size
    count = sequence.first + sequence.frames * sequence.stride
    return Clip(sequence.source, ClipName(sequence.id, count, 0, 0, width, height, width, height), (width, height))


def square(frame: UInt8[Array, "h w 3"], size: int, mode: ResizeMode = "reference") -> UInt8[Array, "size size 3"]:
    """The centre square of a frame, resized.

    * ``reference``: what the released weights saw: bilinear between the four nearest pixels at
      ``linspace(0, N - 1, size)`` in both directions (corner-aligned, nothing averaged), cut off to integers. Fine
      detail of large photos aliases.
    * ``antialias``: bicubic over all pixels that fall into one.

    The square's N = min(h, w) pixels start at (h - N) // 2 and (w - N) // 2. Source: spec xfactor 2.3.
    """
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = frame[top : top + side, left : left + side]
    if mode == "antialias":
        if side == size:
            return np.ascontiguousarray(centre)
        picture = Image.fromarray(np.ascontiguousarray(centre))
        return np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
    low, high, share = _taps(side, size)
    upper, lower = centre[low], centre[high]
    across, down = share[:, None], share[:, None, None]
    first = _lerp(upper[:, low], upper[:, high], across)
    second = _lerp(lower[:, low], lower[:, high], across)
    return _lerp(first, second, down).astype(np.uint8)


def _lerp(a: Array, b: Array, share: Float[Array, "... 1"]) -> Float[Array, "..."]:
    # In this order equal neighbours give exactly their value, which cutting off then keeps.
    a = a.astype(np.float64)
    return a + share * (b - a)


@lru_cache(maxsize=64)
def _taps(side: int, size: int) -> tuple[Int[Array, "size"], Int[Array, "size"], Float[Array, "size"]]:
    """For each output pixel: the two input pixels it lies between, and how far from the first."""
    places = np.linspace(0, side - 1, size)
    low = np.minimum(np.floor(places).astype(np.int64), side - 1)
    return low, np.minimum(low + 1, side - 1), places - low
