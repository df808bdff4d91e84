"""Metrics against numpy loops and scikit-image; LPIPS never reaches for the network."""

from __future__ import annotations

import hashlib
import logging
import math
import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns import metrics
from core_ns.metrics import LpipsOrNothing, backbone_problem, fill_misses, image_metrics, masked_psnr, psnr, ssim


def _images(height=24, width=31, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(height, width, 3, generator=generator)
    pred = (truth + noise * torch.randn(height, width, 3, generator=generator)).clamp(0, 1)
    mask = torch.rand(height, width, generator=generator) < 0.4
    return pred, truth, mask


def _psnr_loop(pred, truth, mask) -> float:
    total, count = 0.0, 0
    for row in range(pred.shape[0]):
        for column in range(pred.shape[1]):
            if mask[row, column]:
                for channel in range(3):
                    total += (float(pred[row, column, channel]) - float(truth[row, column, channel])) ** 2
                    count += 1
    return 10 * math.log10(1 / (total / count))


def test_psnr_equals_the_loop_with_and_without_a_mask():
    pred, truth, mask = _images()
    assert psnr(pred, truth) == pytest.approx(_psnr_loop(pred, truth, torch.ones_like(mask)), abs=1e-5)
    assert masked_psnr(pred, truth, mask) == pytest.approx(_psnr_loop(pred, truth, mask), abs=1e-5)


def test_psnr_of_a_known_difference():
    truth = torch.full((8, 8, 3), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    assert psnr(truth, truth) == 100.0  # finite on purpose
    assert masked_psnr(truth, truth, torch.zeros(8, 8, dtype=torch.bool)) is None


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    for seed in range(3):
        pred, truth, _ = _images(seed=seed, noise=0.05 * (seed + 1))
        # scikit-image averages the windows that lie inside the image; mirrored by half a window, that is every pixel.
        mirrored = [np.pad(image.double().numpy(), ((5, 5), (5, 5), (0, 0)), "reflect") for image in (pred, truth)]
        expected = structural_similarity(
            *mirrored,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2,
        )
        assert ssim(pred, truth) == pytest.approx(expected, abs=2e-5)
    assert ssim(truth, truth) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (1, 1), (5, 5)])
def test_images_below_the_window_have_no_ssim_key(height, width):
    pred, truth, mask = _images(height, width)
    assert ssim(pred, truth) is None
    assert set(image_metrics(pred, truth, mask | True)) == {"psnr", "psnr_masked", "psnr_white", "coverage"}
    assert ssim(*_images(11, 11)[:2]) is not None


def test_all_keys_follow_their_definitions():
    pred, truth, mask = _images()
    result = image_metrics(pred, truth, mask)
    assert set(result) == {
        "psnr", "ssim", "psnr_masked", "ssim_masked", "psnr_misses", "psnr_white", "ssim_white", "coverage"
    }  # fmt: skip
    assert all(type(value) is float for value in result.values())
    assert result["coverage"] == pytest.approx(mask.numpy().mean())
    assert result["psnr"] == psnr(pred, truth)
    assert result["psnr_masked"] == masked_psnr(pred, truth, mask)
    assert result["psnr_misses"] == masked_psnr(pred, truth, ~mask)

    filled, white_pred, white_truth = pred.clone(), pred.clone(), truth.clone()
    for row, column in np.argwhere(~mask.numpy()):
        filled[row, column] = truth[row, column]
        white_pred[row, column] = white_truth[row, column] = 1.0
    assert result["ssim_masked"] == ssim(filled, truth)
    assert result["ssim_white"] == ssim(white_pred, white_truth)
    assert result["psnr_white"] == psnr(white_pred, white_truth)
    # The original's protocol flatters by exactly the coverage (spec xscale 3.5).
    flattery = 10 * math.log10(1 / result["coverage"])
    assert result["psnr_white"] - result["psnr_masked"] == pytest.approx(flattery, abs=1e-4)


def test_no_mask_an_empty_mask_and_a_full_mask():
    pred, truth, mask = _images()
    assert set(image_metrics(pred, truth)) == {"psnr", "ssim"}
    empty = image_metrics(pred, truth, torch.zeros_like(mask))
    assert set(empty) == {"psnr", "ssim", "psnr_misses", "psnr_white", "ssim_white", "coverage"}
    assert empty["psnr_misses"] == empty["psnr"]
    assert (empty["coverage"], empty["psnr_white"]) == (0.0, 100.0)
    full = image_metrics(pred, truth, torch.ones_like(mask)[..., None])  # an accumulation-shaped mask is understood
    assert "psnr_misses" not in full
    assert full["psnr"] == full["psnr_masked"] == full["psnr_white"]
    assert full["ssim"] == full["ssim_masked"]


