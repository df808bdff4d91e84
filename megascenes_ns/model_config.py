"""Options of MegaScenes NVS: networks, parity switches, training, sampling. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.models.base_model import ModelConfig

from core_ns.errors import DataError
from megascenes_ns.sizes import Sizes
from megascenes_ns.view_options import ViewOptions

Variant = Literal["warp_plus_pose", "zeronvs"]
Sampler = Literal["legacy", "ddim", "dpm", "unipc"]
Uncond = Literal["auto", "legacy", "consistent"]

LATENT_FACTOR = 8
"""Pixels per latent cell and side (spec megascenes 4.2)."""


def _model() -> Any:
    from megascenes_ns.model import MegaScenesModel

    return MegaScenesModel


@dataclass
class SamplingOptions(PrintableConfig):
    """How views are sampled, in the viewer, in ns-render and in ns-eval (spec megascenes 7)."""

    sampler: Sampler = "unipc"
    """legacy: the original's stochastic DDIM without its first step; the others are deterministic."""
    steps: int = 20
    """Steps of a finished picture."""
    preview_steps: int = 6
    """Steps of the picture that the viewer shows first; 0: none."""
    guidance: float = 3.0
    """Weight of classifier-free guidance; 1: none."""
    uncond: Uncond = "auto"
    """What guidance starts from. legacy: all zeros (the original); consistent: what training drops, with pose and warp;
    auto: legacy for imported weights, consistent for those trained here."""
    seed: int = 0
    """Of the first noise; the same for all views, which flicker less."""
    batch: int = 8
    """Views that are sampled at once where there are many."""

    def check(self) -> None:
        """Refuse impossible numbers.

        Raises:
            DataError: naming the option.
        """
        wrong = [
            (name, f"{least} or more")
            for name, least in (("steps", 1), ("preview_steps", 0), ("batch", 1), ("seed", 0))
            if getattr(self, name) < least
        ]
        if not self.guidance >= 0:
            wrong.append(("guidance", "0 or more"))
        for name, remedy in wrong:
            place = f"pipeline.model.sampling.{name.replace('_', '-')}"
            raise DataError("config", place, f"is {getattr(self, name)}.", f"Give {remedy}.")


@dataclass
class MegaScenesModelConfig(ModelConfig):
    """A latent-diffusion model of pictures, conditioned on one photo, its warp and the relative pose."""

    _target: Type = field(default_factory=_model)
    enable_collider: bool = False
    """There are no rays."""
    variant: Variant = "warp_plus_pose"
    """warp_plus_pose: the network sees the warped photo as well (11 channels); zeronvs: the pose alone (8)."""
    size: Literal["full", "tiny"] = "full"
    """Sizes of networks with fresh weights; tiny: for the CPU, with a random autoencoder and image encoder."""
    weights: Optional[Path] = None
    """Folder of weights (ns-megascenes import writes one): UNet, autoencoder, image encoder, cc_projection."""
    fresh: bool = False
    """Start the full networks from random weights all the same, the frozen ones included."""
    picture: int = 256
    """Side of the square pictures that the networks see; the photo's longest side is resized to it."""
    pose_squash: Literal["none", "zeronvs"] = "none"
    """zeronvs: squash translations as ZeroNVS itself does, for its own released weights."""
    train_cc_projection: bool = True
    """False: leave the layer that joins image embedding and pose as it is (the original's behaviour)."""
    condition_dropout: bool = True
    """Leave out image embedding and reference latent of some samples, for guidance."""
    ema_decay: float = 0.0
    """Keep a running mean of the trained weights and sample with it, such as 0.9999; 0: none (the original's is never
    updated)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' matrix products; weights, sampler and loss are float32."""
    checkpointing: bool = False
    """Compute the UNet's blocks again in the backward pass: less memory, a third slower."""
    channels_last: bool = False
    """Memory layout that convolutions on GPUs prefer."""
    compile: bool = False
    """torch.compile the UNet; the first steps take minutes. Needs a C compiler."""
    encode_batch: int = 8
    """Photos that go through the frozen networks at once."""
    seed: int = 0
    """Of fresh weights and of all draws of the training."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How pictures are drawn."""
    view: ViewOptions = field(default_factory=ViewOptions)
    """What pictures are drawn from: reference, depth, warp, caches."""

    def shrink(self) -> int:
        """Pixels per latent cell and side.

        Raises:
            DataError: no such weights.
        """
        if self.weights is None:
            return self.sizes().shrink
        from megascenes_ns.weights_folder import read_info

        return read_info(self.weights)[0].shrink

    def sizes(self) -> Sizes:
        """Of networks with fresh weights."""
        channels = 11 if self.variant == "warp_plus_pose" else 8
        return Sizes.tiny(channels) if self.size == "tiny" else Sizes.full(channels)

    def uncond(self) -> Literal["legacy", "consistent"]:
        """What guidance starts from, with ``auto`` resolved: imported weights say it themselves.

        Raises:
            DataError: no such weights.
        """
        if self.sampling.uncond != "auto":
            return self.sampling.uncond
        return "consistent" if self.weights is None else self._info().uncond

    def squash(self) -> Literal["none", "zeronvs"]:
        """What translations go through: imported weights of ZeroNVS itself want it.

        Raises:
            DataError: no such weights.
        """
        if self.pose_squash != "none" or self.weights is None:
            return self.pose_squash
        return self._info().pose_squash

    def _info(self) -> Any:
        from megascenes_ns.weights_folder import read_info

        assert self.weights is not None
        return read_info(self.weights)[1]

    def check(self) -> None:
        """Refuse options that cannot work, before anything is written.

        Raises:
            DataError: naming the option.
        """
        self.sampling.check()
        self.view.check()
        place = "pipeline.model"
        if self.picture < 2 * LATENT_FACTOR or self.picture % LATENT_FACTOR:
            problem = f"is {self.picture}."
            raise DataError("config", f"{place}.picture", problem, f"Give a multiple of {LATENT_FACTOR}, such as 256.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise DataError("config", f"{place}.ema-decay", f"is {self.ema_decay}.", "Give 0 to below 1, as 0.9999.")
        if self.encode_batch < 1 or self.seed < 0:
            raise DataError("config", f"{place}.encode-batch, seed", "are too small.", "Give 1, and 0, or more.")
        if self.weights is not None:
            self._check_weights()
        if self.weights is None and self.size == "full" and not self.fresh:
            raise DataError(
                "config", f"{place}.weights",
                "is missing: autoencoder and image encoder are never trained, random ones show nothing.",
                "Import released weights with ns-megascenes import and name the folder, train megascenes-tiny, or "
                f"insist with --{place}.fresh True.",
            )  # fmt: skip

    def _check_weights(self) -> None:
        from megascenes_ns.weights_folder import read_info

        assert self.weights is not None
        sizes, _ = read_info(self.weights)
        if self.picture % sizes.shrink:
            problem = f"is {self.picture}; these networks shrink pictures by {sizes.shrink}."
            raise DataError("config", "pipeline.model.picture", problem, "Give a multiple.")
        if self.variant == "zeronvs" and sizes.warp_channels:
            remedy = "Use megascenes-nvs, or --pipeline.model.variant warp_plus_pose."
            raise DataError(self.weights, "unet", "takes the warp as well.", remedy)
