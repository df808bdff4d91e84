"""The networks that a command works with: those of a run, or of a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional

from core_ns.errors import DataError

PIPELINE = "xfactor_ns.pipeline.XFactorPipelineConfig"
GRID = 16
"""Patches per side of the pictures that the released weights were trained on."""


@dataclass
class NetOptions:
    """Which networks, and how they run."""

    load_config: Optional[Path] = None
    """config.yml of a run. Its clips can be named by their ids."""
    weights: Optional[Path] = None
    """Or a file of weights: .safetensors of ns-xfactor import, .flax or folder of the original, .ckpt of a run."""
    image_size: Optional[int] = None
    """Side of the square pictures. Default: that of the run; 16 patches (256 for the released weights) for a file."""
    context_frames: Optional[int] = None
    """Frames of the scene that the renderer sees. Default: as the run was trained; 1 for a file of weights (the
    released multi-view weights expect 5)."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of matrix products and attention, for a file of weights; a run has its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a file of weights runs."""
    batch: int = 8
    """Frames that go through the networks at once."""

    def open(self) -> OpenedNet:
        """Load them.

        Raises:
            DataError: neither or both given, unreadable, or numbers that do not fit the networks.
        """
        if (self.load_config is None) == (self.weights is None):
            raise DataError("options", "--load-config, --weights", "name one network.", "Give one of the two.")
        if self.batch < 1:
            raise DataError("options", "--batch", f"is {self.batch}.", "Give 1 or more.")
        opened = self._of_run(self.load_config) if self.load_config is not None else self._of_file(self.weights)
        size, patch = opened.image_size, opened.net.size.patch
        if size < 1 or size % patch:
            problem = f"{size} is no multiple of the patch, {patch} pixels."
            raise DataError("options", "--image-size", problem, "Choose a multiple.")
        if opened.context_frames < 1:
            raise DataError("options", "--context-frames", f"is {opened.context_frames}.", "Give 1 or more.")
        return opened

    def _of_run(self, config: Path) -> OpenedNet:
        from core_ns.runs import load_run
        from xfactor_ns.clip_source import stored_clip

        pipeline, model = load_run(config, PIPELINE)
        manager = pipeline.datamanager
        return OpenedNet(
            model.net.eval(),
            manager.config.image_size if self.image_size is None else self.image_size,
            model.config.context_frames if self.context_frames is None else self.context_frames,
            manager.config.resize_mode,
            config.parent,
            manager.sequences,
            tuple(clip.id for clip in manager.gallery if clip.split == "test"),
            {clip.id: partial(stored_clip, manager, clip.id) for clip in manager.gallery},
        )

    def _of_file(self, weights: Any) -> OpenedNet:
        import torch

        from xfactor_ns.checkpoint_import import load_weights
        from xfactor_ns.network import XFactorNet

        size, state = load_weights(weights)
        net = XFactorNet(size, self.precision)
        net.load_state_dict(state)
        found = "cuda" if torch.cuda.is_available() else "cpu"
        net.to(found if self.device == "auto" else self.device)
        side = GRID * size.patch if self.image_size is None else self.image_size
        context = 1 if self.context_frames is None else self.context_frames
        return OpenedNet(net.eval(), side, context, "reference", weights.parent)


@dataclass(frozen=True)
class OpenedNet:
    """Networks ready to use.

    Attributes:
        net: `XFactorNet` in evaluation mode.
        image_size: side of the square pictures, pixels.
        context_frames: that the renderer sees.
        resize_mode: how frames become square pictures.
        folder: of the run, or of the weights: where a probe belongs.
        sequences: clips of the run, by id; empty for a file of weights.
        held_out: ids of clips that the run shows and was not trained on.
        stored: frames that the run keeps of its clips, by id (see `clip_source.read_clip`).
    """

    net: Any
    image_size: int
    context_frames: int
    resize_mode: Literal["reference", "antialias"]
    folder: Path
    sequences: Mapping[str, Any] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    stored: Mapping[str, Any] = field(default_factory=dict)
