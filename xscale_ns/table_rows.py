"""Fast access to scattered rows of narrow tables in plain torch, shared by the hash grid and its optimiser."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROW_GRADIENTS = "row_gradients"
"""Attribute an optimiser sets on a table to receive its gradient as a sparse COO tensor of distinct, sorted rows."""


def add_rows(out: Float[Tensor, "T F"], rows: Int[Tensor, "M"], values: Float[Tensor, "M F"]) -> None:
    """``out[rows] += values``, equal rows summed.

    torch's CPU `index_add_` is a tight loop for vectors but dispatches an operation per row for matrices (ten times
    slower). Complex numbers add like pairs, so features go through it two at a time.
    """
    features = out.shape[1]
    if out.device.type != "cpu":
        out.index_add_(0, rows, values)
    elif features % 2 == 0:
        pairs = torch.view_as_complex(out.view(-1, features // 2, 2))
        value_pairs = torch.view_as_complex(values.view(-1, features // 2, 2))
        for k in range(features // 2):
            pairs[:, k].index_add_(0, rows, value_pairs[:, k])
    else:
        for k in range(features):
            out[:, k].index_add_(0, rows, values[:, k])


def _wide(tensor: Float[Tensor, "T F"]) -> Tensor:
    """The same memory, rows of 8 or 16 bytes as single elements: torch copies vectors 2 to 4 times faster than rows."""
    row_bytes = tensor.shape[1] * tensor.element_size()
    kind = {8: torch.float64, 16: torch.complex128}.get(row_bytes)
    if kind is None or not tensor.is_contiguous() or tensor.storage_offset() % tensor.shape[1]:
        return tensor
    return tensor.view(kind)[:, 0]


def gather_rows(tensor: Float[Tensor, "T F"], rows: Int[Tensor, "M"]) -> Float[Tensor, "M F"]:
    """``tensor[rows]``, fast for narrow rows."""
    return _wide(tensor).index_select(0, rows).view(tensor.dtype).view(-1, tensor.shape[1])


def put_rows(tensor: Float[Tensor, "T F"], rows: Int[Tensor, "M"], values: Float[Tensor, "M F"]) -> None:
    """``tensor[rows] = values``, fast for narrow rows; `rows` are distinct."""
    wide = _wide(tensor)
    wide.index_copy_(0, rows, values.contiguous().view(wide.dtype).view(-1, *wide.shape[1:]))


def sum_equal_rows(
    rows: Int[Tensor, "M"], values: Float[Tensor, "M F"]
) -> tuple[Int[Tensor, "U"], Float[Tensor, "U F"]]:
    """Distinct rows in ascending order (int64) and the sums of their values.

    ``torch.sparse``'s coalesce gives the same but sums serially row by row (4 to 10 times slower on CPU).
    """
    ordered, permutation = torch.sort(rows, stable=True)
    distinct, place = torch.unique_consecutive(ordered, return_inverse=True)
    sums = values.new_zeros(len(distinct), values.shape[1])
    add_rows(sums, place, gather_rows(values, permutation))
    return distinct.long(), sums
