"""The methods of this package: ``xscale-nvs``, ``xscale-nvs-paper``, ``xscale-nvs-tiny`` (spec xscale 3.7)."""

from __future__ import annotations

from dataclasses import replace

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from core_ns.schedules import CosineSchedulerConfig, allow_numpy_scalars
from core_ns.trainer import ZooTrainerConfig, default_device
from dataparsers.mvsnet_parser import MvsnetDataParserConfig
from xscale_ns.datamanager import XScaleDataManagerConfig
from xscale_ns.model import XScaleModelConfig
from xscale_ns.pipeline import XScalePipelineConfig
from xscale_ns.row_adam import RowAdamOptimizerConfig

allow_numpy_scalars()


def _groups(hash_lr: float, head_lr: float, decay: bool) -> dict:
    """Optimisers of all parameter groups; groups a model does not have are ignored."""

    def schedule():
        return CosineSchedulerConfig(max_steps=None) if decay else None

    heads = ("head", "exposure", "lighting", "background")
    return {
        "hash": {"optimizer": RowAdamOptimizerConfig(lr=hash_lr, eps=1e-15), "scheduler": schedule()},
        **{
            name: {"optimizer": AdamOptimizerConfig(lr=head_lr, eps=1e-15 if decay else 1e-8), "scheduler": schedule()}
            for name in heads
        },
    }


xscale_nvs = MethodSpecification(
    config=ZooTrainerConfig(
        method_name="xscale-nvs",
        steps_per_save=2000,
        steps_per_eval_batch=500,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=20000,
        max_num_iterations=20000,
        pipeline=XScalePipelineConfig(
            datamanager=XScaleDataManagerConfig(dataparser=MvsnetDataParserConfig()), model=XScaleModelConfig()
        ),
        optimizers=_groups(1e-2, 2e-3, decay=True),
        viewer=ViewerConfig(websocket_host="127.0.0.1", num_rays_per_chunk=1 << 16, max_num_display_images=64),
        machine=MachineConfig(device_type=default_device()),
        vis="viewer",
    ),
    description="XScale-NVS: a hash field on the surface of a photogrammetry mesh (needs photos, cameras and a mesh).",
)

_config = xscale_nvs.config
xscale_nvs_paper = MethodSpecification(
    config=replace(
        _config,
        method_name="xscale-nvs-paper",
        # 24 x 65536 = the original's 32 views x 49152 rays per optimiser step.
        gradient_accumulation_steps=dict.fromkeys(("hash", "head", "exposure", "lighting"), 24),
        max_num_iterations=24 * 20000,
        pipeline=XScalePipelineConfig(
            datamanager=XScaleDataManagerConfig(dataparser=MvsnetDataParserConfig(), jitter=False),
            model=XScaleModelConfig(
                features_per_level=8,
                log2_table=22,
                per_level_scale=1.4768261459394993,
                normalization="per-axis",
                head="film",
                background="white",
                eval_sub_samples=1,
            ),
        ),
        optimizers=_groups(2e-4, 2e-4, decay=False),
    ),
    description="XScale-NVS with the original's architecture and numbers (16 levels x 8, FiLM-SIREN; 24 GB GPU).",
)

xscale_nvs_tiny = MethodSpecification(
    config=replace(
        _config,
        method_name="xscale-nvs-tiny",
        steps_per_save=500,
        steps_per_eval_image=500,
        steps_per_eval_all_images=5000,
        max_num_iterations=1500,
        pipeline=XScalePipelineConfig(
            datamanager=XScaleDataManagerConfig(
                dataparser=MvsnetDataParserConfig(), train_num_rays_per_batch=8192, jitter=False
            ),
            model=XScaleModelConfig(
                levels=12,
                features_per_level=2,
                log2_table=17,
                highest_resolution=2048,
                exposure_dim=0,
                eval_sub_samples=1,
            ),
        ),
        optimizers=_groups(1e-2, 3e-3, decay=True),
    ),
    description="XScale-NVS for a laptop: two CPU cores, under two minutes.",
)
