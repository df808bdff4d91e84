"""The networks as the original runs them: all tokens in one sequence, mask groups kept apart by an attention mask.

Slow and literal (spec xfactor 3.1, 3.4, 3.5): what `PoseEnc` and `Render` are tested and measured against. Both copies
of the registers are in every sequence, the pose is joined to every token, and every block computes every token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import gelu

from xfactor_ns.attention import EVERYTHING, Allowed, precise, rotary_table, unturned
from xfactor_ns.packing import patchify, unpatchify
from xfactor_ns.pose_encoder import PoseEnc
from xfactor_ns.renderer import Render


def same_group(groups: Int[Tensor, "B N"], views: int) -> Allowed:
    """Tokens see one another where their groups agree; the groups are those of every view."""
    each = groups[:, None, :, None] == groups[:, None, None, :]
    return each.repeat(1, 1, views, views), each.repeat_interleave(views, 0)


def masked_latents(
    encoder: PoseEnc, x: Float[Tensor, "B V H W 3"], mask: Int[Tensor, "B T"], trim: bool = False
) -> Float[Tensor, "B V 2 Dp"]:
    """`PoseEnc.forward` with a mask.

    Args:
        encoder: whose weights and precision to use.
        x, mask: as there.
        trim: leave out of the last block what nobody looks at, as `PoseEnc` does (to measure the mask alone).
    """
    size, views = encoder.size, x.shape[1]
    table = rotary_table(x.shape[-3] // size.patch, x.shape[-2] // size.patch, size.head, x.device)[None]
    with precise(encoder.precision, x.device):
        tokens = encoder.patch_embed(patchify(x, size.patch)).float()
        (batch, _, patches, _), count = tokens.shape, size.registers
        registers = encoder.registers.expand(batch, views, count, -1)
        of_registers = torch.arange(2, device=x.device).repeat_interleave(count).expand(batch, -1)
        allowed = same_group(torch.cat([mask, of_registers], 1), views)
        carriers = slice(patches, patches + count + 1, count)
        z = encoder.blocks(
            torch.cat([tokens, registers, registers], 2),
            unturned(table, 2 * count),
            (slice(None), carriers) if trim else EVERYTHING,
            allowed,
        )
        first, second = (z if trim else z[:, :, carriers]).unbind(2)
        return torch.stack([encoder.latents(first), encoder.latents(second)], 2)


def masked_frame(
    renderer: Render,
    x: Float[Tensor, "B V-1 H W 3"],
    poses: Float[Tensor, "B V 2 Dp"],
    mask: Int[Tensor, "B T"],
    trim: bool = False,
) -> Float[Tensor, "B H W 3"]:
    """`Render.forward` with a mask; arguments as there and in `masked_latents`."""
    size, views = renderer.size, poses.shape[1]
    rows, cols = x.shape[-3] // size.patch, x.shape[-2] // size.patch
    table = rotary_table(rows, cols, size.head, x.device)[None]
    chosen = mask[:, None, :, None].bool()
    of_tokens = torch.where(chosen, poses[:, :, 1, None], poses[:, :, 0, None])
    with precise(renderer.precision, x.device):
        context = renderer.embed_context(torch.cat([patchify(x, size.patch), of_tokens[:, :-1]], -1))
        target = renderer.embed_target(of_tokens[:, -1:])
        z = torch.cat([context, target], 1).float()
        z = renderer.blocks(z, table, (slice(-1, None), slice(None)) if trim else EVERYTHING, same_group(mask, views))[
            :, -1
        ]
        pixels = renderer.head(gelu(renderer.norm(z), approximate="tanh")).float()
    return unpatchify(2 * (torch.sigmoid(pixels) - 0.5), rows, cols)
