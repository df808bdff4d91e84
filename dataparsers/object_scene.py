"""A small object with known pictures: what `nsvf.write_nsvf` and `blender_parser.write_blender` write.

`demo_object` cuts the demo monument out of its sky and shrinks it into the middle of DIVeR's cube, for tests, demos
and benchmarks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError

Array = np.ndarray
Split = Literal["train", "val", "test"]

RADIUS = 1.15
"""Half width of the demo object: inside [-1.4, 1.4]^3, and every demo camera sees it whole."""
DISTANCE = 4.0
"""Of the demo cameras from the origin, as in NeRF-synthetic."""
FIELD_OF_VIEW = 0.6911112070083618
"""Radians across, as in NeRF-synthetic."""


@dataclass(frozen=True, eq=False)
class ObjectPicture:
    """One picture: ``rgba`` with straight alpha; ``c2w`` float64 [4, 4], OpenCV axes, units of the scene."""

    split: Split
    rgba: UInt8[Array, "h w 4"]
    c2w: Float[Array, "4 4"]

    def over(self, background: Literal["white", "black"]) -> UInt8[Array, "h w 3"]:
        """The picture composited on a plain colour."""
        alpha = self.rgba[..., 3:] / 255.0
        return np.round(self.rgba[..., :3] * alpha + (255.0 if background == "white" else 0.0) * (1 - alpha)).astype(
            np.uint8
        )


@dataclass(frozen=True, eq=False)
class ObjectScene:
    """Pictures of one size and one camera; ``intrinsics`` float64 [3, 3] in pixels; ``bbox`` corners of the object."""

    pictures: tuple[ObjectPicture, ...]
    intrinsics: Float[Array, "3 3"]
    bbox: Float[Array, "2 3"]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures."""
        height, width = self.pictures[0].rgba.shape[:2]
        return width, height


def orbit_poses(count: int, phase: float) -> Float[Array, "n 4 4"]:
    """Camera-to-world poses (OpenCV axes) that look at the origin from a golden spiral over the upper half sphere,
    5 to 65 degrees high; ``phase`` in turns rotates the spiral, so that splits do not share a view."""
    from core_ns.demo_scenes import look_at

    poses = []
    for index in range(count):
        share = (index + 0.5) / count
        height = np.sin(np.radians(5)) * (1 - share) + np.sin(np.radians(65)) * share
        azimuth = 2 * np.pi * (index * 0.6180339887498949 + phase)
        flat = np.sqrt(1 - height**2)
        eye = DISTANCE * np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        poses.append(np.linalg.inv(look_at(eye, np.zeros(3))))
    return np.stack(poses) if poses else np.zeros((0, 4, 4))


def demo_object(
    *,
    train: int = 16,
    val: int = 2,
    test: int = 4,
    size: int = 64,
    seed: int = 0,
    supersample: int = 3,
    texture_detail: int = 256,
    mesh_faces: int = 12000,
) -> ObjectScene:
    """The demo monument as an object on nothing, seen from all round and above.

    Args:
        train: pictures to train on; ``val`` and ``test``: held out.
        size: width and height in pixels.
        seed: of shapes and textures.
        supersample: sub-samples per pixel and axis.
        texture_detail: texels across the object of the finest texture.
        mesh_faces: about how many triangles the object has.

    Raises:
        ValueError: a count or size is out of range.
    """
    import torch

    from core_ns.demo_scenes import build_demo_scene

    if min(train, supersample) < 1 or min(val, test) < 0 or size < 2:
        raise ValueError(f"need train and supersample >= 1, val and test >= 0, size >= 2, got {train}, {val}, {test}")
    scene = build_demo_scene(views=1, test_views=0, seed=seed, texture_detail=texture_detail, mesh_faces=mesh_faces)
    # Without sky a pixel is the sum of what its sub-samples hit: premultiplied colour, with coverage as alpha.
    looks = SimpleNamespace(colour=scene.looks.colour, casts_shadows=scene.looks.casts_shadows, sky=torch.zeros_like)
    scene = replace(scene, looks=cast(Any, looks))
    low, high = scene.vertices.min(axis=0).astype(np.float64), scene.vertices.max(axis=0).astype(np.float64)
    middle, shrink = (low + high) / 2, 2 * RADIUS / float((high - low).max())
    focal = 0.5 * size / np.tan(0.5 * FIELD_OF_VIEW)
    intrinsics = np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    pictures = []
    splits: tuple[tuple[Split, int], ...] = (("train", train), ("val", val), ("test", test))
    for turn, (split, count) in enumerate(splits):
        for c2w in orbit_poses(count, turn / 3):
            in_demo = c2w.copy()
            in_demo[:3, 3] = c2w[:3, 3] / shrink + middle
            seen = scene.render(np.linalg.inv(in_demo), intrinsics, size, size, supersample)
            alpha = seen.coverage[..., None]
            straight = (seen.rgb / alpha.clamp(min=1e-6)).clamp(0, 1)
            rgba = torch.cat([torch.where(alpha > 0, straight, 0.0), alpha], dim=-1)
            pictures.append(ObjectPicture(split, (rgba * 255).round().to(torch.uint8).numpy(), c2w))
    return ObjectScene(tuple(pictures), intrinsics, np.stack([(low - middle) * shrink, (high - middle) * shrink]))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder that becomes ``folder`` when the block ends well, and vanishes when it raises.

    Raises:
        DataError: ``folder`` is a file or holds something; nothing is written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise DataError(folder, "", "is a file, not a folder.", "Choose another output folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(folder, "", "is not empty.", "Choose a new folder, or remove this one first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    draft = outer / "scene"  # mkdtemp's folders are private to the user; one inside has the user's own permissions
    try:
        draft.mkdir()
        yield draft
        os.replace(draft, folder)  # also replaces an empty folder; fails if it has been filled meanwhile
    finally:
        shutil.rmtree(outer, ignore_errors=True)
