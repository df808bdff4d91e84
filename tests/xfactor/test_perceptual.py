"""LPIPS as a loss where there are weights; one warning and no term where there are none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from core_ns.errors import DataError
from xfactor_ns.perceptual import Lpips, PerceptualLoss, read_vgg


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random convolutions under torchvision's names."""
    channels = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    channels |= {17: (256, 512), **dict.fromkeys((19, 21, 24, 26, 28), (512, 512))}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, (inputs, outputs) in channels.items():
        state[f"features.{layer}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) / (3 * inputs**0.5)
        state[f"features.{layer}.bias"] = torch.zeros(outputs)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_distance_and_gradient(weights: Path):
    loss = PerceptualLoss(weights)
    truth = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pred = (-truth).requires_grad_()
    value = loss(pred, truth)
    assert value is not None
    value.backward()
    assert float(value.detach()) > 1e-3
    assert pred.grad is not None
    assert float(pred.grad.abs().max()) > 0
    same = loss(truth, truth)
    assert same is not None
    assert float(same) == 0.0
    assert loss(truth[:, :8, :8], truth[:, :8, :8]) is None, "too small for five stages"


@pytest.mark.slow
def test_it_is_torchmetrics_number(weights: Path):
    """Oracle: the same convolutions inside torchmetrics' module."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    theirs = _NoTrainLpips(net="vgg", pnet_rand=True)
    state = read_vgg(weights)
    theirs.net.load_state_dict({name: state[name.split(".", 1)[1]] for name in theirs.net.state_dict()})
    pred, truth = torch.rand(2, 3, 3, 40, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(Lpips(state)(pred, truth), theirs(pred, truth).flatten(), rtol=1e-4, atol=1e-6)


def test_without_weights_there_is_one_warning_and_no_term(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(PerceptualLoss, "_warned", False)
    picture = torch.zeros(1, 32, 32, 3)
    with caplog.at_level(logging.WARNING):
        for loss in (PerceptualLoss(), PerceptualLoss()):
            assert loss(picture, picture) is None
            assert loss(picture, picture) is None
    assert [record.getMessage()[:28] for record in caplog.records] == ["The loss is L1 alone, withou"]


def test_named_files_that_are_not_the_weights_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match="is not a file"):
        read_vgg(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DataError, match="does not load"):
        read_vgg(tmp_path / "text.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"features.0.weight.*missing"):
        read_vgg(tmp_path / "other.pth")


def test_convolutions_of_another_shape_are_an_error(weights: Path):
    state = read_vgg(weights)
    state["5.weight"] = torch.zeros(128, 32, 3, 3)
    with pytest.raises(DataError, match=r"features.5.*shape"):
        Lpips(state)
