"""The frozen autoencoder between pictures and latents, as diffusers' class (spec megascenes 4.1, 4.2).

The scaling trap: the target's latent is a posterior sample times 0.18215, the reference's latent is the posterior mode
as it is. The two have functions of their own here, and nothing else scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from core_ns.errors import need
from megascenes_ns.sizes import LATENT, SCALE, VaeSize
from megascenes_ns.unet import INSTALL

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def vae_config(size: VaeSize) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``."""
    levels = len(size.multipliers)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": tuple(size.width * each for each in size.multipliers),
        "layers_per_block": size.blocks,
        "latent_channels": LATENT,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": size.groups,
        "sample_size": 256,
        "scaling_factor": SCALE,
    }


def vae_size(config: dict[str, Any]) -> VaeSize:
    """The size that a ``config.json`` of diffusers describes; the inverse of `vae_config`.

    Raises:
        KeyError, TypeError, ZeroDivisionError: the file describes something else.
    """
    widths = config["block_out_channels"]
    multipliers = tuple(width // widths[0] for width in widths)
    return VaeSize(widths[0], multipliers, config["layers_per_block"], config["norm_num_groups"])


def build_vae(size: VaeSize) -> AutoencoderKL:
    """The autoencoder with diffusers' random weights, from torch's global generator.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    need("diffusers", "The MegaScenes networks", INSTALL)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**vae_config(size))


def network_range(pictures: Shaped[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as the networks see them: channels first, in [-1, 1].

    Args:
        pictures: uint8, or float in [0, 1].
    """
    values = pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures * 2 - 1
    return values.movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class Moments:
    """What the autoencoder says about pictures, unscaled: a normal distribution per latent number."""

    mean: Float[Tensor, "b 4 h w"]
    """Also the mode: a reference's latent, as it is (spec 4.1)."""
    std: Float[Tensor, "b 4 h w"]
    """Standard deviation."""

    def target(self, noise: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 4 h w"]:
        """A target's latent: 0.18215 times a sample, drawn with the given standard normal noise (spec 4.1)."""
        return SCALE * (self.mean + self.std * noise)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Shaped[Tensor, "b h w 3"]) -> Moments:
    """Moments of pictures whose sides the latents' cells divide.

    Args:
        vae: of `build_vae`.
        pictures: uint8, or float in [0, 1]; on the autoencoder's device.
    """
    found = vae.encode(network_range(pictures).to(vae.dtype)).latent_dist  # pyright: ignore
    return Moments(found.mean.float(), found.std.float())


@torch.no_grad()
def decode_raw(vae: AutoencoderKL, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 H W"]:
    """Pictures of scaled latents, about [-1, 1], not clamped (the original's ``decode_first_stage``)."""
    return vae.decode((latents / SCALE).to(vae.dtype)).sample.float()  # pyright: ignore


def decode(vae: AutoencoderKL, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b H W 3"]:
    """Pictures in [0, 1] of scaled latents, as a sampler leaves them."""
    return (decode_raw(vae, latents).movedim(1, -1) / 2 + 0.5).clamp(0, 1)
