"""A13: the planes against the original's outputs, grid_sample, stored texels and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from r4dv_ns.planes import PLANES, PlaneField, import_planes, temporal_smoothness, total_variation


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(**changes) -> PlaneField:
    return PlaneField(**{"levels": 2, "features": 3, "base": 4, "frames": 5, "init": 1.0, **changes}).double()


def coordinates(n: int = 60, reach: float = 1.3) -> torch.Tensor:
    """Half of them outside the box."""
    return (torch.rand(n, 3, dtype=torch.float64) * 2 - 1) * reach


def sampled(plane: torch.Tensor, across: torch.Tensor, down: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """One plane [rows, columns, C] by torch's grid_sample."""
    grid = torch.stack([across, down], dim=-1)[None, None]
    out = F.grid_sample(plane.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=align_corners)
    return out[0, :, 0].T


def twin(field: PlaneField, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The obvious lookup: one grid_sample per plane and level."""
    planes = []
    for index, (first, second) in enumerate(PLANES):
        levels = [sampled(table[index], x[:, first], x[:, second], False) for table in field.spatial]
        planes.append(torch.cat(levels, dim=1))
    for axis in range(3 if field.frames is not None else 0):
        levels = [sampled(table[axis], x[:, axis], 2 * t - 1, True) for table in field.temporal]
        planes.append(torch.cat(levels, dim=1))
    stacked = torch.stack(planes)
    if field.aggregate == "cat":
        return torch.cat(planes, dim=1)
    return stacked.sum(0) if field.aggregate == "sum" else stacked.prod(0)


@pytest.mark.parametrize("aggregate", ["sum", "cat", "mul"])
@pytest.mark.parametrize("frames", [None, 1, 2, 5])
def test_values_and_gradients_equal_grid_sample(aggregate, frames):
    field, x, t = small(aggregate=aggregate, frames=frames), coordinates().requires_grad_(), torch.rand(60).double()
    out = field(x, t)
    expected = twin(field, x, t)
    assert out.shape == (60, field.width)
    torch.testing.assert_close(out, expected)
    upstream, inputs = torch.randn_like(out), [x, *field.parameters()]
    ours, theirs = (torch.autograd.grad(each, inputs, upstream) for each in (out, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("aggregate", ["sum", "cat", "mul"])
@pytest.mark.parametrize("t", [0.0, 0.25, 0.6, 1.0, -3.0, 7.0])
def test_one_time_for_all_equals_a_time_per_point(aggregate, t, hashed):
    field, x = small(aggregate=aggregate, hashed=hashed, log2_table=5), coordinates().requires_grad_()
    inputs = [x, *field.parameters()]
    results = []
    for moment in (t, torch.tensor([t], dtype=torch.float64), torch.full((60, 1), t, dtype=torch.float64)):
        out = field(x, moment)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])


@pytest.mark.parametrize(
    ("frames", "aggregate", "width"), [(7, "sum", 32), (7, "cat", 192), (None, "cat", 96), (7, "mul", 32)]
)
def test_widths_of_the_paper(frames, aggregate, width):
    field = PlaneField(base=4, frames=frames, aggregate=aggregate)
    assert field.width == width
    assert field(torch.zeros(2, 3), 0.5).shape == (2, width)


def test_texel_centres_and_frame_times_give_stored_values_exactly():
    field = small(levels=1, base=8, aggregate="cat")
    ids = torch.arange(8)
    i, j, k = (each.reshape(-1) for each in torch.meshgrid(ids, ids, ids, indexing="ij"))
    spatial = field.spatial[0]
    centres = (2 * ids.double() + 1) / 8 - 1
    out = field(torch.stack([centres[i], centres[j], centres[k]], dim=1), 0.3).reshape(-1, 6, 3)
    assert torch.equal(out[:, :3], torch.stack([spatial[0, j, i], spatial[1, k, i], spatial[2, k, j]], dim=1))
    # In the temporal planes the outermost texels lie on the faces of the box.
    field = small(levels=1, base=9, aggregate="cat")
    ids = torch.arange(9)
    on_faces = ((2 * ids.double()) / 8 - 1)[:, None].expand(9, 3)
    for frame in range(5):
        out = field(on_faces, frame / 4).reshape(-1, 6, 3)
        assert torch.equal(out[:, 3:], field.temporal[0][:, frame].transpose(0, 1))


def test_points_outside_read_the_border_and_get_no_gradient():
    field = small()
    outside = torch.tensor([[3.0, -2.0, 1.5]], dtype=torch.float64, requires_grad=True)
    border = torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
    out = field(outside, 0.3)
    torch.testing.assert_close(out, field(border, 0.3))
    out.sum().backward()
    assert outside.grad is not None
    assert not outside.grad.any()


@pytest.mark.parametrize("aggregate", ["sum", "cat", "mul"])
def test_gradients_by_finite_differences(aggregate):
    field, x = small(aggregate=aggregate, features=1, base=2, frames=3), coordinates(5, 0.9).requires_grad_()
    names, tables = zip(*field.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (x, 0.37))

    assert torch.autograd.gradcheck(run, (x, *tables))


@pytest.mark.parametrize("aggregate", ["sum", "cat", "mul"])
def test_the_original_s_outputs(shared_fixtures, aggregate):
    folder = shared_fixtures / "r4dv"
    state = torch.load(folder / "kplanes_state.pt", map_location="cpu", weights_only=True)
    field = import_planes(state, aggregate)
    with np.load(folder / "kplanes.npz", allow_pickle=False) as stored:
        xyz, t = torch.from_numpy(stored["xyz"])[0].float(), torch.from_numpy(stored["t"])[0].float()
        expected = torch.from_numpy(stored[{"mul": "out_prod"}.get(aggregate, f"out_{aggregate}")])[0].float()
    low, high = state["bounds"].reshape(2, 3).float()
    x = (xyz - low) / (high - low) * 2 - 1
    torch.testing.assert_close(field(x, t).detach(), expected, atol=1e-6, rtol=0)
    one_by_one = torch.cat([field(x[i : i + 1], float(t[i])) for i in range(len(x))])
    torch.testing.assert_close(one_by_one.detach(), expected, atol=1e-6, rtol=0)


def test_planes_that_do_not_belong_together_are_refused():
    planes = {"spatial_embedding.0": torch.zeros(3, 2, 4, 4), "spatial_embedding.1": torch.zeros(3, 2, 8, 8)}
    assert import_planes(planes).width == 4
    odd = {**planes, "spatial_embedding.1": torch.zeros(3, 2, 9, 9)}
    short = {**planes, "temporal_embedding.0": torch.zeros(3, 2, 4, 6)}
    for wrong in ({}, odd, short):
        with pytest.raises(ValueError, match="not the planes of one field"):
            import_planes(wrong)


def test_hashed_levels_share_rows_and_dense_levels_do_not_change():
    field = PlaneField(levels=3, base=4, frames=3, hashed=True, log2_table=6, init=1.0)
    assert [tuple(table.shape) for table in field.spatial] == [(3, 4, 4, 8), (3, 8, 8, 8), (3, 64, 8)]
    assert [tuple(table.shape) for table in field.temporal] == [(3, 3, 4, 8), (3, 3, 8, 8), (3, 3, 16, 8)]
    dense = PlaneField(levels=3, base=4, frames=3)
    with torch.no_grad():
        for level in range(3):
            dense.temporal[level].copy_(field.temporal[level])
            table = field.spatial[level]
            if table.ndim == 4:
                dense.spatial[level].copy_(table)
            else:  # what the hash says each texel of the 16 x 16 planes holds
                y, x = np.meshgrid(np.arange(16, dtype=np.uint32), np.arange(16, dtype=np.uint32), indexing="ij")
                with np.errstate(over="ignore"):
                    rows = (x ^ (y * np.uint32(2654435761))) % np.uint32(64)
                dense.spatial[level].copy_(table[:, torch.from_numpy(rows.astype(np.int64))])
    x = coordinates().float()
    torch.testing.assert_close(field(x, 0.4), dense(x, 0.4))


def test_size_of_the_released_model():
    """Spec 4.2: about 7.27 M parameters; three dense spatial planes up to 512^2 alone hold 8.36 M."""
    hashed, dense = PlaneField(frames=150, hashed=True), PlaneField(frames=None)
    count = [sum(p.numel() for p in field.parameters()) for field in (hashed, dense)]
    assert 5e6 < count[0] < 8e6
    assert count[1] == 3 * 8 * sum(r * r for r in (64, 128, 256, 512))


def test_only_two_frames_of_the_temporal_planes_learn():
    field = small()
    field(coordinates(), 0.6).sum().backward()  # between frames 2 and 3
    for table in field.temporal:
        assert table.grad is not None
        assert [bool(table.grad[:, k].any()) for k in range(5)] == [False, False, True, True, False]


def test_regularisers_equal_loops():
    field = small()
    tv = np.mean(
        [
            np.mean((p[:, 1:] - p[:, :-1]) ** 2) + np.mean((p[:, :, 1:] - p[:, :, :-1]) ** 2)
            for p in (table.detach().numpy() for table in field.spatial)
        ]
    )
    assert total_variation(field).item() == pytest.approx(tv)
    second = []
    for table in field.temporal:
        p = table.detach().numpy()
        second.append(np.mean((p[:, 2:] - 2 * p[:, 1:-1] + p[:, :-2]) ** 2))
    assert temporal_smoothness(field).item() == pytest.approx(np.mean(second))
    (total_variation(field) + temporal_smoothness(field)).backward()
    for nothing in (small(frames=None), small(frames=2), small(hashed=True, log2_table=3)):
        assert temporal_smoothness(nothing).item() == 0.0
    assert total_variation(small(hashed=True, log2_table=3)).item() == 0.0


def test_positions_that_are_not_numbers_do_not_crash():
    field = small()
    x = torch.full((3, 3), float("nan"), dtype=torch.float64)
    assert field(x, 0.5).isnan().all()
    assert field(torch.zeros(0, 3, dtype=torch.float64), 0.5).shape == (0, field.width)


def test_multiplied_planes_start_where_products_can_learn():
    field = PlaneField(levels=1, base=4, frames=3, aggregate="mul")
    assert field(torch.zeros(1, 3), 0.0).min() > 1e-3 * 0.9
    assert all(bool((table == 1).all()) for table in field.temporal)


@pytest.mark.parametrize("changes", [{"levels": 0}, {"features": 0}, {"base": 1}, {"frames": 0}, {"aggregate": "max"}])
def test_impossible_fields_are_refused(changes):
    with pytest.raises(ValueError, match=r"planes need|unknown aggregate"):
        small(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("hashed", [False, True])
def test_cuda_equals_cpu(hashed):
    field, x = PlaneField(base=16, frames=6, hashed=hashed, log2_table=10), coordinates(5000).float()
    expected = field(x, 0.3)
    expected.square().sum().backward()
    there = PlaneField(base=16, frames=6, hashed=hashed, log2_table=10).cuda()
    there.load_state_dict(field.state_dict())
    out = there(x.cuda(), 0.3)
    out.square().sum().backward()
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(there.parameters(), field.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.cpu(), b.grad, atol=1e-4, rtol=1e-4)
