"""Hulls of real captures cover the subjects in their photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.point_ply import read_ply
from r4dv_ns.hull_report import hull_silhouette, iou
from r4dv_ns.hull_run import HullOptions, ensure_hulls


@pytest.mark.parametrize(
    ("name", "held_out", "voxel", "least", "box"),
    [
        ("wd2", ("05", "15"), None, 0.95, ((-4.2, -8.2, 17.9), (4.3, 9.9, 29.5))),
        ("temple", ("04", "11"), 0.0008, 0.95, ((-0.0736, 0.0217, -0.0124), (0.0289, 0.1819, 0.0627))),
        ("balance", ("none",), None, 0.85, None),
    ],
)
def test_overlap_with_the_masks(
    shared_data: Path, tmp_path: Path, name: str, held_out: tuple, voxel: float | None, least: float, box: tuple | None
) -> None:
    options = SequenceOptions(eval_views=held_out, frame_sample=(0, 1, 1))
    sequence = open_sequence(shared_data / f"{name}_easymocap", options)
    meta = ensure_hulls(sequence, tmp_path, HullOptions(points=4096, voxel=voxel), progress=False)
    points = read_ply(meta.hull(0)).xyz
    overlaps = {}
    for number, view in enumerate(sequence.views):
        K, w2c = sequence.camera(number, 0)
        drawn = hull_silhouette(points, meta.voxel, K, w2c, view.height, view.width)
        overlaps[number] = iou(drawn, view.decode_mask(0) > 127, view.valid(0))
    assert np.mean([overlaps[view] for view in sequence.train_views]) >= least
    assert all(overlaps[view] >= least - 0.04 for view in sequence.eval_views)
    assert meta.frames[0]["flags"] == []
    if box is not None:  # what the data's README says of the subject
        size = np.diff(box, axis=0).max()
        assert np.abs(meta.bounds - box).max() < 0.07 * size
