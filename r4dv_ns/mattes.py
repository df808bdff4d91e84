"""Ways to masks: brightness of a subject on black, clips of masks, difference to a clean plate, a matting network
(spec r4dv 2.5, 8.7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from core_ns.images import image_size, read_image
from dataparsers.clip_masks import THRESHOLD, brightness_mask, without_specks
from dataparsers.easymocap_files import SUFFIXES
from dataparsers.easymocap_lens import resized
from r4dv_ns.clip_extract import Convert

Array = np.ndarray

SHADOW = 0.5
"""Share of the plate's light down to which an unchanged hue is a shadow."""
HIGHLIGHT = 1.25
"""Share above which it is a lighter thing, not the plate."""
LEAST_DIFFERENCE = 10.0
"""8-bit steps that never count as a difference."""

_NOISE = 5.0 * 1.4826
_DARK = 12.0
_SPECK = 5e-4
"""Of the picture: what a difference must exceed. Plates differ in more spots than black does."""


@dataclass(frozen=True)
class Brightness:
    """What is not black (r4dv 2.5)."""

    threshold: int = THRESHOLD
    in_order: bool = False
    by_brightness: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {"method": "threshold", "threshold": self.threshold}

    def check(self, name: str, size: tuple[int, int]) -> list[Path]:
        """Any photo serves."""
        if not 0 <= self.threshold < 765:
            raise DataError("options", "--threshold", f"is {self.threshold}.", "Give a sum of three colours, as 12.")
        return []

    def start(self, name: str) -> Convert:
        """See `brightness_mask`."""
        return lambda picture: brightness_mask(picture, self.threshold)


@dataclass(frozen=True)
class FirstChannel:
    """Clips of masks, grey kept as it is."""

    in_order: bool = False
    by_brightness: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {"method": "single-channel"}

    def check(self, name: str, size: tuple[int, int]) -> list[Path]:
        """Any picture serves."""
        return []

    def start(self, name: str) -> Convert:
        """The first channel."""
        return lambda picture: np.ascontiguousarray(picture[..., 0])


@dataclass(frozen=True)
class PlateDifference:
    """What differs from a clean plate of the same camera, ``FOLDER/CAM.jpg``."""

    folder: Path
    threshold: float | None = None
    """8-bit steps; None: from each picture's noise."""
    in_order: bool = False
    by_brightness: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {"method": "plate", "threshold": self.threshold}

    def check(self, name: str, size: tuple[int, int]) -> list[Path]:
        """The plate's file.

        Raises:
            DataError: there is none, or of another shape than the photos.
        """
        if self.threshold is not None and not 0 < self.threshold <= 255:
            raise DataError("options", "--threshold", f"is {self.threshold}.", "Give 8-bit steps, such as 20.")
        file = self._file(name)
        width, height = image_size(file)
        if abs(width * size[1] - height * size[0]) > width + height + size[0] + size[1]:
            problem = f"is {width}x{height}, the camera's photos {size[0]}x{size[1]}."
            raise DataError(file, "size", problem, "Give a plate that the camera took at the same place.")
        return [file]

    def start(self, name: str) -> Convert:
        """See `plate_mask`."""
        whole = read_image(self._file(name))[0]
        plates: dict[tuple[int, int], UInt8[Array, "h w 3"]] = {}

        def convert(picture: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w"]:
            height, width = picture.shape[:2]
            if (width, height) not in plates:
                plates[width, height] = resized(whole, width, height)
            return plate_mask(picture, plates[width, height], self.threshold)

        return convert

    def _file(self, name: str) -> Path:
        return plates_of(self.folder, [name])[name]


def plates_of(folder: Path, names: list[str]) -> Mapping[str, Path]:
    """The clean plate of each camera, ``FOLDER/CAM.jpg``.

    Raises:
        DataError: one is missing.
    """
    found = {}
    for name in names:
        files = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            remedy = "Photograph the empty scene, or make plates with ns-r4dv process plates."
            raise DataError(files[0], f"camera {name}", "has no clean plate.", remedy)
        found[name] = file
    return found


def plate_mask(
    picture: UInt8[Array, "h w 3"], plate: UInt8[Array, "h w 3"], threshold: float | None = None
) -> UInt8[Array, "h w"]:
    """Where a photo differs from the empty scene, apart from shadows: 0 or 255.

    The exposure is matched first (median ratio of each channel: most of a photo is background). With P the plate and I
    the photo, rho = <I, P> / <P, P> is how much lighter a pixel is, |I - rho P| how much its hue differs: shadows
    change the first alone. A pixel is foreground where the hue differs, or where it is darker than `SHADOW` or lighter
    than `HIGHLIGHT` times the plate; areas count only with a clear difference in them (twice the threshold).

    Args:
        threshold: 8-bit steps of a difference; None: five standard deviations of the picture's noise, 10 at least.
    """
    image, clean = (cv2.GaussianBlur(each.astype(np.float32), (0, 0), 0.8) for each in (picture, plate))
    clean = clean * _exposure(image, clean)
    power = np.maximum((clean * clean).sum(axis=2), 3 * _DARK**2)
    rho = (image * clean).sum(axis=2) / power
    difference = np.abs(image - clean).max(axis=2)
    hue = np.abs(image - rho[..., None] * clean).max(axis=2)
    # In the dark there is no hue to tell, and any difference counts.
    hue = np.where(clean.max(axis=2) < _DARK, difference, hue)
    limit = threshold or max(LEAST_DIFFERENCE, _NOISE * float(np.median(np.abs(hue - np.median(hue)))))
    other = np.where((rho < SHADOW) | (rho > HIGHLIGHT), difference, hue)
    weak = cv2.morphologyEx((other > limit).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    # Smoothing spreads a difference: the outline is where it has half of what it reaches nearby.
    window = np.ones((5, 5), np.uint8)
    rim = weak - cv2.erode(weak, window)
    weak[(rim > 0) & (other < 0.5 * cv2.dilate(other, window))] = 0
    labels = np.asarray(cv2.connectedComponents(weak, connectivity=8)[1], np.int64)
    strong = np.zeros(int(labels.max()) + 1, bool)
    strong[labels[(other > 2 * limit) & (weak > 0)]] = True
    strong[0] = False
    return without_specks(np.where(strong, 255, 0).astype(np.uint8)[labels], _SPECK)


def _exposure(image: Float[Array, "h w 3"], clean: Float[Array, "h w 3"]) -> Float[Array, "3"]:
    """Median ratio of each channel where there is light, at most a factor of 1.5."""
    gains = np.ones(3, np.float32)
    for channel in range(3):
        lit = (clean[..., channel] > 2 * _DARK) & (image[..., channel] < 250)
        if lit.any():
            gains[channel] = np.median(image[..., channel][lit] / clean[..., channel][lit])
    return np.clip(gains, 1 / 1.5, 1.5)
