"""Every nerfstudio command on r4dv, as a user types it (acceptance A27; issue 4, acceptance 2 and 3)."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from PIL import Image

pytestmark = pytest.mark.slow


def load(folder: Path) -> dict:
    """The newest checkpoint of a run, as strictly as torch can read it."""
    path = sorted((folder / "nerfstudio_models").glob("*.ckpt"))[-1]
    return torch.load(path, weights_only=True, map_location="cpu")


def results(file: Path) -> dict:
    return json.loads(file.read_text())["results"]


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


def test_train_leaves_a_whole_run_and_the_recording_gets_its_hulls(trained, recording):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yml", "dataparser_transforms.json", "nerfstudio_models"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names), "tensorboard evaluation ran"
    state = load(trained)
    assert state["step"] == 119
    assert [state["pipeline"][f"_model.points.points.{frame}"].shape for frame in range(4)] == [(2000, 3)] * 4
    for file in ("r4dv/meta.json", "vhulls/000000.ply", "surfs/000003.ply"):
        assert (recording / file).is_file()
    printed = dict(re.findall(r"^(Train on|View|Evaluate|Render): +(.+)$", (trained / "train.log").read_text(), re.M))
    for verb, command in {"Train on": "ns-train", "View": "ns-viewer", "Evaluate": "ns-eval"}.items():
        words = shlex.split(printed[verb])
        assert words[0] == command
        assert any(str(trained) in word for word in words), "with this run's own path"


def test_eval_reports_three_protocols_by_camera_and_frame(trained, work):
    run("ns-eval", "--load-config", trained / "config.yml", "--output-path", work / "eval.json",
        "--render-output-path", work / "eval", cwd=work)  # fmt: skip
    found = results(work / "eval.json")
    for key in ("psnr", "ssim", "psnr_masked", "psnr_bbox", "ssim_bbox"):
        assert np.isfinite(found[key]), key
    assert found["psnr_masked"] > 14, "120 small steps already resemble the subject"
    assert found["psnr"] > found["psnr_bbox"] > found["psnr_masked"], "less and less of the background counts"
    files = [row["file"] for row in found["per_image"]]
    assert len(set(files)) == 4, "one camera, four frames"
    assert all(re.fullmatch(r"0\d_00000\d\.jpg", name) for name in files)
    protocol = found["protocol"]
    assert len(protocol["held_out"]) == 1
    assert not set(protocol["held_out"]) & set(protocol["source_views"])
    for row, name in zip(protocol["photos"], files, strict=True):
        assert name == f"{row['view']}_{row['frame']}.jpg"
        assert len(row["sources"]) == 4
        assert set(row["sources"]) <= set(protocol["source_views"])
    with Image.open(work / "eval" / f"eval_{Path(files[0]).stem}_img.png") as picture:
        assert picture.size == (3 * 72, 96), "photo, rendering, error"


def newest(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in (folder / "nerfstudio_models").glob("step-*.ckpt")), default=-1)


def test_killed_a_run_ends_with_the_weights_of_an_undisturbed_one(work, recording, small, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two runs at once, each with the same number of threads

    def words(name: str, steps: int, *more: str) -> list[str]:
        return ["ns-train", "r4dv-tiny", *more, "--max-num-iterations", str(steps), "--data", str(recording),
                "--output-dir", str(work / "outputs"), "--timestamp", name, *small, "--steps-per-save", "10",
                "--steps-per-eval-image", "100000", "--logging.local-writer.enable", "False"]  # fmt: skip

    folders = {name: work / "outputs" / "juggler" / "r4dv-tiny" / name for name in ("whole", "killed")}
    undisturbed = start(*words("whole", 60), cwd=work)
    process: subprocess.Popen = start(*words("killed", 60), cwd=work)
    deadline = time.monotonic() + 300
    while newest(folders["killed"]) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert running, output[-3000:]
    step = newest(folders["killed"])
    # The decay of the learning rates spans the whole run: N further steps end where the first run would have.
    run(*words("killed", 59 - step, "--load-dir", str(folders["killed"] / "nerfstudio_models")), cwd=work)
    whole, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, whole[-3000:]
    mine, theirs = (load(folders[name])["pipeline"] for name in ("killed", "whole"))
    assert mine.keys() == theirs.keys()
    filled = [name for name in mine if mine[name].numel()]
    difference = max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in filled)
    print(f"killed at step {step}: final weights differ by {difference}")
    assert difference <= 1e-6


def camera_path(recording: Path, camera_type: str = "perspective", times: bool = True) -> dict:
    """A two-frame path in the viewer's format, 64x48, from the first camera; time runs from 0 to 1."""
    from core_ns.frames import c2w_opengl_from_w2c_opencv
    from dataparsers.easymocap import read_cameras

    camera = next(iter(read_cameras(recording / "intri.yml", recording / "extri.yml").values()))
    pose = c2w_opengl_from_w2c_opencv(camera.w2c)
    frames = [{"camera_to_world": pose.ravel().tolist(), "fov": 30.0, "aspect": 64 / 48} for _ in range(2)]
    if times:
        frames = [frame | {"render_time": float(time)} for time, frame in enumerate(frames)]
    return {"camera_type": camera_type, "render_width": 64, "render_height": 48, "fps": 2, "seconds": 1,
            "camera_path": frames}  # fmt: skip


