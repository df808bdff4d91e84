"""Curves along key cameras: the original's spline, passing through keys, speeds, pace and smoothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from core_ns.frames import OPENGL_FROM_OPENCV, homogeneous
from r4dv_ns.path_curves import CURVES, bspline, even_pace, interpolating, linear, linear_values, smoothed


def random_keys(count: int, seed: int = 0, turn: float = 0.5) -> np.ndarray:
    """Poses that wander: each a random step and turn from the last."""
    rng = np.random.default_rng(seed)
    keys = np.tile(np.eye(4), (count, 1, 1))
    keys[:, :3, 3] = np.cumsum(rng.normal(size=(count, 3)), axis=0)
    rotation = Rotation.random(random_state=seed)
    for key in keys:
        key[:3, :3] = rotation.as_matrix()
        rotation = rotation * Rotation.from_rotvec(turn * rng.normal(size=3))
    return keys


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    relative = Rotation.from_matrix(first[:, :3, :3]).inv() * Rotation.from_matrix(second[:, :3, :3])
    return relative.magnitude()


def test_the_original_s_splines(shared_fixtures):
    with np.load(shared_fixtures / "r4dv" / "paths.npz", allow_pickle=False) as stored:
        keys = homogeneous(stored["c2ws"]) @ OPENGL_FROM_OPENCV
        shares = np.linspace(0, 1, 21)
        for name, closed in (("cubic_21", False), ("cubic_loop_21", True)):
            found = bspline(keys, shares, closed) @ OPENGL_FROM_OPENCV
            np.testing.assert_allclose(found[:, :3], stored[name], atol=2e-6)  # spec: 2e-5
        found = linear_values(stored["lins"], np.linspace(0, 1, 13))
        np.testing.assert_allclose(found, stored["linear_13"], atol=1e-6)


@pytest.mark.parametrize("closed", [False, True])
def test_bspline_positions_equal_scipy_s(closed):
    keys = random_keys(6)
    centres = keys[:, :3, 3]
    wrapped = np.concatenate([centres[-1:], centres, centres[:3]])
    control = wrapped if closed else np.concatenate([centres[:1], centres, centres[-1:]])
    spline = BSpline(np.arange(len(control) + 4) - 3.0, control, 3)
    shares = np.linspace(0, 1, 50)
    expected = spline(shares * (6 if closed else 5))
    np.testing.assert_allclose(bspline(keys, shares, closed)[:, :3, 3], expected, atol=1e-12)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("curve", ["interpolating", "linear"])
def test_keys_are_passed_through(curve, closed):
    keys = random_keys(5, seed=2)
    parts = 5 if closed else 4
    found = CURVES[curve](keys, np.linspace(0, 1, 3 * parts + 1), closed)
    expected = np.concatenate([keys, keys[:1]]) if closed else keys
    np.testing.assert_allclose(found[::3], expected, atol=1e-12)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("curve", ["interpolating", "bspline"])
def test_velocity_is_continuous_at_the_keys(curve, closed):
    keys, step = random_keys(6, seed=3), 1e-5
    parts = 6 if closed else 5
    inner = np.arange(0 if closed else 1, parts) / parts
    here = CURVES[curve](keys, inner, closed)
    before = CURVES[curve](keys, (inner - step) % 1.0, closed)
    after = CURVES[curve](keys, inner + step, closed)
    speed = [(here - before)[:, :3, 3] / step, (after - here)[:, :3, 3] / step]
    np.testing.assert_allclose(*speed, atol=1e-2 * np.abs(speed).max())
    turns = [
        (Rotation.from_matrix(a[:, :3, :3]).inv() * Rotation.from_matrix(b[:, :3, :3])).as_rotvec() / step
        for a, b in ((before, here), (here, after))
    ]
    np.testing.assert_allclose(*turns, atol=1e-2 * np.abs(turns).max())


@pytest.mark.parametrize("curve", ["interpolating", "linear"])
def test_even_motion_stays_even(curve):
    """Keys on a line that turn about one axis at a constant rate."""
    keys = np.tile(np.eye(4), (4, 1, 1))
    keys[:, :3, 3] = np.outer(np.arange(4), [1.0, 2.0, 3.0])
    keys[:, :3, :3] = Rotation.from_rotvec(np.outer(np.arange(4), [0.1, -0.3, 0.5])).as_matrix()
    shares = np.linspace(0, 1, 31)
    found = CURVES[curve](keys, shares)
    np.testing.assert_allclose(found[:, :3, 3], np.outer(3 * shares, [1.0, 2.0, 3.0]), atol=1e-12)
    meant = Rotation.from_rotvec(np.outer(3 * shares, [0.1, -0.3, 0.5])).as_matrix()
    np.testing.assert_allclose(found[:, :3, :3], meant, atol=1e-12)


def test_too_few_keys():
    with pytest.raises(ValueError, match="needs 4 key cameras, there are 3"):
        bspline(random_keys(3), np.zeros(1))
    for curve in (interpolating, linear):
        with pytest.raises(ValueError, match="needs 2 key cameras"):
            curve(random_keys(1), np.zeros(1))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 7), st.integers(0, 99), st.sampled_from(list(CURVES)), st.booleans())
def test_every_curve_gives_rigid_poses_and_moves_with_the_world(count, seed, curve, closed):
    keys, shares = random_keys(count, seed), np.linspace(0, 1, 17)
    found = CURVES[curve](keys, shares, closed)
    np.testing.assert_allclose(np.linalg.det(found), 1.0)
    product = found[:, :3, :3] @ found[:, :3, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(product, np.tile(np.eye(3), (17, 1, 1)), atol=1e-12)
    motion = random_keys(1, seed + 1)[0]
    np.testing.assert_allclose(CURVES[curve](motion @ keys, shares, closed), motion @ found, atol=1e-9)


@pytest.mark.parametrize("curve", ["interpolating", "bspline", "linear"])
def test_even_pace_has_constant_speed(curve):
    keys = random_keys(5, seed=4)
    keys[3:, :3, 3] += 4.0  # one long way among short ones
    shares = np.linspace(0, 1, 200)
    length = [
        np.linalg.norm(np.diff(CURVES[curve](keys, each)[:, :3, 3], axis=0), axis=1)
        for each in (shares, even_pace(curve, keys, shares))
    ]
    # Only steps over a corner of the polyline are shorter than the others.
    assert length[1].std() / length[1].mean() < (0.1 if curve == "linear" else 0.05)
    assert length[0].std() / length[0].mean() > 0.15
    np.testing.assert_allclose(even_pace(curve, keys, np.array([0.0, 1.0])), [0, 1], atol=1e-12)
    standing = np.tile(keys[:1], (4, 1, 1))
    np.testing.assert_array_equal(even_pace(curve, standing, shares), shares)


@pytest.mark.parametrize("closed", [False, True])
def test_smoothing_against_the_plain_window(closed):
    """Positions by hand; rotations by hand for small turns, where averaging rotation vectors is right."""
    rng = np.random.default_rng(0)
    vectors = 1e-3 * rng.normal(size=(40, 3))
    base = Rotation.random(random_state=5)
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, :3, :3] = (base * Rotation.from_rotvec(vectors)).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(40, 3))
    found = smoothed(poses, 2.0, closed)
    offsets = np.arange(-8, 9)
    window = np.exp(-0.5 * (offsets / 2.0) ** 2)
    window /= window.sum()
    for k in range(40):
        rows = (k + offsets) % 40 if closed else np.clip(k + offsets, 0, 39)
        np.testing.assert_allclose(found[k, :3, 3], window @ poses[rows, :3, 3], atol=1e-12)
        turn = (base.inv() * Rotation.from_matrix(found[k, :3, :3])).as_rotvec()
        np.testing.assert_allclose(turn, window @ vectors[rows], atol=1e-7)
    assert smoothed(poses, 0.0) is poses


def test_smoothing_a_full_turn_keeps_it():
    """Twice round: the quaternion's sign changes on the way, the rotations must not notice."""
    poses = np.tile(np.eye(4), (60, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler(
        "z", np.linspace(0, 720, 60, endpoint=False)[:, None], degrees=True
    ).as_matrix()
    found = smoothed(poses, 1.5, closed=True)
    assert angles(poses, found).max() < 1e-9
