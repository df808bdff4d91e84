"""Small training runs of xfactor on generated clips, for the tests of its training, its model and its commands."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401

    from xfactor_ns.config import xfactor_tiny

from core_ns.images import write_image

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""

SMALL: dict[str, Any] = {"width": 32, "heads": 2, "blocks": 1, "patch": 8, "pose": 6, "registers": 2}
"""Model options with which an update takes some 20 ms on one core."""


def write_clips(folder: Path, clips: int = 6, frames: int = 12, size: tuple[int, int] = (40, 32)) -> Path:
    """Folders ``clip0``, ... of pictures (width, height) in which smooth waves move; the last is held out."""
    width, height = size
    rows, columns = np.mgrid[:height, :width] / 8.0
    for clip in range(clips):
        for frame in range(frames):
            phase, tint = clip * 1.3 + frame * 0.2, np.array([0.0, 1.0, 2.1])
            waves = np.sin(rows[..., None] + phase + tint) * np.cos(columns[..., None] - 0.7 * phase + tint * clip)
            write_image(folder / f"clip{clip}" / f"{frame:03d}.png", (127.5 + 120 * waves).astype(np.uint8))
    names = [f"clip{clip}" for clip in range(clips)]
    text = '{{"train": [{}], "test": ["{}"]}}'.format(", ".join(f'"{name}"' for name in names[:-1]), names[-1])
    (folder / "splits.json").write_text(text)
    return folder


def run_config(clips: Path, output_dir: Path, steps: int, name: str = "run", **options: Any) -> Any:
    """A config of xfactor-tiny on the CPU without viewer, evaluation and log.

    Args:
        options: of the model, or of the data manager.
    """
    config: Any = copy.deepcopy(xfactor_tiny.config)
    config.output_dir, config.data, config.timestamp = output_dir, clips, name
    config.experiment_name = clips.name
    config.vis, config.machine.device_type, config.max_num_iterations = "tensorboard", "cpu", steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.steps_per_eval_all_images = config.logging.steps_per_log = 10**6
    config.save_only_latest_checkpoint = False
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    config.optimizers["xfactor"]["optimizer"].lr = 3e-3
    config.optimizers["xfactor"]["scheduler"].warmup_steps = 3
    config.optimizers["xfactor"]["scheduler"].max_steps = 40
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.data, manager.workers = clips, 1
    for option, value in {**SMALL, "batch_size": 8, "image_size": 32, **options}.items():
        holder = model if hasattr(model, option) else manager
        assert hasattr(holder, option), option
        setattr(holder, option, value)
    return config


def open_trainer(config: Any, rank: int = 0, world: int = 1) -> Any:
    """A trainer that is set up; its ``losses`` are those of each step."""
    torch.manual_seed(config.machine.seed)  # as ns-train does
    config.pipeline.datamanager.run_dir = config.get_base_dir()
    trainer = config.setup(local_rank=rank, world_size=world)
    trainer.setup()
    trainer.losses = {}
    step_once = trainer.train_iteration

    def recorded(step: int) -> Any:
        output = step_once(step)
        trainer.losses[step] = float(output[0].detach())
        return output

    trainer.train_iteration = recorded
    return trainer


def train(config: Any) -> Any:
    """Train to the end; the finished trainer of `open_trainer`."""
    trainer = open_trainer(config)
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of all weights."""
    return {key: value.clone() for key, value in trainer.pipeline.model.net.state_dict().items()}
