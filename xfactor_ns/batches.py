"""What a training step sees: frames of several clips, as stored, with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Frames of B clips, n of each (spec xfactor 2.2). Networks see ``frames / 127.5 - 1``."""

    frames: UInt8[Tensor, "b n h w 3"]
    """Display sRGB, square pictures."""
    frame_ind: Int64[Tensor, "b n"]
    """Number of each frame counted from the sample's first; negative in reversed samples."""
    ids: tuple[str, ...]
    """Clip of each sample."""
    update: int
    """Optimiser update that this batch belongs to: every schedule counts these."""
    micro: int
    """Which of the update's micro steps this is, from 0."""

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.frames.device

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same batch on another device; itself where it is there already."""
        if self.frames.device == torch.device(device):
            return self
        return replace(self, frames=self.frames.to(device), frame_ind=self.frame_ind.to(device))

    def __len__(self) -> int:
        return self.frames.shape[0]
