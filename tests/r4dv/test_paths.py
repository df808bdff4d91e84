"""Orbit, sector and spiral: against the original's outputs, against slow twins, and moved about as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from core_ns.frames import OPENGL_FROM_OPENCV, homogeneous
from dataparsers.easymocap_attention import aligned_frame
from r4dv_ns import paths

Z = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def original(shared_fixtures):
    with np.load(shared_fixtures / "r4dv" / "paths.npz", allow_pickle=False) as stored:
        return {name: stored[name].astype(np.float64) for name in stored.files}


def opengl(c2w_opencv: np.ndarray) -> np.ndarray:
    return homogeneous(c2w_opencv) @ OPENGL_FROM_OPENCV


def assert_opencv(c2w: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose((c2w @ OPENGL_FROM_OPENCV)[..., :3, :], expected, atol=2e-6)  # spec: 2e-5


def ring(count=8, radius=3.0, level=1.0, middle=(0.2, -0.1, 0.7), arc=360.0, wobble=0.0, seed=0) -> np.ndarray:
    """Cameras on an arc about ``middle`` that all look at it."""
    rng = np.random.default_rng(seed)
    angles = np.radians(np.linspace(0, arc, count, endpoint=arc < 360)) + wobble * rng.normal(size=count)
    lengths = radius * (1 + wobble * rng.normal(size=count))
    heights = level + wobble * rng.normal(size=count)
    positions = np.stack([lengths * np.cos(angles), lengths * np.sin(angles), heights], axis=1) + middle
    return paths.look_at(positions, np.array(middle), Z)


def rigid(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = np.random.default_rng(seed).normal(size=3) * 5
    return matrix


def gaze_error(c2w: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angle in radians between where the cameras look and where the target is."""
    wanted = paths.unit(target - c2w[:, :3, 3])
    cross = np.linalg.norm(np.cross(-c2w[:, :3, 2], wanted), axis=1)
    return np.arctan2(cross, (-c2w[:, :3, 2] * wanted).sum(axis=1))


