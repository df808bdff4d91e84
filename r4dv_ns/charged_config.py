"""The method ``r4dv-charged``: nerfstudio's tools on a folder made by ``ns-r4dv charge bake`` (spec r4dv 5.2, 8.1).

A charge is a run folder of its own: `write_run` puts a ``config.yml`` and a checkpoint without weights into it.
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Tuple, Type

import torch
import yaml
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from core_ns.atomic import write_bytes, write_text
from core_ns.schedules import allow_numpy_scalars
from core_ns.trainer import ZooTrainer, ZooTrainerConfig, default_device
from r4dv_ns.charge_store import ChargedStore
from r4dv_ns.charged_pipeline import ChargedPipelineConfig

allow_numpy_scalars()


@dataclass
class ChargedTrainerConfig(ZooTrainerConfig):
    """Tells nerfstudio's tools where a charge lies; never trains."""

    _target: Type = field(default_factory=lambda: ZooTrainer)

    def get_base_dir(self) -> Path:
        """The charge itself, instead of a folder made of names and dates."""
        manager: Any = self.pipeline.datamanager
        return Path(manager.data if manager.data is not None else manager.dataparser.data)

    def save_config(self) -> None:
        """Refuse to train.

        Raises:
            SystemExit: always, with one line.
        """
        raise SystemExit(
            "r4dv-charged has nothing to train. Train r4dv, make a charge with ns-r4dv charge bake, and open it with "
            "ns-viewer --load-config CHARGE/config.yml."
        )


r4dv_charged = MethodSpecification(
    config=ChargedTrainerConfig(
        method_name="r4dv-charged",
        max_num_iterations=1,
        pipeline=ChargedPipelineConfig(),
        optimizers={},
        viewer=ViewerConfig(websocket_host="127.0.0.1", max_num_display_images=64),
        machine=MachineConfig(device_type=default_device()),
        vis="viewer",
    ),
    description="4K4D charged: a trained r4dv in a folder of its own, in real time, without the recording. View only.",
)


def write_run(
    folder: Path, *, frame_sample: Tuple[int | None, ...] | None = None, first_frame: bool = False, **model: Any
) -> Path:
    """Make a charged folder openable: ``config.yml`` with its present place, and ``nerfstudio_models/``.

    Equal folders at equal places get equal bytes.

    Args:
        folder: with a finished ``manifest.json``.
        frame_sample: frames to play: begin, end and step, or a list; None: all.
        first_frame: play the first of them only.
        model: options of `r4dv_ns.charged_model.ChargedModelConfig` that shall differ from the charge's own.

    Returns:
        The config.yml.

    Raises:
        DataError: the folder is no charge, or has no such frames.
    """
    folder = folder.expanduser().resolve()
    ChargedStore(folder, frame_sample=frame_sample, first_frame=first_frame)
    config: Any = copy.deepcopy(r4dv_charged.config)
    # get_base_dir does not use these; core_ns.runs and readers of the file do.
    config.output_dir, config.experiment_name, config.timestamp = folder.parent, folder.name, "charged"
    config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = folder
    config.pipeline.datamanager.dataparser.frame_sample = frame_sample
    config.pipeline.datamanager.dataparser.first_frame = first_frame
    config.machine.device_type = "cpu"  # the tools choose by themselves; the file shall not depend on the machine
    for option, value in model.items():
        if not hasattr(config.pipeline.model, option):
            raise ValueError(f"r4dv-charged has no model option {option!r}")
        setattr(config.pipeline.model, option, value)
    buffer = io.BytesIO()
    state = {"_model.device_indicator_param": torch.empty(0)}
    torch.save({"step": 0, "pipeline": state, "optimizers": {}, "schedulers": {}, "scalers": {}}, buffer)
    write_bytes(folder / config.relative_model_dir / "step-000000000.ckpt", buffer.getvalue())
    write_text(folder / "config.yml", yaml.dump(config))
    return folder / "config.yml"
