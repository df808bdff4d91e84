"""The model around the networks: repeatable steps, start weights, what lands in a checkpoint, refused options."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401
    from nerfstudio.data.scene_box import SceneBox

    from xfactor_ns.model import XFactorModel
    from xfactor_ns.model_config import XFactorModelConfig

from core_ns.errors import DataError
from xfactor_ns.batches import ClipBatch
from xfactor_ns.objective import seeded

TINY: dict[str, Any] = {"width": 32, "heads": 2, "blocks": 1, "patch": 8, "pose": 6, "registers": 2}
TINY |= {"layer_scale": 0.3, "lpips_weight": 0.0}


def make_model(**options: Any) -> Any:
    config = XFactorModelConfig(**{**TINY, **options})
    return config.setup(scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1, metadata={})


def make_batch(size: int = 4, n: int = 2, side: int = 32, update: int = 0, micro: int = 0, seed: int = 0) -> ClipBatch:
    frames = torch.randint(256, (size, n, side, side, 3), dtype=torch.uint8, generator=seeded(seed))
    return ClipBatch(frames, torch.arange(n).expand(size, -1) * 3, tuple("abcdefgh"[:size]), update, micro)


# ------------------------------------------------------------------ steps


def test_a_step_is_repeatable_and_chance_differs_by_update_and_micro_step():
    model = make_model(jitter=True).train()
    model.samples_per_update = 8
    first = model(make_batch(update=3))
    assert torch.equal(first["render"], model(make_batch(update=3))["render"])
    torch.manual_seed(999)
    assert torch.equal(first["render"], model(make_batch(update=3))["render"]), "torch's global generator has no say"
    for other in (make_batch(update=4), make_batch(update=3, micro=1)):
        assert not torch.equal(first["render"], model(other)["render"])
    reseeded = make_model(seed=1)
    assert not torch.equal(reseeded.net.pose_encoder.registers, model.net.pose_encoder.registers)


def test_loss_metrics_and_gradients_of_a_step():
    model = make_model().train()
    batch = make_batch()
    outputs = model(batch)
    losses, metrics = model.get_loss_dict(outputs, batch), model.get_metrics_dict(outputs, batch)
    assert set(losses) == {"l1"}
    assert set(metrics) == {"psnr", "copy_psnr", "latent_rms"}
    assert all(value.ndim == 0 for value in (*losses.values(), *metrics.values()))
    losses["l1"].backward()
    missing = [name for name, value in model.net.named_parameters() if value.grad is None]
    assert not missing
    assert float(model.net.pose_encoder.head.fc2.bias.grad.abs().max()) == 0.0, "the last bias cancels"
    assert not metrics["psnr"].requires_grad


def test_evaluation_has_no_jitter_and_no_self_reference():
    model = make_model(self_reference=1.0).eval()
    draws = model.draws(make_batch())
    assert draws.jitter is None
    assert (draws.order == torch.tensor([0, 1])).all()
    training = model.train().draws(make_batch())
    assert (training.order == 0).all()
    assert training.jitter is not None


def test_multi_view_and_autoencoding_models_take_steps():
    batch = make_batch(n=4)
    outputs = make_model(context_frames=3)(batch)
    assert outputs["latents"].shape == (4, 4, 2, 6)
    outputs = make_model(context_frames=3, objective="autoencode")(batch)
    assert outputs["latents"].shape == (4, 4, 6)


def test_perceptual_term_is_weighted_and_absent_without_weights(monkeypatch: pytest.MonkeyPatch):
    model = make_model(lpips_weight=0.5)
    outputs, batch = model(make_batch()), make_batch()
    monkeypatch.setattr(model, "perceptual", lambda pred, truth: (pred - truth).square().mean())
    losses = model.get_loss_dict(outputs, batch)
    expected = 0.5 * (outputs["render"] - outputs["target"]).square().mean()
    torch.testing.assert_close(losses["lpips"], expected)
    monkeypatch.setattr(model, "perceptual", lambda pred, truth: None)
    assert set(model.get_loss_dict(outputs, batch)) == {"l1"}


def test_rays_are_refused():
    with pytest.raises(DataError, match="rays"):
        make_model().get_outputs(object())


# ------------------------------------------------------------------ parameters


def test_checkpoints_hold_the_networks_and_nothing_else():
    model: XFactorModel = make_model(lpips_weight=0.5)
    others = {key for key in model.state_dict() if not key.startswith("net.")}
    assert others == {"device_indicator_param"}
    groups = model.get_param_groups()
    assert list(groups) == ["xfactor"]
    assert {id(value) for value in groups["xfactor"]} == {id(value) for value in model.net.parameters()}


def checkpoint(path: Path, model: Any) -> Path:
    pipeline = {f"_model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"step": 7, "pipeline": pipeline, "optimizers": {}}, path)
    return path


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_start_weights_of_another_run_both_networks_or_the_encoder_alone(tmp_path: Path):
    """Spec 4.5: the original's script restarts the renderer; ours takes both unless told otherwise."""
    source, target = make_model(seed=5), make_model()
    file = checkpoint(tmp_path / "step-000000007.ckpt", source)
    fresh = make_model()
    target.take_weights(file)
    assert equal(target.net, source.net)
    half = make_model(init_render=False)
    half.take_weights(tmp_path)  # the folder serves as well
    assert equal(half.net.pose_encoder, source.net.pose_encoder)
    assert equal(half.net.renderer, fresh.net.renderer)


def test_start_weights_of_another_size_are_refused_by_name(tmp_path: Path):
    file = checkpoint(tmp_path / "step-000000007.ckpt", make_model(pose=4, layer_scale=0.01))
    with pytest.raises(DataError, match=r"pose 4 instead of 6.*--pipeline.model.pose 4"):
        make_model().take_weights(file)
    make_model(pose=4).take_weights(file)  # another start of the scales is no obstacle
    with pytest.raises(DataError, match="does not exist"):
        make_model().take_weights(tmp_path / "none.safetensors")


# ------------------------------------------------------------------ refused options


@pytest.mark.parametrize(
    ("options", "arguments", "text"),
    [
        ({}, (40, 2), "no multiple of twice the patch"),
        ({"context_frames": 5}, (32, 2), "frames-per-sample"),
        ({"unmasked": 1.5}, (32, 2), "unmasked"),
        ({"self_reference": -0.1}, (32, 2), "self-reference"),
        ({"heads": 3}, (32, 2), "do not make 3 heads"),
        ({"lpips_weights": Path("nowhere.pth")}, (32, 2), "nowhere.pth"),
        ({"width": 1024, "heads": 16}, (32, 2, 3), "3 clips are too few.*--pipeline.model.force"),
    ],
)
def test_options_that_cannot_train_are_refused(options, arguments, text):
    with pytest.raises(DataError, match=text):
        XFactorModelConfig(**{**TINY, **options}).check(*arguments)


def test_the_full_model_may_be_forced_or_fine_tuned_on_few_clips(tmp_path: Path):
    full = {"width": 1024, "heads": 16}
    XFactorModelConfig(**{**TINY, **full, "force": True}).check(32, 2, 3)
    file = checkpoint(tmp_path / "step-000000007.ckpt", make_model(width=512, heads=8))
    XFactorModelConfig(**{**TINY, "width": 512, "heads": 8, "init_from": file}).check(32, 2, 3)
    XFactorModelConfig(**{**TINY, **full}).check(32, 2, 1000)
    XFactorModelConfig(**TINY).check(32, 2, 1)
