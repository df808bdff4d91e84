"""Windows of clips for training, and the gallery for nerfstudio's viewer and tools (spec xfactor 2, 8.1, 8.2).

A training batch depends on (seed, step) alone and is shared out between processes: the same samples whatever their
number, the number of micro steps and of threads, and after any resume. The run folder receives the gallery, so that a
trained model can be viewed, rendered and evaluated without its clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from core_ns.errors import DataError
from dataparsers.clips_gallery import GalleryClip
from dataparsers.clips_parser import gallery_outputs
from dataparsers.clips_sequence import Sequence
from dataparsers.clips_windows import Draw, SamplePlan
from dataparsers.snapshot_parser import read_snapshot, write_snapshot
from xfactor_ns.batches import ClipBatch
from xfactor_ns.clip_loader import ClipLoader, FrameStore, relative_numbers
from xfactor_ns.clip_plan import describe, make_plan
from xfactor_ns.data_config import ClipDataManagerConfig
from xfactor_ns.gallery import GalleryDataset, GalleryPictures

__all__ = ["ClipDataManager", "ClipDataManagerConfig"]

Array = np.ndarray

GALLERY_THREADS = 2


class ClipDataManager(VanillaDataManager):
    """Serves `ClipBatch`es of windows; shows nerfstudio the gallery.

    Memory in a training run: ``cache_bytes``, the steps decoded ahead, and the decoders of the videos read last,
    whatever the number of clips. The parent's constructor does not run: it compares all cameras in a Python loop.
    """

    config: ClipDataManagerConfig
    train_dataset: GalleryDataset
    eval_dataset: GalleryDataset
    gallery: list[GalleryClip]
    """Clips that the viewer and the tools see, the training clips first."""
    micro_steps: int
    """Micro steps of an optimiser update: `next_train`'s step counts these."""

    def __init__(
        self,
        config: ClipDataManagerConfig,
        device: Any = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        del kwargs
        self.config, self.device, self.test_mode = config, device, test_mode
        self.world_size, self.local_rank, self.sampler = world_size, local_rank, None
        self.test_split = "test" if test_mode in ("test", "inference") else "val"
        self.training_run = test_mode == "val"
        self.scene_dir = config.run_dir / "scene" if config.run_dir is not None else None
        config.check_numbers()
        # The trainer's processes, which the pipeline does not name (core_ns.pipeline wraps the model by itself).
        together = comms.is_dist_avail_and_initialized()
        self._rank, self._ranks = (comms.get_rank(), comms.get_world_size()) if together else (0, 1)
        self.micro_steps = config.micro_steps(self._ranks) if self.training_run else 1
        self.dataparser = config.open_parser()
        if config.data is None:
            config.data = config.dataparser.data
        self.dataparser_config = config.dataparser
        self.includes_time = self.dataparser.includes_time
        self.snapshot = self._find_snapshot()
        if self.snapshot is not None:
            assert self.scene_dir is not None
            self.gallery = [GalleryClip.from_json(each) for each in self.snapshot["extra"]["gallery"]]
            stored: Path | None = self.scene_dir / "gallery"
        else:
            self.gallery, stored = self.dataparser.gallery(), None
        self.pictures = GalleryPictures(
            self.gallery, lambda: self.sequences, stored, config.image_size, config.resize_mode
        )
        self.train_dataparser_outputs = self._outputs("train")
        self.train_dataset = GalleryDataset(self.train_dataparser_outputs, self.pictures)
        self.eval_dataset = GalleryDataset(self._outputs("test"), self.pictures)
        self.exclude_batch_keys_from_device: list[str] = []
        self._loader: ClipLoader | None = None
        DataManager.__init__(self)  # calls setup_train and setup_eval, unless in inference mode

    def _find_snapshot(self) -> dict[str, Any] | None:
        """The run's own gallery for the tools, unless they are pointed at other data.

        ``ns-render dataset --split val`` opens the manager as training does: there it counts when the clips are gone.
        """
        file = self.scene_dir / "snapshot.json" if self.scene_dir is not None else None
        if file is None or not file.is_file():
            return None
        named = Path(self.config.data or self.config.dataparser.data)
        if self.training_run and named.exists():
            return None
        snapshot = read_snapshot(file)
        return snapshot if named == Path(snapshot["extra"]["data"]) else None

    def _outputs(self, split: Literal["train", "test"]) -> DataparserOutputs:
        data = Path(self.config.data or ".").absolute()
        return gallery_outputs(self.gallery, split, data.parent if data.is_file() else data, self.config.image_size)

    # ------------------------------------------------------------------ set-up

    def setup_train(self) -> None:
        """In a training run: plan the samples, say what there is, and store the gallery in the run's folder."""
        if not self.training_run:
            return
        main = comms.is_main_process()
        if main:
            lines = [line for _, found in self.dataparser.catalogues() for line in found.describe()]
            for line in [*lines, *describe(self.plan, self.config.warmup_updates)]:
                CONSOLE.print(line, highlight=False, markup=False, soft_wrap=True)
        if main and self.scene_dir is not None and self.snapshot is None:
            self._write_scene(self.scene_dir)

    def setup_eval(self) -> None:
        """Nothing: the loaders are made when a tool asks for them."""

    def _write_scene(self, folder: Path) -> None:
        """The gallery's cameras and pictures; the file that makes them count comes last."""

        def shown(items: Any, title: str, total: int) -> Any:
            return track(items, title, total, console=CONSOLE, transient=True, disable=total < GALLERY_THREADS * 4)

        self.pictures.store(folder / "gallery", min(self.config.workers, GALLERY_THREADS), shown)
        test = self.eval_dataset._dataparser_outputs
        extra = {"data": str(self.config.data), "gallery": [clip.to_json() for clip in self.gallery]}
        splits = {"train": self.train_dataparser_outputs, "val": test, "test": test}
        write_snapshot(folder / "snapshot.json", splits, extra)

    @cached_property
    def plan(self) -> SamplePlan:
        """The training samples. Raises DataError where the clips cannot be read."""
        parser = self.dataparser
        return make_plan(parser.catalogues(), parser.by_collection("train"), self.config.window_options())

    @cached_property
    def eval_plan(self) -> SamplePlan:
        """Samples of the held-out clips. Raises DataError where the clips cannot be read."""
        parser = self.dataparser
        return make_plan(parser.catalogues(), parser.by_collection("test"), self.config.window_options())

    @cached_property
    def frames(self) -> FrameStore:
        """Square frames of all clips, from memory or decoded."""
        return FrameStore(self.config.image_size, self.config.resize_mode, self.config.cache_bytes)

    @cached_property
    def sequences(self) -> Mapping[str, Sequence]:
        """All clips of both splits by id; none, after a line that says why, in a tool that opens a run without them."""
        try:
            clips = [*self.dataparser.split("train"), *self.dataparser.split("test")]
        except DataError as error:
            if self.snapshot is None:
                raise
            CONSOLE.print(f"The run's clips cannot be read: {error}", highlight=False, markup=False, soft_wrap=True)
            clips = []
        return {clip.id: clip for clip in clips}

    def close(self) -> None:
        """End the decoding threads."""
        if self._loader is not None:
            self._loader.close()

    # ------------------------------------------------------------------ batches

    def draws(self, step: int) -> tuple[int, int, list[Draw]]:
        """Update, micro step and samples of a step of this process."""
        update, micro = divmod(step, self.micro_steps)
        drawn = self.plan.batch(
            update, micro, size=self.config.batch_size, micros=self.micro_steps, rank=self._rank, ranks=self._ranks
        )
        return update, micro, drawn

    def next_train(self, step: int) -> tuple[ClipBatch, dict[str, Any]]:  # type: ignore[override]
        """The batch of a micro step: step = update * `micro_steps` + micro. On ``device``; the dictionary is empty.

        Raises:
            DataError: a frame does not decode.
        """
        if self._loader is None:
            config = self.config
            self._loader = ClipLoader(self.draws, self.frames, workers=config.workers, prefetch=config.prefetch)
        return self._loader.batch(step, self.device), {}

    def eval_batch(self, number: int, size: int) -> ClipBatch:
        """Samples ``number * size`` on of the held-out clips, which come in turn; windows as after the warm-up.

        Raises:
            DataError: a frame does not decode, or the clips are gone.
        """
        draws = [self.eval_plan.held_out(number * size + k) for k in range(size)]
        return self.batch_of(draws).to(self.device)

    def batch_of(self, draws: list[Draw]) -> ClipBatch:
        """Decode samples, one after the other."""
        frames = torch.from_numpy(np.stack([self.frames.read(draw.sequence, draw.frames) for draw in draws]))
        return ClipBatch(frames, relative_numbers(draws), tuple(draw.sequence.id for draw in draws), 0, 0)

    def next_eval(self, step: int) -> tuple[ClipBatch, dict[str, Any]]:  # type: ignore[override]
        """Held-out samples, as many as a process trains on at once (at most 16); the same for the same step."""
        size = self.config.batch_size // (self._ranks * self.micro_steps)
        return self.eval_batch(step * self._ranks + self._rank, min(size, 16)), {}

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A picture of the held-out part of the gallery, in turn, and its camera [1]."""
        camera, batch = self.eval_dataloader.get_camera(step % len(self.eval_dataset))
        return camera, {**batch, "image": batch["image"].to(self.device)}

    def get_train_rays_per_batch(self) -> int:
        """Pixels that a process sees in a micro step."""
        samples = self.config.batch_size // (self._ranks * self.micro_steps)
        return samples * self.config.frames_per_sample * self.config.image_size**2

    def get_eval_rays_per_batch(self) -> int:
        """As for training."""
        return self.get_train_rays_per_batch()

    # ------------------------------------------------------------------ gallery

    def clip(self, clip_id: int | str) -> UInt8[Array, "f s s 3"]:
        """The shown frames of a clip of the gallery, by number or id; read-only, uint8.

        Raises:
            DataError: there is no such clip, or a picture cannot be read.
        """
        return self.pictures.clip(self.gallery_clip(clip_id).number)

    def gallery_clip(self, clip_id: int | str) -> GalleryClip:
        """A clip of the gallery, by number or id.

        Raises:
            DataError: there is none.
        """
        found = [clip for clip in self.gallery if clip_id in (clip.number, clip.id)]
        if not found:
            some = ", ".join(repr(clip.id) for clip in self.gallery[:5])
            raise DataError("gallery", f"clip {clip_id!r}", "is not there.", f"There are {some}.")
        return found[0]

    def clip_cameras(self, clip_id: int | str) -> Float[Array, "f 3 4"]:
        """Camera-to-world matrices of a clip's shown frames, OpenGL axes, gallery world, float64."""
        return self.gallery_clip(clip_id).cameras[:, :3]

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:  # type: ignore[override]
        """All held-out pictures of the gallery in order; has a length."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def eval_dataloader(self) -> RandIndicesEvalDataloader:  # type: ignore[override]
        """``get_camera(image_idx)``: one held-out picture of the gallery (``ns-render spiral``)."""
        return RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def get_datapath(self) -> Path:
        """Where the viewer puts camera paths: the run's folder, for clips may lie where nothing can be written."""
        return self.config.run_dir or Path(self.config.data or ".")
