"""The pipeline: hulls before training, the model joined to its source photos, evaluation by camera and frame."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type

from core_ns.pipeline import ZooPipeline, ZooPipelineConfig
from dataparsers.easymocap_parser import scene_bounds
from dataparsers.easymocap_sequence import Sequence
from r4dv_ns.datamanager import R4DVDataManagerConfig
from r4dv_ns.drawing import pinhole
from r4dv_ns.frame_dataset import FrameDataset, sequence_of
from r4dv_ns.hull_meta import read_meta
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.preflight import Preflight, estimate
from r4dv_ns.protocols import protocol


@dataclass
class R4DVPipelineConfig(ZooPipelineConfig):
    """Data manager and model of r4dv."""

    _target: Type = field(default_factory=lambda: R4DVPipeline)
    datamanager: R4DVDataManagerConfig = field(default_factory=R4DVDataManagerConfig)
    """Multi-view video, hulls and source photos."""
    model: R4DVModelConfig = field(default_factory=R4DVModelConfig)
    """The point model."""

    def open(self, data: Path | None) -> Sequence:
        """The recording, as the options choose of it; no photo is decoded.

        Args:
            data: the trainer's ``--data``, which goes before the data manager's.

        Raises:
            DataError: the recording cannot be used.
        """
        parser: Any = copy.deepcopy(self.datamanager.dataparser)
        named = data or self.datamanager.data
        if named is not None:
            parser.data = Path(named)
        return sequence_of(parser.setup().get_dataparser_outputs(split="train"))

    def plan(self, sequence: Sequence, output_dir: Path, checkpoints: int, on_gpu: bool) -> Preflight:
        """What a training will need in memory and on disk; makes nothing.

        Args:
            sequence: of `open`.
            output_dir: where checkpoints go.
            checkpoints: how many are kept.
            on_gpu: whether the model lies on one.

        Raises:
            DataError: no box of the subject can be found.
        """
        manager = self.datamanager
        known = read_meta(manager.points_dir or sequence.root)
        box = known.bounds if known is not None else scene_bounds(sequence)[0]
        model = self.model
        return estimate(
            sequence, points=manager.hull.points, shared_parameters=model.shared_parameters(len(sequence.frames)),
            sources=manager.sources, layers=model.layers, cache_bytes=int(manager.cache_gb * 1e9),
            workers=manager.workers, bounds=box if manager.crop_to_bounds else None, pad=manager.crop_pad,
            checkpoints=checkpoints, hulls_exist=known is not None, folder=output_dir, on_gpu=on_gpu,
            still_points=self.still_points,
        )  # fmt: skip

    @property
    def still_points(self) -> int:
        """Points that all frames have in common."""
        return 0

    def check_data(self) -> None:
        """Open the sequence and make the hulls, so that what is wrong with either is said before a run folder exists.

        Raises:
            DataError: the sequence is unusable or gives no hull.
        """
        manager: Any = copy.deepcopy(self.datamanager)
        manager.run_dir = None
        manager.setup(device="cpu", test_mode="val").close()


class R4DVPipeline(ZooPipeline):
    """See the module docstring."""

    config: R4DVPipelineConfig

    def __init__(
        self,
        config: R4DVPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        model: Any = self.model
        manager: Any = self.datamanager
        model.sources = manager.source_bank

    def image_name(self, index: int) -> str:
        """Camera and frame of an evaluation photo; all cameras' files bear the same names."""
        dataset: Any = self.datamanager.eval_dataset
        path = dataset.image_filenames[index]
        return f"{path.parent.name}_{path.name}"

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
        if step is None:
            model: Any = self.model
            dataset: FrameDataset = data_loader.input_dataset
            sequence = dataset.sequence
            names = sequence.names

            def photo(index: int) -> tuple[int, str, list[str]]:
                frame, centre = (
                    dataset.frame(index),
                    pinhole(dataset.cameras[index : index + 1].to(model.device)).centre,
                )
                view = dataset.view(index)
                sources = [names[other] for other in model.nearest_views(frame, centre, view)]
                return view, sequence.frames[frame], sources

            photos = map(photo, range(len(dataset)))
            result["protocol"] = protocol(names, sequence.eval_views, sequence.train_views, photos)
        return result
