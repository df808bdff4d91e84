"""Small trainings of a subject with a room behind it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from capture_runs import run_config

from r4dv_ns.joint_config import r4dv_bg_tiny


def joint_config(
    recording: Path, output_dir: Path, steps: tuple[int, int, int], name: str = "run", **model: Any
) -> Any:
    """A config of r4dv-bg-tiny as `run_config` makes one of r4dv-tiny: 600 points a frame, 1500 behind them."""
    plain = run_config(recording, output_dir, sum(steps), name)
    config: Any = copy.deepcopy(r4dv_bg_tiny.config)
    for entry in (
        "output_dir", "data", "timestamp", "experiment_name", "vis", "machine", "max_num_iterations", "steps_per_save",
        "steps_per_eval_batch", "steps_per_eval_image", "steps_per_eval_all_images", "logging",
        "save_only_latest_checkpoint",
    ):  # fmt: skip
        setattr(config, entry, getattr(plain, entry))
    manager = config.pipeline.datamanager
    manager.data, manager.hull.points, manager.background.points = recording, 600, 1500
    manager.background.depths, manager.hull.voxel = 32, 0.04
    config.pipeline.model.room.plane_base = 32
    small = {
        "plane_base": 32,
        "cnn_grad_warmup": 3,
        "cnn_grad_every": 2,
        "sources": 3,
        "stage_steps": steps,
        "occlusion_every": 1,
    }
    manager.sources = 3
    for option, value in {**small, **model}.items():
        assert hasattr(config.pipeline.model, option), option
        setattr(config.pipeline.model, option, value)
    return config


def branch_values(model: Any, room: bool) -> dict[str, Any]:
    """Copies of the parameters of the background, or of all others."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.startswith("room.") == room
    }
