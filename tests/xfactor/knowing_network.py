"""A network that knows the answer, for clips whose cameras can be read off the pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gallery_worlds import TINY, shown
from torch import nn


class Knowing(nn.Module):
    """A latent is the shift between the windows that two frames of `moving` show; rendering shifts the context.

    Args:
        blind: the renderer gives its context back instead.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.size = replace(TINY, pose=1)
        self.blind = blind
        self.pose_encoder = _Shift(self)
        self.renderer = _Draw(self)


def place(frames: torch.Tensor) -> torch.Tensor:
    """Which window a frame [.. H W 3] shows: red grows by one grey level per column."""
    return ((frames[..., :, :, 0] + 1) * 127.5 - torch.arange(frames.shape[-2])).mean(dim=(-1, -2))


class _Shift(nn.Module):
    def __init__(self, owner: Knowing) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        where = place(x)
        shift = (where - where[:, :1])[..., None]
        return shift if mask is None else torch.stack([shift, shift], dim=2)


class _Draw(nn.Module):
    def __init__(self, owner: Knowing) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.blind = owner.blind

    def forward(self, x: torch.Tensor, poses: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        shift = poses[:, -1] if poses.ndim == 3 else poses[:, -1, 0]
        if self.blind:
            return x[:, 0]
        moved = x[:, 0].clone()
        moved[..., 0] += shift[:, :, None] * 2 / 255
        return moved


def moving(name: str, green: int, frames: int = 8, split: str = "test") -> Any:
    """Windows of a ramp of red, shifted by three columns a frame, on a green that is the scene's."""
    ramp = 20 + np.arange(32)[None, None, :] + 3 * np.arange(frames)[:, None, None]
    pixels = np.zeros((frames, 32, 32, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp, green
    return replace(shown(name, frames, split=split, step=2), read=lambda: pixels)
