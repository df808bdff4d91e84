"""Pairs of photos of a generated monument, with its exact depth: something to train on that needs no download.

DIR/images/00000.jpg    DIR/depth/00000.npy (z, inf in the sky)    DIR/train, DIR/test (converted lists)
"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from core_ns.atomic import write_bytes
from core_ns.demo_scenes import DemoScene, build_demo_scene, look_at
from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers.megascenes_rows import Camera, ColumnBuilder
from dataparsers.megascenes_table import PairTable, write_table

Array = np.ndarray

SUPERSAMPLE = 2
QUANTILE = 0.2


def z_depth(scene: DemoScene, view: int) -> Float32[Array, "h w"]:
    """Depth along the viewing axis at the pixels' centres, world units; infinite in the sky,
    which is far away and moves with the camera."""
    rows, columns = torch.meshgrid(torch.arange(scene.height), torch.arange(scene.width), indexing="ij")
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], dim=-1).double()
    pose = scene.poses[view]
    inside = pixels @ torch.from_numpy(np.linalg.inv(scene.intrinsics)).T
    lengths = inside.norm(dim=-1, keepdim=True)
    rays = ((inside / lengths) @ torch.from_numpy(pose[:3, :3])).float().reshape(-1, 3)
    origin = torch.tensor(-pose[:3, :3].T @ pose[:3, 3], dtype=torch.float32)
    hits = scene.cast(origin.expand_as(rays).contiguous(), rays.contiguous())
    along = torch.where(hits.hit, hits.t.double(), torch.inf) / lengths.reshape(-1)
    return along.float().reshape(scene.height, scene.width).numpy()


def make_demo_pairs(
    folder: str | Path, *, views: int = 36, reach: int = 2, width: int = 192, height: int = 144, seed: int = 0
) -> dict[str, PairTable]:
    """Photos around the monument; every ordered pair of near neighbours is a row.

    Args:
        folder: to make.
        views: photos on the circle; the last one in six is held out, with all pairs that it is in.
        reach: how many photos two of a pair may be apart on the circle.
        width: of the photos, pixels.
        height: of the photos, pixels.
        seed: of scene and cameras.

    Returns:
        The tables train and test.

    Raises:
        DataError: the folder exists already, or a number is too small.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(folder, "path", "exists already.", "Name a folder to make, or delete this one.")
    if views < 6 or not 1 <= reach < views / 2 or min(width, height) < 32 or seed < 0:
        problem = f"are {views} views, reach {reach}, {width}x{height} pixels, seed {seed}."
        raise DataError("options", "numbers", problem, "Give 6 views, a reach of 1, 32 pixels, seed 0, or more.")
    scene = build_demo_scene(views=views, test_views=0, width=width, height=height, seed=seed)
    scene = dataclasses.replace(scene, poses=_circle(views))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is whole: half a demo would train, on less than it says.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            scales = list(pool.map(lambda view: _write_view(scene, view, temporary), range(views)))
        tables = _pairs(scene, scales, reach)
        for name, builder in tables.items():
            meta = {"split": name, "source": "generated monument", "source_rows": len(builder), "missing": 0}
            write_table(temporary / name, builder.columns(), meta)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {name: PairTable.open(folder / name) for name in tables}


def _circle(views: int) -> Float[Array, "n 4 4"]:
    """World-to-camera poses round the monument whose neighbours see much the same: the scene's own jump back and
    forth."""
    poses = []
    for view in range(views):
        turn = 2 * np.pi * view / views
        height, distance = np.radians(24 + 8 * np.sin(3 * turn)), 5.0 + 0.6 * np.cos(2 * turn)
        flat = np.array([np.cos(turn), np.sin(turn)]) * np.cos(height)
        target = np.array([0.0, 0.0, 0.62])
        poses.append(look_at(target + distance * np.array([*flat, np.sin(height)]), target))
    return np.stack(poses)


def _write_view(scene: DemoScene, view: int, folder: Path) -> float:
    """Photo and depth; the depth's 20 % quantile, the unit of the pair's numbers (spec megascenes 2.1)."""
    rgb = scene.render(scene.poses[view], scene.intrinsics, scene.width, scene.height, SUPERSAMPLE).rgb
    write_image(folder / "images" / f"{scene.names[view]}.jpg", (255 * rgb).round().to(torch.uint8).numpy())
    depth = z_depth(scene, view)
    buffer = io.BytesIO()
    np.save(buffer, depth, allow_pickle=False)
    write_bytes(folder / "depth" / f"{scene.names[view]}.npy", buffer.getvalue())
    return float(np.quantile(depth[np.isfinite(depth)], QUANTILE))


def _pairs(scene: DemoScene, scales: list[float], reach: int) -> dict[str, ColumnBuilder]:
    builders = {"train": ColumnBuilder(), "test": ColumnBuilder()}
    count = len(scales)
    cameras = [_camera(scene, pose) for pose in scene.poses]
    for one in range(count):
        for step in [*range(-reach, 0), *range(1, reach + 1)]:
            other = (one + step) % count
            held_out = one % 6 == 5 or other % 6 == 5
            builder = builders["test" if held_out else "train"]
            reference, target = (f"{scene.names[view]}.jpg" for view in (one, other))
            builder.add(reference, target, cameras[one], cameras[other], scales[one], len(builder))
    return builders


def _camera(scene: DemoScene, pose: Float[Array, "4 4"]) -> Camera:
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    k = scene.intrinsics
    focal, centre = (float(k[0, 0]), float(k[1, 1])), (float(k[0, 2]), float(k[1, 2]))
    tx, ty, tz = (float(each) for each in pose[:3, 3])
    return Camera((w, x, y, z), (tx, ty, tz), focal, centre, (scene.width, scene.height))
