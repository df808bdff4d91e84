"""From a camera to a mixture of frames: against searches by brute force, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xfactor_ns.camera_control import Mixture, PosePath, along, between, blend, coordinates, nearest


def rigid(rotation: np.ndarray, place: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, place
    return pose


def walk(seed: int, frames: int = 9, turn: float = 0.2, stride: float = 0.4) -> np.ndarray:
    """A camera that walks at random, camera-to-world [F 4 4]."""
    random = np.random.default_rng(seed)
    poses = [rigid(Rotation.random(random_state=seed).as_matrix(), random.normal(size=3))]
    for _ in range(frames - 1):
        step = rigid(Rotation.from_rotvec(turn * random.normal(size=3)).as_matrix(), stride * random.normal(size=3))
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def test_a_path_is_seen_from_its_reference_in_its_own_unit():
    c2w = walk(0)
    path = PosePath.of(c2w[:, :3], 4)
    assert np.array_equal(path.relative[4], np.eye(4))
    distances = np.linalg.norm(path.relative[:, :3, 3], axis=1)
    assert np.median(np.delete(distances, 4)) == pytest.approx(1)
    rebuilt = path.relative.copy()
    rebuilt[:, :3, 3] *= path.scale
    np.testing.assert_allclose(c2w[4] @ rebuilt, c2w, atol=1e-12)


def test_moving_and_scaling_the_world_changes_no_path():
    c2w = walk(1)
    moved = rigid(Rotation.random(random_state=5).as_matrix(), np.array([3.0, -2.0, 1.0])) @ c2w
    moved[:, :3, 3] *= 7.0
    one, other = PosePath.of(c2w, 3), PosePath.of(moved, 3)
    np.testing.assert_allclose(one.relative, other.relative, atol=1e-9)
    assert other.scale == pytest.approx(7 * one.scale)


def test_a_camera_that_stands_still_has_a_unit_too():
    turning = np.stack([rigid(Rotation.from_rotvec([0, 0.1 * k, 0]).as_matrix(), np.ones(3)) for k in range(5)])
    path = PosePath.of(turning, 2)
    assert path.scale == 1
    for frame in range(5):
        assert along(path, path.relative[frame]) == Mixture((frame,), (1.0,))
    between_two = rigid(Rotation.from_rotvec([0, -0.05, 0]).as_matrix(), np.zeros(3))
    assert along(path, between_two).frames == (1, 2)
    np.testing.assert_allclose(along(path, between_two).weights, 0.5, atol=1e-9)


@pytest.mark.parametrize("reference", [-1, 5])
def test_no_such_reference(reference):
    with pytest.raises(ValueError, match="of 5 frames"):
        PosePath.of(walk(0, 5), reference)


def test_distances_are_those_of_poses():
    a, b = walk(2, 2, turn=0.02)
    angle = Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()
    shift = np.linalg.norm(a[:3, 3] - b[:3, 3])
    for weight in (0.0, 1.0, 2.5):
        distance = np.linalg.norm(coordinates(a, weight) - coordinates(b, weight))
        assert distance == pytest.approx(np.sqrt(shift**2 + 4 * weight**2 * np.sin(angle / 2) ** 2), abs=1e-12)
        assert distance == pytest.approx(np.hypot(shift, weight * angle), rel=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_foot_on_the_path_is_the_nearest_of_many_points(seed, frames, weight):
    path = PosePath.of(walk(seed, frames), frames // 2)
    target = walk(seed + 1, 1)[0]
    found = along(path, target, weight)
    points = coordinates(path.relative, weight)
    wanted = coordinates(target, weight)
    foot = np.asarray(found.weights) @ points[list(found.frames)]
    shares = np.linspace(0, 1, 200)[:, None]
    for start, end in itertools.pairwise(points):
        dense = start + shares * (end - start)
        assert np.linalg.norm(foot - wanted) <= np.linalg.norm(dense - wanted, axis=1).min() + 1e-9
    assert sum(found.weights) == pytest.approx(1)
    assert all(0 <= each <= 1 for each in found.weights)
    assert found.frames in [(k,) for k in range(frames)] + [(k, k + 1) for k in range(frames - 1)]


def test_frames_give_themselves_exactly():
    path = PosePath.of(walk(3, 12), 5)
    for frame in range(12):
        assert along(path, path.relative[frame]) == Mixture((frame,), (1.0,))
        assert nearest(path, path.relative[frame]) == Mixture((frame,), (1.0,))


def test_beyond_the_ends_the_path_stops():
    c2w = np.stack([rigid(np.eye(3), np.array([float(k), 0, 0])) for k in range(4)])
    path = PosePath.of(c2w, 1)
    assert along(path, rigid(np.eye(3), np.array([-9.0, 1, 0]))) == Mixture((0,), (1.0,))
    assert along(path, rigid(np.eye(3), np.array([99.0, -5, 3]))) == Mixture((3,), (1.0,))
    beside = along(path, rigid(np.eye(3), np.array([0.25, 0.7, -0.4])))
    assert beside.frames == (1, 2)
    np.testing.assert_allclose(beside.weights, (0.75, 0.25), atol=1e-12)
    assert beside.strongest == 1


def test_two_frames_with_one_pose_do_no_harm():
    c2w = np.stack([np.eye(4), np.eye(4), rigid(np.eye(3), np.array([1.0, 0, 0]))])
    path = PosePath.of(c2w, 0)
    assert along(path, np.eye(4)) == Mixture((0,), (1.0,)), "the earliest"
    assert sum(blend(path, np.eye(4), 3).weights) == pytest.approx(1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 12))
def test_blends_are_softmaxes_of_the_nearest(seed, frames, neighbours):
    path, target = PosePath.of(walk(seed, frames), 0), walk(seed + 7, 1)[0]
    found = blend(path, target, neighbours)
    distances = [np.linalg.norm(coordinates(path.relative[k], 1.0) - coordinates(target, 1.0)) for k in range(frames)]
    expected = sorted(range(frames), key=lambda k: (distances[k], k))[:neighbours]
    assert list(found.frames) == expected
    steps = [
        np.linalg.norm(coordinates(path.relative[k + 1], 1.0) - coordinates(path.relative[k], 1.0))
        for k in range(frames - 1)
    ]
    width = np.median(steps) / 2 if steps else 1.0
    logits = np.array([-0.5 * (distances[k] / width) ** 2 for k in expected])
    weights = np.exp(logits - logits.max())
    np.testing.assert_allclose(found.weights, weights / weights.sum(), atol=1e-12)
    assert found.strongest == nearest(path, target).frames[0]


def test_places_between_frames():
    assert between(0, 5) == Mixture((0,), (1.0,))
    assert between(4, 5) == Mixture((4,), (1.0,))
    assert between(-3, 5) == Mixture((0,), (1.0,))
    assert between(9, 5) == Mixture((4,), (1.0,))
    assert between(2.25, 5) == Mixture((2, 3), (0.75, 0.25))
    assert between(0.7, 1) == Mixture((0,), (1.0,))


def test_another_clips_motion_is_asked_for_in_its_own_unit():
    """Twice as far in a scene twice as large is the same motion."""
    c2w = walk(4, 6)
    large = c2w.copy()
    large[:, :3, 3] *= 2
    small_path, large_path = PosePath.of(c2w, 2), PosePath.of(large, 2)
    seen = large_path.seen(large[5, :3], large[2, :3])
    np.testing.assert_allclose(seen, small_path.relative[5], atol=1e-9)
