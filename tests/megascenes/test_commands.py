"""ns-train and ns-eval on megascenes as a user types them: training, resume after kill -9, scores (check 13)."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from PIL import Image
from planar_pairs import write_pairs

pytestmark = pytest.mark.slow

QUIET = ("--vis", "tensorboard", "--logging.local-writer.enable", "False", "--pipeline.datamanager.batch-size", "4",
         "--pipeline.datamanager.workers", "1")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def wall(work: Path) -> Path:
    return write_pairs(work / "wall")


@pytest.fixture(scope="module")
def trained(work: Path, wall: Path) -> Path:
    """The folder of a run of a few steps, evaluated on the way."""
    output = run(
        "ns-train", "megascenes-tiny", "--data", wall, "--output-dir", work / "outputs", "--timestamp", "first",
        "--max-num-iterations", "12", "--steps-per-eval-batch", "5", "--steps-per-eval-image", "8",
        "--steps-per-eval-all-images", "10", *QUIET, "megascenes-pairs", "--shown-pairs", "4", cwd=work,
    )  # fmt: skip
    folder = work / "outputs" / "wall" / "megascenes-tiny" / "first"
    (folder / "train.log").write_text(output)
    return folder


def load(folder: Path) -> dict:
    path = sorted((folder / "nerfstudio_models").glob("*.ckpt"))[-1]
    return torch.load(path, weights_only=True, map_location="cpu")


def newest(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in (folder / "nerfstudio_models").glob("step-*.ckpt")), default=-1)


def test_train_leaves_a_whole_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yml", "dataparser_transforms.json", "nerfstudio_models", "reference"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names), "tensorboard evaluation ran"
    state = load(trained)
    assert state["step"] == 11
    assert not [key for key in state["pipeline"] if ".vae." in key or ".image_encoder." in key]
    log = (trained / "train.log").read_text()
    assert "8 pairs to train on, 2 held out" in log
    printed = dict(re.findall(r"^(Train on|View|Evaluate|Render): +(.+)$", log, re.M))
    assert set(printed) == {"Train on", "View", "Evaluate", "Render"}


def test_eval_reports_every_family_and_why_others_are_missing(trained, work):
    run("ns-eval", "--load-config", trained / "config.yml", "--output-path", work / "eval.json",
        "--render-output-path", work / "eval", cwd=work)  # fmt: skip
    found = json.loads((work / "eval.json").read_text())["results"]
    for key in ("psnr", "ssim", "psnr_std", "psnr_of_mean_mse", "psnr_masked", "ssim_masked", "copy_warp_psnr",
                "copy_warp_ssim", "compat_psnr", "compat_masked_psnr", "fixed_noise_mse", "coverage"):  # fmt: skip
        assert np.isfinite(found[key]), key
    assert found["count"] == 2
    for name in ("lpips", "fid", "kid"):
        assert found[name].startswith("skipped: "), "no weights in this user's cache"
    assert [row["pair"] for row in found["per_image"]] == [8, 9]
    shown = sorted((work / "eval").glob("*.png"))
    assert len(shown) == 2
    with Image.open(shown[0]) as picture:
        assert picture.size == (4 * 64, 64), "reference, warp, generated, photo"


def test_killed_and_resumed_a_run_ends_with_the_weights_of_an_undisturbed_one(work, wall):
    """Check 11 with real processes and kill -9."""

    def words(name: str, *more: str) -> list[str]:
        return ["ns-train", "megascenes-tiny", "--data", str(wall), "--output-dir", str(work / "outputs"),
                "--timestamp", name, "--target-steps", "12", "--steps-per-save", "4", *QUIET, *more]  # fmt: skip

    folders = {name: work / "outputs" / "wall" / "megascenes-tiny" / name for name in ("whole", "killed")}
    process = start(*words("killed"), cwd=work)
    deadline = time.monotonic() + 300
    while newest(folders["killed"]) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert running, output[-3000:]
    step = newest(folders["killed"])
    run(*words("killed", "--load-dir", str(folders["killed"] / "nerfstudio_models")), cwd=work)
    run(*words("whole"), cwd=work)
    mine, theirs = (load(folders[name]) for name in ("killed", "whole"))
    assert mine["step"] == theirs["step"] == 11, "target-steps counts all updates"
    difference = max(
        float((value.double() - theirs["pipeline"][name].double()).abs().max())
        for name, value in mine["pipeline"].items() if value.numel()
    )  # fmt: skip
    print(f"killed at step {step}: final weights differ by {difference}")
    assert difference <= 1e-5


def test_bad_data_are_refused_in_one_line(work):
    pickled = work / "trainsplit.pkl"
    pickled.write_bytes(b"cos\nsystem\n(S'touch pickle-ran'\ntR.")
    output = run("ns-train", "megascenes-tiny", "--data", pickled, "--output-dir", work / "never", *QUIET,
                 cwd=work, status=1)  # fmt: skip
    assert "ns-megascenes convert-splits" in output
    assert not (work / "never").exists()
    assert not (work / "pickle-ran").exists()
