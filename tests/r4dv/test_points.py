"""Points per frame: lazy gradients, resizing on load, residence; spacing and re-seeding against plain numpy."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch

from r4dv_ns.points import (
    FramePoints,
    MotionResidual,
    Sightings,
    candidate_weights,
    normalise,
    prune_reseed,
    spacing,
    spatial_order,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def clouds(*counts: int) -> list[torch.Tensor]:
    return [torch.randn(count, 3) for count in counts]


def test_only_the_frame_that_was_drawn_is_moved():
    frames = FramePoints(clouds(5, 7, 9))
    before = [points.detach().clone() for points in frames.points]
    optimizer = torch.optim.Adam(frames.parameters(), lr=1e-2, eps=1e-15)
    for _ in range(3):
        optimizer.zero_grad()
        frames(1).square().sum().backward()
        assert [points.grad is None for points in frames.points] == [True, False, True]
        optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(before, frames.points, strict=True)] == [True, False, True]
    assert list(optimizer.state) == [frames.points[1]]


def test_names_and_resizing_on_load():
    stored = FramePoints(clouds(4, 6)).state_dict()
    assert list(stored) == ["points.0", "points.1"]
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    frames = FramePoints(clouds(9, 6))
    identity = list(frames.parameters())
    frames(0).sum().backward()
    model = torch.nn.ModuleDict({"frames": frames})
    loaded = torch.load(file, weights_only=True)
    model.load_state_dict({f"frames.{key}": value for key, value in loaded.items()})
    assert all(a is b for a, b in zip(identity, frames.parameters(), strict=True))
    assert [tuple(points.shape) for points in frames.points] == [(4, 3), (6, 3)]
    assert frames.points[0].grad is None  # it had the former number of rows
    assert all(torch.equal(frames(i), stored[f"points.{i}"]) for i in range(2))
    optimizer = torch.optim.Adam(identity, 1e-2)
    optimizer.zero_grad()
    frames(0).sum().backward()
    optimizer.step()
    assert not torch.equal(frames(0), stored["points.0"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points.0": torch.zeros(4, 2)}, "size mismatch"),
        ({"points.0": torch.zeros(4)}, "size mismatch"),
        ({"points.2": torch.zeros(4, 3)}, "Unexpected key"),
    ],
)
def test_what_is_no_cloud_is_refused_and_changes_nothing(change, message):
    frames = FramePoints(clouds(4, 6))
    with pytest.raises(RuntimeError, match=message):
        frames.load_state_dict({**frames.state_dict(), **change})
    assert frames(0).shape == (4, 3)


def test_bad_clouds_and_frames_are_named():
    for wrong in ([], clouds(0), [torch.zeros(3, 2)], [torch.full((2, 3), float("nan"))]):
        with pytest.raises(ValueError, match="frame"):
            FramePoints(wrong)
    frames = FramePoints(clouds(3))
    assert len(frames) == 1
    for index in (-1, 1):
        with pytest.raises(IndexError):
            frames(index)


def test_many_frames_stay_where_they_are():
    frames = FramePoints(clouds(3, 3, 3), resident_frames=2)
    assert not frames.resident
    frames.to("meta")
    assert all(points.device.type == "cpu" for points in frames.points)
    assert frames(1).device.type == "meta"
    frames.to("cpu").double()
    assert frames(2).dtype == torch.float64
    frames(2).square().sum().backward()
    assert [points.grad is None for points in frames.points] == [True, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_frames_in_main_memory_learn_from_cuda():
    frames = FramePoints(clouds(3, 3), resident_frames=1).cuda()
    optimizer = torch.optim.Adam(frames.parameters(), 0.1)
    before = frames(0).detach().clone()
    assert frames(0).is_cuda
    assert frames.points[0].is_pinned()
    frames(0).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, frames(0))


def test_points_are_ordered_along_a_curve_through_space():
    cloud = torch.rand(3000, 3)
    ordered = FramePoints([cloud])(0).detach()
    assert torch.equal(ordered, cloud[spatial_order(cloud)])
    assert torch.equal(ordered.sort(dim=0).values, cloud.sort(dim=0).values)
    hops = [points.diff(dim=0).norm(dim=1).median() for points in (ordered, cloud)]
    assert hops[0] < 0.2 * hops[1]
    # The order of the corners of a cube is that of their bits, x lowest; a 4 x 4 x 4 lattice against the loop.
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    codes = [sum((int(p[a]) >> b & 1) << (3 * b + a) for a in range(3) for b in range(2)) for p in lattice]
    assert spatial_order(lattice).tolist() == np.argsort(codes, kind="stable").tolist()
    assert spatial_order(torch.ones(3, 3)).tolist() == [0, 1, 2]


def test_normalise_clamps():
    bounds = torch.tensor([[-1.0, 0.0, 2.0], [1.0, 4.0, 3.0]])
    x = torch.tensor([[0.0, 1.0, 2.5], [9.0, -1.0, 2.0]], requires_grad=True)
    out = normalise(x, bounds)
    torch.testing.assert_close(out.detach(), torch.tensor([[0.0, -0.5, 0.0], [1.0, -1.0, -1.0]]))
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 0.5, 2.0], [0.0, 0.0, 2.0]]))


def test_share_outside_warns_above_one_percent(caplog):
    bounds = torch.tensor([[-1.0] * 3, [1.0] * 3])
    inside, outside = torch.zeros(298, 3), torch.full((2, 3), 5.0)
    with caplog.at_level(logging.WARNING):
        assert FramePoints([inside, outside]).share_outside(bounds) == pytest.approx(1 / 150)
        assert not caplog.records
        assert FramePoints([inside, outside, outside, outside]).share_outside(bounds) > 0.01
    assert "outside the box" in caplog.text


def test_spacing_equals_all_pairs():
    cloud = torch.rand(200, 3, dtype=torch.float64)
    pairs = torch.cdist(cloud, cloud) + torch.eye(200) * 9
    assert spacing(cloud) == pytest.approx(float(np.median(pairs.min(dim=1).values)))
    assert spacing(cloud.repeat(3, 1)) == pytest.approx(spacing(cloud))
    lattice = torch.cartesian_prod(*[torch.arange(30.0)] * 3) * 0.25
    assert spacing(lattice) == pytest.approx(0.25)
    assert spacing(cloud[:1]) == spacing(cloud[:1].repeat(4, 1)) == 0.0


def test_the_residual_starts_near_zero_and_is_differentiable():
    residual = MotionResidual(frames=4, base=8)
    x = torch.rand(50, 3, requires_grad=True)
    out = residual(x, 0.3)
    assert out.shape == (50, 3)
    assert out.abs().max().item() < 0.1
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in residual.parameters())
    assert [layer.out_features for layer in residual.mlp if hasattr(layer, "out_features")] == [64, 64, 3]
    assert residual.planes.width == 16


def test_reseeding_keeps_the_number_and_moves_only_the_dead():
    parameter = torch.nn.Parameter(torch.randn(40, 3))
    optimizer = torch.optim.Adam([parameter], 1e-3)
    parameter.square().sum().backward()
    optimizer.step()
    before, dead = parameter.detach().clone(), torch.zeros(40, dtype=torch.bool)
    dead[[3, 17, 39]] = True
    places = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    moved = prune_reseed(parameter, dead, places, torch.tensor([0.0, 1.0, 0.0]), jitter=0.1, optimizer=optimizer)
    assert moved == 3
    assert parameter.shape == (40, 3)
    assert torch.equal(parameter[~dead], before[~dead])
    assert (parameter[dead] - places[1]).abs().max().item() <= 0.1
    for key in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[parameter][key]
        assert not state[dead].any()
        assert state[~dead].all()


def test_reseeding_follows_the_weights_and_the_seed():
    places, weights = torch.arange(12.0).reshape(4, 3), torch.tensor([1.0, 2.0, 0.0, 5.0])
    dead = torch.ones(8000, dtype=torch.bool)
    results = []
    for _ in range(2):
        parameter = torch.nn.Parameter(torch.zeros(8000, 3))
        prune_reseed(parameter, dead, places, weights, generator=torch.Generator().manual_seed(1))
        results.append(parameter.detach())
    assert torch.equal(results[0], results[1])
    share = torch.tensor([(results[0] == place).all(dim=1).float().mean() for place in places])
    torch.testing.assert_close(share, weights / 8, atol=0.02, rtol=0)


def test_reseeding_without_dead_points_places_or_weights():
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    alive, dead = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    assert prune_reseed(parameter, alive, torch.ones(2, 3)) == 0
    assert prune_reseed(parameter, dead, torch.ones(0, 3)) == 0
    assert not parameter.detach().any()
    assert prune_reseed(parameter, dead, torch.ones(2, 3), torch.zeros(2)) == 4
    assert bool((parameter == 1).all())


def test_candidates_take_the_error_of_their_pixel():
    K = torch.tensor([[10.0, 0.0, 4.0], [0.0, 10.0, 3.0], [0.0, 0.0, 1.0]])
    w2c = torch.eye(4)
    w2c[2, 3] = 5.0  # world z = 0 lies five units before the camera
    error = torch.arange(48.0).reshape(6, 8)
    candidates = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, -6.0], [50.0, 0.0, 0.0], [0.0, 0.0, -5.0]])
    # Pixel coordinates (4, 3) and (6, 4); then behind, off the image, in the camera's own plane.
    assert candidate_weights(candidates, error, K, w2c).tolist() == [28.0, 38.0, 0.0, 0.0, 0.0]


def test_sightings_count_from_the_first_note():
    seen = Sightings()
    assert seen.unseen(0, 10) is None
    seen.note(0, torch.tensor([True, False, False]), 100)
    seen.note(0, torch.tensor([False, True, False]), 4000)
    late = seen.unseen(0, 5101)
    assert late is not None
    assert late.tolist() == [True, False, True]
    seen.forget(0, late, 5101)
    again = seen.unseen(0, 5102)
    assert again is not None
    assert not again.any()
    assert seen.unseen(1, 5102) is None
