"""The bank of latents: the networks' own, computed once, and again when the weights change."""

from __future__ import annotations

import pytest
import torch
from gallery_worlds import gallery, lively, shown

from xfactor_ns import latents as latents_module
from xfactor_ns.camera_control import Mixture
from xfactor_ns.latents import LatentBank
from xfactor_ns.transfer import clip_latents


@pytest.fixture
def calls(monkeypatch):
    """Frames that went through the pose encoder, call by call."""
    counted: list[int] = []

    def recorded(net, frames, reference, batch):
        counted.append(len(frames))
        return clip_latents(net, frames, reference, batch)

    monkeypatch.setattr(latents_module, "clip_latents", recorded)
    return counted


def test_latents_are_the_encoders_own(calls):
    net, clip, bank = lively(), gallery()[0], LatentBank()
    expected = clip_latents(net, torch.from_numpy(clip.read()), clip.reference)
    torch.testing.assert_close(bank.latents(net, clip, range(7)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(bank.latents(net, clip, [clip.reference]), torch.zeros(1, 6))
    assert torch.equal(bank.latents(net, clip, [5, 1, 5]), bank.latents(net, clip, range(7))[[5, 1, 5]])
    assert calls == [8], "one call for all frames, none afterwards"


def test_only_what_is_asked_for_is_computed(calls):
    net, clip, bank = lively(), gallery()[0], LatentBank()
    bank.latents(net, clip, [1, 2])
    bank.latents(net, clip, [2, 4, 1])
    assert calls == [3, 2]
    bank.latents(net, gallery()[1], [0])
    bank.latents(net, clip, [1])
    assert calls == [3, 2, 2], "another clip leaves the first one's alone"


@pytest.mark.parametrize("change", ["step", "load", "other network"])
def test_new_weights_give_new_latents(change):
    net, clip, bank = lively(), gallery()[0], LatentBank()
    before = bank.latents(net, clip, range(7)).clone()
    if change == "step":
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, foreach=True)
        net.pose_encoder(torch.rand(1, 2, 32, 32, 3)).square().sum().backward()
        optimiser.step()
    elif change == "load":
        net.load_state_dict(lively(3).state_dict())
    else:
        net = lively(3)
    after = bank.latents(net, clip, range(7))
    assert not torch.allclose(before, after)
    torch.testing.assert_close(
        after, clip_latents(net, torch.from_numpy(clip.read()), clip.reference), atol=1e-5, rtol=1e-5
    )


def test_an_interrupted_picture_leaves_the_bank_whole(monkeypatch):
    """nerfstudio's viewer raises inside our code when the mouse moves."""
    net, clip, bank = lively(), gallery()[0], LatentBank()
    working = latents_module.clip_latents

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(latents_module, "clip_latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.latents(net, clip, [0, 1])
    monkeypatch.setattr(latents_module, "clip_latents", working)
    expected = clip_latents(net, torch.from_numpy(clip.read()), clip.reference)[[0, 1]]
    torch.testing.assert_close(bank.latents(net, clip, [0, 1]), expected, atol=1e-5, rtol=1e-5)


def test_mixtures_are_weighted_sums():
    net, clip, bank = lively(), gallery()[0], LatentBank()
    rows = bank.latents(net, clip, range(7))
    assert torch.equal(bank.mixed(net, clip, Mixture((5,), (1.0,))), rows[5])
    mixed = bank.mixed(net, clip, Mixture((4, 5), (0.25, 0.75)))
    torch.testing.assert_close(mixed, 0.25 * rows[4] + 0.75 * rows[5])


@pytest.mark.parametrize("count", [1, 2, 5, 99])
def test_context_is_the_reference_and_others(count):
    net, clip, bank = lively(), gallery()[0], LatentBank()
    frames, pixels, latents = bank.context(net, clip, count)
    assert frames[0] == clip.reference == 3
    assert len(set(frames)) == len(frames) == min(count, 7)
    assert torch.equal(pixels, torch.from_numpy(clip.read())[frames])
    assert torch.equal(latents, bank.latents(net, clip, frames))
    assert torch.equal(latents[0], torch.zeros(6))


def test_few_clips_are_kept_in_memory():
    reads: list[str] = []

    def counted(name: str):
        clip = shown(name, 3)
        return latents_module.ShownClip(
            name, "train", clip.numbers, clip.c2w, lambda: (reads.append(name), clip.read())[1]
        )

    net, bank = lively(), LatentBank(clips_kept=2)
    clips = [counted(name) for name in "abc"]
    for clip in (clips[0], clips[0], clips[1], clips[2], clips[2], clips[0]):
        bank.pixels(net, clip)
    assert reads == ["a", "b", "c", "a"]
