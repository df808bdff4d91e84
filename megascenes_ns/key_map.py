"""What the original calls each of our weights (spec megascenes 5), and what else its checkpoints hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Optional

import torch
from jaxtyping import Float
from torch import Tensor

from megascenes_ns.networks import Networks
from megascenes_ns.noise_schedule import schedule_buffers
from megascenes_ns.sizes import Sizes

UNET, VAE, CLIP, EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model.", "model_ema."
"""Beginnings of the original's names."""
_TEXT = re.compile(
    re.escape(CLIP)
    + r"(?:token_embedding\.weight|positional_embedding|text_projection|logit_scale|ln_final\.(?:weight|bias)"
    r"|transformer\.resblocks\.\d+\..+)"
)
"""Of CLIP's text tower, which nothing uses."""
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a weight of ours comes from."""

    name: str
    """In the original's state dict."""
    third: Optional[int] = None
    """Which third of its rows, where the original keeps query, key and value in one matrix."""
    transposed: bool = False
    """It is stored the other way round."""
    convolution: bool = False
    """It is stored as a convolution of one pixel, ours is a matrix."""

    def take(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Our weight out of the original's.

        Raises:
            ValueError: the stored one has another number of axes, or rows that 3 does not divide.
        """
        if self.third is not None:
            if len(stored) % 3:
                raise ValueError("rows that are no three matrices")
            stored = stored.chunk(3)[self.third]
        if self.convolution:
            if stored.ndim == 4 and stored.shape[2:] != (1, 1):
                raise ValueError("a convolution of more than one pixel")
            stored = stored.reshape(stored.shape[:2])
        return stored.T if self.transposed else stored


def key_map(sizes: Sizes) -> dict[str, Origin]:
    """Origin of every weight of `Networks`, by our names."""
    return {name: _origin(name, sizes) for name in expected_shapes(sizes)}


@cache
def expected_shapes(sizes: Sizes) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every weight of `Networks`; read only."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Networks(sizes).state_dict().items()}
    return MappingProxyType(shapes)


def unread_kind(name: str, mapped: Collection[str]) -> Optional[str]:
    """Why a tensor of a checkpoint is not read: ``ema`` (never updated, spec 4.5), ``text`` (CLIP's other tower) or
    ``schedule`` (the noise schedule's tables); None: there is no reason.

    Args:
        name: the original's.
        mapped: the original's names of all weights that are read.
    """
    if name in schedule_buffers():
        return "schedule"
    if _TEXT.fullmatch(name):
        return "text"
    if name.startswith(EMA):
        trained = {each.removeprefix("model.").replace(".", "") for each in mapped if each.startswith(UNET)}
        return "ema" if name.removeprefix(EMA) in {*trained, "decay", "num_updates"} else None
    return None


def _origin(name: str, sizes: Sizes) -> Origin:
    part, _, inner = name.partition(".")
    if part == "cc_projection":
        return Origin(name)
    if part == "unet":
        return Origin(UNET + unet_name(inner, sizes.unet.blocks))
    if part == "vae":
        original = vae_name(inner, len(sizes.vae.multipliers))
        matrix = re.search(r"mid_block\.attentions\.0\.to_\w+(\.0)?\.weight$", inner) is not None
        return Origin(VAE + original, convolution=matrix)
    return _clip_origin(inner)


def unet_name(name: str, blocks: int) -> str:
    """The original's name of a weight of diffusers' UNet.

    Args:
        name: without a prefix.
        blocks: residual blocks per level.
    """
    row = blocks + 1
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"time_embedding\.linear_([12])\.(.+)", lambda m: f"time_embed.{2 * (int(m[1]) - 1)}.{m[2]}"),
        (r"conv_in\.(.+)", lambda m: f"input_blocks.0.0.{m[1]}"),
        (r"conv_norm_out\.(.+)", lambda m: f"out.0.{m[1]}"),
        (r"conv_out\.(.+)", lambda m: f"out.2.{m[1]}"),
        (
            r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda m: f"input_blocks.{1 + int(m[1]) * row + int(m[2])}.0.{_renamed(m[3], _RESNET)}",
        ),
        (
            r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)",
            lambda m: f"input_blocks.{1 + int(m[1]) * row + int(m[2])}.1.{m[3]}",
        ),
        (
            r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)",
            lambda m: f"input_blocks.{(int(m[1]) + 1) * row}.0.op.{m[2]}",
        ),
        (r"mid_block\.resnets\.([01])\.(.+)", lambda m: f"middle_block.{2 * int(m[1])}.{_renamed(m[2], _RESNET)}"),
        (r"mid_block\.attentions\.0\.(.+)", lambda m: f"middle_block.1.{m[1]}"),
        (
            r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda m: f"output_blocks.{int(m[1]) * row + int(m[2])}.0.{_renamed(m[3], _RESNET)}",
        ),
        (
            r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)",
            lambda m: f"output_blocks.{int(m[1]) * row + int(m[2])}.1.{m[3]}",
        ),
        (
            # The lowest level has no attention before its upsampling.
            r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)",
            lambda m: f"output_blocks.{int(m[1]) * row + blocks}.{2 if int(m[1]) else 1}.conv.{m[2]}",
        ),
    ]
    return _by_rules(name, rules)


def vae_name(name: str, levels: int) -> str:
    """The original's name of a weight of diffusers' autoencoder.

    Args:
        name: without a prefix.
        levels: of the autoencoder; the original counts the decoder's from the finest.
    """
    shortcut = {"conv_shortcut": "nin_shortcut"}
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (
            r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda m: f"encoder.down.{m[1]}.block.{m[2]}.{_renamed(m[3], shortcut)}",
        ),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.(.+)", lambda m: f"encoder.down.{m[1]}.downsample.{m[2]}"),
        (
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block.{m[2]}.{_renamed(m[3], shortcut)}",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample.{m[2]}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)",
            lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}.{_renamed(m[3], shortcut)}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)",
            lambda m: f"{m[1]}.mid.attn_1.{_renamed(m[2], _VAE_ATTENTION)}",
        ),
        (r"(encoder|decoder)\.conv_norm_out\.(.+)", lambda m: f"{m[1]}.norm_out.{m[2]}"),
        (r"((?:encoder|decoder)\.conv_(?:in|out)|(?:post_)?quant_conv)\.(.+)", lambda m: f"{m[1]}.{m[2]}"),
    ]
    return _by_rules(name, rules)


def _clip_origin(name: str) -> Origin:
    visual = f"{CLIP}visual."
    if name == "visual_projection.weight":
        return Origin(f"{visual}proj", transposed=True)
    inner = name.removeprefix("vision_model.")
    if inner in _CLIP:
        return Origin(visual + _CLIP[inner])
    if match := re.fullmatch(r"(pre|post)_lay(?:r|er)norm\.(.+)", inner):
        return Origin(f"{visual}ln_{match[1]}.{match[2]}")
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner)
    if match is None:
        raise ValueError(f"no rule for the weight {name}")
    block = f"{visual}transformer.resblocks.{match[1]}."
    if third := re.fullmatch(r"self_attn\.([qkv])_proj", match[2]):
        return Origin(f"{block}attn.in_proj_{match[3]}", third="qkv".index(third[1]))
    return Origin(f"{block}{_CLIP_LAYER[match[2]]}.{match[3]}")


def _renamed(name: str, table: dict[str, str]) -> str:
    """A name whose beginning a table may replace; what follows is ``weight`` or ``bias``."""
    stem, _, kind = name.rpartition(".")
    return f"{table.get(stem, stem)}.{kind}"


def _by_rules(name: str, rules: list[tuple[str, Callable[[re.Match[str]], str]]]) -> str:
    for pattern, renamed in rules:
        if match := re.fullmatch(pattern, name):
            return renamed(match)
    raise ValueError(f"no rule for the weight {name}")
