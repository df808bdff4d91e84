"""The cameras that paths are laid along: of recordings, runs and charged folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run as run_process
from easymocap_scene import make_sequence, ring
from path_recordings import DATA, OPTIONS, record, run

from core_ns import runs
from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras, transform_points
from dataparsers.easymocap_attention import box_corners
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from r4dv_ns.camera_refinement import CameraRefinement, CameraRefinementConfig
from r4dv_ns.charge_manifest import ChargedView, Manifest, Start, write_manifest
from r4dv_ns.path_rig import open_rig, rig_of_sequence


@pytest.fixture(scope="module")
def sequence_dir(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "toy")


def test_only_training_views_and_where_moving_cameras_begin(tmp_path):
    folder = make_sequence(tmp_path / "toy", ring(8), frames=3, masks=False, moving=("03",))
    found = open_rig(None, folder, OPTIONS)
    assert found.names == ("00", "01", "03", "04", "05", "06", "07")
    sequence = open_sequence(folder, OPTIONS)
    np.testing.assert_allclose(found.c2w[2], c2w_opengl_from_w2c_opencv(sequence.views[3].w2c(0)))
    np.testing.assert_allclose(found.focal[0], [50 / 48, 51 / 36])
    assert found.times == (0.0, 0.5, 1.0)


def stub_run(monkeypatch, tmp_path, sequence, refinement=None) -> Path:
    config = tmp_path / "config.yml"
    config.write_text("")
    loaded = (
        SimpleNamespace(datamanager=SimpleNamespace(sequence=sequence)),
        SimpleNamespace(camera_refinement=refinement),
    )
    monkeypatch.setattr(runs, "load_run", lambda file, name: loaded)
    return config


def test_a_run_gives_its_corrected_cameras(sequence_dir, tmp_path, monkeypatch):
    """The correction has the axes of nerfstudio's world, in which the model draws."""
    sequence = open_sequence(sequence_dir, replace(OPTIONS, orientation="up"))
    refinement = CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), len(sequence.views)).double()
    with torch.no_grad():
        refinement.adjustment[:, :3] = torch.tensor([0.0, 0.0, 0.25])  # up, in that world
    config = stub_run(monkeypatch, tmp_path, sequence, refinement)
    found, plain = open_rig(config, None, SequenceOptions()), rig_of_sequence(sequence)
    seen = [transform_cameras(each.c2w, sequence.transform[:3]) for each in (found, plain)]
    np.testing.assert_allclose(seen[0][:, :3, 3] - seen[1][:, :3, 3], np.tile([0, 0, 0.25], (7, 1)), atol=1e-9)
    np.testing.assert_allclose(seen[0][:, :3, :3], seen[1][:, :3, :3], atol=1e-9)
    off = stub_run(monkeypatch, tmp_path, sequence, CameraRefinement(CameraRefinementConfig(), 8))
    np.testing.assert_array_equal(open_rig(off, None, SequenceOptions()).c2w, plain.c2w)


CHARGED = """!!python/object:r4dv_ns.charged_config.ChargedTrainerConfig
pipeline: !!python/object:r4dv_ns.charged_pipeline.ChargedPipelineConfig
  datamanager: !!python/object:r4dv_ns.charged_data.ChargedDataManagerConfig
    dataparser: !!python/object:r4dv_ns.charged_data.ChargedDataParserConfig
      first_frame: false
      frame_sample: null
"""
"""What of a charged folder's config.yml matters here, as nerfstudio writes it."""


