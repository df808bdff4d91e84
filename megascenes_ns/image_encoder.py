"""The frozen CLIP image tower, as transformers' class (spec megascenes 4.2).

Not ``CLIPImageProcessor``: the original resizes with another bicubic filter, and shows the white padded square as it
is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from core_ns.errors import need
from megascenes_ns.autoencoder import network_range
from megascenes_ns.sizes import ClipSize
from megascenes_ns.unet import INSTALL

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of CLIP's training pictures, in [0, 1]."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures."""


def clip_config(size: ClipSize, embed: int) -> dict[str, Any]:
    """Arguments of ``CLIPVisionConfig``.

    Args:
        size: of the tower.
        embed: width of its embedding.
    """
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "patch_size": size.patch,
        "image_size": size.image,
        "projection_dim": embed,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "num_channels": 3,
    }


def clip_size(config: dict[str, Any]) -> tuple[ClipSize, int]:
    """Size and embedding width that a ``config.json`` of transformers describes; the inverse of `clip_config`.

    Raises:
        KeyError: the file describes something else.
    """
    return ClipSize(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["patch_size"],
        config["image_size"],
    ), config["projection_dim"]


def build_image_encoder(size: ClipSize, embed: int) -> CLIPVisionModelWithProjection:
    """The image tower with transformers' random weights, from torch's global generator.

    Raises:
        MissingExtra: transformers is not installed.
    """
    need("transformers", "The MegaScenes networks", INSTALL)
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**clip_config(size, embed)))


def clip_pixels(pictures: Shaped[Tensor, "b h w 3"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Pictures as CLIP sees them (spec 4.2): bicubic, corners aligned, no antialiasing, CLIP's mean and deviation.

    Args:
        pictures: uint8, or float in [0, 1]; square.
        side: pixels per side.
    """
    values = network_range(pictures)
    values = functional.interpolate(values.float(), (side, side), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(three, device=values.device).reshape(3, 1, 1) for three in (MEAN, STD))
    return ((values + 1) / 2 - mean) / std


@torch.no_grad()
def embed_pictures(encoder: CLIPVisionModelWithProjection, pictures: Shaped[Tensor, "b h w 3"]) -> Float[Tensor, "b e"]:
    """Image embeddings, not normalised (spec 4.2).

    Args:
        encoder: of `build_image_encoder`.
        pictures: uint8, or float in [0, 1]; square, on the encoder's device.
    """
    config: Any = encoder.config
    pixels = clip_pixels(pictures, config.image_size)
    return encoder(pixel_values=pixels.to(encoder.dtype)).image_embeds.float()
