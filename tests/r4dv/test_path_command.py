"""``ns-r4dv path``: every type (acceptance A26), bad input as one line, and a trained run's path drawn by ns-render."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands import run as run_process
from path_recordings import DATA, OPTIONS, TARGET, gaze, record, run
from PIL import Image

from core_ns.frames import transform_cameras
from dataparsers.easymocap_sequence import open_sequence
from r4dv_ns import paths
from r4dv_ns.path_rig import rig_of_sequence


@pytest.fixture(scope="module")
def sequence_dir(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "toy")


@pytest.mark.parametrize("kind", ["orbit", "spiral", "cubic", "linear", "sector", "yml"])
def test_every_type_from_a_recording(sequence_dir, tmp_path, capsys, kind):
    words = ["--data", sequence_dir, *DATA, "--type", kind, "--n", 30, "--time", 0.25, 1, "--size", 96, 64]
    if kind == "yml":
        words += ["--file", sequence_dir]
    assert run(*words, "--out", tmp_path / "path.json") == 0
    shown = capsys.readouterr().out
    assert "30 pictures of 96x64, 0.5 s at 60 a second" in shown
    assert f"--camera-path-filename {tmp_path / 'path.json'}" in shown
    content = json.loads((tmp_path / "path.json").read_text())
    assert (content["render_width"], content["render_height"]) == (96, 64)
    assert (content["seconds"], content["fps"], content["camera_type"]) == (0.5, 60, "perspective")
    entries = content["camera_path"]
    assert len(entries) == 30
    for entry in entries:
        assert set(entry) == {"camera_to_world", "fov", "aspect", "render_time"}
        assert len(entry["camera_to_world"]) == 16
        assert entry["aspect"] == 1.5
        assert 20 < entry["fov"] < 60
    assert entries[0]["render_time"] == 0.25
    assert entries[-1]["render_time"] == 1.0
    c2w = np.array([entry["camera_to_world"] for entry in entries]).reshape(-1, 4, 4)
    if kind in ("orbit", "sector", "spiral"):
        assert gaze(c2w, TARGET).max() <= 1e-6
    assert (c2w[:, 2, 1] > 0.5).all(), "upright"
    assert (np.linalg.norm(c2w[:, :3, 3] - TARGET, axis=1) > 1.5).all()
    for name in ("intri.yml", "extri.yml"):
        assert (tmp_path / "path_cameras" / name).is_file()
    again = tmp_path / "again.json"
    assert run("--data", sequence_dir, *DATA, "--type", "yml", "--file", tmp_path / "path_cameras", "--out", again) == 0
    second = json.loads(again.read_text())
    np.testing.assert_allclose([e["camera_to_world"] for e in second["camera_path"]], c2w.reshape(-1, 16), atol=1e-9)
    np.testing.assert_allclose([e["fov"] for e in second["camera_path"]], [e["fov"] for e in entries])
    assert [e["render_time"] for e in second["camera_path"]] == [e["render_time"] for e in entries]


def test_an_upright_world_changes_the_json_and_not_the_yml(sequence_dir, tmp_path):
    for name, extra in (("plain", ()), ("up", ("--orientation", "up"))):
        out = tmp_path / f"{name}.json"
        assert run("--data", sequence_dir, *DATA, *extra, "--n", 6, "--out", out) == 0
    assert (tmp_path / "plain_cameras" / "extri.yml").read_text() == (tmp_path / "up_cameras" / "extri.yml").read_text()
    plain, up = (
        np.array([e["camera_to_world"] for e in json.loads((tmp_path / f"{name}.json").read_text())["camera_path"]])
        for name in ("plain", "up")
    )
    transform = open_sequence(sequence_dir, replace(OPTIONS, orientation="up")).transform
    np.testing.assert_allclose(up.reshape(-1, 4, 4), transform_cameras(plain.reshape(-1, 4, 4), transform[:3]))
    assert not np.allclose(up, plain)


# ---------------------------------------------------------------------- bad input


BAD = {
    "n": (("--n", 0), "--n"),
    "n large": (("--n", 10**6), "--n"),
    "fps": (("--fps", 0), "--fps"),
    "fps nan": (("--fps", "nan"), "--fps"),
    "play fps": (("--play-fps", -1), "--play-fps"),
    "size": (("--size", 0, 4), "--size"),
    "time": (("--time", 0, 2), "--time"),
    "time knots": (("--time", 0, 1, 0, "--play-fps", 30), "--play-fps, --time"),
    "focal": (("--focal-ratio", 0), "--focal-ratio"),
    "fov": (("--fov", 180), "--fov"),
    "radius": (("--radius", "-1"), "--radius"),
    "radius small": (("--radius", "0.1"), "no circle"),
    "percentile": (("--percentile", 101), "--percentile"),
    "smoothing": (("--smoothing", "-1"), "--smoothing"),
    "smoothing long": (("--smoothing", "5.1"), "longer than the path"),
    "turns": (("--turns", 0), "--turns"),
    "up": (("--up", 0, 0, 0), "--up"),
    "attention": (("--attention", 0, 0, "inf"), "--attention"),
    "views": (("--views", "99"), "no training camera"),
    "held-out": (("--views", "02", "00"), "no training camera"),
    "few": (("--type", "cubic", "--views", "00", "01"), "needs 4 key cameras"),
    "one": (("--type", "linear", "--views", "00"), "needs 2 key cameras"),
    "around": (("--type", "spiral", "--around", "99"), "no training camera"),
    "one direction": (("--type", "sector", "--views", "00", "00"), "parallel"),
    "yml without file": (("--type", "yml"), "do not belong together"),
    "file without yml": (("--file", "x"), "do not belong together"),
    "no file": (("--type", "yml", "--file", "nowhere"), "intri.yml"),
    "no json": (("--type", "yml", "--file", "nowhere.json"), "is not a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_line_and_write_nothing(sequence_dir, tmp_path, capsys, case):
    words, place = BAD[case]
    assert run("--data", sequence_dir, *DATA, "--out", tmp_path / "path.json", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert place in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_what_is_to_be_opened(sequence_dir, tmp_path, capsys):
    out = ("--out", tmp_path / "new" / "path.json")
    (tmp_path / "config.yml").write_text("")
    (tmp_path / "foreign.yml").write_text("!!python/object:a.B\npipeline: !!python/object:other_ns.x.Config {}\n")
    cases = [
        (("--data", sequence_dir, "--load-config", tmp_path / "config.yml"), "one at a time"),
        ((), "one at a time"),
        (("--load-config", tmp_path / "config.yml", "--ratio", 0.5), "the run has chosen"),
        (("--load-config", tmp_path / "nowhere.yml"), "is not a file"),
        (("--load-config", tmp_path / "config.yml"), "no run's config.yml"),
        (("--load-config", tmp_path / "foreign.yml"), "config.yml"),
        (("--data", tmp_path / "nowhere"), "is not a folder"),
    ]
    for words, message in cases:
        assert run(*out, *words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert message in lines[0]
    for name in ("path.txt", "path"):
        assert run("--data", sequence_dir, *DATA, "--out", tmp_path / "new" / name) == 2
        assert "no .json file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "taken_cameras").write_text("")
    assert run("--data", sequence_dir, *DATA, "--out", tmp_path / "taken.json") == 2
    assert "in the way" in capsys.readouterr().err
    assert not (tmp_path / "taken.json").exists()
    assert run("--data", sequence_dir, *DATA, "--no-yml", "--n", 2, "--out", tmp_path / "taken.json") == 0


# ---------------------------------------------------------------------- a trained run, as real processes


@pytest.mark.slow
def test_ns_render_draws_the_path_of_a_trained_run(trained, recording, work):
    """An orbit about a run's own cameras, drawn by ns-render: six pictures that differ, the subject in their middle."""
    out = work / "orbit.json"
    code = (
        "from core_ns.console import run_command\nfrom r4dv_ns.path_command import CameraPathCommand\n"
        "run_command(CameraPathCommand, 'ns-r4dv path', 'Paths.')"
    )
    words = ("--n", "6", "--fps", "6", "--size", "48", "64", "--time", "0", "1", "0")
    run_process("python", "-c", code, "--load-config", trained / "config.yml", *words, "--out", out, cwd=work)
    content = json.loads(out.read_text())
    cameras = rig_of_sequence(open_sequence(recording)).c2w
    c2w = np.array([entry["camera_to_world"] for entry in content["camera_path"]]).reshape(-1, 4, 4)
    assert gaze(c2w, paths.attention_point(cameras)).max() <= 1e-6
    run_process(
        "ns-render", "camera-path", "--load-config", trained / "config.yml", "--camera-path-filename", out,
        "--output-path", work / "orbit", "--output-format", "images", "--image-format", "png", cwd=work,
    )  # fmt: skip
    pictures = [np.asarray(Image.open(file)).astype(float) for file in sorted((work / "orbit").iterdir())]
    assert len(pictures) == 6
    for picture in pictures:
        assert picture.shape == (64, 48, 3)
        assert picture.max() > 50, "the subject is in the picture"
        middle = picture[16:48, 12:36].mean()
        assert middle > 2 * picture[:4].mean(), "and in its middle"
    assert min(np.abs(a - b).max() for a, b in pairwise(pictures)) > 20
