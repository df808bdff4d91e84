"""Spec xfactor 12, check 14: True Pose Similarity on trajectories whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectories import angle, rigid, scaled, slow_scores, walk

from xfactor_ns.pose_similarity import (
    THRESHOLDS,
    absolute_errors,
    area_under_curve,
    centres,
    direction_angle,
    mean_scores,
    pair_errors,
    pose_similarity,
    rebase,
    rotation_angle,
    scale_drift,
    umeyama,
)

SHARES = [f"{name}_{t}" for name in ("Rac", "Tac", "Rot_Auc", "Trans_Auc", "SE3_Auc") for t in THRESHOLDS]
"""The paper's scores."""
SIGNED = [f"RTA_signed_{t}" for t in THRESHOLDS]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_twin(seed):
    random = np.random.default_rng(seed)
    a = walk(9, seed)
    b = np.stack([rigid(random.normal(size=3) * 6, random.normal(size=3) * 0.4) @ pose for pose in a])
    scores = pose_similarity(a, b)
    for name, value in slow_scores(a, b).items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name


def test_identity_scores_one():
    a = walk()
    scores = pose_similarity(a, a.copy())
    assert all(scores[name] == 1.0 for name in SHARES + SIGNED)
    assert scores["traj_err_unscaled"] == scores["traj_err_scale_invariant"] == 0
    assert scores["ATE"] < 1e-12
    assert scores["scale_drift"] == pytest.approx(1, abs=1e-12)
    assert scores["frames"] == 12
    assert scores["posed"] == 1


def test_the_world_frame_does_not_matter():
    a, b = walk(seed=1), walk(seed=2)
    gauge = rigid([20, -70, 130], [3, -2, 9])
    plain, moved = pose_similarity(a, b), pose_similarity(a, b @ gauge)
    for name, value in plain.items():
        assert moved[name] == pytest.approx(value, abs=1e-9), name


def test_the_scale_matters_to_one_score_only():
    a, b = walk(seed=1), walk(seed=2)
    plain, larger = pose_similarity(a, b), pose_similarity(a, scaled(b, 7.5))
    different = {name for name in plain if larger[name] != pytest.approx(plain[name], abs=1e-9)}
    assert different == {"traj_err_unscaled"}
    assert pose_similarity(a, scaled(a, 3))["traj_err_scale_invariant"] == pytest.approx(0, abs=1e-12)


def test_negated_translations_are_perfect_unless_the_sign_counts():
    a = walk()
    b = a.copy()
    b[:, :3, 3] *= -1
    scores = pose_similarity(a, b)
    assert all(scores[name] == 1.0 for name in SHARES)
    assert all(scores[name] == 0.0 for name in SIGNED)
    assert scores["ATE_relative"] > 0.1


def test_a_camera_that_stands_still():
    a = walk()
    b = np.tile(np.eye(4), (len(a), 1, 1))
    scores = pose_similarity(a, b)
    errors = pair_errors(a, b)
    assert (errors.translation == 90).all()
    assert scores["Tac_30"] == scores["Trans_Auc_30"] == scores["SE3_Auc_30"] == 0
    assert scores["ATE_relative"] == pytest.approx(1)
    assert "scale_drift" not in scores


def test_a_constant_error_of_seven_and_a_half_degrees():
    """Bins of 30/31 degrees: the eighth of twenty entries is the first with the pairs in it."""
    a = np.stack([rigid([0, 0, 0], [0, 0, float(k)]) for k in range(2)])
    b = a.copy()
    b[1] = rigid([7.5, 0, 0], [0, 0, 0]) @ a[1]
    errors = pair_errors(a, b)
    assert errors.rotation == pytest.approx([7.5])
    assert pose_similarity(a, b)["Rot_Auc_20"] == pytest.approx(0.65)
    assert area_under_curve(np.full(10, 7.5), 20) == pytest.approx(0.65)
    assert area_under_curve(np.zeros(3), 20) == 1
    assert area_under_curve(np.array([30.0, 30.1]), 30) == 0
    shares = pose_similarity(a, b)
    assert shares["Rac_5"] == 0
    assert shares["Rac_10"] == 1


