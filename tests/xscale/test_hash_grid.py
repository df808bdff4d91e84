"""The hash grid against a loop in float64, finite differences, numpy's uint32 and tcnn's published layout."""

from __future__ import annotations

import io
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch

from core_ns.errors import MissingExtra
from xscale_ns import hash_grid
from xscale_ns.hash_grid import HashGrid, TcnnHashGrid, level_layout, make_hash_grid
from xscale_ns.table_rows import ROW_GRADIENTS, add_rows, gather_rows, put_rows, sum_equal_rows

PAPER = {"levels": 16, "log2_table": 22, "base_resolution": 16, "per_level_scale": 1.4768261459}
# Levels of 4, 8 and 16 vertices per axis in tables of 2^9: dense, dense (8^3 = 2^9 exactly), hashed.
SMALL = {"levels": 3, "features": 2, "log2_table": 9, "base_resolution": 4, "per_level_scale": 2.0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_grid(**changes) -> HashGrid:
    return HashGrid(**{**SMALL, "init_scale": 1.0, **changes}).double()


def points(n: int, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(n, 3, dtype=dtype)


def loop_row(level, x: int, y: int, z: int) -> int:
    """tcnn's index of one lattice vertex, in numpy's wrapping uint32."""
    with np.errstate(over="ignore"):
        x, y, z = np.uint32(x), np.uint32(y), np.uint32(z)
        if level.resolution**3 <= level.entries:
            r = np.uint32(level.resolution)
            index = x + y * r + z * r * r
        else:
            index = x ^ (y * np.uint32(2654435761)) ^ (z * np.uint32(805459861))
        return int(index % np.uint32(level.entries))


def loop_encode(grid: HashGrid, q: torch.Tensor) -> torch.Tensor:
    """The slow obvious twin: one point, level and corner at a time."""
    out = []
    for point in q.tolist():
        features = []
        for level, table in zip(grid.layout, grid.tables, strict=True):
            position = [min(max(c, 0.0), 1.0) * level.scale + 0.5 for c in point]
            corner = [math.floor(c) for c in position]
            fraction = [c - i for c, i in zip(position, corner, strict=True)]
            upper = [f * f * (3 - 2 * f) if grid.interpolation == "smoothstep" else f for f in fraction]
            total = torch.zeros(grid.features, dtype=torch.float64)
            for bits in itertools.product((0, 1), repeat=3):
                weight = math.prod(u if bit else 1 - u for u, bit in zip(upper, bits, strict=True))
                row = loop_row(level, *(i + bit for i, bit in zip(corner, bits, strict=True)))
                total += weight * table.detach()[row].double()
            features.append(total)
        out.append(torch.cat(features))
    return torch.stack(out)


def test_the_small_grid_covers_dense_full_and_hashed_levels():
    assert [(level.resolution, level.entries, level.dense) for level in small_grid().layout] == [
        (4, 64, True),
        (8, 512, True),
        (16, 512, False),
    ]


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("features", [1, 2, 3, 8])
def test_forward_equals_the_loop(interpolation, features):
    grid = small_grid(interpolation=interpolation, features=features)
    q = points(60)
    assert grid.output_dim == 3 * features
    torch.testing.assert_close(grid(q), loop_encode(grid, q), rtol=0, atol=1e-13)


def test_forward_in_float32_is_close_to_the_loop_on_fine_levels():
    grid = HashGrid(16, 2, 12, 16, 2048, init_scale=1.0)
    q = points(40, torch.float32)
    # One float32 rounding of a position near 2048 is 1.2e-4 cells; the smoothstep slope is at most 1.5 per axis.
    torch.testing.assert_close(grid(q).double(), loop_encode(grid, q), rtol=0, atol=2e-3)


def test_boundary_positions_wrap_like_tcnn_and_stay_finite():
    grid = small_grid()
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)), dtype=torch.float64)
    torch.testing.assert_close(grid(corners), loop_encode(grid, corners), rtol=0, atol=1e-13)


