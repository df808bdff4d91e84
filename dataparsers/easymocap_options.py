"""What to use of a recorded sequence and how: views, frames, sizes, folders, presets of known data sets (r4dv 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Tuple, TypeVar

import numpy as np

from core_ns.errors import DataError

Preset = Literal["none", "renbody", "nhr", "my_zjumocap", "enerf_outdoor", "dance3"]


@dataclass
class SequenceOptions:
    """Selection, scale and folders of an EasyMocap sequence. View numbers count the sorted list of all cameras."""

    view_sample: Tuple[Optional[int], ...] = (0, None, 1)
    """Views to use. Three items: begin, end (exclusive, None for all) and step; any other number: a list of views,
    where repeated ones count once."""
    frame_sample: Tuple[Optional[int], ...] = (0, None, 1)
    """Frames to use, as for view_sample: 0 150 1 are the first 150, 0 1 1 is the first alone."""
    ratio: Tuple[float, ...] = (1.0,)
    """Size of the delivered photos over that of the files: one number, or one for each camera of the calibration.
    nerfstudio's own methods read the files themselves: leave it at 1 for them."""
    max_side: int = 0
    """Photos whose longer side would exceed this after ratio are scaled down to it; 0: no limit."""
    bounds: Optional[Tuple[Tuple[float, float, float], Tuple[float, float, float]]] = None
    """Smallest and largest x y z of what is to be reconstructed, in world units. None: from the hulls of an earlier
    run, else from where the cameras look."""
    near: Optional[float] = None
    """Nearest depth; n_CAMERA of extri.yml goes before it. None: from the bounds."""
    far: Optional[float] = None
    """Farthest depth; f_CAMERA of extri.yml goes before it. None: from the bounds."""
    cameras: Literal["auto", "plain", "optimized"] = "auto"
    """Which calibration: intri.yml and extri.yml beside images/ (plain), those in optimized/, or these if there are any
    (auto)."""
    dataset_preset: Preset = "none"
    """Values for a published data set, for all options that are left at their default."""
    images_dir: str = "images"
    """Folder of the photos, images_dir/CAMERA/FRAME.jpg, or of clips (ns-r4dv process encode)."""
    masks_dir: str = "masks"
    """Folder of the masks, masks_dir/CAMERA/FRAME.png, above 127 is foreground, or of clips of masks; "threshold" for
    what is not black in the clips; "none" for no masks."""
    mask_threshold: int = 12
    """R + G + B above which a pixel of clips on black counts as foreground, where there are no masks."""
    eval_views: Tuple[str, ...] = ("auto",)
    """Held-out views, by camera name or number: never trained on, never a source of colours. none: hold out nothing.
    auto: 4 evenly spaced of 16 or more views, 1 of 6 or more, else none."""
    eval_every: int = 0
    """Hold out views 0, n, 2n, ... of those chosen, where eval_views is auto; 0: as eval_views says."""
    eval_frames: Tuple[int, ...] = ()
    """Frames to evaluate, numbered in those chosen; by default 5 evenly spaced ones."""
    undistort: Literal["same", "optimal", "none"] = "same"
    """Pinhole photos with the calibration's K (same; borders without data become invalid) or with the K that fills them
    with valid pixels (optimal); or photos as they are (none): for nerfstudio's own methods, whose cameras then have
    the lens."""
    pixel_centre_shift: float = 0.0
    """Added to the principal point. Calibrations by OpenCV put the centre of the first pixel at (0, 0): 0.5 makes them
    exact, 0 is what the original does."""
    orientation: Literal["none", "up", "aligned"] = "none"
    """Axes that the viewer sees: as in the files (none), or turned and moved so that the cameras' common up is +z and
    the point they look at is the origin (up), or so in exactly the original's way (aligned), which its released models
    need. Files on disk always stay in the files' world."""
    fill_outside_mask: bool = False
    """Blacken photos outside their mask."""
    apply_ccm: bool = False
    """Multiply colours by the calibration's matrix ccm_CAMERA."""
    check_every_header: bool = True
    """Look at the header of every chosen file at the start; else at the first of each camera."""


OptionsT = TypeVar("OptionsT", bound=SequenceOptions)

PRESETS: dict[str, dict[str, Any]] = {
    "renbody": {"ratio": (0.5,)},
    "nhr": {"masks_dir": "mask"},
    "my_zjumocap": {},
    "enerf_outdoor": {
        "undistort": "optimal",
        "near": 3.5,
        "far": 9.0,
        "view_sample": (0, 18, 1),
        "masks_dir": "bgmtv2",
    },
    "dance3": {"near": 1.5, "far": 100.0},
}
"""Options by data set (r4dv 2.4)."""

HULL_PRESETS: dict[str, dict[str, Any]] = {
    "renbody": {"vhull_thresh": 0.95, "count_thresh": 16},
    "nhr": {
        "vhull_thresh": 0.95,
        "count_thresh": 6,
        "coarse_thresh_factor": 0.75,
        "coarse_count_factor": 1.0,
    },
    "my_zjumocap": {
        "vhull_thresh": 0.95,
        "count_thresh": 16,
        "coarse_thresh_factor": 2.0,
        "coarse_count_factor": 2.0,
    },
    "enerf_outdoor": {"vhull_thresh": 1.0, "count_thresh": 18, "intersect_camera_bounds": False},
    "dance3": {"vhull_thresh": 0.85, "count_thresh": 4, "intersect_camera_bounds": False},
}
"""What the same data sets need of the visual hull (r4dv 2.4, 3.1)."""


