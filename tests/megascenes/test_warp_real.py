"""Warps of real photos through real depth fit the other photo, and cease to when the camera is turned by a degree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataparsers.megascenes_pickle import read_rows
from dataparsers.megascenes_table import quaternion_rotation
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.paths import turned
from megascenes_ns.prepare import prepare
from megascenes_ns.warp import render


def camera(listed: dict) -> tuple[np.ndarray, np.ndarray]:
    """w2c and K of a listed photo."""
    numbers = np.array(listed["extrinsics"], dtype=np.float64)
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = quaternion_rotation(numbers[:4]), numbers[4:]
    fx, fy, cx, cy = map(float, listed["intrinsics"][3:])
    return w2c, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def fitted_psnr(warp, photo: np.ndarray) -> float:
    """dB where the warp covers pixels whole, after fitting each channel's gain and bias: exposures differ."""
    covered = warp.coverage == 1
    ours, theirs = warp.rgb[covered].astype(np.float64), photo[covered] / 255.0
    error = 0.0
    for k in range(3):
        system = np.stack([ours[:, k], np.ones(len(ours))], axis=1)
        solution = np.linalg.lstsq(system, theirs[:, k], rcond=None)[0]
        error += float(((system @ solution - theirs[:, k]) ** 2).mean()) / 3
    return -10 * np.log10(error)


@pytest.mark.parametrize(
    ("split", "row", "least"), [("trainsplit", 0, 21.0), ("trainsplit", 3, 21.5), ("testsplit", 0, 25.5)]
)
@pytest.mark.parametrize("backend", ["cast", "torch"])
def test_a_castle_from_its_other_side(shared_data, split, row, least, backend):
    folder: Path = shared_data / "megascenes_pairs"
    first, second, of_first, of_second, scale = read_rows(folder / "splits" / f"{split}.pkl")[row]
    photos = [np.array(Image.open(folder / path.split("main/")[1])) for path in (first, second)]
    depth_name = first.split("main/images/")[1].replace("0/pictures", "aligned_depth_maps").replace(".jpg", ".npy")
    depth = np.load(folder / "depth" / depth_name, allow_pickle=False) / scale
    (w2c, K), (target_w2c, target_K) = camera(of_first), camera(of_second)
    reference, target = prepare(photos[0], K), prepare(photos[1], target_K)
    width, height = reference.size
    nearest = np.asarray(Image.fromarray(depth).resize((width, height), Image.Resampling.NEAREST))
    mesh = DepthMesh.from_depth(nearest, reference.K, reference.image)
    rel = w2c @ np.linalg.inv(target_w2c)
    rel[:3, 3] /= scale
    aside = np.eye(4)
    aside[:3, :3] = turned(np.radians(1.0))
    size = target.image.shape[:2]
    warp = render(mesh, target.K, rel, *size, backend=backend)
    assert warp.coverage.mean() > 0.4
    assert fitted_psnr(warp, target.image) > least
    assert fitted_psnr(render(mesh, target.K, rel @ aside, *size, backend=backend), target.image) < least - 4
