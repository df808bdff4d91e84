"""What ``ns-r4dv path`` can be asked for (spec r4dv 6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Optional, Tuple

import numpy as np

from core_ns.errors import DataError

MOST_POSES = 50_000
"""A quarter of an hour at 60 pictures a second."""

Kind = Literal["orbit", "spiral", "cubic", "linear", "sector", "yml"]


@dataclass
class PathOptions:
    """What kind of path, how long, when, and how it is seen. Lengths and places are in the units and the world of the
    recording's files."""

    type: Kind = "orbit"
    """orbit: a circle about the point that the cameras look at. spiral: two windings in front of the subject. cubic,
    linear: along the cameras. sector: the arc between the outermost cameras. yml: along the cameras of --file."""
    n: Optional[int] = None
    """Pictures; 300, or as many as --file has."""
    time: Optional[Tuple[float, ...]] = None
    """Times between 0 (first frame) and 1 (last), spread evenly over the path: 0 1 plays once (the default), 0 1 0
    forwards and backwards, a single number stands still."""
    play_fps: Optional[float] = None
    """Show the recording's frames at this rate, over and over, instead of once over the path; --time is then the first
    and the last time to play."""
    fps: Optional[float] = None
    """Pictures per second; 60, or as --file says."""
    size: Optional[Tuple[int, int]] = None
    """Width and height of the pictures; 1920 1080, or as --file says."""
    focal_ratio: float = 1.0
    """Multiplies the focal length: 0.65 is wide, 1.2 near."""
    fov: Optional[float] = None
    """Vertical field of view in degrees. By default such that a picture shows what the photos show."""
    views: Tuple[str, ...] = ()
    """Names of the training cameras to go by, in this order. By default all, sorted."""
    order: Literal["name", "azimuth"] = "name"
    """cubic, linear: visit the cameras as sorted or as listed (name), or in their order round the subject (azimuth)."""
    spline: Literal["bspline", "interpolating", "linear"] = "bspline"
    """cubic, and yml with --n: pass near the cameras and smoothest (bspline), through them (interpolating), or
    straight."""
    loop: bool = False
    """cubic, linear, yml: lead back to the first camera."""
    pace: Literal["keys", "even"] = "keys"
    """cubic, linear, yml: as much time from each camera to the next (keys), or constant speed (even)."""
    swing: bool = False
    """sector, cubic, linear: go there and back again, slowly at the ends."""
    smoothing: float = 0.0
    """Seconds over which the finished path is averaged (standard deviation of a Gaussian)."""
    attention: Optional[Tuple[float, float, float]] = None
    """Point to look at and to turn about. By default the point nearest to all cameras' axes."""
    up: Optional[Tuple[float, float, float]] = None
    """Up direction. By default that of the pictures."""
    radius: Optional[float] = None
    """orbit, sector: distance from the attention point. By default the cameras' root mean square."""
    radius_ratio: float = 1.0
    """orbit, sector, spiral: multiplies the radius."""
    height: float = 0.0
    """orbit, sector: raise the path by this much."""
    turns: Optional[float] = None
    """Rounds of an orbit (1; negative: clockwise) or windings of a spiral (2)."""
    phase: float = 0.0
    """orbit: degrees from the first camera's side at which to begin."""
    around: Optional[str] = None
    """spiral: use only the cameras within 60 degrees of this one. By default all, or where they stand on all sides
    those about the first."""
    percentile: float = 70.0
    """spiral: of the cameras' distances from their mean, which is the radius."""
    rate: float = 0.5
    """spiral: movements forwards and backwards per winding."""
    xyz_ratio: Tuple[float, float, float] = (1.0, 1.0, 0.25)
    """spiral: multiplies the radius to the right, down and forwards."""
    xyz_offset: Tuple[float, float, float] = (0.0, 0.0, 0.0)
    """spiral: shift to the right, down and forwards."""
    focal_offset: float = 0.0
    """spiral: look at a point this much beyond the attention point."""
    file: Optional[Path] = None
    """yml: folder with intri.yml and extri.yml, whose cameras may have times t_NAME; or a camera path JSON."""
    original: bool = False
    """The original's formulas where they are faulty, to compare with: an orbit with distances from the world's origin
    and z up, radii of the spiral along the world's axes, its own attention point."""


def check_path(options: PathOptions, source: Path) -> None:
    """Refuse numbers that no path can have.

    Raises:
        DataError: naming ``source`` and the option.
    """

    def refuse(name: str, remedy: str) -> NoReturn:
        place = f"--{name.replace('_', '-')}"
        raise DataError(source, place, f"{getattr(options, name)} is out of range.", remedy)

    def finite(*names: str) -> None:
        for name in names:
            value = getattr(options, name)
            if value is not None and not np.isfinite(value).all():
                refuse(name, "Give numbers that are finite.")

    finite("attention", "up", "height", "turns", "phase", "rate", "xyz_ratio", "xyz_offset", "focal_offset")
    if options.n is not None and not 1 <= options.n <= MOST_POSES:
        refuse("n", f"Give 1 to {MOST_POSES} pictures.")
    for name in ("fps", "play_fps"):
        value = getattr(options, name)
        if value is not None and not 1e-3 <= value <= 1000:
            refuse(name, "Give a rate between 0.001 and 1000.")
    if options.size is not None and not all(1 <= side <= 16384 for side in options.size):
        refuse("size", "Give a width and a height of 1 to 16384 pixels.")
    for name in ("focal_ratio", "radius_ratio", "radius"):
        value = getattr(options, name)
        if value is not None and not 0 < value < np.inf:
            refuse(name, "Give a positive number.")
    if options.fov is not None and not 0.1 <= options.fov <= 175:
        refuse("fov", "Give degrees between 0.1 and 175.")
    if not 0 <= options.percentile <= 100:
        refuse("percentile", "Give 0 to 100.")
    if not 0 <= options.smoothing < np.inf:
        refuse("smoothing", "Give seconds, 0 or more.")
    if options.turns == 0:
        refuse("turns", "Give a number of rounds other than 0.")
    if options.up is not None and not np.linalg.norm(options.up) > 0:
        refuse("up", "Give a direction.")
    if (options.file is None) == (options.type == "yml"):
        place, remedy = "--type, --file", "Use --type yml --file FOLDER, or another type without --file."
        raise DataError(source, place, "do not belong together.", remedy)
