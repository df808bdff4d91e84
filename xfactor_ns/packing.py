"""Pictures to patches and back, and mask groups as separate items (XFactor / spec xfactor 3.3, 13.1).

A mask splits the patches of a sample into two groups that never see each other. Instead of masking attention, each
group becomes an item of its own: half the attention, no mask tensor, the plain fast kernels, and the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def patchify(x: Float[Tensor, "*n H W 3"], patch: int) -> Float[Tensor, "*n T pixels"]:
    """Patches in row-major order; inside one: row, column, channel.

    Args:
        x: pictures; height and width are multiples of ``patch``.
        patch: pixels per side.

    Raises:
        ValueError: they are not.
    """
    height, width = x.shape[-3:-1]
    if height % patch or width % patch or not height or not width:
        raise ValueError(f"pictures of {width} x {height} pixels do not divide into patches of {patch}")
    cut = x.unflatten(-2, (-1, patch)).unflatten(-4, (-1, patch))
    return cut.transpose(-4, -3).flatten(-3).flatten(-3, -2)


def unpatchify(patches: Float[Tensor, "*n T pixels"], rows: int, cols: int) -> Float[Tensor, "*n H W 3"]:
    """Inverse of `patchify`, for a grid of rows x cols patches."""
    side = round((patches.shape[-1] / 3) ** 0.5)
    cut = patches.unflatten(-1, (side, side, 3)).unflatten(-4, (rows, cols))
    return cut.transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)


@dataclass(frozen=True, eq=False)
class Pack:
    """Groups of equal size: item i is the group ``group[i]`` of the sample ``sample[i]``."""

    sample: Int[Tensor, "n"]
    group: Int[Tensor, "n"]
    tokens: Int[Tensor, "n m"]
    """Row-major patch numbers, ascending."""

    def take(self, patches: Float[Tensor, "B V T F"]) -> Float[Tensor, "n V m F"]:
        """What the items hold of a batch, in all views."""
        views = torch.arange(patches.shape[1], device=patches.device)
        return patches[self.sample[:, None, None], views[:, None], self.tokens[:, None]]


def packs(mask: Int[Tensor, "B T"]) -> list[Pack]:
    """The groups of a batch, those of equal size together; empty groups are left out.

    Equal halves (the training masks) make one pack of 2B items of T/2 tokens, unmasked samples one pack of T tokens.

    Args:
        mask: group of each patch, 0 or 1.

    Raises:
        ValueError: another number in the mask.
    """
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("a patch mask holds only 0 and 1")
    total = mask.shape[1]
    order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    by_size: dict[int, list[tuple[int, int, int]]] = {}
    for sample, ones in enumerate(mask.sum(1).tolist()):
        for group, start, count in ((0, 0, total - ones), (1, total - ones, ones)):
            if count:
                by_size.setdefault(count, []).append((sample, group, start))
    found = []
    for count, items in by_size.items():
        sample, group, start = torch.tensor(items, device=mask.device).unbind(1)
        places = start[:, None] + torch.arange(count, device=mask.device)
        found.append(Pack(sample, group, order[sample[:, None], places]))
    return found
