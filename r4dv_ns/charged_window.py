"""Which points of a charge a camera has in view, and which part of its picture they can reach.

A subject fills a part of most pictures: everything that is done per pixel is done there alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from r4dv_ns.drawing import Drawing
from r4dv_ns.peel_fragments import MIN_ALPHA

NEAR = 1e-4
"""Smallest depth that is drawn, world units."""


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, in pixels, not empty."""

    x: int
    y: int
    width: int
    height: int

    def of(self, drawing: Drawing) -> Drawing:
        """The camera of this part of a picture."""
        K = drawing.K.clone()
        K[0, 2] -= self.x
        K[1, 2] -= self.y
        return replace(drawing, K=K, width=self.width, height=self.height)

    def paste(self, part: Float[Tensor, "h w c"], around: Float[Tensor, "height width c"]) -> Float[Tensor, "..."]:
        """A whole picture: this part of it, in a copy of what is around."""
        if part.shape == around.shape:
            return part
        whole = around.clone(memory_format=torch.contiguous_format)
        whole[self.y : self.y + self.height, self.x : self.x + self.width] = part
        return whole


def in_view(
    placed: Float[Tensor, "3 n"], radius: Float[Tensor, "n"], alpha: Float[Tensor, "n"], drawing: Drawing, least: float
) -> tuple[Int64[Tensor, "m"], Window]:
    """Points whose discs touch the picture, or nearly so, and a window with all their pixels.

    What is left out cannot show (`r4dv_ns.peel_fragments.visible_discs`).

    Args:
        placed: points, OpenCV camera frame.
        radius: world units.
        alpha: opacities.
        drawing: the camera.
        least: radius of the smallest disc, pixels.
    """
    x, y, z = placed
    K, width, height = drawing.K, drawing.width, drawing.height
    inverse = z.clamp_min(NEAR).reciprocal_()
    # One pixel more than the disc: rounding must not lose any.
    reach = (radius * K[1, 1]).mul_(inverse).clamp_min_(least).add_(1.0)
    u, v = (x * K[0, 0]).mul_(inverse).add_(K[0, 2]), (y * K[1, 1]).mul_(inverse).add_(K[1, 2])
    left, right, top, bottom = u - reach, u.add_(reach), v - reach, v.add_(reach)
    keep = (z > NEAR) & (alpha >= MIN_ALPHA) & (right > 0) & (left < width) & (bottom > 0) & (top < height)
    kept = keep.nonzero().squeeze(1)
    if not len(kept):
        return kept, Window(0, 0, 1, 1)
    ends = [part.index_select(0, kept) for part in (left, top, right, bottom)]
    low = torch.stack([ends[0].min(), ends[1].min()]).floor_().clamp_min_(0)
    high = torch.stack([ends[2].max(), ends[3].max()]).ceil_()
    (x0, y0), (x1, y1) = low.long().tolist(), high.long().tolist()
    x1, y1 = min(x1, width), min(y1, height)
    return kept, Window(x0, y0, x1 - x0, y1 - y0)
