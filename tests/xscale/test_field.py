"""The surface field: means over sub-samples that hit, features of points, codes of views."""

from __future__ import annotations

import pytest
import torch
from xscale_models import generator, unit_vectors

from xscale_ns.field import SurfaceField, mean_over_hits
from xscale_ns.surface import unit_cube

LOWER, UPPER = torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.5])


def make_field(head: str = "sh-mlp", views: int = 4, **options) -> SurfaceField:
    torch.manual_seed(0)
    settings = {
        "levels": 3, "features": 2, "log2_table": 9, "base_resolution": 8, "finest_resolution": 32,
        "per_level_scale": None, "interpolation": "smoothstep", "normalization": "isotropic", "head": head,
        "exposure_dim": 4, "light_dim": 8, "num_lights": 2, "linear_output": False, "encoding_backend": "torch",
    }  # fmt: skip
    field = SurfaceField(LOWER, UPPER, views, **(settings | options))
    with torch.no_grad():
        for table in field.grid.tables:
            table.uniform_(-0.5, 0.5)
    return field


def mean_by_loop(values: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
    """The slow twin: walk over pixels and sub-samples."""
    rows, next_value = [], 0
    for pixel in hit:
        members = []
        for flag in pixel:
            if flag:
                members.append(values[next_value])
                next_value += 1
        rows.append(torch.stack(members).mean(dim=0) if members else values.new_zeros(values.shape[1]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("pixels", "samples", "share"), [(7, 1, 1.0), (7, 1, 0.5), (9, 4, 0.5), (5, 9, 0.9), (3, 2, 0)]
)
def test_mean_over_hits_and_its_gradient_equal_a_loop(pixels, samples, share) -> None:
    hit = torch.rand(pixels, samples, generator=generator(1)) < share
    values = torch.randn(int(hit.sum()), 3, generator=generator(2), dtype=torch.float64)
    weight = torch.randn(pixels, 3, generator=generator(3), dtype=torch.float64)
    fast, slow = values.clone().requires_grad_(), values.clone().requires_grad_()
    result, expected = mean_over_hits(fast, hit), mean_by_loop(slow, hit)
    torch.testing.assert_close(result, expected, atol=1e-14, rtol=0)
    assert (result[~hit.any(dim=1)] == 0).all()
    if len(values):
        (result * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(fast.grad, slow.grad, atol=1e-14, rtol=0)


def test_misses_do_not_darken_the_mean() -> None:
    """Spec xscale 7, defect 4: upstream keeps zero points of missed sub-samples in the mean."""
    hit = torch.tensor([[True, False, False, False], [True, True, True, True]])
    values = torch.full((5, 2), 3.0)
    assert torch.equal(mean_over_hits(values, hit), torch.full((2, 2), 3.0))


@pytest.mark.parametrize("normalization", ["isotropic", "per-axis"])
def test_features_are_the_grids_at_the_unit_cube(normalization) -> None:
    field = make_field(normalization=normalization)
    points = LOWER + (UPPER - LOWER) * torch.rand(100, 3, generator=generator(4))
    expected = field.grid(unit_cube(points, LOWER, UPPER, normalization))
    assert torch.equal(field.features(points), expected)
    assert expected.shape == (100, 6)
    assert expected.std() > 0.05
    other = make_field(normalization="per-axis" if normalization == "isotropic" else "isotropic")
    assert not torch.allclose(other.features(points), expected)


@pytest.mark.parametrize("head", ["sh-mlp", "film"])
def test_a_training_view_takes_its_own_row_and_evaluation_the_mean(head) -> None:
    field = make_field(head)
    assert field.exposure is not None
    with torch.no_grad():  # after a training the codes differ clearly
        field.exposure.weight.copy_(torch.randn(4, 4, generator=generator(9)))
    rays = 12
    features, directions = torch.randn(rays, 6, generator=generator(5)), unit_vectors(rays, 6)
    views = torch.arange(rays) % 4
    together = field(features, directions, field.codes(views))
    table = field.exposure.table()
    for view in range(4):
        alone = field(features[views == view], directions[views == view], field.codes(None, table[view]))
        torch.testing.assert_close(together[views == view], alone, atol=1e-6, rtol=0)
        swapped = field(features[views == view], directions[views == view], field.codes(None, table[(view + 1) % 4]))
        assert (together[views == view] - swapped).abs().max() > 1e-4
    mean = field(features, directions, field.codes(None))
    torch.testing.assert_close(mean, field(features, directions, field.codes(None, table.mean(dim=0))))


def test_gradients_reach_only_the_codes_of_the_views_that_were_seen() -> None:
    field = make_field(views=5)
    assert field.exposure is not None
    views = torch.tensor([1, 3, 3])
    field(torch.randn(3, 6), unit_vectors(3, 1), field.codes(views)).sum().backward()
    moved = field.exposure.weight.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, False, True, False]


def test_lighting_codes_are_chosen_by_number() -> None:
    field = make_field("film")
    assert field.lighting is not None
    with torch.no_grad():
        field.lighting.weight.copy_(torch.randn(2, 8, generator=generator(2)))
    assert torch.equal(field.codes(None, light=1)["lighting"], field.lighting.table()[1])
    assert "lighting" not in make_field().codes(None)
    assert make_field(exposure_dim=0).codes(torch.tensor([0])) == {}


def test_the_bounding_box_travels_with_the_weights() -> None:
    state = make_field().state_dict()
    assert torch.equal(state["lower"], LOWER)
    assert torch.equal(state["upper"], UPPER)
    assert sorted(key for key in state if key.startswith("grid.")) == [f"grid.tables.{level}" for level in range(3)]


def test_no_points_give_no_colours() -> None:
    field = make_field()
    colour = field(field.features(torch.zeros(0, 3)), torch.zeros(0, 3), field.codes(torch.zeros(0, dtype=torch.int64)))
    assert colour.shape == (0, 3)
    colour.sum().backward()
