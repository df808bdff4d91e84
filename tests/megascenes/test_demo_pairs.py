"""The generated pairs: depth against the scene itself, and photos that agree with their warps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core_ns.demo_scenes import build_demo_scene
from core_ns.errors import DataError
from core_ns.images import read_image
from megascenes_ns.demo_pairs import make_demo_pairs, z_depth
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.warp import render


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "pairs"
    return folder, make_demo_pairs(folder, views=24, reach=1, width=96, height=72)


def test_depth_is_where_a_single_ray_ends():
    scene = build_demo_scene(views=8, test_views=0, width=40, height=32)
    depth, pose = z_depth(scene, 3), scene.poses[3]
    assert np.isinf(depth).any()
    for row, column in np.argwhere(np.isfinite(depth))[::90]:
        inside = np.linalg.inv(scene.intrinsics) @ [column + 0.5, row + 0.5, 1.0]
        world = pose[:3, :3].T @ (depth[row, column] * inside - pose[:3, 3])
        centre = -pose[:3, :3].T @ pose[:3, 3]
        away = world - centre
        hit = scene.cast(
            torch.tensor(centre[None], dtype=torch.float32),
            torch.tensor(away[None] / np.linalg.norm(away), dtype=torch.float32),
        )
        assert float(hit.t) == pytest.approx(np.linalg.norm(away), rel=1e-4)


def test_rows_and_their_scale(pairs):
    folder, tables = pairs
    assert (len(tables["train"]), len(tables["test"])) == (32, 16)
    names = {path for table in tables.values() for k in range(len(table)) for path in table.paths(k)}
    assert names == {f"{view:05d}.jpg" for view in range(24)}
    held_out = {f"{view:05d}.jpg" for view in range(5, 24, 6)}
    assert not held_out & {path for k in range(len(tables["train"])) for path in tables["train"].paths(k)}
    depth = np.load(folder / "depth" / "00000.npy")
    pair = next(pair for pair in tables["train"] if pair.ref_path == "00000.jpg")
    assert pair.scale == pytest.approx(np.quantile(depth[np.isfinite(depth)], 0.2))


def test_the_warp_of_one_photo_meets_the_other(pairs):
    folder, tables = pairs
    for k in range(0, 32, 8):
        pair = tables["train"][k]
        photo, truth = (read_image(folder / "images" / path)[0] for path in (pair.ref_path, pair.tgt_path))
        depth = np.load(folder / "depth" / f"{Path(pair.ref_path).stem}.npy")
        mesh = DepthMesh.from_depth(np.minimum(depth, 100.0), pair.ref_K, photo)
        warp = render(mesh, pair.tgt_K, pair.ref_w2c @ np.linalg.inv(pair.tgt_w2c), 72, 96)
        seen = warp.coverage == 1
        assert seen.mean() > 0.35
        error = (np.asarray(warp.rgb) - truth / 255.0)[seen]
        assert -10 * np.log10(np.square(error).mean()) > 18


def test_nothing_is_overwritten(pairs):
    with pytest.raises(DataError, match="exists already"):
        make_demo_pairs(pairs[0])
    with pytest.raises(DataError, match="reach 9"):
        make_demo_pairs(pairs[0].parent / "new", views=10, reach=9)
    assert not (pairs[0].parent / "new").exists()
