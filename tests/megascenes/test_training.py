"""Whole runs through nerfstudio's trainer: learning, resume, accumulation, means, refusals (checks 9, 11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planar_pairs import write_pairs
from tiny_runs import NOISE, fixed_loss, open_trainer, run_config, train, weights

from core_ns.errors import DataError
from core_ns.trainer import read_checkpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "wall")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.slow
def test_two_hundred_steps_halve_the_fixed_noise_loss(data: Path, tmp_path: Path):
    """Check 9. What trains changes, what is frozen does not by a single bit."""
    trainer = open_trainer(run_config(data, tmp_path, 200, "learn", batch_size=8))
    before, trained, frozen = fixed_loss(trainer), weights(trainer), weights(trainer, frozen=True)
    trainer.train()
    after = fixed_loss(trainer)
    print(f"fixed-noise loss of held-out pairs after 200 steps: {before:.3f} -> {after:.3f}")
    assert after < 0.5 * before
    assert same(weights(trainer, frozen=True), frozen)
    changed = {key for key, value in weights(trainer).items() if not torch.equal(value, trained[key])}
    assert {"cc_projection.weight", "unet.conv_in.weight", "unet.conv_out.weight"} <= changed
    assert len(changed) == len(trained)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2, "ema_decay": 0.9}])
def test_a_resumed_run_is_bit_equal(data: Path, tmp_path: Path, options: dict[str, Any]):
    """Check 11, with a stop at a third."""
    through = train(run_config(data, tmp_path, 6, "through", **options))
    first = train(run_config(data, tmp_path, 2, "first", **options))
    config = run_config(data, tmp_path, 1, "second", **options)
    config.load_dir, config.target_steps = first.checkpoint_dir, 6
    second = train(config)
    assert {**first.losses, **second.losses} == through.losses
    assert same(weights(second), weights(through))
    assert second.step == 5
    mine, theirs = second.pipeline.state_dict(), through.pipeline.state_dict()
    assert same(mine, theirs), "the means as well"


def test_checkpoints_hold_what_trains_and_nothing_frozen(data: Path, tmp_path: Path):
    trainer = train(run_config(data, tmp_path, 1, "file", ema_decay=0.99))
    state = read_checkpoint(next(trainer.checkpoint_dir.glob("*.ckpt")))["pipeline"]  # loads under weights_only=True
    assert not [key for key in state if ".vae." in key or ".image_encoder." in key]
    parts = {".".join(key.split(".")[1:3]) for key in state}
    expected = {"networks.unet", "networks.cc_projection", "mean.unet", "mean.cc_projection"}
    assert parts == {*expected, "frozen_digest", "device_indicator_param"}


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Of the first update, as the optimiser would see them. In float64: on latents of 8 x 8 the lowest level norms
    groups of two numbers, where rounding is multiplied by thousands."""
    trainer.pipeline.model.double()
    _, losses, _ = trainer.pipeline.get_train_loss_dict(0)
    sum(losses.values()).backward()
    trainer.losses[0] = float(losses["diffusion_mse"].detach())
    trainer.pipeline.datamanager.close()
    parameters = trainer.pipeline.model.networks.named_parameters()
    return {name: each.grad for name, each in parameters if each.grad is not None}


def test_micro_batches_change_nothing_but_rounding(data: Path, tmp_path: Path):
    whole, parts = (open_trainer(run_config(data, tmp_path, 1, name, **options)) for name, options in
                    (("whole", {}), ("parts", {"micro_batch": 1})))  # fmt: skip
    assert parts.pipeline.datamanager.micro_steps == 4
    ours, theirs = gradients(parts), gradients(whole)
    assert parts.losses[0] == pytest.approx(whole.losses[0], abs=1e-6)
    assert set(ours) == set(theirs) == set(weights(whole)), "everything that trains has a gradient"
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"gradients of 4 micro batches against one batch: at most {worst:.1e} apart")
    assert worst < 1e-7


def test_the_originals_quirks_can_be_had(data: Path, tmp_path: Path):
    """Parity switches: cc_projection stays as it is, nothing is left out for guidance, pose only."""
    config = run_config(data, tmp_path, 2, "parity", train_cc_projection=False, condition_dropout=False,
                        variant="zeronvs")  # fmt: skip
    trainer = open_trainer(config)
    before = weights(trainer)
    assert set(trainer.pipeline.get_param_groups()) == {"unet"}
    trainer.train()
    after = weights(trainer)
    assert torch.equal(before["cc_projection.weight"], after["cc_projection.weight"])
    assert not torch.equal(before["unet.conv_in.weight"], after["unet.conv_in.weight"])
    assert before["unet.conv_in.weight"].shape[1] == 8


def test_bf16_and_checkpointing_train_about_the_same(data: Path, tmp_path: Path):
    plain = train(run_config(data, tmp_path, 2, "plain"))
    halved = train(run_config(data, tmp_path, 2, "bf16", precision="bf16", checkpointing=True))
    assert halved.losses == pytest.approx(plain.losses, rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights(halved).values() if value.is_floating_point())


