"""Mean of a trilinear field along a chord of a voxel, in closed form (spec diver 3.2).

Along a straight chord the trilinear weight of a corner is a cubic polynomial of the arc length. Gauss-Legendre
quadrature with two points integrates cubics exactly, so the mean weight is the average of the trilinear weights at two
points of the chord: not negative, adding up to 1, without the cancellation of the expanded polynomial. The mean
feature is that weighted sum of the eight corners' features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import csc_array
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

GAUSS_POINTS = (0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3))
"""Where on the chord, 0 at its entry and 1 at its exit."""


def chord_weights(u_in: Float[Tensor, "s 3"], u_out: Float[Tensor, "s 3"]) -> Float[Tensor, "s 8"]:
    """Mean trilinear weights of a voxel's corners along the chord from `u_in` to `u_out` (spec diver 3.2).

    Args:
        u_in, u_out: ends of the chord in the voxel's own coordinates, [0, 1]^3, order x, y, z; they may coincide.

    Returns:
        Corner c lies at ``(c & 1, (c >> 1) & 1, (c >> 2) & 1)``. Each row adds up to 1. Differentiable in both ends.
    """
    total: list[Tensor] = []
    for s in GAUSS_POINTS:
        x, y, z = torch.lerp(u_in, u_out, s).unbind(1)
        x_pair = (1 - x, x)
        z_half = z * 0.5
        z_pair = (0.5 - z_half, z_half)
        yz = [b * a for a in z_pair for b in (1 - y, y)]
        corners = [b * a for a in yz for b in x_pair]
        total = [a + b for a, b in zip(total, corners, strict=True)] if total else corners
    return torch.stack(total, dim=1)


def corner_ids(voxel: Int64[Tensor, "s 3"], resolution: int) -> Int64[Tensor, "s 8"]:
    """Vertex ids ``z (N+1)^2 + y (N+1) + x`` of the corners of voxels (x, y, z), in the order of `chord_weights`."""
    n = resolution + 1
    offsets = torch.tensor([x + n * y + n * n * z for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    x, y, z = voxel.unbind(1)
    return (x + n * y + n * n * z)[:, None] + offsets.to(voxel.device)


def integrate(
    table: Float[Tensor, "v c"], rows: Int64[Tensor, "s 8"], weights: Float[Tensor, "s 8"]
) -> Float[Tensor, "s c"]:
    """``sum_k weights[s, k] * table[rows[s, k]]``: the mean feature of each chord (spec diver 3.2).

    The gathered features, eight times the result, are never stored. Differentiable once, in table and weights; the
    table's gradient is dense.

    Args:
        table: features of the stored vertices.
        rows: row of each corner, all in [0, V).
        weights: of each corner; dtype of the table.
    """
    result = _Blend.apply(table, rows, weights)
    assert isinstance(result, Tensor)
    return result


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        if not len(rows):
            return table.new_zeros(0, table.shape[1])
        return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        grad_table = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_table = _add_to_rows(table, rows, weights, grad)
        if ctx.needs_input_grad[2]:
            corners = [(table.index_select(0, rows[:, k]) * grad).sum(1) for k in range(rows.shape[1])]
            grad_weights = torch.stack(corners, dim=1)
        return grad_table, None, grad_weights


def _add_to_rows(
    table: Float[Tensor, "v c"], rows: Int64[Tensor, "s 8"], weights: Float[Tensor, "s 8"], grad: Float[Tensor, "s c"]
) -> Float[Tensor, "v c"]:
    """Zeros like `table` with ``weights[s, k] * grad[s]`` added to row ``rows[s, k]``.

    On a CPU this is a sparse matrix times a dense one, column by column: scipy walks it in one pass without sorting or
    storing products (benchmarks/voxel_walk.py compares it with torch's ways).
    """
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        ends = np.arange(0, rows.numel() + 1, rows.shape[1])
        spread = csc_array(
            (weights.contiguous().view(-1).numpy(), rows.contiguous().view(-1).numpy(), ends),
            shape=(len(table), len(rows)),
        )
        return torch.from_numpy(spread @ grad.numpy())
    out = torch.zeros_like(table)
    for k in range(rows.shape[1]):
        out.index_add_(0, rows[:, k], grad * weights[:, k : k + 1])
    return out
