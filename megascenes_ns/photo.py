"""A photo that nobody calibrated: upright, with a lens from its EXIF data or from a number (spec megascenes 7)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from core_ns.images import image_size, read_image

Array = np.ndarray

DEFAULT_FOV = 55.0
"""Horizontal degrees of a photo whose lens nobody knows."""
FILM_DIAGONAL = 43.266615305567875
"""Millimetres of the 36 x 24 mm frame that EXIF's focal length is an equivalent for."""
LEGACY_FOCAL, LEGACY_SIDE = 80.0, 256.0
"""The original's demo: focal length in pixels, at this longest side."""

_EXIF_BLOCK, _ORIENTATION, _FOCAL_35 = 0x8769, 0x0112, 0xA405
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([hd]?)")


class Lens(NamedTuple):
    """What was asked for with ``--fov``."""

    kind: Literal["auto", "horizontal", "diagonal", "legacy80"]
    degrees: float = 0.0


@dataclass(frozen=True)
class Photo:
    """An upright photo with the camera it is taken to have."""

    image: UInt8[Array, "h w 3"]
    K: Float[Array, "3 3"]
    """For this size; principal point in the middle. float64."""
    lens: str
    """Where the focal length comes from, to be printed."""


def parse_fov(text: str) -> Lens:
    """The value of ``--fov``: auto, degrees (60, 60h, 75d) or legacy80.

    Raises:
        DataError: anything else, or an angle outside (0, 180).
    """
    if text in ("auto", "legacy80"):
        return Lens(text)
    match = _NUMBER.fullmatch(text)
    if match is None or not 0.0 < float(match[1]) < 180.0:
        remedy = "Give auto, degrees such as 60 or 60h (horizontal) or 75d (diagonal), or legacy80."
        raise DataError("options", "fov", f"'{text}' is no field of view.", remedy)
    return Lens("diagonal" if match[2] == "d" else "horizontal", float(match[1]))


def focal_length(width: int, height: int, lens: Lens, focal_35: float | None = None) -> tuple[float, str]:
    """Focal length in pixels of a photo, and where it comes from.

    Args:
        width: pixels.
        height: pixels.
        lens: what was asked for.
        focal_35: millimetres of the equivalent lens on 35-mm film, from the EXIF data; compared over the diagonal, as
            the standard says.
    """
    diagonal = math.hypot(width, height)
    if lens.kind == "legacy80":
        return LEGACY_FOCAL * max(width, height) / LEGACY_SIDE, "80 pixels at 256, the original's demo"
    if lens.kind == "auto" and focal_35 is not None:
        return focal_35 * diagonal / FILM_DIAGONAL, f"EXIF: {focal_35:g} mm on 35-mm film"
    side = diagonal if lens.kind == "diagonal" else width
    degrees = DEFAULT_FOV if lens.kind == "auto" else lens.degrees
    kind = "horizontal" if lens.kind == "auto" else lens.kind
    source = f"no EXIF focal length: {degrees:g} degrees assumed" if lens.kind == "auto" else f"{degrees:g} degrees"
    return 0.5 * side / math.tan(math.radians(degrees) / 2.0), f"{source}, {kind}"


def camera_matrix(width: int, height: int, focal: float) -> Float[Array, "3 3"]:
    """K with square pixels and the principal point in the middle (pixel centres at +0.5). float64."""
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])


def exif_of(file: Path) -> tuple[int, float | None]:
    """Orientation (1 to 8, EXIF) and the 35-mm focal length in millimetres, None where absent or nonsense."""
    from PIL import Image

    # Broken metadata is no reason to refuse a photo whose pixels decode.
    try:
        with Image.open(file, formats=("JPEG", "PNG", "TIFF", "WEBP")) as image:
            tags = image.getexif()
            orientation = int(tags.get(_ORIENTATION, 1))
            focal = float(tags.get_ifd(_EXIF_BLOCK).get(_FOCAL_35, 0.0))
    except (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, KeyError):
        return 1, None
    return orientation if 1 <= orientation <= 8 else 1, focal if 1.0 <= focal <= 2000.0 else None


def upright(image: UInt8[Array, "h w 3"], orientation: int) -> UInt8[Array, "h2 w2 3"]:
    """Turn and mirror stored pixels as EXIF's orientation (1 to 8) says."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def read_photo(file: Path, fov: str = "auto") -> Photo:
    """Decode a photo, turn it upright and give it a camera.

    Args:
        file: JPEG, PNG, TIFF or WebP.
        fov: see `parse_fov`.

    Raises:
        DataError: no photo, or no field of view.
    """
    lens = parse_fov(fov)
    pixels, _ = read_image(file)
    orientation, focal_35 = exif_of(file)
    image = upright(pixels, orientation)
    height, width = image.shape[:2]
    focal, source = focal_length(width, height, lens, focal_35)
    return Photo(image, camera_matrix(width, height, focal), source)


def describe_photo(file: Path, fov: str = "auto") -> list[str]:
    """What ``ns-megascenes inspect PHOTO`` prints: size, orientation and lens, one line each; nothing is decoded.

    Raises:
        DataError: no photo, or no field of view.
    """
    lens = parse_fov(fov)
    width, height = image_size(file)
    orientation, focal_35 = exif_of(file)
    if orientation >= 5:
        width, height = height, width
    focal, source = focal_length(width, height, lens, focal_35)
    horizontal, diagonal = (
        math.degrees(2 * math.atan(0.5 * side / focal)) for side in (width, math.hypot(width, height))
    )
    turned = "" if orientation == 1 else f" (EXIF orientation {orientation} applied)"
    return [
        f"photo:  {file}",
        f"size:   {width}x{height}{turned}",
        f"lens:   {source}",
        f"        focal length {focal:.1f} pixels, {horizontal:.1f} degrees horizontal, {diagonal:.1f} diagonal",
    ]
