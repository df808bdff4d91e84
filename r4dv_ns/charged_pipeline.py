"""The pipeline of a charge: evaluation by camera and frame, drawings for the viewer's frusta."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type

from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from r4dv_ns.charged_data import ChargedDataManagerConfig, ChargedDataset
from r4dv_ns.charged_model import ChargedModelConfig
from r4dv_ns.drawing import pinhole
from r4dv_ns.protocols import protocol


@dataclass
class ChargedPipelineConfig(ZooPipelineConfig):
    """Data manager and model of r4dv-charged."""

    _target: Type = field(default_factory=lambda: ChargedPipeline)
    datamanager: ChargedDataManagerConfig = field(default_factory=ChargedDataManagerConfig)
    """The charged folder."""
    model: ChargedModelConfig = field(default_factory=ChargedModelConfig)
    """How it is drawn."""


class ChargedPipeline(ZooPipeline):
    """See the module docstring."""

    config: ChargedPipelineConfig

    def __init__(
        self,
        config: ChargedPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        model: Any = self.model
        dataset: Any = self.datamanager.train_dataset
        dataset.thumbnail = model.thumbnail

    def image_name(self, index: int) -> str:
        """Camera and frame of a photo to compare with."""
        dataset: Any = self.datamanager.eval_dataset
        photo, manifest = dataset.photos[index], dataset.store.manifest
        return f"{manifest.views[photo.view].name}_{manifest.frames[photo.frame]}.png"

    def get_average_image_metrics(
        self,
        data_loader: Any,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, Any]:
        """As `ZooPipeline`'s; for ``ns-eval`` also the protocol: which photos were judged, and from which colours."""
        result = super().get_average_image_metrics(data_loader, image_prefix, step, output_path, get_std)
        if step is not None:
            return result
        model: Any = self.model
        dataset: ChargedDataset = data_loader.input_dataset
        manifest = dataset.store.manifest

        def photo(index: int) -> tuple[int, str, list[str]]:
            judged = dataset.photos[index]
            centre = pinhole(dataset.cameras[index : index + 1].to(model.device)).centre
            sources = model.source_names(judged.frame, centre, judged.view)
            return judged.view, manifest.frames[judged.frame], sources

        names = [view.name for view in manifest.views]
        photos = map(photo, range(len(dataset.photos)))
        result["protocol"] = protocol(names, manifest.eval_views, manifest.train_views, photos)
        return result
