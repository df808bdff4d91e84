"""Blending of packed segments: against a loop over rays, padded matrices, finite differences, and the original."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diver_ns.compositing import Composite, blending_weights, composite, ray_offsets, sparsity

MODELS = ["coarse64", "fine64", "fine32", "implicit32"]


def scene(rays: int = 40, seed: int = 0, dtype: torch.dtype = torch.float64, most: int = 12):
    """Random segments; some rays, the first and the last among them, have none."""
    g = torch.Generator().manual_seed(seed)
    hits = torch.randint(0, most + 1, (rays,), generator=g)
    hits[0] = hits[-1] = hits[rays // 2] = 0
    ray = torch.repeat_interleave(torch.arange(rays), hits)
    s = len(ray)
    sigma = torch.randn(s, generator=g, dtype=torch.float64) * 1.5
    rgb = torch.rand(s, 3, generator=g, dtype=torch.float64)
    t = torch.rand(s, generator=g, dtype=torch.float64) * 4
    return sigma.to(dtype), rgb.to(dtype), t.to(dtype), ray, rays


def background(value: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.full((3,), value, dtype=dtype)


def weights_by_loop(sigma, ray, rays):
    """The slow twin: walk along each ray and multiply what is left of the light."""
    weights = [torch.zeros(()) for _ in sigma]
    for r in range(rays):
        left = torch.ones((), dtype=sigma.dtype)
        for k in (ray == r).nonzero()[:, 0].tolist():
            alpha = 1 - torch.exp(-torch.relu(sigma[k]))
            weights[k] = left * alpha
            left = left * (1 - alpha)
    return torch.stack(weights)


def composite_by_loop(sigma, rgb, t, ray, rays, bg) -> Composite:
    weights = weights_by_loop(sigma, ray, rays)
    pixels, opacity, depth = [], [], []
    for r in range(rays):
        mine = ray == r
        w = weights[mine]
        opacity.append(w.sum())
        pixels.append((w[:, None] * rgb[mine]).sum(dim=0) + (1 - w.sum()) * bg)
        depth.append((w * t[mine]).sum())
    return Composite(torch.stack(pixels), torch.stack(opacity), torch.stack(depth), weights)


def keep(parts, kept):
    """The scene without the segments that are not kept."""
    sigma, rgb, t, ray, rays = parts
    return sigma[kept], rgb[kept], t[kept], ray[kept], rays


@pytest.mark.parametrize(("seed", "bg"), [(0, 1.0), (1, 0.0), (2, 0.3)])
def test_pixels_weights_and_gradients_equal_a_walk_along_each_ray(seed, bg) -> None:
    sigma, rgb, t, ray, rays = scene(seed=seed)
    g = torch.Generator().manual_seed(seed)
    gradients = []
    results = []
    for function in (composite, composite_by_loop):
        inputs = [x.clone().requires_grad_() for x in (sigma, rgb, t)]
        result = function(*inputs, ray, rays, background(bg))
        g.manual_seed(seed)
        score = sum((part * torch.randn(part.shape, generator=g, dtype=part.dtype)).sum() for part in result)
        results.append(result)
        gradients.append(torch.autograd.grad(score, inputs))
    for got, expected in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-13, rtol=0)
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_packed_equals_padded() -> None:
    sigma, rgb, t, ray, rays = scene(rays=200, seed=3, most=30)
    result = composite(sigma, rgb, t, ray, rays, background(0.25))
    starts = ray_offsets(ray, rays)
    slot = torch.arange(len(ray)) - starts[ray]
    padded = torch.zeros(rays, int(starts.diff().max()), dtype=sigma.dtype)
    padded[ray, slot] = torch.relu(sigma)
    colours = torch.zeros(*padded.shape, 3, dtype=sigma.dtype)
    colours[ray, slot] = rgb
    alpha = 1 - torch.exp(-padded)
    left = torch.cat([torch.ones(rays, 1), torch.cumprod(1 - alpha, dim=1)], dim=1)
    weights = left[:, :-1] * alpha
    torch.testing.assert_close(result.weights, weights[ray, slot], atol=1e-12, rtol=0)
    torch.testing.assert_close(
        result.rgb, (weights[..., None] * colours).sum(dim=1) + left[:, -1:] * 0.25, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        sparsity(sigma, ray, rays),
        torch.zeros_like(padded).index_put((ray, slot), torch.log(1 + 2 * sigma**2)).mean(),
        atol=1e-14,
        rtol=1e-12,
    )


@pytest.mark.parametrize("most", [3, 400])
def test_weights_and_the_light_that_is_left_sum_to_one_in_float32(most) -> None:
    sigma, rgb, t, ray, rays = scene(rays=300, seed=4, dtype=torch.float32, most=most)
    sigma = sigma * 0.05
    result = composite(sigma, rgb, t, ray, rays, background(dtype=torch.float32))
    absorbed = torch.zeros(rays, dtype=torch.float64).index_add(0, ray, torch.relu(sigma).double())
    assert float((result.accumulation + torch.exp(-absorbed) - 1).abs().max()) < 1e-6
    assert result.rgb.dtype == result.weights.dtype == result.depth.dtype == torch.float32
    white = composite(sigma, torch.ones_like(rgb), t, ray, rays, background(dtype=torch.float32))
    assert float((white.rgb - 1).abs().max()) < 1e-6
    assert 0.05 < float(result.accumulation.max()) <= 1


def test_a_ray_does_not_depend_on_the_others() -> None:
    """Late rays of a large batch get the weights that they get alone."""
    parts = scene(rays=3000, seed=5, dtype=torch.float32, most=60)
    together = composite(*parts, background(dtype=torch.float32))
    first = 2990
    late = parts[3] >= first
    sigma, rgb, t, ray, rays = keep(parts, late)
    alone = composite(sigma, rgb, t, ray - first, rays - first, background(dtype=torch.float32))
    torch.testing.assert_close(alone.weights, together.weights[late], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(alone.rgb, together.rgb[first:], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("huge", [1e3, 1e30, math.inf])
def test_a_wall_hides_what_is_behind_it_and_leaves_other_rays_alone(huge) -> None:
    ray = torch.tensor([0, 0, 1, 1])
    sigma = torch.tensor([huge, 1.0, 0.3, 0.3], requires_grad=True)
    weights = blending_weights(sigma, ray, 2)
    a = 1 - math.exp(-0.3)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, a, (1 - a) * a]), atol=1e-7, rtol=0)
    weights.sum().backward()
    assert sigma.grad is not None
    assert torch.isfinite(sigma.grad).all()
    assert sigma.grad[:2].abs().max() < 1e-20


def test_negative_density_is_transparent_and_gets_no_photometric_gradient() -> None:
    sigma = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    result = composite(sigma, torch.rand(3, 3), torch.ones(3), torch.zeros(3, dtype=torch.int64), 1, torch.ones(3))
    assert result.weights[:2].tolist() == [0.0, 0.0]
    result.rgb.sum().backward()
    assert sigma.grad is not None
    assert sigma.grad[:2].tolist() == [0.0, 0.0]
    assert sigma.grad[2] != 0


def test_sparsity_uses_the_density_before_the_relu() -> None:
    ray = torch.tensor([0, 0, 2])
    sigma = torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    loss = sparsity(sigma, ray, 4)
    assert float(loss.detach()) == pytest.approx((math.log(9) + math.log(3) + math.log(19)) / (4 * 2))
    loss.backward()
    assert sigma.grad is not None
    assert float(sigma.grad[0]) == pytest.approx(4 * -2 / 9 / 8)


@pytest.mark.parametrize("rays", [0, 1, 5])
def test_a_batch_that_hits_nothing_is_background_with_zero_gradient(rays) -> None:
    weight = torch.ones(4, requires_grad=True)
    sigma = torch.zeros(0, 4) @ weight
    ray = torch.zeros(0, dtype=torch.int64)
    result = composite(sigma, torch.zeros(0, 3), torch.zeros(0), ray, rays, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(result.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(rays, 3))
    assert torch.equal(result.accumulation, torch.zeros(rays))
    assert torch.equal(result.depth, torch.zeros(rays))
    assert result.weights.shape == (0,)
    loss = result.rgb.sum() + sparsity(sigma, ray, rays)
    assert torch.isfinite(loss)
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(4))


def test_gradients_equal_finite_differences() -> None:
    sigma, rgb, t, ray, rays = scene(rays=7, seed=6, most=5)
    sigma = torch.where(sigma.abs() < 0.05, sigma + 0.2, sigma).requires_grad_()  # away from the kink
    inputs = (sigma, rgb.requires_grad_(), t.requires_grad_(), background(0.4).requires_grad_())
    assert torch.autograd.gradcheck(lambda s, c, x, b: tuple(composite(s, c, x, ray, rays, b)), inputs)
    assert torch.autograd.gradcheck(lambda s: blending_weights(s, ray, rays), (sigma,))
    assert torch.autograd.gradcheck(lambda s: sparsity(s, ray, rays), (sigma,))


@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.3]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_removing_segments_changes_a_pixel_by_at_most_their_weights(seed, share, threshold, bg) -> None:
    """Spec diver 9 (5), an exact property: any removed set, here random ones and those of a weight threshold."""
    parts = scene(rays=20, seed=seed, dtype=torch.float32)
    g = torch.Generator().manual_seed(seed)
    before = composite(*parts, background(bg, torch.float32))
    for removed in (torch.rand(len(parts[0]), generator=g) < share, before.weights <= threshold):
        after = composite(*keep(parts, ~removed), background(bg, torch.float32))
        lost = torch.zeros(20).index_add(0, parts[3], before.weights * removed)
        assert bool(((after.rgb - before.rgb).abs().amax(dim=1) <= lost + 1e-6).all())
        if threshold == 0.0 and not bool((removed & (before.weights > 0)).any()):
            torch.testing.assert_close(after.rgb, before.rgb, atol=1e-6, rtol=0)


def test_the_pruning_bound_is_tight() -> None:
    """A white segment in front of black ones: its removal changes the pixel by its whole weight."""
    sigma, ray = torch.tensor([1.0, 50.0]), torch.tensor([0, 0])
    rgb = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    before = composite(sigma, rgb, torch.ones(2), ray, 1, torch.zeros(3))
    after = composite(sigma[1:], rgb[1:], torch.ones(1), ray[1:], 1, torch.zeros(3))
    torch.testing.assert_close(before.rgb - after.rgb, before.weights[0].expand(1, 3), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_originals_segments_give_the_originals_pixels(shared_fixtures, name) -> None:
    with np.load(shared_fixtures / "diver" / name / "rays.npz") as file:
        data = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    rays, ray = len(data["o"]), data["seg_ray"].long()
    t = data["seg_t_in" if name == "coarse64" else "seg_t_out"]
    bg = torch.full((3,), 0.0 if name == "fine32" else 1.0)
    result = composite(data["seg_sigma_raw"], data["seg_rgb"], t, ray, rays, bg)
    for got, key, tolerance in (
        (result.weights, "seg_weight", 1e-6),
        (result.rgb, "rgb", 2e-5),
        (result.accumulation, "accumulation", 2e-5),
        (result.depth, "depth", 1e-4),
    ):
        torch.testing.assert_close(
            got, data[key].float(), atol=tolerance, rtol=0, msg=lambda text, k=key: f"{k}: {text}"
        )
    assert torch.equal(ray_offsets(ray, rays).diff(), data["hits"].long())
    assert tuple(data["padded_shape"].tolist()) == (rays, int(data["hits"].max()))
    expected = float(data["loss_sparsity_unscaled"])
    assert float(sparsity(data["seg_sigma_raw"], ray, rays)) == pytest.approx(expected, rel=1e-5)
    mse = torch.nn.functional.mse_loss(result.rgb, data["target_rgb"].float())
    assert float(mse) == pytest.approx(float(data["loss_mse"]), rel=1e-4)
