"""Logits of the source photos without the hidden layer in memory (spec r4dv 4.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 2048}
"""Points at a time, so that a chunk's hidden layer stays in a core's cache."""
LARGEST_CHUNK = 1 << 18


def blend_logits(
    f: Float[Tensor, "n features"],
    g: Float[Tensor, "s n samples"],
    weight: Float[Tensor, "hidden inputs"],
    bias: Float[Tensor, "hidden"],
    last: Float[Tensor, "hidden"],
) -> Float[Tensor, "s n"]:
    """``last . relu(weight [f, g_s] + bias)`` for every point and source, differentiable in everything.

    The point's half of the layer is the same for all sources and computed once. The hidden layer [s, n, hidden] is the
    largest tensor of a training step; it is computed again in the backward pass instead of kept.
    """
    return _BlendLogits.apply(f, g, weight, bias, last)  # pyright: ignore[reportReturnType]


def _chunks(n: int, device: torch.device) -> Iterator[slice]:
    size = CHUNK.get(device.type, LARGEST_CHUNK)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class _BlendLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, g, weight, bias, last):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(f, g, weight, bias, last)
        for_point, for_sample = weight[:, : f.shape[1]].t(), weight[:, f.shape[1] :].t()
        out = f.new_empty(g.shape[:2])
        for part in _chunks(f.shape[0], f.device):
            point = torch.addmm(bias, f[part], for_point)
            for source in range(g.shape[0]):
                out[source, part] = torch.addmm(point, g[source, part], for_sample).relu_() @ last
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        f, g, weight, bias, last = ctx.saved_tensors
        width = f.shape[1]
        for_point, for_sample = weight[:, :width], weight[:, width:]
        of_f, of_g, of_weight, of_bias, of_last = (torch.zeros_like(each) for each in ctx.saved_tensors)
        # Products with few rows are four times faster than their transposes with few columns.
        of_sample = for_sample.t().new_zeros(g.shape[2], weight.shape[0])
        for part in _chunks(f.shape[0], f.device):
            point = torch.addmm(bias, f[part], for_point.t())
            total = torch.zeros_like(point)
            for source in range(g.shape[0]):
                sample, slope = g[source, part], grad[source, part]
                hidden = torch.addmm(point, sample, for_sample.t()).relu_()
                of_last += slope @ hidden
                back = torch.outer(slope, last) * hidden.sign()
                if ctx.needs_input_grad[1]:
                    of_g[source, part] = (for_sample.t() @ back.t()).t()
                of_sample += sample.t() @ back
                total += back
            of_f[part] = total @ for_point
            of_weight[:, :width] += total.t() @ f[part]
            of_bias += total.sum(dim=0)
        of_weight[:, width:] = of_sample.t()
        return of_f, of_g, of_weight, of_bias, of_last
