"""The methods for whole scenes: ``r4dv-bg``, ``r4dv-bg-tiny`` (spec r4dv 4.9, 8.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Type

from nerfstudio.plugins.types import MethodSpecification

from core_ns.schedules import allow_numpy_scalars
from dataparsers.easymocap_parser import EasyMocapDataParserConfig
from r4dv_ns.background_points import BackgroundOptions
from r4dv_ns.branch_checkpoint import stored_branch
from r4dv_ns.config import FULL_SCHEDULE, FusedAdamOptimizerConfig, R4DVTrainer, R4DVTrainerConfig, r4dv, steps_for
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.joint_data import JointDataManagerConfig
from r4dv_ns.joint_settings import JointModelConfig, RoomConfig
from r4dv_ns.joint_stages import REST, ROOM, StagePlan
from r4dv_ns.model_config import LossWeights
from r4dv_ns.pipeline import R4DVPipelineConfig

allow_numpy_scalars()


@dataclass
class JointPipelineConfig(R4DVPipelineConfig):
    """Data manager and model of r4dv-bg."""

    datamanager: JointDataManagerConfig = field(default_factory=JointDataManagerConfig)
    """Multi-view video, plates, hulls, points of the background, source photos."""
    model: JointModelConfig = field(default_factory=JointModelConfig)
    """The points of subject and background."""

    def check_data(self) -> None:
        """As `R4DVPipelineConfig.check_data`, the checkpoints of branches included.

        Raises:
            DataError: see there and `stored_branch`.
        """
        for file, subject in ((self.model.foreground_checkpoint, True), (self.model.background_checkpoint, False)):
            if file is not None:
                stored_branch(file, subject)
        super().check_data()

    @property
    def still_points(self) -> int:
        """The background's."""
        return self.datamanager.background.points


@dataclass
class JointTrainerConfig(R4DVTrainerConfig):
    """The trainer; the number of steps is the sum of the three stages'."""

    _target: Type = field(default_factory=lambda: R4DVTrainer)
    max_num_iterations: int = 0
    """Training steps. 0: the sum of --pipeline.model.stage-steps; another number is shared out in their proportion."""
    full_schedule: bool = False
    """The 800 000 steps of the paper for the foreground."""

    def _settle_steps(self, frames: int) -> None:
        """Raises DataError for stages that cannot be."""
        model: Any = self.pipeline.model
        background, foreground, joint = model.stage_steps
        if foreground == REST:
            foreground = FULL_SCHEDULE if self.full_schedule else steps_for(frames)
        if model.background_checkpoint is not None:
            background = 0
        if model.foreground_checkpoint is not None:
            foreground = 0
        model.stage_steps = (background, foreground, joint)
        if self.max_num_iterations <= 0:
            self.max_num_iterations = background + foreground + joint
        if self.load_dir is None and self.load_checkpoint is None:
            StagePlan.of(model.stage_steps, self.max_num_iterations)


def _groups() -> dict[str, Any]:
    """Optimisers of both branches; the stages set their rates (`joint_stages.set_rates`)."""
    rates = dict.fromkeys(("planes", "cnn", "blend", "sh"), 0.005)
    rates |= dict.fromkeys(("points", "residual_mlp", "geometry_mlp"), 0.0005)
    rates |= {ROOM + name: rate for name, rate in rates.items()} | {"camera_opt": 1e-4}
    return {
        name: {"optimizer": FusedAdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": None}
        for name, rate in rates.items()
    }


_of_r4dv = {entry: getattr(r4dv.config, entry) for entry in r4dv.config.__dataclass_fields__ if entry != "_target"}
_sparse = LossWeights(perceptual=1e-2, mask=1e-2)

r4dv_bg = MethodSpecification(
    config=JointTrainerConfig(
        **_of_r4dv
        | {
            "method_name": "r4dv-bg",
            "max_num_iterations": 0,
            "pipeline": JointPipelineConfig(
                datamanager=JointDataManagerConfig(
                    dataparser=EasyMocapDataParserConfig(), sources=8, source_metric="angle"
                ),
                model=JointModelConfig(layers=32, sources=8, source_metric="angle", loss=_sparse),
            ),
            "optimizers": _groups(),
        }
    ),
    description="4K4D for whole scenes: the subject's points in time, and the background's behind them.",
)

r4dv_bg_tiny = MethodSpecification(
    config=replace(
        r4dv_bg.config,
        method_name="r4dv-bg-tiny",
        steps_per_save=300,
        steps_per_eval_image=100_000,
        steps_per_eval_all_images=100_000,
        pipeline=JointPipelineConfig(
            datamanager=JointDataManagerConfig(
                dataparser=EasyMocapDataParserConfig(max_side=256),
                hull=HullOptions(points=16384),
                background=BackgroundOptions(points=40960),
                crop_pad=8,
            ),
            model=JointModelConfig(
                layers=12, plane_levels=2, cnn_grad_warmup=60, cnn_grad_every=20, occlusion=True,
                occlusion_every=100, loss=LossWeights(mask=1e-2),
                stage_steps=(200, 350, 200), room=RoomConfig(plane_levels=2, layers=12, loss=LossWeights(mask=0.0)),
            ),
        ),
        optimizers=_groups(),
    ),
    description="r4dv-bg for a laptop: 16384 points a frame and 40960 behind them, about four minutes on two cores.",
)  # fmt: skip
