"""What all frames of a hull run share, and the fingerprints that say whether earlier results hold (r4dv 3.1, 3.2).

Only training views are looked at: the masks of held-out views must not shape the model that they judge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.images import area_downscale
from dataparsers.easymocap_sequence import Sequence, box_of_attention
from r4dv_ns.hull import default_count, frustum_box, hull_box
from r4dv_ns.hull_meta import HullOptions, read_json
from r4dv_ns.silhouette import Silhouette, silhouette

NEAR = 1e-4
_SAMPLED = 5
"""Frames looked at to choose the voxel's size."""
BOX_PER_VOXEL = 400.0
"""A voxel unless told otherwise is this part of the subject's box diagonal."""
_PIXELS_PER_VOXEL = 3.0
"""Masks are shrunk to no fewer: finer ones cost memory and change no voxel that matters."""
_PLANNING_SIDE = 1024


@dataclass(frozen=True)
class Plan:
    """What decides every frame's hull besides its own masks and cameras."""

    box: list[list[float]]
    """Search box, world."""
    voxel: float
    surface_radius: float
    vhull_thresh: float
    count_thresh: int | None
    lowest_thresh: float
    padding: float
    coarse_thresh_factor: float
    coarse_count_factor: float
    outlier_neighbours: int
    outlier_sigma: float
    points: int
    seed: int

    def hash(self, frame_hash: str) -> str:
        """Fingerprint of a frame's result."""
        return _hash([asdict(self), frame_hash])


def _hash(content: Any) -> str:
    """Of JSON content; floats with all their digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def with_hull_preset(options: HullOptions, preset: dict[str, Any]) -> HullOptions:
    """The options with a data set's values (spec r4dv 2.4) for every field that is at its default."""
    defaults = {each.name: each.default for each in fields(HullOptions)}
    return replace(
        options, **{name: value for name, value in preset.items() if getattr(options, name) == defaults[name]}
    )


def cameras_hash(sequence: Sequence) -> str:
    """Fingerprint of all training cameras at all selected frames."""
    return _hash([_cameras(sequence, frame) for frame in range(len(sequence.frames))])


def _cameras(sequence: Sequence, frame: int) -> list[Any]:
    """Everything of a frame's cameras that a mask's way into the hull depends on."""
    described = []
    for number in sequence.train_views:
        view, model = sequence.views[number], sequence.views[number].model(frame)
        K, w2c = sequence.camera(number, frame)
        lens = [model.K.tolist(), model.D.tolist(), None if model.fisheye is None else model.fisheye.tolist()]
        described.append(
            [view.name, K.tolist(), w2c.tolist(), view.width, view.height, lens, sequence.options.undistort]
        )
    return described


def frame_hash(sequence: Sequence, frame: int) -> str:
    """Fingerprint of a frame's cameras and masks (names, sizes and times of change; not their pixels).

    Raises:
        DataError: a mask is gone.
    """
    masks = [sequence.views[number].mask_stamp(frame) for number in sequence.train_views]
    return _hash([_cameras(sequence, frame), masks])


