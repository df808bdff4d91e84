"""nerfstudio's camera and the conditioning pose are one another's image (spec megascenes 8.1, 11.5)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from core_ns.frames import c2w_opengl_from_w2c_opencv
from megascenes_ns.canonical import c2w_ns_from_rel, rel_from_c2w_ns


def poses(count: int, seed: int = 0) -> np.ndarray:
    """Random rigid matrices."""
    rel = np.tile(np.eye(4), (count, 1, 1))
    rel[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    rel[:, :3, 3] = np.random.default_rng(seed).normal(0, 5, (count, 3))
    return rel


def test_by_hand():
    """One unit to the right, two down, three ahead of a reference that looks along +y with z up."""
    rel = np.eye(4)
    rel[:3, 3] = 1.0, 2.0, 3.0
    c2w = c2w_ns_from_rel(rel)
    np.testing.assert_array_equal(c2w[:3, 3], [1, 3, -2])
    np.testing.assert_array_equal(c2w[:3, 0], [1, 0, 0])  # right stays right
    np.testing.assert_array_equal(c2w[:3, 1], [0, 0, 1])  # the camera's up is the world's
    np.testing.assert_array_equal(-c2w[:3, 2], [0, 1, 0])  # it looks along +y


def test_against_the_house_s_conversion():
    """W applied to the world of `core_ns.frames`."""
    rel = poses(20)
    w = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    opengl = c2w_opengl_from_w2c_opencv(np.linalg.inv(rel))
    np.testing.assert_allclose(c2w_ns_from_rel(rel)[:, :3], w @ opengl[:, :3], atol=1e-12)


def test_round_trips():
    rel = poses(200)
    np.testing.assert_allclose(rel_from_c2w_ns(c2w_ns_from_rel(rel)), rel, rtol=0, atol=1e-12)
    c2w = poses(200, seed=1)
    np.testing.assert_allclose(c2w_ns_from_rel(rel_from_c2w_ns(c2w)), c2w, rtol=0, atol=1e-12)
    single = c2w_ns_from_rel(rel).astype(np.float32)[:, :3]  # as nerfstudio's Cameras keep them
    np.testing.assert_allclose(rel_from_c2w_ns(single), rel, rtol=1e-6, atol=1e-6)
    assert (np.linalg.det(c2w_ns_from_rel(rel)[:, :3, :3]) > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7))
def test_any_pose_comes_back(numbers):
    rel = np.eye(4)
    rel[:3, :3] = Rotation.from_rotvec(numbers[:3]).as_matrix()
    rel[:3, 3] = numbers[3:6]
    np.testing.assert_allclose(rel_from_c2w_ns(c2w_ns_from_rel(rel)[:3]), rel, rtol=0, atol=1e-9)


def test_no_matrix():
    with pytest.raises(ValueError, match="3x4 or 4x4"):
        c2w_ns_from_rel(np.eye(3))
