"""Every nerfstudio command on diver, as a user types it (issue 3, acceptance 2)."""

from __future__ import annotations

import json
import re
import shlex
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


def results(file: Path) -> dict:
    return json.loads(file.read_text())["results"]


def test_train_leaves_a_whole_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yml", "dataparser_transforms.json", "nerfstudio_models", "scene"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names), "tensorboard evaluation ran"
    state = load(trained)
    assert state["step"] == 149
    assert int(state["pipeline"]["_model.stage_code"]) == 3, "the last checkpoint is the pruned one"
    assert state["pipeline"]["_model.voxels"].shape == (len(state["pipeline"]["_model.vertex_ids"]), 32)
    log = (trained / "train.log").read_text()
    assert log.count("of the training rays meet it") == 1
    for line in ("Coarse stage done", "Implicit stage done", "Pruned:"):
        assert line in log
    printed = dict(re.findall(r"^(Train on|View|Evaluate|Render): +(.+)$", log, re.MULTILINE))
    for verb, command in {"Train on": "ns-train", "View": "ns-viewer", "Evaluate": "ns-eval",
                          "Render": "ns-render"}.items():  # fmt: skip
        words = shlex.split(printed[verb])
        assert words[0] == command
        assert any(str(trained) in word for word in words), "with this run's own path"


def test_eval_reports_metrics_by_file_and_the_renderer_can_be_switched(trained, work):
    run("ns-eval", "--load-config", trained / "config.yml", "--output-path", work / "exact.json",
        "--render-output-path", work / "eval", cwd=work)  # fmt: skip
    exact = results(work / "exact.json")
    for key in ("psnr", "ssim", "psnr_std"):
        assert np.isfinite(exact[key]), key
    assert exact["psnr"] > 16, "150 small steps already resemble the object"
    assert "lpips" not in exact, "no weights on this machine, no number"
    assert [row["file"] for row in exact["per_image"]] == ["r_0.png", "r_1.png"]
    assert exact["psnr"] == pytest.approx(np.mean([row["psnr"] for row in exact["per_image"]]), abs=1e-4)
    with Image.open(work / "eval" / "eval_r_1_img.png") as picture:
        assert picture.size == (3 * 64, 64), "photo, rendering, error"
    assert len(list((work / "eval").iterdir())) == 4, "two pictures of each view"
    # ns-eval has no options of its own for this: the choice is part of the run's configuration.
    text = (trained / "config.yml").read_text()
    assert "eval_renderer: exact" in text
    (work / "realtime.yml").write_text(text.replace("eval_renderer: exact", "eval_renderer: realtime"))
    run("ns-eval", "--load-config", work / "realtime.yml", "--output-path", work / "realtime.json", cwd=work)
    realtime = results(work / "realtime.json")
    assert realtime["psnr"] != exact["psnr"]
    assert realtime["psnr"] == pytest.approx(exact["psnr"], abs=0.3)


