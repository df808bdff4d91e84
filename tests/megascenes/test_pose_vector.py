"""The 19 numbers against the original's, and by hand (spec megascenes 4.3, 11.6)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dataparsers.megascenes_splits import convert_splits
from megascenes_ns.canonical import c2w_ns_from_rel, rel_from_c2w_ns
from megascenes_ns.pose_vector import (
    diagonal_fov,
    pose_vector,
    pose_vector_from_rel,
    relative_pose,
    squash_translation,
)


def test_the_original_s_numbers(shared_fixtures, tmp_path):
    """`PairedDataset.__getitem__` of the original on six listed pairs, relative 1e-6."""
    folder = shared_fixtures / "megascenes/data"
    (converted,) = convert_splits([folder / "pairs_protocol4.pkl"], tmp_path)
    expected = json.loads((folder / "pairs_expected.json").read_text(encoding="utf-8"))
    arrays = converted.table.arrays()
    together = pose_vector(arrays.ref_w2c, arrays.tgt_w2c, arrays.scale, arrays.tgt_K, arrays.tgt_size)
    assert together.dtype == np.float32
    assert together.shape == (6, 19)
    for pair, row, vector in zip(converted.table, expected, together, strict=True):
        assert pair.scale is not None
        alone = pose_vector(pair.ref_w2c, pair.tgt_w2c, pair.scale, pair.tgt_K, pair.tgt_size)
        np.testing.assert_array_equal(alone, vector)
        np.testing.assert_allclose(alone, row["rel_pose"], rtol=1e-6, atol=0)
        assert diagonal_fov(pair.tgt_K[0, 0], *pair.tgt_size) == pytest.approx(row["fov_rad"], rel=1e-12)


def w2c(rotation: Rotation, centre: list[float]) -> np.ndarray:
    """World to camera of a camera at ``centre`` whose axes are the columns of the rotation."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix().T
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix


def test_by_hand():
    """The target stands 6 units to the reference's right, turned 90 degrees to its left; one unit is 2 of the world."""
    turn = Rotation.from_euler("y", 30, degrees=True)
    ref = w2c(turn, [1.0, 2.0, 3.0])
    right = turn.as_matrix()[:, 0]
    tgt = w2c(turn * Rotation.from_euler("y", -90, degrees=True), list(np.array([1.0, 2.0, 3.0]) + 12 * right))
    rel = relative_pose(ref, tgt, 2.0)
    np.testing.assert_allclose(rel, [[0, 0, -1, 6], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], atol=1e-12)
    # Its optical axis points to the reference's left, as seen in nerfstudio's world, too.
    np.testing.assert_allclose(-c2w_ns_from_rel(rel)[:3, 2], [-1, 0, 0], atol=1e-12)


def test_the_field_of_view_of_the_spec():
    assert diagonal_fov(500.0, 640, 480) == pytest.approx(1.3495, abs=5e-5)
    assert diagonal_fov(500.0, 640, 480) == pytest.approx(2 * math.atan(400 / 500))
    assert diagonal_fov(200.0, 256, 192) == pytest.approx(diagonal_fov(500.0, 640, 480))
    vector = pose_vector_from_rel(np.eye(4), 1.25)
    np.testing.assert_allclose(vector[16:], [1.25, math.sin(1.25), math.cos(1.25)], rtol=1e-6)
    np.testing.assert_array_equal(vector[:16], np.eye(4).ravel())


def test_the_same_numbers_by_way_of_nerfstudio(shared_data, tmp_path):
    """A camera that nerfstudio has kept in float32 is the conditioning pose."""
    (converted,) = convert_splits([shared_data / "megascenes_pairs/splits/trainsplit.pkl"], tmp_path)
    arrays = converted.table.arrays()
    rel = relative_pose(arrays.ref_w2c, arrays.tgt_w2c, arrays.scale)
    stored = c2w_ns_from_rel(rel)[:, :3].astype(np.float32)
    direct = pose_vector(arrays.ref_w2c, arrays.tgt_w2c, arrays.scale, arrays.tgt_K, arrays.tgt_size)
    fov = diagonal_fov(arrays.tgt_K[:, 0, 0], arrays.tgt_size[:, 0], arrays.tgt_size[:, 1])
    np.testing.assert_allclose(pose_vector_from_rel(rel_from_c2w_ns(stored), fov), direct, rtol=1e-6, atol=1e-6)


def test_a_scale_of_zero_is_clipped():
    near = np.eye(4)
    near[0, 3] = -1e-3
    assert relative_pose(np.eye(4), near, 0.0)[0, 3] == pytest.approx(1e4)
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scale"):
            relative_pose(np.eye(4), near, scale)


def test_zeronvs_squashes():
    rel = np.eye(4)
    rel[:3, 3] = 1e-3, 5.0, -1e6
    np.testing.assert_allclose(squash_translation(rel)[:3, 3], [5e-4, 5 * math.tanh(0.5), -5.0], rtol=1e-6)
    far = np.eye(4)
    far[0, 3] = -1.0
    size, K = (640, 480), np.diag([500.0, 500.0, 1.0])
    squashed = pose_vector(np.eye(4), far, 1e-5, K, size, squash="zeronvs")
    assert squashed[3] == pytest.approx(5 * math.tanh(100 / 10))
    assert pose_vector(np.eye(4), far, 1e-5, K, size)[3] == pytest.approx(1e5)
