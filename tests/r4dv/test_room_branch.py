"""The background's points: all of space in one box, sizes that grow with the distance."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    import r4dv_ns.model  # noqa: F401
    from r4dv_ns.model_config import R4DVModelConfig
    from r4dv_ns.room_branch import INNER, Room, contract, inner_box, outward

BOX = torch.tensor([[-1.0, -2.0, 0.0], [3.0, 2.0, 1.0]], dtype=torch.float64)


def settings(**options) -> R4DVModelConfig:
    return R4DVModelConfig(static=True, motion=False, plane_levels=1, plane_base=16, **options)


def test_contraction_is_linear_inside_continuous_monotonous_and_holds_all_of_space():
    middle, half = BOX.mean(dim=0), (BOX[1] - BOX[0]) / 2
    generator = torch.Generator().manual_seed(0)
    unit = 2 * torch.rand(500, 3, generator=generator, dtype=torch.float64) - 1
    torch.testing.assert_close(contract(middle + unit * half, BOX), INNER * unit)
    for direction in torch.nn.functional.normalize(unit[:20], dim=1):
        away = torch.logspace(-2, 6, 400, dtype=torch.float64)[:, None] * direction
        place = contract(middle + away * half, BOX)
        size = place.abs().amax(dim=1)
        assert bool((size.diff() > 0).all())
        assert float(size.max()) < 1
        assert float(size.max()) > 0.9999
        torch.testing.assert_close(torch.nn.functional.normalize(place, dim=1), direction.expand(400, 3))
    edge = torch.tensor([[1.0, 0.3, -0.2]], dtype=torch.float64)
    just = [contract(middle + factor * edge * half, BOX) for factor in (1 - 1e-9, 1 + 1e-9)]
    torch.testing.assert_close(*just, atol=1e-8, rtol=0)
    twice = contract(middle + 2 * edge * half, BOX)
    assert float(twice[0, 0]) == pytest.approx(1 - (1 - INNER) / 2)


def test_outward_counts_in_boxes():
    points = torch.tensor([[1.0, 0.0, 0.5], [3.0, 0.0, 0.5], [7.0, 0.0, 0.5], [1.0, 0.0, -1.0]], dtype=torch.float64)
    assert outward(points, BOX).tolist() == pytest.approx([1, 1, 3, 3])


def test_the_inner_box_holds_most_points_and_is_never_flat():
    rng = np.random.default_rng(0)
    cloud = torch.from_numpy(rng.normal(size=(4000, 3)) * (1, 5, 0)).float()
    cloud[:20] *= 1000
    box = inner_box(cloud)
    inside = ((cloud >= box[0]) & (cloud <= box[1])).all(dim=1).float().mean()
    assert 0.75 < float(inside) < 0.95
    sides = box[1] - box[0]
    assert float(sides.min()) >= float(sides.max()) / 100 * 0.999
    assert float(sides.max()) < 20
    assert bool((inner_box(torch.zeros(1, 3))[1] > inner_box(torch.zeros(1, 3))[0]).all())


def test_points_begin_as_large_as_their_gaps_and_far_ones_larger():
    axis = torch.linspace(-2, 2, 21)
    grid = torch.stack(torch.meshgrid(axis, axis, axis[:3], indexing="ij"), dim=-1).reshape(-1, 3)
    far = 40 * torch.nn.functional.normalize(torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.manual_seed(0)
    room = Room(settings(), torch.cat([grid, far]), scale=1.0)
    room.start_sizes()
    with torch.no_grad():
        state = room.state()
        stretch = outward(state.xyz, room.bounds)
    near = state.xyz.norm(dim=1) < 5
    assert float(state.radius[near].median()) == pytest.approx(0.2, rel=0.3), "spacing of the grid"
    assert float(stretch[~near].min()) > 10
    torch.testing.assert_close(
        state.radius / stretch, (state.radius / stretch)[:1].expand(len(stretch)), rtol=0.2, atol=0
    )
    assert float(room.geometry.limits[1]) >= 0.1


def test_the_original_start_is_the_middle_of_its_range():
    room = Room(settings(radius_init="upstream"), torch.rand(50, 3), scale=2.0)
    room.start_sizes()
    low, high = room.geometry.limits.tolist()
    assert high == pytest.approx(0.2)
    assert room.geometry.start_radius == pytest.approx((low + high) / 2)


def test_time_changes_nothing():
    room = Room(settings(), torch.rand(40, 3), scale=1.0)
    assert not len(room.planes.temporal)
    one, other = room.state(0, 0.0), room.state(7, 0.9)
    assert torch.equal(one.features, other.features)
    assert one.displacement is None


def test_a_checkpoint_brings_its_own_points_and_box():
    torch.manual_seed(1)
    trained = Room(settings(), 5 * torch.rand(60, 3) - 2, scale=1.0)
    trained.start_sizes()
    fresh = Room(settings(), torch.zeros(1, 3), scale=1.0)
    fresh.start_sizes()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.state().radius, trained.state().radius)
    assert torch.equal(fresh.place(fresh.points(0)), trained.place(trained.points(0)))
