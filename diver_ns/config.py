"""The methods of this package: ``diver``, ``diver-rt``, ``diver-light``, ``diver-tiny`` (spec diver 5.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from core_ns.errors import DataError
from core_ns.schedules import allow_numpy_scalars
from core_ns.trainer import ZooTrainerConfig, default_device
from dataparsers.blender_parser import ObjectBlenderDataParserConfig
from diver_ns.datamanager import DiverDataManagerConfig
from diver_ns.model import DiverModelConfig
from diver_ns.pipeline import DiverPipelineConfig
from diver_ns.stages import StagePlan

allow_numpy_scalars()


@dataclass
class DiverTrainerConfig(ZooTrainerConfig):
    """The trainer, with what can be known before the data are read checked first."""

    def save_config(self) -> None:
        """As `ZooTrainerConfig`'s.

        Raises:
            SystemExit: with one line, when the run cannot start; nothing is written.
        """
        model: Any = self.pipeline.model
        devices = self.machine.num_devices * self.machine.num_machines
        try:
            if devices > 1:
                raise DataError(
                    "config", "machine.num-devices", f"is {devices}: diver's tables change their size, on one device.",
                    "Use --machine.num-devices 1.",
                )  # fmt: skip
            if not 0 < model.coarse_resolution <= model.resolution or model.resolution % model.coarse_resolution:
                raise DataError(
                    "config", "pipeline.model.coarse-resolution",
                    f"{model.coarse_resolution} does not divide the resolution {model.resolution}.",
                    "Choose a divisor.",
                )  # fmt: skip
            if self.load_dir is None and self.load_checkpoint is None:
                StagePlan.of(model.stage_steps, self.max_num_iterations)
        except DataError as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        super().save_config()


def _groups(networks: float, voxels: float) -> dict:
    """Optimisers at the rates of the fine stages; `stages.rate` doubles them in the coarse one."""
    rates = {"decoder": networks, "implicit": networks, "voxels": voxels}
    return {name: {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-8), "scheduler": None} for name, lr in rates.items()}


def _photos() -> DiverDataManagerConfig:
    return DiverDataManagerConfig(dataparser=ObjectBlenderDataParserConfig())


diver = MethodSpecification(
    config=DiverTrainerConfig(
        method_name="diver",
        steps_per_save=2000,
        steps_per_eval_batch=500,
        steps_per_eval_image=2000,
        steps_per_eval_all_images=50000,
        max_num_iterations=100000,
        pipeline=DiverPipelineConfig(datamanager=_photos(), model=DiverModelConfig()),
        optimizers=_groups(5e-4, 5e-4),
        viewer=ViewerConfig(websocket_host="127.0.0.1", num_rays_per_chunk=1 << 14, max_num_display_images=64),
        machine=MachineConfig(device_type=default_device()),
        vis="viewer",
    ),
    description="DIVeR (64-wide decoder): voxel features integrated exactly along rays; photos of an object.",
)

_config = diver.config
diver_rt = MethodSpecification(
    config=replace(
        _config,
        method_name="diver-rt",
        pipeline=DiverPipelineConfig(datamanager=_photos(), model=DiverModelConfig(decoder_width=32)),
    ),
    description="DIVeR with the 32-wide decoder: the one to play in real time.",
)

diver_light = MethodSpecification(
    config=replace(
        _config,
        method_name="diver-light",
        max_num_iterations=80000,
        pipeline=DiverPipelineConfig(
            datamanager=_photos(),
            model=DiverModelConfig(resolution=128, decoder_width=32, stage_steps=(20000, 30000, 30000)),
        ),
    ),
    description="DIVeR on a 128 grid with the 32-wide decoder: smaller and faster.",
)

diver_tiny = MethodSpecification(
    config=replace(
        _config,
        method_name="diver-tiny",
        steps_per_save=500,
        steps_per_eval_batch=200,
        steps_per_eval_image=10000,
        steps_per_eval_all_images=10000,
        max_num_iterations=3000,
        pipeline=DiverPipelineConfig(
            datamanager=_photos(),
            model=DiverModelConfig(
                resolution=64,
                coarse_resolution=16,
                decoder_width=32,
                stage_steps=(500, 500, 2000),
                coarse_rays=1024,
                fine_rays=1024,
                implicit_width=64,
                implicit_depth=3,
                final_rate_share=0.1,
                prune_stride=2,
            ),
        ),
        optimizers=_groups(2e-3, 5e-3),
    ),
    description="DIVeR for a laptop: 64 grid, two CPU cores, about three minutes.",
)
