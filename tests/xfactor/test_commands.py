"""Every nerfstudio command on xfactor, as a user types it (spec xfactor 12, check 17; issue 6, acceptance 3)."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from PIL import Image

pytestmark = pytest.mark.slow

SHOWN = 9
"""Frames of each clip of 12 in the gallery: those nearer to the middle one than xfactor-tiny's windows reach."""


def load(folder: Path) -> dict:
    """The newest checkpoint of a run, as strictly as torch can read it."""
    path = sorted((folder / "nerfstudio_models").glob("*.ckpt"))[-1]
    return torch.load(path, weights_only=True, map_location="cpu")


def results(file: Path) -> dict:
    return json.loads(file.read_text())["results"]


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(folder.rglob("*.*"))]


def test_train_leaves_a_whole_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yml", "dataparser_transforms.json", "nerfstudio_models", "scene"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names), "tensorboard evaluation ran"
    state = load(trained)
    assert state["step"] == 299
    assert all(key.startswith("_model.net.") for key in state["pipeline"] if "device_indicator" not in key)
    printed = dict(re.findall(r"^(Train on|View|Evaluate|Render): +(.+)$", (trained / "train.log").read_text(), re.M))
    for verb, command in {"Train on": "ns-train", "View": "ns-viewer", "Evaluate": "ns-eval",
                          "Render": "ns-render"}.items():  # fmt: skip
        words = shlex.split(printed[verb])
        assert words[0] == command
        assert any(str(trained) in word for word in words), "with this run's own path"


def test_eval_reports_reconstruction_and_transfer(trained, work):
    text = (trained / "config.yml").read_text()
    assert "eval_untrained: false" in text
    config = trained / "untrained.yml"
    config.write_text(text.replace("eval_untrained: false", "eval_untrained: true"))
    run("ns-eval", "--load-config", config, "--output-path", work / "eval.json", "--render-output-path", work / "eval",
        cwd=work)  # fmt: skip
    found = results(work / "eval.json")
    for key in ("psnr", "ssim", "recon_psnr", "recon_ssim", "masked_transfer_psnr", "cycle_psnr", "cycle_ssim",
                "copy_psnr", "psnr_std", "fps"):  # fmt: skip
        assert np.isfinite(found[key]), key
    assert "lpips" not in found, "no weights on this machine, no number"
    assert found["psnr"] == found["recon_psnr"] > found["untrained_psnr"] + 1, "300 small updates already help"
    assert len(found["per_image"]) == 2 * 4, "two held-out clips, four targets each"
    assert {row["clip"] for row in found["per_image"]} == {"path02_a", "path02_b"}
    assert found["psnr"] == pytest.approx(np.mean([row["recon_psnr"] for row in found["per_image"]]), abs=1e-4)
    shown = sorted((work / "eval").iterdir())
    assert len(shown) == 8
    assert re.fullmatch(r"eval_path02_a_\d{6}_\d{6}\.png", shown[0].name)
    with Image.open(shown[0]) as picture:
        assert picture.size == (6 * 32, 32), "context, truth, recon, masked transfer, transfer, cycle"


def newest(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in (folder / "nerfstudio_models").glob("step-*.ckpt")), default=-1)


