"""Balls seen by cameras around them, with exact masks; slow twins of the carving."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, write_cameras


def look_at(centre: np.ndarray, target: np.ndarray | tuple = (0.0, 0.0, 0.0)) -> np.ndarray:
    """World to OpenCV camera [4, 4]; the camera's y axis points down the world's z."""
    z = (np.asarray(target) - centre) / np.linalg.norm(np.asarray(target) - centre)
    x = np.cross(z, [0.0, 0.0, 1.0] if abs(z[2]) < 0.99 else [0.0, 1.0, 0.0])
    x /= np.linalg.norm(x)
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([x, np.cross(z, x), z])
    w2c[:3, 3] = -w2c[:3, :3] @ centre
    return w2c


def all_around(count: int, distance: float) -> np.ndarray:
    """Cameras [count, 4, 4] spread evenly over a sphere (Fibonacci), looking at the origin."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - z * z)
    return np.stack([look_at(c) for c in distance * np.stack([ring * np.cos(turn), ring * np.sin(turn), z], 1)])


def intrinsics(focal: float, width: int, height: int) -> np.ndarray:
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def ball_mask(K: np.ndarray, w2c: np.ndarray, width: int, height: int, centre: np.ndarray, radius: float) -> np.ndarray:
    """255 where the ray through the pixel's centre meets the ball in front of the camera."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    middle = w2c[:3, :3] @ centre + w2c[:3, 3]
    along = rays @ middle
    return np.where((middle @ middle - along**2 < radius**2) & (along > 0), 255, 0).astype(np.uint8)


def ball_views(count: int, distance=2.5, focal=563.0, size=256, radius=0.3, centre=(0.0, 0.0, 0.0)):
    """(masks, K [v, 3, 3], w2c [v, 4, 4])."""
    w2c = all_around(count, distance)
    K = np.stack([intrinsics(focal, size, size)] * count)
    return [ball_mask(K[i], w2c[i], size, size, np.asarray(centre), radius) for i in range(count)], K, w2c


def blobs(seed: int, height: int, width: int, soft: bool) -> np.ndarray:
    """A mask of random discs, touching borders now and then; soft ones have every value."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    distance = np.full((height, width), 1e9)
    for _ in range(rng.integers(0, 4)):
        centre, radius = rng.uniform(0, (height, width)), rng.uniform(0.5, height / 2 + 0.5)
        distance = np.minimum(distance, np.hypot(y - centre[0], x - centre[1]) - radius)
    return (
        (np.clip(0.5 - distance / 6, 0, 1) * 255).astype(np.uint8)
        if soft
        else np.where(distance < 0, 255, 0).astype("u1")
    )


def random_view(seed: int):
    """(mask, K, w2c, valid or None) at random, about a unit cube at the origin that the camera may be in; skewed."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    centre = rng.normal(size=3) * rng.choice([0.3, 2.0])
    w2c = look_at(centre, rng.normal(size=3) * 0.4)
    K = intrinsics(rng.uniform(10, 60), width, height)
    K[0, 1], K[1, 1] = rng.normal(), rng.uniform(10, 60)
    mask = blobs(seed, height, width, bool(seed % 2))
    valid = None if seed % 3 else blobs(seed + 1, height, width, False) > 0
    return mask, K, w2c, valid


def bilinear(mask: np.ndarray, u: float, v: float) -> float:
    """The definition, one sample: texel centres at + 0.5, border repeated; 0 to 1."""
    height, width = mask.shape
    x, y = u - 0.5, v - 0.5
    c, r = int(np.floor(x)), int(np.floor(y))
    total = 0.0
    for dr in (0, 1):
        for dc in (0, 1):
            texel = mask[min(max(r + dr, 0), height - 1), min(max(c + dc, 0), width - 1)] / 255.0
            total += texel * (x - c if dc else 1 - x + c) * (y - r if dr else 1 - y + r)
    return total


def sees(K, w2c, mask, point, near=1e-4, valid=None) -> tuple[bool, float]:
    """(whether a camera sees a world point, the mask there); one point, plain arithmetic."""
    camera = w2c[:3, :3] @ point + w2c[:3, 3]
    if camera[2] <= near:
        return False, 0.0
    u, v, _ = K @ camera / camera[2]
    height, width = mask.shape
    if not (0 <= u < width and 0 <= v < height) or (valid is not None and not valid[int(v), int(u)]):
        return False, 0.0
    return True, bilinear(mask, u, v)


def brute_force(masks, K, w2c, low, high, voxel, thresh, count, valid=None, near=1e-4) -> np.ndarray:
    """Every voxel against every view, in float64 and without shortcuts: flags [x, y, z]."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    dims = np.ceil((high - low) / voxel - 1e-6).astype(int)
    points = low + (np.stack(np.meshgrid(*map(np.arange, dims), indexing="ij"), -1) + 0.5) * voxel
    seen, hit = np.zeros(dims, int), np.zeros(dims, int)
    for i, mask in enumerate(masks):
        camera = points @ w2c[i][:3, :3].T + w2c[i][:3, 3]
        z = np.where(camera[..., 2] > near, camera[..., 2], 1.0)
        u = (K[i][0, 0] * camera[..., 0] + K[i][0, 1] * camera[..., 1]) / z + K[i][0, 2]
        v = K[i][1, 1] * camera[..., 1] / z + K[i][1, 2]
        height, width = mask.shape
        inside = (camera[..., 2] > near) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        at = np.clip(v.astype(int), 0, height - 1), np.clip(u.astype(int), 0, width - 1)
        if valid is not None:
            inside &= valid[i][at]
        x, y = np.clip(u - 0.5, 0, width - 1), np.clip(v - 0.5, 0, height - 1)
        c, r = np.minimum(x.astype(int), max(width - 2, 0)), np.minimum(y.astype(int), max(height - 2, 0))
        c1, r1 = np.minimum(c + 1, width - 1), np.minimum(r + 1, height - 1)
        m = mask / 255.0
        upper = m[r, c] * (1 - x + c) + m[r, c1] * (x - c)
        lower = m[r1, c] * (1 - x + c) + m[r1, c1] * (x - c)
        seen += inside
        hit += inside & (upper * (1 - y + r) + lower * (y - r) > 0.5)
    return (seen >= count) & (hit >= thresh * seen - 1e-9)


def as_flags(points: np.ndarray, low, high, voxel: float) -> np.ndarray:
    """Voxel centres as flags [x, y, z] of the grid that `brute_force` uses."""
    dims = np.ceil((np.asarray(high, float) - low) / voxel - 1e-6).astype(int)
    flags = np.zeros(dims, bool)
    flags[tuple(np.rint((points - low) / voxel - 0.5).astype(int).T)] = True
    return flags


def write_balls(folder: Path, centres: np.ndarray, radius=0.25, cameras=8, size=96, focal=150.0) -> Path:
    """An EasyMocap sequence of a ball at ``centres`` [f, 3]: photos grey on black, masks 255 on 0."""
    w2c, K = all_around(cameras, 2.5), intrinsics(focal, size, size)
    models = {}
    for i in range(cameras):
        name = f"{i:02d}"
        models[name] = CameraModel(name, K, width=size, height=size, R=w2c[i, :3, :3], T=w2c[i, :3, 3])
        for frame, centre in enumerate(np.atleast_2d(centres)):
            mask = ball_mask(K, w2c[i], size, size, centre, radius)
            write_image(folder / "masks" / name / f"{frame:06d}.png", mask)
            write_image(folder / "images" / name / f"{frame:06d}.jpg", np.repeat(mask[..., None] // 2, 3, -1))
    write_cameras(folder, models)
    return folder
