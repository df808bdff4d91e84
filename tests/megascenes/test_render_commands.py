"""From a photo to pictures, as a user types it (spec megascenes 8.3, 13; check 13, render half)."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from planar_pairs import write_pairs
from small_views import write_photo

from core_ns.images import read_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def demo(work: Path) -> Path:
    """config.yml of a run of one photo, which is gone since."""
    photo = write_photo(work, "wall paper")
    output = run("ns-megascenes", "view", photo, "--tiny", "--no-open", "--device", "cpu", cwd=work)
    assert "ns-viewer --load-config" in output
    config = next((work / "outputs").rglob("config.yml"))
    assert str(config) in output
    photo.rename(photo.with_name("moved.png"))
    photo.with_suffix(".npy").unlink()
    return config


@pytest.fixture(scope="module")
def pairs(work: Path) -> Path:
    """config.yml of a run of three steps on pairs, by ns-train."""
    data = write_pairs(work / "pairs", 8, 3)
    run("ns-train", "megascenes-tiny", "--data", data, "--max-num-iterations", "3", "--vis", "tensorboard",
        "--output-dir", work / "outputs", "--timestamp", "pairs", "--machine.device-type", "cpu", cwd=work)  # fmt: skip
    return work / "outputs" / "pairs" / "megascenes-tiny" / "pairs" / "config.yml"


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in sorted(folder.rglob("*.png"))]


def test_a_photos_run_is_whole(demo: Path):
    run_dir = demo.parent
    assert {"photo.png", "depth.npy", "reference.json"} <= {path.name for path in (run_dir / "reference").iterdir()}
    content = json.loads((run_dir / "reference" / "reference.json").read_text())
    assert content["q20"] > 0
    (checkpoint,) = (run_dir / "nerfstudio_models").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    assert not any(".vae." in key or ".image_encoder." in key for key in state["pipeline"])


def test_render_a_camera_path(demo: Path, work: Path):
    run("ns-megascenes", "path", "orbit", "--frames", "3", "--width", "64", "--height", "48", "--out",
        work / "orbit.json", cwd=work)  # fmt: skip
    run("ns-render", "camera-path", "--load-config", demo, "--camera-path-filename", work / "orbit.json",
        "--output-path", work / "camera", "--output-format", "images", "--image-format", "png",
        "--rendered-output-names", "rgb", "warp", "depth", "coverage", cwd=work)  # fmt: skip
    shown = pictures(work / "camera")
    assert [each.shape for each in shown] == [(48, 4 * 64, 3)] * 3
    reference, _ = read_image(demo.parent / "reference" / "photo.png")
    middle = shown[1][:, 64:128]
    assert np.abs(middle - reference)[4:-4, 4:-4].mean() < 30, "the middle of an orbit is nearly the photo"
    assert not np.array_equal(shown[0], shown[2])
    run("ns-render", "camera-path", "--load-config", demo, "--camera-path-filename", work / "orbit.json",
        "--output-path", work / "cut", "--output-format", "images", "--image-format", "png",
        "--rendered-output-names", "rgba", cwd=work)  # fmt: skip
    (first, *_) = sorted((work / "cut").rglob("*.png"))
    with Image.open(first) as picture:
        assert picture.mode == "RGBA"


def test_render_a_whole_path_in_batches(demo: Path, work: Path):
    output = run("ns-megascenes", "render", "orbit", "--frames", "5", "--load-config", demo, "--out", work / "film",
                 "--cache", work / "cache", "--batch", "4", "--samples", "2", cwd=work)  # fmt: skip
    assert "view.mp4" in output
    content = json.loads((work / "film" / "frames.json").read_text())
    assert len(content["frames"]) == 5
    with av.open(str(work / "film" / "beside.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 5
    assert len(list((work / "cache").rglob("*.png"))) == 10
    first = pictures(work / "film" / "frames")
    run("ns-megascenes", "render", "orbit", "--frames", "5", "--load-config", demo, "--out", work / "film2",
        "--cache", work / "cache", "--samples", "2", cwd=work)  # fmt: skip
    again = pictures(work / "film2" / "frames")
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(list((work / "cache").rglob("*.png"))) == 10, "found by another process"


def test_render_spiral_interpolate_and_dataset(pairs: Path, work: Path):
    run("ns-render", "spiral", "--load-config", pairs, "--radius", "1", "--seconds", "0.2", "--frame-rate", "10",
        "--output-path", work / "spiral.mp4", cwd=work)  # fmt: skip
    run("ns-render", "interpolate", "--load-config", pairs, "--interpolation-steps", "2", "--rendered-output-names",
        "rgb", "warp", "--output-path", work / "way.mp4", cwd=work)  # fmt: skip
    for name in ("spiral", "way"):
        assert (work / f"{name}.mp4").stat().st_size > 1000
    run("ns-render", "dataset", "--load-config", pairs, "--output-path", work / "dataset", "--split", "test",
        "--image-format", "png", cwd=work)  # fmt: skip
    for name in ("rgb", "gt-rgb", "warp", "reference", "coverage", "depth"):
        assert len(pictures(work / "dataset" / "test" / name)) == 3, name
    truth, warp = (pictures(work / "dataset" / "test" / name) for name in ("gt-rgb", "warp"))
    for each, drawn in zip(truth, warp, strict=True):
        inside = drawn.any(axis=-1)  # one sample per pixel: holes are black, their borders are not
        assert inside.mean() > 0.4
        assert np.abs(each - drawn)[inside].mean() < 6, "exact depth: the warp is the photo"


def test_bad_input_is_one_line(demo: Path, work: Path):
    out = work / "nothing"
    wrong = (
        ((), "name one source of networks"),
        (("--load-config", work / "absent.yml"), "is not a file"),
        (("--load-config", demo, "--samples", "0"), "--samples"),
        (("--load-config", demo, "--pair", "7"), "is not among"),
        (("--weights", work), "--photo"),
    )
    for words, message in wrong:
        output = run("ns-megascenes", "render", "--out", out, *words, cwd=work, status=2)
        assert message in output
        assert "Traceback" not in output
    assert not out.exists()
    output = run("ns-megascenes", "view", work / "moved.png", "--tiny", "--no-open", cwd=work, status=1)
    assert "has none" in output
    assert "Traceback" not in output
