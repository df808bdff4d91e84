"""``ns-r4dv``: every subcommand's way through its options, and bad input as one line."""

from __future__ import annotations

import numpy as np
import pytest

from core_ns.atomic import write_text
from core_ns.demo_scenes import make_demo_scene
from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, write_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_scene import make_moving_scene
from r4dv_ns.camera_export import CameraChange
from r4dv_ns.cli import entrypoint


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        entrypoint([str(argument) for argument in arguments])
    return int(end.value.code or 0)


COMMANDS = ("hull", "demo-scene", "convert", "cameras", "process", "bg-init", "charge", "path")
DEEPER = (
    *(f"process {action}" for action in ("images", "masks", "encode", "plates", "link-backgrounds")),
    *(f"charge {action}" for action in ("bake", "info", "verify", "open", "mobile", "import")),
)


@pytest.mark.parametrize("command", ["", *COMMANDS, *DEEPER])
def test_help(command, capsys):
    assert run(*command.split(), "--help") == 0
    shown = capsys.readouterr().out
    for word in [command] if command else COMMANDS:
        assert word in shown


def test_demo_scene_then_hull(tmp_path, capsys):
    assert run("demo-scene", tmp_path / "toy", "--cameras", 8, "--frames", 2, "--size", 48, 60) == 0
    assert "ns-train r4dv-tiny --data" in capsys.readouterr().out
    assert len(list((tmp_path / "toy").rglob("*.jpg"))) == 16
    options = ("--voxel", 0.04, "--points", 500, "--eval-views", "none", "--workers", 1)
    assert run("hull", tmp_path / "toy", *options) == 0
    shown = capsys.readouterr().out
    assert "2 frames, voxel 0.04" in shown
    overlaps = [float(line.split()[-1]) for line in shown.splitlines() if "overlap" in line]
    assert len(overlaps) == 2
    assert min(overlaps) > 0.8
    assert (tmp_path / "toy" / "r4dv" / "report" / "index.html").is_file()
    assert (tmp_path / "toy" / "r4dv" / "meta.json").is_file()
    assert len(list((tmp_path / "toy" / "surfs").glob("*.ply"))) == 2
    out = tmp_path / "elsewhere"
    assert run("hull", tmp_path / "toy", "--output-dir", out, "--no-report", "--frame-sample", 1, 2, 1, *options) == 0
    assert [path.name for path in (out / "surfs").iterdir()] == ["000001.ply"]
    assert not list(out.rglob("*.html"))


def test_demo_scene_refuses_before_it_writes(tmp_path, capsys):
    for option in (("--cameras", 1), ("--frames", 61), ("--size", 4, 400), ("--seed", -1)):
        assert run("demo-scene", tmp_path / "toy", *option) == 2
    (tmp_path / "file").write_text("")
    assert run("demo-scene", tmp_path / "file") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 5
    assert all(line.startswith("DataError: ") for line in shown)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_hull_names_what_is_missing(tmp_path, capsys):
    assert run("hull", tmp_path / "nowhere") == 2
    assert "is not a folder" in capsys.readouterr().err
    make_moving_scene(tmp_path / "toy", cameras=2, frames=1, size=(24, 24), supersample=1)
    for file in (tmp_path / "toy" / "masks").rglob("*.png"):
        file.unlink()
    assert run("hull", tmp_path / "toy", "--eval-views", "none") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "toy" / "surfs").exists()


def test_cameras_export_prints_the_corrections(tmp_path, capsys, monkeypatch):
    def export(config, folder):
        assert (config, folder) == (tmp_path / "config.yml", tmp_path / "out")
        write_cameras(folder, {"a": CameraModel("a", np.eye(3))})
        return [CameraChange("a", 1.25, 0.0125)]

    monkeypatch.setattr("r4dv_ns.camera_export.export_cameras", export)
    assert run("cameras", "export", "--load-config", tmp_path / "config.yml", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "1.2500       0.0125" in shown
    assert (tmp_path / "out" / "extri.yml").is_file()


def test_cameras_export_without_a_run(tmp_path, capsys):
    assert run("cameras", "export", "--load-config", tmp_path / "config.yml", "--out", tmp_path / "out") == 2
    assert "Name the config.yml of a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("cameras", "import", "--load-config", "x", "--out", "y") == 2


def colmap_project(folder) -> None:
    """Two cameras with two photos each, one of which is registered; masks as transparency."""
    for camera in ("left", "right"):
        for frame in ("000000", "000001"):
            rgba = np.full((24, 32, 4), 200, np.uint8)
            rgba[:4, :, 3] = 0
            write_image(folder / "images" / camera / f"{frame}.png", rgba)
    model = folder / "sparse" / "0"
    write_text(model / "cameras.txt", "1 SIMPLE_PINHOLE 32 24 30 16 12\n")
    write_text(
        model / "images.txt",
        "1 1 0 0 0 0 0 3 1 left/000000.png\n\n2 0.9689124 0 0.2474040 0 -1 0 3 1 right/000000.png\n\n",
    )
    write_text(model / "points3D.txt", "")


def test_convert_colmap(tmp_path, capsys):
    colmap_project(tmp_path / "project")
    assert run("convert", tmp_path / "project" / "sparse" / "0", tmp_path / "out") == 0
    assert "ns-train r4dv --data" in capsys.readouterr().out
    sequence = open_sequence(tmp_path / "out", SequenceOptions(eval_views=("none",)))
    assert (sequence.names, sequence.frames, sequence.has_masks) == (["left", "right"], ["000000", "000001"], True)
    assert (tmp_path / "out" / "images" / "left" / "000001.png").is_symlink()
    assert run("convert", tmp_path / "project" / "sparse" / "0", tmp_path / "copied", "--copy") == 0
    assert not (tmp_path / "copied" / "images" / "left" / "000001.png").is_symlink()
    assert run("convert", tmp_path / "project" / "sparse" / "0", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err


def test_convert_transforms(tmp_path, capsys):
    make_demo_scene(tmp_path / "demo", views=3, test_views=0, width=24, height=18, supersample=1, mesh_faces=2000)
    assert run("convert", tmp_path / "demo", tmp_path / "out") == 0
    sequence = open_sequence(tmp_path / "out", SequenceOptions(eval_views=("none",)))
    assert (len(sequence.views), sequence.frames) == (3, ["000000"])
    assert run("convert", tmp_path / "demo" / "transforms.json", tmp_path / "again") == 0
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert run("convert", tmp_path / "empty", tmp_path / "nothing") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "nothing").exists()
