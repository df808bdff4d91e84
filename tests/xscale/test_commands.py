"""Every nerfstudio command on xscale-nvs, as a user types it (acceptance 3, A14, A15, A16, A17)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from PIL import Image

pytestmark = pytest.mark.slow


def load(folder: Path) -> dict:
    """The newest checkpoint of a run, as strictly as torch can read it, in this process without nerfstudio."""
    path = sorted((folder / "nerfstudio_models").glob("*.ckpt"))[-1]
    return torch.load(path, weights_only=True, map_location="cpu")


def test_train_leaves_a_whole_run(trained, demo_scene):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yml", "dataparser_transforms.json", "nerfstudio_models", "scene"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names), "tensorboard evaluation ran"
    state = load(trained)
    assert state["step"] == 149
    log = (trained / "train.log").read_text()
    printed = dict(re.findall(r"^(Train on|View|Evaluate|Render): +(.+)$", log, re.MULTILINE))
    commands = {"Train on": "ns-train", "View": "ns-viewer", "Evaluate": "ns-eval", "Render": "ns-render"}
    for verb, command in commands.items():
        words = shlex.split(printed[verb])
        assert words[0] == command
        assert any(str(trained) in word for word in words), "with this run's own path"


def test_eval_reports_all_metrics_and_files(trained, work):
    run("ns-eval", "--load-config", trained / "config.yml", "--output-path", work / "eval.json",
        "--render-output-path", work / "eval", cwd=work)  # fmt: skip
    results = json.loads((work / "eval.json").read_text())["results"]
    for key in ("psnr", "ssim", "psnr_masked", "ssim_masked", "psnr_white", "coverage", "psnr_std"):
        assert np.isfinite(results[key]), key
    assert results["psnr_masked"] > 15, "150 small steps already resemble the scene"
    assert "lpips" not in results, "no weights on this machine, no number"
    names = {row["file"] for row in results["per_image"]}
    assert len(names) == 3
    for name in names:
        assert (work / "eval" / f"eval_{Path(name).stem}_img.png").is_file()
    mean = np.mean([row["psnr_masked"] for row in results["per_image"]])
    assert results["psnr_masked"] == pytest.approx(mean, abs=1e-4)


def test_resume_from_the_printed_command(trained, work):
    log = (trained / "train.log").read_text()
    printed = next(line for line in log.splitlines() if line.startswith("Train on:"))
    words = shlex.split(printed.removeprefix("Train on:"))
    words[words.index("--max-num-iterations") + 1] = "10"
    words[words.index("--timestamp") + 1] = "resumed"
    run(*words, cwd=work)
    first, second = load(trained), load(trained.with_name("resumed"))
    assert second["step"] == 159
    for name, optimizer in second["optimizers"].items():
        steps = [float(np.max(np.asarray(value))) for entry in optimizer["state"].values()
                 for key, value in entry.items() if key in ("step", "row_steps")]  # fmt: skip
        before = [float(np.max(np.asarray(value))) for entry in first["optimizers"][name]["state"].values()
                  for key, value in entry.items() if key in ("step", "row_steps")]  # fmt: skip
        assert max(steps) == max(before) + 10, name


def test_sigterm_saves_and_resume_loses_nothing(demo_scene, work):
    process = start(
        "ns-train", "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "stopped",
        "--max-num-iterations", "100000", "--vis", "tensorboard", "--pipeline.model.levels", "4",
        "--pipeline.datamanager.train-num-rays-per-batch", "512", cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "monument" / "xscale-nvs-tiny" / "stopped"
    deadline = time.monotonic() + 300
    while not list(folder.glob("events.out*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
    time.sleep(5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    done = load(folder)["step"] + 1
    printed = next(line for line in output.splitlines() if line.startswith("Resume:"))
    words = shlex.split(printed.removeprefix("Resume:"))
    assert words[words.index("--max-num-iterations") + 1] == str(100000 - done)
    # A torn newest checkpoint, as a crash of another trainer would leave it, is skipped with a warning.
    torn = folder / "nerfstudio_models" / f"step-{done + 5:09d}.ckpt"
    torn.write_bytes(b"PK\x03\x04 torn")
    words[words.index("--max-num-iterations") + 1] = "5"
    words[words.index("--timestamp") + 1] = "again"
    output = run(*words, cwd=work)
    assert "Skipping" in output
    assert not torn.exists()
    assert load(folder.with_name("again"))["step"] == done + 4


def test_kill_nine_leaves_a_loadable_run(demo_scene, work):
    process = start(
        "ns-train", "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "killed",
        "--max-num-iterations", "100000", "--vis", "tensorboard", "--steps-per-save", "3",
        "--pipeline.model.levels", "4",
        "--pipeline.datamanager.train-num-rays-per-batch", "512", cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "monument" / "xscale-nvs-tiny" / "killed" / "nerfstudio_models"
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.ckpt"))) < 1 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    time.sleep(1.37)
    process.kill()
    process.communicate()
    assert load(folder.parent)["step"] >= 3, "whatever the moment, the newest checkpoint is whole"


@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("interpolate", ["--interpolation-steps", "2", "--rendered-output-names", "rgb", "depth"]),
        (
            "interpolate",
            [
                "--interpolation-steps",
                "2",
                "--rendered-output-names",
                "rgba",
                "--output-format",
                "images",
                "--image-format",
                "png",
            ],
        ),
        ("spiral", ["--seconds", "0.2", "--frame-rate", "10"]),
    ],
)
def test_render_trajectories(trained, work, mode, arguments):
    images = "images" in arguments
    out = work / f"{mode}-{len(arguments)}"
    target = out if images else out.with_suffix(".mp4")
    run("ns-render", mode, "--load-config", trained / "config.yml", "--output-path", target, *arguments, cwd=work)
    if not images:
        assert target.stat().st_size > 1000
        return
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) >= 2
    with Image.open(pictures[0]) as picture:
        assert picture.mode == "RGBA"


def camera_path(trained: Path, camera_type: str, size: tuple[int, int], crop: dict | None = None) -> dict:
    """A two-frame path in the viewer's format, starting at the first training camera."""
    snapshot = json.loads((trained / "scene" / "snapshot.json").read_text())["splits"]["train"]["cameras"]
    pose = np.vstack([np.array(snapshot["camera_to_worlds"][0]), [0, 0, 0, 1]])
    frames = [{"camera_to_world": pose.ravel().tolist(), "fov": 60.0, "aspect": size[0] / size[1]} for _ in range(2)]
    path = {"camera_type": camera_type, "render_width": size[0], "render_height": size[1], "fps": 2, "seconds": 1,
            "camera_path": frames}  # fmt: skip
    return path | ({"crop": crop} if crop else {})


