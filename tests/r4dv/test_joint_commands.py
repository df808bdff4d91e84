"""Whole scenes by the commands a user types: a killed training goes on, paths play in time, nerfacto gives a start."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from PIL import Image

from dataparsers.point_ply import read_ply

pytestmark = pytest.mark.slow

STEPS = (8, 8, 14)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """The juggler in the room: 7 cameras (one is held out), 2 frames, 56x70, clean plates."""
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("recorded") / "room"
    make_moving_scene(folder, 7, 2, (56, 70), background="room", supersample=1)
    return folder


def words(room: Path, outputs: Path, name: str, steps: int, *more: str) -> list[str]:
    """``ns-train r4dv-bg-tiny`` with few points, a checkpoint every ten steps."""
    return [
        "ns-train", "r4dv-bg-tiny", *more, "--data", str(room), "--output-dir", str(outputs), "--timestamp", name,
        "--vis", "tensorboard", "--max-num-iterations", str(steps), "--steps-per-save", "10",
        "--steps-per-eval-image", "100000", "--save-only-latest-checkpoint", "False",
        "--logging.local-writer.enable", "False", "--pipeline.model.stage-steps", *map(str, STEPS),
        "--pipeline.model.plane-base", "32", "--pipeline.model.room.plane-base", "32",
        "--pipeline.model.occlusion-every", "10", "--pipeline.datamanager.hull.points", "600",
        "--pipeline.datamanager.background.points", "1500",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(room, tmp_path_factory) -> Path:
    """Its run folder."""
    work = tmp_path_factory.mktemp("work")
    run(*words(room, work, "whole", sum(STEPS)), cwd=work)
    return work / "room" / "r4dv-bg-tiny" / "whole"


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "nerfstudio_models").glob("step-*.ckpt"))


def test_killed_in_the_middle_a_run_ends_as_an_undisturbed_one(room, finished, monkeypatch):
    """kill -9 in the second stage; the rest is trained from the checkpoint."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs, killed = finished.parents[2], finished.parent / "killed"
    process: subprocess.Popen = start(*words(room, outputs, "killed", sum(STEPS)), cwd=outputs)
    deadline = time.monotonic() + 300
    while len(checkpoints(killed)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert running, output[-3000:]
    step = int(checkpoints(killed)[-1].stem[5:])
    folder = str(killed / "nerfstudio_models")
    run(*words(room, outputs, "killed", sum(STEPS) - 1 - step, "--load-dir", folder), cwd=outputs)
    mine, theirs = (
        torch.load(checkpoints(each)[-1], weights_only=True, map_location="cpu") for each in (killed, finished)
    )
    assert mine["step"] == theirs["step"] == sum(STEPS) - 1
    assert mine["pipeline"].keys() == theirs["pipeline"].keys()
    for name, value in mine["pipeline"].items():
        if value.numel():
            torch.testing.assert_close(value, theirs["pipeline"][name], atol=1e-5, rtol=1e-4, msg=name)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(float) for file in sorted(folder.iterdir())]


def test_a_path_plays_subject_and_background_and_so_does_the_charge(finished):
    """The charge draws what the run draws."""
    work = finished.parent
    charge = work / "charged scene"
    run("ns-r4dv", "charge", "bake", "--load-config", finished / "config.yml", "--out", charge, "--colours", "f32",
        cwd=work)  # fmt: skip
    run("ns-r4dv", "path", "--load-config", finished / "config.yml", "--type", "orbit", "--n", "4", "--size", "56",
        "70", "--time", "0", "1", "--out", work / "orbit.json", cwd=work)  # fmt: skip
    path = json.loads((work / "orbit.json").read_text())
    path["camera_path"] = [path["camera_path"][0], {**path["camera_path"][0], "render_time": 1.0}]
    (work / "orbit.json").write_text(json.dumps(path))
    shown = {}
    for name, config in (("run", finished), ("charge", charge)):
        run("ns-render", "camera-path", "--load-config", config / "config.yml", "--camera-path-filename",
            work / "orbit.json", "--output-path", work / name, "--output-format", "images",
            "--image-format", "png", cwd=work)  # fmt: skip
        shown[name] = pictures(work / name)
        first, last = shown[name]
        assert first.shape == (70, 56, 3)
        changed = np.abs(first - last).mean(axis=2) > 8
        assert 0.005 < changed.mean() < 0.6, "one pose at two times: the subject moved, the room did not"
        assert (first.max(axis=2) > 20).mean() > 0.7, "the room fills the picture"
    for one, other in zip(shown["run"], shown["charge"], strict=True):
        assert np.abs(one - other).max() <= 1, "drawn in full, equal but for rounding"


def give_alexnet(home: Path) -> None:
    """nerfacto's metric wants weights from the network, though nothing here is judged by it: all zeros will do."""
    from torchvision.models import AlexNet_Weights, alexnet

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet(weights=None).state_dict().items()}
    file = home / "torch" / "hub" / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.split("/")[-1]
    file.parent.mkdir(parents=True)
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, file)


def test_depths_of_a_real_nerfacto_run_give_points(room, tmp_path):
    """The path that docs/r4dv.md describes: plates linked, nerfacto on them, bg-init."""
    give_alexnet(tmp_path)
    run("ns-r4dv", "process", "link-backgrounds", room, cwd=tmp_path)
    run(
        "ns-train", "nerfacto", "--data", room, "--output-dir", tmp_path / "outputs", "--timestamp", "run", "--vis",
        "tensorboard", "--max-num-iterations", "20", "--machine.device-type", "cpu", "--steps-per-eval-batch", "10000",
        "--steps-per-eval-image", "10000", "--steps-per-eval-all-images", "10000",
        "--pipeline.datamanager.train-num-rays-per-batch", "256", "--pipeline.model.implementation", "torch",
        "--pipeline.model.log2-hashmap-size", "12", "--pipeline.model.num-levels", "4",
        "--pipeline.model.camera-optimizer.mode", "off", "easymocap-data", "--images-dir", "bkgd/images",
        "--masks-dir", "none", "--undistort", "none", cwd=tmp_path,
    )  # fmt: skip
    config = next((tmp_path / "outputs").rglob("config.yml"))
    shown = run("ns-r4dv", "bg-init", room, "--load-config", config, "--ratio", "0.3", "--view-step", "2",
                "--output-dir", tmp_path / "start", cwd=tmp_path)  # fmt: skip
    assert "Train: ns-train r4dv-bg" in shown
    cloud = read_ply(tmp_path / "start" / "bkgd" / "boost" / "000000.ply")
    assert len(cloud.xyz) > 300
    assert np.isfinite(cloud.xyz).all()
    assert cloud.rgb is not None, "20 steps tell colours, not yet depths"
