"""Small training runs of megascenes on generated pairs, for the tests of its training, its model and its commands."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer
    import nerfstudio.models.nerfacto  # noqa: F401

    from megascenes_ns.config import megascenes_tiny
    from megascenes_ns.networks import Networks
    from megascenes_ns.sizes import Sizes

    Networks.fresh(Sizes.tiny(), 0)  # diffusers and transformers

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""


def run_config(data: Path, output_dir: Path, steps: int, name: str = "run", **options: Any) -> Any:
    """A config of megascenes-tiny on the CPU without viewer, evaluation and log.

    Args:
        options: of the model, or of the data manager.
    """
    config: Any = copy.deepcopy(megascenes_tiny.config)
    config.output_dir, config.data, config.timestamp = output_dir, data, name
    config.experiment_name = data.stem
    config.vis, config.machine.device_type, config.max_num_iterations = "tensorboard", "cpu", steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.steps_per_eval_all_images = config.logging.steps_per_log = 10**6
    config.save_only_latest_checkpoint = False
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.data, manager.workers, manager.batch_size = data, 1, 4
    for group in config.optimizers.values():
        group["scheduler"].warmup_steps = 3
    for option, value in options.items():
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


def weights(trainer: Any, frozen: bool = False) -> dict[str, torch.Tensor]:
    """Copies of the trained (or the frozen) weights."""
    state = trainer.pipeline.model.networks.state_dict()
    return {key: value.clone() for key, value in state.items()
            if key.startswith(("vae.", "image_encoder.")) == frozen}  # fmt: skip


def fixed_loss(trainer: Any, split: str = "eval", networks: Any = None) -> float:
    """The fixed-noise loss of all pairs of a split."""
    manager = trainer.pipeline.datamanager
    numbers = (manager.train_dataset if split == "train" else manager.eval_dataset).numbers
    return float(torch.stack(list(trainer.pipeline.fixed_loss(numbers, networks).values())).mean())