@pytest.mark.parametrize("kind", ["perspective", "equirectangular", "fisheye", "crop"])
def test_render_camera_path(trained, work, kind):
    crop = {"crop_bg_color": {"r": 10, "g": 20, "b": 30}, "crop_center": [0.0, 0.0, 0.0],
            "crop_scale": [0.5, 0.5, 0.5], "crop_rot": [0.0, 0.0, 0.0]}  # fmt: skip
    path = camera_path(trained, "perspective" if kind == "crop" else kind, (64, 48), crop if kind == "crop" else None)
    (work / f"{kind}.json").write_text(json.dumps(path))
    run("ns-render", "camera-path", "--load-config", trained / "config.yml", "--camera-path-filename",
        work / f"{kind}.json", "--output-path", work / kind, "--output-format", "images", cwd=work)  # fmt: skip
    pictures = [np.asarray(Image.open(file)) for file in sorted((work / kind).iterdir())]
    assert len(pictures) == 2
    assert pictures[0].shape == (48, 64, 3)
    assert pictures[0].std() > 5, "not a blank frame"
    assert np.array_equal(pictures[0], pictures[1]), "the same pose twice is the same picture"


def test_render_dataset(trained, work):
    run("ns-render", "dataset", "--load-config", trained / "config.yml", "--output-path", work / "dataset",
        "--split", "train+test", cwd=work)  # fmt: skip
    assert len(list((work / "dataset" / "train" / "rgb").iterdir())) == 9
    for output in ("rgb", "gt-rgb", "depth", "accumulation", "normal", "face_id"):
        assert len(list((work / "dataset" / "test" / output).iterdir())) == 3, output
    truth = np.asarray(Image.open(sorted((work / "dataset" / "train" / "gt-rgb").iterdir())[0]))
    assert truth.shape == (90, 120, 3), "the photo itself, not its thumbnail"


