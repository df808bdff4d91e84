"""Render: a frame from context frames and pose latents (XFactor, sec. 3 / spec xfactor 3.5)."""

from __future__ import annotations

from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from xfactor_ns.attention import Blocks, Mlp, Precision, initialise, layer_norm, precise, rotary_table
from xfactor_ns.packing import packs, patchify, unpatchify
from xfactor_ns.size import Size


class Render(nn.Module):
    """Context frames with their latents, and the latent of the frame to make. Any number of context frames."""

    def __init__(
        self,
        size: Size,
        precision: Precision = "fp32",
        *,
        seed: int = 1,
        checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh weights; arguments as of `xfactor_ns.pose_encoder.PoseEnc`."""
        super().__init__()
        self.size = size
        self.precision: Precision = precision
        width = size.width
        self.embed_context = Mlp(size.pixels + size.pose, 4 * width, width)
        self.embed_target = Mlp(size.pose, 4 * width, width)
        self.blocks = Blocks(size, checkpointing, compile)
        self.norm = layer_norm(width)
        self.head = Mlp(width, 4 * width, width, size.pixels)
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(
        self,
        x: Float[Tensor, "B V-1 H W 3"],
        poses: Float[Tensor, "B V Dp"] | Float[Tensor, "B V 2 Dp"],
        mask: Optional[Int[Tensor, "B T"]] = None,
    ) -> Float[Tensor, "B H W 3"]:
        """The frame at the last pose.

        Args:
            x: context frames in [-1, 1]; height and width any multiples of the patch.
            poses: latents of the context frames, then of the frame to make. Four-dimensional: patches of mask group 0
                (all, without a mask) use ``[:, :, 0]``, those of group 1 ``[:, :, 1]``.
            mask: group of each patch (row-major), in all views; the groups do not see each other.

        Returns:
            In (-1, 1).

        Raises:
            ValueError: not one more latent than context frames; see also `packing.patchify` and `packing.packs`.
        """
        if poses.shape[1] != x.shape[1] + 1:
            raise ValueError(f"{x.shape[1]} context frames need {x.shape[1] + 1} latents, not {poses.shape[1]}")
        patches, patch = patchify(x, self.size.patch), self.size.patch
        rows, cols = x.shape[-3] // patch, x.shape[-2] // patch
        table = rotary_table(rows, cols, self.size.head, x.device)
        with precise(self.precision, x.device):
            if mask is None:
                pixels = self._target(patches, poses if poses.ndim == 3 else poses[:, :, 0], table[None])
            else:
                pixels = torch.zeros(len(x), *patches.shape[2:], device=x.device)
                for pack in packs(mask):
                    of_items = poses[pack.sample]
                    if poses.ndim == 4:
                        of_items = of_items[torch.arange(len(of_items), device=x.device), :, pack.group]
                    made = self._target(pack.take(patches), of_items, table[pack.tokens])
                    pixels = pixels.index_put((pack.sample[:, None], pack.tokens), made)
        return unpatchify(torch.tanh(pixels / 2), rows, cols)

    def _target(
        self,
        patches: Float[Tensor, "n V-1 m pixels"],
        poses: Float[Tensor, "n V Dp"],
        table: Float[Tensor, "n m pairs 2"],
    ) -> Float[Tensor, "n m pixels"]:
        """Pixels of the last view before the squashing. All tokens of an item and view have the same pose."""
        # The first layer on [patch | pose]: its two halves apart, the pose's once per view instead of once per token.
        kernel, bias = self.embed_context.fc0.weight, self.embed_context.fc0.bias
        hidden = linear(patches, kernel[:, : self.size.pixels], bias)
        hidden = hidden + linear(poses[:, :-1], kernel[:, self.size.pixels :])[:, :, None]
        context = self.embed_context.after_first(hidden)
        target = self.embed_target(poses[:, -1])[:, None, None].expand(-1, 1, context.shape[2], -1)
        z = self.blocks(torch.cat([context, target], 1).float(), table, (slice(-1, None), slice(None)))[:, 0]
        return self.head(gelu(self.norm(z), approximate="tanh")).float()