def test_positions_outside_are_clamped_and_get_no_gradient():
    grid = small_grid()
    q = torch.tensor([[-3.0, 0.4, 2.0]], dtype=torch.float64, requires_grad=True)
    out = grid(q)
    torch.testing.assert_close(out, grid(torch.tensor([[0.0, 0.4, 1.0]], dtype=torch.float64)))
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad[0, 0] == 0
    assert grad[0, 2] == 0
    assert grad[0, 1] != 0


def test_nan_positions_give_nan_and_no_crash():
    out = small_grid()(torch.tensor([[math.nan, 0.5, 0.5], [0.5, 0.5, 0.5]], dtype=torch.float64))
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("sparse", [False, True])
def test_no_points(sparse):
    grid = small_grid()
    for table in grid.tables:
        setattr(table, ROW_GRADIENTS, sparse)
    q = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    out = grid(q)
    assert out.shape == (0, 6)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.shape == (0, 3)
    for table in grid.tables:
        assert table.grad is not None
        assert not table.grad.to_dense().any()


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_gradients_equal_finite_differences(interpolation):
    grid = HashGrid(2, 2, 6, 2, 8, interpolation=interpolation, init_scale=1.0).double()
    assert [level.dense for level in grid.layout] == [True, False]
    q = points(6).requires_grad_()
    # Linear interpolation has a kink at each lattice plane: keep the difference step on one side.
    for level in grid.layout:
        fraction = (q.detach() * level.scale + 0.5) % 1
        assert fraction.min() > 1e-4
        assert fraction.max() < 1 - 1e-4

    def encode(positions, *tables):
        return hash_grid._Lookup.apply(positions, grid.layout, interpolation == "smoothstep", *tables)

    assert torch.autograd.gradcheck(encode, (q, *grid.tables))


