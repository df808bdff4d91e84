"""``ns-megascenes import``: weights of the original as a folder of safetensors (spec megascenes 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

LICENCE = (
    "Weights of the Stable Diffusion line carry their own licence (CreativeML OpenRAIL-M), CLIP's are MIT; they are "
    "yours to look up, none comes with this package."
)


@dataclass
class Import:
    """Turn a checkpoint of MegaScenes or ZeroNVS into a folder of weights; every tensor is accounted for."""

    source: tyro.conf.Positional[Path]
    """Folder iter_N of a released model, or its model.safetensors, pytorch_model.bin or .ckpt."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the weights in the files; fp16 is enough for generating."""
    pose_squash: Literal["none", "zeronvs"] = "none"
    """zeronvs: for ZeroNVS's own released weights, whose poses were squashed."""
    heads: int = 8
    """Attention heads of the UNet, which the file does not tell."""

    def main(self) -> int:
        """Read, check every tensor, write; say what was found and what to type next."""
        from megascenes_ns.checkpoint_import import import_checkpoint

        out, sizes, info = import_checkpoint(self.source, self.out, self.dtype, self.heads, self.pose_squash)
        read = ", ".join(f"{count} {kind}" for kind, count in info.accounted.items())
        print(f"{out}: {sizes.variant}, {sizes.unet.in_channels} input channels, UNet width {sizes.unet.width}")
        print(f"{sum(info.accounted.values())} tensors of {info.source}: {read}. Not read: all but the mapped ones.")
        print(LICENCE)
        method = "megascenes-nvs" if sizes.warp_channels else "megascenes-zeronvs"
        print(f"Use: ns-train {method} --data DATA --pipeline.model.weights {out}")
        return 0
