"""The original's way to align cameras, against numbers computed by it (spec r4dv 5.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from easymocap_scene import make_sequence, ring

from core_ns.errors import DataError
from dataparsers.easymocap_attention import aligned_frame
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence


def w2c_of(c2w: np.ndarray) -> np.ndarray:
    """World-to-camera [n, 4, 4] of [n, 3, 4]."""
    found = np.tile(np.eye(4), (len(c2w), 1, 1))
    found[:, :3] = c2w
    return np.linalg.inv(found)


def test_cameras_are_aligned_as_by_the_original(shared_fixtures: Path) -> None:
    numbers = np.load(shared_fixtures / "r4dv" / "paths.npz")
    cameras = numbers["c2ws"].astype(np.float64)
    transform = aligned_frame(w2c_of(cameras))
    np.testing.assert_allclose(np.linalg.inv(transform)[:3], numbers["average_aligned"], atol=2e-5)
    whole = np.concatenate([cameras, np.tile([[[0, 0, 0, 1.0]]], (5, 1, 1))], axis=1)
    np.testing.assert_allclose((transform @ whole)[:, :3], numbers["aligned_c2ws"], atol=2e-5)
    np.testing.assert_allclose(transform[:3, :3] @ transform[:3, :3].T, np.eye(3), atol=1e-12)


def test_a_ring_about_a_point(tmp_path: Path) -> None:
    """Cameras that look at (0.2, -0.1, 1), z up: the point becomes the origin, z stays up."""
    cameras = dict(list(ring(6).items())[:4])
    transform = open_sequence(make_sequence(tmp_path, cameras), SequenceOptions(orientation="aligned")).transform
    np.testing.assert_allclose(transform @ [0.2, -0.1, 1.0, 1.0], [0, 0, 0, 1], atol=1e-6)
    assert transform[2, 2] > 0.99


def test_cameras_that_cannot_be_aligned(tmp_path: Path) -> None:
    same = np.stack([ring(1)["00"].w2c] * 3)
    with pytest.raises(ValueError, match="in parallel"):
        aligned_frame(same)
    with pytest.raises(DataError, match=r"in parallel.*--orientation none"):
        open_sequence(make_sequence(tmp_path, ring(1)), SequenceOptions(orientation="aligned"))
    rolled = same.copy()
    rolled[1, :3] = np.diag([-1.0, -1.0, 1.0]) @ rolled[1, :3]
    with pytest.raises(ValueError, match="no common up"):
        aligned_frame(rolled[:2])
    whole = np.stack([camera.w2c for camera in ring(6).values()])
    with pytest.raises(ValueError, match="straight along it"):
        aligned_frame(whole)  # on a whole ring the mean of the directions is vertical: the original divides by zero
