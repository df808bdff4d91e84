"""A whole sequence: bounds, reuse, resumption, empty frames, what users do wrong (acceptance A2, A3)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hull_scenes import write_balls

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from dataparsers.easymocap_sequence import Sequence, SequenceOptions, open_sequence
from dataparsers.point_ply import read_ply, write_ply
from r4dv_ns import hull_run
from r4dv_ns.hull_plan import make_plan
from r4dv_ns.hull_run import HullMeta, HullOptions, ensure_hulls, read_meta
from r4dv_ns.hull_series import aggregate, flag_volumes, nearest_filled, odd_volumes

CENTRES = np.array([[0.1 * i - 0.2, 0.05 * i, -0.03 * i] for i in range(5)])
OPTIONS = HullOptions(points=500, voxel=0.025, surface_radius=0.1)


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_balls(tmp_path_factory.mktemp("balls"), CENTRES)


@pytest.fixture
def scene(balls: Path, tmp_path: Path) -> Path:
    """A copy of its own, times of change included."""
    return Path(shutil.copytree(balls, tmp_path / "scene"))


def opened(root: Path, **options) -> Sequence:
    return open_sequence(root, SequenceOptions(eval_views=("none",), **options))


def run(sequence: Sequence, folder: Path, options: HullOptions = OPTIONS) -> HullMeta:
    return ensure_hulls(sequence, folder, options, progress=False)


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()
    }


def change_mask(scene: Path, camera: str, stem: str, value: int = 0) -> None:
    file = scene / "masks" / camera / f"{stem}.png"
    write_image(file, np.full_like(read_image(file)[0][..., 0], value))


def test_box_of_a_moving_ball(balls: Path, tmp_path: Path) -> None:
    """A3."""
    meta = run(opened(balls), tmp_path)
    exact = np.stack([CENTRES.min(0) - 0.25, CENTRES.max(0) + 0.25])
    assert np.abs(meta.bounds - exact).max() <= 2 * meta.voxel
    assert [frame["stem"] for frame in meta.frames] == [f"{i:06d}" for i in range(5)]
    for i, frame in enumerate(meta.frames):
        hull, surface = read_ply(meta.hull(i)).xyz, read_ply(meta.points(i)).xyz
        assert len(hull) == frame["count"]
        assert len(surface) == frame["points"] == 500
        assert frame["flags"] == []
        assert frame["volume"] == pytest.approx(4 / 3 * np.pi * 0.25**3, rel=0.08)
        assert np.abs(hull.mean(0) - CENTRES[i]).max() < 0.01
        box = np.asarray(frame["bbox"])
        assert ((surface >= box[0] - 1e-6) & (surface <= box[1] + 1e-6)).all()
    assert not (tmp_path / "r4dv" / "progress").exists()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_made_once(balls: Path, tmp_path: Path) -> None:
    """A3: file reused."""
    first = run(opened(balls), tmp_path)
    before = stamps(tmp_path)
    again = run(opened(balls), tmp_path)
    assert stamps(tmp_path) == before
    for meta in (again, read_meta(tmp_path)):
        assert meta is not None
        np.testing.assert_array_equal(meta.bounds, first.bounds)
        assert (meta.voxel, meta.frames, meta.settings) == (first.voxel, first.frames, first.settings)
    sequence = opened(balls)
    sequence.bounds = first.bounds  # as the data manager sets them: they must not look like a new search box
    run(sequence, tmp_path)
    assert stamps(tmp_path) == before


def test_one_changed_mask_is_one_new_frame(scene: Path, tmp_path: Path) -> None:
    """A3: stale hash detected."""
    out = tmp_path / "out"
    run(opened(scene), out)
    before = stamps(out)
    change_mask(scene, "03", "000001")
    meta = run(opened(scene), out)
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    assert changed == {"r4dv/meta.json", "surfs/000001.ply", "vhulls/000001.ply"}
    assert meta.frames[1]["flags"] == ["empty masks left out: 03"]


@pytest.mark.parametrize("change", ["camera", "option", "voxel", "file"])
def test_other_changes(scene: Path, tmp_path: Path, change: str) -> None:
    out, options = tmp_path / "out", OPTIONS
    first = run(opened(scene), out)
    before = stamps(out)
    if change == "camera":
        text = (scene / "intri.yml").read_text()
        assert "150" in text
        (scene / "intri.yml").write_text(text.replace("150", "149"))
    elif change == "option":
        options = replace(OPTIONS, seed=1)
    elif change == "voxel":
        options = replace(OPTIONS, voxel=0.03)
    else:
        with open(first.hull(2), "ab") as handle:
            handle.write(b"x")
    meta = run(opened(scene), out, options)
    new = {name for name, stamp in stamps(out).items() if before.get(name) != stamp and name.endswith(".ply")}
    assert new == {
        f"{kind}/{i:06d}.ply" for kind in ("vhulls", "surfs") for i in ([2] if change == "file" else range(5))
    }
    assert meta.frames != first.frames or change == "file"


def test_held_out_masks_do_not_matter(scene: Path, tmp_path: Path) -> None:
    """No leak: the masks of the eval view change nothing, not even a hash."""
    options = SequenceOptions(eval_views=("02",))
    sequence = open_sequence(scene, options)
    assert sequence.eval_views == [2]
    first = run(sequence, tmp_path / "out")
    before = stamps(tmp_path / "out")
    for frame in range(5):
        change_mask(scene, "02", f"{frame:06d}", 255)
    assert run(open_sequence(scene, options), tmp_path / "out").frames == first.frames
    assert stamps(tmp_path / "out") == before


def test_empty_frames_take_their_neighbours(scene: Path, tmp_path: Path) -> None:
    """A2: one frame empty in all views, one view empty in one frame."""
    for camera in range(8):
        change_mask(scene, f"{camera:02d}", "000003")
    change_mask(scene, "05", "000000", 127)
    meta = run(opened(scene), tmp_path / "out")
    assert meta.frames[3]["flags"][-1] == "empty: copied from 000002"
    assert meta.points(3).read_bytes() == meta.points(2).read_bytes()
    assert meta.frames[0]["flags"] == ["empty masks left out: 05"]
    before = stamps(tmp_path / "out")
    assert run(opened(scene), tmp_path / "out").frames == meta.frames
    assert stamps(tmp_path / "out") == before


def test_nothing_anywhere(scene: Path, tmp_path: Path) -> None:
    for file in (scene / "masks").rglob("*.png"):
        write_image(file, np.zeros((96, 96), np.uint8))
    with pytest.raises(DataError, match="agree on nothing"):
        run(opened(scene), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.ply"))


def test_automatic_voxel_follows_the_subject(balls: Path, tmp_path: Path) -> None:
    """Diagonal / 400 would be finer than half a pixel here: 2.5 / 150 / 2."""
    meta = run(opened(balls), tmp_path, HullOptions(points=100))
    assert meta.voxel == pytest.approx(0.5 * 2.5 / 150, rel=0.05)
    fine = opened(balls, ratio=(6.0,), frame_sample=(0, 1, 1))
    plan = make_plan(fine, HullOptions(), tmp_path / "plan.json", {})["plan"]
    assert plan["voxel"] == pytest.approx(0.5 * np.sqrt(3) / 400, rel=0.05)
    assert plan["surface_radius"] == pytest.approx(13 * plan["voxel"])
    assert make_plan(fine, HullOptions(), tmp_path / "none.json", {"source": "", "sampled": {}})["plan"] == plan


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_shrunken_masks_change_little(balls: Path, tmp_path: Path, ratio: float) -> None:
    meta = run(opened(balls, ratio=(ratio,)), tmp_path, replace(OPTIONS, voxel=0.1))
    assert meta.frames[2]["volume"] == pytest.approx(4 / 3 * np.pi * 0.25**3, rel=0.15)


def test_workers_do_not_change_anything(balls: Path, tmp_path: Path) -> None:
    one = run(opened(balls), tmp_path / "one", replace(OPTIONS, workers=1))
    four = run(opened(balls), tmp_path / "four", replace(OPTIONS, workers=4, max_voxels=5000))
    assert one.frames == four.frames
    for frame in range(5):
        assert one.hull(frame).read_bytes() == four.hull(frame).read_bytes()
        assert one.points(frame).read_bytes() == four.points(frame).read_bytes()


def test_bounds_are_the_search_box(balls: Path, tmp_path: Path) -> None:
    box = ((-1.0, -1.0, -0.05), (1.0, 1.0, 0.07))
    for name, sequence, options in (
        ("data", opened(balls, bounds=box), OPTIONS),
        ("option", opened(balls), replace(OPTIONS, search_box=box)),
    ):
        meta = run(sequence, tmp_path / name, options)
        assert meta.bounds[0, 2] >= -0.05 - 2 * meta.voxel
        assert meta.bounds[1, 2] <= 0.07 + 2 * meta.voxel
    wide = run(opened(balls), tmp_path / "wide")
    cut = run(opened(balls), tmp_path / "cut", replace(OPTIONS, intersect_camera_bounds=True))
    np.testing.assert_allclose(cut.bounds, wide.bounds, atol=1e-12)


def test_preset_of_the_data(balls: Path, tmp_path: Path) -> None:
    meta = run(opened(balls, dataset_preset="dance3"), tmp_path)
    assert (meta.settings["plan"]["vhull_thresh"], meta.settings["plan"]["count_thresh"]) == (0.85, 4)
    meta = run(opened(balls, dataset_preset="dance3"), tmp_path, replace(OPTIONS, vhull_thresh=0.9))
    assert meta.settings["plan"]["vhull_thresh"] == 0.9


SCRIPT = """
import sys
from pathlib import Path
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from r4dv_ns.hull_plan import make_plan
from r4dv_ns.hull_run import HullOptions, ensure_hulls
sequence = open_sequence(Path(sys.argv[1]), SequenceOptions(eval_views=("none",)))
ensure_hulls(sequence, sys.argv[2], HullOptions(points=500, voxel=0.015, surface_radius=0.1, workers=1), progress=False)
"""


def test_killed_runs_go_on(tmp_path: Path) -> None:
    """kill -9 amid the frames; those that were finished are kept, and the result is that of one run."""
    scene = write_balls(tmp_path / "scene", np.zeros((12, 3)) + np.linspace(0, 0.2, 12)[:, None])
    out, options = tmp_path / "out", HullOptions(points=500, voxel=0.015, surface_radius=0.1, workers=1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(scene), str(out)], env=environment)
    deadline = time.monotonic() + 120
    while len(list(out.glob("r4dv/progress/0*.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [path.stem for path in out.glob("r4dv/progress/0*.json")]
    assert 3 <= len(done) < 12
    assert read_meta(out) is None
    before = stamps(out)
    meta = run(opened(scene), out, options)
    after = stamps(out)
    assert all(
        after[f"{folder}/{stem}.ply"] == before[f"{folder}/{stem}.ply"]
        for stem in done
        for folder in ("vhulls", "surfs")
    )
    whole = run(opened(scene), tmp_path / "whole", options)
    assert meta.frames == whole.frames
    np.testing.assert_array_equal(meta.bounds, whole.bounds)


def test_failing_frame_ends_the_run_and_leaves_the_rest(scene: Path, tmp_path: Path) -> None:
    sequence = opened(scene)
    (scene / "masks" / "04" / "000003.png").write_bytes(b"no picture")
    os.utime(scene / "masks" / "04" / "000003.png")
    with pytest.raises(DataError, match=r"000003\.png"):
        run(sequence, tmp_path / "out", replace(OPTIONS, workers=1))
    assert read_meta(tmp_path / "out") is None


def test_points_that_lie_there_are_used(balls: Path, tmp_path: Path) -> None:
    """The original's data sets come with surfs/; they need no masks."""
    sequence = open_sequence(balls, SequenceOptions(masks_dir="none", eval_views=("none",)))
    rng = np.random.default_rng(0)
    for stem in sequence.frames[:-1]:
        write_ply(tmp_path / "surfs" / f"{stem}.ply", rng.uniform(-1, 1, (50, 3)))
    with pytest.raises(DataError, match=r"000004\.ply.*absent"):
        run(sequence, tmp_path)
    write_ply(tmp_path / "surfs" / "000004.ply", rng.uniform(-1, 2, (60, 3)))
    meta = run(sequence, tmp_path)
    before = stamps(tmp_path)
    assert [frame["points"] for frame in meta.frames] == [50] * 4 + [60]
    every = np.concatenate([read_ply(meta.points(frame)).xyz for frame in range(5)])
    np.testing.assert_allclose(meta.bounds, [every.min(0) - meta.voxel, every.max(0) + meta.voxel], atol=1e-6)
    assert run(sequence, tmp_path).frames == meta.frames
    assert stamps(tmp_path) == before
    write_ply(tmp_path / "surfs" / "000000.ply", rng.uniform(-1, 2, (70, 3)))
    assert run(sequence, tmp_path).frames[0]["points"] == 70
    shutil.rmtree(tmp_path / "surfs")
    assert run(opened(balls), tmp_path).frames[0]["points"] == 500