def silhouettes(
    sequence: Sequence, frame: int, voxel: float | None, middle: Float[np.ndarray, "3"]
) -> tuple[list[Silhouette], list[str]]:
    """The masks of a frame's training views, shrunk to what voxels of this side can tell apart, and the empty ones.

    Args:
        voxel: None while it is not known yet: photos are then shrunk to 1024 pixels.
        middle: where the subject is, world.

    Raises:
        DataError: a mask does not decode.
    """
    prepared, empty = [], []
    for number in sequence.train_views:
        view = sequence.views[number]
        mask, valid = view.decode_mask(frame), view.valid(frame)
        K, w2c = sequence.camera(number, frame)
        if voxel is None:
            factor = math.ceil(max(mask.shape) / _PLANNING_SIDE)
        else:
            factor = max(1, math.floor(voxel / (_PIXELS_PER_VOXEL * max(_pixel(K, w2c, middle), 1e-12))))
        if factor > 1:
            height, width = (max(1, side // factor) for side in mask.shape)
            K = np.diag([width / mask.shape[1], height / mask.shape[0], 1.0]) @ K
            mask = area_downscale(mask, width, height)
            if valid is not None:  # a pixel is valid where all that it covers is
                valid = cv2.resize(valid.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.999
        prepared.append(silhouette(mask, K, w2c, valid))
        if prepared[-1].is_empty:
            empty.append(view.name)
    return prepared, empty


def _pixel(K: Float[np.ndarray, "3 3"], w2c: Float[np.ndarray, "4 4"], middle: Float[np.ndarray, "3"]) -> float:
    """Side of a pixel at a point, world units; 0 for a camera that has the point behind it."""
    depth = float(w2c[2, :3] @ middle + w2c[2, 3])
    return max(0.0, depth) / float(max(K[0, 0], K[1, 1]))


def search_box(sequence: Sequence, options: HullOptions) -> Float[np.ndarray, "2 3"]:
    """Where to look for the subject: as told, else as the data's bounds say, else where the cameras look.

    Raises:
        DataError: the cameras look at no common point.
    """
    box = options.search_box if options.search_box is not None else sequence.options.bounds
    box = box_of_attention(sequence) if box is None else np.asarray(box, dtype=np.float64)
    if not options.intersect_camera_bounds:
        return box
    low, high = box[0].copy(), box[1].copy()
    for number in sequence.train_views:
        for frame in range(len(sequence.views[number].cameras)):
            K, w2c = sequence.camera(number, frame)
            near, far = sequence.depth_range(number, frame)
            seen = frustum_box(K, w2c, sequence.views[number].width, sequence.views[number].height, near, far)
            low, high = np.maximum(low, seen[0]), np.minimum(high, seen[1])
    if not (low < high).all():
        problem = f"cut the search box {box.round(4).tolist()} down to nothing."
        raise DataError(
            sequence.calibration_dir, "the cameras' bounds", problem, "Do not intersect them, or give --bounds."
        )
    return np.stack([low, high])


def attempts(thresh: float, count: int | None, lowest: float, views: int) -> Iterator[tuple[float, int]]:
    """Rules to try in turn until one leaves something (spec r4dv 3.1, hardening)."""
    count = default_count(views) if count is None else max(1, min(count, views))
    while True:
        yield thresh, count
        if thresh <= lowest + 1e-9:
            return
        thresh, count = max(lowest, thresh - 0.05), max(1, count - 1)


def make_plan(sequence: Sequence, options: HullOptions, progress_file: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Search box and voxel of a run; those of an earlier run while most of what they came from is the same.

    Args:
        options: presets applied.
        progress_file: where the plan is kept until the run ends.
        known: settings of an earlier run's meta.json, or an empty dictionary.

    Returns:
        For the record: ``source`` and ``sampled``, fingerprints of what the plan came from, and ``plan``, the fields
        of `Plan`.

    Raises:
        DataError: no frame has any point that the masks agree on, or a mask cannot be read.
    """
    box = search_box(sequence, options)
    sampled = sorted({round(float(at)) for at in np.linspace(0, len(sequence.frames) - 1, _SAMPLED)})
    masks = {sequence.frames[frame]: frame_hash(sequence, frame) for frame in sampled}
    source = _hash([box.tolist(), {**asdict(options), "workers": 0, "max_voxels": 0}, sorted(masks)])
    for earlier in (known, read_json(progress_file) if progress_file.is_file() else {}):
        # A corrected mask or two must not change the voxel, and with it all frames.
        same = sum(earlier.get("sampled", {}).get(stem) == value for stem, value in masks.items())
        if earlier.get("source") == source and 2 * same >= len(masks):
            return earlier
    plan = _fresh_plan(sequence, options, box, sampled)
    settings = {"source": source, "sampled": masks, "plan": asdict(plan)}
    write_json(progress_file, settings)
    return settings


def _fresh_plan(sequence: Sequence, options: HullOptions, box: Float[np.ndarray, "2 3"], sampled: list[int]) -> Plan:
    """Measure a few frames, more of them until one has a subject."""
    names = {each.name for each in fields(Plan)} - {"box", "voxel", "surface_radius", "padding"}
    common = {"box": box.tolist(), **{name: getattr(options, name) for name in names}}
    if options.voxel is not None and options.surface_radius is not None:
        padding = 4 * options.voxel if options.padding is None else options.padding
        return Plan(voxel=options.voxel, surface_radius=options.surface_radius, padding=padding, **common)
    boxes: list[np.ndarray] = []
    others = [frame for frame in range(len(sequence.frames)) if frame not in sampled]
    for frame in [*sampled, *others]:
        if frame in others and boxes:
            break
        found = subject_box(sequence, frame, options, box)
        if found is not None:
            boxes.append(found)
    if not boxes:
        raise nothing_found(sequence, box)
    diagonal = float(np.median([np.linalg.norm(each[1] - each[0]) for each in boxes]))
    middle = np.median([each.mean(0) for each in boxes], axis=0)
    pixels = [_pixel(*sequence.camera(number, sampled[0]), middle) for number in sequence.train_views]
    voxel = options.voxel or max(diagonal / BOX_PER_VOXEL, 0.5 * float(np.median(pixels)))
    return Plan(
        voxel=voxel,
        surface_radius=options.surface_radius or options.surface_share * diagonal,
        padding=4 * voxel if options.padding is None else options.padding,
        **common,
    )


def subject_box(
    sequence: Sequence, frame: int, options: HullOptions, box: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"] | None:
    """A box around the hull of one frame, not carved yet; None where the masks agree on nothing."""
    prepared, _ = silhouettes(sequence, frame, None, box.mean(0))
    prepared = [each for each in prepared if not each.is_empty]
    if not prepared:
        return None
    for thresh, count in attempts(options.vhull_thresh, options.count_thresh, options.lowest_thresh, len(prepared)):
        found = hull_box(prepared, box[0], box[1], thresh, count, near=NEAR, passes=2)
        if found is not None:
            return found
    return None


def nothing_found(sequence: Sequence, box: Float[np.ndarray, "2 3"]) -> DataError:
    """The error of a sequence none of whose frames has a hull."""
    problem = (
        f"of the {len(sequence.train_views)} training views agree on nothing between {box[0].round(4).tolist()} and "
        f"{box[1].round(4).tolist()}, in any frame."
    )
    remedy = (
        "Check that masks are white where the subject is and that calibration and photos belong together; "
        "give --bounds, or lower vhull_thresh and count_thresh."
    )
    return DataError(sequence.root / sequence.masks_dir, "masks", problem, remedy)
