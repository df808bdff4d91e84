"""Seconds to carve a visual hull of 128^3 voxels from 12 masks: blocks first, every voxel, or Open3D; on a CPU.

Question: what does testing blocks of voxels before voxels save, and is the result the same?

A figure of 40 balls (head, trunk, limbs) seen by two rings of six cameras, masks of 512x512 pixels by exact ray-ball
tests. Contenders, interleaved, one thread, CPU time, medians of five rounds after a warm-up: `carve`; the obvious
vectorised way (all voxels projected and interpolated with ``grid_sample``, view by view); Open3D's
``VoxelGrid.carve_silhouette``, which drops a voxel when all eight corners fall outside a mask, once with and once
without making its dense grid. Intersection over union of each result with float64 brute force that shares no code.

Predicted: `carve` is 4 times as fast as the vectorised way and 30 times as fast as Open3D, and equal to brute force
but for a handful of voxels that float32 puts on the other side of an edge. Open3D keeps a layer more (corners, no
interpolation): overlap about 0.9.

Happened (21 November 2026, under a load of 8 from other work on two cores; the JSON beside this file): 69 ms, 16
times as fast as the vectorised way (one pass of ``grid_sample`` over two million points costs more than thought) and
10.5 times as fast as Open3D, 8 times without the making of its grid: it is quicker than thought. Not one voxel differs
from brute force; Open3D's overlap is 0.83, for the limbs are but twelve voxels thick.

Run from the repository root: ``python -m benchmarks.hull``. Writes ``benchmarks/results/hull.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open3d
import torch

from r4dv_ns.hull import carve

RESULTS = Path(__file__).parent / "results" / "hull.json"
ROUNDS = 5
CELLS, SIZE, FOCAL, DISTANCE, HALF = 128, 512, 900.0, 3.0, 0.64
VOXEL = 2 * HALF / CELLS


def figure() -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii of the balls, world units."""
    limbs = [((0, 0, 0.25), (0.3, 0.05, 0.45)), ((0, 0, 0.25), (-0.35, 0, 0.1)), ((0, 0, -0.05), (0.12, 0.1, -0.5))]
    limbs += [((0, 0, -0.05), (-0.15, -0.1, -0.5))]
    along = np.linspace(0, 1, 8)[:, None]
    centres = [np.array(a) * (1 - along) + np.array(b) * along for a, b in limbs]
    trunk = np.array([0.0, 0, -0.1]) * (1 - along) + np.array([0.0, 0, 0.3]) * along
    radii = [np.full(8, 0.06)] * 4 + [np.full(7, 0.14), np.full(1, 0.11)]
    return np.concatenate([*centres, trunk[:-1], [[0, 0, 0.48]]]), np.concatenate(radii)


def cameras() -> tuple[np.ndarray, np.ndarray]:
    """K [12, 3, 3] and w2c [12, 4, 4], OpenCV."""
    turn = np.arange(12) * np.pi / 6
    height = np.where(np.arange(12) % 2, 0.5, -0.3)
    centres = DISTANCE * np.stack([np.cos(turn), np.sin(turn), height], 1) / np.sqrt(1 + height**2)[:, None]
    w2c = np.tile(np.eye(4), (12, 1, 1))
    for i, centre in enumerate(centres):
        z = -centre / np.linalg.norm(centre)
        x = np.cross(z, [0, 0, 1])
        x /= np.linalg.norm(x)
        w2c[i, :3, :3] = np.stack([x, np.cross(z, x), z])
        w2c[i, :3, 3] = -w2c[i, :3, :3] @ centre
    return np.tile([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1.0]], (12, 1, 1)), w2c


def masks(K: np.ndarray, w2c: np.ndarray) -> list[np.ndarray]:
    """255 where a pixel's ray meets a ball."""
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5
    result = []
    for matrix, pose in zip(K, w2c, strict=True):
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(matrix).T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        inside = np.zeros((SIZE, SIZE), bool)
        for centre, radius in zip(*figure(), strict=True):
            middle = pose[:3, :3] @ centre + pose[:3, 3]
            inside |= middle @ middle - (rays @ middle) ** 2 < radius**2
        result.append(np.where(inside, 255, 0).astype(np.uint8))
    return result


