"""Small training runs of r4dv for the tests of its model, its viewer and its commands."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401

    from r4dv_ns.config import r4dv_tiny

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""


def run_config(recording: Path, output_dir: Path, steps: int, name: str = "run", **model: Any) -> Any:
    """A config of r4dv-tiny on the CPU without viewer, evaluation and log; model options as keywords.

    2000 points a frame, two plane levels from 32 texels: a step takes some 50 ms on one core.
    """
    config: Any = copy.deepcopy(r4dv_tiny.config)
    config.output_dir, config.data, config.timestamp = output_dir, recording, name
    config.experiment_name = recording.name
    config.vis, config.machine.device_type, config.max_num_iterations = "tensorboard", "cpu", steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.steps_per_eval_all_images = config.logging.steps_per_log = 10**6
    config.save_only_latest_checkpoint = False
    config.logging.local_writer.enable = False
    manager = config.pipeline.datamanager
    manager.data, manager.hull.points = recording, 2000
    for option, value in {"plane_base": 32, "cnn_grad_warmup": 20, **model}.items():
        assert hasattr(config.pipeline.model, option), option
        setattr(config.pipeline.model, option, value)
    return config


def open_trainer(config: Any) -> Any:
    """A trainer that is set up; ``losses``, ``quality`` (PSNR inside the mask) and ``whole`` (of the crop) by step."""
    torch.manual_seed(config.machine.seed)  # as ns-train does
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.losses, trainer.quality, trainer.whole = {}, {}, {}
    step_once = trainer.train_iteration

    def recorded(step: int) -> Any:
        output = step_once(step)
        trainer.losses[step] = float(output[0].detach())
        trainer.quality[step], trainer.whole[step] = (float(output[2][name]) for name in ("psnr_masked", "psnr"))
        return output

    trainer.train_iteration = recorded
    return trainer


def train(config: Any) -> Any:
    """Train to the end; the finished trainer of `open_trainer`."""
    trainer = open_trainer(config)
    trainer.config.viewer.quit_on_train_completion = True
    trainer.train()
    return trainer


def held_out(trainer: Any, key: str = "psnr_masked") -> float:
    """Mean of a metric over the evaluation photos."""
    pipeline = trainer.pipeline
    pipeline.eval()
    values = []
    for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader:
        outputs = pipeline.model.get_outputs_for_camera(camera)
        values.append(pipeline.model.get_image_metrics_and_images(outputs, batch)[0][key])
    return sum(values) / len(values)
