"""Which frame of a window is the reference: the most central one in time (spec xfactor 4.3)."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Generator, Tensor


def proximity_order(frame_ind: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Frames by their larger distance in time to the window's two ends, the most central first; ties keep their order.

    Args:
        frame_ind: frame numbers of the windows, ascending or descending; first and last are the ends.

    Returns:
        Per sample a permutation of 0..n-1. For t = (0, 4, 9, 13, 17, 19): (2, 3, 1, 4, 0, 5).

    Source: XFactor (Mitchel et al. 2026), multi-view training; spec xfactor 4.3.
    """
    first, last = frame_ind[:, :1], frame_ind[:, -1:]
    return torch.maximum((frame_ind - first).abs(), (frame_ind - last).abs()).argsort(dim=1, stable=True)


def proximity_permutation(frame_ind: Int[Tensor, "b n"], generator: Generator) -> Int[Tensor, "b n"]:
    """`proximity_order` with everything behind the reference shuffled: reference, context frames, target.

    Pairs (n = 2) keep their order.

    Args:
        frame_ind: as of `proximity_order`, on the CPU.
        generator: of the CPU.
    """
    order = proximity_order(frame_ind)
    batch, n = order.shape
    shuffle = torch.rand(batch, n - 1, generator=generator).argsort(dim=1)
    return torch.cat([order[:, :1], order[:, 1:].gather(1, shuffle)], dim=1)
