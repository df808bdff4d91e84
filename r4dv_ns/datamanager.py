"""Multi-view video for training and for nerfstudio's tools, decoded when needed (spec r4dv 8.3).

A training step gets one cropped photo and the numbers of the source views its colours come from; which ones depends on
(seed, step, process) alone. No stock code path that decodes a whole split is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Tuple, Type

import numpy as np
import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils import comms

from core_ns.errors import DataError
from core_ns.frames import transform_points
from dataparsers.easymocap_attention import box_corners
from dataparsers.easymocap_parser import EasyMocapDataParserConfig
from dataparsers.easymocap_sequence import Sequence
from r4dv_ns.frame_dataset import FrameDataset, photo_batch, sequence_of
from r4dv_ns.hull_meta import HullMeta, HullOptions, read_meta
from r4dv_ns.source_choice import Metric, training_sources
from r4dv_ns.sources import Crop, SourceBank, crop_cache
from r4dv_ns.target_choice import EVAL, SOURCES, TargetChoice, seeded

Array = np.ndarray


@dataclass
class R4DVDataManagerConfig(FullImageDatamanagerConfig):
    """Training photos of multi-view video."""

    _target: Type = field(default_factory=lambda: R4DVDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=EasyMocapDataParserConfig)
    """Reads the recording."""
    sources: int = 4
    """Photos that a training step's colours are blended from."""
    source_metric: Metric = "distance"
    """Which photos are near the target: by distance of the cameras, or by angle seen from the middle of the bounds."""
    keep_target: float = 0.1
    """Probability that the target's own photo may be among its sources."""
    frame_block: int = 4
    """Consecutive steps that stay with a frame, so that its photos are decoded once; 1 is the original."""
    cache_gb: float = 2.0
    """Decoded photos kept in memory, in 10^9 bytes; the number of frames does not matter."""
    workers: int = 2
    """Threads that decode photos ahead."""
    crop_to_bounds: bool = True
    """Cut photos to where the scene's bounds project, in training and as sources."""
    crop_to_mask: bool = False
    """Cut training photos to their mask as well. Points outside the mask's surroundings are then never corrected."""
    crop_pad: int = 25
    """Pixels kept around either."""
    seed: int = 9
    """Batches depend on this number, the step and the process alone: a resumed run sees the same ones."""
    points_dir: Optional[Path] = None
    """Folder for hulls and surface points; default: the recording's own."""
    hull: HullOptions = field(default_factory=HullOptions)
    """How point clouds are carved from the masks."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the trainer: receives a copy of the hulls' record, so that tools crop as the training did."""

    # What follows has no meaning for photos that are decoded on demand; nerfstudio's tools set some of them.
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_image_indices: tyro.conf.Suppress[Optional[Tuple[int, ...]]] = (0,)
    cache_images: tyro.conf.Suppress[Literal["cpu", "gpu"]] = "cpu"
    cache_images_type: tyro.conf.Suppress[Literal["uint8", "float32"]] = "uint8"
    max_thread_workers: tyro.conf.Suppress[Optional[int]] = None
    train_cameras_sampling_strategy: tyro.conf.Suppress[Literal["random", "fps"]] = "random"
    train_cameras_sampling_seed: tyro.conf.Suppress[int] = 42
    fps_reset_every: tyro.conf.Suppress[int] = 100
    masks_on_gpu: tyro.conf.Suppress[bool] = False
    images_on_gpu: tyro.conf.Suppress[bool] = False


class Draw(NamedTuple):
    """What a training step sees; numbers of the sequence's frames and views."""

    frame: int
    view: int
    sources: list[int]


