"""Points that the background starts from, made once and kept in ``bkgd/boost/000000.ply`` (spec r4dv 3.4).

The best start is a depth map (``ns-r4dv bg-init --load-config NERFACTO``) or a cloud of structure from motion. Without
either: depths on which the photos of neighbouring cameras agree, or plainly points along the photos' rays.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import numpy as np
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.atomic import write_json
from core_ns.errors import DataError
from dataparsers.easymocap_plates import PLATES, Plates
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import PointCloud, read_ply, write_ply
from r4dv_ns.background_depth import outside

Array = np.ndarray
POINTS = Path(PLATES) / "boost" / "000000.ply"
"""Where the points lie, below the recording or the folder of the hulls."""
RECORD = Path("r4dv") / "background.json"
"""Says how points were made that may be made again."""
METHOD = 2
"""Counts ways of finding points: what an older one found is found again."""
NEAR, FAR = 0.25, 10.0
"""Distances from a camera between which points are sought, in distances of the camera from the middle of the box."""


@dataclass
class BackgroundOptions:
    """Points that the background starts from. Lengths are in world units."""

    points: int = 524288
    """Most points; more are thinned at random."""
    start: Literal["photos", "frusta"] = "photos"
    """photos: depths at which neighbouring cameras' photos agree. frusta: random depths along the photos' rays."""
    nearest: Optional[float] = None
    """Smallest distance from the cameras. None: a quarter of that to the subject."""
    farthest: Optional[float] = None
    """Largest. None: ten times that to the subject."""
    depths: Optional[int] = None
    """Depths that are compared, evenly spaced in 1 / depth. None: a pixel of the pictures apart, 256 at most."""
    seed: int = 0
    """Of what is random."""

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            DataError: naming the option.
        """
        wrong = [(name, "1 or more") for name in ("points",) if getattr(self, name) < 1]
        wrong += [("depths", "2 or more")] if self.depths is not None and self.depths < 2 else []
        wrong += [("seed", "0 or more")] if self.seed < 0 else []
        for name in ("nearest", "farthest"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                wrong.append((name, "a positive number"))
        if self.nearest is not None and self.farthest is not None and self.nearest >= self.farthest:
            wrong.append(("nearest", "less than farthest"))
        for name, remedy in wrong:
            raise DataError("background options", name, f"is {getattr(self, name)}.", f"Give {remedy}.")

    def range(self, sequence: Sequence, view: int) -> tuple[float, float]:
        """(near, far) of a camera."""
        assert sequence.bounds is not None
        distance = float(np.linalg.norm(sequence.views[view].centre(0) - sequence.bounds.mean(axis=0)))
        return self.nearest or NEAR * distance, self.farthest or FAR * distance


def frusta_points(sequence: Sequence, options: BackgroundOptions) -> PointCloud:
    """Points along random pixels' rays of all training cameras, evenly spread in 1 / depth, outside the subject's box.

    Needs ``sequence.bounds``. World of the files; grey, since nothing is looked at.

    Raises:
        DataError: all rays end in the box.
    """
    assert sequence.bounds is not None
    rng = np.random.default_rng([options.seed, 31])
    share = -(-options.points // len(sequence.train_views))
    clouds = []
    for view in sequence.train_views:
        K, w2c = sequence.camera(view, 0)
        near, far = options.range(sequence, view)
        size = sequence.views[view].width, sequence.views[view].height
        found = np.zeros((0, 3))
        for _ in range(8):  # what falls into the box is drawn again
            pixels = np.column_stack([rng.random((share, 2)) * size, np.ones(share)])
            inverse = rng.uniform(1 / far, 1 / near, share)
            camera = pixels @ np.linalg.inv(K).T / inverse[:, None]
            points = (camera - w2c[:3, 3]) @ w2c[:3, :3]
            found = np.concatenate([found, points[outside(points, sequence.bounds)]])[:share]
            if len(found) == share:
                break
        clouds.append(found)
    points = np.concatenate(clouds)
    if not len(points):
        raise _nothing(sequence, "every ray ends in the subject's box")
    return PointCloud(thinned(points, options), np.full((min(len(points), options.points), 3), 128, np.uint8))


def thinned(points: Float[Array, "n k"], options: BackgroundOptions) -> Float[Array, "m k"]:
    """At most ``options.points`` rows, chosen at random, in their old order."""
    if len(points) <= options.points:
        return points
    rng = np.random.default_rng([options.seed, 32])
    return points[np.sort(rng.choice(len(points), options.points, replace=False))]


def fitting(
    cloud: PointCloud, options: BackgroundOptions, source: str | Path, box: Float[Array, "2 3"] | None = None
) -> PointCloud:
    """A cloud, thinned; the points of clouds without colours are grey.

    Args:
        cloud: world of the files.
        source: what errors name.
        box: of the subject, where the cloud may hold points of it: they are left out.

    Raises:
        DataError: nothing is left.
    """
    xyz = np.asarray(cloud.xyz, dtype=np.float64)
    keep = np.ones(len(xyz), bool) if box is None else outside(xyz, box)
    if not keep.any():
        where = "" if box is None else " outside the subject's box"
        remedy = "Give a cloud of the background, in the world of the recording's cameras."
        raise DataError(source, "points", f"hold nothing{where}.", remedy)
    rgb = np.full((len(xyz), 3), 128, np.uint8) if cloud.rgb is None else cloud.rgb
    rows = thinned(np.flatnonzero(keep)[:, None], options)[:, 0]
    return PointCloud(xyz[rows], rgb[rows])


def write_background(folder: Path, cloud: PointCloud, how: str, fingerprint: str = "") -> Path:
    """Write the points and how they came about; returns the PLY.

    Args:
        fingerprint: of what they were made from; "" for points that are never made again.
    """
    write_ply(folder / POINTS, cloud.xyz, cloud.rgb)
    write_json(folder / RECORD, {"version": 1, "how": how, "points": len(cloud.xyz), "fingerprint": fingerprint})
    return folder / POINTS


def ensure_background(sequence: Sequence, folder: Path, options: BackgroundOptions, plates: Plates) -> PointCloud:
    """The points of ``folder``, else of the recording; made now where there are none or what they came from changed.

    Args:
        folder: of the hulls; receives ``bkgd/boost/000000.ply`` and ``r4dv/background.json``.
        plates: those in use.

    Returns:
        World of the files, at most ``options.points``.

    Raises:
        DataError: options out of range, a damaged file, nothing found, or a folder that cannot be written.
    """
    options.check()
    wanted = _fingerprint(sequence, options, plates)
    for place in dict.fromkeys((folder, sequence.root)):
        if (place / POINTS).is_file() and _fingerprint_of(place) in ("", wanted):
            return fitting(read_ply(place / POINTS), options, place / POINTS)
    CONSOLE.print("Looking for the background: no depth maps or clouds are there (ns-r4dv bg-init).")
    if options.start == "photos":
        from r4dv_ns.background_photos import swept_points

        cloud = swept_points(sequence, options, plates)
    else:
        cloud = frusta_points(sequence, options)
    CONSOLE.print(f"Background: {len(cloud.xyz):,} points, written to {folder / POINTS}", soft_wrap=True)
    try:
        write_background(folder, cloud, options.start, wanted)
    except OSError as error:
        remedy = "Free some space, or name a folder that can be written (--pipeline.datamanager.points-dir)."
        raise DataError(folder, "background points", f"cannot be written ({error}).", remedy) from error
    return fitting(read_ply(folder / POINTS), options, folder / POINTS)


def _fingerprint(sequence: Sequence, options: BackgroundOptions, plates: Plates) -> str:
    """Of the way, cameras, box, options and plates (names, sizes and times of change)."""
    from r4dv_ns.hull_plan import cameras_hash

    files = [[view, file.name, file.stat().st_size, file.stat().st_mtime_ns] for view, file in plates.files.items()]
    bounds = None if sequence.bounds is None else sequence.bounds.tolist()
    parts = [METHOD, cameras_hash(sequence), bounds, vars(options), sorted(files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fingerprint_of(place: Path) -> str:
    """What a folder's points were made from; "" for points that someone put there."""
    file = place / RECORD
    if not file.is_file():
        return ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(file, "", f"cannot be read ({error!r}).", f"Delete it, and {POINTS} beside it.") from error
    return str(found)


def _nothing(sequence: Sequence, problem: str) -> DataError:
    remedy = "Give points of the background: ns-r4dv bg-init with --cloud or --load-config."
    return DataError(sequence.root, "background", f"cannot be found: {problem}.", remedy)