def test_killed_and_resumed_a_run_ends_with_the_weights_of_an_undisturbed_one(work, rooms, tiny, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two runs at once, each with the same number of threads

    def words(name: str, steps: int, *more: str) -> list[str]:
        return ["ns-train", "xfactor-tiny", *more, "--max-num-iterations", str(steps), "--data", str(rooms),
                "--output-dir", str(work / "outputs"), "--timestamp", name, *tiny, "--steps-per-save", "10",
                "--pipeline.datamanager.micro-batch", "4", "--logging.local-writer.enable", "False"]  # fmt: skip

    folders = {name: work / "outputs" / "rooms" / "xfactor-tiny" / name for name in ("whole", "killed")}
    undisturbed = start(*words("whole", 60), cwd=work)
    process = start(*words("killed", 60), cwd=work)
    deadline = time.monotonic() + 300
    while newest(folders["killed"]) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert running, output[-3000:]
    step = newest(folders["killed"])
    run(*words("killed", 59 - step, "--load-dir", str(folders["killed"] / "nerfstudio_models")), cwd=work)
    whole, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, whole[-3000:]
    mine, theirs = (load(folders[name])["pipeline"] for name in ("killed", "whole"))
    assert mine.keys() == theirs.keys()
    difference = max(
        float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine if mine[name].numel()
    )
    print(f"killed at step {step}: final weights differ by {difference}")
    assert difference == 0


def camera_path(trained: Path, width: int, height: int, kind: str = "perspective") -> dict:
    """A path in the viewer's format through a held-out clip: reference, third and last frame, reference again."""
    extra = json.loads((trained / "scene" / "snapshot.json").read_text())["extra"]
    clip = next(each for each in extra["gallery"] if each["split"] == "test")
    middle = len(clip["frames"]) // 2
    frames = [
        {"camera_to_world": np.ravel(clip["cameras"][index]).tolist(), "fov": 60.0, "aspect": width / height}
        for index in (middle, 2, -1, middle)
    ]
    return {"camera_type": kind, "render_width": width, "render_height": height, "fps": 4, "seconds": 1,
            "camera_path": frames}  # fmt: skip


def render_path(trained: Path, work: Path, name: str, path: dict, *more: str, status: int = 0) -> str:
    (work / f"{name}.json").write_text(json.dumps(path))
    return run("ns-render", "camera-path", "--load-config", trained / "config.yml", "--camera-path-filename",
               work / f"{name}.json", "--output-path", work / name, "--output-format", "images", "--image-format",
               "png", *more, cwd=work, status=status)  # fmt: skip


def test_render_camera_paths(trained, work):
    render_path(trained, work, "wide", camera_path(trained, 96, 64))
    shown = pictures(work / "wide")
    assert [each.shape for each in shown] == [(64, 96, 3)] * 4
    assert max(np.abs(each[:, :14]).max() for each in shown) == 0, "a square in the middle, nothing stretched"
    assert min(each[:, 20:76].std() for each in shown) > 5
    assert not any(np.array_equal(shown[0], each) for each in shown[1:3]), "other cameras, other pictures"
    assert np.array_equal(shown[0], shown[3]), "the same camera again"
    render_path(trained, work, "elsewhere", camera_path(trained, 96, 64), "--camera-idx", "0")
    assert np.abs(pictures(work / "elsewhere")[0] - shown[0]).mean() > 2, "the same cameras in a training clip's room"
    render_path(trained, work, "cut", camera_path(trained, 96, 64), "--rendered-output-names", "rgba")
    (cut, *_) = pictures(work / "cut")
    assert cut.shape == (64, 96, 4)
    assert np.array_equal(np.unique(cut[..., 3]), [0, 255])


def test_other_cameras_are_refused_in_one_line(trained, work):
    output = render_path(trained, work, "round", camera_path(trained, 64, 32, "equirectangular"), status=1)
    assert "is equirectangular" in output
    assert "Choose the camera type perspective" in output


def test_render_trajectories_and_eval_after_the_clips_are_gone(trained, rooms, work):
    hidden = rooms.with_name("hidden")
    rooms.rename(hidden)
    config = trained / "config.yml"
    try:
        run("ns-render", "interpolate", "--load-config", config, "--interpolation-steps", "2",
            "--rendered-output-names", "rgb", "depth", "context", "pose_frame", "--output-path", work / "way.mp4",
            cwd=work)  # fmt: skip
        run("ns-render", "spiral", "--load-config", config, "--seconds", "0.2", "--frame-rate", "10", "--output-path",
            work / "spiral.mp4", cwd=work)  # fmt: skip
        run("ns-eval", "--load-config", config, "--output-path", work / "gone.json", cwd=work)
    finally:
        hidden.rename(rooms)
    for name in ("way", "spiral"):
        assert (work / f"{name}.mp4").stat().st_size > 1000
    assert np.isfinite(results(work / "gone.json")["psnr"])


def test_render_dataset_follows_the_clips(trained, work):
    run("ns-render", "dataset", "--load-config", trained / "config.yml", "--output-path", work / "dataset",
        "--split", "train+test", "--image-format", "png", cwd=work)  # fmt: skip
    for output in ("rgb", "gt-rgb", "depth", "accumulation", "context", "pose_frame"):
        assert len(pictures(work / "dataset" / "test" / output)) == 2 * SHOWN, output
    assert len(pictures(work / "dataset" / "train" / "rgb")) == 4 * SHOWN
    truth, context, posed = (pictures(work / "dataset" / "test" / name) for name in ("gt-rgb", "context", "pose_frame"))
    for place in range(SHOWN):
        assert np.abs(posed[place] - truth[place]).max() <= 1, "the latent of the frame itself"
        assert np.abs(context[place] - truth[SHOWN // 2]).max() <= 1, "drawn from the clip's middle frame"


def test_the_config_chooses_scene_and_motion(trained, work):
    """Transfer with ``ns-render dataset``: the path of every clip in one clip's scene."""
    text = (trained / "config.yml").read_text()
    config = trained / "transfer.yml"
    config.write_text(text.replace("context_clip: ''", "context_clip: path00_a"))
    assert config.read_text() != text
    run("ns-render", "dataset", "--load-config", config, "--output-path", work / "moved", "--split", "test",
        "--image-format", "png", "--rendered-output-names", "rgb", "context", "pose_frame", cwd=work)  # fmt: skip
    context = pictures(work / "moved" / "test" / "context")
    assert np.abs(context[0] - context[-1]).max() == 0
    assert len({picture.tobytes() for picture in pictures(work / "moved" / "test" / "rgb")}) > SHOWN
    (trained / "wrong.yml").write_text(text.replace("context_clip: ''", "context_clip: attic"))
    output = run("ns-render", "dataset", "--load-config", trained / "wrong.yml", "--output-path", work / "none",
                 cwd=work, status=1)  # fmt: skip
    assert "'attic' is not in the gallery" in output


def test_ns_export_cameras(trained, work):
    run("ns-export", "cameras", "--load-config", trained / "config.yml", "--output-dir", work / "cameras", cwd=work)
    frames = json.loads((work / "cameras" / "transforms_train.json").read_text())
    assert len(frames) == 4 * SHOWN
    extra = json.loads((trained / "scene" / "snapshot.json").read_text())["extra"]
    np.testing.assert_allclose(frames[0]["transform"], np.array(extra["gallery"][0]["cameras"][0])[:3], atol=1e-6)


@pytest.mark.parametrize("method", ["xfactor", "xfactor-mv"])
def test_help_of_each_method(method, work):
    output = run("ns-train", method, "--help", cwd=work)
    assert "--pipeline.model.view.control" in output
    assert "video-clips" in output


def test_a_run_that_cannot_start_is_one_line_and_nothing_written(work, rooms):
    output = run("ns-train", "xfactor", "--data", rooms, "--output-dir", work / "nothing", "--vis", "tensorboard",
                 cwd=work, status=1)  # fmt: skip
    assert "Traceback" not in output
    assert "too few to train the full model" in output
    output = run("ns-train", "xfactor-tiny", "--data", work / "absent", "--output-dir", work / "nothing", "--vis",
                 "tensorboard", cwd=work, status=1)  # fmt: skip
    assert "Traceback" not in output
    assert not (work / "nothing").exists()