class R4DVDataManager(FullImageDatamanager, VanillaDataManager):
    """Targets and sources for the point model; owns the sequence, its hulls and the bank of source photos.

    It is a `FullImageDatamanager` by its batches (one camera and its photo), and a `VanillaDataManager` only because
    ``ns-render spiral`` accepts no other. Neither parent's constructor runs: the second compares all cameras in a
    Python loop, a minute for 60 views of 700 frames.
    """

    config: R4DVDataManagerConfig  # type: ignore[assignment]
    train_dataset: FrameDataset
    eval_dataset: FrameDataset
    hulls: HullMeta | None
    """The hulls' record; None where a tool opens a recording whose hulls were never made."""
    source_bank: SourceBank
    """Photos of the training views, cropped, by frame and view."""

    def __init__(
        self,
        config: R4DVDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        del kwargs
        self.config, self.device = config, device
        self.world_size, self.local_rank, self.sampler = world_size, local_rank, None
        self.test_mode: Literal["test", "val", "inference"] = test_mode
        self.test_split = "test" if test_mode in ("test", "inference") else "val"
        self.training_run = test_mode == "val"
        _check_numbers(config)
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        else:
            config.data = config.dataparser.data
        self.dataparser_config = config.dataparser
        self.dataparser = config.dataparser.setup()
        self.includes_time = self.dataparser.includes_time
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs(split="train")
        self.sequence = sequence_of(self.train_dataparser_outputs)
        _refuse_lenses(self.sequence)
        self.hulls = self._known_hulls()
        self.train_dataset, self.eval_dataset = self.create_train_dataset(), self.create_eval_dataset()
        self.exclude_batch_keys_from_device: list[str] = []
        if self.hulls is not None:
            self._set_bounds(self.hulls.bounds, "hulls")
        DataManager.__init__(self)  # calls setup_train and setup_eval, unless in inference mode
        metadata = self.train_dataset.metadata
        bounds = np.asarray(metadata["bounds"], dtype=np.float64)
        self._set_bounds(bounds, metadata["bounds_source"])
        cropped = bounds if config.crop_to_bounds else None
        cache = crop_cache(
            self.sequence, cropped, capacity=int(config.cache_gb * 1e9), workers=config.workers, pad=config.crop_pad
        )
        self.source_bank = SourceBank(self.sequence, cache, cropped, pad=config.crop_pad, device=device)
        # Not the arguments: `ZooPipeline` makes the data manager of every process as if it were alone.
        self._rank, world = comms.get_rank(), comms.get_world_size()
        self._targets = TargetChoice(
            len(self.sequence.frames), self.sequence.train_views,
            block=config.frame_block, seed=config.seed, rank=self._rank, world_size=world,
        )  # fmt: skip
        self._middle = transform_points(bounds.mean(axis=0)[None], self.sequence.transform)[0]
        self._batch_pixels = 0

    # ------------------------------------------------------------------ set-up

    def create_train_dataset(self) -> FrameDataset:
        """The training views at all frames."""
        return FrameDataset(self.train_dataparser_outputs)

    def create_eval_dataset(self) -> FrameDataset:
        """The held-out views (training views where none is held out) at the frames to evaluate, full size."""
        return FrameDataset(self.dataparser.get_dataparser_outputs(split=self.test_split))

    @property
    def points_folder(self) -> Path:
        """Holds vhulls/, surfs/ and r4dv/meta.json."""
        return self.config.points_dir or self.sequence.root

    def setup_train(self) -> None:
        """Make the hulls in a training run; the tools only read what is there.

        Raises:
            DataError: see `ensure_hulls`.
        """
        self.train_dataset.serve_thumbnails = True
        if self.training_run:
            from r4dv_ns.hull_run import ensure_hulls  # scipy, which the list of methods must not wait for

            given = self.sequence.options.bounds
            # An earlier record's box must not become the place to search: hulls would shrink from run to run.
            self.sequence.bounds = None if given is None else np.asarray(given, dtype=np.float64)
            self.hulls = ensure_hulls(self.sequence, self.points_folder, self.config.hull)
            self._set_bounds(self.hulls.bounds, "hulls")
            self.train_dataset.metadata["hulls"] = self.hulls  # the model starts from their points
            if self.config.run_dir is not None and comms.is_main_process():
                dataclasses.replace(self.hulls, folder=self.config.run_dir / "scene").write()

    def setup_eval(self) -> None:
        """Nothing: the loaders of single photos are made when a tool asks for them."""

    def _known_hulls(self) -> HullMeta | None:
        """The record that a run was trained with, else that of an earlier hull stage."""
        for folder in (self.config.run_dir and self.config.run_dir / "scene", self.points_folder):
            meta = None if folder is None else read_meta(folder)
            if meta is not None:
                return dataclasses.replace(meta, folder=self.points_folder)
        return None

    def _set_bounds(self, bounds: Float[Array, "2 3"], source: str) -> None:
        """Tell everyone what is reconstructed: files' world in the sequence, nerfstudio's world in scene boxes."""
        self.sequence.bounds = np.asarray(bounds, dtype=np.float64).copy()
        corners = transform_points(box_corners(self.sequence.bounds), self.sequence.transform)
        aabb = torch.from_numpy(np.stack([corners.min(axis=0), corners.max(axis=0)])).float()
        for dataset in (self.train_dataset, self.eval_dataset):
            dataset.scene_box = SceneBox(aabb=aabb.clone())
            dataset._dataparser_outputs.scene_box = SceneBox(aabb=aabb.clone())
            for metadata in (dataset.metadata, dataset._dataparser_outputs.metadata):
                metadata.update(bounds=self.sequence.bounds.tolist(), bounds_source=source)

    def close(self) -> None:
        """End the decoding threads and drop the cached photos."""
        self.source_bank.cache.close()

    # ------------------------------------------------------------------ training

    def draw(self, step: int) -> Draw:
        """Frame, view and sources of a step; depends on (seed, step, process) alone."""
        frame, view = self._targets.at(step)
        views = self.source_bank.views
        rows = training_sources(
            views.index(view), self.source_bank.centres(frame), self.config.sources,
            seeded(self.config.seed, SOURCES, step, self._rank),
            keep_target=self.config.keep_target, metric=self.config.source_metric, scene_centre=self._middle,
        )  # fmt: skip
        return Draw(frame, view, [views[row] for row in rows])

    def _photos_of(self, step: int, ahead: int) -> Iterator[tuple[int, int]]:
        """(frame, view) in the order in which the steps from this one on need them."""
        for each in range(step, step + 1 + ahead):
            frame, view, sources = self.draw(each)
            yield frame, view
            yield from ((frame, source) for source in sources)

    def target(self, step: int, frame: int, view: int) -> Crop:
        """The photo that a step compares with. Raises DataError when it cannot be decoded."""
        crop = self.source_bank.crop(frame, view)
        return crop.around_mask(self.config.crop_pad) if self.config.crop_to_mask else crop

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """One target: its cropped pinhole camera [1] and its photo.

        Returns:
            camera: with ``times`` [1, 1] and ``metadata`` view_idx, frame_idx [1, 1] and sources [1, S] (int64).
            batch: see `photo_batch`, and ``sources``: the source views' numbers, for `SourceBank.get`. On ``device``.

        Raises:
            DataError: a photo or mask cannot be decoded.
        """
        frame, view, sources = self.draw(step)
        self.source_bank.prefetch(self._photos_of(step, max(self.config.frame_block, 2)))
        crop = self.target(step, frame, view)
        index = frame * len(self.source_bank.views) + self.source_bank.views.index(view)
        batch = photo_batch(crop, index=index, view=view, frame=frame, device=self.device)
        camera = cropped_camera(self.train_dataset.cameras[index : index + 1], crop)
        assert camera.metadata is not None
        camera.metadata["sources"] = torch.tensor([sources])
        self._batch_pixels = batch["image"].shape[0] * batch["image"].shape[1]
        return camera.to(self.device), {**batch, "sources": sources}

    def get_train_rays_per_batch(self) -> int:
        """Pixels of the last target; before the first, of the first step's crop."""
        if not self._batch_pixels:
            frame, view = self._targets.at(0)
            _, _, width, height = self.source_bank.rectangle(frame, view)
            self._batch_pixels = width * height
        return self._batch_pixels

    # ------------------------------------------------------------------ evaluation and tools

    def next_eval(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """As `next_eval_image`."""
        return self.next_eval_image(step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """One photo of the evaluation split in full size, chosen by (seed, step), and its camera [1]."""
        index = int(seeded(self.config.seed, EVAL, step).integers(len(self.eval_dataset)))
        camera, batch = self.eval_dataloader.get_camera(index)
        return camera, {**batch, "image": batch["image"].to(self.device)}

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:  # type: ignore[override]
        """All photos of the evaluation split in order, one at a time; has a length."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def eval_dataloader(self) -> RandIndicesEvalDataloader:
        """``get_camera(image_idx)``: one photo of the evaluation split (``ns-render spiral``)."""
        return RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def cached_train(self) -> Items[dict[str, Any]]:  # type: ignore[override]
        """What the parent holds decoded: here each item is decoded when it is indexed."""
        return self.train_dataset  # type: ignore[return-value]

    @cached_property
    def cached_eval(self) -> Items[dict[str, Any]]:  # type: ignore[override]
        """As `cached_train`."""
        return self.eval_dataset  # type: ignore[return-value]


def cropped_camera(camera: Cameras, crop: Crop) -> Cameras:
    """The camera [1] of a crop: principal point and size moved; times and metadata stay."""
    x, y, width, height = crop.rectangle
    camera.cx, camera.cy = camera.cx - x, camera.cy - y
    camera.width, camera.height = torch.full_like(camera.width, width), torch.full_like(camera.height, height)
    return camera


def _check_numbers(config: R4DVDataManagerConfig) -> None:
    """Refuse settings that no training can have.

    Raises:
        DataError: naming the option.
    """
    at_least = {"sources": 1, "frame_block": 1, "workers": 1, "cache_gb": 0, "crop_pad": 0, "seed": 0, "keep_target": 0}
    wrong = [(name, f"{least} or more") for name, least in at_least.items() if not getattr(config, name) >= least]
    if not config.keep_target <= 1:
        wrong.append(("keep_target", "a probability"))
    for name, remedy in wrong:
        option = name.replace("_", "-")
        raise DataError("config", f"pipeline.datamanager.{option}", f"is {getattr(config, name)}.", f"Give {remedy}.")


def _refuse_lenses(sequence: Sequence) -> None:
    """Points are drawn and photos sampled with pinhole cameras.

    Raises:
        DataError: photos are delivered as distorted as they are stored.
    """
    bent = [view.name for view in sequence.views if any(model.is_distorted for model in view.cameras)]
    if sequence.options.undistort == "none" and bent:
        raise DataError(
            sequence.calibration_dir, "--undistort none", f"leaves the distortion of camera {bent[0]} in its photos.",
            "Use --undistort same or optimal.",
        )  # fmt: skip
