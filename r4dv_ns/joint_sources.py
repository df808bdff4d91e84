"""The same photos as the subject's colours need them and as the background's do (spec r4dv 4.9).

The subject takes its colours from photos cut and multiplied by their masks. The background takes them from whole photos
of the same moment, so that its shadows move; where the subject stands in a photo, its camera's clean plate is put, or
the photo counts as showing nothing there. Both ways go through `SourceBank`, so no held-out view can be had from here.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from dataparsers.easymocap_plates import Plates
from dataparsers.easymocap_sequence import Sequence
from r4dv_ns.appearance import Source
from r4dv_ns.frame_cache import FrameCache
from r4dv_ns.sources import Crop, Rectangle, SourceBank, crop_rectangle, unit_floats

Array = np.ndarray
FAINT = 25
"""Mask value (of 255) above which a pixel may show the subject."""
DILATION = 0.01
"""Share of a photo's longer side by which masks are widened where nothing is said."""


def widened(mask: UInt8[Array, "h w"], pixels: int) -> Bool[Array, "h w"]:
    """Where the subject may be: the mask, and ``pixels`` more in all eight directions."""
    kernel = np.ones((2 * pixels + 1, 1), np.uint8)
    found = (mask > FAINT).astype(np.uint8)
    return cv2.dilate(cv2.dilate(found, kernel), kernel.T).astype(bool)


class JointSources(SourceBank):
    """Sources for both branches; `get` is the subject's.

    Args:
        cache: of whole photos.
        plates: those there are.
        subject: box of the subject, files' world: its photos are cut to the box's projection.
        pad: pixels kept around that.
        dilation: pixels by which masks are widened; None: `DILATION` of the longer side.
    """

    def __init__(
        self,
        sequence: Sequence,
        cache: FrameCache[tuple[int, int], Crop],
        plates: Plates,
        subject: Float[Array, "2 3"],
        *,
        pad: int = 25,
        dilation: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(sequence, cache, None, pad=pad, device=device)
        self.plates, self.subject, self.dilation = plates, subject, dilation
        self.still = bool(self.views) and all(view in plates for view in self.views)
        """Whether every training view has a plate."""

    # ------------------------------------------------------------------ the subject

    def subject_rectangle(self, frame: int, view: int) -> Rectangle:
        """Where a photo can show the subject. Raises as `SourceBank.get`."""
        self._check(view)
        return crop_rectangle(self.sequence, view, frame, self.subject, self.pad)

    def subject_crop(self, frame: int, view: int) -> Crop:
        """The part of a photo that can show the subject; shared, read only. Raises as `SourceBank.get`."""
        return self.crop(frame, view).cut(self.subject_rectangle(frame, view))

    def _source(self, frame: int, view: int) -> Source:
        crop = self.subject_crop(frame, view)
        image = unit_floats(crop.image.transpose(2, 0, 1), self.device)
        if crop.mask is not None:
            image = image * unit_floats(crop.mask, self.device)
        return self._as_source(frame, view, image, crop.valid, (crop.x, crop.y))

    # ------------------------------------------------------------------ the background

    def pixels(self, view: int) -> int:
        """By how many pixels a view's masks are widened."""
        if self.dilation is not None:
            return self.dilation
        camera = self.sequence.views[view]
        return max(2, round(DILATION * max(camera.width, camera.height)))

    def behind(self, frame: int, view: int) -> Bool[Array, "h w"]:
        """Pixels of a photo that show the background. Raises as `SourceBank.get`."""
        crop = self.crop(frame, view)
        valid = np.ones(crop.image.shape[:2], bool) if crop.valid is None else crop.valid
        return valid if crop.mask is None else valid & ~widened(crop.mask, self.pixels(view))

    def room(self, frame: int, views: Items[int]) -> list[Source]:
        """Whole photos of one moment without the subject, in the order of ``views``; raises as `SourceBank.get`."""
        for view in views:
            self._check(view)
        self.prefetch((frame, view) for view in views)
        return [self._without_subject(frame, view) for view in views]

    def _without_subject(self, frame: int, view: int) -> Source:
        crop, behind = self.crop(frame, view), self.behind(frame, view)
        image = crop.image
        if view in self.plates:
            image = np.where(behind[..., None], image, self.plates.get(view))
            behind = crop.valid
        return self._as_source(frame, view, unit_floats(image.transpose(2, 0, 1), self.device), behind, (0, 0))

    def plate(self, view: int) -> Crop:
        """A training view's clean plate as a photo without mask.

        Raises:
            ValueError: a view that is not a training view.
            KeyError: it has no plate.
            DataError: the plate does not decode.
        """
        self._check(view)
        image = self.plates.get(view)
        return Crop(image, None, self.plates.valid(view), 0, 0, image.shape[1::-1])

    def plate_sources(self, views: Items[int]) -> list[Source]:
        """Clean plates as sources; raises as `plate`."""
        found = []
        for view in views:
            plate = self.plate(view)
            image = unit_floats(plate.image.transpose(2, 0, 1), self.device)
            found.append(self._as_source(0, view, image, plate.valid, (0, 0)))
        return found

    def _as_source(
        self, frame: int, view: int, image: torch.Tensor, valid: Array | None, corner: tuple[int, int]
    ) -> Source:
        """A photo with its camera, whose first pixel is ``corner`` of the delivered photo."""
        K, w2c = self.camera(frame, view)
        K[:2, 2] -= corner
        small = (torch.from_numpy(matrix).to(torch.float32).to(self.device) for matrix in (K, w2c))
        seen = None if valid is None or valid.all() else torch.from_numpy(np.array(valid)).to(self.device)
        return Source(image, *small, valid=seen, view=view)
