"""Options of the data manager, and what can be known to be wrong with them before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Tuple, Type

import tyro
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.pixel_samplers import PixelSamplerConfig

from core_ns.errors import DataError
from dataparsers.megascenes_parser import MegaScenesPairs, MegaScenesPairsConfig


def _manager() -> Type:
    from megascenes_ns.datamanager import PairDataManager

    return PairDataManager


@dataclass
class PairDataManagerConfig(VanillaDataManagerConfig):
    """Pairs of photos, their warps and their latents."""

    _target: Type = field(default_factory=_manager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=MegaScenesPairsConfig)
    """Finds the pairs."""
    batch_size: int = 64
    """Pairs per optimiser update, over all processes and micro batches."""
    micro_batch: Optional[int] = None
    """Pairs that go through the UNet at once on each process (gradient accumulation); default: the whole batch."""
    depth: str = ""
    """Depth of the references, for warps that are not precomputed: a folder of .npy files or of COLMAP depth maps, a
    folder with a transformers depth model, or plane. Empty: the folder depth of the data."""
    cache: Optional[Path] = None
    """What ns-megascenes precompute wrote; default: the folder cache of the data, if it is there."""
    original_warps: Optional[Path] = None
    """Folder of warps that the original's code wrote (SHA1.png), for pairs without one of ours."""
    latents_on_disk: bool = True
    """Keep the photos' latents in the cache folder, where there is one; False: in memory alone."""
    latent_precision: Literal["fp16", "fp32"] = "fp16"
    """Of latents that are kept."""
    latent_bytes: int = 1 << 30
    """Memory for latents; some 40 KB per photo."""
    cache_bytes: int = 256 << 20
    """Memory for decoded photos and warps."""
    workers: int = 2
    """Threads that decode photos and draw warps."""
    prefetch: int = 2
    """Micro steps made ahead."""
    seed: int = 17
    """Batches depend on this number and the step alone: a resumed run sees the same ones."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the trainer: keeps the reference that views are made from."""
    picture: tyro.conf.Suppress[int] = 256
    """Filled by the pipeline, whose model's option it is."""
    cells: tyro.conf.Suppress[int] = 32
    """Side of the latents; filled by the pipeline."""
    takes_warp: tyro.conf.Suppress[bool] = True
    """Filled by the pipeline."""
    squash: tyro.conf.Suppress[Literal["none", "zeronvs"]] = "none"
    """Filled by the pipeline."""
    spp: tyro.conf.Suppress[int] = 4
    """Filled by the pipeline."""
    low: tyro.conf.Suppress[Literal["original", "area_from_256"]] = "original"
    """Filled by the pipeline."""
    fov: tyro.conf.Suppress[str] = "auto"
    """Filled by the pipeline: the lens of a photo alone."""
    photo_depth: tyro.conf.Suppress[str] = ""
    """Filled by the pipeline: depth of a photo alone."""

    # What follows has no meaning without rays; nerfstudio's tools set some of them.
    train_num_rays_per_batch: tyro.conf.Suppress[int] = 0
    train_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    train_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_num_rays_per_batch: tyro.conf.Suppress[int] = 0
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_image_indices: tyro.conf.Suppress[Optional[Tuple[int, ...]]] = (0,)
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    patch_size: tyro.conf.Suppress[int] = 1
    pixel_sampler: tyro.conf.Suppress[PixelSamplerConfig] = field(default_factory=PixelSamplerConfig)
    masks_on_gpu: tyro.conf.Suppress[bool] = False
    images_on_gpu: tyro.conf.Suppress[bool] = False

    def check_numbers(self) -> None:
        """Refuse settings that no training can have.

        Raises:
            DataError: naming the option.
        """
        at_least = {"batch_size": 1, "workers": 1, "prefetch": 0, "latent_bytes": 0, "cache_bytes": 0, "seed": 0}
        wrong = [(name, least) for name, least in at_least.items() if getattr(self, name) < least]
        if self.micro_batch is not None and self.micro_batch < 1:
            wrong.append(("micro_batch", 1))
        for name, least in wrong:
            place = f"pipeline.datamanager.{name.replace('_', '-')}"
            raise DataError("config", place, f"is {getattr(self, name)}.", f"Give {least} or more.")
        if self.cache is not None and not Path(self.cache).is_dir():
            remedy = "Make it with ns-megascenes precompute, or leave --pipeline.datamanager.cache out."
            raise DataError(self.cache, "cache", "is no folder.", remedy)

    def micro_steps(self, processes: int) -> int:
        """Micro batches of an optimiser update.

        Raises:
            DataError: the batch cannot be shared out evenly.
        """
        each = self.micro_batch if self.micro_batch is not None else self.batch_size // processes
        if each < 1 or self.batch_size % (processes * each):
            raise DataError(
                "config", "pipeline.datamanager.batch-size",
                f"{self.batch_size} cannot be shared out between {processes} processes with micro batches of {each}.",
                "Choose a multiple.",
            )  # fmt: skip
        return self.batch_size // (processes * each)

    def open_parser(self) -> MegaScenesPairs:
        """The data parser, told about ``data`` and the size of the pictures.

        Raises:
            DataError: it is not one of pairs, or there are no data.
        """
        if not isinstance(self.dataparser, MegaScenesPairsConfig):
            problem = "gives photos of one scene, not pairs."
            raise DataError(self.data or "config", "data parser", problem, "Use megascenes-pairs.")
        if self.data is not None:
            self.dataparser.data = Path(self.data)
        elif Path(self.dataparser.data) == Path():
            raise DataError("options", "--data", "is missing.", "Name the folder of converted splits, or a photo.")
        parser: MegaScenesPairs = self.dataparser.setup()
        parser.picture = self.picture
        photo = parser.photo()
        if photo is not None:
            from megascenes_ns.photo import read_photo

            found = read_photo(photo, self.fov)
            parser.photo_camera = (found.image.shape[1], found.image.shape[0], float(found.K[0, 0]))
        return parser

    def check_data(self) -> bool:
        """Look at everything that a run needs, for a trainer that must not write before its data are known to be good.

        Returns:
            Whether the data are one photo, and there is nothing to train on.

        Raises:
            DataError: what cannot be used.
        """
        from megascenes_ns.run_references import photo_reference

        self.check_numbers()
        self.micro_steps(1)
        parser = self.open_parser()
        photo = parser.photo()
        if photo is not None:
            photo_reference(photo, self)
            return True
        reader: Any = self.open_reader(parser)
        number = int(parser.shown("train")[0])
        if self.takes_warp:
            reader.low(number)
        return False

    def open_reader(self, parser: MegaScenesPairs) -> Any:
        """The `PairReader` of a run. Raises DataError."""
        from megascenes_ns.pair_reader import ReaderOptions, open_reader

        options = ReaderOptions(self.picture, self.cells, self.spp, self.low, self.squash, self.cache_bytes)
        return open_reader(
            parser.pairs(), options, depth=self.depth, data=Path(parser.config.data), cache=self.cache,
            original_warps=self.original_warps, takes_warp=self.takes_warp,
        )  # fmt: skip
