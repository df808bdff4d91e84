"""What a charge is made of: names and types of its arrays, its cameras, photos to compare with, where to start."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Array = np.ndarray
VERSION = 1
FILE = "manifest.json"
GEOMETRY = ("xyz", "radius", "alpha", "sh")
"""Arrays that a background, which does not change, has once for all frames."""
ARRAYS = (*GEOMETRY, "src_rgb", "src_logit", "src_id", "branch")
DTYPES: dict[str, tuple[str, ...]] = {
    "xyz": ("<f4", "<u2"), "radius": ("<f2", "<f4"), "alpha": ("<f2", "<f4"), "sh": ("<f2", "<f4"),
    "src_rgb": ("|u1", "<f4"), "src_logit": ("<f2", "<f4"), "src_id": ("<u2",), "branch": ("|u1",),
}  # fmt: skip
"""What an array may be stored as; the first is the default."""


@dataclass(frozen=True, eq=False)
class ChargedView:
    """A camera of the recording, with the run's correction."""

    name: str
    K: Float[Array, "3 3"] | Float[Array, "f 3 3"]
    """Pixels of the whole photo; one, or one for each frame. `camera` chooses."""
    width: int
    height: int
    w2c: Float[Array, "4 4"] | Float[Array, "f 4 4"]
    """World to OpenCV camera; one, or one for each frame."""
    train: bool
    """Whether it was trained on; only such views are stored as sources of colour."""

    def camera(self, frame: int) -> tuple[Float[Array, "3 3"], Float[Array, "4 4"]]:
        """(K, w2c) at a frame."""
        K, w2c = (each if each.ndim == 2 else each[frame] for each in (self.K, self.w2c))
        return K, w2c

    def centre(self, frame: int) -> Float[Array, "3"]:
        """Camera centre at a frame, world."""
        _, w2c = self.camera(frame)
        return -w2c[:3, :3].T @ w2c[:3, 3]


@dataclass(frozen=True, eq=False)
class EvalPhoto:
    """A photo that renderings are compared with, stored in the charge; paths relative to its folder."""

    view: int
    frame: int
    image: str
    """PNG, 8-bit sRGB, whole and undistorted."""
    mask: str | None
    """PNG, 8-bit grey, 255 is foreground; None without masks."""
    valid: str | None
    """PNG, 8-bit grey, 0 where the undistorted photo shows nothing; None: all of it is valid."""
    box: tuple[int, int, int, int] | None
    """x, y, width, height of the projected bounds, pixels (metrics ``_bbox``)."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a browser begins; world."""

    position: Float[Array, "3"]
    middle: Float[Array, "3"]
    """Point to look at."""
    up: Float[Array, "3"]
    """Unit vector."""


def spread_times(times: Items[float]) -> list[float]:
    """Rising times moved and stretched to run from 0 to 1 over what is chosen (DESIGN); a single one becomes 0."""
    first, last = times[0], times[-1]
    return [(time - first) / (last - first) if len(times) > 1 else 0.0 for time in times]
