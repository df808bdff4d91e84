"""Widths and depths of the networks (spec megascenes 4.1, 4.2, 5), light to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from core_ns.errors import DataError

POSE = 19
"""Numbers of the pose vector (spec 4.3)."""
LATENT = 4
"""Channels of a latent."""
SCALE = 0.18215
"""Factor on the target's latent, and on it alone (spec 4.1)."""
_LARGEST, _DEEPEST = 16384, 96
"""Sizes come from files; larger ones would only take all memory or time before they fail."""
_FOREIGN = "Give a checkpoint of the original MegaScenes or ZeroNVS code."


@dataclass(frozen=True)
class UNetSize:
    """Of the denoiser: Stable Diffusion 1's UNet, attention on every level but the lowest."""

    in_channels: int = 11
    """11: noisy latent, reference latent, warp; 8: without the warp."""
    width: int = 320
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, in units of ``width``."""
    blocks: int = 2
    """Residual blocks per level (the decoder has one more)."""
    heads: int = 8
    """Attention heads on every level."""
    context: int = 768
    """Width of the one context token."""


@dataclass(frozen=True)
class VaeSize:
    """Of the autoencoder; it shrinks pictures by 2 per level after the first."""

    width: int = 128
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, in units of ``width``."""
    blocks: int = 2
    """Residual blocks per level (the decoder has one more)."""
    groups: int = 32
    """Of its group norms."""


@dataclass(frozen=True)
class ClipSize:
    """Of CLIP's image tower."""

    width: int = 1024
    """Of a token."""
    layers: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    patch: int = 14
    """Pixels per token and axis."""
    image: int = 224
    """Pixels per side that it is shown."""


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dataclass(frozen=True)
class Sizes:
    """Of all networks.

    Raises:
        ValueError: no such networks can be built.
    """

    unet: UNetSize = field(default_factory=UNetSize)
    vae: VaeSize = field(default_factory=VaeSize)
    clip: ClipSize = field(default_factory=ClipSize)

    def __post_init__(self) -> None:
        parts = (self.unet, self.vae, self.clip)
        numbers = [each for part in parts for value in vars(part).values() for each in _numbers(value)]
        if any(type(each) is not int or not 1 <= each <= _LARGEST for each in numbers):
            raise ValueError(f"no networks have sizes that are not whole numbers from 1 to {_LARGEST}: {self}")
        depths = (self.unet.blocks, self.vae.blocks, len(self.unet.multipliers), len(self.vae.multipliers))
        if not 1 <= min(depths) <= max(*depths, self.clip.layers) <= _DEEPEST:
            raise ValueError(f"no networks have level, block or layer counts outside 1 to {_DEEPEST}: {self}")
        problems = {
            "UNet input channels below 8": self.unet.in_channels < 2 * LATENT,
            "a UNet width that 32 norm groups do not divide": self.unet.width % 32,
            "UNet heads that do not divide its widths": self.unet.width % self.unet.heads,
            "an autoencoder width that its norm groups do not divide": self.vae.width % self.vae.groups,
            "CLIP heads that do not divide its width": self.clip.width % self.clip.heads,
            "an image that CLIP's patches do not divide": self.clip.image % self.clip.patch,
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(f"no networks have {problem}: {self}")

    @classmethod
    def full(cls, in_channels: int = 11) -> Sizes:
        """Of the released models (spec 4): 859.5, 83.7 and 304.0 million parameters."""
        return cls(UNetSize(in_channels=in_channels))

    @classmethod
    def tiny(cls, in_channels: int = 11) -> Sizes:
        """Of ``megascenes-tiny``: 64 px pictures, 8x8 latents, seconds on a processor (spec 8.0)."""
        return cls(
            UNetSize(in_channels, width=32, multipliers=(1, 2, 2, 2), blocks=1, heads=4, context=32),
            VaeSize(width=32, multipliers=(1, 1, 1, 1), blocks=1, groups=4),
            ClipSize(width=32, layers=1, heads=2, patch=14, image=56),
        )

    @property
    def shrink(self) -> int:
        """Pixels per latent cell and axis."""
        return 2 ** (len(self.vae.multipliers) - 1)

    @property
    def warp_channels(self) -> int:
        """Input channels for the warp: 3, or 0 for the pose-only model."""
        return self.unet.in_channels - 2 * LATENT

    @property
    def variant(self) -> str:
        """What the original calls these inputs."""
        return "warp_plus_pose" if self.warp_channels else "zeronvs"

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def of_original(cls, shapes: Mapping[str, tuple[int, ...]], heads: int = 8) -> Sizes:
        """Sizes that a state dict of the original has (names of spec 5).

        Args:
            shapes: of every tensor by name, without ``module.``.
            heads: of the UNet; the weights do not tell.

        Raises:
            DataError: a tensor that tells a size is missing or of a wrong shape; ``file`` is empty, for the caller to
                fill in.
        """
        names = list(shapes)
        unet, vae, clip = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model.visual."

        def shape(name: str, axes: int) -> tuple[int, ...]:
            found = shapes.get(name)
            if found is None:
                raise DataError("", name, "is missing.", _FOREIGN)
            if len(found) != axes or min(found) < 1:
                raise DataError("", name, f"has the shape {list(found)}.", _FOREIGN)
            return tuple(found)

        def count(pattern: str) -> int:
            matcher = re.compile(pattern)
            return 1 + max((int(match[1]) for name in names if (match := matcher.match(name))), default=-1)

        levels = 1 + sum(bool(re.fullmatch(rf"{unet}input_blocks\.\d+\.0\.op\.weight", name)) for name in names)
        blocks = (count(rf"{unet}input_blocks\.(\d{{1,3}})\.") - levels) // levels
        width, inputs = shape(f"{unet}input_blocks.0.0.weight", 4)[:2]
        outputs = [
            shape(f"{unet}input_blocks.{1 + level * (blocks + 1)}.0.out_layers.3.weight", 4)[0]
            for level in range(levels)
        ]
        context = shape(f"{unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
        vae_levels = count(rf"{vae}encoder\.down\.(\d{{1,3}})\.")
        vae_width = shape(f"{vae}encoder.conv_in.weight", 4)[0]
        vae_outputs = [
            shape(f"{vae}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(max(1, vae_levels))
        ]
        clip_width, _, patch, _ = shape(f"{clip}conv1.weight", 4)
        grid = round((shape(f"{clip}positional_embedding", 2)[0] - 1) ** 0.5)
        try:
            return cls(
                UNetSize(inputs, width, tuple(each // width for each in outputs), blocks, heads, context),
                VaeSize(
                    vae_width,
                    tuple(each // vae_width for each in vae_outputs),
                    count(rf"{vae}encoder\.down\.0\.block\.(\d{{1,3}})\."),
                ),
                ClipSize(
                    clip_width,
                    count(rf"{clip}transformer\.resblocks\.(\d{{1,3}})\."),
                    max(1, clip_width // 64),
                    patch,
                    grid * patch,
                ),
            )
        except ValueError as error:
            raise DataError("", "sizes", f"make no networks: {error}.", _FOREIGN) from error
