"""Small posed photo sets for the tests of pixels, rays and batches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401
    from nerfstudio.cameras.cameras import Cameras, CameraType
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.scene_box import SceneBox

__all__ = ["BlenderDataParserConfig", "make_cameras", "make_scene", "ring"]

from dataparsers.snapshot_parser import write_snapshot

SIZES = ((24, 16), (24, 16), (21, 18), (24, 16), (24, 16), (24, 16))
"""(width, height); one view differs and fills no whole number of 4x4 boxes."""
WHITE, BLACK = torch.ones(3), torch.zeros(3)
NOISE = "ignore:Using a non-tuple sequence:UserWarning"
"""nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1)."""


def ring(count: int, distance: float = 4.0) -> torch.Tensor:
    """OpenGL cameras [count, 3, 4] around the z axis, looking at the origin."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False) + 0.3:
        position = distance * np.array([np.cos(angle), np.sin(angle), 0.4])
        back = position / np.linalg.norm(position)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, position], axis=1))
    return torch.tensor(np.stack(poses), dtype=torch.float32)


def make_cameras(poses: torch.Tensor, sizes: Any = SIZES, **extra: Any) -> Cameras:
    width, height = (torch.tensor([size[axis] for size in sizes]) for axis in (0, 1))
    return Cameras(
        camera_to_worlds=poses, fx=30.0 + 0.0 * width, fy=28.0 + 0.0 * height, cx=width / 2 + 1.5, cy=height / 2 - 0.75,
        width=width, height=height, camera_type=CameraType.PERSPECTIVE, **extra,
    )  # fmt: skip


def make_scene(
    folder: Path, poses: torch.Tensor | None = None, masks: bool = False, half: float = 1.4,
    metadata: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Random photos (and masks) with a snapshot file that a parser turns into any `DataparserOutputs`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    images, mask_files = [], []
    for view, (width, height) in enumerate(SIZES):
        picture = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        images.append(folder / f"{view}.png")
        Image.fromarray(picture).save(images[-1])
        mask_files.append(folder / f"mask_{view}.png")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[view : view + 9, 3:15] = 255
        Image.fromarray(mask).save(mask_files[-1])

    def part(views: slice) -> DataparserOutputs:
        return DataparserOutputs(
            image_filenames=images[views],
            cameras=make_cameras((ring(len(SIZES)) if poses is None else poses)[views], SIZES[views]),
            scene_box=SceneBox(aabb=torch.tensor([[-half] * 3, [half] * 3])),
            mask_filenames=mask_files[views] if masks else None,
            metadata=metadata or {},
        )

    train, held_out = part(slice(0, 4)), part(slice(4, 6))
    write_snapshot(folder / "scene.json", {"train": train, "val": held_out, "test": held_out}, {})
    return folder / "scene.json"