def test_angles_do_not_depend_on_which_clip_comes_first():
    a, b = walk(seed=3), walk(seed=4)
    forth, back = pose_similarity(a, b), pose_similarity(b, a)
    for name in SHARES + SIGNED:
        assert forth[name] == pytest.approx(back[name], abs=1e-12), name
    assert forth["scale_drift"] == pytest.approx(1 / back["scale_drift"])


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 180), st.integers(0, 100))
def test_angles_are_accurate_at_both_ends(degrees, seed):
    random = np.random.default_rng(seed)
    axis = random.normal(size=3)
    turn, first = rigid(degrees * axis / np.linalg.norm(axis), [0, 0, 0]), rigid(random.normal(size=3) * 90, [0, 0, 0])
    measured = rotation_angle((turn @ first)[:3, :3], first[:3, :3])
    assert measured == pytest.approx(degrees, abs=1e-9)
    assert measured == pytest.approx(angle((turn @ first)[:3, :3], first[:3, :3]), abs=1e-6)
    side = np.cross(axis, random.normal(size=3))
    other = rigid(degrees * side / np.linalg.norm(side), [0, 0, 0])[:3, :3] @ axis
    assert direction_angle(axis, other) == pytest.approx(degrees, abs=1e-9)


def test_umeyama_undoes_a_similarity():
    a = walk(seed=5)
    points = centres(a)
    turn = rigid([40, 10, -20], [0, 0, 0])[:3, :3]
    scale, rotation, shift = umeyama(points, 2.5 * points @ turn.T + [1, 2, 3])
    assert scale == pytest.approx(2.5)
    assert rotation == pytest.approx(turn)
    assert shift == pytest.approx([1, 2, 3])
    mirrored = points * [1, 1, -1]
    assert np.linalg.det(umeyama(points, mirrored)[1]) == pytest.approx(1), "a reflection is no motion"
    assert absolute_errors(a, a @ rigid([40, 10, -20], [9, 9, 9]))["ATE"] < 1e-12


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(4, 9))
def test_no_other_similarity_comes_nearer(seed, count):
    random = np.random.default_rng(seed)
    source, target = random.normal(size=(2, count, 3))
    scale, rotation, shift = umeyama(source, target)

    def error(scale, rotation, shift):
        return ((scale * source @ rotation.T + shift - target) ** 2).sum()

    best = error(scale, rotation, shift)
    for _ in range(10):
        near = rigid(random.normal(size=3) * 3, [0, 0, 0])[:3, :3] @ rotation
        moved = shift + random.normal(size=3) * 0.05
        assert error(scale * (1 + 0.05 * random.normal()), near, moved) >= best - 1e-9


def test_scale_drift_finds_a_growing_scale():
    steps = np.random.default_rng(0).normal(size=(11, 3))
    a, b = np.tile(np.eye(4), (2, 12, 1, 1))
    a[1:, :3, 3] = np.cumsum(steps, axis=0)
    growth = 1.5 ** (np.arange(11) / 10)
    b[1:, :3, 3] = np.cumsum(steps * growth[:, None], axis=0)
    assert scale_drift(a, b) == pytest.approx(1.5)
    assert scale_drift(a, scaled(b, 20)) == pytest.approx(1.5)
    assert scale_drift(a[:2], b[:2]) is None


def test_frames_without_a_pose_are_left_out_of_both():
    a, b = walk(seed=6), walk(seed=7)
    b[[2, 5]] = np.nan
    a[5] = np.nan
    keep = [0, 1, 3, 4, *range(6, 12)]
    scores, of_rest = pose_similarity(a, b), pose_similarity(a[keep], b[keep])
    assert scores["posed"] == 10 / 12
    assert {k: v for k, v in scores.items() if k not in ("frames", "posed")} == {
        k: v for k, v in of_rest.items() if k not in ("frames", "posed")
    }


def test_too_little_is_refused():
    a, b = walk(), walk()
    b[1:] = np.nan
    with pytest.raises(ValueError, match="only 1 of 12 frames"):
        pose_similarity(a, b)
    with pytest.raises(ValueError, match="as many frames"):
        pose_similarity(a, walk(5))


def test_rebasing_and_means():
    a = walk()
    assert rebase(a, 3)[3] == pytest.approx(np.eye(4))
    assert rebase(rebase(a, 3)) == pytest.approx(rebase(a))
    assert mean_scores([{"x": 1.0, "y": 2.0}, {"x": 3.0}]) == {"x": 2.0, "y": 2.0}
