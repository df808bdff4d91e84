"""Both networks under one roof: what is trained, stored and imported (spec xfactor 3.8)."""

from __future__ import annotations

from torch import nn

from xfactor_ns.attention import Precision
from xfactor_ns.pose_encoder import PoseEnc
from xfactor_ns.renderer import Render
from xfactor_ns.size import Size


class XFactorNet(nn.Module):
    """``pose_encoder`` and ``renderer``; the names in its state dict are those of safetensors files."""

    def __init__(
        self,
        size: Size,
        precision: Precision = "fp32",
        *,
        seed: int = 0,
        checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh weights of both, from different seeds; arguments as of `PoseEnc`."""
        super().__init__()
        self.size = size
        self.pose_encoder = PoseEnc(size, precision, seed=2 * seed, checkpointing=checkpointing, compile=compile)
        self.renderer = Render(size, precision, seed=2 * seed + 1, checkpointing=checkpointing, compile=compile)
