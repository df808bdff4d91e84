"""PoseEnc: how the camera moved between frames, as a latent (XFactor, sec. 3 / spec xfactor 3.4)."""

from __future__ import annotations

from typing import Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from xfactor_ns.attention import Blocks, Dense, Mlp, Precision, initialise, layer_norm, precise, rotary_table, unturned
from xfactor_ns.packing import packs, patchify
from xfactor_ns.size import Size


class PoseEnc(nn.Module):
    """Frames to pose latents relative to the first of them, whose own latent is exactly zero.

    Meant for pairs. More views are encoded jointly, which is not the same as pair by pair; the method uses pairs only.
    """

    def __init__(
        self,
        size: Size,
        precision: Precision = "fp32",
        *,
        seed: int = 0,
        checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh weights (spec xfactor 3.6).

        Args:
            size: of the network.
            precision: see `xfactor_ns.attention.Precision`.
            seed: of the weights; torch's global generator is not touched.
            checkpointing: recompute blocks in the backward pass.
            compile: torch.compile each block.
        """
        super().__init__()
        self.size = size
        self.precision: Precision = precision
        self.patch_embed = Dense(size.pixels, size.width)
        self.registers = nn.Parameter(torch.empty(size.registers, size.width))
        self.blocks = Blocks(size, checkpointing, compile)
        self.norm = layer_norm(size.width)
        self.head = Mlp(2 * size.width, 4 * size.width, size.width, size.pose)
        generator = torch.Generator().manual_seed(seed)
        initialise(self, generator)
        if not self.registers.is_meta:
            with torch.no_grad():
                self.registers.copy_(
                    torch.empty(self.registers.shape, device="cpu").normal_(0, 0.02, generator=generator)
                )

    def forward(
        self, x: Float[Tensor, "B V H W 3"], mask: Optional[Int[Tensor, "B T"]] = None
    ) -> Float[Tensor, "B V Dp"] | Float[Tensor, "B V 2 Dp"]:
        """Latents of the views, relative to view 0.

        Args:
            x: frames in [-1, 1]; height and width any multiples of the patch.
            mask: group of each patch (row-major), the same in all views.

        Returns:
            Without a mask, one latent per view. With a mask, two: read from group 0 alone and from group 1 alone. The
            latent of an empty group is zero: its registers see nothing but copies of themselves, equal in all views.

        Raises:
            ValueError: sizes that are no multiples of the patch; a mask with other numbers than 0 and 1.
        """
        patches = patchify(x, self.size.patch)
        patch = self.size.patch
        table = rotary_table(x.shape[-3] // patch, x.shape[-2] // patch, self.size.head, x.device)
        with precise(self.precision, x.device):
            if mask is None:
                return self.latents(self.first_registers(patches, table[None]))
            # Out of place, so that several packs can share one tensor in the graph.
            found = torch.zeros(*x.shape[:2], 2, self.size.pose, device=x.device)
            views = torch.arange(x.shape[1], device=x.device)
            for pack in packs(mask):
                latents = self.latents(self.first_registers(pack.take(patches), table[pack.tokens]))
                found = found.index_put((pack.sample[:, None], views, pack.group[:, None]), latents)
            return found

    def first_registers(
        self, patches: Float[Tensor, "n V m pixels"], table: Float[Tensor, "n m pairs 2"]
    ) -> Float[Tensor, "n V C"]:
        """The token of each view that the pose is read from, after the last block.

        Args:
            patches: of one mask group.
            table: rotary positions of the patches.
        """
        (n, views, m, _), count = patches.shape, self.size.registers
        embedded = self.patch_embed(patches).float()
        z = torch.cat([embedded, self.registers.expand(n, views, count, -1)], 2)
        return self.blocks(z, unturned(table, count), (slice(None), slice(m, m + 1)))[:, :, 0]

    def latents(self, tokens: Float[Tensor, "*n V C"]) -> Float[Tensor, "*n V Dp"]:
        """Head: of each view beside view 0, minus that of view 0 beside itself. In float32.

        Args:
            tokens: first register of each view after the last block.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            z = gelu(self.norm(tokens), approximate="tanh")
            first = z[..., :1, :].expand_as(z)
            # Two calls of one shape: row 0 of both is the same computation, so the difference is exactly zero there.
            return self.head(torch.cat([z, first], -1)) - self.head(torch.cat([first, first], -1))
