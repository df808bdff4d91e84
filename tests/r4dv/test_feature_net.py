"""The photo network: layers of the paper, independence of padding, masked statistics, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from r4dv_ns.feature_net import FeatureNet, FrozenFeatures, MaskedNorm

BLOCK = ("conv.weight", "norm.weight", "norm.bias")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_layers_of_the_paper():
    net = FeatureNet()
    convolutions = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    shapes = [tuple(conv.weight.shape) for conv in convolutions]
    assert shapes == [
        (8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 5, 5), (16, 16, 3, 3), (32, 16, 5, 5), (32, 32, 3, 3),
        (32, 8, 1, 1), (32, 16, 1, 1), (32, 32, 1, 1), (8, 32, 3, 3),
    ]  # fmt: skip
    assert [conv.stride[0] for conv in convolutions[:6]] == [1, 1, 2, 1, 2, 1]
    assert all(conv.bias is None for conv in convolutions[:6])


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 23), (5, 6), (1, 1)])
def test_size_and_gradients(norm, height, width):
    net, image = FeatureNet(norm), torch.rand(3, height, width, requires_grad=True)
    out = net(image)
    assert out.shape == (8, height, width)
    out.square().sum().backward()
    assert image.grad is not None
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_norm_over_valid_pixels_equals_torch_on_those_pixels(groups):
    x, valid = torch.randn(1, 8, 6, 7), torch.zeros(1, 1, 6, 7)
    valid[..., 1:4, 2:7] = 1.0
    norm = MaskedNorm(8, groups)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out = norm(x * valid, valid)
    expected = F.relu(F.group_norm(x[..., 1:4, 2:7], groups, norm.weight, norm.bias))
    torch.testing.assert_close(out[..., 1:4, 2:7], expected, atol=1e-5, rtol=1e-4)
    assert not (out * (1 - valid)).any()


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_padding_and_what_invalid_pixels_hold_change_nothing(norm):
    """Spec 10.1 B10: the original's statistics depend on how far an image is padded."""
    net, image = FeatureNet(norm).double(), torch.rand(3, 18, 21, dtype=torch.float64)
    expected = net(image)
    for right, below in ((1, 0), (3, 7), (40, 16)):
        padded = torch.rand(3, 18 + below, 21 + right, dtype=torch.float64)
        padded[:, :18, :21] = image
        valid = torch.zeros(padded.shape[1:], dtype=torch.bool)
        valid[:18, :21] = True
        out = net(padded, valid)
        torch.testing.assert_close(out[:, :18, :21], expected, atol=1e-12, rtol=0)
        assert not out[:, 18:].any()
        assert not out[:, :, 21:].any()


def test_a_mask_of_valid_pixels_only_changes_nothing():
    net, image = FeatureNet(), torch.rand(3, 13, 10)
    assert torch.equal(net(image, torch.ones(13, 10, dtype=torch.bool)), net(image))


def test_without_a_mask_the_network_is_the_plain_one():
    """The same layers written with torch's functions."""
    net, image = FeatureNet().double(), torch.rand(3, 16, 24, dtype=torch.float64)
    parameters = dict(net.named_parameters())
    x, maps = (2 * image - 1)[None], []
    for stage in range(3):
        for block in range(2):
            weight, scale, shift = (parameters[f"stages.{stage}.{block}.{name}"] for name in BLOCK)
            x = F.conv2d(x, weight, stride=2 if stage > 0 and block == 0 else 1, padding=weight.shape[-1] // 2)
            x = F.relu(F.instance_norm(x, weight=scale, bias=shift))
        maps.append(x)
    out = None
    for level in (2, 1, 0):
        weight, bias = (parameters[f"laterals.{level}.{name}"] for name in ("weight", "bias"))
        lateral = F.conv2d(maps[level], weight, bias)
        if out is not None:
            up = F.interpolate(F.pad(out, (0, 1, 0, 1)), scale_factor=2, mode="bilinear")
            lateral = lateral + up[..., : lateral.shape[2], : lateral.shape[3]]
        out = lateral
    assert out is not None
    expected = F.conv2d(out, net.smooth.weight, net.smooth.bias, padding=1)[0]
    torch.testing.assert_close(net(image), expected)


def test_kept_features_follow_the_network():
    net, images = FeatureNet(), torch.rand(4, 3, 9, 8)
    kept, calls = FrozenFeatures(net, limit=3 * 8 * 9 * 8 * 4), []
    net.register_forward_hook(lambda *_: calls.append(1))
    for key in (0, 1, 0, 1, 0):
        assert torch.equal(kept(key, images[key]), net(images[key]).detach())
    assert len(calls) == 5 + 2
    for fused in (False, True):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2, fused=fused)
        net(images[0]).sum().backward()
        optimizer.step()
        calls.clear()
        assert torch.equal(kept(0, images[0]), net(images[0]).detach())
        assert len(calls) == 2
    net.load_state_dict(FeatureNet().state_dict())
    assert torch.equal(kept(0, images[0]), net(images[0]).detach())
    for key in range(4):
        kept(key, images[key])
    calls.clear()
    kept(3, images[3])
    assert not calls
    kept(0, images[0])  # went out when the fourth came in
    assert len(calls) == 1
    assert kept.bytes <= kept.limit
    kept.clear()
    assert kept.bytes == 0


def test_an_image_without_a_valid_pixel_is_zero_and_finite():
    net = FeatureNet()
    out = net(torch.rand(3, 9, 9), torch.zeros(9, 9, dtype=torch.bool))
    out.sum().backward()
    assert not out.any()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_the_same_in_training_and_evaluation_and_alone_or_after_others():
    net, image = FeatureNet(), torch.rand(3, 20, 20)
    first = net.train()(image)
    net(torch.rand(3, 30, 10))
    assert torch.equal(net.eval()(image), first)


def test_gradients_by_finite_differences():
    net = FeatureNet().double()
    image, valid = torch.rand(3, 6, 5, dtype=torch.float64, requires_grad=True), torch.rand(6, 5) < 0.8
    assert torch.autograd.gradcheck(lambda x: net(x, valid), (image,), fast_mode=True)
    names, values = zip(*net.named_parameters(), strict=True)

    def run(*parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (image.detach(), valid))

    assert torch.autograd.gradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_norm_gradients_by_finite_differences(groups, masked):
    norm, x = MaskedNorm(4, groups).double(), torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    valid = (torch.rand(1, 1, 3, 5) < 0.7).double() if masked else None
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)

    def run(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, valid))

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias))


def test_half_precision_statistics_do_not_overflow():
    norm = MaskedNorm(8, 8)
    x = torch.full((1, 8, 64, 64), 200.0, dtype=torch.bfloat16)
    x[..., ::2] = -200.0
    out = norm(x, torch.ones(1, 1, 64, 64, dtype=torch.bfloat16))
    assert out.max().item() == pytest.approx(1.0, abs=1e-2)


def test_unknown_norm():
    with pytest.raises(ValueError, match="unknown norm"):
        FeatureNet("batch")  # pyright: ignore[reportArgumentType]
