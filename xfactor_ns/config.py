"""The methods of this package: ``xfactor``, ``xfactor-mv``, ``xfactor-tiny`` (spec xfactor 4.5, 8.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from core_ns.errors import DataError
from core_ns.schedules import CosineSchedulerConfig, allow_numpy_scalars
from core_ns.trainer import ZooTrainerConfig, default_device
from xfactor_ns.data_config import ClipDataManagerConfig
from xfactor_ns.model_config import XFactorModelConfig
from xfactor_ns.optimizers import GROUP, DecayingAdamWConfig
from xfactor_ns.pipeline import XFactorPipelineConfig

allow_numpy_scalars()


@dataclass
class XFactorTrainerConfig(ZooTrainerConfig):
    """The trainer; one of its steps is one optimiser update, over all micro batches and processes."""

    def save_config(self) -> None:
        """As `ZooTrainerConfig`'s.

        Raises:
            SystemExit: with one line, when the run cannot start; nothing is written.
        """
        try:
            self._check()
        except DataError as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        if self.load_dir is not None or self.load_checkpoint is not None:
            self.pipeline.model.init_from = None  # type: ignore[attr-defined]  # a resumed run has its own weights
        super().save_config()

    def _check(self) -> None:
        if self.gradient_accumulation_steps:
            raise DataError(
                "config", "gradient-accumulation-steps", "does not apply: a step here is one whole update.",
                "Use --pipeline.datamanager.micro-batch.",
            )  # fmt: skip
        if self.mixed_precision or self.use_grad_scaler:
            raise DataError(
                "config", "mixed-precision, use-grad-scaler", "mean half precision, which overflows here.",
                "Use --pipeline.model.precision bf16.",
            )  # fmt: skip
        self.pipeline.datamanager.micro_steps(self.machine.num_devices * self.machine.num_machines)  # type: ignore
        resumed = self.load_dir is not None or self.load_checkpoint is not None
        scheduler: Any = self.optimizers[GROUP]["scheduler"]
        if scheduler is not None and not resumed:
            last = scheduler.max_steps if scheduler.max_steps is not None else self.max_num_iterations
            if last <= scheduler.start_step + scheduler.warmup_steps:
                raise DataError(
                    "config", "max-num-iterations", f"{last} leaves nothing after {scheduler.warmup_steps} of warm-up.",
                    "Train longer, or shorten --optimizers.xfactor.scheduler.warmup-steps.",
                )  # fmt: skip


def _optimizers(lr: float, warmup: int, final_ratio: float = 0.25, first: float = 1e-12) -> dict[str, Any]:
    """Linear warm-up from ``first`` to ``lr``, then half a cosine down to ``final_ratio * lr`` at the last update."""
    schedule = CosineSchedulerConfig(warmup_steps=warmup, warmup_ratio=first / lr, final_ratio=final_ratio)
    return {GROUP: {"optimizer": DecayingAdamWConfig(lr=lr), "scheduler": schedule}}


def _method(name: str, description: str, updates: int, pipeline: XFactorPipelineConfig, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "steps_per_save": 2000,
        "steps_per_eval_batch": 500,
        "steps_per_eval_image": 2000,
        "steps_per_eval_all_images": 50000,
        "optimizers": _optimizers(4e-4, 4000),
        "viewer": ViewerConfig(websocket_host="127.0.0.1", max_num_display_images=64, default_composite_depth=False),
        "machine": MachineConfig(device_type=default_device()),
        "vis": "viewer",
    }
    config = XFactorTrainerConfig(
        method_name=name, max_num_iterations=updates, pipeline=pipeline, **(defaults | options)
    )
    return MethodSpecification(config=config, description=description)


xfactor = _method(
    "xfactor",
    "XFactor, stereo-monocular: camera poses from video alone that transfer between scenes.",
    100_000,
    XFactorPipelineConfig(
        datamanager=ClipDataManagerConfig(image_size=256, batch_size=256, frames_per_sample=2),
        model=XFactorModelConfig(precision="bf16", checkpointing=True),
    ),
)

xfactor_mv = _method(
    "xfactor-mv",
    "XFactor, multi-view: the renderer sees five frames; fine-tunes xfactor's weights (--pipeline.model.init-from).",
    200_000,
    XFactorPipelineConfig(
        datamanager=ClipDataManagerConfig(image_size=256, batch_size=256, frames_per_sample=6),
        model=XFactorModelConfig(precision="bf16", checkpointing=True, context_frames=5, self_reference=0.02),
    ),
)

xfactor_tiny = _method(
    "xfactor-tiny",
    "XFactor for a laptop: pictures of 32 pixels, two CPU cores, three to five minutes.",
    2_000,
    XFactorPipelineConfig(
        # So small a network bridges short ways only.
        datamanager=ClipDataManagerConfig(
            image_size=32, batch_size=32, frames_per_sample=2, begin_seconds=0.5, end_seconds=0.5, warmup_updates=0
        ),
        model=XFactorModelConfig(
            width=64,
            heads=4,
            blocks=2,
            patch=8,
            pose=16,
            registers=2,
            layer_scale=0.1,
            self_reference=0.15,
            jitter=False,
            vary_scenes=True,
            lpips_weight=0.0,
        ),
    ),
    optimizers=_optimizers(1.5e-3, 200, final_ratio=0.1, first=1e-7),
    steps_per_save=500,
    steps_per_eval_batch=200,
    steps_per_eval_image=10000,
    steps_per_eval_all_images=10000,
)
