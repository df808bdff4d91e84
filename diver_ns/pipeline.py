"""The pipeline: cube and background from the data, exact rendering for evaluation, one device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type

from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from diver_ns.datamanager import DiverDataManagerConfig
from diver_ns.model import DiverModel, DiverModelConfig


@dataclass
class DiverPipelineConfig(ZooPipelineConfig):
    """Data manager and model of diver."""

    _target: Type = field(default_factory=lambda: DiverPipeline)
    datamanager: DiverDataManagerConfig = field(default_factory=DiverDataManagerConfig)
    """Photos, cameras and the cube."""
    model: DiverModelConfig = field(default_factory=DiverModelConfig)
    """The voxel model."""
    eval_renderer: Literal["exact", "realtime"] = "exact"
    """What evaluation measures."""

    def check_data(self) -> None:
        """Parse the scene and send a sample of training rays at the cube; photos are only read for the background.

        Raises:
            DataError: the scene is unusable, or fewer than 1 % of the rays meet the cube.
        """
        manager: Any = copy.deepcopy(self.datamanager)
        manager.run_dir = None
        # The run itself prints the same sentences a moment later.
        quiet, CONSOLE.quiet = CONSOLE.quiet, True
        try:
            manager.setup(device="cpu", test_mode="inference").hit_share()
        finally:
            CONSOLE.quiet = quiet


class DiverPipeline(ZooPipeline):
    """See the module docstring."""

    config: DiverPipelineConfig

    def __init__(
        self,
        config: DiverPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        if world_size > 1:
            raise DataError(
                "config", "machine.num-devices", "diver trains on one device: its tables change their size.",
                "Use --machine.num-devices 1.",
            )  # fmt: skip
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)

    @contextlib.contextmanager
    def _exactly(self) -> Iterator[None]:
        """Evaluation takes the exact path unless the config says otherwise."""
        model: Any = self.model
        assert isinstance(model, DiverModel)
        before, model.exact = model.exact, self.config.eval_renderer == "exact"
        try:
            yield
        finally:
            model.exact = before

    def get_average_image_metrics(
        self,
        data_loader: Any,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, Any]:
        """As `ZooPipeline`'s, by the renderer that ``eval_renderer`` names."""
        with self._exactly():
            return super().get_average_image_metrics(data_loader, image_prefix, step, output_path, get_std)

    def get_eval_image_metrics_and_images(self, step: int) -> Any:
        """As nerfstudio's, by the renderer that ``eval_renderer`` names."""
        with self._exactly():
            return super().get_eval_image_metrics_and_images(step)