def test_out_of_range_colours_are_clamped_and_inputs_left_alone():
    _, truth, mask = _images()
    pred = truth * 3 - 1
    before = pred.clone()
    assert image_metrics(pred, truth, mask) == image_metrics(pred.clamp(0, 1), truth, mask)
    assert torch.equal(pred, before)


def test_wrong_shapes_are_named():
    pred, truth, mask = _images()
    with pytest.raises(ValueError, match=r"\(24, 31, 3\)"):
        image_metrics(pred, truth[:-1])
    with pytest.raises(ValueError, match="mask"):
        image_metrics(pred, truth, mask[:-1])


def test_nothing_is_hidden_when_a_render_holds_nan():
    pred, truth, mask = _images()
    pred[0, 0] = float("nan")
    assert math.isnan(image_metrics(pred, truth, mask)["psnr"])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 1000), st.floats(0, 1))
def test_every_value_is_finite(height, width, seed, noise):
    pred, truth, mask = _images(height, width, seed, noise)
    assert all(math.isfinite(value) for value in image_metrics(pred, truth, mask).values())


def test_fill_misses_takes_an_image_or_a_grey():
    pred, truth, mask = _images()
    assert torch.equal(fill_misses(pred, mask, truth)[~mask], truth[~mask])
    assert torch.equal(fill_misses(pred, mask, 1.0)[mask], pred[mask])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache, no way out to the network, and a warning that has not been given yet."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(LpipsOrNothing, "_warned", False)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def test_absent_weights_give_one_warning_and_no_key(hub, caplog):
    pred, truth, mask = _images(40, 40)
    with caplog.at_level(logging.WARNING):
        for lpips in (LpipsOrNothing(), LpipsOrNothing()):
            for _ in range(3):
                assert not [key for key in image_metrics(pred, truth, mask, lpips) if "lpips" in key]
    assert len(caplog.records) == 1
    assert "alexnet" in caplog.text.lower()
    assert not list(hub.iterdir())


def test_a_file_with_another_hash_counts_as_absent(hub, caplog):
    (hub / "alexnet-owt-7be5be79.pth").write_bytes(b"not the published weights")
    assert "SHA-256" in (backbone_problem() or "")
    assert LpipsOrNothing()(torch.rand(40, 40, 3), torch.rand(40, 40, 3)) is None
    assert len(caplog.records) == 1


def test_an_older_backbone_does_not_trigger_a_download_of_the_newer(hub):
    (hub / "alexnet-owt-4df8aa71.pth").write_bytes(b"older")
    assert "not in" in (backbone_problem() or "")


def test_a_file_that_matches_its_name_is_accepted_unless_it_needs_unpickling(hub, monkeypatch):
    from torchvision.models import AlexNet_Weights

    def publish(content):
        torch.save(content, hub / "draft", _use_new_zipfile_serialization=False)  # the format of the real file
        digest = hashlib.sha256((hub / "draft").read_bytes()).hexdigest()[:8]
        (hub / "draft").rename(hub / f"alexnet-owt-{digest}.pth")
        weights = type("Weights", (), {"url": f"https://host.invalid/models/alexnet-owt-{digest}.pth"})
        monkeypatch.setattr(AlexNet_Weights.DEFAULT, "_value_", weights)

    publish({"features.0.weight": torch.zeros(2, 3)})
    assert backbone_problem() is None
    publish({"features.0.weight": print})
    with pytest.raises(Exception, match="Weights only load failed"):
        backbone_problem()
    assert LpipsOrNothing()(torch.rand(40, 40, 3), torch.rand(40, 40, 3)) is None


def test_lpips_is_the_metric_of_torchmetrics_per_image(hub, monkeypatch):
    """Random backbone weights instead of the published ones: the plumbing is under test, not the network."""
    import torchvision
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    plain = torchvision.models.alexnet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = plain(weights=None)
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights=None: network)
    monkeypatch.setattr(metrics, "backbone_problem", lambda: None)
    lpips, module = LpipsOrNothing(), torch.nn.Module()
    module.lpips = lpips
    values = []
    for seed in (0, 1):
        pred, truth, mask = _images(48, 40, seed, 0.3)
        result = image_metrics(pred, truth, mask, lpips)
        assert {"lpips", "lpips_masked"} <= set(result)
        assert 0 < result["lpips_masked"] < result["lpips"]
        batches = [image.permute(2, 0, 1)[None] for image in (pred, truth)]
        expected = learned_perceptual_image_patch_similarity(*batches, net_type="alex", normalize=True)
        assert result["lpips"] == pytest.approx(float(expected), rel=1e-4)
        values.append(result["lpips"])
    assert values[0] != values[1]  # not a running mean
    assert lpips(truth, truth) == pytest.approx(0.0, abs=1e-6)
    assert lpips(truth[:20], truth[:20]) is None
    assert not module.state_dict()
    assert not list(module.modules())[1:]
