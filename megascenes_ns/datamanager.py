"""Pairs for training, and cameras with references for nerfstudio's viewer and tools (spec megascenes 8.2).

A training batch depends on (seed, step) alone and is shared out between processes: the same pairs whatever their
number, the number of micro batches and of threads, and after any resume. The run folder receives the first reference
and all cameras, so that a trained model can be viewed and rendered without its data.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from core_ns.errors import DataError
from dataparsers.megascenes_missing import MISSING_FILE, write_missing
from megascenes_ns.batches import PairBatch
from megascenes_ns.canonical import c2w_ns_from_rel
from megascenes_ns.data_config import PairDataManagerConfig
from megascenes_ns.latent_cache import LatentCache
from megascenes_ns.pair_order import share
from megascenes_ns.pair_reader import PairReader
from megascenes_ns.reference_shelf import ReferenceShelf
from megascenes_ns.run_references import RunFolder, opener, photo_reference

__all__ = ["PairDataManager", "PairDataManagerConfig"]

Array = np.ndarray


class PairDataset(InputDataset):
    """Targets of the shown pairs, for nerfstudio's tools: unpadded, of the cameras' sizes."""

    exclude_batch_keys_from_device: list[str] = ["image"]  # noqa: RUF012 (nerfstudio's name and type)

    def __init__(self, outputs: DataparserOutputs, manager: PairDataManager) -> None:
        super().__init__(outputs)
        assert outputs.cameras.metadata is not None
        self.numbers = [int(number) for number in outputs.cameras.metadata["pair_idx"].flatten()]
        self._manager = manager

    def get_numpy_image(self, image_idx: int) -> UInt8[Array, "h w 3"]:
        """The photo. Raises DataError when it cannot be read."""
        return self._manager.target(self.numbers[image_idx])

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "h w 3"]:
        """The photo in [0, 1]."""
        return torch.tensor(self.get_numpy_image(image_idx)).float() / 255.0

    def get_image_uint8(self, image_idx: int) -> UInt8[Tensor, "h w 3"]:
        """The photo."""
        return torch.tensor(self.get_numpy_image(image_idx))


class ReferenceFirstDataloader(RandIndicesEvalDataloader):
    """``get_camera(0)`` is the first pair's reference itself, which ``ns-render spiral`` circles then."""

    def __init__(self, dataset: PairDataset, device: Any) -> None:
        super().__init__(dataset, device=device)

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, dict[str, Any]]:
        """The camera of an evaluation pair, or for 0 that of its reference."""
        camera, batch = super().get_camera(image_idx)
        if image_idx == 0:
            camera.camera_to_worlds = torch.from_numpy(c2w_ns_from_rel(np.eye(4))[None, :3]).to(camera.camera_to_worlds)
        return camera, batch


