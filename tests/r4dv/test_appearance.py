"""A15 and the pieces around it: sampling against grid_sample, weights, orphans, occlusion, the residual's limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from r4dv_ns.appearance import (
    BlendHead,
    ShHead,
    Source,
    blend_weights,
    occlusion_penalty,
    project,
    sample_source,
    sample_sources,
    view_directions,
)
from r4dv_ns.blend_logits import CHUNK
from r4dv_ns.feature_net import FeatureNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def looking_at(centre, target=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """OpenCV world-to-camera of a camera that looks at a place, y roughly down."""
    centre = np.asarray(centre, float)
    forward = np.asarray(target, float) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = R, -R @ centre
    return torch.from_numpy(w2c)


def intrinsics(focal: float, width: int, height: int) -> torch.Tensor:
    return torch.tensor([[focal, 0, width / 2], [0, focal * 1.05, height / 2], [0, 0, 1.0]], dtype=torch.float64)


def texture(xy: torch.Tensor) -> torch.Tensor:
    """Smooth colours on the plane z = 0."""
    x, y = xy.unbind(-1)
    waves = [0.4 * (3 * x).sin(), 0.4 * (2 * y + x).cos(), 0.3 * (4 * x * y).sin()]
    return 0.5 + torch.stack(waves, dim=-1)


def photo_of_the_plane(centre, width=160, height=120, focal=150.0, view=0) -> Source:
    """Analytic photo: every pixel's ray meets z = 0."""
    w2c, K = looking_at(centre), intrinsics(focal, width, height)
    row, column = torch.meshgrid(torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5, indexing="ij")
    rays = torch.stack([column, row, torch.ones_like(row)], dim=-1) @ torch.linalg.inv(K).T @ w2c[:3, :3]
    origin = -w2c[:3, :3].T @ w2c[:3, 3]
    hits = origin + rays * (-origin[2] / rays[..., 2])[..., None]
    return Source(texture(hits[..., :2]).permute(2, 0, 1), K, w2c, None, view)


CENTRES = [(0.2, -1.5, 2.0), (1.4, 0.4, 1.9), (-1.2, 0.8, 2.2), (0.1, 1.3, 2.4)]


def plane_points(count=2000, reach=0.45) -> torch.Tensor:
    xy = (torch.rand(count, 2, dtype=torch.float64) * 2 - 1) * reach
    return torch.cat([xy, torch.zeros(count, 1, dtype=torch.float64)], dim=1)


def blended(sources, points, features=16, head=None):
    """c_ibr with a random network: whatever the weights, sources that agree give the right colour."""
    net = FeatureNet().double()
    head = head or BlendHead(features).double()
    g, visible = sample_sources(sources, [net(source.image, source.valid) for source in sources], points)
    generator = torch.Generator().manual_seed(7)
    f = torch.randn(len(points), features, dtype=torch.float64, generator=generator)
    return *head(f, g, visible), g, visible


def test_a15_photos_of_a_textured_plane_reproduce_the_texture():
    sources, points = [photo_of_the_plane(centre, view=k) for k, centre in enumerate(CENTRES)], plane_points()
    rgb, weights, orphans, _, visible = blended(sources, points)
    assert bool(visible.all())
    assert int(orphans) == 0
    mse = float((rgb.detach() - texture(points[:, :2])).square().mean())
    assert -10 * math.log10(mse) > 35
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(len(points), dtype=torch.float64))


