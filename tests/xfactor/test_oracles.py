"""Oracles: the doubles, known poses, and VGGT's protocol with a stand-in for its package."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from trajectories import walk

from core_ns.errors import DataError, MissingExtra
from xfactor_ns.oracles import ConstantPoses, KnownPoses, NoisyPoses, VggtPoses, vggt_frames
from xfactor_ns.pose_similarity import centres, pose_similarity, rebase, rotation_angle
from xfactor_ns.transfer_similarity import clip_similarity, oracle_frames, transfer_similarity

IMAGES = torch.zeros(2, 12, 3, 8, 8)


def test_frames_for_oracles():
    frames = torch.randint(0, 256, (4, 6, 8, 3)).byte()
    images = oracle_frames(frames)
    assert images.shape == (1, 4, 3, 6, 8)
    assert torch.equal((images[0].permute(0, 2, 3, 1) * 255).round().byte(), frames)
    array = frames.numpy()
    array.setflags(write=False)
    assert torch.equal(oracle_frames(array), images)


def test_known_poses_are_those_of_their_clips():
    poses = np.stack([walk(seed=1), walk(seed=2)])
    assert KnownPoses(poses)(IMAGES) is poses
    with pytest.raises(ValueError, match="poses of"):
        KnownPoses(poses)(IMAGES[:1])


def test_a_constant_camera_scores_nothing():
    a = KnownPoses(walk()[None])
    frames = np.zeros((12, 8, 8, 3), np.uint8)
    assert clip_similarity(a, frames, frames)["SE3_Auc_3"] == 1
    scores = clip_similarity(a, frames, frames, ConstantPoses())
    assert scores["SE3_Auc_30"] == scores["Tac_30"] == 0
    with pytest.raises(ValueError, match="12 and 11 frames"):
        clip_similarity(a, frames, frames[:11])


def test_noise_is_as_large_as_it_says_and_repeats():
    truth = np.stack([walk(400, seed=1), walk(400, seed=2)])
    truth[0, 7] = np.nan
    images = torch.zeros(2, 400, 3, 2, 2)
    noisy = NoisyPoses(KnownPoses(truth), rotation=3.0, translation=0.05)
    found = noisy(images)
    assert np.isnan(found[0, 7]).all()
    for clip in (0, 1):
        known = np.isfinite(truth[clip]).all(axis=(1, 2))
        a, b = truth[clip][known], found[clip][known]
        turned = rotation_angle(b[:, :3, :3], a[:, :3, :3])
        assert np.sqrt((turned**2).mean()) == pytest.approx(3 * math.sqrt(3), rel=0.1)
        places = centres(a)
        extent = np.sqrt(((places - places.mean(0)) ** 2).sum(-1).mean())
        assert (centres(b) - places).std() == pytest.approx(0.05 * extent, rel=0.1)
    assert np.array_equal(noisy(images), found, equal_nan=True)
    assert truth[1, 0] == pytest.approx(walk(400, seed=2)[0]), "the known poses stay as they were"


def test_scores_fall_with_noise():
    truth = KnownPoses(walk(30)[None])
    frames = np.zeros((30, 8, 8, 3), np.uint8)
    scores = [
        clip_similarity(truth, frames, frames, NoisyPoses(truth, degrees, degrees / 100))["SE3_Auc_20"]
        for degrees in (0.0, 1.0, 4.0, 16.0)
    ]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)


def test_a_transfer_is_compared_with_its_source():
    """The stand-in carries brightness over; poses are read from brightness."""
    from test_transfer import Double, grey

    def oracle(images):
        poses = np.tile(np.eye(4), (*images.shape[:2], 1, 1))
        poses[..., 2, 3] = images.mean((2, 3, 4)).numpy()
        return poses

    a, b = grey(100, 130, 90, 140), grey(10, 50, 60)
    scores, drawn = transfer_similarity(oracle, Double(), a, b)
    assert scores["Tac_3"] == scores["RTA_signed_3"] == 1
    assert scores["traj_err_unscaled"] == pytest.approx(0, abs=1e-2)
    assert drawn[:, 0, 0, 0].tolist() == [60, 90, 50, 100]


# ------------------------------------------------------------------ VGGT


def test_vggt_sees_the_middle_square():
    images = torch.rand(2, 3, 100, 180, generator=torch.Generator().manual_seed(0))
    square = vggt_frames(images)
    assert square.shape == (2, 3, 518, 518)
    assert 0 <= square.min() < square.max() <= 1
    wide = torch.zeros(1, 3, 100, 180)
    wide[..., 40:140] = 1
    assert vggt_frames(wide)[..., 10:-10].mean() > 0.99
    assert torch.allclose(vggt_frames(wide.mT), vggt_frames(wide).mT, atol=1e-5)
    assert vggt_frames(torch.rand(1, 3, 518, 518)).shape == (1, 3, 518, 518)


class StandIn(nn.Module):
    """Reads a pose from the brightness of each frame, relative to the frame that comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.seen: list[torch.Tensor] = []

    def aggregator(self, images):
        self.seen.append(images)
        return [images.mean((2, 3, 4))[..., None] * self.factor], 0

    def camera_head(self, tokens):
        return [None, tokens[-1]]


