"""A slanted wall seen by a few cameras, as photos, depth files, a pair table and a COLMAP model: all known exactly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core_ns.images import write_image
from dataparsers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_binary
from dataparsers.megascenes_table import PAIR, VIEW, PairTable, write_table

NORMAL, OFFSET = np.array([0.25, -0.15, -1.0]), -6.0
"""The wall is NORMAL . X = OFFSET in the world."""
WIDTH, HEIGHT, FOCAL = 96, 64, 80.0
K = np.array([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]])


def wall_depth(w2c: np.ndarray, intrinsics: np.ndarray = K, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """z of the wall at every pixel's centre, [h, w]."""
    rotation, translation = w2c[:3, :3], w2c[:3, 3]
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    normal = rotation @ NORMAL
    return (OFFSET + normal @ translation) / (rays @ normal)


def camera(number: int) -> np.ndarray:
    """World to camera of the cameras in turn: steps to the side and small turns."""
    angle = 0.05 * (number % 3 - 1)
    w2c = np.eye(4)
    w2c[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    w2c[:3, 3] = [0.3 * (number % 4), 0.1 * (number % 2), 0.05 * number]
    return w2c


def quaternion(w2c: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a turn about y."""
    half = 0.5 * np.arctan2(w2c[0, 2], w2c[0, 0])
    return np.array([np.cos(half), 0.0, np.sin(half), 0.0])


def path_of(number: int) -> str:
    """As listed."""
    return f"/data/main/images/Wall/commons/Pärt A/0/pictures/photo {number}.png"


def key_of(number: int) -> str:
    """Relative to the photos, as listed."""
    return path_of(number).partition("main/images/")[2]


@dataclass
class WallScene:
    """Where everything is."""

    root: Path
    cameras: list[np.ndarray]
    table: PairTable
    scales: list[float]

    @property
    def images(self) -> Path:
        """Folder of the photos."""
        return self.root / "images"

    @property
    def depths(self) -> Path:
        """Folder of depth files, in the original's layout."""
        return self.root / "depth"


def texture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A smooth picture."""
    v, u = np.mgrid[0:height, 0:width]
    waves = [np.sin(u / 7 + number), np.cos(v / 5 - number), np.sin((u + v) / 9)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def make_scene(root: Path, photos: int = 4, targets: int = 3) -> WallScene:
    """Write everything; each photo is the reference of the next ``targets`` ones."""
    cameras = [camera(number) for number in range(photos)]
    scales = []
    for number, w2c in enumerate(cameras):
        folder = root / "images" / "Wall" / "commons" / "Pärt A" / "0" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"photo_{number}.png", texture(number))  # released names have underscores
        depth = wall_depth(w2c).astype(np.float32)
        file = root / "depth" / "Wall" / "commons" / "Pärt A" / "aligned_depth_maps" / f"photo {number}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, depth)
        scales.append(float(np.quantile(depth[::8, ::8], 0.2)))
    paths = [path_of(number).encode() for number in range(photos)]
    views = np.zeros(photos, VIEW)
    for number, w2c in enumerate(cameras):
        views[number] = (number, quaternion(w2c), w2c[:3, 3], (FOCAL, FOCAL), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT))
    rows = [(ref, (ref + step) % photos) for ref in range(photos) for step in range(1, targets + 1)]
    pairs = np.array([(ref, tgt, scales[ref], row) for row, (ref, tgt) in enumerate(rows)], PAIR)
    columns = {
        "pairs": pairs,
        "views": views,
        "path_ends": np.cumsum([len(path) for path in paths]),
        "path_bytes": np.frombuffer(b"".join(paths), np.uint8),
    }
    return WallScene(root, cameras, write_table(root / "pairs" / "train", columns, {}), scales)


def wall_model(cameras: list[np.ndarray], points: int = 200, seed: int = 0) -> ColmapModel:
    """Points of the wall and where each camera sees them; a few key points have no point."""
    random = np.random.default_rng(seed)
    xy = random.uniform(-3, 3, (points, 2))
    xyz = np.column_stack([xy, (OFFSET - xy @ NORMAL[:2]) / NORMAL[2]])
    ids = random.permutation(np.arange(10, 10 + 3 * points, 3))
    images = {}
    for number, w2c in enumerate(cameras):
        at = xyz @ w2c[:3, :3].T + w2c[:3, 3]
        pixels = at[:, :2] / at[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2]
        seen = (at[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < [WIDTH, HEIGHT]).all(axis=1)
        keypoints = np.concatenate([pixels[seen], [[1.0, 1.0], [2.0, 2.0]]])
        point_ids = np.concatenate([ids[seen], [-1, 10**7]])
        name = f"commons/Pärt A/0/pictures/photo {number}.png"
        pose = tuple(quaternion(w2c)), tuple(w2c[:3, 3])
        images[number + 1] = ColmapImage(number + 1, *pose, 1, name, keypoints, point_ids)
    rgb, none = np.zeros((points, 3), np.uint8), tuple(np.zeros((0, 2), np.int64) for _ in range(points))
    cloud = ColmapPoints(ids, xyz, rgb, np.zeros(points), none)
    lens = ColmapCamera(1, "PINHOLE", WIDTH, HEIGHT, (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
    return ColmapModel(Path(), {1: lens}, images, cloud)


def write_model(folder: Path, model: ColmapModel) -> Path:
    """Write a model into a new folder."""
    folder.mkdir(parents=True)
    write_binary(model, folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its path; locks left out."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