def test_a15_sources_that_cannot_see_a_point_get_no_weight():
    good = [photo_of_the_plane(centre) for centre in CENTRES[:2]]
    behind = Source(torch.zeros_like(good[0].image), good[0].K, looking_at((0, -1.5, 2), (0, -3, 4)), None, 7)
    outside = Source(good[0].image * 0, good[0].K, looking_at((0.2, -1.5, 2.0), (9.0, 0.0, 0.0)), None, 8)
    masked = Source(good[1].image * 0, good[1].K, good[1].w2c, torch.zeros(120, 160, dtype=torch.bool), 9)
    points = plane_points(300)
    rgb, weights, orphans, _, visible = blended([good[0], behind, outside, masked, good[1]], points)
    assert visible.all(dim=1).tolist() == [True, False, False, False, True]
    assert not visible[1:4].any()
    assert not weights[1:4].any()
    assert int(orphans) == 0
    torch.testing.assert_close(rgb.detach(), texture(points[:, :2]), atol=0.02, rtol=0)


def test_a15_the_order_of_the_sources_does_not_matter():
    sources, points, head = [photo_of_the_plane(c) for c in CENTRES], plane_points(200), BlendHead(16).double()
    net = FeatureNet().double()
    f = torch.randn(200, 16, dtype=torch.float64)
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        chosen = [sources[k] for k in order]
        g, visible = sample_sources(chosen, [net(source.image) for source in chosen], points)
        rgb, weights, _ = head(f, g, visible)
        results.append((rgb, weights[np.argsort(order)]))
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=0)


def test_orphans_keep_the_unmasked_weights_and_are_counted():
    logits, visible = torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool)
    visible[:, 2] = False
    visible[0, 4] = False
    weights, orphans = blend_weights(logits, visible)
    assert int(orphans) == 1
    torch.testing.assert_close(weights[:, 2], torch.softmax(logits[:, 2], dim=0))
    assert float(weights[0, 4]) == 0.0
    torch.testing.assert_close(weights[:, 0], torch.softmax(logits[:, 0], dim=0))


def random_source(height, width, view=0, valid=None, dtype=torch.float64) -> Source:
    K = intrinsics(0.9 * width, width, height)
    return Source(torch.rand(3, height, width, dtype=dtype), K, looking_at((0.5, -2.0, 1.0)), valid, view)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (7, 9), (1, 12), (12, 1), (1, 1)])
