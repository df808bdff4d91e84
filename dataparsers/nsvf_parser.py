"""nerfstudio dataparser ``nsvf-data``: Tanks and Temples, BlendedMVS and Synthetic_NSVF scenes (spec diver 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Tuple, Type

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV, transform_cameras
from dataparsers.mvsnet import read_small_text
from dataparsers.nsvf import NsvfView, normalization, pair_files, parse_bbox, read_views, split_names
from dataparsers.object_box import (
    GRID_SIDE,
    Background,
    background_color,
    background_warning,
    detect_background,
    object_metadata,
)

_SKEW_LIMIT_PIXELS = 0.25


@dataclass
class NsvfDataParserConfig(DataParserConfig):
    """An object in NSVF's layout: rgb/NAME.png, pose/NAME.txt, intrinsics.txt, bbox.txt."""

    _target: Type = field(default_factory=lambda: NsvfDataParser)
    data: Path = Path()
    """Scene folder."""
    background: Literal["auto", "white", "black"] = "auto"
    """What is behind the object. auto: white for transparent photos, else what the photos' borders show."""
    legacy_scale: bool = False
    """Scale by the original's third extent, ymax - zmin: needed for its published Tanks and Temples and BlendedMVS
    weights, wrong otherwise."""
    intrinsics_size: Optional[Tuple[int, int]] = None
    """Width and height of the pictures that intrinsics.txt is for, if it is not plain from the file and the photos."""
    eval_interval: int = 8
    """Every n-th photo is held out where names have no prefix (0_ train, 1_ and 2_ held out)."""
    val_from_train: int = 0
    """Validate during training on every n-th training photo instead, where the scene has no split of its own for it;
    0 shows the test photos. Nothing is selected by them either way."""
    grid_side: float = GRID_SIDE
    """Side of the cube about the normalized object, which spans 2 on its longest axis."""