def assert_rigid(c2w: np.ndarray) -> None:
    rotation = c2w[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (len(c2w), 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    np.testing.assert_array_equal(c2w[:, 3], np.tile([0.0, 0.0, 0.0, 1.0], (len(c2w), 1)))


# ---------------------------------------------------------------------- the original's numbers


def test_attention_and_average_frames(original):
    c2w = opengl(original["c2ws"])
    attention = paths.original_attention_point(c2w)
    np.testing.assert_allclose(attention, original["center_of_attention"][:, 0], atol=1e-6)
    align = aligned_frame(np.linalg.inv(homogeneous(original["c2ws"])))
    np.testing.assert_allclose(np.linalg.inv(align)[:3], original["average_aligned"], atol=1e-6)
    assert_opencv(align @ c2w, original["aligned_c2ws"])
    assert_opencv(paths.average_camera(c2w, attention), original["average_lookat"])
    assert_opencv(paths.average_camera(c2w), original["average_mean"])


def test_spirals(original):
    c2w = opengl(original["c2ws"])
    attention, up = paths.original_attention_point(c2w), paths.common_up(c2w)
    assert_opencv(paths.spiral(c2w, 24, attention, up, radii_along="world"), original["spiral_24"])
    options = {"turns": 1, "rate": 0.25, "percentile": 50, "focal_offset": 0.3, "radius_ratio": 0.5}
    found = paths.spiral(c2w, 12, attention, up, **options, xyz_offset=(0.1, 0, -0.05), radii_along="world")
    assert_opencv(found, original["spiral_12_opts"])


def test_orbits(original):
    c2w = opengl(original["c2ws"])
    assert_opencv(paths.original_orbit(c2w, 16), original["orbit_world_16"])
    aligned = opengl(original["aligned_c2ws"])
    assert_opencv(paths.original_orbit(aligned, 16, radius_ratio=1.1, height=0.2), original["orbit_aligned_16"])


def test_in_an_aligned_world_the_orbit_is_the_original_s(original):
    aligned = opengl(original["aligned_c2ws"])
    found = paths.orbit(
        aligned, np.arange(16) / 16, paths.original_attention_point(aligned), paths.common_up(aligned),
        radius_ratio=1.1, height=0.2, start=np.array([1.0, 0.0, 0.0]),
    )  # fmt: skip
    assert_opencv(found, original["orbit_aligned_16"])


# ---------------------------------------------------------------------- slow twins


def slow_attention(c2w: np.ndarray) -> np.ndarray:
    """Every ordered pair, its closest points by least squares over the two distances."""
    total, weights = np.zeros(3), 0.0
    for i, first in enumerate(c2w):
        for j, second in enumerate(c2w):
            if i == j:
                continue
            a, b = -first[:3, 2], -second[:3, 2]
            weight = np.sin(np.arccos(np.clip(a @ b, -1, 1))) ** 2
            if weight <= 0.01:
                continue
            (s, t), *_ = np.linalg.lstsq(np.stack([a, -b], axis=1), second[:3, 3] - first[:3, 3], rcond=None)
            total += weight * 0.5 * (first[:3, 3] + s * a + second[:3, 3] + t * b)
            weights += weight
    return total / weights


@pytest.mark.parametrize("seed", range(3))
def test_attention_of_pairs_equals_the_loop(seed):
    c2w = ring(6, wobble=0.1, seed=seed)
    c2w[:, :3, :3] = (
        Rotation.from_rotvec(0.1 * np.random.default_rng(seed).normal(size=(6, 3))).as_matrix() @ c2w[:, :3, :3]
    )
    np.testing.assert_allclose(paths.original_attention_point(c2w), slow_attention(c2w), atol=1e-9)


def test_attention_of_converging_axes_is_where_they_meet():
    c2w = ring(7, wobble=0.2)
    np.testing.assert_allclose(paths.original_attention_point(c2w), [0.2, -0.1, 0.7], atol=1e-12)
    np.testing.assert_allclose(paths.attention_point(c2w), [0.2, -0.1, 0.7], atol=1e-12)


def test_orbit_by_hand():
    c2w = ring(4, radius=3.0, level=1.0)
    middle = np.array([0.2, -0.1, 0.7])
    found = paths.orbit(c2w, np.arange(8) / 8, middle, Z)
    np.testing.assert_allclose(found[::2], c2w, atol=1e-12)  # the cameras themselves lie on it
    raised = paths.orbit(c2w, np.array([0.0]), middle, Z, radius_ratio=2.0, height=0.5)
    flat = np.sqrt(4 * 10 - 1)  # twice the distance, the height kept, then raised
    np.testing.assert_allclose(raised[0, :3, 3], middle + np.array([flat, 0, 1.5]), atol=1e-12)
    clockwise = paths.orbit(c2w, -np.arange(8) / 8, middle, Z)
    np.testing.assert_allclose(clockwise[2], c2w[3], atol=1e-12)


def test_sector_runs_between_the_outermost_cameras():
    c2w = ring(5, arc=120.0)
    middle = np.array([0.2, -0.1, 0.7])
    rng = np.random.default_rng(3)
    for order in (np.arange(5), rng.permutation(5)):  # whichever camera comes first
        found = paths.sector(c2w[order], np.linspace(0, 1, 9), middle, Z)
        np.testing.assert_allclose(found[::2], c2w, atol=1e-12)
    wide = ring(12, arc=300.0)
    found = paths.sector(wide, np.linspace(0, 1, 12), middle, Z)
    np.testing.assert_allclose(found, wide, atol=1e-12)


def test_spiral_by_hand():
    """Two cameras a metre apart in front of the subject, as far from their mean as the winding is wide."""
    positions = np.array([[-0.5, 4.0, 0.0], [0.5, 4.0, 0.0]])
    c2w = paths.look_at(positions, np.zeros(3), Z)
    found = paths.spiral(c2w, 4, np.zeros(3), Z, turns=1, rate=1, percentile=100)
    # Right of the average camera is -x; down and forward the cameras do not differ.
    np.testing.assert_allclose(found[:, :3, 3], [[-0.5, 4, 0], [0, 4, 0], [0.5, 4, 0], [0, 4, 0]], atol=1e-12)
    assert gaze_error(found, np.zeros(3)).max() < 1e-12
    farther = paths.spiral(c2w, 4, np.zeros(3), Z, turns=1, percentile=100, focal_offset=2.0)
    assert gaze_error(farther, np.array([0.0, -2.0, 0.0])).max() < 1e-12


# ---------------------------------------------------------------------- properties

arcs = st.tuples(
    st.integers(3, 12), st.floats(0.5, 8), st.floats(-2, 4), st.floats(40, 180), st.floats(0, 0.1), st.integers(0, 99)
)


@settings(max_examples=40, deadline=None)
@given(arcs, st.integers(0, 99))
def test_paths_move_with_the_world(arc, seed):
    """No path depends on where the world's origin lies or how its axes point."""
    count, radius, level, angle, wobble, ring_seed = arc
    c2w = ring(count, radius, level, arc=angle, wobble=wobble, seed=ring_seed)
    motion, shares = rigid(seed), np.linspace(0, 1, 7)
    attention, up = paths.attention_point(c2w), paths.upright(c2w)
    moved = motion @ c2w
    moved_attention, moved_up = paths.attention_point(moved), paths.upright(moved)
    np.testing.assert_allclose(moved_attention, motion[:3, :3] @ attention + motion[:3, 3], atol=1e-8)
    for path in (
        lambda *rig: paths.orbit(rig[0], shares, *rig[1:], height=0.3),
        lambda *rig: paths.sector(rig[0], shares, *rig[1:], radius_ratio=1.2),
        lambda *rig: paths.spiral(rig[0], 7, *rig[1:]),
    ):
        found = path(c2w, attention, up)
        assert_rigid(found)
        assert gaze_error(found, attention).max() <= 1e-6
        assert (found[:, :3, 1] @ up > 0).all(), "upright"
        np.testing.assert_allclose(path(moved, moved_attention, moved_up), motion @ found, atol=1e-6)


def test_the_original_s_orbit_depends_on_the_origin_and_ours_does_not():
    """Fault B21: away from the origin it takes the distance to the origin for the radius."""
    c2w = ring(8)
    shift = np.eye(4)
    shift[:3, 3] = 10.0, 0.0, 0.0
    target = np.array([0.2, -0.1, 0.7])
    ours = paths.orbit(shift @ c2w, np.arange(16) / 16, target + shift[:3, 3], Z)
    np.testing.assert_allclose(np.linalg.norm(ours[:, :3, 3] - target - shift[:3, 3], axis=1), np.sqrt(10))
    original = paths.original_orbit(shift @ c2w, 16)
    assert np.linalg.norm(original[:, :3, 3] - target - shift[:3, 3], axis=1).min() > 9


def test_surrounding_cameras_and_their_front():
    middle = np.array([0.2, -0.1, 0.7])
    assert paths.surrounds(ring(12), middle)
    assert paths.surrounds(ring(12, arc=280.0, level=0.0), middle)
    assert not paths.surrounds(ring(12, arc=180.0), middle)
    rig = ring(12, level=0.0)
    assert paths.front_views(rig, middle, middle=0, within=61) == [0, 1, 2, 10, 11]
    assert paths.front_views(rig, middle, middle=5, within=31) == [4, 5, 6]
    order = paths.azimuths(rig[[3, 0, 5, 1]], middle, Z)
    np.testing.assert_allclose(np.degrees(order), [0, 270, 60, 300], atol=1e-9)


def test_up_does_not_lean_to_where_more_cameras_stand():
    half = ring(6, arc=150.0, level=2.0)
    assert np.degrees(np.arccos(paths.common_up(half) @ Z)) > 10
    np.testing.assert_allclose(paths.upright(half), Z, atol=1e-12)
    whole = ring(8)
    np.testing.assert_allclose(paths.upright(whole), Z, atol=1e-12)
    motion = rigid(1)
    np.testing.assert_allclose(paths.upright(motion @ half), motion[:3, 2], atol=1e-12)


def test_up_of_rolled_and_of_like_cameras():
    rolled = ring(8)
    rolled[::2] = rolled[::2] @ np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # held upright
    np.testing.assert_allclose(paths.upright(rolled), paths.common_up(rolled))
    one = ring(1, level=0.0)
    np.testing.assert_allclose(paths.upright(one), Z, atol=1e-12)
    jitter = np.tile(np.eye(4), (9, 1, 1))  # nine cameras on a wall that look almost the same way, one a little rolled
    jitter[:, :3, :3] = Rotation.from_rotvec(0.01 * np.random.default_rng(0).normal(size=(9, 3))).as_matrix()
    jitter[:, :3, 3] = np.random.default_rng(1).normal(size=(9, 3)) * [1, 1, 0]
    assert np.degrees(np.arccos(paths.upright(jitter)[1])) < 1


def test_what_is_no_path_is_said():
    parallel = np.tile(np.eye(4), (3, 1, 1))
    parallel[:, 0, 3] = range(3)
    with pytest.raises(ValueError, match="parallel"):
        paths.original_attention_point(parallel)
    with pytest.raises(ValueError, match="parallel"):
        paths.attention_point(parallel)
    rig = ring(4)
    with pytest.raises(ValueError, match="no circle"):
        paths.orbit(rig, np.zeros(1), np.zeros(3), Z, radius=0.5)
    with pytest.raises(ValueError, match="straight up"):
        paths.look_at(np.array([[0.0, 0, 3]]), np.zeros(3), Z)
    with pytest.raises(ValueError, match="length 0"):
        paths.look_at(np.zeros((1, 3)), np.zeros(3), Z)
    with pytest.raises(ValueError, match="one direction"):
        paths.sector(np.concatenate([rig[:1], rig[:1]]), np.zeros(1), np.array([0.2, -0.1, 0.7]), Z)
    upside = rig.copy()
    upside[::2] = upside[::2] @ np.diag([-1.0, -1, 1, 1])
    with pytest.raises(ValueError, match="common up"):
        paths.common_up(upside)
    above = paths.look_at(np.array([[0.0, 1e-9, 5]]), np.zeros(3), np.array([0.0, 1, 0]))
    with pytest.raises(ValueError, match=r"length 0|no circle|straight"):
        paths.orbit(above, np.zeros(1), np.zeros(3), Z)