def test_samples_and_gradients_equal_grid_sample(height, width):
    source = random_source(height, width)
    features = torch.randn(8, height, width, dtype=torch.float64, requires_grad=True)
    points = (torch.randn(300, 3, dtype=torch.float64) * 0.7).requires_grad_()
    g, visible = sample_source(source, features, points)
    pixel, depth = project(points, source.K, source.w2c)
    grid = 2 * pixel / pixel.new_tensor([width, height]) - 1
    joined = torch.cat([features, source.image])
    expected = F.grid_sample(joined[None], grid[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
    torch.testing.assert_close(g, expected)
    inside = (depth > 0) & (grid.abs() <= 1).all(dim=1)
    assert torch.equal(visible, inside)
    upstream = torch.randn_like(g)
    ours = torch.autograd.grad(g, (features, points), upstream)
    theirs = torch.autograd.grad(expected, (features, points), upstream)
    torch.testing.assert_close(ours, theirs)


def test_sources_of_different_sizes_are_sampled_each_in_its_own_photo():
    sources = [random_source(20, 30, 0), random_source(31, 17, 1), random_source(8, 8, 2)]
    features = [torch.randn(8, *source.image.shape[1:], dtype=torch.float64) for source in sources]
    points = torch.randn(100, 3, dtype=torch.float64) * 0.5
    g, visible = sample_sources(sources, features, points)
    for index, (source, feature) in enumerate(zip(sources, features, strict=True)):
        alone, seen = sample_source(source, feature, points)
        assert torch.equal(g[index], alone)
        assert torch.equal(visible[index], seen)
    with pytest.raises(ValueError, match="belong"):
        sample_sources(sources, features[::-1], points)
    with pytest.raises(ValueError, match="at least one"):
        sample_sources([], [], points)


def test_a_crop_with_its_shifted_intrinsics_gives_the_same_samples():
    source = random_source(40, 60)
    features = torch.randn(8, 40, 60, dtype=torch.float64)
    x, y, w, h = 11, 7, 33, 25
    K = source.K.clone()
    K[:2, 2] -= torch.tensor([x, y])
    cropped = Source(source.image[:, y : y + h, x : x + w], K, source.w2c, None, 0)
    points = torch.randn(500, 3, dtype=torch.float64) * 0.3
    whole, _ = sample_source(source, features, points)
    part, visible = sample_source(cropped, features[:, y : y + h, x : x + w], points)
    pixel, _ = project(points, K, source.w2c)
    interior = visible & ((pixel > 0.5) & (pixel < pixel.new_tensor([w, h]) - 0.5)).all(dim=1)
    assert int(interior.sum()) > 50
    torch.testing.assert_close(part[interior], whole[interior])


def test_a_pixel_that_touches_an_invalid_one_does_not_count():
    valid = torch.ones(10, 10, dtype=torch.bool)
    valid[:, 5:] = False
    K = torch.eye(3, dtype=torch.float64)
    source = Source(torch.rand(3, 10, 10, dtype=torch.float64), K, torch.eye(4, dtype=torch.float64), valid, 0)
    across = torch.tensor([4.2, 4.5, 4.6, 5.4, 6.5], dtype=torch.float64)
    points = torch.stack([across, torch.full_like(across, 3.0), torch.ones_like(across)], dim=1)
    _, visible = sample_source(source, torch.zeros(8, 10, 10, dtype=torch.float64), points)
    assert visible.tolist() == [True, True, False, False, False]


def test_points_at_and_behind_the_camera_are_finite():
    source = random_source(10, 10)
    centre = -source.w2c[:3, :3].T @ source.w2c[:3, 3]
    points = torch.stack([centre, centre + source.w2c[2, :3] * -3, centre * float("nan")]).requires_grad_()
    g, visible = sample_source(source, torch.zeros(8, 10, 10, dtype=torch.float64), points)
    assert not visible.any()
    assert bool(g.isfinite().all())


def test_logits_are_the_mlp_of_the_concatenation():
    head = BlendHead(16).double()
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 27), (64,), (1, 64), (1,)]
    assert tuple(BlendHead(32).hidden.weight.shape) == (64, 43)
    f, g = torch.randn(30, 16, dtype=torch.float64), torch.randn(4, 30, 11, dtype=torch.float64)
    joined = torch.cat([f.expand(4, 30, 16), g], dim=-1)
    torch.testing.assert_close(head.logits(f, g), head.out(F.relu(head.hidden(joined)))[..., 0])


def test_logits_in_chunks_equal_the_plain_layers():
    """More points than a chunk holds; gradients of every parameter and input."""
    head, n = BlendHead(6, hidden=16).double(), 2 * CHUNK["cpu"] + 5
    f = torch.randn(n, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, n, 11, dtype=torch.float64, requires_grad=True)
    inputs = [f, g, *head.parameters()]
    expected = head.out(F.relu(head.hidden(torch.cat([f.expand(3, n, 6), g], dim=-1))))[..., 0]
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(head.logits(f, g), inputs, upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, inputs, upstream))


def test_mixed_precision_inputs():
    head, f, g = BlendHead(6), torch.randn(20, 6), torch.rand(2, 20, 11)
    visible = torch.ones(2, 20, dtype=torch.bool)
    expected = head(f, g, visible)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = head(f.bfloat16(), g.bfloat16(), visible)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_gradients_of_the_blend_by_finite_differences():
    head = BlendHead(3, hidden=5).double()
    f = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 4, 11, dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([[True, True, False, False], [True, False, True, False]])
    assert torch.autograd.gradcheck(lambda f, g: head(f, g, visible)[:2], (f, g))
    names, values = zip(*head.named_parameters(), strict=True)

    def run(*parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (f, g, visible))[0]

    assert torch.autograd.gradcheck(run, values)


