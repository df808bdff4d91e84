"""What can be chosen when a run is baked (spec r4dv 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional, Tuple

from core_ns.errors import DataError


@dataclass(frozen=True)
class BakeOptions:
    """Size and precision of a charge."""

    max_sources: Optional[int] = None
    """Photos stored per frame, of cameras far from one another; None: of all training views. 60 are 79 MB a frame of
    262144 points, 16 are 21."""
    sh_degree: int = 3
    """Of the view-dependent colour, 0 to 3: 25 MB a frame of 262144 points at 3, 14 at 2, 6 at 1."""
    xyz: Literal["f32", "u16"] = "f32"
    """Positions in full, or in 65536 steps along each side of the frame's box: half the size."""
    colours: Literal["u8", "f32"] = "u8"
    """u8: colours as bytes, all but positions as 16-bit floats. f32: everything as the run computes it."""
    visibility: bool = True
    """Lower the weight of photos from which something hides the point."""
    pack: bool = False
    """One compressed file a frame, for shipping: smaller, but slower to open."""
    frame_sample: Tuple[Optional[int], ...] = (0, None, 1)
    """Frames to bake, of those the run was trained on: begin, end (exclusive, None for all) and step, or a list."""
    eval_photos: bool = True
    """Store the photos that ns-eval compares with, so that it works without the recording."""
    layers: Optional[int] = None
    """Points blended per pixel, nearest first. None: 12; for a whole scene (r4dv-bg) as many as in the run."""

    def check(self, config_file: Path) -> None:
        """Refuse what no charge can have.

        Raises:
            DataError: naming the option.
        """
        wrong = []
        if self.max_sources is not None and self.max_sources < 1:
            wrong.append(("max-sources", self.max_sources, "Give 1 or more"))
        if not 0 <= self.sh_degree <= 3:
            wrong.append(("sh-degree", self.sh_degree, "Give 0, 1, 2 or 3"))
        if self.layers is not None and self.layers < 1:
            wrong.append(("layers", self.layers, "Give 1 or more"))
        for name, choices in (("xyz", ("f32", "u16")), ("colours", ("u8", "f32"))):
            if getattr(self, name) not in choices:
                wrong.append((name, getattr(self, name), f"Give {' or '.join(choices)}"))
        for name, value, remedy in wrong:
            raise DataError(config_file, f"--{name}", f"is {value}.", f"{remedy}.")