def test_sigterm_saves_and_resume_loses_nothing(monument, work, small):
    process = start(
        "ns-train", "diver-tiny", "--data", monument, "--output-dir", work / "outputs", "--timestamp", "stopped",
        "--max-num-iterations", "100000", *small, "--pipeline.model.stage-steps", "20", "20", "99960", cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "monument" / "diver-tiny" / "stopped"
    deadline = time.monotonic() + 300
    while not list(folder.glob("events.out*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    done = load(folder)["step"] + 1
    printed = next(line for line in output.splitlines() if line.startswith("Resume:"))
    words = shlex.split(printed.removeprefix("Resume:"))
    assert words[words.index("--max-num-iterations") + 1] == str(100000 - done)
    words[words.index("--max-num-iterations") + 1] = "60"
    words[words.index("--timestamp") + 1] = "again"
    run(*words, cwd=work)
    state = load(folder.with_name("again"))
    assert state["step"] == done + 59
    assert int(state["pipeline"]["_model.stage_code"]) == 3


def camera_path(trained: Path, camera_type: str, crop: dict | None = None) -> dict:
    """A two-frame path in the viewer's format, 64x48, from the first training camera."""
    snapshot = json.loads((trained / "scene" / "snapshot.json").read_text())["splits"]["train"]["cameras"]
    pose = np.vstack([np.array(snapshot["camera_to_worlds"][0]), [0, 0, 0, 1]])
    frames = [{"camera_to_world": pose.ravel().tolist(), "fov": 60.0, "aspect": 64 / 48} for _ in range(2)]
    path = {"camera_type": camera_type, "render_width": 64, "render_height": 48, "fps": 2, "seconds": 1,
            "camera_path": frames}  # fmt: skip
    return path | ({"crop": crop} if crop else {})


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


def test_render_camera_paths(trained, work):
    crop = {"crop_bg_color": {"r": 10, "g": 20, "b": 30}, "crop_center": [0.0, 0.0, 0.0],
            "crop_scale": [0.8, 0.8, 0.8], "crop_rot": [0.0, 0.0, 0.0]}  # fmt: skip
    drawn = {}
    for kind in ("perspective", "equirectangular", "fisheye", "crop"):
        path = camera_path(trained, *(("perspective", crop) if kind == "crop" else (kind,)))
        (work / f"{kind}.json").write_text(json.dumps(path))
        run("ns-render", "camera-path", "--load-config", trained / "config.yml", "--camera-path-filename",
            work / f"{kind}.json", "--output-path", work / kind, "--output-format", "images", cwd=work)  # fmt: skip
        first, second = pictures(work / kind)
        assert first.shape == (48, 64, 3)
        assert first.std() > 5, f"{kind} is a blank frame"
        assert np.array_equal(first, second), "the same pose twice is the same picture"
        drawn[kind] = first.astype(int)
    objects = {kind: (np.abs(shown - shown[0, 0]) > 20).any(axis=-1).mean() for kind, shown in drawn.items()}
    assert 0 < objects["crop"] < 0.8 * objects["perspective"], "the box cuts most of the object away"
    assert np.abs(drawn["crop"][0, 0] - (10, 20, 30)).max() <= 3, "the path's own background"
    assert not np.array_equal(drawn["perspective"], drawn["fisheye"])
    assert objects["equirectangular"] < 0.3 * objects["perspective"], "the whole surroundings in one picture"


def test_render_trajectories_after_the_scene_is_gone(trained, monument, work):
    hidden = monument.with_name("hidden")
    monument.rename(hidden)
    config = trained / "config.yml"
    try:
        run("ns-render", "interpolate", "--load-config", config, "--interpolation-steps", "2",
            "--rendered-output-names", "rgb", "depth", "--output-path", work / "way.mp4", cwd=work)  # fmt: skip
        run("ns-render", "interpolate", "--load-config", config, "--interpolation-steps", "2",
            "--rendered-output-names", "rgba", "--output-format", "images", "--image-format", "png",
            "--output-path", work / "rgba", cwd=work)  # fmt: skip
        run("ns-diver", "convert", config, work / "gone.safetensors", cwd=work)
    finally:
        hidden.rename(monument)
    assert (work / "way.mp4").stat().st_size > 1000
    assert (work / "gone.safetensors").stat().st_size > 1000
    for picture in pictures(work / "rgba"):
        assert picture.shape == (64, 64, 4)
        assert picture[..., 3].min() < 20 < 200 < picture[..., 3].max(), "the object is cut out"


def test_render_spiral(trained, work):
    run("ns-render", "spiral", "--load-config", trained / "config.yml", "--seconds", "0.2", "--frame-rate", "10",
        "--output-path", work / "spiral.mp4", cwd=work)  # fmt: skip
    assert (work / "spiral.mp4").stat().st_size > 1000


def test_render_dataset(trained, work):
    run("ns-render", "dataset", "--load-config", trained / "config.yml", "--output-path", work / "dataset",
        "--split", "train+test", cwd=work)  # fmt: skip
    assert len(list((work / "dataset" / "train" / "rgb").iterdir())) == 16
    for output in ("rgb", "gt-rgb", "depth", "accumulation", "hits"):
        assert len(list((work / "dataset" / "test" / output).iterdir())) == 2, output
    made, truth = (pictures(work / "dataset" / "train" / name)[0].astype(int) for name in ("rgb", "gt-rgb"))
    assert truth.shape == (64, 64, 3), "the photo itself, not its thumbnail"
    assert np.abs(made - truth).mean() < 40


@pytest.mark.parametrize(
    ("exporter", "arguments", "written"),
    [
        ("cameras", (), "transforms_train.json"),
        ("pointcloud", ("--num-points", "3000", "--normal-method", "open3d"), "point_cloud.ply"),
        ("poisson", ("--num-points", "5000", "--normal-method", "open3d", "--texture-method", "point_cloud"),
         "poisson_mesh.ply"),
        ("tsdf", ("--resolution", "40", "--texture-method", "tsdf"), "tsdf_mesh.ply"),
    ],
)  # fmt: skip
def test_ns_export_works(trained, work, exporter, arguments, written):
    import trimesh

    out = work / f"export-{exporter}"
    run("ns-export", exporter, "--load-config", trained / "config.yml", "--output-dir", out, *arguments, cwd=work)
    if exporter == "cameras":
        frames = json.loads((out / written).read_text())
        assert len(frames) == 16
        snapshot = json.loads((trained / "scene" / "snapshot.json").read_text())["splits"]["train"]["cameras"]
        np.testing.assert_allclose(frames[0]["transform"], snapshot["camera_to_worlds"][0], atol=1e-6)
        return
    shape = trimesh.load(out / written, process=False)
    low, middle, high = np.percentile(shape.vertices, [5, 50, 95], axis=0)
    assert np.abs(middle).max() < 1.15, "in the middle of the object's own extent"
    assert (high - low > 0.3).all(), "the object has an extent"


@pytest.mark.parametrize(
    ("exporter", "says"), [("pointcloud", "--normal-method"), ("marching-cubes", "ns-diver export")]
)
def test_ns_export_says_what_does_not_apply(trained, work, exporter, says):
    output = run("ns-export", exporter, "--load-config", trained / "config.yml", "--output-dir", work / "none",
                 cwd=work, status=1)  # fmt: skip
    assert says in output
    assert "Traceback" not in output


def test_nsvf_scenes(work, small):
    from dataparsers.nsvf import write_nsvf
    from dataparsers.object_scene import demo_object

    scene = work / "in-nsvf"
    write_nsvf(scene, demo_object(train=12, val=0, test=2, size=48, supersample=2, texture_detail=64, mesh_faces=3000),
               background="black")  # fmt: skip
    run("ns-train", "diver-tiny", "--data", scene, "--output-dir", work / "outputs", "--timestamp", "n",
        "--max-num-iterations", "120", *small, "nsvf-data", cwd=work)  # fmt: skip
    run("ns-eval", "--load-config", work / "outputs" / "in-nsvf" / "diver-tiny" / "n" / "config.yml",
        "--output-path", work / "nsvf.json", cwd=work)  # fmt: skip
    assert results(work / "nsvf.json")["psnr"] > 13
    background = load(work / "outputs" / "in-nsvf" / "diver-tiny" / "n")["pipeline"]["_model.background"]
    assert background.tolist() == [0, 0, 0], "found in the photos' borders"


def nerfstudio_scene(folder: Path, monument: Path) -> Path:
    """The object as ns-process-data would leave it: one transforms.json, one camera, photos with alpha."""
    from core_ns.atomic import write_json

    frames, size = [], 64
    meta = json.loads((monument / "transforms_train.json").read_text())
    for frame in meta["frames"]:
        name = frame["file_path"] + ".png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((monument / name).read_bytes())
        frames.append({"file_path": name, "transform_matrix": frame["transform_matrix"]})
    focal = 0.5 * size / np.tan(0.5 * meta["camera_angle_x"])
    camera = {"w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2}
    write_json(folder / "transforms.json", {"camera_model": "OPENCV", **camera, "frames": frames})
    return folder


def test_other_dataparsers_get_a_cube(work, monument, small):
    scene = nerfstudio_scene(work / "captured", monument)
    run("ns-train", "diver-tiny", "--data", scene, "--output-dir", work / "outputs", "--timestamp", "n",
        "--max-num-iterations", "120", *small, "nerfstudio-data", cwd=work)  # fmt: skip
    config = work / "outputs" / "captured" / "diver-tiny" / "n" / "config.yml"
    run("ns-eval", "--load-config", config, "--output-path", work / "captured.json", cwd=work)
    assert results(work / "captured.json")["psnr"] > 13
    known = json.loads((config.parent / "scene" / "snapshot.json").read_text())["extra"]
    assert 0.3 < known["grid_side"] < 2, "about the object; nerfstudio's box holds all cameras"
    run("ns-diver", "export", "--load-config", config, "--output-dir", work / "captured-out", cwd=work)
    import trimesh

    # nerfstudio-data turns, shifts and scales the poses; the export is back in the coordinates of transforms.json.
    mesh = trimesh.load(work / "captured-out" / "mesh.ply", process=False)
    low, high = np.percentile(mesh.vertices, [10, 90], axis=0)
    assert np.abs((low + high) / 2).max() < 0.6
    assert 0.4 < (high - low).max() < 3


def test_a_run_that_cannot_start_is_one_line_and_nothing_written(work, monument):
    output = run("ns-train", "diver-tiny", "--data", monument, "--output-dir", work / "nothing", "--vis", "tensorboard",
                 "--machine.num-devices", "2", cwd=work, status=1)  # fmt: skip
    assert "Traceback" not in output
    assert output.strip().splitlines()[-1].startswith("DataError: config (machine.num-devices): is 2")
    assert not (work / "nothing").exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda config: setattr(config.pipeline.model, "coarse_resolution", 7), "does not divide"),
        (lambda config: setattr(config, "max_num_iterations", 2), "three stages"),
        (lambda config: setattr(config.pipeline.datamanager, "data", Path("absent")), "is not a folder"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(tmp_path, monument, edit, says):
    from diver_runs import run_config

    config = run_config(monument, tmp_path / "nothing", (10, 10, 10))
    edit(config)
    with pytest.raises(SystemExit, match=says) as ended:
        config.save_config()
    assert str(ended.value.code).startswith("DataError: ")
    assert not (tmp_path / "nothing").exists()


def test_cameras_that_miss_the_box_stop_before_anything_is_written(work, monument, tmp_path):
    import shutil

    wrong = tmp_path / "wrong"
    shutil.copytree(monument, wrong)
    for file in wrong.glob("transforms_*.json"):
        content = json.loads(file.read_text())
        for frame in content["frames"]:
            frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])).tolist()
        file.write_text(json.dumps(content))
    output = run("ns-train", "diver-tiny", "--data", wrong, "--output-dir", work / "nothing", "--vis", "tensorboard",
                 cwd=work, status=1)  # fmt: skip
    assert "Traceback" not in output
    assert "of the training rays meet the cube" in output
    assert "OpenCV" in output
    assert not (work / "nothing").exists()


@pytest.mark.parametrize("method", ["diver", "diver-light"])
def test_help_of_each_method(method, work):
    assert "--pipeline.model.stage-steps" in run("ns-train", method, "--help", cwd=work)
