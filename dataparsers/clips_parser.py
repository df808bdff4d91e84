"""nerfstudio dataparser ``video-clips``: collections of clips without cameras (spec xfactor 2, 8.2).

nerfstudio gets the gallery (`clips_gallery`): a few frames of a few clips with cameras to show them by. Training needs
the clips themselves, which `VideoClipsDataParser.catalogues` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Tuple, Type

import numpy as np
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from core_ns.errors import DataError
from dataparsers.clips import Catalogue, catalogue
from dataparsers.clips_gallery import GalleryClip, choose_clips, make_gallery
from dataparsers.clips_mix import MixEntry, parse_mix
from dataparsers.clips_sequence import Sequence

SIDE = 256
"""Pixels of the gallery's cameras, until a data manager chooses another size."""


@dataclass
class VideoClipsDataParserConfig(DataParserConfig):
    """A folder of videos and of folders with pictures, or a set that XFactor was trained on; no cameras needed."""

    _target: Type = field(default_factory=lambda: VideoClipsDataParser)
    data: Path = Path()
    """Folder of the clips, or one video."""
    dataset: Literal["auto", "folder", "re10k", "dl3dv", "mvimgnet", "co3dv2"] = "auto"
    """How the folder is laid out; auto: by the names in it."""
    splits: Optional[Path] = None
    """Which clips are held out: a JSON file {"train": [ids], "test": [ids]}, or the folder of the paper's lists.
    Default: splits.json in the folder, else the layout's own rule, else one clip in ten by a hash of its name."""
    index: Optional[Path] = None
    """What ns-xfactor index wrote; default: clips_index.json in the folder, if there is one."""
    stride: int = 1
    """Use every so manieth frame."""
    max_fps: Optional[float] = None
    """Thin out videos that have more frames per second."""
    gallery_clips: int = 64
    """Clips shown in the viewer and rendered by ns-render dataset and interpolate."""
    gallery_frames: int = 16
    """Frames of each."""
    mix: tyro.conf.Suppress[Tuple[str, ...]] = ()
    """Set by the data manager, whose option it is: the collections, instead of the one folder."""
    downscale_factor: tyro.conf.Suppress[Optional[int]] = None
    """Not used; nerfstudio's tools set it."""


