"""Whole runs through nerfstudio's trainer: resume, accumulation, start weights, refusals (acceptance 11, 17)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import NOISE, open_trainer, run_config, train, weights, write_clips

from core_ns.trainer import read_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "waves")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"frames_per_sample": 4, "context_frames": 3}])
def test_a_resumed_run_is_bit_equal(clips: Path, tmp_path: Path, options: dict[str, Any]):
    through = train(run_config(clips, tmp_path, 10, "through", **options))
    first = train(run_config(clips, tmp_path, 6, "first", **options))
    config = run_config(clips, tmp_path, 4, "second", **options)
    config.load_dir = first.checkpoint_dir
    second = train(config)
    assert {**first.losses, **second.losses} == through.losses
    assert same(weights(second), weights(through))
    assert second.step == 9


def test_micro_batches_change_nothing_but_rounding(clips: Path, tmp_path: Path):
    """Acceptance 11: k micro batches are one batch, with the same frames, masks and jitter; a step is an update."""
    whole = train(run_config(clips, tmp_path, 6, "whole", jitter=True))
    parts = train(run_config(clips, tmp_path, 6, "parts", jitter=True, micro_batch=2))
    assert parts.pipeline.datamanager.micro_steps == 4
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    ours, theirs = weights(parts), weights(whole)
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
    print(f"weights after 6 updates, 4 micro batches against one: {worst:.1e}")
    assert worst < 2e-3  # Adam divides by the gradient's own size: rounding decides where that is nothing
    mean = sum(float((ours[key] - theirs[key]).abs().mean()) for key in ours) / len(ours)
    assert mean < 1e-5
    state = read_checkpoint(next(parts.checkpoint_dir.glob("*.ckpt")))
    assert state["step"] == 5
    assert state["schedulers"]["xfactor"]["last_epoch"] == 6, "schedules count updates"


def test_the_loss_falls_and_the_checkpoint_holds_networks_only(clips: Path, tmp_path: Path):
    trainer = train(run_config(clips, tmp_path, 40, "falls"))
    early = sum(trainer.losses[step] for step in range(5)) / 5
    late = sum(trainer.losses[step] for step in range(35, 40)) / 5
    assert late < 0.9 * early
    state = read_checkpoint(next(trainer.checkpoint_dir.glob("*.ckpt")))["pipeline"]
    assert all(key.startswith("_model.net.") or key == "_model.device_indicator_param" for key in state)


def test_a_run_starts_from_another_and_a_resumed_one_does_not(clips: Path, tmp_path: Path):
    first = train(run_config(clips, tmp_path, 2, "stereo"))
    config = run_config(
        clips, tmp_path, 1, "multi", frames_per_sample=4, context_frames=3, init_from=first.checkpoint_dir
    )
    config.save_config()
    multi = open_trainer(config)
    assert same(weights(multi), weights(first))
    config.load_dir = first.checkpoint_dir
    config.save_config()
    assert config.pipeline.model.init_from is None


def refuse(config: Any, text: str) -> None:
    with pytest.raises(SystemExit, match=text):
        config.save_config()
    assert not config.get_base_dir().exists(), "nothing is written"


def test_runs_that_cannot_be_meant_are_refused_before_anything_is_written(clips: Path, tmp_path: Path):
    config = run_config(clips, tmp_path, 4, "a")
    config.gradient_accumulation_steps = {"xfactor": 2}
    refuse(config, "micro-batch")
    config = run_config(clips, tmp_path, 4, "b")
    config.mixed_precision = True
    refuse(config, "precision bf16")
    config = run_config(clips, tmp_path, 3, "c")
    config.optimizers["xfactor"]["scheduler"].max_steps = None
    refuse(config, "leaves nothing after 3 of warm-up")
    refuse(run_config(clips, tmp_path, 4, "d", image_size=40), "twice the patch")
    refuse(run_config(clips, tmp_path, 4, "e", width=1024, heads=16), "5 clips are too few")
    refuse(run_config(clips, tmp_path, 4, "f", batch_size=8, micro_batch=3), "shared out")
    refuse(run_config(clips, tmp_path, 4, "g", init_from=tmp_path / "none.safetensors"), "does not exist")
    refuse(run_config(tmp_path / "nowhere", tmp_path, 4, "h"), "nowhere")
