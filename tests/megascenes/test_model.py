"""The model: what a step computes, determinism of pictures, outputs that nerfstudio can show (checks 3, 10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planar_pairs import write_pairs
from tiny_runs import NOISE, fixed_loss, open_trainer, run_config

from core_ns.errors import DataError
from megascenes_ns.batches import training_draws
from megascenes_ns.evaluation import cases, generate, score, strip

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "wall", pairs=4, held_out=3)


@pytest.fixture(scope="module")
def trainer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Not trained: fresh networks draw noise, and determinism does not need more."""
    opened = open_trainer(run_config(data, tmp_path_factory.mktemp("out"), 0, "model"))
    opened.pipeline.eval()
    return opened


def test_a_step_is_the_papers(trainer):
    """Input order, scaling and what is left out, worked out here from the parts (spec 4.1, 4.3, 4.4, 4.5)."""
    pipeline = trainer.pipeline
    model, manager = pipeline.model, pipeline.datamanager
    batch, _ = manager.next_train(0)
    draws = training_draws(batch, 8, model.config.seed)
    draws = draws._replace(
        drop_embedding=torch.tensor([True, False, True, False]), drop_latent=torch.tensor([False, False, True, True])
    )
    with torch.no_grad():
        found = model(model.inputs(batch, draws, manager.latents))
    nets, reader = model.networks, manager.reader
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for row, number in enumerate(batch.numbers):
        squares = [torch.from_numpy(reader.prepared(number, side).padded)[None] for side in ("ref", "tgt")]
        encoded, moments = nets.encode_reference(squares[0]), nets.encode_target(squares[1])
        kept = alphas[draws.times[row]].float()
        noise = draws.noise[row][None]
        target = 0.18215 * (moments.mean + moments.std * draws.posterior[row])
        noisy = kept.sqrt() * target + (1 - kept).sqrt() * noise
        latent = encoded.latent * float(not draws.drop_latent[row])
        embedding = encoded.embedding * float(not draws.drop_embedding[row])
        pose = torch.from_numpy(reader.poses([number]))
        warp = torch.from_numpy(reader.low(number))[None].permute(0, 3, 1, 2) * 2 - 1
        with torch.no_grad():
            context = nets.cc_projection(torch.cat([embedding, pose], 1))[:, None]
            stacked = torch.cat([noisy, latent, warp], 1)
            expected = nets.unet(stacked, draws.times[row][None], encoder_hidden_states=context).sample
        torch.testing.assert_close(found["predicted"][row], expected[0], atol=2e-4, rtol=1e-4)
        assert torch.equal(found["noise"][row], draws.noise[row])


def test_the_same_seed_draws_the_same_picture_in_any_batch(trainer):
    """Check 10, at the level of the model."""
    model, manager = trainer.pipeline.model, trainer.pipeline.datamanager
    todo = list(cases(manager))

    def pictures(some: list, seed: int, batch: int) -> np.ndarray:
        found = generate(model.networks, model.viewing.drawer, some, model.viewing.settings(), seed, batch)
        return np.stack([each.picture for each in found]).astype(int)

    first = pictures(todo, 0, 3)
    assert np.array_equal(first, pictures(todo, 0, 3))
    assert np.abs(first - pictures(todo, 0, 1)).max() <= 1, "rounding to 8 bit at most"
    assert np.abs(first[::-1] - pictures(todo[::-1], 0, 2)).max() <= 1, "nor does the order matter"
    assert np.abs(first - pictures(todo, 1, 3)).mean() > 2


def test_the_fixed_noise_loss_is_the_same_question_every_time(trainer):
    torch.manual_seed(1)
    first = fixed_loss(trainer)
    torch.manual_seed(2)
    assert fixed_loss(trainer) == first
    _, losses, metrics = trainer.pipeline.get_eval_loss_dict(7)
    assert float(losses["diffusion_mse"]) == pytest.approx(first, rel=1e-6)
    assert len(metrics) == 10
    assert not trainer.pipeline.model.networks.training


