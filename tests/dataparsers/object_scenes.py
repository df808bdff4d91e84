"""Small made-up objects in NSVF and Blender layout, and what the tests ask of any folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.data.dataparsers.base_dataparser
    import nerfstudio.plugins.registry_dataparser  # noqa: F401

from dataparsers.object_scene import ObjectPicture, ObjectScene, Split, orbit_poses

BBOX = np.array([[-1.0, -0.5, -0.25], [1.0, 0.75, 1.25]])


def disc(size: int, shade: int) -> np.ndarray:
    """An opaque grey disc on nothing, [size, size, 4]."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    inside = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.35 * size) ** 2
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[inside] = (shade, 255 - shade, 60, 255)
    return rgba


def small_object(train: int = 6, val: int = 0, test: int = 2, size: int = 16) -> ObjectScene:
    pictures = []
    splits: tuple[tuple[Split, int], ...] = (("train", train), ("val", val), ("test", test))
    for turn, (split, count) in enumerate(splits):
        for index, c2w in enumerate(orbit_poses(count, turn / 3)):
            pictures.append(ObjectPicture(split, disc(size, 20 * index + 40 * turn), c2w))
    k = np.array([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1]])
    return ObjectScene(tuple(pictures), k, BBOX)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content: equal before and after means nothing was written."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
