"""Exported cameras: the gauge is taken out, nothing else changes, and readers take what was written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE, run_config, train
from scipy.spatial.transform import Rotation

from core_ns import runs
from core_ns.errors import DataError
from dataparsers.easymocap import CameraModel, find_calibration, read_cameras, write_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_scene import make_moving_scene
from r4dv_ns.camera_export import change, export_cameras, gauge, refined_calibration, rigid_fit, write_calibration
from r4dv_ns.camera_refinement import CameraRefinement, CameraRefinementConfig
from r4dv_ns.cli import entrypoint


def motion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3)
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_rigid_fit_is_scipys(seed):
    rng = np.random.default_rng(seed)
    points, target = rng.normal(size=(7, 3)), motion(seed)
    targets = points @ target[:3, :3].T + target[:3, 3] + 0.05 * rng.normal(size=(7, 3))
    found = rigid_fit(points, targets)
    rotation, _ = Rotation.align_vectors(targets - targets.mean(axis=0), points - points.mean(axis=0))
    np.testing.assert_allclose(found[:3, :3], rotation.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(found[:3, :3] @ points.mean(axis=0) + found[:3, 3], targets.mean(axis=0), atol=1e-12)


def test_rigid_fit_never_mirrors():
    points = np.random.default_rng(0).normal(size=(6, 3))
    assert np.linalg.det(rigid_fit(points, points * [1, 1, -1])[:3, :3]) == pytest.approx(1)
    flat = points * [1, 1, 0]
    np.testing.assert_allclose(rigid_fit(flat, flat), np.eye(4), atol=1e-12)
    with pytest.raises(ValueError, match="expected two"):
        rigid_fit(points, points[:3])


@pytest.mark.parametrize("case", ["ring", "line", "two", "one", "same place"])
def test_gauge_undoes_a_common_motion(case):
    rng = np.random.default_rng(1)
    count = {"two": 2, "one": 1}.get(case, 6)
    centres = rng.normal(size=(count, 3))
    if case == "line":
        centres = np.outer(np.arange(6.0), [1.0, 2.0, 0.5])
    elif case == "same place":
        centres = np.ones((6, 3))
    original = np.tile(np.eye(4), (count, 1, 1))
    for w2c, centre, rotation in zip(original, centres, Rotation.random(count, random_state=2), strict=True):
        w2c[:3, :3] = rotation.as_matrix()
        w2c[:3, 3] = -w2c[:3, :3] @ centre
    moved = original @ np.linalg.inv(motion(3))  # the world moves, the pictures stay
    np.testing.assert_allclose(moved @ np.linalg.inv(gauge(moved, original)), original, atol=1e-8)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """Six cameras, one of them moving, another held out."""
    folder = tmp_path_factory.mktemp("export") / "toy"
    scene = make_moving_scene(folder, cameras=6, frames=2, size=(24, 30), supersample=1, distorted=True)
    camera = scene.cameras["03"]
    frames = {f"{k:06d}": replace(camera, name=f"{k:06d}", T=camera.T + 0.01 * k) for k in range(2)}
    write_cameras(folder / "cameras" / "03", frames)
    return folder


def options(**other: Any) -> SequenceOptions:
    return SequenceOptions(eval_views=("05",), **other)


def disturbed(sequence, seed: int = 0) -> CameraRefinement:
    refinement = CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), len(sequence.views))
    with torch.no_grad():
        noise = torch.randn(refinement.adjustment.shape, generator=torch.Generator().manual_seed(seed))
        refinement.adjustment[sequence.train_views] = 0.01 * noise[sequence.train_views]
    return refinement


def test_round_trip_through_the_optimized_folder(rig):
    sequence = open_sequence(rig, options(cameras="plain"))
    calibration, changes = refined_calibration(sequence, disturbed(sequence))
    assert [each.name for each in changes] == ["00", "01", "02", "03", "04"]
    out = rig / "optimized"
    write_calibration(out, calibration)
    try:
        folder, again = find_calibration(rig, "auto")
        assert folder == out
        _, plain = find_calibration(rig, "plain")
        assert list(again) == list(plain)
        for name, old in plain.items():
            for stem in [None] if isinstance(old, CameraModel) else list(old):
                before, after, meant = (
                    each if stem is None else each[stem] for each in (old, again[name], calibration[name])
                )
                for key in ("K", "D", "width", "height", "near", "far", "bounds", "ccm"):
                    np.testing.assert_array_equal(getattr(before, key), getattr(after, key))
                np.testing.assert_allclose(after.w2c, meant.w2c, atol=1e-12)
                if name == "05":
                    np.testing.assert_allclose(after.w2c, before.w2c, atol=1e-15)
                else:
                    moved = change(name, before, after)
                    assert 1e-3 < moved.distance < 0.06
                    assert 0.05 < moved.degrees < 3
        reopened = open_sequence(rig, options())
        assert reopened.calibration_dir == out
        np.testing.assert_allclose(reopened.camera(0, 0)[1], calibration["00"].w2c, atol=1e-12)
        with pytest.raises(DataError, match="not empty"):
            write_calibration(out, calibration)
    finally:
        shutil.rmtree(out)


def test_corrections_are_in_the_world_that_was_trained_in(rig):
    """--orientation up turns it; how two cameras stand to one another does not depend on the gauge."""
    sequence = open_sequence(rig, options(orientation="up", view_sample=(0, 1, 2, 4, 5)))
    assert np.abs(sequence.transform - np.eye(4)).max() > 0.1
    refinement = disturbed(sequence).double()
    calibration, _ = refined_calibration(sequence, refinement)
    back = np.linalg.inv(sequence.transform)
    drawn = [refinement(torch.from_numpy(sequence.camera(view, 0)[1] @ back), view) for view in (0, 3)]
    exported = [torch.from_numpy(calibration[sequence.names[view]].w2c) for view in (0, 3)]
    wanted, found = (one @ torch.linalg.inv(other) for one, other in (drawn, exported))
    torch.testing.assert_close(found, wanted.detach(), atol=1e-10, rtol=0)


def test_a_common_motion_is_no_correction(rig):
    """Corrections that move all training cameras alike leave the calibration as it was."""
    sequence = open_sequence(rig, options(view_sample=(0, 1, 2, 4, 5)))
    refinement = CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), len(sequence.views)).double()
    vector = torch.tensor([0.02, -0.01, 0.03], dtype=torch.float64)
    turn = torch.from_numpy(Rotation.from_rotvec(vector.numpy()).as_matrix())
    with torch.no_grad():
        for view in sequence.train_views:
            centre = torch.from_numpy(sequence.views[view].centre(0))
            refinement.adjustment[view, :3] = turn @ centre - centre + 0.05
            refinement.adjustment[view, 3:] = vector
    calibration, changes = refined_calibration(sequence, refinement)
    assert max(each.distance for each in changes) < 1e-9
    assert max(each.degrees for each in changes) < 1e-6
    for name, camera in find_calibration(rig, "plain")[1].items():
        if isinstance(camera, CameraModel):
            np.testing.assert_allclose(calibration[name].w2c, camera.w2c, atol=1e-9)


def test_the_export_equals_what_training_saw(rig):
    """With the gauge put back, the exported cameras are the module's."""
    sequence = open_sequence(rig, options(view_sample=(0, 1, 2, 4, 5)))
    refinement = disturbed(sequence, 5)
    calibration, _ = refined_calibration(sequence, refinement)
    seen = [refinement(torch.from_numpy(sequence.camera(view, 0)[1]), view) for view in sequence.train_views]
    exported = [calibration[sequence.views[view].name].w2c for view in sequence.train_views]
    relative = [np.linalg.inv(w2c.detach().numpy()) @ out for w2c, out in zip(seen, exported, strict=True)]
    for each in relative[1:]:
        np.testing.assert_allclose(each, relative[0], atol=1e-9)


