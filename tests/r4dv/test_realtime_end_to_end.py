"""From raw videos to a rendered video and splat files, each step the command a user types (issue 5, acceptance 5)."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clip_scenes import write_any
from commands import run
from prepared_scenes import iou

from core_ns.images import read_image

pytestmark = pytest.mark.slow

CAMERAS, FRAMES, SIZE = 8, 4, (80, 96)
PICTURES = 6


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    """A juggler in a room with clean plates: photos and masks that no command gets to see."""
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("truth") / "juggler"
    make_moving_scene(folder, CAMERAS, FRAMES, SIZE, background="room", supersample=2)
    return folder


def shoot(truth: Path, folder: Path) -> Path:
    """What a user has: a video of each camera, a photo of the empty room by each, and the calibration."""
    for camera in sorted((truth / "images").iterdir()):
        photos = [read_image(file)[0] for file in sorted(camera.iterdir())]
        write_any(folder / "takes" / f"{camera.name}.mp4", photos, crf="8", g="2")
    shutil.copytree(truth / "bkgd", folder / "bkgd")
    for name in ("intri.yml", "extri.yml"):
        shutil.copyfile(truth / name, folder / name)
    return folder


def frames_of(video: Path) -> list[np.ndarray]:
    """All pictures of a video."""
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_videos_become_a_charge_that_outlives_them_a_video_and_splats(truth, tmp_path):
    from r4dv_ns.splat_ply import read_splats

    made = shoot(truth, tmp_path / "takes of today")
    charge, config = tmp_path / "charge", tmp_path / "charge" / "config.yml"
    run("ns-r4dv", "process", "images", made, "--video-dir", "takes", cwd=tmp_path)
    run("ns-r4dv", "process", "masks", made, "--method", "plate", cwd=tmp_path)
    found = [read_image(file)[0][..., 0] for file in sorted((made / "masks").glob("*/*.png"))]
    meant = [read_image(file)[0][..., 0] for file in sorted((truth / "masks").glob("*/*.png"))]
    overlaps = [iou(one, other) for one, other in zip(found, meant, strict=True)]
    assert len(overlaps) == CAMERAS * FRAMES
    assert np.median(overlaps) > 0.7, "small pictures: most of a juggler is outline"
    shown = run("ns-r4dv", "hull", made, "--points", "2000", cwd=tmp_path)
    assert "overlap of hull and masks" in shown
    run(
        "ns-train", "r4dv-tiny", "--data", made, "--output-dir", tmp_path / "outputs", "--timestamp", "run", "--vis",
        "tensorboard", "--max-num-iterations", "60", "--steps-per-eval-all-images", "100000", "--steps-per-eval-image",
        "100000", "--pipeline.datamanager.hull.points", "2000", "--pipeline.model.plane-base", "32",
        "--pipeline.model.cnn-grad-warmup", "10", cwd=tmp_path,
    )  # fmt: skip
    trained = next((tmp_path / "outputs").rglob("config.yml"))
    run("ns-r4dv", "charge", "bake", "--load-config", trained, "--out", charge, cwd=tmp_path)
    for gone in (made, tmp_path / "outputs"):
        shutil.rmtree(gone)

    assert "files of 4 frames are whole" in run("ns-r4dv", "charge", "verify", charge, cwd=tmp_path)
    run("ns-r4dv", "path", "--load-config", config, "--type", "orbit", "--n", str(PICTURES), "--fps", "6", "--size",
        "96", "64", "--time", "0", "1", "--out", tmp_path / "orbit.json", cwd=tmp_path)  # fmt: skip
    path = json.loads((tmp_path / "orbit.json").read_text())
    assert [entry["render_time"] for entry in path["camera_path"]] == pytest.approx(np.linspace(0, 1, PICTURES))
    run("ns-render", "camera-path", "--load-config", config, "--camera-path-filename", tmp_path / "orbit.json",
        "--output-path", tmp_path / "orbit.mp4", cwd=tmp_path)  # fmt: skip
    pictures = [picture.astype(float) for picture in frames_of(tmp_path / "orbit.mp4")]
    assert [picture.shape for picture in pictures] == [(64, 96, 3)] * PICTURES
    assert min(picture.mean() for picture in pictures) > 4, "not black"
    assert min(picture.max() for picture in pictures) > 100
    changes = [np.abs(one - other).mean() for one, other in pairwise(pictures)]
    assert min(changes) > 1, "the camera goes round, and the juggler moves"

    shown = run("ns-r4dv", "charge", "mobile", charge, cwd=tmp_path)
    assert "a PLY of Gaussian splats per frame" in shown
    files = sorted((tmp_path / "charge_mb" / "splats").iterdir())
    assert [file.name for file in files] == [f"{frame:06d}.ply" for frame in range(FRAMES)]
    for file in files:
        splats = read_splats(file)
        assert len(splats) > 200
        assert np.isfinite(splats.xyz).all()
