"""nerfstudio's own commands on a charged folder, in this process (acceptance A19; issue 5, 2)."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE
from charge_folders import make_charge
from charged_scenes import add_photos, load_run
from PIL import Image

from core_ns.errors import DataError
from r4dv_ns.charged_config import r4dv_charged, write_run

pytestmark = [
    *(pytest.mark.filterwarnings(line) for line in NOISE),
    # nerfstudio's camera paths.
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using torch.cross without specifying:UserWarning"),
]


@pytest.fixture(scope="module")
def charge(tmp_path_factory) -> Path:
    """Six cameras, two held out at two of three frames; photos are its own drawings."""
    folder = tmp_path_factory.mktemp("charges") / "played"
    make_charge(folder, 3, 600, 4, views=6)
    add_photos(folder)
    write_run(folder)
    return folder


@pytest.fixture
def registered(monkeypatch, tmp_path) -> Path:
    """The method as nerfstudio knows it, ffmpeg on the path, and a folder to run in."""
    from nerfstudio.configs.method_configs import all_methods

    monkeypatch.setitem(all_methods, "r4dv-charged", r4dv_charged.config)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(kind: str, charge: Path, out: Path, **options: Any) -> None:
    """``ns-render KIND``."""
    from nerfstudio.scripts import render as script

    classes = {
        "camera-path": script.RenderCameraPath, "interpolate": script.RenderInterpolated,
        "spiral": script.SpiralRender, "dataset": script.DatasetRender,
    }  # fmt: skip
    classes[kind](load_config=charge / "config.yml", output_path=out, **options).main()


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(folder.glob("*.png"))]


def test_eval(charge, registered):
    from nerfstudio.scripts.eval import ComputePSNR

    ComputePSNR(charge / "config.yml", registered / "eval.json", registered / "seen").main()
    found = json.loads((registered / "eval.json").read_text())["results"]
    assert found["psnr"] > 50, "the photos are the charge's own drawings, rounded to bytes"
    assert {"psnr", "ssim", "psnr_masked", "psnr_bbox", "ssim_bbox", "fps"} <= set(found)
    assert [row["file"] for row in found["per_image"]] == ["cam_5_000000.png", "cam_5_000002.png"]
    protocol = found["protocol"]
    assert protocol["held_out"] == ["cam_5"]
    assert protocol["source_views"] == [f"cam_{index}" for index in range(5)]
    assert [row["frame"] for row in protocol["photos"]] == ["000000", "000002"]
    # Only four of the five training views are stored.
    assert all(set(row["sources"]) == {f"cam_{index}" for index in range(4)} for row in protocol["photos"])
    assert len(list((registered / "seen").iterdir())) == 4


def test_render_dataset(charge, registered):
    render("dataset", charge, registered / "out", split="test", image_format="png", rendered_output_names=None)
    names = {folder.name for folder in (registered / "out" / "test").iterdir()}
    assert names == {"gt-rgb", "rgb", "accumulation", "depth", "layers"}
    drawn, photo = (pictures(registered / "out" / "test" / name) for name in ("rgb", "gt-rgb"))
    assert len(drawn) == len(photo) == 2
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(drawn, photo, strict=True))
    with pytest.raises(DataError, match="no training photos"):
        render("dataset", charge, registered / "none", split="train", rendered_output_names=["rgb"])


def camera_path(file: Path, times: list[float] | None, crop: bool = False) -> Path:
    """Two cameras in front of the points that stand still while time runs."""
    c2w = [0, 0, 1, 4, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    steps = [{"camera_to_world": c2w, "fov": 45.0, "aspect": 4 / 3} for _ in range(len(times or [0, 0]))]
    for step, time in zip(steps, times or [], strict=False):
        step["render_time"] = time
    content: dict[str, Any] = {
        "camera_type": "perspective", "render_height": 48, "render_width": 64, "camera_path": steps, "fps": 2.0,
        "seconds": 1.0,
    }  # fmt: skip
    if crop:
        content["crop"] = {
            "crop_center": [0.0, 0.0, 0.0], "crop_scale": [0.5, 0.5, 0.5],
            "crop_bg_color": {"r": 255, "g": 0, "b": 0},
        }  # fmt: skip
    file.write_text(json.dumps(content))
    return file


def test_render_camera_path(charge, registered):
    def shots(name: str, **options: Any) -> list[np.ndarray]:
        path = camera_path(registered / f"{name}.json", **options)
        out = registered / name
        render("camera-path", charge, out, camera_path_filename=path, output_format="images", image_format="png")
        return pictures(out)

    first, last = shots("moving", times=[0.0, 1.0])
    assert np.abs(first - last).mean() > 1, "time runs"
    one, other = shots("still", times=None)
    assert np.array_equal(one, first)
    assert np.array_equal(other, first)
    cut = shots("cut", times=[0.0, 1.0], crop=True)[0]
    assert cut[0, 0].tolist() == [255, 0, 0]
    video = registered / "path.mp4"
    render("camera-path", charge, video, camera_path_filename=registered / "moving.json")
    assert video.stat().st_size > 500


@pytest.mark.parametrize("kind", ["spiral", "interpolate"])
def test_render_other_paths(charge, registered, kind):
    options = (
        {"seconds": 0.5, "frame_rate": 8} if kind == "spiral" else {"pose_source": "train", "interpolation_steps": 2}
    )
    render(kind, charge, registered / kind, output_format="images", image_format="png", **options)
    shots = pictures(registered / kind)
    assert len(shots) >= 4
    assert all(shot.std() > 10 for shot in shots)
    assert np.abs(shots[0] - shots[-1]).mean() > 1


def test_a_charge_that_was_moved_is_found_again_after_its_config_is_written_anew(charge, registered, monkeypatch):
    moved = registered / "elsewhere" / "my charge"
    shutil.copytree(charge, moved)
    pipeline = load_run(moved, monkeypatch, "inference", frame_sample=(0, 2, 1), cache_mb=64)
    assert pipeline.datamanager.store.folder == moved
    assert len(pipeline.model.times) == 2
    assert pipeline.model.config.cache_mb == 64
    assert pipeline.datamanager.get_datapath() == moved


def test_frames_without_photos_are_told_from_a_bake_without_photos(charge, registered, monkeypatch):
    copied = registered / "one frame"
    shutil.copytree(charge, copied)
    pipeline = load_run(copied, monkeypatch, frame_sample=(1,))
    with pytest.raises(DataError, match=r"no photos of the frames in use.*frame_sample"):
        pipeline.get_average_eval_image_metrics()


def test_training_ends_in_one_line(charge):
    with pytest.raises(SystemExit, match="nothing to train"):
        r4dv_charged.config.save_config()
    pipeline = r4dv_charged.config.pipeline
    assert pipeline.datamanager.data is None


def test_a_damaged_checkpoint_or_photo_is_one_error(charge, registered, monkeypatch, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(charge, folder)
    pipeline = load_run(folder, monkeypatch)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "eval/image/cam_5/000002.png")
    with pytest.raises(DataError, match="is 4x4, not 64x48"):
        pipeline.datamanager.eval_dataset[1]
    (folder / "eval/image/cam_5/000002.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"000002\.png"):
        pipeline.get_average_eval_image_metrics()
    with pytest.raises(DataError, match="nothing to train"):
        pipeline.datamanager.next_train(0)
    with pytest.raises(DataError, match="missing"):
        pipeline.load_pipeline({}, 0)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_run(folder, monkeypatch)


def test_batches_are_as_the_metrics_want_them(charge, registered, monkeypatch):
    pipeline = load_run(charge, monkeypatch)
    camera, batch = pipeline.datamanager.next_eval_image(3)
    assert batch["image"].shape == (48, 64, 3)
    assert batch["mask"].shape == (48, 64, 1)
    assert batch["box"] == (8, 4, 40, 36)
    assert float(camera.times) == 1.0
    assert (batch["view_idx"], batch["frame_idx"]) == (5, 2)
    small = pipeline.datamanager.eval_dataset.get_data(0, "uint8")
    assert small["image"].dtype == torch.uint8
    outputs = pipeline.model.get_outputs_for_camera(camera)
    metrics, shown = pipeline.model.get_image_metrics_and_images(outputs, batch)
    assert metrics["psnr"] > 50
    assert shown["img"].shape == (48, 3 * 64, 3)
