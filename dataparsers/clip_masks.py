"""Masks out of clips: of a subject on black by its brightness, or the grey pictures of a clip of masks (r4dv 2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from dataparsers.video_read import Clip

Array = np.ndarray

THRESHOLD = 12
"""R + G + B above which a pixel of a subject on black counts as foreground: codecs leave a little light in black."""
SPECK = 1e-4
"""Share of the picture that a spot must exceed."""
FILLED = 0.98
"""Share of foreground from which on a clip is taken for whole photos, not for a subject on black."""


def without_specks(mask: UInt8[Array, "h w"], speck: float = SPECK) -> UInt8[Array, "h w"]:
    """A mask (0 or 255) without thin lines and small spots, and with its small holes filled.

    Opened with 3x3 pixels; connected spots (8 neighbours), and holes (4 neighbours), of at most ``speck`` of the
    picture go.
    """
    limit = speck * mask.size
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    kept = _without_small(opened, limit, 8)
    return 255 - _without_small(255 - kept, limit, 4)


def _without_small(mask: UInt8[Array, "h w"], limit: float, connectivity: int) -> UInt8[Array, "h w"]:
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    large = np.asarray(found)[:, cv2.CC_STAT_AREA] > limit
    large[0] = False
    return np.where(large, 255, 0).astype(np.uint8)[np.asarray(labels, np.int32)]


def brightness_mask(picture: UInt8[Array, "h w *c"], threshold: int = THRESHOLD) -> UInt8[Array, "h w"]:
    """Where R + G + B, or three times the brightness, exceeds ``threshold``; specks removed; 0 or 255 (r4dv 2.5).

    Args:
        picture: RGB [h, w, 3] or brightness [h, w].
    """
    light = picture.sum(axis=2, dtype=np.uint16) if picture.ndim == 3 else np.uint16(3) * picture
    return without_specks(np.where(light > threshold, 255, 0).astype(np.uint8))


@dataclass(frozen=True)
class ClipMasks:
    """The masks that a clip shows."""

    clip: Clip
    threshold: int | None
    """Three times the brightness that is not black any more; None: the clip is of masks, grey in its first channel."""

    def read(self, frame: int) -> UInt8[Array, "h w"]:
        """The mask of a frame on the clip's canvas, 255 is foreground.

        Raises:
            DataError: see `Clip.read`.
        """
        if self.threshold is None:
            return np.ascontiguousarray(self.clip.read(frame)[..., 0])
        return brightness_mask(self.clip.read_brightness(frame), self.threshold)
