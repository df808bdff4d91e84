"""nerfstudio's pipeline: strict checkpoint loading, data parallelism on CPU as well, per-image evaluation results."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Type, cast

import torch
import torch.distributed as dist
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch.nn.parallel import DistributedDataParallel

from core_ns.errors import DataError
from core_ns.images import write_image


@dataclass
class ZooPipelineConfig(VanillaPipelineConfig):
    """nerfstudio's pipeline configuration with a data check that runs before anything is written."""

    _target: Type = field(default_factory=lambda: ZooPipeline)

    def check_data(self) -> None:
        """Parse the data set once, decoding no image.

        Raises:
            DataError: naming what is wrong with it.
        """
        manager: Any = self.datamanager
        if manager.data is not None:
            manager.dataparser.data = Path(manager.data)
        manager.dataparser.setup().get_dataparser_outputs(split="train")


class ZooPipeline(VanillaPipeline):
    """See the module docstring."""

    def __init__(
        self,
        config: ZooPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        # The base class gives DistributedDataParallel a device id even on CPU, where torch refuses one; wrap here.
        super().__init__(config, device, test_mode, 1, local_rank, grad_scaler)
        self.world_size = world_size
        if world_size > 1:
            on_gpu = torch.device(device).type == "cuda"
            wrapped = DistributedDataParallel(
                self._model, device_ids=[local_rank] if on_gpu else None, find_unused_parameters=True
            )
            self._model = cast(Model, wrapped)
            dist.barrier()

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly: a missing or unknown key is an error, never skipped.

        Raises:
            DataError: the checkpoint does not fit the model.
        """
        state = {re.sub(r"^_model\.module\.", "_model.", key): value for key, value in loaded_state.items()}
        self.model.update_to_step(step)
        own = {re.sub(r"^_model\.module\.", "_model.", key) for key in self.state_dict()}
        missing, unknown = sorted(own - set(state)), sorted(set(state) - own)
        if missing or unknown:
            raise DataError(
                "checkpoint",
                f"step {step}",
                f"does not fit this model: missing {missing[:5]}, unknown {unknown[:5]}.",
                "Use the config.yml that lies beside it.",
            )
        if self.world_size > 1:
            state = {re.sub(r"^_model\.", "_model.module.", key): value for key, value in state.items()}
        try:
            self.load_state_dict(state, strict=True)
        except RuntimeError as error:  # torch lists the tensors of another shape, one a line
            wrong = str(error).strip().splitlines()[-1].strip()
            raise DataError(
                "checkpoint",
                f"step {step}",
                f"does not fit this model: {wrong}",
                "Use the config.yml that lies beside it.",
            ) from error

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state without DistributedDataParallel's prefix, so any number of processes can load it."""
        state = super().state_dict(*args, **kwargs)
        return {re.sub(r"^_model\.module\.", "_model.", key): value for key, value in state.items()}

    def image_name(self, index: int) -> str:
        """Name of an evaluation photo in the results; unique where file names are."""
        return self.datamanager.eval_dataset.image_filenames[index].name  # type: ignore[union-attr]

    def get_average_image_metrics(
        self,
        data_loader: Any,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, Any]:
        """Mean metrics over a loader's images.

        Called by ``ns-eval`` (no step) the result also holds ``per_image``: one dict of metrics per photo; pictures
        are saved under the photo's own name. A metric that an image does not define (a view without hits has no masked
        PSNR) is averaged over those that do.
        """
        self.eval()
        rows: list[dict[str, Any]] = []
        for camera, batch in data_loader:
            start = perf_counter()
            outputs = self.model.get_outputs_for_camera(camera=camera)
            if torch.device(self.device).type == "cuda":
                torch.cuda.synchronize()
            seconds = perf_counter() - start
            metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
            name = self.image_name(int(batch["image_idx"]))
            if output_path is not None:
                for key, image in images.items():
                    array = (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
                    write_image(output_path / f"{image_prefix}_{Path(name).stem}_{key}.png", array)
            pixels = int(camera.height.item() * camera.width.item())
            rows.append({"file": name, **metrics, "num_rays_per_sec": pixels / seconds, "fps": 1.0 / seconds})
        self.train()
        result: dict[str, Any] = {}
        for key in sorted({key for row in rows for key in row} - {"file"}):
            values = torch.tensor([float(row[key]) for row in rows if key in row], dtype=torch.float64)
            result[key] = float(values.mean())
            if get_std:
                result[f"{key}_std"] = float(values.std()) if len(values) > 1 else 0.0
        if step is None:
            result["per_image"] = rows
        return result
