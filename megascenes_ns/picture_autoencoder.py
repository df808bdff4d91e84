"""An autoencoder whose latents are small pictures, made by setting weights instead of training them.

``megascenes-tiny`` has no trained autoencoder, and a random one shows nothing. In diffusers' own class the weights here
average 8x8 pixels per latent cell and spread them again, so that a tiny model's pictures can be looked at and scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from megascenes_ns.sizes import LATENT, VaeSize

GAIN = 30.0
"""Latent per picture value. Latents scaled by 0.18215 then reach further than noise does, which leaves some of the
picture to be seen at all noise levels: trained for two minutes, a network draws nothing from less."""
_LOUD = 100.0
"""Of constant channels in each norm group, far above any picture: they alone decide what the norm divides by."""
_LINEAR = 20.0
"""Where SiLU is the identity to float32's precision."""
_LOG_VARIANCE = -10.0


def is_picture_size(size: VaeSize) -> bool:
    """Whether the weights fit: one width on all levels, 8 channels in each of four norm groups."""
    return set(size.multipliers) == {1} and size.groups == LATENT and size.width == 8 * size.groups


@torch.no_grad()
def set_picture_weights(vae: Any) -> None:
    """Set all weights of an ``AutoencoderKL`` (see `is_picture_size`).

    Latent channels 0 to 2 are red, green and blue in [-1, 1] times `GAIN`, channel 3 their mean. In each norm group,
    channel 0 carries a picture, channels 1 to 6 are constant, channel 7 is zero.
    """
    for name, parameter in vae.named_parameters():
        # Blocks add their result to what they are given, so zeros leave it as it is.
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    width = vae.encoder.conv_in.out_channels
    carriers = torch.arange(0, width, 8)
    constant = torch.zeros(width)
    for place in range(1, 7):
        constant[place::8] = _LOUD if place % 2 else -_LOUD

    encoder, decoder = vae.encoder, vae.decoder
    for channel, carrier in enumerate(carriers):
        encoder.conv_in.weight[carrier, :, 1, 1] = torch.eye(3)[channel] if channel < 3 else torch.full((3,), 1 / 3)
    decoder.conv_in.weight[carriers, torch.arange(LATENT), 1, 1] = 1 / GAIN
    for part in (encoder, decoder):
        part.conv_in.bias.copy_(constant)
        part.conv_norm_out.weight.fill_(_LOUD * 0.75**0.5)  # undoes the division
        part.conv_norm_out.bias.fill_(_LINEAR)
    for block in encoder.down_blocks:
        for sampler in block.downsamplers or []:
            for row in (0, 1):
                for column in (0, 1):
                    _diagonal(sampler.conv, row, column, 0.25)
    for block in decoder.up_blocks:
        for sampler in block.upsamplers or []:
            _diagonal(sampler.conv, 1, 1, 1.0)
    # The norm subtracts the group's mean from all its channels; the difference to the zero channel is free of it.
    for part, outputs, gain in ((encoder, LATENT, GAIN), (decoder, 3, 1.0)):
        rows = torch.arange(outputs)
        part.conv_out.weight[rows, carriers[:outputs], 1, 1] = gain
        part.conv_out.weight[rows, carriers[:outputs] + 7, 1, 1] = -gain
    encoder.conv_out.bias[LATENT:] = _LOG_VARIANCE
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight[:, :, 0, 0] = torch.eye(layer.in_channels)


def _diagonal(layer: nn.Conv2d, row: int, column: int, value: float) -> None:
    """One tap of a convolution, each channel to itself."""
    index = torch.arange(layer.in_channels)
    layer.weight[index, index, row, column] = value
