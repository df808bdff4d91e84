"""A charge against the run it was made of: the same pictures, without recording (acceptance A16, A19; issue 5, 2)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE, run_config, train
from charged_scenes import at_time, load_run, open_charge, plain_camera
from PIL import Image

from core_ns.errors import DataError
from r4dv_ns.charge_bake import bake
from r4dv_ns.charge_store import ChargedStore

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def baked(recording, tmp_path_factory) -> dict[str, Any]:
    """A finished trainer, what it draws, and its charges; afterwards the recording is as if it were deleted."""
    folder = tmp_path_factory.mktemp("charged")
    own = folder / "juggler"
    shutil.copytree(recording, own)
    trainer = train(run_config(own, folder / "outputs", 60, occlusion=True))
    trainer.pipeline.eval()
    model = trainer.pipeline.model
    config = trainer.base_dir / "config.yml"
    trainer.config.save_config()
    charges = {}
    for name, options in {
        "default": {"layers": 10},
        "exact": {"layers": 10, "colours": "f32"},
        "small": {"layers": 10, "xyz": "u16", "sh_degree": 2, "max_sources": 5, "pack": True},
    }.items():
        charges[name] = folder / name
        bake(config, charges[name], **options)
    cameras = targets(trainer)
    drawn = [model.get_outputs_for_camera(camera) for camera in cameras]
    return {
        "folder": folder,
        "own": own,
        "trainer": trainer,
        "config": config,
        "cameras": cameras,
        "drawn": drawn,
        **charges,
    }


def targets(trainer: Any) -> list[Any]:
    """Held-out cameras at their frames, a training camera, and one nearer to the subject."""
    manager = trainer.pipeline.datamanager
    cameras = [plain_camera(manager.eval_dataset.cameras, index) for index in range(len(manager.eval_dataset))]
    between = plain_camera(manager.train_dataset.cameras, 1, times=at_time(1.0))
    middle = trainer.pipeline.model.bounds.mean(dim=0)
    between.camera_to_worlds[0, :, 3] = middle + 0.7 * (between.camera_to_worlds[0, :, 3] - middle)
    return [*cameras, plain_camera(manager.train_dataset.cameras, 0), between]


def decibel(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * math.log10(max(float((one - other).square().mean()), 1e-12))


@pytest.mark.parametrize(("name", "least"), [("exact", 60.0), ("default", 45.0), ("small", 28.0)])
def test_a_charge_draws_what_the_model_draws(baked, name, least):
    """A19: at least 60 dB with f32 colours, 45 dB by default."""
    pipeline = open_charge(baked[name])
    found = [pipeline.model.get_outputs_for_camera(camera) for camera in baked["cameras"]]
    pipeline.model.close()
    quality = [decibel(one["rgb"], other["rgb"]) for one, other in zip(found, baked["drawn"], strict=True)]
    print(f"A19: {name}: {min(quality):.1f} to {max(quality):.1f} dB against the trained model")
    assert min(quality) >= least
    for one, other in zip(found, baked["drawn"], strict=True):
        inside = other["accumulation"] > 0.5
        assert inside.sum() > 100
        assert float((one["depth"] - other["depth"]).abs()[inside].max()) < 0.01


def test_judged_against_photos_the_charge_is_worth_as_much_with_the_recording_gone(baked, monkeypatch):
    """Issue 5, acceptance 2: PSNR differs by 0.1 dB at most; everything that the tools need is in the folder."""
    trained = baked["trainer"].pipeline.get_average_eval_image_metrics(get_std=True)
    moved = baked["folder"] / "elsewhere" / "charge"
    shutil.copytree(baked["default"], moved)
    hidden = baked["own"].rename(baked["folder"] / "hidden")
    try:
        pipeline = load_run(moved, monkeypatch)
        judged = pipeline.get_average_eval_image_metrics(get_std=True)
        pipeline.model.close()
    finally:
        hidden.rename(baked["own"])
    for key in ("psnr", "psnr_masked", "psnr_bbox"):
        print(f"{key}: trained {trained[key]:.3f}, charged {judged[key]:.3f}")
        assert abs(trained[key] - judged[key]) < 0.1
    assert len(judged["per_image"]) == len(trained["per_image"]) == 4
    assert [row["file"][:-4] for row in judged["per_image"]] == [row["file"][:-4] for row in trained["per_image"]]
    for one, other in zip(judged["protocol"]["photos"], trained["protocol"]["photos"], strict=True):
        assert one == other, "the same sources for the same photo"
    assert judged["protocol"]["held_out"] == trained["protocol"]["held_out"]


def test_changing_held_out_photos_changes_no_byte_of_the_points(baked):
    """A16: the charge's points, and so every picture of it, do not know the held-out photos."""
    sequence = baked["trainer"].pipeline.datamanager.sequence
    before = ChargedStore(baked["default"]).hashes
    kept = {}
    for view in sequence.eval_views:
        for kind in ("images", "masks"):
            for file in sorted((baked["own"] / kind / sequence.views[view].name).iterdir()):
                kept[file] = file.read_bytes()
                with Image.open(file) as picture:
                    Image.fromarray(np.full(np.asarray(picture).shape, 255, np.uint8)).save(file)
    try:
        bake(baked["config"], baked["folder"] / "after", layers=10)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
    after = ChargedStore(baked["folder"] / "after").hashes
    points = {path for path in before if path.startswith("frames/")}
    assert points
    assert {path: before[path] for path in points} == {path: after[path] for path in points}
    assert any(before[path] != after[path] for path in set(before) - points)
    one, other = open_charge(baked["default"]), open_charge(baked["folder"] / "after")
    for camera in baked["cameras"]:
        assert torch.equal(*(each.model.get_outputs_for_camera(camera)["rgb"] for each in (one, other)))
    for pipeline in (one, other):
        held_out = {pipeline.datamanager.store.manifest.views[v].name for v in sequence.eval_views}
        used = {row for photo in range(4) for row in pipeline.model.store.frame(photo).src_id.tolist()}
        assert not held_out & {pipeline.datamanager.store.manifest.views[view].name for view in used}
        pipeline.model.close()


def test_a_bake_without_photos_is_viewed_and_says_what_it_cannot(baked, monkeypatch):
    folder = baked["folder"] / "blind"
    bake(baked["config"], folder, eval_photos=False, frame_sample=(0, 2, 1))
    pipeline = load_run(folder, monkeypatch)
    assert len(pipeline.datamanager.eval_dataset.cameras) >= 1
    camera, _ = pipeline.datamanager.eval_dataloader.get_camera(0)
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == (96, 72, 3)
    with pytest.raises(DataError, match="no-eval-photos"):
        pipeline.get_average_eval_image_metrics()
    pipeline.model.close()


def test_the_files_of_a_run_are_the_same_wherever_they_are_written(baked):
    config = baked["default"] / "config.yml"
    from r4dv_ns.charged_config import write_run

    texts = []
    for _ in range(2):
        write_run(baked["default"])
        texts.append(
            [config.read_bytes(), *(file.read_bytes() for file in (baked["default"] / "nerfstudio_models").iterdir())]
        )
    assert texts[0] == texts[1]
    assert str(Path(baked["default"]).resolve().name).encode() in texts[0][0]
    with pytest.raises(ValueError, match="no model option"):
        write_run(baked["default"], nonsense=1)
    with pytest.raises(DataError):
        write_run(baked["own"])
