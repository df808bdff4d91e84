"""What of earlier hulls is kept and what is not: other frames, a deleted record, a run that was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hull_scenes import write_balls

from core_ns.errors import DataError
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.point_ply import ply_comments, read_ply, write_ply
from r4dv_ns import hull_run
from r4dv_ns.hull_run import HullMeta, HullOptions, ensure_hulls, read_meta

CENTRES = np.array([[0.1 * i - 0.2, 0.05 * i, -0.03 * i] for i in range(4)])
OPTIONS = HullOptions(points=300, voxel=0.03, surface_radius=0.1, workers=1)


class Carver:
    """A recording, and the frames that each call carves."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.carved, self.broken = write_balls(root, CENTRES, cameras=6, size=64, focal=100.0), [], ""
        carve = hull_run._Run.carve

        def noted(run: Any, frame: int, *rest: Any) -> Any:
            stem = run.sequence.frames[frame]
            if stem == self.broken:
                raise KeyboardInterrupt
            self.carved.append(stem)
            return carve(run, frame, *rest)

        monkeypatch.setattr(hull_run._Run, "carve", noted)

    def run(self, options: HullOptions = OPTIONS, **chosen: Any) -> HullMeta:
        self.carved.clear()
        sequence = open_sequence(self.root, SequenceOptions(eval_views=("none",), **chosen))
        return ensure_hulls(sequence, self.root, options, progress=False)


@pytest.fixture
def carver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carver:
    return Carver(tmp_path / "scene", monkeypatch)


def test_a_look_at_one_frame_keeps_the_others(carver: Carver) -> None:
    """`ns-r4dv hull`, then r4dv-static, then r4dv."""
    options = replace(OPTIONS, voxel=None)
    first = carver.run(options)
    static = carver.run(options, frame_sample=(0, 1, 1))
    assert carver.carved == ["000000"], "its voxel follows from itself alone"
    assert static.voxel != first.voxel
    assert [entry["stem"] for entry in static.frames] == ["000000"]
    record = read_meta(carver.root)
    assert record is not None
    assert [entry["stem"] for entry in record.others] == ["000001", "000002", "000003"]
    np.testing.assert_array_equal(record.bounds, static.bounds)
    again = carver.run(options)
    assert carver.carved == ["000000"], "the others were kept"
    assert again.frames == first.frames
    assert again.others == []
    carver.run(options)
    assert carver.carved == []


def test_a_deleted_record_is_made_again_from_the_masks(carver: Carver) -> None:
    """What every message about a damaged meta.json tells to do."""
    first = carver.run()
    (carver.root / "r4dv" / "meta.json").unlink()
    again = carver.run(replace(OPTIONS, points=200))
    assert len(carver.carved) == 4
    assert not again.settings.get("given")
    assert again.frames[0]["points"] == 200
    assert again.voxel == first.voxel
    (carver.root / "r4dv" / "meta.json").unlink()
    first.points(2).unlink()
    carver.run()
    assert len(carver.carved) == 4


def test_points_made_here_serve_a_recording_without_masks(carver: Carver) -> None:
    carver.run()
    (carver.root / "r4dv" / "meta.json").unlink()
    assert carver.run(masks_dir="none").settings["given"]


def test_one_cloud_of_somebody_else_makes_all_of_them_given(carver: Carver, capsys) -> None:
    meta = carver.run()
    (carver.root / "r4dv" / "meta.json").unlink()
    assert ply_comments(meta.points(1)) == [hull_run._CARVED]
    write_ply(meta.points(1), read_ply(meta.points(1)).xyz)
    assert carver.run().settings["given"]
    assert carver.carved == []
    assert "move the folder away" in " ".join(capsys.readouterr().out.split())


def test_files_of_a_killed_run_with_other_options_do_not_count(carver: Carver) -> None:
    """Clouds of other options may be of the same size."""
    first = carver.run()
    kept = [first.points(frame).read_bytes() for frame in range(4)]
    carver.broken = "000002"
    with pytest.raises(KeyboardInterrupt):
        carver.run(replace(OPTIONS, surface_radius=0.05))
    assert first.points(0).read_bytes() != kept[0]
    assert first.points(0).stat().st_size == len(kept[0])
    carver.broken = ""
    carver.run(replace(OPTIONS, surface_radius=0.05), frame_sample=(3, 4, 1))
    notes = json.loads((carver.root / "r4dv" / "meta.json").read_text())["others"]
    assert [entry["stem"] for entry in notes] == ["000000", "000001", "000002"]
    assert notes[0]["hash"] != first.frames[0]["hash"]
    assert notes[2]["hash"] == first.frames[2]["hash"], "untouched"
    carver.run()
    assert sorted(carver.carved) == ["000000", "000001", "000003"]
    assert [first.points(frame).read_bytes() for frame in range(4)] == kept


def test_a_voxel_beyond_all_bounds_is_one_line(carver: Carver) -> None:
    with pytest.raises(DataError, match=r"voxel.*is 1e-07.*too small.*larger one"):
        carver.run(replace(OPTIONS, voxel=1e-7))
