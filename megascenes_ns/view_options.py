"""What the viewer and the ``ns-*`` tools draw pictures from: reference, depth, warp and cache. Imports nothing heavy.

How a picture is *sampled* is `model_config.SamplingOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from nerfstudio.configs.base_config import PrintableConfig

from core_ns.errors import DataError

PREVIEW_BELOW = 200
"""A browser's pictures with a longest side below this are the warp (spec megascenes 8.3), at pictures of 256; in
proportion at others."""
FULL_PICTURE = 256


@dataclass
class ViewOptions(PrintableConfig):
    """What ``ns-viewer``, ``ns-render`` and ``ns-megascenes render`` draw; the panel overrides it in that browser."""

    reference_image: Optional[Path] = None
    """Photo that the views are made from. None: the one of the data (the photo itself, or the clicked pair's)."""
    fov: str = "auto"
    """Lens of that photo. auto: from its EXIF data, else 55 degrees; 60 or 60h: horizontal degrees; 75d: diagonal;
    legacy80: a focal length of 80 pixels at 256, as the original's demo."""
    depth: str = ""
    """Depth of that photo: a .npy file of its size, a COLMAP depth map (.bin), a folder with a transformers
    depth-estimation model, or plane (plane:2.5) for a wall ahead. Empty: PHOTO.npy beside the photo."""
    scale: float = 1.0
    """What camera translations are multiplied by; their unit is the distance that a fifth of the photo lies nearer
    than."""
    samples_per_pixel: int = 4
    """Rays per pixel of the warp; 4 darkens the borders of holes as the original's renderer does."""
    warp_backend: Literal["auto", "cast", "torch"] = "auto"
    """What draws the warp: the ray caster, or the batched torch rasteriser."""
    warp_low: Literal["original", "area_from_256"] = "original"
    """How the warp comes to the latents' size: resized by itself as in the original, or averaged from the large one."""
    cache_pictures: int = 256
    """Finished pictures kept in memory."""
    cache_folder: Optional[Path] = None
    """Keep finished pictures in this folder too, so that another ns-render finds them."""

    def check(self) -> None:
        """Refuse numbers that cannot be meant.

        Raises:
            DataError: one of them.
        """
        from megascenes_ns.photo import parse_fov

        def refuse(field: str, problem: str, remedy: str) -> None:
            raise DataError("config", f"pipeline.model.view.{field}", problem, remedy)

        if not 0.0 < self.scale < float("inf"):
            refuse("scale", f"is {self.scale}.", "Give a number above 0.")
        if self.samples_per_pixel not in (1, 4):
            refuse("samples-per-pixel", f"is {self.samples_per_pixel}.", "Give 1 or 4.")
        if self.cache_pictures < 1:
            refuse("cache-pictures", f"is {self.cache_pictures}.", "Give 1 or more.")
        if self.reference_image is not None and not self.reference_image.is_file():
            raise DataError(
                self.reference_image, "", "is not a file.", "Correct --pipeline.model.view.reference-image."
            )
        parse_fov(self.fov)


def preview_below(picture: int) -> float:
    """Longest side in pixels below which a browser's picture is the warp, for networks of a picture's side."""
    return PREVIEW_BELOW / FULL_PICTURE * picture