@pytest.mark.parametrize("cameras", ["auto", "plain", "optimized"])
def test_corrections_are_not_put_on_cameras_that_came_later(rig, tmp_path, monkeypatch, cameras):
    config = tmp_path / "config.yml"
    config.write_text("")
    out = rig / "optimized"
    write_cameras(out, {name: each for name, each in find_calibration(rig, "plain")[1].items() if name != "03"})
    try:
        sequence = open_sequence(rig, options(cameras=cameras))
        model = SimpleNamespace(camera_refinement=disturbed(sequence))
        loaded = SimpleNamespace(datamanager=SimpleNamespace(sequence=sequence)), model
        monkeypatch.setattr(runs, "load_run", lambda file, name: loaded)
        os.utime(config, (1, 1))  # the run is older than the refined cameras
        if cameras == "auto":
            with pytest.raises(DataError, match="younger than the run"):
                export_cameras(config, tmp_path / "first")
            assert not (tmp_path / "first").exists()
            config.touch()
        assert len(export_cameras(config, tmp_path / "second")) == 5
    finally:
        shutil.rmtree(out)


def test_a_recording_may_itself_be_called_optimized(recording, tmp_path):
    """A run keeps the cameras that it began with, by the folder they came from and not by its name."""
    scene = shutil.copytree(recording, tmp_path / "optimized")
    config = run_config(scene, tmp_path / "out", 3)
    config.dry_run = True
    with pytest.raises(SystemExit) as end:
        config.save_config()
    assert end.value.code == 0
    assert config.pipeline.datamanager.dataparser.cameras == "plain"


