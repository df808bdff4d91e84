"""The pipeline: hands the model's mesh options to the data manager, which loads the mesh once for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type

import torch

from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from core_ns.raycast import need_caster
from dataparsers.mesh import load_mesh
from xscale_ns.datamanager import XScaleDataManagerConfig
from xscale_ns.model import XScaleModelConfig


@dataclass
class XScalePipelineConfig(ZooPipelineConfig):
    """Data manager and model of xscale-nvs."""

    _target: Type = field(default_factory=lambda: XScalePipeline)
    datamanager: XScaleDataManagerConfig = field(default_factory=XScaleDataManagerConfig)
    """Training pixels and the mesh."""
    model: XScaleModelConfig = field(default_factory=XScaleModelConfig)
    """The surface hash field."""

    def link_mesh(self) -> None:
        """Copy mesh path and caster from the model's options to the data manager's."""
        if self.model.mesh_path is not None:
            self.model.mesh_path = Path(self.model.mesh_path).expanduser().resolve()
            self.datamanager.mesh_path = self.model.mesh_path
            parser: Any = self.datamanager.dataparser
            if getattr(parser, "mesh", False) is None:
                parser.mesh = self.model.mesh_path
        self.datamanager.caster = self.model.caster

    def check_data(self) -> None:
        """Parse the scene and read the mesh, before anything is written.

        Raises:
            DataError: naming what is wrong with either.
            MissingExtra: nothing is installed that casts rays.
        """
        need_caster(self.model.caster, "cuda" if torch.cuda.is_available() else "cpu")
        self.link_mesh()
        super().check_data()
        if self.datamanager.mesh_path is not None:
            load_mesh(self.datamanager.mesh_path)


class XScalePipeline(ZooPipeline):
    """See the module docstring."""

    config: XScalePipelineConfig

    def __init__(
        self,
        config: XScalePipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        config.link_mesh()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
