"""Settings of the model of a whole scene (spec r4dv 4.9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Optional, Tuple, Type

from nerfstudio.models.base_model import Model

from r4dv_ns.joint_stages import REST, Freeze
from r4dv_ns.model_config import LossWeights, R4DVModelConfig


def _model() -> Type[Model]:
    from r4dv_ns.joint_model import JointModel  # which needs this module first

    return JointModel


@dataclass
class RoomConfig:
    """The background's points."""

    plane_levels: int = 4
    """Resolutions of its planes: plane-base, twice that, ..."""
    plane_base: int = 64
    """Texels per axis of the coarsest plane."""
    aggregate: Literal["sum", "cat", "mul"] = "cat"
    """How its three planes are joined."""
    layers: int = 64
    """Points blended per pixel while it learns alone."""
    radius_min: Optional[float] = None
    """Smallest radius, world units. None: 1 mm for a subject in a box of 2 m diagonal."""
    radius_max: Optional[float] = None
    """Largest radius near the subject, world units. None: 100 mm for such a box, more where points are sparse."""
    loss: LossWeights = field(default_factory=lambda: LossWeights(perceptual=1e-2, mask=0.0))
    """Weights of the loss terms while it learns alone."""


@dataclass
class JointModelConfig(R4DVModelConfig):
    """Points of a subject and of what is behind it."""

    _target: Type = field(default_factory=_model)
    stage_steps: Tuple[int, int, int] = (10_000, REST, 50_000)
    """Steps of background, foreground, and both together; 0 leaves a stage out. -1 for the foreground: 1500 for each
    frame, at least 10 000. With another --max-num-iterations than their sum the stages share it in this proportion."""
    joint_rate: float = 0.3
    """Learning rates when both begin to learn together, as a share of those at the start."""
    room: RoomConfig = field(default_factory=RoomConfig)
    """The background's points."""
    freeze_foreground: Freeze = field(default_factory=Freeze)
    """What of the subject stays as it is while both learn together."""
    freeze_background: Freeze = field(default_factory=Freeze)
    """What of the background stays as it is while both learn together."""
    foreground_checkpoint: Optional[Path] = None
    """A checkpoint (step-*.ckpt) of r4dv or r4dv-bg on the same recording: the subject is taken from it, and its stage
    left out."""
    background_checkpoint: Optional[Path] = None
    """A checkpoint of r4dv-bg: the background is taken from it, and its stage left out."""
    separate: bool = True
    """Also draw fg_only and bg_only; takes about twice as long."""

    def room_settings(self) -> R4DVModelConfig:
        """What the background's points are made with."""
        room = self.room
        return replace(
            self, static=True, motion=False, aggregate=room.aggregate, plane_levels=room.plane_levels,
            plane_base=room.plane_base, radius_min=room.radius_min, radius_max=room.radius_max,
        )  # fmt: skip

    def shared_parameters(self, frames: int) -> int:
        """As `R4DVModelConfig.shared_parameters`, the background's planes included."""
        own = super().shared_parameters(frames)
        room = R4DVModelConfig(
            static=True, motion=False, plane_levels=self.room.plane_levels, plane_base=self.room.plane_base,
            plane_features=self.plane_features, aggregate=self.room.aggregate, hashed_planes=self.hashed_planes,
        )  # fmt: skip
        return own + room.shared_parameters(1)