def with_preset(options: OptionsT) -> OptionsT:
    """The options with those of ``dataset_preset`` for every field that is at its default."""
    wanted = PRESETS.get(options.dataset_preset, {})
    defaults = {each.name: each.default for each in fields(SequenceOptions)}
    return replace(
        options, **{name: value for name, value in wanted.items() if getattr(options, name) == defaults[name]}
    )


def check_options(options: SequenceOptions, root: Path) -> None:
    """Refuse values that no sequence can have; what depends on the files is checked with them.

    Raises:
        DataError: naming the option.
    """

    def refuse(name: str, problem: str, remedy: str) -> None:
        raise DataError(root, f"--{name.replace('_', '-')}", problem, remedy)

    if not options.ratio or not all(np.isfinite(ratio) and 0 < ratio <= 8 for ratio in options.ratio):
        refuse("ratio", f"is {options.ratio}.", "Give a size ratio above 0, such as 0.5, or one for each camera.")
    if options.max_side < 0:
        refuse("max_side", f"is {options.max_side}.", "Give a number of pixels, or 0 for no limit.")
    if options.bounds is not None:
        low, high = np.asarray(options.bounds[0], dtype=float), np.asarray(options.bounds[1], dtype=float)
        if low.shape != (3,) or high.shape != (3,) or not np.isfinite([low, high]).all() or not (low < high).all():
            refuse("bounds", f"is {options.bounds}.", "Give xmin ymin zmin xmax ymax zmax, each minimum the smaller.")
    for name in ("near", "far"):
        value = getattr(options, name)
        if value is not None and not (np.isfinite(value) and value > 0):
            refuse(name, f"is {value}.", "Give a positive depth, or None.")
    if not 0 <= options.mask_threshold < 765:
        refuse("mask_threshold", f"is {options.mask_threshold}.", "Give a sum of three colours, such as 12.")
    if options.near is not None and options.far is not None and options.near >= options.far:
        refuse("far", f"{options.far} is not beyond near, {options.near}.", "Give a larger far.")
    if options.eval_every < 0 or options.eval_every == 1:
        refuse("eval_every", f"is {options.eval_every}.", "Use at least 2 (1 leaves nothing to train on), or 0.")
    if not abs(options.pixel_centre_shift) <= 1:
        refuse("pixel_centre_shift", f"is {options.pixel_centre_shift}.", "Use 0.5, or 0 as the original does.")


def sampled(count: int, sample: Sequence[int | None], root: Path, place: str) -> list[int]:
    """Positions below ``count`` that a sample option names, ascending and without repetition (r4dv 2.4).

    Args:
        sample: three items are a Python slice, whose length is ceil((end - begin) / step); else a list of positions,
            negative ones from the end.
        place: the option's name, for the error.

    Raises:
        DataError: a position that does not exist, None outside of a slice, step 0, or nothing left.
    """
    remedy = f"There are {count}: give begin, end and step (0 None 1 is all), or a list of numbers below {count}."
    if len(sample) == 3:
        if sample[2] == 0:
            raise DataError(root, place, "has step 0.", remedy)
        chosen = list(range(count))[slice(*sample)]
    else:
        chosen = []
        for item in sample:
            if item is None or not -count <= item < count:
                raise DataError(root, place, f"names {item}, which is not there.", remedy)
            chosen.append(item % count)
    if not chosen:
        raise DataError(root, place, f"{' '.join(map(str, sample))} chooses nothing.", remedy)
    return sorted(set(chosen))


def named_views(names: Sequence[str], wanted: Sequence[str], root: Path) -> list[int]:
    """Positions of cameras given by name, else by number in the sorted list ``names``.

    Raises:
        DataError: neither fits.
    """
    found = []
    for item in wanted:
        if item in names:
            found.append(list(names).index(item))
            continue
        try:
            number = int(item)
        except ValueError:
            number = len(names)
        if not -len(names) <= number < len(names):
            listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise DataError(
                root, "--eval-views", f"names {item}, which is no camera.", f"The {len(names)} cameras are {listed}."
            )
        found.append(number % len(names))
    return sorted(set(found))


def split_views(names: Sequence[str], options: SequenceOptions, root: Path) -> tuple[list[int], list[int]]:
    """(training views, held-out views) as positions in the sorted camera names; held-out ones are added to the sample.

    Raises:
        DataError: an unknown view, or nothing left to train on.
    """
    chosen = sampled(len(names), options.view_sample, root, "--view-sample")
    keyword = options.eval_views[0] if len(options.eval_views) == 1 else ""
    if not options.eval_views or keyword == "none":
        held_out = []
    elif keyword == "auto" and options.eval_every:
        held_out = chosen[:: options.eval_every]
    elif keyword == "auto":
        amount = 4 if len(chosen) >= 16 else 1 if len(chosen) >= 6 else 0
        held_out = [chosen[int((i + 0.5) * len(chosen) / amount)] for i in range(amount)]
    else:
        held_out = named_views(names, options.eval_views, root)
    train = [view for view in chosen if view not in set(held_out)]
    if not train:
        raise DataError(
            root, "--eval-views", f"holds out all {len(chosen)} views of the sample.", "Leave some to train on."
        )
    return train, held_out


def spread_frames(count: int, wanted: Sequence[int], root: Path) -> list[int]:
    """Frames to evaluate: those named (negative ones from the end), else up to five evenly spaced from first to last.

    Raises:
        DataError: a frame that is not there.
    """
    if not wanted:
        return sorted({round(float(position)) for position in np.linspace(0, count - 1, min(5, count))})
    for frame in wanted:
        if not -count <= frame < count:
            remedy = f"{count} frames are chosen: use 0 to {count - 1}."
            raise DataError(root, "--eval-frames", f"names frame {frame}, which is not there.", remedy)
    return sorted({frame % count for frame in wanted})