def decode(code: torch.Tensor, size: Any) -> tuple[torch.Tensor, None]:
    assert tuple(size) == (518, 518)
    turns = (code - code[:, :1])[..., 0].double().numpy()
    rotation = np.stack([Rotation.from_rotvec([0, each, 0]).as_matrix() for each in turns[0]])
    shift = np.stack([turns[0], 2 * turns[0], 0 * turns[0]], axis=-1)
    return torch.from_numpy(np.concatenate([rotation, shift[..., None]], axis=-1))[None], None


@pytest.fixture
def vggt_package(monkeypatch):
    """What of the package `vggt` is used."""
    modules = {
        name: ModuleType(name)
        for name in ("vggt", "vggt.models", "vggt.models.vggt", "vggt.utils", "vggt.utils.pose_enc")
    }
    modules["vggt.models.vggt"].VGGT = StandIn
    modules["vggt.utils.pose_enc"].pose_encoding_to_extri_intri = decode
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_vggt_takes_the_middle_frame_as_its_reference(vggt_package, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"factor": torch.tensor([2.0])}, file)
    oracle = VggtPoses(file)
    levels = torch.tensor([0.1, 0.3, 0.2, 0.6, 0.5])
    poses = oracle(levels[None, :, None, None, None].expand(1, 5, 3, 20, 20))[0]
    first = oracle.model.seen[0].mean((2, 3, 4))[0]
    assert first.tolist() == pytest.approx([0.2, 0.1, 0.3, 0.6, 0.5], abs=1e-4)
    angles = 2 * (levels - levels[2]).double().numpy()
    wanted = np.tile(np.eye(4), (5, 1, 1))
    wanted[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix()
    wanted[:, 0, 3], wanted[:, 1, 3] = angles, 2 * angles
    assert poses == pytest.approx(rebase(wanted), abs=1e-4)
    assert poses[0] == pytest.approx(np.eye(4))
    assert pose_similarity(wanted, poses)["SE3_Auc_3"] == 1


def test_vggt_needs_its_package_and_its_weights(vggt_package, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="vggt-weights"):
        VggtPoses(tmp_path / "none.pt")
    (tmp_path / "other.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="does not hold VGGT"):
        VggtPoses(tmp_path / "other.pt")
    torch.save({"another": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(DataError, match="does not hold VGGT"):
        VggtPoses(tmp_path / "foreign.pt")
    monkeypatch.setitem(sys.modules, "vggt.utils.pose_enc", None)
    with pytest.raises(MissingExtra, match="vggt"):
        VggtPoses(tmp_path / "none.pt")