def test_runs_without_corrections_are_refused(rig, tmp_path, monkeypatch):
    sequence = open_sequence(rig, options())
    off = CameraRefinement(CameraRefinementConfig(), len(sequence.views))
    with pytest.raises(DataError, match="are off"):
        refined_calibration(sequence, off)
    with pytest.raises(ValueError, match="2 corrections"):
        refined_calibration(sequence, CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), 2))
    pipeline = SimpleNamespace(datamanager=SimpleNamespace(sequence=sequence))
    monkeypatch.setattr(runs, "load_run", lambda file, name: (pipeline, SimpleNamespace(camera_refinement=off)))
    with pytest.raises(DataError, match="are off"):
        export_cameras(tmp_path / "config.yml", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_change_measures_small_angles():
    camera = CameraModel("a", np.eye(3))
    turned = replace(camera, R=Rotation.from_euler("y", 1e-5, degrees=True).as_matrix(), T=np.array([0.0, 0.0, 0.01]))
    found = change("a", camera, turned)
    assert found.degrees == pytest.approx(1e-5, rel=1e-6)
    assert found.distance == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings(*NOISE, "ignore::DeprecationWarning")
def test_a_trained_run_exports_what_its_checkpoint_holds(recording, tmp_path, monkeypatch, capsys):
    """ns-train's own trainer, a saved run, and the command that reads it back."""
    monkeypatch.chdir(tmp_path)
    config = run_config(recording, tmp_path / "out", 12, camera_refinement=CameraRefinementConfig(mode="SO3xR3"))
    config.optimizers["camera_opt"]["optimizer"].lr = 1e-3
    config.save_config()
    trainer = train(config)
    refinement, sequence = trainer.pipeline.model.camera_refinement, trainer.pipeline.datamanager.sequence
    moved = refinement.adjustment.detach().norm(dim=1)
    assert (moved[sequence.train_views] > 0).sum() > 3, "the photos moved cameras"
    assert float(moved[sequence.eval_views].max()) == 0, "a held-out camera is never corrected"

    options = ["--load-config", str(config.get_base_dir() / "config.yml"), "--out", str(tmp_path / "refined")]
    with pytest.raises(SystemExit) as end:
        entrypoint(["cameras", "export", *options])
    assert end.value.code == 0
    assert f"{sequence.names[sequence.train_views[0]]}  " in capsys.readouterr().out
    meant, _ = refined_calibration(sequence, refinement)
    written = read_cameras(tmp_path / "refined" / "intri.yml", tmp_path / "refined" / "extri.yml")
    assert list(written) == list(meant)
    for name, camera in written.items():
        assert isinstance(meant[name], CameraModel)
        np.testing.assert_allclose(camera.w2c, meant[name].w2c, atol=1e-12)