def centres() -> np.ndarray:
    """Voxel centres [n, 3]."""
    axis = -HALF + (np.arange(CELLS) + 0.5) * VOXEL
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def brute_force(images: list[np.ndarray], K: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    """The definition in float64: in every mask that sees the voxel, interpolated bilinearly, at least one half."""
    points, seen, hit = centres(), np.zeros(CELLS**3, int), np.zeros(CELLS**3, int)
    for image, matrix, pose in zip(images, K, w2c, strict=True):
        camera = points @ pose[:3, :3].T + pose[:3, 3]
        u, v = (camera @ matrix.T)[:, :2].T / camera[:, 2]
        inside = (camera[:, 2] > 1e-4) & (u >= 0) & (u < SIZE) & (v >= 0) & (v < SIZE)
        x, y = np.clip(u - 0.5, 0, SIZE - 1), np.clip(v - 0.5, 0, SIZE - 1)
        c, r = np.minimum(x.astype(int), SIZE - 2), np.minimum(y.astype(int), SIZE - 2)
        a, b, texels = x - c, y - r, image / 255.0
        upper = texels[r, c] * (1 - a) + texels[r, c + 1] * a
        lower = texels[r + 1, c] * (1 - a) + texels[r + 1, c + 1] * a
        seen += inside
        hit += inside & (upper * (1 - b) + lower * b > 0.5)
    return (seen > 0) & (hit == seen)


def every_voxel(images: list[torch.Tensor], K: torch.Tensor, w2c: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The obvious way in torch, float32."""
    kept = torch.ones(len(points), dtype=torch.bool)
    for image, matrix, pose in zip(images, K, w2c, strict=True):
        uvz = (points @ pose[:3, :3].T + pose[:3, 3]) @ matrix.T
        uv = uvz[:, :2] / uvz[:, 2:]
        seen = (uvz[:, 2] > 1e-4) & ((uv >= 0) & (uv < SIZE)).all(1)
        at = (uv * (2 / SIZE) - 1)[None, None]
        values = torch.nn.functional.grid_sample(image[None, None], at, padding_mode="border", align_corners=False)
        kept &= ~seen | (values[0, 0, 0] > 0.5)
    return kept


class Open3d:
    """`VoxelGrid.carve_silhouette` over all views."""

    def __init__(self, images: list[np.ndarray], K: np.ndarray, w2c: np.ndarray) -> None:
        self.images = [open3d.geometry.Image(image.astype(np.float32)) for image in images]  # pyright: ignore
        self.cameras = []
        for matrix, pose in zip(K, w2c, strict=True):
            camera = open3d.camera.PinholeCameraParameters()
            camera.intrinsic = open3d.camera.PinholeCameraIntrinsic(SIZE, SIZE, matrix)
            camera.extrinsic = pose
            self.cameras.append(camera)
        self.seconds_carving = 0.0

    def run(self) -> open3d.geometry.VoxelGrid:
        """Make the dense grid and carve it; notes the time of the second part."""
        side = 2 * HALF
        grid = open3d.geometry.VoxelGrid.create_dense(np.full(3, -HALF), np.zeros(3), VOXEL, side, side, side)
        start = time.process_time()
        for image, camera in zip(self.images, self.cameras, strict=True):
            grid.carve_silhouette(image, camera, keep_voxels_outside_image=True)
        self.seconds_carving = time.process_time() - start
        return grid

    def flags(self) -> np.ndarray:
        """Kept voxels, in the order of `centres`."""
        index = np.array([voxel.grid_index for voxel in self.run().get_voxels()])
        index = index[(index < CELLS).all(1)]
        flags = np.zeros((CELLS, CELLS, CELLS), bool)
        flags[tuple(index.T)] = True
        return flags.reshape(-1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def median_seconds(entries: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Interleaved rounds after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for round_ in range(ROUNDS + 1):
        for name, run in entries.items():
            start = time.process_time()
            run()
            if round_:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure, compare and write the JSON."""
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    K, w2c = cameras()
    images = masks(K, w2c)
    tensors = [torch.from_numpy(image).float() / 255 for image in images]
    K32, w2c32, points = (torch.tensor(each, dtype=torch.float32) for each in (K, w2c, centres()))
    other = Open3d(images, K, w2c)
    low, high = np.full(3, -HALF), np.full(3, HALF)
    carving: list[float] = []

    def ours() -> np.ndarray:
        return carve(images, K, w2c, low, high, VOXEL, vhull_thresh=1.0, count_thresh=1)

    def open3d_all() -> None:
        other.run()
        carving.append(other.seconds_carving)

    seconds = median_seconds(
        {"carve": ours, "every_voxel": lambda: every_voxel(tensors, K32, w2c32, points), "open3d": open3d_all}
    )
    seconds["open3d_without_making_the_grid"] = statistics.median(carving[1:])
    truth, flags = brute_force(images, K, w2c), np.zeros((CELLS, CELLS, CELLS), bool)
    flags[tuple(np.rint((ours() - low) / VOXEL - 0.5).astype(int).T)] = True
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "open3d")},
        "rounds": ROUNDS,
        "voxels": CELLS**3,
        "kept": int(truth.sum()),
        "views": len(images),
        "milliseconds": {name: round(1e3 * value, 1) for name, value in seconds.items()},
        "carve_is_faster_by": {
            name: round(value / seconds["carve"], 1) for name, value in seconds.items() if name != "carve"
        },
        "overlap_with_brute_force": {
            "carve": overlap(flags.reshape(-1), truth),
            "every_voxel": overlap(every_voxel(tensors, K32, w2c32, points).numpy(), truth),
            "open3d": round(overlap(other.flags(), truth), 4),
        },
        "voxels_that_differ_from_brute_force": int((flags.reshape(-1) != truth).sum()),
    }
    print(json.dumps(report, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
