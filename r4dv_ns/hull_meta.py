"""What is asked and known of a sequence's hulls: the options, and the record ``r4dv/meta.json`` (spec r4dv 3.2)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_json
from core_ns.errors import DataError

VERSION = 1
META = Path("r4dv") / "meta.json"
_AGAIN = "Delete it; it is made again from the masks."


@dataclass
class HullOptions:
    """How point clouds are carved from masks (spec r4dv 3.1, 3.3). Lengths are in world units."""

    voxel: Optional[float] = None
    """Side of a voxel. None: the box diagonal / 400, but not finer than half a pixel where the subject is."""
    vhull_thresh: float = 0.95
    """Share of the views that see a voxel in which it must lie in the mask. Lower it (0.85) for rough masks."""
    count_thresh: Optional[int] = None
    """Fewest views that must see a voxel. None: 60 % of the views that have a mask, 16 at most; never above their
    number."""
    lowest_thresh: float = 0.7
    """An empty hull is tried again with vhull_thresh lowered in steps of 0.05 to this, and count_thresh by one each."""
    search_box: Optional[Tuple[Tuple[float, float, float], Tuple[float, float, float]]] = None
    """Smallest and largest x y z of the space to search. None: the data's bounds if given, else where cameras look."""
    padding: Optional[float] = None
    """Added around the box that the coarse search found. None: four voxels."""
    coarse_thresh_factor: float = 1.0
    """Divides vhull_thresh in the coarse search (values below 1 count as 1: the search must not lose what the fine
    pass would keep)."""
    coarse_count_factor: float = 1.0
    """Divides count_thresh in the coarse search, likewise."""
    intersect_camera_bounds: bool = False
    """Search only inside the boxes of all the cameras' frusta. Saves time with wide search boxes; wrong where a camera
    sees a part of the subject only."""
    outlier_neighbours: int = 5
    """Neighbours whose mean distance decides whether a voxel is an outlier."""
    outlier_sigma: float = 5.0
    """A voxel is dropped when that distance exceeds the mean over all by this many standard deviations; 0: keep all."""
    points: int = 262144
    """Surface points per frame."""
    surface_radius: Optional[float] = None
    """Surface points lie at most this deep below the hull's surface. None: surface_share of the box diagonal."""
    surface_share: float = 13 / 400
    """See surface_radius. The default is the original's 0.065 m for a standing person. Less puts few points where they
    are seen; more lets them find surfaces that lie deep inside the hull."""
    seed: int = 0
    """Of the choice of surface points."""
    workers: int = 2
    """Frames carved at once."""
    max_voxels: int = 1 << 21
    """Voxels held at once by each worker; bounds memory, changes nothing else."""

    def check(self) -> None:
        """Refuse values that no hull can have.

        Raises:
            DataError: naming the option.
        """
        shares = {"vhull_thresh": self.vhull_thresh, "lowest_thresh": self.lowest_thresh}
        lengths = {
            "voxel": self.voxel, "surface_radius": self.surface_radius, "surface_share": self.surface_share,
        }  # fmt: skip
        counts = {
            "count_thresh": self.count_thresh,
            "points": self.points,
            "workers": self.workers,
            "outlier_neighbours": self.outlier_neighbours,
            "max_voxels": self.max_voxels,
        }
        factors = {"coarse_thresh_factor": self.coarse_thresh_factor, "coarse_count_factor": self.coarse_count_factor}
        wrong = [(name, "a number above 0, at most 1") for name, value in shares.items() if not 0 < value <= 1]
        for name, value in {**lengths, **factors}.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                wrong.append((name, "a positive number"))
        wrong += [
            (name, "a positive whole number") for name, value in counts.items() if value is not None and value < 1
        ]
        for name, value in (("padding", self.padding), ("outlier_sigma", self.outlier_sigma)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                wrong.append((name, "a number, 0 or above"))
        if self.search_box is not None:
            box = np.asarray(self.search_box, dtype=np.float64)
            if box.shape != (2, 3) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
                wrong.append(("search_box", "xmin ymin zmin xmax ymax zmax, each minimum the smaller"))
        for name, remedy in wrong:
            raise DataError("hull options", name, f"is {getattr(self, name)}.", f"Give {remedy}.")


@dataclass
class HullMeta:
    """The hulls of the selected frames; written to ``FOLDER/r4dv/meta.json``."""

    folder: Path
    """Holds vhulls/, surfs/ and r4dv/."""
    bounds: Float[np.ndarray, "2 3"]
    """Smallest and largest corner of all frames' hulls (flagged frames left out), one voxel wider; world, float64."""
    voxel: float
    """Side of a voxel, world units."""
    frames: list[dict[str, Any]]
    """For every selected frame: stem, count (hull points), points (surface points), bbox [2, 3], volume, flags (list of
    texts; empty when all is well), thresh and count_thresh in use, hash, sizes (bytes of its two files)."""
    cameras_hash: str = ""
    """Of all training views at all selected frames."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the frames share (see `hull_plan.Plan`): search box, voxel, thresholds, ..."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """Frames of earlier runs that are not selected now. Nothing is read from them but whether their files still hold
    when they are selected again."""

    def points(self, frame: int) -> Path:
        """Surface points of a selected frame: ``surfs/STEM.ply``."""
        return self.surface_file(self.frames[frame]["stem"])

    def hull(self, frame: int) -> Path:
        """All interior voxel centres of a selected frame: ``vhulls/STEM.ply``; absent where points were given."""
        return self.hull_file(self.frames[frame]["stem"])

    def places(self, frame: int) -> Path:
        """Where a selected frame's subject may be: `hull`, or `points` where these were given."""
        return self.hull(frame) if self.hull(frame).is_file() else self.points(frame)

    def surface_file(self, stem: str) -> Path:
        """As `points`, by the frame's name."""
        return self.folder / "surfs" / f"{stem}.ply"

    def hull_file(self, stem: str) -> Path:
        """As `hull`, by the frame's name."""
        return self.folder / "vhulls" / f"{stem}.ply"

    def write(self) -> None:
        """Write meta.json atomically."""
        content = {
            "version": VERSION,
            "bounds": np.asarray(self.bounds, dtype=np.float64).tolist(),
            "voxel": self.voxel,
            "cameras_hash": self.cameras_hash,
            "settings": self.settings,
            "frame_ids": [frame["stem"] for frame in self.frames],
            "frames": self.frames,
            "others": self.others,
        }
        write_json(self.folder / META, content)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: unreadable, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(file, "", f"cannot be read as JSON ({error}).", _AGAIN) from error
    if not isinstance(content, dict):
        raise DataError(file, "", "is not a JSON object.", _AGAIN)
    return content


def read_meta(folder: str | Path) -> HullMeta | None:
    """The record of earlier hulls, or None where there is none. Files are not looked at.

    Raises:
        DataError: a damaged meta.json, or one of another version.
    """
    folder = Path(folder)
    file = folder / META
    if not file.is_file():
        return None
    content = read_json(file)
    if content.get("version") != VERSION:
        raise DataError(file, "version", f"is {content.get('version')}, not {VERSION}.", _AGAIN)
    try:
        bounds = np.asarray(content["bounds"], dtype=np.float64)
        voxel = float(content["voxel"])
        frames = [_frame(frame) for frame in content["frames"]]
        others = [_frame(frame) for frame in content.get("others", [])]
        settings, cameras_hash = content["settings"], content["cameras_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(file, "", f"lacks or garbles an entry ({error!r}).", _AGAIN) from error
    if bounds.shape != (2, 3) or not np.isfinite(bounds).all() or not (bounds[0] < bounds[1]).all():
        raise DataError(file, "bounds", "are not a box.", _AGAIN)
    if not (math.isfinite(voxel) and voxel > 0) or not frames or not isinstance(settings, dict):
        raise DataError(file, "voxel, frames, settings", "are not what was written.", _AGAIN)
    return HullMeta(folder, bounds, voxel, frames, str(cameras_hash), settings, others)


def _frame(entry: dict[str, Any]) -> dict[str, Any]:
    """One frame's entry with its types checked; a stem must stay a plain file name."""
    stem = entry["stem"]
    if not isinstance(stem, str) or Path(stem).name != stem or stem in ("", ".", "..") or "\\" in stem:
        raise ValueError(f"the frame name {stem!r}")
    if np.asarray(entry["bbox"], dtype=np.float64).shape != (2, 3) or not isinstance(entry["flags"], list):
        raise ValueError(f"the entry of frame {stem}")
    return {**entry, "count": int(entry["count"]), "volume": float(entry["volume"]), "hash": str(entry["hash"])}