def test_run_folder_outlives_the_scene(trained, demo_scene, work):
    hidden = demo_scene.with_name("hidden")
    demo_scene.rename(hidden)
    try:
        run("ns-render", "interpolate", "--load-config", trained / "config.yml", "--pose-source", "train",
            "--interpolation-steps", "1", "--output-path", work / "alone.mp4", cwd=work)  # fmt: skip
    finally:
        hidden.rename(demo_scene)
    assert (work / "alone.mp4").stat().st_size > 1000


def test_bake_writes_a_textured_mesh(trained, work):
    import trimesh

    run("ns-xscale", "bake", "--load-config", trained / "config.yml", "--output-dir", work / "baked",
        "--texture-size", "512", cwd=work)  # fmt: skip
    mesh = trimesh.load(work / "baked" / "textured.glb", force="mesh")
    assert mesh.visual.material.baseColorTexture.size == (512, 512)
    plain = trimesh.load(work / "baked" / "mesh_nerfstudio.ply", process=False)
    assert np.abs(plain.vertices).max() <= 1.001, "dataparser space"


def test_other_dataparsers_take_the_mesh(demo_scene, work):
    run("ns-train", "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "foreign",
        "--max-num-iterations", "60", "--vis", "tensorboard", "--pipeline.model.levels", "8",
        "--pipeline.model.mesh-path", demo_scene / "scene.ply",
        "--pipeline.datamanager.train-num-rays-per-batch", "2048", "nerfstudio-data", cwd=work)  # fmt: skip
    config = work / "outputs" / "monument" / "xscale-nvs-tiny" / "foreign" / "config.yml"
    run("ns-eval", "--load-config", config, "--output-path", work / "foreign.json", cwd=work)
    results = json.loads((work / "foreign.json").read_text())["results"]
    assert results["coverage"] > 0.2
    assert results["psnr_masked"] > 13


def test_paper_preset_trains(demo_scene, work):
    run("ns-train", "xscale-nvs-paper", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "paper",
        "--max-num-iterations", "4", "--vis", "tensorboard", "--pipeline.model.log2-table", "12",
        *(word for name in ("hash", "head", "exposure", "lighting")
          for word in (f"--gradient-accumulation-steps.{name}", "2")),
        "--pipeline.datamanager.train-num-rays-per-batch", "256", cwd=work)  # fmt: skip
    state = load(work / "outputs" / "monument" / "xscale-nvs-paper" / "paper")
    assert {"hash", "head", "exposure", "lighting"} == set(state["optimizers"])


def test_bad_scene_is_one_sentence_and_nothing_written(demo_scene, work):
    broken = work / "broken"
    shutil.copytree(demo_scene, broken)
    camera = sorted((broken / "cams").iterdir())[0]
    camera.write_text(camera.read_text().replace("intrinsic", "intrinsics?"))
    output = run("ns-train", "xscale-nvs-tiny", "--data", broken, "--output-dir", work / "nothing", cwd=work, status=1)
    assert "DataError" in output
    assert camera.name in output
    assert "Traceback" not in output
    assert not (work / "nothing").exists()


@pytest.mark.parametrize("method", ["xscale-nvs", "xscale-nvs-paper", "xscale-nvs-tiny"])
def test_help_of_each_method(method, work):
    assert "--pipeline.model.caster" in run("ns-train", method, "--help", cwd=work)