def charged(folder: Path, sequence) -> Path:
    """A charged folder's manifest, with cameras in nerfstudio's world."""
    back = np.linalg.inv(sequence.transform)
    bounds = np.array([[-1.0, -1, -1], [1, 1, 2]])
    corners = transform_points(box_corners(bounds), sequence.transform)
    views = tuple(
        ChargedView(view.name, view.K, view.width, view.height, view.w2c(0) @ back, index in sequence.train_views)
        for index, view in enumerate(sequence.views)
    )
    start = Start(np.array([3.0, 0, 0]), np.zeros(3), np.array([0.0, 0, 1]))
    manifest = Manifest(
        frames=sequence.frames, times=list(sequence.times), counts=[10] * len(sequence.frames),
        bounds=np.stack([corners.min(axis=0), corners.max(axis=0)]), views=views, start=start,
        transform=sequence.transform,
    )  # fmt: skip
    folder.mkdir()
    write_manifest(folder, manifest, dict.fromkeys(manifest.paths(), "0" * 64))
    (folder / "hashes.json").unlink()
    (folder / "config.yml").write_text(CHARGED)
    return folder / "config.yml"


@pytest.mark.parametrize("orientation", ["none", "up"])
def test_a_charged_folder_needs_its_manifest_alone(sequence_dir, tmp_path, orientation):
    sequence = open_sequence(sequence_dir, replace(OPTIONS, orientation=orientation))
    config = charged(tmp_path / "charged", sequence)
    found, meant = open_rig(config, None, SequenceOptions()), rig_of_sequence(sequence)
    assert found.names == meant.names
    assert found.times == meant.times
    for key in ("c2w", "focal", "transform"):
        np.testing.assert_allclose(getattr(found, key), getattr(meant, key), atol=1e-9)
    assert run("--load-config", config, "--n", 4, "--out", tmp_path / "charged.json") == 0
    options = ("--data", sequence_dir, *DATA, "--orientation", orientation)
    assert run(*options, "--n", 4, "--out", tmp_path / "data.json") == 0
    first, second = (
        np.array([e["camera_to_world"] for e in json.loads((tmp_path / f"{name}.json").read_text())["camera_path"]])
        for name in ("charged", "data")
    )
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_times_are_those_of_the_frames_that_a_charged_folder_plays(sequence_dir, tmp_path, capsys):
    config = charged(tmp_path / "charged", open_sequence(sequence_dir, OPTIONS))

    def times(old: str, new: str) -> tuple[float, ...]:
        config.write_text(CHARGED.replace(old, new))
        return open_rig(config, None, SequenceOptions()).times

    assert times("", "") == (0, 1 / 3, 2 / 3, 1)
    listed = "frame_sample: !!python/tuple\n      - 1\n      - null\n      - 1"
    assert times("frame_sample: null", listed) == pytest.approx((0, 0.5, 1))
    for written in ("true", "True", "yes"):  # by hand, as YAML allows
        assert times("first_frame: false", f"first_frame: {written}") == (0,)
    assert times("frame_sample: null", "frame_sample: [1, Null, 1]") == pytest.approx((0, 0.5, 1))
    config.write_text(CHARGED.replace("frame_sample: null", "frame_sample: [x, y]"))
    assert run("--load-config", config, "--out", tmp_path / "path.json") == 2
    config.write_text(CHARGED)
    (config.parent / "manifest.json").write_text("{")
    assert run("--load-config", config, "--out", tmp_path / "path.json") == 2
    (config.parent / "manifest.json").unlink()
    assert run("--load-config", config, "--out", tmp_path / "path.json") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3, lines
    assert "no list of frames" in lines[0]
    assert not (tmp_path / "path.json").exists()


@pytest.mark.slow
def test_the_config_that_nerfstudio_reads_is_understood(sequence_dir, tmp_path):
    """As `write_run` writes it, in a process of its own: nerfstudio's imports warn."""
    config = charged(tmp_path / "charged", open_sequence(sequence_dir, OPTIONS))
    code = (
        "from pathlib import Path\nfrom r4dv_ns.charged_config import write_run\n"
        f"write_run(Path({str(config.parent)!r}), frame_sample=(0, 3, 1))"
    )
    run_process("python", "-c", code, cwd=tmp_path)
    assert "ChargedTrainerConfig" in config.read_text()
    assert open_rig(config, None, SequenceOptions()).times == pytest.approx((0, 0.5, 1))
