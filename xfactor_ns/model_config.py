"""Options of XFactor: sizes, objective, augmentation, start weights, precision. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

from nerfstudio.models.base_model import ModelConfig

from core_ns.errors import DataError
from xfactor_ns.size import Size
from xfactor_ns.view_options import ViewOptions

FULL_WIDTH = 512
"""Networks from this width on count as the full model, which few clips cannot teach."""
FEWEST_CLIPS = 1000


def _model() -> Any:
    from xfactor_ns.model import XFactorModel

    return XFactorModel


@dataclass
class XFactorModelConfig(ModelConfig):
    """Two transformers: a pair of frames to a pose latent, context frames and latents to a picture."""

    _target: Type = field(default_factory=_model)
    enable_collider: bool = False
    """There are no rays."""
    width: int = 1024
    """Channels of a token."""
    heads: int = 16
    """Attention heads; their channels are a multiple of four."""
    blocks: int = 8
    """Transformer blocks of each of the two networks."""
    patch: int = 16
    """Pixels per side of a token's patch; the pictures' sides are multiples of twice as much."""
    pose: int = 256
    """Numbers in a pose latent."""
    registers: int = 32
    """Register tokens per mask group and view."""
    layer_scale: float = 0.01
    """What residual branches are multiplied by at the start."""
    context_frames: int = 1
    """Frames the renderer sees beside the target's latent: 1 (stereo-monocular), or 5 (multi-view) with one frame more
    per sample in the data manager."""
    objective: Literal["transfer", "autoencode"] = "transfer"
    """transfer: the paper's, pose from one half of the pixels and picture of the other; autoencode: the control
    experiment without masks and swap, whose latents do not transfer."""
    unmasked: float = 0.05
    """Share of samples without mask."""
    self_reference: float = 0.05
    """Share of samples whose target is one of their own context frames."""
    jitter: bool = True
    """Colour jitter and blur of what the pose encoder sees."""
    jitter_per_frame: bool = False
    """Draw the jitter for both frames of a pair separately."""
    vary_scenes: bool = False
    """Mirror, transpose, recolour and crop the clips at random, each sample as a whole: for small collections, whose
    pictures would be learned by heart. Beyond the paper."""
    lpips_weight: float = 0.5
    """Of LPIPS (VGG-16) beside L1. Without its weights on this machine: L1 alone, after one warning."""
    lpips_weights: Optional[Path] = None
    """File of torchvision's VGG-16 weights. None: the one in torch.hub's cache, if it is there."""
    init_from: Optional[Path] = None
    """Start from these weights: .safetensors of ns-xfactor import, .flax or folder of the original, or
    nerfstudio_models or a .ckpt of another run. A resumed run has its own."""
    init_render: bool = True
    """Take the renderer as well, not the pose encoder alone (the original's script restarts the renderer)."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of matrix products and attention; parameters, norms, residual and loss are float32."""
    compile: bool = False
    """torch.compile each block; the first steps take minutes. Needs a C compiler."""
    checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what it needs: less memory, a third slower."""
    seed: int = 0
    """Of the first weights and of all masks and jitter."""
    force: bool = False
    """Train the full model from scratch on fewer than 1000 clips all the same."""
    view: ViewOptions = field(default_factory=ViewOptions)
    """What viewer, ns-render and ns-eval show."""

    def size(self) -> Size:
        """The sizes of both networks.

        Raises:
            DataError: impossible ones.
        """
        return Size(self.width, self.heads, self.blocks, self.patch, self.pose, self.registers, self.layer_scale)

    def check(self, image_size: int, frames_per_sample: int, clips: int | None = None) -> None:
        """Refuse options that cannot train, before anything is written.

        Args:
            image_size: side of the square pictures.
            frames_per_sample: that the data manager serves.
            clips: training clips, where known.

        Raises:
            DataError: sizes that contradict one another, shares outside [0, 1], unusable start weights, or too few
                clips for the full model.
        """
        self.size()
        self.view.check()
        if image_size % (2 * self.patch):
            raise DataError(
                "config", "pipeline.datamanager.image-size",
                f"{image_size} is no multiple of twice the patch, {2 * self.patch}: the four quadrants must be equal.",
                "Choose another size, or another --pipeline.model.patch.",
            )  # fmt: skip
        if frames_per_sample != self.context_frames + 1:
            raise DataError(
                "config", "pipeline.datamanager.frames-per-sample",
                f"is {frames_per_sample}, but {self.context_frames} context frame(s) and a target are needed.",
                "Let it be --pipeline.model.context-frames plus one.",
            )  # fmt: skip
        for name in ("unmasked", "self_reference"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                place = f"pipeline.model.{name.replace('_', '-')}"
                raise DataError("config", place, f"{getattr(self, name)} is no share.", "Choose one from 0 to 1.")
        if self.lpips_weights is not None and not self.lpips_weights.is_file():
            raise DataError(
                self.lpips_weights, "", "is not a file.", "Leave --pipeline.model.lpips-weights out, or correct it."
            )
        if self.init_from is not None:
            from xfactor_ns.start_weights import read_weights

            read_weights(self.init_from, self.size())
        few = clips is not None and clips < FEWEST_CLIPS and self.width >= FULL_WIDTH
        if few and self.init_from is None and not self.force:
            raise DataError(
                "config", "pipeline.model.width",
                f"{self.width}: {clips} clips are too few to train the full model from scratch.",
                "Fine-tune with --pipeline.model.init-from WEIGHTS --optimizers.xfactor.optimizer.lr 1e-4 "
                "--optimizers.xfactor.scheduler.warmup-steps 500 --pipeline.datamanager.batch-size 32 "
                "--max-num-iterations 5000, train xfactor-tiny, or insist with --pipeline.model.force True.",
            )  # fmt: skip
