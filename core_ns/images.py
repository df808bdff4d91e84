"""Photos in and out: 8-bit sRGB arrays, whatever the file held. Only the named formats are ever decoded."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core_ns.atomic import atomic_path
from core_ns.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
MAX_PIXELS = 500_000_000

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
_CONVERT = "Export the photo again as 8-bit JPEG or PNG."
_OPEN_LOCK = threading.Lock()


def _open(path: Path) -> Image.Image:
    """Read the header; the pixels stay in the file."""
    if not path.is_file():
        raise DataError(path, "path", "is not a file.", "Check the image folder.")
    # Pillow's own limit (89 MP) warns about honest photos and is a process-wide variable, hence the lock. Broken
    # metadata (MPO, EXIF) only warns: the pixels are what counts.
    with _OPEN_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path, formats=_FORMATS)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            problem = f"cannot be read as an image ({type(error).__name__})."
            raise DataError(path, "header", problem, _CONVERT) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        image.close()
        problem = f"declares {width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} MP."
        raise DataError(path, "header", problem, "Downscale the photo or remove the file.")
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in stored pixels, from the header only.

    Raises:
        DataError: not an image, or larger than 500 MP.
    """
    with _open(Path(path)) as image:
        return image.size


def has_alpha(path: str | Path) -> bool:
    """Whether the file stores transparency, from the header only; raises as `image_size`."""
    with _open(Path(path)) as image:
        return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """Map 16-bit grey (65535 becomes 255) to 8 bit; refuse pixels whose white is unknown."""
    if image.mode == "F":
        raise DataError(path, "pixels", "holds floating-point pixels, whose white point is unknown.", _CONVERT)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(path, "pixels", "holds integers beyond 16 bit.", _CONVERT)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def read_image(
    path: str | Path, at_least: int | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """Decode a photo to (rgb, alpha); alpha is None when the file has no transparency.

    Grey is repeated to three channels, 16 bit is scaled to 8, palettes and CMYK are converted. The EXIF orientation is
    NOT applied: cameras refer to the pixels as stored. Both arrays are writable and own their memory.

    Args:
        at_least: for photos that will be shrunk to a thumbnail: a JPEG may come in a half, quarter or eighth of its
            size (rounded up), which decodes several times as fast, as long as its shorter side keeps so many pixels.

    Raises:
        DataError: undecodable, truncated, floating-point, more than 16 bit, or larger than 500 MP.
    """
    path = Path(path)
    with _open(path) as image:
        try:
            if at_least is not None and image.format == "JPEG":
                width, height = image.size
                fits = max((each for each in (1, 2, 4, 8) if -(-min(width, height) // each) >= at_least), default=1)
                # Pillow takes what is not smaller than this.
                image.draft(None, (max(width // fits, 1), max(height // fits, 1)))
            image.load()
            narrow = _eight_bit(image, path)
            if not narrow.has_transparency_data:
                return np.array(narrow if narrow.mode == "RGB" else narrow.convert("RGB")), None
            pixels = np.asarray(narrow.convert("RGBA"))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                path, "pixels", f"does not decode ({type(error).__name__}: {error}); it may be truncated.", _CONVERT
            ) from error
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 ``[h, w]``, ``[h, w, 3]`` or ``[h, w, 4]`` atomically; the suffix names the format (JPEG quality 95).

    Raises:
        ValueError: other dtype or shape, or a suffix that is not an image format.
    """
    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"expected uint8 [h, w], [h, w, 3] or [h, w, 4], got {array.dtype} {array.shape}")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"cannot write '{path.suffix}' images; use one of {', '.join(IMAGE_SUFFIXES)}")
    with atomic_path(path) as temporary:  # lossless formats ignore the quality
        Image.fromarray(np.ascontiguousarray(array)).save(temporary, quality=95)


def area_downscale(rgb: UInt8[np.ndarray, "h w c"], width: int, height: int) -> UInt8[np.ndarray, "height width c"]:
    """Shrink by exact area averages (fractional pixel overlaps weighted), as spec xscale 2.4 asks.

    Raises:
        ValueError: the target is empty or larger than the source.
    """
    if not (0 < width <= rgb.shape[1] and 0 < height <= rgb.shape[0]):
        raise ValueError(f"cannot shrink {rgb.shape[1]}x{rgb.shape[0]} to {width}x{height}")
    import cv2  # 0.1 s to import, and only converters shrink

    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, *rgb.shape[2:])