def test_without_masks(balls: Path, tmp_path: Path) -> None:
    sequence = open_sequence(balls, SequenceOptions(masks_dir="none"))
    with pytest.raises(DataError, match=r"masks.*absent"):
        run(sequence, tmp_path)
    assert not list(tmp_path.rglob("*.ply"))


def test_complete_hulls_in_a_folder_that_cannot_be_written(balls: Path, tmp_path: Path) -> None:
    """Without permission the lock cannot be opened; here a folder lies in its place (root may write anything)."""
    first = run(opened(balls), tmp_path)
    (tmp_path / "r4dv" / "lock").unlink()
    (tmp_path / "r4dv" / "lock").mkdir()
    assert run(opened(balls), tmp_path).frames == first.frames


def test_folder_that_cannot_be_written(balls: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        run(opened(balls), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"version": 2}',
        '{"version": 1, "bounds": [[0, 0, 0], [1, 1, 1]]}',
        '{"version": 1, "bounds": [[0,0,0],[1,1,0]], "voxel": 1, "frames": [{}], "settings": {}}',
    ],
)
def test_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "r4dv").mkdir()
    (tmp_path / "r4dv" / "meta.json").write_text(text)
    with pytest.raises(DataError, match=r"meta\.json"):
        read_meta(tmp_path)


