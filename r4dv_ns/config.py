"""The methods of this package: ``r4dv``, ``r4dv-static``, ``r4dv-sparse``, ``r4dv-tiny`` (spec r4dv 4.7, 4.8, 8.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Type

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from nerfstudio.plugins.types import MethodSpecification

from core_ns.errors import DataError
from core_ns.schedules import ExponentialSchedulerConfig, allow_numpy_scalars
from core_ns.trainer import ZooTrainer, ZooTrainerConfig, default_device
from dataparsers.easymocap_parser import EasyMocapDataParserConfig
from r4dv_ns.datamanager import R4DVDataManagerConfig
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.model_config import LossWeights, R4DVModelConfig
from r4dv_ns.pipeline import R4DVPipelineConfig

allow_numpy_scalars()

STEPS_PER_FRAME, FEWEST_STEPS, MOST_STEPS, FULL_SCHEDULE = 1500, 10_000, 300_000, 800_000


def steps_for(frames: int) -> int:
    """Training steps for a recording (spec r4dv 4.8)."""
    return min(max(STEPS_PER_FRAME * frames, FEWEST_STEPS), MOST_STEPS)


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """Adam in one pass over the parameters: a ninth of the time on the planes (benchmarks/planes.py)."""

    fused: bool = True
    """Use torch's fused kernel."""


class R4DVTrainer(ZooTrainer):
    """Learning rates of positions are for a scene of the original's size; here they grow with the box."""

    def setup_optimizers(self) -> Optimizers:
        """As nerfstudio's, the rate of all points scaled by the diagonal of the box over 2 m (spec r4dv 2.3, 4.3)."""
        model: Any = self.pipeline.model
        given = self.config.optimizers
        scaled = {}
        for name in given:
            if name.endswith("points"):
                optimizer = given[name]["optimizer"]
                scaled[name] = given[name] | {"optimizer": replace(optimizer, lr=optimizer.lr * model.scale)}
        self.config.optimizers = given | scaled
        try:
            return super().setup_optimizers()
        finally:
            self.config.optimizers = given


@dataclass
class R4DVTrainerConfig(ZooTrainerConfig):
    """The trainer, with a number of steps that follows from the recording and a plan that can be read first."""

    _target: Type = field(default_factory=lambda: R4DVTrainer)
    max_num_iterations: int = 0
    """Training steps. 0: 1500 for each frame, at least 10 000 and at most 300 000."""
    full_schedule: bool = False
    """The 800 000 steps of the paper."""
    dry_run: bool = False
    """Check the recording, print what the training will need in memory and on disk, and stop. Nothing is written."""

    def _settle_steps(self, frames: int) -> None:
        """Put numbers in the place of what was left open, for a recording of so many frames."""
        if self.full_schedule:
            self.max_num_iterations = FULL_SCHEDULE
        elif self.max_num_iterations <= 0:
            self.max_num_iterations = steps_for(frames)

    def save_config(self) -> None:
        """As `ZooTrainerConfig`'s; the number of steps is settled before.

        Raises:
            SystemExit: with one line when the run cannot start; with status 0 after a dry run.
        """
        pipeline: Any = self.pipeline
        try:
            sequence = pipeline.open(self.data)
            frames = len(sequence.frames)
            # An optimized/ folder that appears later must not change the cameras of this run.
            refined = sequence.calibration_dir != sequence.root
            pipeline.datamanager.dataparser.cameras = "optimized" if refined else "plain"
            self._settle_steps(frames)
            if self.dry_run:
                on_gpu = self.machine.device_type == "cuda"
                kept = 1 if self.save_only_latest_checkpoint else self.max_num_iterations // self.steps_per_save + 1
                print(f"{self.max_num_iterations} steps")
                print(pipeline.plan(sequence, self.output_dir, kept, on_gpu))
                raise SystemExit(0)
        except DataError as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        super().save_config()


def _groups(points: float | None = None) -> dict[str, Any]:
    """Optimisers; rates fall to a tenth over the run, those of the points stay unless ``points`` is given."""

    def group(rate: float, decays: bool = True) -> dict[str, Any]:
        schedule = ExponentialSchedulerConfig(final_ratio=0.1) if decays else None
        return {"optimizer": FusedAdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": schedule}

    features = {name: group(5e-3) for name in ("planes", "cnn", "blend", "sh")}
    networks = {name: group(5e-4) for name in ("residual_mlp", "geometry_mlp")}
    return {
        "points": group(5e-5 if points is None else points, points is not None), **features, **networks,
        "camera_opt": group(1e-4),
    }  # fmt: skip


def _recording(**options: Any) -> R4DVDataManagerConfig:
    return R4DVDataManagerConfig(dataparser=EasyMocapDataParserConfig(), **options)


r4dv = MethodSpecification(
    config=R4DVTrainerConfig(
        method_name="r4dv",
        steps_per_save=2000,
        steps_per_eval_batch=0,
        steps_per_eval_image=2000,
        steps_per_eval_all_images=100_000,
        pipeline=R4DVPipelineConfig(datamanager=_recording(), model=R4DVModelConfig()),
        optimizers=_groups(),
        viewer=ViewerConfig(websocket_host="127.0.0.1", max_num_display_images=64),
        machine=MachineConfig(device_type=default_device()),
        vis="viewer",
    ),
    description="4K4D: multi-view video with masks becomes points in space and time, coloured from the photos.",
)

_config = r4dv.config
r4dv_static = MethodSpecification(
    config=replace(
        _config,
        method_name="r4dv-static",
        max_num_iterations=25_000,
        pipeline=R4DVPipelineConfig(
            datamanager=R4DVDataManagerConfig(dataparser=EasyMocapDataParserConfig(frame_sample=(0, 1, 1))),
            model=R4DVModelConfig(plane_levels=2, aggregate="cat", static=True),
        ),
        optimizers=_groups(),
    ),
    description="4K4D on the first frame alone: five minutes that show whether cameras, masks and hulls are right.",
)

_sparse = LossWeights(perceptual=1e-2, mask=1e-2)
r4dv_sparse = MethodSpecification(
    config=replace(
        _config,
        method_name="r4dv-sparse",
        pipeline=R4DVPipelineConfig(
            datamanager=_recording(sources=8, source_metric="angle"),
            model=R4DVModelConfig(layers=32, sources=8, source_metric="angle", loss=_sparse),
        ),
        optimizers=_groups(points=5e-4),
    ),
    description="4K4D for four to ten cameras: more layers, more source photos, stronger mask loss.",
)

r4dv_tiny = MethodSpecification(
    config=replace(
        _config,
        method_name="r4dv-tiny",
        steps_per_save=200,
        steps_per_eval_image=100_000,
        steps_per_eval_all_images=100_000,
        max_num_iterations=440,
        pipeline=R4DVPipelineConfig(
            datamanager=R4DVDataManagerConfig(
                dataparser=EasyMocapDataParserConfig(max_side=320), hull=HullOptions(points=16384), crop_pad=8
            ),
            model=R4DVModelConfig(
                layers=10,
                plane_levels=2,
                cnn_grad_warmup=80,
                cnn_grad_every=20,
                loss=LossWeights(mask=1e-2),
                occlusion=True,
                occlusion_every=100,
            ),
        ),
        optimizers=_groups(points=5e-4),
    ),
    description="4K4D for a laptop: 16384 points a frame, two CPU cores, three to four minutes.",
)
