"""tiny-cuda-nn's lattice against its formula, one point and corner at a time (spec r4dv 5.1, acceptance A22)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from released_checkpoints import BASE, FEATURES, plane_length, tcnn_lookup

from r4dv_ns.vertex_planes import (
    VertexPlanes,
    at_times,
    find_log2_table,
    level_entries,
    table_rows,
    vertex_tables,
)


def some_points(n: int = 40, axes: int = 3) -> torch.Tensor:
    """In [0, 1], with both ends."""
    points = torch.rand(n, axes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[0], points[1] = 0, 1
    return points


@pytest.mark.parametrize(("levels", "log2_table"), [(2, 13), (2, 14), (1, 12), (3, 13)])
def test_a_plane_of_vertices_is_the_hash_grid(levels, log2_table):
    """Levels that fit into their table, one that fits exactly, and hashed ones."""
    numbers = torch.rand(plane_length(levels, log2_table), generator=torch.Generator().manual_seed(0)) - 0.5
    tables = vertex_tables(numbers, levels, FEATURES, BASE, log2_table)
    field = VertexPlanes(levels, FEATURES, BASE, None, "cat").double()
    with torch.no_grad():
        for level, table in enumerate(tables):
            field.spatial[level].copy_(torch.stack([table] * 3))
    points = some_points()
    found = field(points * 2 - 1).detach().reshape(len(points), 3, -1)
    for plane, axes in enumerate(((0, 1), (0, 2), (1, 2))):
        expected = tcnn_lookup(numbers.double().numpy(), points[:, axes].numpy(), levels, log2_table)
        np.testing.assert_allclose(found[:, plane].numpy(), expected, atol=1e-12)


def test_time_is_resampled_at_the_frames():
    numbers = torch.rand(plane_length(2, 13), generator=torch.Generator().manual_seed(0)) - 0.5
    tables = [table.double() for table in vertex_tables(numbers, 2, FEATURES, BASE, 13)]
    times = [0.0, 0.3, 0.75, 1.0]
    field = VertexPlanes(2, FEATURES, BASE, 4, "cat").double()
    with torch.no_grad():
        for level, table in enumerate(tables):
            field.spatial[level].zero_()
            field.temporal[level].copy_(torch.stack([at_times(table, times).transpose(0, 1)] * 3))
    points = some_points(12)
    for frame, time in enumerate(times):
        found = field(points * 2 - 1, frame / 3).detach().reshape(len(points), 6, -1)
        for axis in range(3):
            pair = np.stack([np.full(len(points), time), points[:, axis].numpy()], axis=1)
            expected = tcnn_lookup(numbers.double().numpy(), pair, 2, 13)
            np.testing.assert_allclose(found[:, 3 + axis].numpy(), expected, atol=1e-12)


def test_times_of_a_single_frame_and_of_rows_that_begin_at_zero():
    table = torch.arange(10.0).reshape(1, 5, 2)
    assert torch.equal(at_times(table, [0.0])[0, 0], torch.tensor([1.0, 2.0])), "half way between the first two"
    ends = at_times(table, [0.0, 0.5, 1.0], lattice=False)
    assert torch.equal(ends[0], table[0, [0, 2, 4]])
    assert torch.equal(at_times(table[:, :1], [0.0, 1.0], lattice=False)[0], table[0, [0, 0]])


def test_tables_are_known_by_their_length():
    for levels, log2_table in ((4, 16), (2, 14), (2, 13)):
        assert find_log2_table(plane_length(levels, log2_table), levels, FEATURES, BASE) == log2_table
    assert 6 * plane_length(4, 16) == 7_274_496, "spec 4.2: 7.27 million"
    assert find_log2_table(1000, 2, FEATURES, BASE) is None
    assert level_entries(63, 16) == 63 * 63 + 7, "rounded up to a multiple of 8"
    with pytest.raises(ValueError, match="parameters"):
        vertex_tables(torch.zeros(100), 2, FEATURES, BASE, 13)


def test_the_last_vertex_shares_its_row_and_hashes_wrap_at_32_bits():
    side, entries = 64, 4096
    x, y = torch.tensor([64, 0, 64]), torch.tensor([0, 1, 63])
    assert table_rows(x, y, side, entries).tolist() == [64, 64, 0]
    big = torch.tensor([511])
    expected = (511 ^ (511 * 2654435761 & 0xFFFFFFFF)) % 65536
    assert table_rows(big, big, 512, 65536).tolist() == [expected]


def test_training_reaches_every_vertex_that_was_read():
    field = VertexPlanes(1, 2, 4, 3, "sum", init=0.1)
    points = torch.rand(50, 3) * 2 - 1
    field(points, 0.5).square().sum().backward()
    assert field.resolutions == (5,)
    for table in (*field.spatial, *field.temporal):
        assert table.grad is not None
        assert bool(table.grad.isfinite().all())
        assert table.grad.abs().sum() > 0