def test_records_with_foreign_names(balls: Path, tmp_path: Path) -> None:
    """A frame's name is part of a path: it must not lead elsewhere."""
    meta = run(opened(balls), tmp_path)
    file = tmp_path / "r4dv" / "meta.json"
    text = file.read_text()
    for name in ("../../x", "/x", "a/b", "a\\\\b", "..", ""):
        file.write_text(text.replace('"stem": "000002"', f'"stem": "{name}"'))
        with pytest.raises(DataError, match="garbles"):
            read_meta(tmp_path)
    for old, new in ((str(meta.voxel), "-1"), ('"flags": []', '"flags": 3'), ('"bounds": [', '"bounds": [[NaN],')):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=r"meta\.json"):
            read_meta(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"voxel": 0.0},
        {"voxel": float("nan")},
        {"vhull_thresh": 1.5},
        {"count_thresh": 0},
        {"points": 0},
        {"workers": 0},
        {"surface_radius": -1.0},
        {"padding": -0.1},
        {"coarse_thresh_factor": 0.0},
        {"search_box": ((0.0, 0, 0), (1.0, 0, 1))},
    ],
)
def test_impossible_options(balls: Path, tmp_path: Path, change: dict) -> None:
    with pytest.raises(DataError, match=next(iter(change))):
        run(opened(balls), tmp_path / "out", replace(OPTIONS, **change))
    assert not (tmp_path / "out").exists()