class VideoClipsDataParser(DataParser):
    """See `VideoClipsDataParserConfig`. The clips are looked at once, when something is first asked for."""

    config: VideoClipsDataParserConfig

    def __init__(self, config: VideoClipsDataParserConfig) -> None:
        super().__init__(config)
        self._catalogues: list[tuple[MixEntry, Catalogue]] | None = None
        self._gallery: list[GalleryClip] | None = None
        self.window: Callable[[MixEntry, Catalogue, Sequence], float] | None = None
        """The longest window of training samples, which a data manager knows; the gallery shows no more of a clip."""

    def catalogues(self) -> list[tuple[MixEntry, Catalogue]]:
        """The collections, each with what the mix says of it.

        Raises:
            DataError: something about the clips, the splits or the options cannot be used; see `catalogue`.
        """
        if self._catalogues is None:
            config = self.config
            if min(config.gallery_frames, config.gallery_clips) < 2:
                problem = f"are {config.gallery_clips} and {config.gallery_frames}."
                raise DataError("options", "gallery-clips, gallery-frames", problem, "Give 2 or more.")
            entries = [parse_mix(text, Path(config.data)) for text in config.mix]
            if len(entries) > 1 and (config.splits is not None and config.splits.is_file()):
                problem = "is one file for several collections."
                raise DataError(config.splits, "", problem, "Name the folder of the paper's lists.")
            if len(entries) > 1 and config.index is not None:
                raise DataError(config.index, "", "is one index of several collections.", "Leave --index out.")
            self._catalogues = [
                (
                    entry,
                    catalogue(
                        entry.path, entry.dataset, splits=config.splits, stride=config.stride, max_fps=config.max_fps,
                        index=config.index,
                    ),
                )
                for entry in entries or [MixEntry(config.dataset, Path(config.data))]
            ]  # fmt: skip
        return self._catalogues

    def by_collection(self, split: Literal["train", "val", "test"]) -> list[list[Sequence]]:
        """The clips of a split, collection by collection; ids begin with the collection where there are several.

        Raises:
            DataError: as `catalogues`.
        """
        found = [each for _, each in self.catalogues()]
        if len(found) == 1:
            return [found[0].split(split)]
        return [
            [dataclasses.replace(clip, id=f"{number}-{each.dataset}/{clip.id}") for clip in each.split(split)]
            for number, each in enumerate(found)
        ]

    def split(self, name: Literal["train", "val", "test"]) -> list[Sequence]:
        """All clips of a split. Raises DataError as `catalogues`."""
        return [clip for clips in self.by_collection(name) for clip in clips]

    def gallery(self) -> list[GalleryClip]:
        """The clips to show, with cameras.

        Raises:
            DataError: as `catalogues`, or a file of poses that cannot be used.
        """
        if self._gallery is None:
            chosen = choose_clips(self.split("train"), self.split("test"), self.config.gallery_clips)
            self._gallery = make_gallery(*chosen, self.config.gallery_frames, self._windows(*chosen))
        return self._gallery

    def _windows(self, train: list[Sequence], test: list[Sequence]) -> dict[str, float] | None:
        if self.window is None:
            return None
        found: dict[str, float] = {}
        splits: tuple[tuple[Literal["train", "test"], list[Sequence]], ...] = (("train", train), ("test", test))
        for split, chosen in splits:
            ids = {clip.id for clip in chosen}
            for (entry, known), clips in zip(self.catalogues(), self.by_collection(split), strict=True):
                found |= {clip.id: self.window(entry, known, clip) for clip in clips if clip.id in ids}
        return found

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        data = Path(self.config.data).absolute()
        root = data.parent if data.is_file() else data
        return gallery_outputs(self.gallery(), "train" if split == "train" else "test", root)


def gallery_outputs(
    gallery: Items[GalleryClip], split: Literal["train", "test"], root: Path, side: int = SIDE
) -> DataparserOutputs:
    """A split of the gallery as nerfstudio takes it.

    ``Cameras.metadata`` holds ``clip_id`` (`GalleryClip.number`) and ``frame_pos`` (which of its shown frames), int64
    [N, 1]. Frames of a video are no files: names are ``ROOT/ID/NUMBER.png`` for all.

    Args:
        side: pixels of the square pictures.
    """
    rows = [(clip, place) for clip in gallery if clip.split == split for place in range(len(clip.frames))]
    c2w = torch.from_numpy(np.stack([clip.cameras[place, :3] for clip, place in rows])).float()
    focal = torch.tensor([[clip.focal * side] for clip, _ in rows])
    cameras = Cameras(
        camera_to_worlds=c2w,
        fx=focal,
        fy=focal.clone(),
        cx=torch.full_like(focal, side / 2),
        cy=torch.full_like(focal, side / 2),
        width=torch.full((len(rows), 1), side),
        height=torch.full((len(rows), 1), side),
        camera_type=CameraType.PERSPECTIVE,
        metadata={
            "clip_id": torch.tensor([[clip.number] for clip, _ in rows]),
            "frame_pos": torch.tensor([[place] for _, place in rows]),
        },
    )
    centres = np.concatenate([clip.cameras[:, :3, 3] for clip in gallery])
    box = np.stack([centres.min(axis=0) - 1.0, centres.max(axis=0) + 1.0])
    return DataparserOutputs(
        image_filenames=[root / clip.id / f"{clip.frames[place]:06d}.png" for clip, place in rows],
        cameras=cameras,
        scene_box=SceneBox(aabb=torch.from_numpy(box).float()),
    )


video_clips = DataParserSpecification(
    config=VideoClipsDataParserConfig(), description="Videos and folders of frames, without cameras (xfactor)."
)
