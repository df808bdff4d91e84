"""The package's methods: ``megascenes-nvs``, ``megascenes-zeronvs``, ``megascenes-tiny`` (spec megascenes 8.0)."""

from __future__ import annotations

from typing import Any

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from core_ns.schedules import allow_numpy_scalars
from core_ns.trainer import default_device
from megascenes_ns.data_config import PairDataManagerConfig
from megascenes_ns.model_config import MegaScenesModelConfig, SamplingOptions
from megascenes_ns.optimizers import CC_PROJECTION, UNET, AdamWOptimizerConfig, WarmupSchedulerConfig
from megascenes_ns.pipeline import MegaScenesPipelineConfig
from megascenes_ns.trainer import MegaScenesTrainerConfig
from megascenes_ns.view_options import ViewOptions

allow_numpy_scalars()


def _optimizers(unet: float, projection: float, warmup: int = 100) -> dict[str, Any]:
    """AdamW with the original's warm-up (spec megascenes 6)."""
    rates = {UNET: unet, CC_PROJECTION: projection}
    return {
        name: {"optimizer": AdamWOptimizerConfig(lr=rate), "scheduler": WarmupSchedulerConfig(warmup_steps=warmup)}
        for name, rate in rates.items()
    }


def _method(name: str, description: str, updates: int, pipeline: MegaScenesPipelineConfig, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "steps_per_save": 1000,
        "steps_per_eval_batch": 500,
        "steps_per_eval_image": 1000,
        "steps_per_eval_all_images": 10**6,
        "optimizers": _optimizers(1e-4, 1e-3),
        "viewer": ViewerConfig(websocket_host="127.0.0.1", max_num_display_images=64, default_composite_depth=False),
        "machine": MachineConfig(device_type=default_device()),
        "vis": "viewer",
    }
    config = MegaScenesTrainerConfig(
        method_name=name, max_num_iterations=updates, pipeline=pipeline, **(defaults | options)
    )
    return MethodSpecification(config=config, description=description)


megascenes_nvs = _method(
    "megascenes-nvs",
    "MegaScenes NVS: views of a scene from one photo, its warp and the camera's pose.",
    14_000,
    MegaScenesPipelineConfig(
        datamanager=PairDataManagerConfig(batch_size=64),
        model=MegaScenesModelConfig(precision="bf16", checkpointing=True),
    ),
)

megascenes_zeronvs = _method(
    "megascenes-zeronvs",
    "MegaScenes' fine-tuned ZeroNVS: views from one photo and the camera's pose alone.",
    14_000,
    MegaScenesPipelineConfig(
        datamanager=PairDataManagerConfig(batch_size=64),
        model=MegaScenesModelConfig(variant="zeronvs", precision="bf16", checkpointing=True),
    ),
)

megascenes_tiny = _method(
    "megascenes-tiny",
    "MegaScenes NVS for a laptop: pictures of 64 pixels, two CPU cores, about two minutes.",
    600,
    MegaScenesPipelineConfig(
        datamanager=PairDataManagerConfig(batch_size=16, latent_precision="fp32"),
        model=MegaScenesModelConfig(
            size="tiny",
            picture=64,
            encode_batch=1,
            sampling=SamplingOptions(sampler="ddim", steps=5, preview_steps=2),
            view=ViewOptions(samples_per_pixel=1),
        ),
    ),
    optimizers=_optimizers(1e-3, 1e-3, warmup=20),
    steps_per_save=200,
    steps_per_eval_batch=50,
    steps_per_eval_image=200,
)
