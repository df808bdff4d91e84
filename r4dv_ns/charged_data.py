"""A charged folder as a data set of nerfstudio's: cameras, held-out photos, nothing to train (spec r4dv 5.2, 8.2).

The recording itself may be gone: cameras come from the manifest, photos to compare with from the folder's ``eval/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Optional, Tuple, Type

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from torch import Tensor

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv
from core_ns.images import read_image
from dataparsers.easymocap_sequence import Photo
from dataparsers.easymocap_view import read_mask
from r4dv_ns.charge_manifest import EvalPhoto, Manifest
from r4dv_ns.charge_store import ChargedStore
from r4dv_ns.frame_dataset import photo_batch
from r4dv_ns.sources import Crop

Thumbnail = Callable[[Cameras], UInt8[np.ndarray, "h w 3"]]


@dataclass
class ChargedDataParserConfig(DataParserConfig):
    """A folder made by ``ns-r4dv charge bake``."""

    _target: Type = field(default_factory=lambda: ChargedDataParser)
    data: Path = Path()
    """The folder."""
    frame_sample: Optional[Tuple[Optional[int], ...]] = None
    """Frames to play: begin, end and step, or a list. None: all."""
    first_frame: bool = False
    """Play the first of them only."""


class ChargedDataParser(DataParser):
    """Cameras of a charge: "train" are those it was trained on, at its first frame; other splits the stored photos'.

    Args: the configuration.
    """

    config: ChargedDataParserConfig
    includes_time: bool = True

    @cached_property
    def store(self) -> ChargedStore:
        """The charge, opened at the first use. Raises DataError as `ChargedStore`."""
        sample = self.config.frame_sample
        return ChargedStore(self.config.data, frame_sample=sample, first_frame=self.config.first_frame)

    def photos(self) -> list[EvalPhoto]:
        """What there is to compare with. Without stored photos their cameras remain: the held-out views (all views
        without those) at the frames to evaluate, at the first frame without any."""
        manifest = self.store.manifest
        if manifest.eval_photos:
            return list(manifest.eval_photos)
        views = manifest.eval_views or manifest.train_views
        names = [view.name for view in manifest.views]
        return [
            EvalPhoto(view, frame, f"eval/image/{names[view]}/{manifest.frames[frame]}.png", None, None, None)
            for frame in manifest.eval_frames or [0]
            for view in views
        ]

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        """Outputs of a split; reads the manifest alone. Raises DataError as `ChargedStore`."""
        manifest, folder = self.store.manifest, Path(self.config.data)
        if split == "train":
            pairs = [(view, 0) for view in manifest.train_views]
            files = [folder / "train" / f"{manifest.views[view].name}.png" for view, _ in pairs]
        else:
            photos = self.photos()
            pairs = [(photo.view, photo.frame) for photo in photos]
            files = [folder / photo.image for photo in photos]
        return DataparserOutputs(
            image_filenames=files,
            cameras=charged_cameras(manifest, pairs),
            scene_box=SceneBox(aabb=torch.from_numpy(manifest.bounds).float()),
            dataparser_transform=torch.from_numpy(manifest.transform[:3]).float(),
            dataparser_scale=1.0,
        )


def charged_cameras(manifest: Manifest, pairs: Iterable[tuple[int, int]]) -> Cameras:
    """nerfstudio cameras of (view, frame) pairs, with ``times`` and, as metadata, ``view_idx`` and ``frame_idx``."""
    pairs = list(pairs)
    both = [manifest.camera(view, frame) for view, frame in pairs]
    c2w = c2w_opengl_from_w2c_opencv(np.stack([w2c for _, w2c in both]))
    K = torch.from_numpy(np.stack([K for K, _ in both])).float()
    sizes = torch.tensor([(manifest.views[view].width, manifest.views[view].height) for view, _ in pairs])
    return Cameras(
        camera_to_worlds=torch.from_numpy(c2w[:, :3]).float(),
        fx=K[:, 0, 0:1].clone(),
        fy=K[:, 1, 1:2].clone(),
        cx=K[:, 0, 2:3].clone(),
        cy=K[:, 1, 2:3].clone(),
        width=sizes[:, :1].clone(),
        height=sizes[:, 1:].clone(),
        camera_type=CameraType.PERSPECTIVE,
        times=torch.tensor([[manifest.times[frame]] for _, frame in pairs], dtype=torch.float32),
        metadata={
            "view_idx": torch.tensor([[view] for view, _ in pairs]),
            "frame_idx": torch.tensor([[frame] for _, frame in pairs]),
        },
    )


class ChargedDataset(InputDataset):
    """The photos of a split, each decoded when it is asked for.

    Attributes:
        thumbnail: draws what a camera sees; set while the viewer asks for pictures for its frusta.
    """

    exclude_batch_keys_from_device: list[str] = []  # noqa: RUF012 (nerfstudio's name and type)

    def __init__(self, outputs: DataparserOutputs, store: ChargedStore, photos: list[EvalPhoto]) -> None:
        super().__init__(outputs)
        self.metadata["store"] = store
        self.store, self.photos = store, photos
        self.thumbnail: Thumbnail | None = None
        self.drawn = False

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "h w 3"]:
        """The photo. Raises DataError as `get_data`."""
        return self._photo(image_idx).image

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """See `photo_batch`; ``box`` (x, y, width, height) where the manifest knows the subject's. For the viewer's
        frusta a small drawing.

        Raises:
            DataError: the photo is not in the folder, or does not decode.
        """
        if self.drawn and self.thumbnail is not None:
            image = torch.from_numpy(self.thumbnail(self.cameras[image_idx : image_idx + 1]))
            return {"image_idx": image_idx, "image": image.float() / 255.0 if image_type == "float32" else image}
        photo = self.photos[image_idx] if self.photos else None
        crop = Crop.whole(self._photo(image_idx))
        assert photo is not None
        data = photo_batch(crop, index=image_idx, view=photo.view, frame=photo.frame)
        if photo.box is not None:
            data["box"] = photo.box
        if image_type == "uint8":
            data["image"] = data["image"].mul(255.0).round().byte()
        return data

    def _photo(self, index: int) -> Photo:
        if not self.photos:
            raise DataError(
                self.store.folder, "", "holds no training photos.",
                "Render --split test; for other cameras make a path: ns-r4dv path.",
            )  # fmt: skip
        if not self.store.manifest.eval_photos:
            raise DataError(
                self.store.folder, "eval", "holds no photos of the frames in use to compare with.",
                "Bake without --no-eval-photos; with frame_sample in config.yml choose frames that have photos.",
            )  # fmt: skip
        photo, folder = self.photos[index], self.store.folder
        view = self.store.manifest.views[photo.view]
        image, _ = read_image(folder / photo.image)
        mask = None if photo.mask is None else read_mask(folder / photo.mask)
        valid = None if photo.valid is None else read_mask(folder / photo.valid) > 0
        for name, part in (("image", image), ("mask", mask), ("valid", valid)):
            if part is not None and part.shape[:2] != (view.height, view.width):
                file: Any = getattr(photo, name)
                raise DataError(
                    folder / file, "size", f"is {part.shape[1]}x{part.shape[0]}, not {view.width}x{view.height}.",
                    "Bake the charge again, or copy it again.",
                )  # fmt: skip
        return Photo(image, mask, valid)


@dataclass
class ChargedDataManagerConfig(VanillaDataManagerConfig):
    """The folder of a charge."""

    _target: Type = field(default_factory=lambda: ChargedDataManager)
    dataparser: tyro.conf.Suppress[ChargedDataParserConfig] = field(  # type: ignore[assignment]
        default_factory=ChargedDataParserConfig
    )
    """Reads the folder."""


class ChargedDataManager(VanillaDataManager):
    """Cameras and held-out photos of a charge. Its parent's constructor does not run: it samples pixels of photos."""

    config: ChargedDataManagerConfig  # type: ignore[assignment]
    train_dataset: ChargedDataset
    eval_dataset: ChargedDataset

    def __init__(
        self,
        config: ChargedDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        del kwargs
        self.config, self.device, self.test_mode = config, device, test_mode
        self.world_size, self.local_rank, self.sampler = world_size, local_rank, None
        self.test_split = "val" if test_mode == "val" else "test"
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        self.dataparser_config = config.dataparser
        self.dataparser: Any = config.dataparser.setup()
        self.includes_time = self.dataparser.includes_time
        self.store: ChargedStore = self.dataparser.store
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs(split="train")
        self.train_dataset, self.eval_dataset = self.create_train_dataset(), self.create_eval_dataset()
        self.exclude_batch_keys_from_device: list[str] = []
        DataManager.__init__(self)  # calls setup_train and setup_eval, unless in inference mode

    def create_train_dataset(self) -> ChargedDataset:
        """The training views at the first frame, without photos."""
        return ChargedDataset(self.train_dataparser_outputs, self.store, [])

    def create_eval_dataset(self) -> ChargedDataset:
        """The photos to compare with."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        return ChargedDataset(outputs, self.store, self.dataparser.photos())

    def setup_train(self) -> None:
        """The viewer is going to ask for pictures of its frusta (``ns-render dataset`` switches this call off)."""
        self.train_dataset.drawn = True

    def setup_eval(self) -> None:
        """Nothing: the loaders are made when a tool asks for them."""

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """Raises DataError: there is nothing to train."""
        raise DataError(
            self.store.folder, "", "is charged: there is nothing to train.", "Train r4dv, then ns-r4dv charge bake."
        )

    def next_eval(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """As `next_eval_image`."""
        return self.next_eval_image(step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """One of the photos to compare with, in turn, and its camera [1]. Raises DataError where there are none."""
        return self.eval_dataloader.get_camera(step % len(self.eval_dataset))

    @cached_property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:  # type: ignore[override]
        """All photos to compare with, one at a time; has a length."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    @cached_property
    def eval_dataloader(self) -> RandIndicesEvalDataloader:
        """``get_camera(image_idx)``; ``ns-render spiral`` needs its camera, so it works without a photo as well."""
        return _CameraLoader(self.eval_dataset, device=self.device)


class _CameraLoader(RandIndicesEvalDataloader):
    """Cameras whether or not their photos are there."""

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, dict[str, Tensor]]:
        """The camera [1] and, where photos are stored, the batch of one."""
        dataset: Any = self.input_dataset
        if dataset.store.manifest.eval_photos:
            return super().get_camera(image_idx)
        return dataset.cameras[image_idx : image_idx + 1], {}
