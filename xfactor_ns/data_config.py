"""Options of the data manager, and what can be known to be wrong with them before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional, Tuple, Type

import tyro
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.pixel_samplers import PixelSamplerConfig

from core_ns.errors import DataError
from dataparsers.clips_parser import VideoClipsDataParser, VideoClipsDataParserConfig
from xfactor_ns.clip_plan import WindowOptions, make_plan, window_of


def _manager() -> Type:
    from xfactor_ns.datamanager import ClipDataManager

    return ClipDataManager


@dataclass
class ClipDataManagerConfig(VanillaDataManagerConfig):
    """Clips and the windows drawn from them."""

    _target: Type = field(default_factory=_manager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=VideoClipsDataParserConfig)
    """Finds the clips."""
    mix: List[str] = field(default_factory=list)
    """Several collections: LAYOUT:PATH, LAYOUT:PATH:WEIGHT or LAYOUT:PATH:WEIGHT:BEGIN:END each, such as
    re10k:re10k:3:40:200. They are the data then; relative paths start from --data. Shares follow the weights."""
    image_size: int = 256
    """Side of the square pictures, pixels."""
    batch_size: int = 256
    """Samples per optimiser update, over all processes and micro batches."""
    micro_batch: Optional[int] = None
    """Samples that go through the networks at once on each process; default: the whole batch."""
    frames_per_sample: int = 2
    """2: one frame gives the context, the other is rendered. 6: five give it."""
    begin: Optional[float] = None
    """Longest window at the first update, frames. Default: the paper's of known sets, else begin-seconds."""
    end: Optional[float] = None
    """Longest window after the warm-up, frames. Default: the paper's of known sets, else end-seconds."""
    begin_seconds: float = 0.5
    """Longest window of user video at the first update."""
    end_seconds: float = 3.0
    """Longest window of user video after the warm-up."""
    picture_fps: float = 10.0
    """Frames per second that folders of pictures are taken to have."""
    warmup_updates: int = 50_000
    """Optimiser updates until windows are as long as they get."""
    bump: bool = False
    """Prefer windows of about 70 % of the longest (the paper's multi-view stage)."""
    resize_mode: Literal["reference", "antialias"] = "antialias"
    """How frames are shrunk; reference: without averaging, as the released weights saw them."""
    workers: int = 2
    """Threads that decode frames."""
    prefetch: int = 2
    """Micro steps decoded ahead."""
    cache_bytes: int = 512 << 20
    """Square frames kept in memory; the number of clips does not matter."""
    seed: int = 9
    """Batches depend on this number and the step alone: a resumed run sees the same ones."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the trainer: holds the gallery."""

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
        at_least = {
            "image_size": 8, "batch_size": 1, "frames_per_sample": 2, "begin_seconds": 0, "end_seconds": 0,
            "picture_fps": 0.01, "warmup_updates": 0, "workers": 1, "prefetch": 0, "cache_bytes": 0, "seed": 0,
        }  # fmt: skip
        wrong = [(name, f"{least:g} or more") for name, least in at_least.items() if not getattr(self, name) >= least]
        shortest = f"{self.frames_per_sample} or more"
        wrong += [(n, shortest) for n in ("begin", "end") if (getattr(self, n) or 1e9) < self.frames_per_sample]
        if self.micro_batch is not None and self.micro_batch < 1:
            wrong.append(("micro_batch", "1 or more"))
        for name, remedy in wrong:
            option = name.replace("_", "-")
            raise DataError("config", f"pipeline.datamanager.{option}", f"is {getattr(self, name)}.", f"Give {remedy}.")

    def micro_steps(self, processes: int) -> int:
        """Micro steps of an optimiser update.

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

    def open_parser(self) -> VideoClipsDataParser:
        """The data parser, told about ``data`` and ``mix``.

        Raises:
            DataError: it is not one of clips.
        """
        if not isinstance(self.dataparser, VideoClipsDataParserConfig):
            raise DataError(
                self.data or "config", "data parser", "gives photos of one scene, not clips.", "Use video-clips."
            )
        if self.data is not None:
            self.dataparser.data = Path(self.data)
        elif not self.mix and Path(self.dataparser.data).resolve() == Path.cwd():  # never all there is below a home
            raise DataError("options", "--data", "is missing.", "Name the folder of the clips.")
        self.dataparser.mix = tuple(self.mix)
        parser: VideoClipsDataParser = self.dataparser.setup()
        options = self.window_options()
        parser.window = lambda entry, found, clip: window_of(clip, found.dataset, entry, options)[1]
        return parser

    def check_data(self) -> int:
        """Look at all clips, for a trainer that must not write anything before its data are known to be good.

        Returns:
            The number of training clips.

        Raises:
            DataError: the numbers, the clips, the splits or a file of poses cannot be used.
        """
        self.check_numbers()
        self.micro_steps(1)
        parser = self.open_parser()
        make_plan(parser.catalogues(), parser.by_collection("train"), self.window_options())
        make_plan(parser.catalogues(), parser.by_collection("test"), self.window_options())
        parser.gallery()
        return len(parser.split("train"))

    def window_options(self) -> WindowOptions:
        """The options that decide on windows."""
        return WindowOptions(**{name: getattr(self, name) for name in WindowOptions.__dataclass_fields__})
