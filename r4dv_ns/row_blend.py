"""Linear interpolation between rows of a table: the one lookup behind planes and photos, with its gradients."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Places = tuple[tuple[int, ...], ...]
"""Per place that a point is looked up at, the one or two axes of ``fractions`` it interpolates along."""


def interpolate_rows(
    table: Float[Tensor, "m c"],
    rows: Int[Tensor, "r n"],
    fractions: Float[Tensor, "a n"],
    places: Places,
    joined: bool,
) -> Float[Tensor, "n p c"] | Float[Tensor, "n c"]:
    """Look n points up at p places each, every one between two rows of the table (one axis) or four (two axes).

    One axis: ``(1 - s) row_0 + s row_1``. Two axes (s, q): the rows are the corners (q, s) = (0, 0), (0, 1), (1, 0),
    (1, 1). Differentiable in the table and the fractions.

    A table row is contiguous, so that a corner is one read for all channels, and nothing of size [n, r, c] is formed:
    an ``embedding_bag`` reads, another per axis with the derivatives of the weights gives the gradient of the
    fractions, and on a CPU a sparse product writes the gradient of the table (ten times faster than torch's scatter
    there). Rows and fractions come axis first, because arithmetic on short last dimensions is slow on CPUs.

    Args:
        table: float dtype; fractions are cast to it.
        rows: int32 or int64 indices in [0, m), not checked on CUDA; the rows of the first place, of the second, ...
        fractions: shares in [0, 1].
        places: see `Places`; all of them with one axis, or all with two.
        joined: sum over the places of a point, in the same pass.
    """
    return _InterpolateRows.apply(table, rows, fractions.to(table.dtype), places, joined)  # pyright: ignore[reportReturnType]


def corner_weights(fractions: Float[Tensor, "a n"], places: Places) -> Float[Tensor, "r n"]:
    """Weights of the rows of `interpolate_rows`, in the same order."""
    out = []
    for axes in places:
        first = fractions[axes[0]]
        if len(axes) == 1:
            out += [1.0 - first, first]
        else:
            second = fractions[axes[1]]
            both = first * second
            out += [1.0 - first - second + both, first - both, second - both, both]
    return torch.stack(out)


def _slopes(fractions: Tensor, axes: tuple[int, ...], axis: int) -> list[Tensor]:
    """Derivative along ``axis`` of the weights of one place."""
    if len(axes) == 1:
        one = torch.ones_like(fractions[axis])
        return [-one, one]
    other = fractions[axes[1] if axes[0] == axis else axes[0]]
    rest = 1.0 - other
    return [-rest, rest, -other, other] if axes[0] == axis else [-rest, -other, rest, other]


def _bags(stacked: Tensor, bags: int) -> Tensor:
    """[r, n] to what `embedding_bag` reads, one bag per line."""
    # Rows come in pairs; torch transposes [r / 2, 2, n] three times faster than [r, n].
    return stacked.view(-1, 2, stacked.shape[1]).permute(2, 0, 1).contiguous().view(bags, -1)


def _read(table: Tensor, rows: Tensor, weights: Tensor) -> Float[Tensor, "b c"]:
    """Weighted sum of each bag's rows."""
    # Without a table that wants gradients torch keeps no map from rows to bags, which costs more than the sum.
    return F.embedding_bag(rows, table.detach(), per_sample_weights=weights.detach(), mode="sum")


class _InterpolateRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table, rows, fractions, places, joined):  # pyright: ignore
        n, p, channels = rows.shape[1], len(places), table.shape[1]
        ctx.places, ctx.joined = places, joined  # pyright: ignore[reportAttributeAccessIssue]
        if n == 0:
            ctx.save_for_backward(table, rows, fractions, rows, fractions)
            return table.new_zeros((0, channels) if joined else (0, p, channels))
        bags = n if joined else n * p
        bag_rows, weights = _bags(rows, bags), _bags(corner_weights(fractions, places), bags)
        ctx.save_for_backward(table, rows, fractions, bag_rows, weights)
        out = _read(table, bag_rows, weights)
        return out if joined else out.view(n, p, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        table, rows, fractions, bag_rows, weights = ctx.saved_tensors
        for_table = for_fractions = None
        if rows.shape[1] == 0:
            return torch.zeros_like(table), None, torch.zeros_like(fractions), None, None
        if ctx.needs_input_grad[0]:
            for_table = _scatter(table, bag_rows, weights, grad.reshape(bag_rows.shape[0], table.shape[1]))
        if ctx.needs_input_grad[2]:
            for_fractions = torch.zeros_like(fractions)
            _along_axes(for_fractions, table, rows, fractions, grad, ctx.places)
        return for_table, None, for_fractions, None, None


def _along_axes(out: Tensor, table: Tensor, rows: Tensor, fractions: Tensor, grad: Tensor, places: Places) -> None:
    """Add the gradient of the fractions to ``out``; ``grad`` is [n, c], or [n, p, c] for places that are not joined."""
    corners = rows.shape[0] // len(places)
    for axis in range(fractions.shape[0]):
        touched = [k for k, axes in enumerate(places) if axis in axes]
        for group in [touched] if grad.ndim == 2 else [[k] for k in touched]:
            if not group:
                continue
            mine = torch.cat([rows[k * corners : (k + 1) * corners] for k in group])
            weights = torch.stack([slope for k in group for slope in _slopes(fractions, places[k], axis)])
            bags = rows.shape[1]
            slope = _read(table, _bags(mine, bags), _bags(weights, bags))
            out[axis] += _dot(slope, grad if grad.ndim == 2 else grad[:, group[0]])


def _dot(a: Float[Tensor, "n c"], b: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
    """Product summed over the channels."""
    return (a * b).sum(dim=1)


def _scatter(table: Tensor, rows: Tensor, weights: Tensor, grad: Tensor) -> Float[Tensor, "m c"]:
    """``out[rows[b, k]] += weights[b, k] grad[b]``."""
    if table.device.type != "cpu" or table.dtype not in (torch.float32, torch.float64):
        parts = (weights.unsqueeze(-1) * grad.unsqueeze(1)).flatten(0, 1)
        return torch.zeros_like(table).index_add_(0, rows.reshape(-1), parts)
    from scipy.sparse import csc_matrix

    bags, k = rows.shape
    index = rows.reshape(-1).numpy()
    starts = np.arange(bags + 1, dtype=index.dtype) * k
    spread = csc_matrix((weights.reshape(-1).numpy(), index, starts), shape=(table.shape[0], bags), copy=False)
    return torch.from_numpy(spread @ grad.contiguous().numpy())
