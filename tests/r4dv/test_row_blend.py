"""Interpolation between rows against indexing; gradients against autograd through indexing, finite differences."""

from __future__ import annotations

import pytest
import torch

from r4dv_ns.row_blend import corner_weights, interpolate_rows

LINES, PLANES, PHOTO, MOMENTS = ((0,), (1,), (2,)), ((0, 1), (0, 2), (1, 2)), ((0, 1),), ((0, 3), (1, 3), (2, 3))


def obvious(table, rows, fractions, places, joined):
    """Corner by corner."""
    found, corners = [], rows.shape[0] // len(places)
    for place, axes in enumerate(places):
        out = torch.zeros(rows.shape[1], table.shape[1], dtype=table.dtype)
        for corner in range(corners):
            weight = torch.ones_like(fractions[0])
            for bit, axis in enumerate(axes):
                weight = weight * (fractions[axis] if corner >> bit & 1 else 1 - fractions[axis])
            out = out + weight[:, None] * table[rows[place * corners + corner].long()]
        found.append(out)
    return torch.stack(found, dim=1).sum(dim=1) if joined else torch.stack(found, dim=1)


def problem(n=50, places=PLANES, m=37, c=8, dtype=torch.float64, index=torch.int32):
    generator = torch.Generator().manual_seed(n + m + c)
    table = torch.randn(m, c, dtype=dtype, generator=generator, requires_grad=True)
    rows = torch.randint(0, m, (len(places) * 2 ** len(places[0]), n), generator=generator, dtype=index)
    axes = 1 + max(axis for place in places for axis in place)
    fractions = torch.rand(axes, n, dtype=dtype, generator=generator, requires_grad=True)
    return table, rows, fractions


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("n", "places", "m", "c"),
    [(50, PLANES, 37, 8), (1, ((0,),), 1, 1), (9, PHOTO, 5, 11), (3000, LINES, 20, 8), (70, MOMENTS, 90, 3)],
)
def test_values_and_gradients_equal_indexing(n, places, m, c, index, joined):
    table, rows, fractions = problem(n, places, m, c, index=index)
    out, twin = (each(table, rows, fractions, places, joined) for each in (interpolate_rows, obvious))
    torch.testing.assert_close(out, twin)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(each, (table, fractions), upstream) for each in (out, twin))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("joined", [False, True])
def test_single_precision_large(joined):
    table, rows, fractions = problem(20000, m=3000, dtype=torch.float32)
    wide = [tensor.detach().double().requires_grad_() for tensor in (table, fractions)]
    ours = interpolate_rows(table, rows, fractions, PLANES, joined).square().sum()
    theirs = obvious(wide[0], rows, wide[1], PLANES, joined).square().sum()
    found = torch.autograd.grad(ours, (table, fractions))
    expected = torch.autograd.grad(theirs, wide)
    torch.testing.assert_close([each.double() for each in found], list(expected), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("places", [LINES, PLANES, MOMENTS])
def test_gradcheck_also_for_inputs_that_need_no_gradient(places, joined):
    table, rows, fractions = problem(7, places, 5, 2)
    assert torch.autograd.gradcheck(lambda t, s: interpolate_rows(t, rows, s, places, joined), (table, fractions))
    assert torch.autograd.gradcheck(lambda t: interpolate_rows(t, rows, fractions.detach(), places, joined), (table,))
    assert torch.autograd.gradcheck(lambda s: interpolate_rows(table.detach(), rows, s, places, joined), (fractions,))


@pytest.mark.parametrize("joined", [False, True])
def test_no_points_and_upstream_gradients_that_are_not_contiguous(joined):
    table, rows, fractions = problem(0)
    out = interpolate_rows(table, rows, fractions, PLANES, joined)
    assert out.shape == ((0, 8) if joined else (0, 3, 8))
    out.sum().backward()
    assert table.grad is not None
    assert not table.grad.any()
    table, rows, fractions = problem(6)
    out = interpolate_rows(table, rows, fractions, PLANES, joined)
    out[..., :1].expand(out.shape).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].any()
    assert not table.grad[:, 1:].any()


def test_weights_sum_to_one():
    for places, corners in ((LINES, 2), (PLANES, 4)):
        weights = corner_weights(torch.rand(3, 20, dtype=torch.float64), places).reshape(3, corners, 20)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, 20, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tables(dtype):
    table, rows, fractions = problem(dtype=torch.float32)
    half = table.detach().to(dtype).requires_grad_()
    out = interpolate_rows(half, rows, fractions, PLANES, True)
    assert out.dtype == dtype
    out.sum().backward()
    expected = torch.autograd.grad(interpolate_rows(table, rows, fractions, PLANES, True).sum(), table)[0]
    assert half.grad is not None
    torch.testing.assert_close(half.grad.float(), expected, atol=0.2, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("joined", [False, True])
def test_cuda_equals_cpu(joined):
    table, rows, fractions = problem(5000, m=300, dtype=torch.float32)
    there = [tensor.detach().cuda().requires_grad_() for tensor in (table, fractions)]
    ours = interpolate_rows(there[0], rows.cuda(), there[1], PLANES, joined)
    theirs = interpolate_rows(table, rows, fractions, PLANES, joined)
    found = torch.autograd.grad(ours.square().sum(), there)
    expected = torch.autograd.grad(theirs.square().sum(), (table, fractions))
    torch.testing.assert_close([each.cpu() for each in found], list(expected), atol=1e-3, rtol=1e-3)