class NsvfDataParser(DataParser):
    """Scene folder to cameras in normalized space: ``p' = (p - mid) / s`` puts the bounding box in [-1, 1]^3."""

    config: NsvfDataParserConfig

    def __init__(self, config: NsvfDataParserConfig) -> None:
        super().__init__(config=config)
        self._views: list[NsvfView] | None = None
        self._background: Background | None = None

    def _read_views(self) -> list[NsvfView]:
        """All photos with their cameras; says once what is left out or cannot be honoured."""
        scene = self.config.data
        if self._views is None:
            pairs, lone_photos, lone_poses = pair_files(scene)
            for names, folder, lack in ((lone_photos, "rgb", "pose"), (lone_poses, "pose", "photo")):
                if names:
                    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                    CONSOLE.print(f"[yellow]{folder}: {len(names)} without a {lack} left out: {listed}")
            views = read_views(pairs, scene / "intrinsics.txt", self.config.intrinsics_size)
            matrix, (_, height) = views[0].intrinsics, views[0].size
            shift = abs(matrix[0, 1]) * height / (2 * matrix[1, 1])
            if shift > _SKEW_LIMIT_PIXELS:
                CONSOLE.print(
                    f"[yellow]intrinsics.txt has skew, which nerfstudio's cameras cannot hold: up to {shift:.2f} px "
                    "off at the border."
                )
            self._views = views
        return self._views

    def _split(self, views: Sequence[NsvfView], split: str) -> list[NsvfView]:
        config = self.config
        if config.val_from_train < 0:
            raise DataError(config.data, "val_from_train", "is negative.", "Use 0, or every n-th photo.")
        parts = split_names([view.name for view in views], config.data, config.eval_interval)
        if config.val_from_train and parts["val"] == parts["test"]:
            parts["val"] = parts["train"][:: config.val_from_train]
        return [views[index] for index in parts[split]]

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        """Outputs of "train", "val" or "test". Pixels are decoded only to find the background (eight photos at most).

        Raises:
            DataError: the scene is unusable; see `dataparsers.nsvf`.
        """
        config = self.config
        if not (np.isfinite(config.grid_side) and config.grid_side > 0):
            raise DataError(config.data, "grid_side", f"is {config.grid_side}.", "Use a positive length, such as 2.8.")
        if config.intrinsics_size is not None and min(config.intrinsics_size) < 1:
            problem = f"is {config.intrinsics_size}."
            raise DataError(config.data, "intrinsics_size", problem, "Give width and height in pixels.")
        every = self._read_views()
        bbox_file = config.data / "bbox.txt"
        bbox = parse_bbox(read_small_text(bbox_file), bbox_file)
        check_facing(every, bbox, config.data)
        middle, half = normalization(bbox, config.legacy_scale)
        views = self._split(every, split)
        if self._background is None:
            self._background = detect_background(
                [view.image for view in self._split(every, "train")], config.background
            )
            if warning := background_warning(self._background):
                CONSOLE.print(f"[yellow]{warning}")
            if len(self._split(every, "test")) == 1:
                CONSOLE.print("[yellow]Only one view is held out: ns-render interpolate needs two; *_std will be NaN.")
        transform = np.concatenate([np.eye(3), -middle[:, None]], axis=1)
        c2w = transform_cameras(np.stack([view.c2w for view in views]) @ OPENGL_FROM_OPENCV, transform, 1 / half)
        intrinsics = np.stack([view.intrinsics for view in views])
        sizes = np.array([view.size for view in views])

        def tensor(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

        cameras = Cameras(
            camera_to_worlds=tensor(c2w[:, :3]),
            fx=tensor(intrinsics[:, 0, 0]),
            fy=tensor(intrinsics[:, 1, 1]),
            cx=tensor(intrinsics[:, 0, 2]),
            cy=tensor(intrinsics[:, 1, 2]),
            width=tensor(sizes[:, 0], torch.int64),
            height=tensor(sizes[:, 1], torch.int64),
            camera_type=CameraType.PERSPECTIVE,
        )
        corner = config.grid_side / 2
        return DataparserOutputs(
            image_filenames=[view.image for view in views],
            cameras=cameras,
            alpha_color=background_color(self._background.colour),
            scene_box=SceneBox(aabb=torch.tensor([[-corner] * 3, [corner] * 3])),
            dataparser_transform=tensor(transform),
            dataparser_scale=1 / half,
            metadata={
                **object_metadata((0.0, 0.0, 0.0), config.grid_side, self._background),
                "nsvf_bbox": ((bbox - middle) / half).tolist(),
                "split_names": [view.name for view in views],
            },
        )


def check_facing(views: Sequence[NsvfView], bbox: np.ndarray, scene: Path) -> None:
    """Refuse poses that do not look at the object: they are in other axes, inverted, or in other units.

    A camera looks at it if the box's centre is in front and inside the photo enlarged twice about its middle.

    Raises:
        DataError: that fails for more than half of the cameras.
    """
    middle = bbox.mean(axis=0)
    lost = []
    for view in views:
        in_camera = view.c2w[:3, :3].T @ (middle - view.c2w[:3, 3])
        if in_camera[2] > 0:
            pixel = (view.intrinsics @ in_camera)[:2] / in_camera[2]
            if (np.abs(pixel - np.array(view.size) / 2) <= view.size).all():
                continue
        lost.append(view.name)
    if 2 * len(lost) > len(views):
        problem = f"{len(lost)} of {len(views)} cameras, such as {lost[0]}, do not look at the middle of bbox.txt."
        remedy = "Poses must be camera-to-world in OpenCV axes (x right, y down, z forward), in the units of bbox.txt."
        raise DataError(scene / "pose", "axes", problem, remedy)


nsvf_data = DataParserSpecification(
    config=NsvfDataParserConfig(),
    description="NSVF layout (Tanks and Temples, BlendedMVS, Synthetic_NSVF): rgb, pose, intrinsics.txt, bbox.txt.",
)
