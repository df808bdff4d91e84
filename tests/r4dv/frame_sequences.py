"""Recordings for tests of the data side: cameras on a ring, a moving ball, every pixel tells its view and frame."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, write_cameras
from r4dv_ns.hull_meta import HullOptions

NOISE = ("ignore:Using a non-tuple sequence:UserWarning",)
"""nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1)."""
RADIUS = 0.25
BOX = ((-0.6, -0.6, -0.6), (0.6, 0.6, 0.6))
QUICK = HullOptions(voxel=0.05, points=300, workers=1)
"""Hulls in no time."""


def ring(views: int, width: int, height: int, distance: float = 2.5, distortion: float = 0.0) -> dict[str, CameraModel]:
    """Cameras named 00, 01, ... that look at the origin; z is up, principal points lie off the centre."""
    cameras = {}
    for index in range(views):
        angle, lift = 2 * np.pi * index / views, 0.3 * (-1) ** index
        centre = distance * np.array([np.cos(angle) * np.cos(lift), np.sin(angle) * np.cos(lift), np.sin(lift)])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = 1.1 * width
        K = np.array([[focal, 0, width / 2 + 3], [0, 1.02 * focal, height / 2 - 2], [0, 0, 1]])
        D = np.array([distortion, 0, 0, 0, 0])
        name = f"{index:02d}"
        cameras[name] = CameraModel(name, K, D, None, width, height, rotation, -rotation @ centre)
    return cameras


def ball_centre(frame: int, frames: int) -> np.ndarray:
    """Where the ball is: on a short line."""
    return np.array([-0.2 + 0.4 * frame / max(frames - 1, 1), 0.05, 0.0])


def picture(camera: CameraModel, centre: np.ndarray, view: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """(photo, mask): a ball whose red tells the view and green the frame, on a ramp; exact silhouette."""
    width, height = camera.width or 0, camera.height or 0
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(camera.K).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    middle = camera.R @ centre + camera.T
    along = rays @ middle
    hit = (middle @ middle - along**2) < RADIUS**2
    image = np.stack([columns * 60 / width, rows * 60 / height, np.full_like(rows, 30)], axis=-1)
    image[hit] = (100 + 12 * view, 100 + (frame * 7) % 150, 200)
    return image.astype(np.uint8), np.where(hit, 255, 0).astype(np.uint8)


def write_ball(
    folder: Path,
    views: int = 7,
    frames: int = 5,
    size: tuple[int, int] = (72, 56),
    distortion: float = 0.0,
    suffix: str = ".png",
) -> Path:
    """A small sequence with masks; lossless by default."""  # fmt: skip
    cameras = ring(views, *size, distortion=distortion)
    folder.mkdir(parents=True, exist_ok=True)
    write_cameras(folder, cameras)
    for view, (name, camera) in enumerate(cameras.items()):
        for frame in range(frames):
            photo, mask = picture(camera, ball_centre(frame, frames), view, frame)
            write_image(folder / "images" / name / f"{frame:06d}{suffix}", photo)
            write_image(folder / "masks" / name / f"{frame:06d}.png", mask)
    return folder


def write_long(folder: Path, views: int, frames: int, size: tuple[int, int], distinct: int = 5) -> Path:
    """Many JPEG frames at the price of a few: ``distinct`` pictures per view (masks likewise) under all names."""
    cameras = ring(views, *size)
    folder.mkdir(parents=True, exist_ok=True)
    write_cameras(folder, cameras)
    noise = np.random.default_rng(0)
    for view, (name, camera) in enumerate(cameras.items()):
        for kind in ("images", "masks"):
            (folder / kind / name).mkdir(parents=True)
        for frame in range(frames):
            photo_file = folder / "images" / name / f"{frame:06d}.jpg"
            mask_file = folder / "masks" / name / f"{frame:06d}.png"
            if frame >= distinct:
                os.link(folder / "images" / name / f"{frame % distinct:06d}.jpg", photo_file)
                os.link(folder / "masks" / name / f"{frame % distinct:06d}.png", mask_file)
                continue
            photo, mask = picture(camera, ball_centre(frame, distinct), view, frame)
            photo = photo + noise.integers(0, 12, photo.shape, dtype=np.uint8)
            cv2.imwrite(str(photo_file), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            cv2.imwrite(str(mask_file), mask)
    return folder
