"""Probes on latents whose relation to the cameras is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from trajectories import rigid, walk

from xfactor_ns.pose_similarity import centres, pose_similarity, rebase
from xfactor_ns.probe import Probe
from xfactor_ns.probe_fit import (
    LatentPoses,
    PosedLatents,
    encoder_fingerprint,
    fit_probe,
    hold_out,
    latent_loss,
    pose_loss,
    posed_latents,
    relative_poses,
    score_probe,
)

WIDTH = 12


def known_clips(count: int, frames: int = 12) -> list[PosedLatents]:
    """Latents are a fixed linear map of the rotation vector and the translation."""
    from scipy.spatial.transform import Rotation

    random = np.random.default_rng(0)
    mixing = random.normal(size=(6, WIDTH))
    clips = []
    for number in range(count):
        steps = random.normal(size=(2, frames, 3)) * [[[0.15]], [[0.5]]]
        turn, place = np.cumsum(steps, axis=1)
        w2c = np.stack([rigid(np.degrees(r), t) for r, t in zip(turn, place, strict=True)])
        poses = relative_poses(w2c, frames // 2)
        vectors = Rotation.from_matrix(poses[:, :3, :3]).as_rotvec()
        latents = np.concatenate([vectors, poses[:, :3, 3]], axis=1) @ mixing
        latents[frames // 2] = 0
        clips.append(
            PosedLatents(
                f"clip{number}", torch.from_numpy(latents).float(), torch.from_numpy(poses).float(), frames // 2
            )
        )
    return clips


@pytest.fixture(scope="module")
def fitted():
    train, test, kind = hold_out(known_clips(30))
    return fit_probe(train, steps=200, lr=3e-3), test, kind


def test_a_known_map_is_found_on_clips_held_out(fitted):
    probe, test, kind = fitted
    scores = score_probe(probe, test)
    print(f"pose AUC30 {scores.pose['SE3_Auc_30']:.3f} residual {scores.latent_residual:.4f} {kind}")
    assert kind == "6 clips"
    assert scores.pose["Rac_10"] > 0.9
    assert scores.pose["RTA_signed_10"] > 0.8
    assert scores.still["RTA_signed_10"] == 0
    assert scores.latent_residual < 0.1
    untrained = score_probe(Probe(WIDTH), test)
    assert untrained.pose["SE3_Auc_30"] < 0.5 * scores.pose["SE3_Auc_30"]


def test_lengths_are_in_the_clips_unit(fitted):
    probe, test, _ = fitted
    for each in test:
        found = probe.poses(each.latents).detach().double().numpy()
        ratio = np.median(np.linalg.norm(centres(found), axis=1)) / np.median(
            np.linalg.norm(centres(each.poses.double().numpy()), axis=1)
        )
        assert 0.8 < ratio < 1.25


def test_fitting_repeats_and_leaves_the_global_generator(fitted):
    clips = known_clips(5)
    before = torch.random.get_rng_state()
    first, second = (fit_probe(clips, steps=5, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = fit_probe(clips, steps=5, seed=4)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_the_loss_is_the_papers_with_a_free_scale_for_each_clip():
    clips = known_clips(2, 5)
    truth = torch.cat([each.poses for each in clips])
    index = torch.tensor([0] * 5 + [1] * 5)
    guess = truth.clone()
    guess[:5, :3, 3] *= 3
    guess[5:, :3, 3] *= 0.2
    assert pose_loss(guess, truth, index, anchor=0) < 1e-6
    assert pose_loss(guess, truth, index) > 0.05
    mirrored = truth.clone()
    mirrored[:, :3, 3] *= -1
    nothing = truth.clone()
    nothing[:, :3, 3] = 0
    assert float(pose_loss(mirrored, truth, index, anchor=0)) == pytest.approx(
        float(pose_loss(nothing, truth, index, 0))
    )
    assert pose_loss(mirrored, truth, index) > pose_loss(nothing, truth, index)
    guess = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for clip in (0, 1):
        t, s = truth[index == clip, :3, 3], guess[index == clip, :3, 3]
        scale = max((t * s).sum() / (s * s).sum(), 0)
        total += float((t - scale * s).abs().sum()) / 30
    total += float((truth - guess)[:, :3, :3].abs().mean())
    assert float(pose_loss(guess, truth, index, anchor=0)) == pytest.approx(total, rel=1e-5)


def test_the_way_back_counts_standard_deviations():
    probe = Probe(4)
    probe.std.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    poses = torch.eye(4).expand(3, 4, 4)
    assert float(latent_loss(probe, probe.std.expand(3, 4), poses).detach()) == pytest.approx(1)


def test_what_is_held_out():
    clips = [each._replace(clip=f"c{k // 2}") for k, each in enumerate(known_clips(12, 6))]
    fit, scored, kind = hold_out(clips)
    assert ({each.clip for each in scored}, kind) == ({"c4"}, "1 clips")
    assert len(fit) == 10
    fit, scored, kind = hold_out(clips, ["c0", "c3"])
    assert {each.clip for each in scored} == {"c0", "c3"}
    few = clips[:4]
    fit, scored, kind = hold_out(few)
    assert kind == "every fourth frame"
    for whole, kept, away in zip(few, fit, scored, strict=True):
        assert torch.equal(kept.latents[0], torch.zeros(WIDTH)), "the reference is always there, and first"
        assert kept.reference == away.reference == 0
        rows = {tuple(row.tolist()) for row in whole.latents}
        assert {tuple(row.tolist()) for row in torch.cat([kept.latents, away.latents])} == rows
        assert len(away.latents) == 2
    assert hold_out(few, ["c0", "c1"])[2] == "every fourth frame", "nothing would be left to fit to"


class Means(nn.Module):
    """A pose encoder: how much brighter each channel is than in the reference."""

    def forward(self, x):
        means = x.mean(dim=(2, 3))
        return means - means[:, :1]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pose_encoder, self.renderer = Means(), nn.Identity()


def test_clips_are_seen_from_several_references():
    frames = torch.randint(0, 256, (9, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    w2c = walk(9)
    w2c[3] = np.nan
    found = posed_latents(Net(), "a", frames, w2c, references=4)
    assert [each.reference for each in found] == [1, 3, 5, 7]
    for each in found:
        assert len(each.latents) == len(each.poses) == 8
        assert (each.latents[each.reference] == 0).all()
        assert torch.allclose(each.poses[each.reference], torch.eye(4), atol=1e-6)
        distances = each.poses[:, :3, 3].norm(dim=-1)
        assert float(distances[distances > 1e-6].median()) == pytest.approx(1, rel=0.2)
    assert torch.equal(found[0].latents, posed_latents(Net(), "a", frames.numpy(), w2c, references=4)[0].latents)
    assert len(posed_latents(Net(), "a", frames[:2], walk(9)[:2], references=4)) == 2
    w2c[1:] = np.nan
    assert posed_latents(Net(), "a", frames, w2c) == []


def test_relative_poses_keep_the_motion():
    w2c = walk(8)
    relative = relative_poses(w2c, 3)
    assert np.median(np.linalg.norm(np.delete(centres(relative), 3, axis=0), axis=1)) == pytest.approx(1)
    assert pose_similarity(w2c, relative)["SE3_Auc_3"] == 1
    still = relative_poses(np.tile(np.eye(4), (4, 1, 1)), 1)
    assert still == pytest.approx(np.tile(np.eye(4), (4, 1, 1)))


def test_the_probe_as_an_oracle():
    torch.manual_seed(0)
    probe = Probe(3).eval()
    images = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    poses = LatentPoses(Net(), probe)(images)
    assert poses.shape == (2, 5, 4, 4)
    means = images.mean((3, 4))
    expected = probe.poses(2 * (means[0] - means[0, 2])).detach().double().numpy()
    assert poses[0] == pytest.approx(rebase(expected), abs=2e-3)
    assert poses[1, 0] == pytest.approx(np.eye(4), abs=1e-6)


def test_fingerprints_tell_encoders_apart():
    first, second = nn.Module(), nn.Module()
    for net in (first, second):
        net.pose_encoder, net.renderer = nn.Linear(2, 2), nn.Linear(2, 2)
    assert encoder_fingerprint(first) != encoder_fingerprint(second)
    second.load_state_dict(first.state_dict())
    nn.init.zeros_(second.renderer.weight)
    assert encoder_fingerprint(first) == encoder_fingerprint(second)


def test_nothing_to_fit_to():
    with pytest.raises(ValueError, match="no clips"):
        fit_probe([])
    with pytest.raises(ValueError, match="two frames"):
        score_probe(Probe(WIDTH), [])
