"""A29: the perceptual term never reaches for the network, and falls back to a differentiable SSIM."""

from __future__ import annotations

import logging
import pickle
import socket
import subprocess
import sys

import pytest
import torch

from core_ns import metrics
from r4dv_ns import perceptual
from r4dv_ns.perceptual import PerceptualTerm, ssim_loss


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Sockets blocked, an empty torch.hub cache, a warning that has not been given yet."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(PerceptualTerm, "_warned", False)
    return tmp_path


def images(height=40, width=33, noise=0.1):
    truth = torch.rand(height, width, 3)
    return (truth + noise * torch.randn(height, width, 3)).clamp(0, 1), truth


def test_absent_weights_give_one_warning_and_an_ssim_term(offline, caplog):
    pred, truth = images()
    pred.requires_grad_()
    with caplog.at_level(logging.WARNING):
        values = [PerceptualTerm()(pred, truth) for _ in range(3)]
    assert len(caplog.records) == 1
    assert "vgg16" in caplog.text
    values[0].backward()
    assert pred.grad is not None
    assert bool(pred.grad.any())
    similarity = metrics.ssim(pred.detach(), truth)
    assert similarity is not None
    assert float(values[0].detach()) == pytest.approx(1 - similarity, abs=1e-5)
    assert not list(offline.iterdir())


def test_building_the_term_looks_for_nothing(offline, monkeypatch):
    monkeypatch.setattr(perceptual, "backbone_problem", lambda *_: pytest.fail("looked for weights"))
    term = PerceptualTerm()
    assert term.name == "ssim"


def test_weight_zero_costs_no_import_and_no_socket():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import r4dv_ns.losses as losses\n"
        "losses.PerceptualTerm()\n"
        "assert 'torchmetrics' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("shape", [(11, 11), (12, 30), (40, 33), (64, 20)])
def test_ssim_equals_the_metric(shape):
    for noise in (0.0, 0.05, 0.5):
        pred, truth = images(*shape, noise=noise)
        similarity = metrics.ssim(pred, truth)
        assert similarity is not None
        assert float(ssim_loss(pred, truth)) == pytest.approx(1 - similarity, abs=2e-5)


def test_ssim_gradient_by_finite_differences():
    pred, truth = (image.double() for image in images(12, 13))
    assert torch.autograd.gradcheck(lambda x: ssim_loss(x, truth), (pred.requires_grad_(),), fast_mode=True)


def test_tiny_and_flat_images_are_finite():
    for height, width in ((5, 40), (11, 11)):
        pred = torch.zeros(height, width, 3, requires_grad=True)
        loss = ssim_loss(pred, torch.zeros(height, width, 3))
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        assert pred.grad is not None
        assert bool(pred.grad.isfinite().all())


def test_with_weights_the_term_is_lpips_of_the_vgg_network(monkeypatch):
    import torchvision

    slim = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])  # without the huge classifier
    network = torch.nn.Module()
    network.features = slim
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights=None: network)
    monkeypatch.setattr(perceptual, "backbone_problem", lambda _: None)
    term = PerceptualTerm()
    pred, truth = images(40, 48)
    pred.requires_grad_()
    value = term(pred, truth)
    assert term.name == "lpips"
    value.backward()
    assert pred.grad is not None
    assert bool(pred.grad.any())
    assert float(term(truth, truth)) == pytest.approx(0.0, abs=1e-6)
    assert float(value.detach()) > 0
    assert not any(parameter.requires_grad for parameter in slim.parameters())
    small = images(20, 48)
    assert float(term(*small)) == pytest.approx(float(ssim_loss(*small)))


def test_a_broken_backbone_falls_back(offline, monkeypatch, caplog):
    def broken(_):
        raise pickle.UnpicklingError("holds objects")

    monkeypatch.setattr(perceptual, "backbone_problem", broken)
    with caplog.at_level(logging.WARNING):
        term = PerceptualTerm()
        term(*images())
    assert term.name == "ssim"
    assert "holds objects" in caplog.text