def test_cameras_give_what_nerfstudio_shows(trainer):
    model, manager = trainer.pipeline.model, trainer.pipeline.datamanager
    camera, batch = manager.next_eval_image(1)
    outputs = model.get_outputs_for_camera(camera)
    size = int(camera.height), int(camera.width)
    assert size == (48, 64)
    for name in ("rgb", "depth", "accumulation", "warp", "coverage", "reference"):
        assert outputs[name].shape[:2] == size, name
        assert outputs[name].shape[2] in (1, 3)
        assert torch.isfinite(outputs[name]).all()
    metrics, images = model.get_image_metrics_and_images(outputs, batch)
    assert {"psnr", "ssim", "psnr_masked", "coverage"} <= set(metrics)
    assert images["img"].shape == (48, 4 * 64, 3)
    assert model.get_rgba_image(outputs).shape == (*size, 4)


def test_rays_are_refused(trainer):
    with pytest.raises(DataError, match="bundle of rays"):
        trainer.pipeline.model.get_outputs(object())


def test_a_set_is_scored_with_a_reason_for_what_is_missing(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    found = trainer.pipeline.get_average_eval_image_metrics(output_path=tmp_path / "strips", get_std=True)
    assert found["count"] == 3
    for key in ("psnr", "ssim", "psnr_of_mean_mse", "psnr_masked", "ssim_masked", "coverage", "copy_warp_psnr",
                "compat_psnr", "compat_masked_psnr", "compat_ssim", "psnr_std", "fixed_noise_mse"):  # fmt: skip
        assert np.isfinite(found[key]), key
    assert set(found["skipped"]) == {"lpips", "fid", "kid"}
    for name in ("lpips", "fid", "kid"):
        assert found[name].startswith("skipped: ")
    assert [row["seed"] for row in found["per_image"]] == [4, 5, 6], "a seed per pair"
    assert found["sampling"]["sampler"] == "ddim"
    assert found["copy_warp_psnr_masked"] > 18, "the warp of exact depth is nearly the photo where it is seen"
    strips = sorted(path.name for path in (tmp_path / "strips").iterdir())
    assert strips == ["0000004__009.png", "0000005__011.png", "0000006__013.png"]
    in_training = trainer.pipeline.get_average_eval_image_metrics(step=5)
    assert all(isinstance(value, float) for value in in_training.values()), "tensorboard takes numbers alone"


def test_fid_and_kid_are_measured_where_a_network_is(trainer, monkeypatch):
    """With a double for Inception: sets are put together as they should be."""
    from megascenes_ns import evaluation

    class Means:
        def __init__(self, device):
            pass

        def __call__(self, pictures):
            assert pictures.dtype == torch.uint8
            assert pictures.shape[1:] == (64, 64, 3), "padded, as the original scores"
            small = torch.nn.functional.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2).float(), 2)
            return small.flatten(1).double().numpy() / 255

    monkeypatch.setattr(evaluation, "Inception", Means)
    monkeypatch.setattr(evaluation, "inception_problem", lambda: None)
    model, manager = trainer.pipeline.model, trainer.pipeline.datamanager
    todo = list(cases(manager))
    made = list(generate(model.networks, model.viewing.drawer, todo, model.viewing.settings(), 0, 4))
    found = score(iter(made), 64, "cpu").means
    assert {"fid", "kid", "fid_masked", "kid_masked", "copy_warp_fid", "copy_warp_kid"} <= set(found)
    assert found["fid_masked"] < found["fid"], "only what was invented differs"
    perfect = [each._replace(judged=each.judged._replace(drawn=each.judged.truth)) for each in made]
    assert score(iter(perfect), 64, "cpu").means["fid"] == pytest.approx(0, abs=1e-9)
    one = score(iter(made[:1]), 64, "cpu")
    assert "too few" in one.skipped["fid"]
    assert strip(made[0]).shape == (64, 4 * 64, 3)


def test_means_are_what_pictures_are_drawn_with(data: Path, tmp_path: Path):
    trainer = open_trainer(run_config(data, tmp_path, 2, "means", ema_decay=0.9))
    trainer.train()
    model = trainer.pipeline.model
    drawing = model.sampling_networks()
    assert drawing is model.sampling_networks()
    assert drawing.unet is model.mean.unet
    assert drawing.vae is model.networks.vae
    assert not torch.equal(drawing.unet.conv_in.weight, model.networks.unet.conv_in.weight)
    assert fixed_loss(trainer, networks=drawing) != fixed_loss(trainer)
    assert model.networks.unet is not model.mean.unet
