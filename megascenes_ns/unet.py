"""The denoiser: Stable Diffusion 1's UNet with more input channels, as diffusers' class (spec megascenes 4.1, 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from core_ns.errors import need
from megascenes_ns.sizes import LATENT, UNetSize

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

INSTALL = 'pip install "nvs-zoo[megascenes]"'
"""What brings diffusers and transformers."""


def unet_config(size: UNetSize) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel``, which calls the number of heads ``attention_head_dim``."""
    lower = len(size.multipliers) - 1
    return {
        "sample_size": 32,
        "in_channels": size.in_channels,
        "out_channels": LATENT,
        "block_out_channels": tuple(size.width * each for each in size.multipliers),
        "layers_per_block": size.blocks,
        "down_block_types": ("CrossAttnDownBlock2D",) * lower + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * lower,
        "cross_attention_dim": size.context,
        "attention_head_dim": size.heads,
        "use_linear_projection": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
    }


def unet_size(config: dict[str, Any]) -> UNetSize:
    """The size that a ``config.json`` of diffusers describes; the inverse of `unet_config`.

    Raises:
        KeyError, TypeError, ZeroDivisionError: the file describes something else.
    """
    widths = config["block_out_channels"]
    return UNetSize(
        config["in_channels"],
        widths[0],
        tuple(width // widths[0] for width in widths),
        config["layers_per_block"],
        config["attention_head_dim"],
        config["cross_attention_dim"],
    )


def build_unet(size: UNetSize) -> UNet2DConditionModel:
    """The UNet with diffusers' random weights, from torch's global generator.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    need("diffusers", "The MegaScenes networks", INSTALL)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**unet_config(size))


def widen_input(weight: Float[Tensor, "o i k k"], in_channels: int) -> Float[Tensor, "o j k k"]:
    """First convolution for more input channels: the new ones start at zero, so that they change nothing (spec 4.3).

    Args:
        weight: of ``conv_in``.
        in_channels: wanted.

    Raises:
        ValueError: there are more channels already.
    """
    missing = in_channels - weight.shape[1]
    if missing < 0:
        raise ValueError(f"{weight.shape[1]} input channels, {in_channels} are wanted")
    return torch.cat([weight, weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])], 1)
