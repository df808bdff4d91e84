"""Baking: the charge draws what the run draws, goes on after a kill, and never mixes two bakes (A19, A20, A16)."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE, run_config, train
from charge_twin import contents, drawn, psnr
from PIL import Image

from core_ns import runs
from core_ns.errors import DataError
from dataparsers.easymocap import write_cameras
from dataparsers.easymocap_parser import sequence_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_scene import make_moving_scene
from r4dv_ns import charge_bake
from r4dv_ns.camera_refinement import CameraRefinement, CameraRefinementConfig
from r4dv_ns.charge_bake import PIPELINES, bake
from r4dv_ns.charge_manifest import read_manifest
from r4dv_ns.charge_store import ChargedStore
from r4dv_ns.drawing import pinhole

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def config(recording, tmp_path_factory) -> Path:
    """config.yml of the juggler after 30 steps: 7 training views, one held out, 4 frames."""
    wanted = run_config(recording, tmp_path_factory.mktemp("outputs"), 30, occlusion=True)
    wanted.save_config()
    train(wanted)
    return wanted.get_base_dir() / "config.yml"


@pytest.fixture(scope="module")
def loaded(config) -> tuple[Any, Any]:
    """Its pipeline and model, as the tools load them."""
    return runs.load_run(config, *PIPELINES)


@pytest.fixture
def once(loaded, monkeypatch) -> Any:
    """Every bake of this test gets the same loaded model, which saves a second each."""
    monkeypatch.setattr(runs, "load_run", lambda file, *names: loaded)
    yield loaded[1]
    loaded[1].config.occlusion = True


@pytest.fixture(scope="module")
def charge(config, tmp_path_factory) -> Path:
    """The default bake."""
    out = tmp_path_factory.mktemp("charges") / "default"
    bake(config, out)
    return out


# ------------------------------------------------------------------ A19: the same pictures


@pytest.mark.parametrize(("options", "least"), [
    ({"colours": "f32"}, 90), ({}, 60), ({"xyz": "u16", "pack": True}, 60),
])  # fmt: skip
def test_the_charge_draws_what_the_run_draws(config, once, tmp_path, options, least):
    """A19: 60 dB with 32-bit storage, 45 dB by default, at equal layers."""
    layers = once.config.layers
    bake(config, tmp_path / "charge", layers=layers, **options)
    store = ChargedStore(tmp_path / "charge")
    cameras = free_cameras(once)
    worst = np.inf
    for camera, index in cameras:
        want = once.get_outputs_for_camera(camera)["rgb"]
        worst = min(worst, psnr(drawn(store, camera, index, once.config), want))
    print(f"{options}: {worst:.1f} dB")
    assert worst >= least


def free_cameras(model: Any) -> list[tuple[Any, int]]:
    """The held-out camera and a training camera at two frames, without the metadata that names them."""
    pairs = [
        (frame, view) for frame in (0, 3) for view in (model.sequence.eval_views[0], model.sequence.train_views[2])
    ]
    cameras = sequence_cameras(model.sequence, pairs)
    cameras.metadata = None
    return [(cameras[row : row + 1], frame) for row, (frame, _) in enumerate(pairs)]


def test_manifest_and_sizes(config, loaded, charge, recording):
    """A20."""
    model, manifest = loaded[1], read_manifest(charge)
    assert manifest.frames == model.sequence.frames
    assert manifest.times == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [view.name for view in manifest.views] == model.sequence.names
    assert manifest.eval_views == model.sequence.eval_views
    assert manifest.stored_sources == len(model.sequence.train_views) == 7
    assert (manifest.layers, manifest.sources, manifest.min_radius) == (12, 4, 0.75)
    np.testing.assert_allclose(manifest.bounds, model.bounds.numpy())
    for view in range(8):
        K, w2c = model.sequence.camera(view, 1)
        np.testing.assert_array_equal(manifest.camera(view, 1)[0], K)
        np.testing.assert_allclose(manifest.camera(view, 1)[1], w2c, atol=1e-12)
    store = ChargedStore(charge)
    store.verify()
    for index in range(4):
        n = manifest.counts[index]
        formula = n * (12 + 2 + 2 + 96) + 7 * n * 5
        stored = sum(file.stat().st_size for file in (charge / "frames" / manifest.frames[index]).iterdir())
        assert stored == pytest.approx(formula, rel=0.05)
        assert store.frame(index).src_id.tolist() == model.sequence.train_views
    assert sorted(path.name for path in charge.iterdir()) == [
        "config.yml", "eval", "frames", "hashes.json", "manifest.json", "nerfstudio_models"
    ]  # fmt: skip
    assert str(recording) not in (charge / "manifest.json").read_text()


def test_photos_to_compare_with(loaded, charge):
    sequence, manifest = loaded[1].sequence, read_manifest(charge)
    assert [(photo.view, photo.frame) for photo in manifest.eval_photos] == [
        (view, frame) for frame in sequence.eval_frames for view in sequence.eval_views
    ]
    for photo in manifest.eval_photos:
        want = sequence.decode(photo.view, photo.frame)
        np.testing.assert_array_equal(np.asarray(Image.open(charge / photo.image)), want.image)
        np.testing.assert_array_equal(np.asarray(Image.open(charge / str(photo.mask))), want.mask)
        assert photo.valid is None
        assert photo.box == sequence.extent(photo.view, photo.frame, sequence.bounds, pad=0)


def test_no_held_out_pixel_is_in_the_points(config, loaded, charge, recording, tmp_path, monkeypatch):
    """A16: other held-out photos leave every array as it is."""
    model, pipeline = loaded[1], loaded[0]
    held_out = model.sequence.eval_views[0]
    decode = type(model.sequence).decode

    def blackened(sequence: Any, view: int, frame: int) -> Any:
        photo = decode(sequence, view, frame)
        return type(photo)(0 * photo.image, photo.mask, photo.valid) if view == held_out else photo

    monkeypatch.setattr(type(model.sequence), "decode", blackened)
    monkeypatch.setattr(runs, "load_run", lambda file, *names: (pipeline, model))
    bake(config, tmp_path / "again")
    before, after = contents(charge), contents(tmp_path / "again")
    differing = {path for path in before if before[path] != after[path]}
    assert differing == {path for path in before if path.startswith("eval/image/")} | {"manifest.json", "hashes.json"}


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(("sample", "frames", "evaluated"), [
    ((0, 4, 2), [0, 2], [0, 1]), ((1,), [1], [0]), ((0, None, 1), [0, 1, 2, 3], [0, 1, 2, 3]),
])  # fmt: skip
def test_some_frames(config, once, charge, tmp_path, sample, frames, evaluated):
    manifest = bake(config, tmp_path / "part", frame_sample=sample, eval_photos=False)
    assert manifest.frames == [f"{frame:06d}" for frame in frames]
    assert manifest.times == pytest.approx(np.linspace(0, 1, len(frames)) if len(frames) > 1 else [0])
    assert manifest.notes["trained_times"] == pytest.approx([frame / 3 for frame in frames])
    assert manifest.eval_frames == evaluated
    assert manifest.eval_photos == ()
    assert not (tmp_path / "part" / "eval").exists()
    whole, part = contents(charge), contents(tmp_path / "part")
    assert all(whole[path] == part[path] for path in part if path.startswith("frames/"))


def test_fewer_sources_and_harmonics(config, once, charge, tmp_path):
    manifest = bake(config, tmp_path / "small", max_sources=3, sh_degree=1, xyz="u16", layers=5)
    store, whole = ChargedStore(tmp_path / "small"), ChargedStore(charge)
    frame, full = store.frame(1), whole.frame(1)
    assert (manifest.stored_sources, manifest.sh_degree, manifest.layers) == (3, 1, 5)
    assert frame.sh.shape[1:] == (4, 3)
    np.testing.assert_array_equal(frame.sh, full.sh[:, :4])
    rows = [full.src_id.tolist().index(view) for view in frame.src_id]
    np.testing.assert_array_equal(frame.src_rgb, full.src_rgb[rows])
    side = (manifest.box(1)[1] - manifest.box(1)[0]).max()
    assert np.abs(frame.positions() - full.positions()).max() <= side / 131070 + 1e-7
    assert manifest.bytes(1) < 0.45 * whole.manifest.bytes(1)


def test_visibility_lowers_the_logits_of_hidden_points(config, once, charge, tmp_path):
    bake(config, tmp_path / "seen", visibility=False)
    hidden, plain = ChargedStore(charge).frame(0).src_logit, ChargedStore(tmp_path / "seen").frame(0).src_logit
    difference = plain.astype(np.float32) - hidden.astype(np.float32)
    assert difference.min() > -0.01
    assert 0.02 < (difference > 1).mean() < 0.9


def test_corrected_cameras_are_stored(config, once, charge, tmp_path):
    refinement = CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), 8)
    torch.manual_seed(0)
    with torch.no_grad():
        refinement.adjustment[once.sequence.train_views] = 0.03 * torch.randn(7, 6)
    off, once.camera_refinement = once.camera_refinement, refinement  # monkeypatch cannot put modules back
    try:
        manifest, before = bake(config, tmp_path / "moved", frame_sample=(0, 1, 1)), read_manifest(charge)
    finally:
        once.camera_refinement = off
    for view in range(8):
        want = refinement(torch.from_numpy(before.camera(view, 0)[1]), view).detach().numpy()
        np.testing.assert_allclose(manifest.camera(view, 0)[1], want, atol=1e-12)
        assert (np.abs(want - before.camera(view, 0)[1]).max() > 1e-3) == (view in once.sequence.train_views)
    moved, plain = ChargedStore(tmp_path / "moved").frame(0), ChargedStore(charge).frame(0)
    assert (moved.src_rgb != plain.src_rgb).mean() > 0.1


@pytest.mark.parametrize(("options", "match"), [
    ({"max_sources": 0}, "--max-sources"), ({"sh_degree": 4}, "--sh-degree"), ({"layers": 0}, "--layers"),
    ({"xyz": "f16"}, "--xyz"), ({"colours": "u16"}, "--colours"), ({"frame_sample": (9,)}, "--frame-sample"),
    ({"frame_sample": (3, 3, 1)}, "--frame-sample"),
])  # fmt: skip
def test_options_out_of_range_write_nothing(config, once, tmp_path, options, match):
    with pytest.raises(DataError, match=match):
        bake(config, tmp_path / "charge", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_run(tmp_path):
    for file in (tmp_path / "config.yml", tmp_path):
        with pytest.raises(DataError, match=r"config\.yml of a run"):
            bake(file, tmp_path / "charge")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ other recordings


def test_moving_and_distorted_cameras_in_a_turned_world(tmp_path):
    """Nothing is held out either: training views are judged then."""
    recording = tmp_path / "toy"
    scene = make_moving_scene(recording, cameras=4, frames=2, size=(48, 60), supersample=1, distorted=True)
    camera = scene.cameras["02"]
    write_cameras(recording / "cameras" / "02", {
        f"{frame:06d}": dataclasses.replace(camera, name=f"{frame:06d}", T=camera.T + 0.02 * frame) for frame in (0, 1)
    })  # fmt: skip
    wanted = run_config(recording, tmp_path / "outputs", 2)
    parser = wanted.pipeline.datamanager.dataparser
    parser.orientation, parser.max_side = "up", 0
    wanted.save_config()
    train(wanted)
    manifest = bake(wanted.get_base_dir() / "config.yml", tmp_path / "charge")
    sequence = open_sequence(recording, SequenceOptions(orientation="up"))
    np.testing.assert_allclose(manifest.transform, sequence.transform)
    assert manifest.views[2].w2c.shape == (2, 4, 4)
    assert manifest.views[1].w2c.shape == (4, 4)
    pairs = [(frame, view) for frame in (0, 1) for view in range(4)]
    cameras = sequence_cameras(sequence, pairs)
    for row, (frame, view) in enumerate(pairs):
        (K, w2c), seen = manifest.camera(view, frame), pinhole(cameras[row : row + 1])
        np.testing.assert_allclose(seen.w2c, w2c, atol=1e-5)
        np.testing.assert_allclose(seen.K, K, atol=1e-4)
    assert manifest.eval_views == []
    assert len(manifest.eval_photos) == 8
    for photo in manifest.eval_photos:
        stored = np.asarray(Image.open(tmp_path / "charge" / str(photo.valid)))
        np.testing.assert_array_equal(stored > 0, sequence.views[photo.view].valid(photo.frame))
        assert (np.asarray(Image.open(tmp_path / "charge" / photo.image)).shape[1::-1]) == (48, 60)
    ChargedStore(tmp_path / "charge").verify()


# ------------------------------------------------------------------ kill and resume


class Stopped(BaseException):
    """In the place of a kill."""


def test_stopped_anywhere_it_goes_on_to_equal_bytes(config, once, charge, tmp_path, monkeypatch):
    """Every file is renamed into its place; the process ends at one of these moments after the other."""
    real, left = os.replace, [0]

    def counted(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        real(source, target)

    monkeypatch.setattr(os, "replace", counted)
    out, rounds, want = tmp_path / "charge", 0, contents(charge)
    while True:
        left[0] = 1 + rounds  # photos to compare with are written anew each time
        try:
            bake(config, out)
            break
        except Stopped:
            rounds += 1
            assert rounds < 30
    assert rounds > 4
    assert contents(out) == want


@pytest.mark.slow
def test_killed_it_goes_on_to_equal_bytes(config, once, charge, tmp_path):
    """kill -9 of the real process, as soon as two frames are there."""
    out = tmp_path / "charge"
    code = (
        "from pathlib import Path; from r4dv_ns.charge_bake import bake; "
        f"bake(Path({str(config)!r}), Path({str(out)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "bake" / "frames" / "000001.json").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (out / "frames").glob("00000[01]/*.npy")}
    bake(config, out)
    assert contents(out) == contents(charge)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_a_damaged_frame_is_baked_again(config, once, charge, tmp_path, monkeypatch):
    out = tmp_path / "charge"
    monkeypatch.setattr(charge_bake, "write_manifest", stop)
    with pytest.raises(Stopped):
        bake(config, out)
    monkeypatch.undo()
    monkeypatch.setattr(runs, "load_run", lambda file, *names: (SimpleNamespace(
        datamanager=SimpleNamespace(sequence=once.sequence)), once))  # fmt: skip
    file = out / "frames" / "000001" / "alpha.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (out / "frames" / "000002" / "sh.npy").unlink()
    for left in (".tmp-1-000003/.tmp-2-sh.npy", ".tmp-3-000000.npz"):  # what a kill leaves
        (out / "frames" / left).parent.mkdir(exist_ok=True)
        (out / "frames" / left).write_text("")
    (out / "eval" / "image" / "04" / ".tmp-4-000000.png").write_text("")
    bake(config, out)
    assert contents(out) == contents(charge)


def stop(*arguments: Any) -> None:
    raise Stopped


def test_two_bakes_never_mix(config, once, charge, tmp_path, monkeypatch):
    out = tmp_path / "charge"
    monkeypatch.setattr(charge_bake, "write_manifest", stop)
    with pytest.raises(Stopped):
        bake(config, out)
    unfinished = contents(out)
    with pytest.raises(DataError, match="unfinished bake of another kind: options"):
        bake(config, out, max_sources=3)
    with pytest.raises(DataError, match="frames, options differ"):
        bake(config, out, frame_sample=(0, 2, 1))
    with torch.no_grad():
        monkeypatch.setattr(charge_bake, "file_sha256", lambda path: "f" * 64)
        with pytest.raises(DataError, match="checkpoint, config differ"):
            bake(config, out)
    assert contents(out) == unfinished


def test_a_finished_charge_stays(config, once, charge):
    before = {path: path.stat().st_mtime_ns for path in (charge / "frames").rglob("*.npy")}
    (charge / "bake").mkdir()  # killed between the manifest and the end
    bake(config, charge)
    assert before == {path: path.stat().st_mtime_ns for path in (charge / "frames").rglob("*.npy")}
    assert not (charge / "bake").exists()
    with pytest.raises(DataError, match="a charge of another kind: options"):
        bake(config, charge, colours="f32")


def test_two_processes_do_not_bake_into_one_folder(config, once, charge, tmp_path, monkeypatch):
    """The second is refused while the first is at work, and changes nothing; later it finds the finished charge."""
    out, refused = tmp_path / "charge", []
    real = charge_bake.capture_frame

    def meanwhile(*arguments: Any) -> Any:
        if not refused:
            before = contents(out)
            with pytest.raises(DataError, match="is being made by another process") as caught:
                bake(config, out)
            refused.append(str(caught.value))
            assert contents(out) == before
        return real(*arguments)

    monkeypatch.setattr(charge_bake, "capture_frame", meanwhile)
    bake(config, out)
    assert len(refused) == 1
    bake(config, out)
    assert contents(out) == contents(charge)


@pytest.mark.slow
def test_two_processes_started_at_once_leave_one_whole_charge(config, charge, tmp_path):
    """Either one waits for nobody: it bakes, finds a finished charge, or is refused."""
    out = tmp_path / "charge"
    code = (
        "import sys; from pathlib import Path; from r4dv_ns.charge_bake import bake\n"
        "from core_ns.errors import DataError\n"
        f"try: bake(Path({str(config)!r}), Path({str(out)!r}))\n"
        "except DataError as error: sys.exit(str(error))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(process.communicate(timeout=240)[1], process.returncode) for process in running]
    assert any(status == 0 for _, status in ended)
    assert all(status == 0 or "is being made by another process" in errors for errors, status in ended)
    assert contents(out) == contents(charge)


def test_folders_that_hold_something_else_are_left_alone(config, once, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for name, match in (("file", "is a file"), ("folder", "not empty")):
        with pytest.raises(DataError, match=match):
            bake(config, tmp_path / name)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine.txt"]


def test_too_little_room(config, once, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(DataError, match="GB are free"):
        bake(config, tmp_path / "charge")
    assert list(tmp_path.iterdir()) == []
