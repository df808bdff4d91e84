"""``ns-megascenes path``: camera paths for ``ns-render camera-path`` and the viewer (spec megascenes 7, 8.3)."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import tyro

from core_ns.errors import DataError
from megascenes_ns import paths
from megascenes_ns.path_file import MOST_FRAMES, CameraPath, write_path
from megascenes_ns.paths import Kind


@dataclass
class PathOptions:
    """Which path. Lengths are in units of the reference's 20 % depth quantile."""

    kind: tyro.conf.Positional[Kind] = "orbit"
    """orbit: an arc about the scene. dolly: straight ahead. spiral: the original's, without turning. orbit-legacy: the
    original's 19 cameras to the number."""
    frames: Optional[int] = None
    """Pictures; 19 for orbit, 20 for spiral and dolly. orbit-legacy has its own."""
    degrees: Optional[float] = None
    """orbit: from the middle to either end; 27."""
    pivot: Optional[float] = None
    """orbit: depth of the point to turn about; dolly with --zoom: of what keeps its size. 2.2."""
    tilt: Optional[float] = None
    """orbit: raise the cameras by this angle; they look down on the point. 0."""
    distance: Optional[float] = None
    """dolly: how far ahead; negative: back. 0.6."""
    zoom: bool = False
    """dolly: widen the lens on the way so that what stands at the pivot keeps its size."""
    size: Optional[float] = None
    """spiral: multiplies its radii; 1 is the original's."""
    turns: Optional[float] = None
    """spiral: rounds; 1."""
    swing: bool = False
    """Go back again the same way, so that a film repeats without a jump; not for spiral."""

    def lay(self, fov: float, width: int, height: int, fps: float = 10.0) -> CameraPath:
        """Lay it for pictures of a size, with a vertical field of view in degrees and so many a second.

        Raises:
            DataError: options that do not belong to this kind of path, or that no path has.
        """
        self._refuse_foreign()
        count = self.frames
        if count is not None and not 2 <= count <= MOST_FRAMES:
            raise DataError("options", "--frames", f"is {count}.", f"Give 2 to {MOST_FRAMES}.")
        pivot = paths.PIVOT if self.pivot is None else self.pivot
        try:
            if self.kind == "orbit":
                degrees = paths.DEGREES if self.degrees is None else self.degrees
                c2w = paths.orbit(count or 19, degrees, pivot, self.tilt or 0.0)
            elif self.kind == "orbit-legacy":
                c2w = paths.orbit_legacy()
            elif self.kind == "spiral":
                size, turns = (1.0 if value is None else value for value in (self.size, self.turns))
                c2w = paths.spiral(count or 20, size, turns)
            else:
                c2w = paths.dolly(count or 20, 0.6 if self.distance is None else self.distance)
            angles = paths.dolly_zoom_fov(c2w, fov, pivot) if self.zoom else np.full(len(c2w), fov)
        except ValueError as error:
            raise DataError("options", self.kind, f"{error}.", "Correct the options.") from error
        if self.swing:
            c2w, angles = (np.concatenate([each, each[-2:0:-1]]) for each in (c2w, angles))
        closed = self.swing or (self.kind == "spiral" and float(self.turns or 1.0).is_integer())
        return CameraPath(c2w, angles, width, height, fps, closed)

    def _refuse_foreign(self) -> None:
        """An option of another kind of path would be passed over in silence."""
        own = {
            "orbit": {"frames", "degrees", "pivot", "tilt", "swing"},
            "orbit-legacy": {"swing"},
            "spiral": {"frames", "size", "turns"},
            "dolly": {"frames", "distance", "zoom", "swing"} | ({"pivot"} if self.zoom else set()),
        }[self.kind]
        for name in ("frames", "degrees", "pivot", "tilt", "distance", "zoom", "size", "turns", "swing"):
            if getattr(self, name) not in (None, False) and name not in own:
                takes = ", ".join(f"--{each}" for each in sorted(own))
                raise DataError("options", f"--{name}", f"is no option of {self.kind}.", f"It takes {takes}.")


@dataclass
class PathCommand:
    """Lay a camera path about a photo, for ns-render camera-path and the viewer's render tab."""

    out: Path
    """Camera path to write, a .json file."""
    path: tyro.conf.OmitArgPrefixes[PathOptions]
    """Which path."""
    photo: Optional[Path] = None
    """The reference: aspect and lens are its. Without it they are --width, --height and --fov."""
    fov: str = "auto"
    """Lens of the pictures. auto: the photo's EXIF data, else 55 degrees; 60 or 60h: horizontal; 75d: diagonal;
    legacy80: the original demo's."""
    width: Optional[int] = None
    """Pixels; by default the longest side is 256, the networks' size."""
    height: Optional[int] = None
    """Pixels."""
    fps: float = 10.0
    """Pictures per second."""

    def main(self) -> int:
        """Lay, write, print what to type next.

        Raises:
            DataError: options that cannot be meant; nothing is written.
        """
        from megascenes_ns.paths import vertical_fov
        from megascenes_ns.photo import exif_of, focal_length, parse_fov

        if self.out.suffix.lower() != ".json" or self.out.is_dir():
            raise DataError(self.out, "--out", "is no .json file.", "Name it like path.json.")
        if not 0 < self.fps < 1e4:
            raise DataError("options", "--fps", f"is {self.fps}.", "Give a number above 0.")
        width, height = self._size()
        exif = None if self.photo is None else exif_of(self.photo)[1]
        focal, lens = focal_length(width, height, parse_fov(self.fov), exif)
        laid = self.path.lay(vertical_fov(focal, height), width, height, self.fps)
        write_path(self.out, laid)
        seconds = len(laid.fov) / self.fps
        horizontal = math.degrees(2 * math.atan(0.5 * width / focal))
        print(f"{len(laid.fov)} pictures of {width}x{height}, {seconds:.4g} s; {horizontal:.1f} degrees wide ({lens})")
        print(f"Written: {self.out}")
        film = shlex.quote(str(self.out.with_suffix(".mp4")))
        print(
            f"Render: ns-render camera-path --load-config RUN/config.yml --camera-path-filename "
            f"{shlex.quote(str(self.out))} --output-path {film}"
        )
        return 0

    def _size(self) -> tuple[int, int]:
        """(width, height): what was given; the rest from the photo's aspect, or a square."""
        from core_ns.images import image_size
        from megascenes_ns.photo import exif_of
        from megascenes_ns.prepare import fitted_size

        for name, value in (("--width", self.width), ("--height", self.height)):
            if value is not None and not 8 <= value <= 8192:
                raise DataError("options", name, f"is {value}.", "Give 8 to 8192 pixels.")
        if self.width is not None and self.height is not None:
            return self.width, self.height
        aspect = (256, 256)
        if self.photo is not None:
            size = image_size(self.photo)
            aspect = fitted_size(*(size[::-1] if exif_of(self.photo)[0] >= 5 else size))
        if self.width is not None:
            return self.width, max(round(self.width * aspect[1] / aspect[0]), 1)
        if self.height is not None:
            return max(round(self.height * aspect[0] / aspect[1]), 1), self.height
        return aspect
