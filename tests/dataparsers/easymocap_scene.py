"""Tiny recordings in EasyMocap's layout: a ring of cameras about a moving disc, drawn without any renderer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dataparsers.easymocap import CameraModel, write_cameras

WIDTH, HEIGHT, FOCAL = 48, 36, 50.0


def look_at(centre: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, T) of an OpenCV camera at ``centre`` that sees ``target`` in its middle; world up is +z."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ centre


def ring(
    count: int,
    radius: float = 3.0,
    target: tuple[float, float, float] = (0.2, -0.1, 1.0),
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> dict[str, CameraModel]:
    """Cameras 00, 01, ... on a circle about ``target``, a little above it."""
    cameras = {}
    for index in range(count):
        angle = 2 * np.pi * index / count
        offset = radius * np.array([np.cos(angle), np.sin(angle), 0.25])
        rotation, translation = look_at(np.asarray(target) + offset, np.asarray(target))
        focal = FOCAL * size[0] / WIDTH
        matrix = np.array([[focal, 0, size[0] / 2 + 0.7], [0, focal * 1.02, size[1] / 2 - 0.4], [0, 0, 1.0]])
        cameras[f"{index:02d}"] = CameraModel(
            f"{index:02d}", matrix, width=size[0], height=size[1], R=rotation, T=translation
        )
    return cameras


def shift(camera: CameraModel, move: np.ndarray) -> CameraModel:
    """The camera after its centre moved by ``move``."""
    return replace(camera, T=camera.T - camera.R @ move)


def draw(size: tuple[int, int], view: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """(photo, mask): a disc that differs in every view and frame, on a grey background."""
    width, height = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centre = np.array([0.5 * width + 0.03 * width * frame, 0.5 * height])
    inside = np.hypot(u - centre[0], v - centre[1]) < 0.25 * height
    photo = np.full((height, width, 3), 90, np.uint8)
    photo[inside] = (200 - 9 * view % 200, 60 + 11 * frame % 190, 40 + 5 * view % 200)
    return photo, np.where(inside, 255, 0).astype(np.uint8)


def make_sequence(
    folder: Path,
    cameras: dict[str, CameraModel] | None = None,
    frames: int = 3,
    masks: bool = True,
    suffix: str = ".jpg",
    first: int = 0,
    moving: tuple[str, ...] = (),
) -> Path:
    """Write a sequence; cameras named in ``moving`` get a folder cameras/NAME and drift along x."""
    cameras = ring(6) if cameras is None else cameras
    still = {name: camera for name, camera in cameras.items() if name not in moving}
    if still:
        write_cameras(folder, still)
    stems = [f"{first + frame:06d}" for frame in range(frames)]
    for name in moving:
        path = {stem: shift(cameras[name], np.array([0.1 * i, 0, 0])) for i, stem in enumerate(stems)}
        write_cameras(folder / "cameras" / name, path)
    for view, (name, camera) in enumerate(sorted(cameras.items())):
        (folder / "images" / name).mkdir(parents=True)
        if masks:
            (folder / "masks" / name).mkdir(parents=True)
        size = (camera.width or WIDTH, camera.height or HEIGHT)
        for frame, stem in enumerate(stems):
            photo, mask = draw(size, view, frame)
            Image.fromarray(photo).save(folder / "images" / name / f"{stem}{suffix}")
            if masks:
                Image.fromarray(mask).save(folder / "masks" / name / f"{stem}.png")
    return folder
