"""A generated data set in the converted layout: photos of a painted wall, with exact depth (spec megascenes 11.9)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from core_ns.images import write_image
from dataparsers.megascenes_splits import convert_splits

WIDTH, HEIGHT, FOCAL, DISTANCE = 80, 60, 70.0, 4.0
CATEGORY = "Painted_Wall"


def rotation(degrees: float) -> np.ndarray:
    """About the vertical axis, OpenCV."""
    a = np.radians(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def quaternion(matrix: np.ndarray) -> list[float]:
    """w x y z of a rotation about the vertical axis."""
    angle = np.arctan2(matrix[0, 2], matrix[0, 0])
    return [float(np.cos(angle / 2)), 0.0, float(np.sin(angle / 2)), 0.0]


def camera(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation, world to camera, of a photo."""
    turn = rotation(4.0 * np.sin(2.1 * index))
    centre = np.array([0.5 * np.cos(1.7 * index), 0.25 * np.sin(2.9 * index), 0.3 * np.sin(index)])
    return turn, -turn @ centre


def painting(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Colours of the wall at world x, y; uint8."""
    waves = [np.sin(1.9 * x + 0.7 * y), np.cos(1.3 * y - 0.9 * x + 1), np.sin(2.3 * y) * np.cos(1.1 * x)]
    return np.clip(127.5 + 110 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


def photo(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and z depth of the wall at world z = DISTANCE."""
    turn, move = camera(index)
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1)
    centre, directions = -turn.T @ move, rays @ turn
    depth = (DISTANCE - centre[2]) / directions[..., 2]
    points = centre + depth[..., None] * directions
    return painting(points[..., 0], points[..., 1]), depth.astype(np.float32)


def write_pairs(folder: Path, pairs: int = 8, held_out: int = 2, suffix: str = ".png") -> Path:
    """A data folder ``folder`` with images, depth and converted splits train and test; every pair has its own photos.

    Args:
        folder: made.
        pairs: to train on.
        held_out: in the test list.
        suffix: of the photos.
    """

    def item(index: int) -> tuple[str, dict, float]:
        name = f"{CATEGORY}/commons/Front/0/pictures/{index:03d}{suffix}"
        image, depth = photo(index)
        write_image(folder / "images" / name, image)
        file = folder / "depth" / CATEGORY / "commons" / "Front" / "aligned_depth_maps" / f"{index:03d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, depth)
        turn, move = camera(index)
        lens = ["PINHOLE", WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
        scale = float(np.quantile(depth[::8, ::8], 0.2))
        pose = [*quaternion(turn), *map(float, move)]
        return f"/data/main/images/{name}", {"extrinsics": pose, "intrinsics": lens}, scale

    rows = []
    for index in range(pairs + held_out):
        (ref, ref_camera, scale), (tgt, tgt_camera, _) = item(2 * index), item(2 * index + 1)
        rows.append([ref, tgt, ref_camera, tgt_camera, scale])
    lists = {"trainsplit.pkl": rows[:pairs], "testsplit.pkl": rows[pairs:]}
    files = []
    for name, part in lists.items():
        if part:
            (folder / name).write_bytes(pickle.dumps(part, protocol=4))
            files.append(folder / name)
    convert_splits(files, folder)
    for file in files:
        file.unlink()
    return folder