def test_a_penalty_moves_weight_to_the_other_sources():
    head, f, g = BlendHead(16), torch.randn(9, 16), torch.rand(3, 9, 11)
    visible, penalty = torch.ones(3, 9, dtype=torch.bool), torch.zeros(3, 9)
    penalty[1] = 50.0
    _, weights, _ = head(f, g, visible, penalty)
    assert weights[1].max().item() < 1e-12
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(9))


def test_occlusion_begins_beyond_two_radii_and_one_percent():
    K = torch.tensor([[10.0, 0, 5.0], [0, 10.0, 5.0], [0, 0, 1.0]])
    source = Source(torch.rand(3, 10, 10), K, torch.eye(4), None, 0)
    depth, accumulation = torch.full((10, 10), 2.0), torch.ones(10, 10)
    accumulation[:, 7:] = 0.3
    z = torch.tensor([1.0, 2.0, 2.05, 2.09, 2.12, 3.0, 3.0, -1.0, 3.0])
    points = torch.stack([torch.zeros(9), torch.zeros(9), z], dim=1)
    points[6, 0] = 3.0 * 0.35  # on a pixel that is mostly background
    points[8, 0] = 9.0  # off the image
    found = occlusion_penalty(points, torch.full((9,), 0.02), source, depth, accumulation)
    tolerance = 2 * 0.02 + 0.01 * 2.0
    expected = [0, 0, 0, 10 * (0.09 / tolerance - 1), 10 * (0.12 / tolerance - 1), 10, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_a14_the_residual_respects_its_limit():
    head = ShHead(8)
    directions = F.normalize(torch.randn(500, 3), dim=1)
    small = head(torch.randn(500, 8), directions)
    assert small.abs().max().item() < 0.05  # starts near zero
    torch.nn.init.normal_(head.out.weight, 0.0, 100.0)
    large = head(torch.randn(500, 8) * 100, directions)
    assert 0.24 < large.abs().max().item() <= 0.25 + 1e-6
    assert ShHead(8, limit=1.0).limit == 1.0


def test_layers_of_the_residual():
    head = ShHead(32)
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 32), (64,), (48, 64), (48,)]
    assert bool((head.hidden.bias == -1).all())
    assert not head.out.bias.any()
    assert head.coefficients(torch.zeros(3, 32)).shape == (3, 3, 16)
    f = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    directions = F.normalize(torch.randn(2, 3, dtype=torch.float64), dim=1)
    narrow = ShHead(4).double()
    assert torch.autograd.gradcheck(lambda x: narrow(x, directions), (f,))


def test_directions_point_from_the_camera_and_stop_gradients():
    points = torch.tensor([[1.0, 0.0, 3.0]], requires_grad=True)
    out = view_directions(points, torch.tensor([1.0, 0.0, 1.0]))
    assert out.tolist() == [[0.0, 0.0, 1.0]]
    assert not out.requires_grad


def test_a_source_moves_with_everything_it_holds():
    source = random_source(4, 5, view=3, valid=torch.ones(4, 5, dtype=torch.bool))
    moved = source.to("meta")
    assert moved.valid is not None
    assert {t.device.type for t in (moved.image, moved.K, moved.w2c, moved.valid)} == {"meta"}
    assert moved.view == 3
    assert random_source(4, 5).to("meta").valid is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    sources = [random_source(20, 30, 0, dtype=torch.float32), random_source(31, 17, 1, dtype=torch.float32)]
    net, head = FeatureNet(), BlendHead(16)
    points, f = torch.randn(400, 3) * 0.5, torch.randn(400, 16)
    expected = head(f, *sample_sources(sources, [net(s.image) for s in sources], points))
    there = [source.to("cuda") for source in sources]
    net.cuda()
    head.cuda()
    found = head(f.cuda(), *sample_sources(there, [net(s.image) for s in there], points.cuda()))
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1].cpu(), expected[1], atol=1e-4, rtol=1e-4)