class PairDataManager(VanillaDataManager):
    """Serves `PairBatch`es; shows nerfstudio some pairs. The parent's constructor does not run.

    Attributes:
        latents: what the frozen networks made of photos; set by the pipeline, which has the networks.
        micro_steps: micro batches of an optimiser update: `next_train`'s step counts these.
    """

    config: PairDataManagerConfig
    train_dataset: PairDataset  # pyright: ignore[reportIncompatibleVariableOverride]
    eval_dataset: PairDataset  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: PairDataManagerConfig,
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
        config.check_numbers()
        # The trainer's processes, which the pipeline does not name (core_ns.pipeline wraps the model by itself).
        together = comms.is_dist_avail_and_initialized()
        self._rank, self._ranks = (comms.get_rank(), comms.get_world_size()) if together else (0, 1)
        self.micro_steps = config.micro_steps(self._ranks) if self.training_run else 1
        self.data = Path(config.data if config.data is not None else config.dataparser.data)
        self.run = RunFolder(config.run_dir)
        self._kept = None if self.training_run and self.data.exists() else self.run.read(self.data)
        self._open_data()
        self.includes_time = False
        self.dataparser_config = config.dataparser
        self.train_dataparser_outputs = self._outputs("train")
        self.train_dataset = PairDataset(self.train_dataparser_outputs, self)
        self.eval_dataset = PairDataset(self._outputs(self.test_split), self)
        self.exclude_batch_keys_from_device: list[str] = ["image"]
        self.latents: LatentCache | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[PairBatch]] = {}
        DataManager.__init__(self)  # calls setup_train and setup_eval, unless in inference mode

    def _open_data(self) -> None:
        """The parser, the photo or the reader; without them the run's own copies do for pictures."""
        self.photo: Path | None = None
        self.reader: PairReader | None = None
        try:
            self.dataparser = self.config.open_parser()
            self.photo = self.dataparser.photo()
            if self.photo is None:
                self.reader = self.config.open_reader(self.dataparser)
        except DataError as error:
            if self._kept is None:
                raise
            self.dataparser = self.config.dataparser.setup()
            CONSOLE.print(f"The run's data cannot be read: {error}", highlight=False, markup=False, soft_wrap=True)

    def _outputs(self, split: Literal["train", "val", "test"]) -> DataparserOutputs:
        if self._kept is not None:
            return self.run.outputs(self._kept, split)
        return self.dataparser.get_dataparser_outputs(split)

    # ------------------------------------------------------------------ set-up

    def setup_train(self) -> None:
        """In a training run: say what there is, and keep the reference, the cameras and what is missing."""
        if not self.training_run or not comms.is_main_process():
            return
        if self.reader is not None:
            pairs = self.reader.pairs
            for line in pairs.describe():
                CONSOLE.print(line, highlight=False, markup=False, soft_wrap=True)
            gone = [each for found in pairs.missing.values() for each in found]
            if gone and self.config.run_dir is not None:
                write_missing(self.config.run_dir / MISSING_FILE, gone)
        if self.config.run_dir is not None and self._kept is None:
            number = self.train_dataset.numbers[0]
            splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
            outputs = {name: self.dataparser.get_dataparser_outputs(name) for name in splits}
            self.run.write(self.data, number, self._from_data(number), outputs)

    def setup_eval(self) -> None:
        """Nothing: the loaders are made when a tool asks for them."""

    # ------------------------------------------------------------------ references

    def _from_data(self, number: int) -> Any:
        if self.photo is not None:
            return photo_reference(self.photo, self.config)
        assert self.reader is not None
        return self.reader.reference(number)

    def shelf(self) -> ReferenceShelf:
        """The references that pictures can be made from: those of all pairs, the cameras' first."""
        there = self.photo is not None or self.reader is not None
        opened = opener(self.run, self._kept, self._from_data if there else None)
        shown = self.train_dataset.numbers
        if self.reader is None:
            return ReferenceShelf(opened, shown, sorted({*shown, *self.eval_dataset.numbers}))
        total = len(self.reader.pairs.train) + len(self.reader.pairs.test)
        return ReferenceShelf(opened, shown, range(total))

    def target(self, number: int) -> UInt8[Array, "h w 3"]:
        """A pair's target, unpadded; of a photo alone, the photo.

        Raises:
            DataError: it cannot be read, or the data are gone.
        """
        if self.reader is not None:
            return self.reader.prepared(number, "tgt").image
        if self.photo is None and self._kept is None:
            raise DataError(self.data, "photo", "is gone.", "Put the data back.")
        if self.photo is not None or (self._kept is not None and number == self._kept["extra"]["number"]):
            return self.shelf().at(number).prepared.image
        raise DataError(self.data, f"pair {number}", "cannot be read: the run's data are gone.", "Put them back.")

    # ------------------------------------------------------------------ batches

    def batch(self, numbers: list[int], update: int = 0, first: int = 0, whole: int = 0) -> PairBatch:
        """Some pairs with everything that is read or drawn for them.

        Args:
            numbers: of the pairs.
            update, first, whole: see `PairBatch`.

        Raises:
            DataError: the data are one photo, or gone; or a pair cannot be read.
        """
        reader, cache = self.reader, self.latents
        if reader is None or cache is None:
            problem = "is one photo, and there is nothing to train on."
            raise DataError(self.data, "", problem, "Add --max-num-iterations 0 to view it, or name pairs.")
        keys: dict[str, list[str]] = {"ref": [], "tgt": []}
        photos, latents = {}, {}
        for number in numbers:
            pair = reader.pair(number)
            sides: tuple[tuple[Literal["ref", "tgt"], str], ...] = (("ref", pair.ref_path), ("tgt", pair.tgt_path))
            for side, path in sides:
                key = cache.key(path)
                keys[side].append(key)
                if key in latents or key in photos:
                    continue
                found = cache.get(key)
                if found is not None:
                    latents[key] = found
                else:
                    photos[key] = reader.prepared(number, side).padded
        low = np.stack([reader.low(number) for number in numbers]) if self.config.takes_warp else None
        return PairBatch(
            tuple(numbers), tuple(keys["ref"]), tuple(keys["tgt"]), reader.poses(numbers), low, photos, latents,
            update, first, whole,
        )  # fmt: skip

    def _train_batch(self, step: int) -> PairBatch:
        assert self.reader is not None
        update, micro = divmod(step, self.micro_steps)
        size = self.config.batch_size
        first, rows = share(
            update, micro, size=size, micros=self.micro_steps, rank=self._rank, ranks=self._ranks,
            total=len(self.reader.pairs.train), seed=self.config.seed,
        )  # fmt: skip
        return self.batch(rows, update, first, size)

    def next_train(self, step: int) -> tuple[PairBatch, dict[str, Any]]:  # type: ignore[override]
        """The batch of a micro step: step = update * `micro_steps` + micro. The dictionary is empty.

        Raises:
            DataError: see `batch`.
        """
        if self.reader is None or not self.config.prefetch:
            return (self._train_batch(step) if self.reader is not None else self.batch([])), {}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="pairs")
        self._ahead = {number: future for number, future in self._ahead.items() if number >= step}
        for number in range(step, step + self.config.prefetch + 1):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._train_batch, number)
        return self._ahead.pop(step).result(), {}

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._ahead = None, {}

    def next_eval(self, step: int) -> tuple[PairBatch, dict[str, Any]]:  # type: ignore[override]
        """The shown held-out pairs, at most 16: the same at every step, so that curves compare."""
        return self.batch(self.eval_dataset.numbers[:16]), {}

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A held-out pair in turn: its camera [1] and its photo."""
        camera, batch = RandIndicesEvalDataloader(self.eval_dataset, device=self.device).get_camera(
            step % len(self.eval_dataset)
        )
        return camera, {**batch, "image": batch["image"].to(self.device)}

    def get_train_rays_per_batch(self) -> int:
        """Pixels that a process sees in a micro step."""
        return self.config.batch_size // (self._ranks * self.micro_steps) * self.config.picture**2

    def get_eval_rays_per_batch(self) -> int:
        """As for training."""
        return self.get_train_rays_per_batch()

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:  # type: ignore[override]
        """All shown held-out pairs in order; has a length."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def eval_dataloader(self) -> RandIndicesEvalDataloader:  # type: ignore[override]
        """``get_camera(0)``: the first reference's own camera (``ns-render spiral``)."""
        return ReferenceFirstDataloader(self.eval_dataset, self.device)

    def get_datapath(self) -> Path:
        """Where the viewer puts camera paths: the run's folder, for data may lie where nothing can be written."""
        return self.config.run_dir or (self.data if self.data.is_dir() else self.data.parent)