def test_latents_on_disk_train_as_those_in_memory(data: Path, tmp_path: Path):
    plain = train(run_config(data, tmp_path, 2, "memory"))
    folder = tmp_path / "cache"
    folder.mkdir()
    stored = train(run_config(data, tmp_path, 2, "disk", cache=folder))
    assert list(folder.rglob("*.npz"))
    again = train(run_config(data, tmp_path, 2, "again", cache=folder))
    assert plain.losses == stored.losses == again.losses


def test_a_prefetching_manager_serves_the_same_batches(data: Path, tmp_path: Path):
    ahead = train(run_config(data, tmp_path, 2, "ahead", workers=3, prefetch=3))
    alone = train(run_config(data, tmp_path, 2, "alone", prefetch=0))
    assert ahead.losses == alone.losses


def test_other_frozen_networks_are_noticed(data: Path, tmp_path: Path):
    first = train(run_config(data, tmp_path, 1, "first"))
    config = run_config(data, tmp_path, 1, "second", seed=5)
    config.load_dir = first.checkpoint_dir
    with pytest.raises(DataError, match="are not the frozen networks"):
        train(config)


def test_a_checkpoint_without_one_weight_is_refused(data: Path, tmp_path: Path):
    trainer = train(run_config(data, tmp_path, 1, "first"))
    state = trainer.pipeline.state_dict()
    state.pop("_model.networks.unet.conv_in.bias")
    with pytest.raises(DataError, match="does not fit this model: missing"):
        trainer.pipeline.load_pipeline(state, 0)


def test_weights_of_a_folder_are_trained_on(data: Path, tmp_path: Path):
    from megascenes_ns.networks import Networks
    from megascenes_ns.sizes import Sizes
    from megascenes_ns.weights_folder import save

    nets = Networks.fresh(Sizes.tiny(8), 3)
    save(nets, tmp_path / "weights")
    config = run_config(data, tmp_path, 1, "on", weights=tmp_path / "weights")
    config.save_config()
    trainer = open_trainer(config)
    own = trainer.pipeline.model.networks
    assert torch.equal(own.unet.conv_out.weight, nets.unet.conv_out.weight)
    assert own.unet.conv_in.weight.shape[1] == 11
    assert float(own.unet.conv_in.weight[:, 8:].detach().abs().max()) == 0, "widened with zeros (spec 4.3)"
    assert trainer.pipeline.model.viewing.uncond == "legacy", "imported weights saw the original's training"
    trainer.train()


def refuse(config: Any, text: str) -> None:
    with pytest.raises(SystemExit, match=text):
        config.save_config()
    assert not config.get_base_dir().exists(), "nothing is written"


def test_runs_that_cannot_be_meant_are_refused_before_anything_is_written(data: Path, tmp_path: Path):
    config = run_config(data, tmp_path, 4, "a")
    config.gradient_accumulation_steps = {"unet": 2}
    refuse(config, "micro-batch")
    config = run_config(data, tmp_path, 4, "b")
    config.mixed_precision = True
    refuse(config, "precision bf16")
    refuse(run_config(data, tmp_path, 4, "c", micro_batch=3), "shared out")
    refuse(run_config(data, tmp_path, 4, "d", picture=60), "multiple of 8")
    refuse(run_config(data, tmp_path, 4, "e", size="full", picture=256), "autoencoder and image encoder are never")
    refuse(run_config(data, tmp_path, 4, "f", weights=tmp_path / "none"), "not a folder of weights")
    refuse(run_config(data, tmp_path, 4, "g", ema_decay=1.0), "ema-decay")
    refuse(run_config(data, tmp_path, 4, "h", depth="nowhere"), "nowhere")
    refuse(run_config(data, tmp_path, 4, "i", cache=tmp_path / "none"), "is no folder")
    refuse(run_config(tmp_path / "nowhere", tmp_path, 4, "j"), "nowhere")
    (tmp_path / "trainsplit.pkl").write_bytes(b"x")
    refuse(run_config(tmp_path / "trainsplit.pkl", tmp_path, 4, "k"), "convert-splits")
    config = run_config(data, tmp_path, 4, "l")
    config.pipeline.model.sampling.steps = 0
    refuse(config, "sampling.steps")


def test_a_photo_without_depth_trains_nothing_and_says_so(data: Path, tmp_path: Path):
    photo = next((data / "images").rglob("000.png"))
    refuse(run_config(photo, tmp_path, 4, "no-depth"), "nothing says how far")
    config = run_config(photo, tmp_path, 4, "demo", depth="plane:2.5")
    config.save_config()
    assert config.max_num_iterations == 0
    trainer = train(config)
    assert not trainer.losses
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000000.ckpt"]
    assert (config.get_base_dir() / "reference" / "photo.png").is_file()