def render_path(trained: Path, work: Path, name: str, path: dict, status: int = 0) -> tuple[str, list[np.ndarray]]:
    (work / f"{name}.json").write_text(json.dumps(path))
    output = run("ns-render", "camera-path", "--load-config", trained / "config.yml", "--camera-path-filename",
                 work / f"{name}.json", "--output-path", work / name, "--output-format", "images", cwd=work,
                 status=status)  # fmt: skip
    return output, pictures(work / name) if status == 0 else []


def test_render_camera_paths_with_and_without_time(trained, recording, work):
    _, (first, last) = render_path(trained, work, "moving", camera_path(recording))
    assert first.shape == (48, 64, 3)
    assert first.std() > 5
    assert np.abs(first.astype(int) - last).mean() > 0.5, "the same pose at two times"
    _, (one, other) = render_path(trained, work, "standing", camera_path(recording, times=False))
    assert np.array_equal(one, other)
    assert np.array_equal(one, first), "no time is the first frame"


def test_other_cameras_are_refused_in_one_line(trained, recording, work):
    output, _ = render_path(trained, work, "round", camera_path(recording, "equirectangular"), status=1)
    assert "is equirectangular" in output
    assert "Choose the camera type perspective" in output


@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("interpolate", ("--interpolation-steps", "2", "--rendered-output-names", "rgb", "depth", "layers")),
        ("spiral", ("--seconds", "0.2", "--frame-rate", "10")),
    ],
)
def test_render_trajectories(trained, work, mode, arguments):
    video = work / f"{mode}.mp4"
    run("ns-render", mode, "--load-config", trained / "config.yml", *arguments, "--output-path", video, cwd=work)
    assert video.stat().st_size > 1000


def test_render_dataset(trained, work):
    run("ns-render", "dataset", "--load-config", trained / "config.yml", "--output-path", work / "dataset",
        "--split", "test", cwd=work)  # fmt: skip
    for output in ("rgb", "gt-rgb", "depth", "accumulation"):
        files = [file for file in (work / "dataset" / "test" / output).rglob("*") if file.is_file()]
        assert len(files) == 4, output


def test_ns_export(trained, recording, work):
    import trimesh

    run("ns-export", "cameras", "--load-config", trained / "config.yml", "--output-dir", work / "cameras", cwd=work)
    assert len(json.loads((work / "cameras" / "transforms_train.json").read_text())) == 7 * 4
    run("ns-export", "tsdf", "--load-config", trained / "config.yml", "--output-dir", work / "tsdf", "--resolution",
        "80", "--texture-method", "tsdf", "--use-bounding-box", "True", "--bounding-box-min", "-1", "-1", "-0.2",
        "--bounding-box-max", "1", "1", "1.6", cwd=work)  # fmt: skip
    mesh = trimesh.load(work / "tsdf" / "tsdf_mesh.ply", process=False)
    truth = np.array(json.loads((recording / "truth.json").read_text())["bounds"])
    low, high = np.percentile(mesh.vertices, [5, 95], axis=0)
    assert (low > truth[0] - 0.25).all()
    assert (high < truth[1] + 0.25).all()


def test_a_dry_run_prints_the_plan_and_writes_nothing(recording, work):
    output = run("ns-train", "r4dv", "--data", recording, "--output-dir", work / "nothing", "--dry-run", "True",
                 cwd=work)  # fmt: skip
    assert "10000 steps" in output
    assert "memory:" in output
    assert not (work / "nothing").exists()


@pytest.mark.parametrize("method", ["r4dv-static", "r4dv-sparse"])
def test_help_of_each_method(method, work):
    assert "--pipeline.model.plane-levels" in run("ns-train", method, "--help", cwd=work)
