"""Small networks whose every weight is random (fresh ones hardly mix their tokens), pictures, quadrant masks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xfactor_ns.attention import Dense
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size

CHECK = Size(width=64, heads=4, blocks=3, patch=16, pose=16, registers=32)
"""Of the spec's acceptance checks, for pictures of 128 x 128."""
SMALL = Size(width=16, heads=2, blocks=2, patch=4, pose=6, registers=3)


def random_network(size: Size = SMALL, seed: int = 0, precision: str = "fp32") -> XFactorNet:
    """Kernels as at the start, all other weights moved well away from there."""
    net = XFactorNet(size, precision, seed=seed)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(100 + seed)
    kernels = {id(layer.weight) for layer in net.modules() if isinstance(layer, Dense)}
    with torch.no_grad():
        for name, value in net.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("scale_attn", "scale_mlp")):
                value.copy_(0.5 + 0.1 * noise)
            elif id(value) not in kernels:
                value.add_(0.1 * noise)
    return net


def pictures(batch: int, views: int, side: int | tuple[int, int], seed: int = 0) -> Float[Tensor, "B V H W 3"]:
    """Noise in [-1, 1]."""
    height, width = (side, side) if isinstance(side, int) else side
    return 2 * torch.rand(batch, views, height, width, 3, generator=torch.Generator().manual_seed(seed)) - 1


def quadrants(rows: int, cols: int) -> Int[Tensor, "7 T"]:
    """All six ways to give two of four quadrants to group 1, and no mask."""
    number = 2 * (torch.arange(rows) >= rows // 2).long()[:, None] + (torch.arange(cols) >= cols // 2).long()
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)]
    found = [((number == a) | (number == b)).long().flatten() for a, b in pairs]
    return torch.stack([*found, torch.zeros(rows * cols, dtype=torch.long)])


def latents(batch: int, views: int, size: Size, seed: int = 1) -> Float[Tensor, "B V 2 Dp"]:
    """Of both groups, the reference's zero."""
    found = torch.randn(batch, views, 2, size.pose, generator=torch.Generator().manual_seed(seed))
    found[:, 0] = 0
    return found
