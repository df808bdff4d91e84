"""The preview by Gaussians: what it hands to gsplat, how close discs and Gaussians look, and gsplat itself on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from peel_reference import Cloud, View, random_cloud

from r4dv_ns.peel import peel
from r4dv_ns.peel_blend import Settings
from r4dv_ns.peel_fragments import Window


def sphere(count: int, radius: float = 1.0) -> Cloud:
    """Points spread evenly over a smoothly coloured opaque sphere, three radii away, each as wide as 1.5 gaps."""
    step = torch.arange(count, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * step / count, step * math.pi * (1 + math.sqrt(5))
    flat = (1 - z * z).sqrt()
    normals = torch.stack([flat * turn.cos(), flat * turn.sin(), z], 1)
    color = 0.5 + 0.5 * torch.sin(normals @ torch.tensor([[3.0, 1, 0], [0, 4, 1], [2, 0, 3]], dtype=torch.float64))
    wide = torch.full((count,), 1.5 * radius * math.sqrt(4 * math.pi / count)).double()
    points = radius * normals + torch.tensor([0, 0, 3 * radius], dtype=torch.float64)
    return Cloud(points, wide, torch.full((count,), 0.95).double(), color).to(torch.float32)


VIEW = View(90.0, 90.0, 32.0, 32.0, 64, 64)


def gaussians(means, quats, scales, opacities, colors, viewmats, intrinsics, width, height, **options):
    """What gsplat computes of isotropic Gaussians, pixel by pixel against each of them."""
    assert options["eps2d"] == 0
    assert torch.equal(viewmats[0], torch.eye(4))
    assert torch.equal(quats, torch.tensor([1.0, 0, 0, 0]).expand_as(quats))
    assert scales.std(dim=1).max() == 0
    k, order = intrinsics[0], means[:, 2].argsort()
    means, scales, opacities, colors = means[order], scales[order, 0], opacities[order], colors[order]
    projected = means @ k.T
    centre = projected[:, :2] / projected[:, 2:]
    sigma = k[1, 1] * scales / means[:, 2]
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    square = (x[None, :, None] - centre[:, 0]) ** 2 + (y[..., None] - centre[:, 1]) ** 2
    a = (opacities * torch.exp(-0.5 * square / sigma**2)).clamp_max(0.999)
    a = torch.where(a < 1 / 255, 0.0, a)
    light = torch.cumprod(1 - a, -1)
    weight = a * torch.cat([torch.ones_like(light[..., :1]), light[..., :-1]], -1)
    return (weight @ colors)[None], weight.sum(-1, keepdim=True)[None], {}


def preview(cloud: Cloud, view: View, min_radius: float = 0.75):
    from r4dv_ns.peel_gsplat import blend

    return blend(*cloud, Settings(Window(*view), None, 1e-4, min_radius, 1 << 30))


def test_a9_gaussians_look_like_discs(monkeypatch):
    """A9 without a GPU: at least 27 dB on a closed opaque sphere with discs of 2.5 pixels and more."""
    gsplat = pytest.importorskip("gsplat")
    monkeypatch.setattr(gsplat, "rasterization", gaussians)
    cloud = sphere(3000)
    assert (90 * cloud.radius / cloud.points[:, 2]).min() > 2.0
    exact = peel(*cloud, **VIEW._asdict())
    got = preview(cloud, VIEW)
    error = (got.color.reshape(exact.color.shape) - exact.color).square().mean()
    assert -10 * math.log10(float(error)) > 27
    assert (got.accumulation.reshape(64, 64) - exact.accumulation).abs().mean() < 0.05
    depth = got.depth / got.accumulation.clamp_min(1e-8)
    solid = exact.accumulation.flatten() > 0.9
    assert (depth - exact.depth.flatten())[solid].abs().mean() < 0.05


def test_the_sub_pixel_rule_and_what_does_not_show(monkeypatch):
    gsplat = pytest.importorskip("gsplat")
    seen = {}

    def catch(means, quats, scales, opacities, *rest, **options):
        seen.update(means=means, scales=scales, opacities=opacities)
        return gaussians(means, quats, scales, opacities, *rest, **options)

    monkeypatch.setattr(gsplat, "rasterization", catch)
    points = torch.tensor([[0.0, 0, 3], [0, 0, -3], [0.1, 0, 3], [0, 0, 3], [0, 0, 3]])
    radius = torch.tensor([0.005, 1, 0.2, 0, 1])
    cloud = Cloud(points, radius, torch.tensor([0.8, 1, 0.9, 1, 0]), torch.rand(5, 3))
    got = preview(cloud, VIEW)
    assert torch.equal(seen["means"], points[[0, 2]])
    torch.testing.assert_close(90 * seen["scales"][:, 0] / 3 / 0.46, torch.tensor([0.75, 6.0]))
    torch.testing.assert_close(seen["opacities"], torch.tensor([0.8 * 0.2**2, 0.9]))
    assert got.fragments.max() == 0
    nothing = preview(Cloud(*(part[1:2] for part in cloud)), VIEW)
    assert nothing.accumulation.shape == (64 * 64,)
    assert nothing.accumulation.abs().max() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a9_cuda():
    """A9: gsplat against the exact image."""
    pytest.importorskip("gsplat")
    cloud = sphere(3000).to("cuda")
    exact = peel(*cloud, **VIEW._asdict(), backend="torch")
    got = peel(*cloud, **VIEW._asdict(), backend="gsplat")
    assert -10 * (got.color - exact.color).square().mean().log10() > 27
    leaves = random_cloud(100).to(torch.float32).to("cuda").clone()
    peel(*leaves, **VIEW._asdict(), backend="gsplat").color.sum().backward()
    assert leaves.points.grad is not None
    assert bool(leaves.points.grad.isfinite().all())