def test_second_derivatives_are_refused():
    grid, q = small_grid(), points(3).requires_grad_()
    (grad,) = torch.autograd.grad(grid(q).pow(2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("features", [1, 2, 3, 4, 8])
def test_row_gradients_equal_dense_gradients(features):
    grid, q = small_grid(features=features, log2_table=14, per_level_scale=3.0), points(20)
    upstream = torch.randn(20, grid.output_dim, dtype=torch.float64)
    dense = torch.autograd.grad(grid(q), list(grid.tables), upstream)
    for table in grid.tables:
        setattr(table, ROW_GRADIENTS, True)
    rows = torch.autograd.grad(grid(q), list(grid.tables), upstream)
    assert [grad.is_sparse for grad in rows] == [False, True, True]  # 160 corners are not few for a table of 64 rows
    for grad, expected in zip(rows, dense, strict=True):
        torch.testing.assert_close(grad.to_dense(), expected)


def test_sum_equal_rows_against_a_dictionary():
    rows, values = torch.randint(0, 50, (300,), dtype=torch.int32), torch.randn(300, 3)
    expected: dict[int, torch.Tensor] = {}
    for row, value in zip(rows.tolist(), values, strict=True):
        expected[row] = expected.get(row, torch.zeros(3)) + value
    distinct, sums = sum_equal_rows(rows, values)
    assert distinct.tolist() == sorted(expected)
    assert distinct.dtype == torch.int64
    torch.testing.assert_close(sums, torch.stack([expected[row] for row in sorted(expected)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("skip", [0, 1])
def test_row_access_equals_plain_indexing(features, dtype, skip):
    # skip: a view that starts in the middle of its storage, also at odd rows
    table = torch.randn(30, features, dtype=dtype)[skip:]
    rows = torch.randint(0, 29, (40,))
    assert torch.equal(gather_rows(table, rows), table[rows])
    values = torch.randn(40, features, dtype=dtype)
    expected = table.clone().index_put_((rows,), values, accumulate=True)
    add_rows(table, rows, values)
    torch.testing.assert_close(table, expected)
    distinct = torch.randperm(29)[:9]
    expected[distinct] = values[:9]
    put_rows(table, distinct, values[:9])
    assert torch.equal(table[distinct], expected[distinct])
    torch.testing.assert_close(table, expected)


def test_paper_layout_is_tcnn_s():
    layout = level_layout(**PAPER)
    assert [level.resolution for level in layout] == (
        [16, 24, 35, 52, 77, 113, 166, 246, 363, 535, 790, 1167, 1723, 2544, 3757, 5548]
    )
    assert [level.dense for level in layout] == [True] * 6 + [False] * 10
    sizes = [4096, 13824, 42880, 140608, 456536, 1442904] + [2**22] * 10  # each cube rounded up to a multiple of 8
    assert [level.entries for level in layout] == sizes
    assert [level.offset for level in layout] == [sum(sizes[:k]) for k in range(16)]
    assert sum(sizes) == 44_043_888


def test_finest_resolution_sets_the_growth():
    layout = level_layout(16, 19, 16, 5547)
    assert abs(layout[-1].scale - 5546) < 0.01
    ratios = [(b.scale + 1) / (a.scale + 1) for a, b in itertools.pairwise(layout)]
    assert max(ratios) - min(ratios) < 1e-4
    assert level_layout(1, 19, 16, 5547)[0].resolution == 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 0},
        {"log2_table": 2},
        {"log2_table": 31},
        {"base_resolution": 1},
        {"per_level_scale": 0.5},
        {"per_level_scale": math.nan},
        {"per_level_scale": None},
        {"finest_resolution": 64},
        {"per_level_scale": 4.0},
    ],
)
def test_bad_layouts_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\S"):
        level_layout(**{**PAPER, **wrong})


def test_hash_rows_equal_wrapping_uint32_on_the_finest_level():
    level = level_layout(**PAPER)[-1]
    q = torch.rand(3, 2000, dtype=torch.float64)
    rows, _, _ = hash_grid._corners(q, level, True)
    corner = np.floor(q.numpy() * level.scale + 0.5).astype(np.uint32)
    assert (corner[1].astype(np.uint64) * 2654435761).max() > 2**32  # the products do wrap
    with np.errstate(over="ignore"):
        for k, (dz, dy, dx) in enumerate(itertools.product((0, 1), repeat=3)):
            x, y, z = (corner[axis] + np.uint32(d) for axis, d in enumerate((dx, dy, dz)))
            expected = (x ^ (y * np.uint32(2654435761)) ^ (z * np.uint32(805459861))) % np.uint32(level.entries)
            np.testing.assert_array_equal(rows[k].numpy(), expected)


def test_tcnn_params_round_trip_and_order():
    grid, other = small_grid(), small_grid()
    flat = grid.to_tcnn_params()
    assert flat.shape == (sum(level.entries for level in grid.layout) * 2,)
    level = grid.layout[1]
    assert flat[(level.offset + 5) * 2 + 1] == grid.tables[1][5, 1]
    other.load_tcnn_params(flat.float())
    for ours, theirs in zip(grid.tables, other.tables, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="2176"):
        grid.load_tcnn_params(flat[:-1])


def test_initial_tables_are_uniform_in_the_given_range():
    table = HashGrid(1, 2, 16, 32, 32, init_scale=1e-4).tables[0].detach()
    assert table.abs().max() <= 1e-4
    assert abs(table.std().item() / (1e-4 / math.sqrt(3)) - 1) < 0.02


class FakeTcnnEncoding(torch.nn.Module):
    """tinycudann's Encoding as far as the wrapper uses it: one flat float32 parameter, positions in, features out."""

    def __init__(self, n_input_dims, encoding_config, dtype):
        super().__init__()
        assert (n_input_dims, dtype, encoding_config["otype"]) == (3, torch.float32, "HashGrid")
        self.grid = HashGrid(
            encoding_config["n_levels"],
            encoding_config["n_features_per_level"],
            encoding_config["log2_hashmap_size"],
            encoding_config["base_resolution"],
            per_level_scale=encoding_config["per_level_scale"],
            interpolation={"Smoothstep": "smoothstep", "Linear": "linear"}[encoding_config["interpolation"]],
        )
        self.params = torch.nn.Parameter(self.grid.to_tcnn_params())

    def forward(self, x):
        tables = hash_grid.split_tcnn_params(self.params, self.grid.layout, self.grid.features)
        return hash_grid._Lookup.apply(x, self.grid.layout, self.grid.interpolation == "smoothstep", *tables)


@pytest.fixture
def fake_tcnn(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Encoding=FakeTcnnEncoding))


@pytest.mark.parametrize("how", ["finest_resolution", "per_level_scale"])
def test_tcnn_wrapper_shares_state_dicts_with_the_torch_grid(fake_tcnn, how):
    size = {**SMALL, "per_level_scale": None, "finest_resolution": None, how: 16 if how == "finest_resolution" else 2.0}
    ours = HashGrid(**size, init_scale=1.0)
    theirs = make_hash_grid(**size, backend="tinycudann")
    assert isinstance(theirs, TcnnHashGrid)
    assert list(theirs.state_dict()) == list(ours.state_dict()) == ["tables.0", "tables.1", "tables.2"]
    assert [name for name, _ in theirs.named_parameters()] == ["params"]
    theirs.load_state_dict(ours.state_dict())
    q = points(20, torch.float32)
    torch.testing.assert_close(theirs(q), ours(q))
    theirs(q).sum().backward()
    assert theirs.params.grad is not None
    back = HashGrid(**size)
    back.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(back.to_tcnn_params(), ours.to_tcnn_params(), rtol=0, atol=0)
    nested = torch.nn.ModuleDict({"grid": theirs})
    nested.load_state_dict({f"grid.{key}": value * 2 for key, value in ours.state_dict().items()})
    torch.testing.assert_close(theirs(q), 2 * ours(q))


def test_tcnn_wrapper_reports_missing_tables(fake_tcnn):
    grid = make_hash_grid(**SMALL, backend="tinycudann")
    state = grid.state_dict()
    del state["tables.1"]
    with pytest.raises(RuntimeError, match=r"tables\.1"):
        grid.load_state_dict(state)
    state["tables.1"] = grid.state_dict()["tables.1"]
    with pytest.raises(RuntimeError, match=r"tables\.3"):
        grid.load_state_dict({**state, "tables.3": torch.zeros(8, 2)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        grid.load_state_dict({**state, "tables.1": torch.zeros(8, 2)})


def test_backend_choice_without_tinycudann(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    assert isinstance(make_hash_grid(**SMALL), HashGrid)
    assert isinstance(make_hash_grid(**SMALL, backend="torch"), HashGrid)
    with pytest.raises(MissingExtra, match="tinycudann"):
        make_hash_grid(**SMALL, backend="tinycudann")
    with pytest.raises(ValueError, match="backend"):
        make_hash_grid(**SMALL, backend="cuda")  # type: ignore[arg-type]


def test_state_dict_round_trip_without_pickled_classes():
    grid = small_grid()
    file = io.BytesIO()
    torch.save(grid.state_dict(), file)
    file.seek(0)
    other = small_grid()
    other.load_state_dict(torch.load(file, weights_only=True))
    q = points(5)
    torch.testing.assert_close(other(q), grid(q), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    grid, q = small_grid(log2_table=14, per_level_scale=3.0), points(50)
    there = small_grid(log2_table=14, per_level_scale=3.0).cuda()
    there.load_state_dict(grid.state_dict())
    for sparse in (False, True):
        for table in (*grid.tables, *there.tables):
            setattr(table, ROW_GRADIENTS, sparse)
            table.grad = None
        ours, theirs = q.clone().requires_grad_(), q.cuda().requires_grad_()
        grid(ours).sin().sum().backward()
        there(theirs).sin().sum().backward()
        torch.testing.assert_close(theirs.grad.cpu(), ours.grad)
        for a, b in zip(grid.tables, there.tables, strict=True):
            torch.testing.assert_close(b.grad.to_dense().cpu(), a.grad.to_dense())