def test_nearest_filled_frame() -> None:
    assert nearest_filled([0, 5, 0, 0, 7, 0]) == [1, 1, 1, 4, 4, 4]
    assert nearest_filled([0, 0]) == [None, None]


def test_odd_volumes() -> None:
    volumes = 1 + 0.02 * np.sin(np.arange(40.0))
    volumes[17], volumes[39] = 1.5, 0.4
    flags, medians = odd_volumes(volumes)
    assert np.flatnonzero(flags).tolist() == [17, 39]
    assert np.abs(medians - 1).max() < 0.03
    assert not odd_volumes(np.ones(5))[0].any()
    assert not odd_volumes(np.linspace(1, 2, 30))[0].any()  # growth is no fault


def test_odd_frames_do_not_widen_the_box() -> None:
    entries = [{"volume": 1.0, "flags": ["x"], "bbox": [[0, 0, 0], [1, 1, 1]]} for _ in range(9)]
    entries[4] = {"volume": 5.0, "flags": [], "bbox": [[-9, 0, 0], [1, 1, 1]]}
    for _ in range(2):
        flag_volumes(entries)
    assert [len(entry["flags"]) for entry in entries] == [1] * 9
    assert entries[4]["flags"] == ["volume differs by +400 % from that of the frames around"]
    np.testing.assert_array_equal(aggregate(entries, 0.5), [[-0.5] * 3, [1.5] * 3])


def test_two_processes_take_turns(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second caller waits for the lock, then finds everything done."""
    carved = []
    original = hull_run._Run.carve
    monkeypatch.setattr(
        hull_run._Run, "carve", lambda self, frame, *rest: (carved.append(frame), original(self, frame, *rest))[1]
    )
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run(opened(balls), tmp_path), range(2))
    assert first.frames == second.frames
    assert sorted(carved) == [0, 1, 2, 3, 4]
