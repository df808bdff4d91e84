"""Latents of a clip, and their motion in another scene."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size
from xfactor_ns.transfer import (
    clip_latents,
    context_frames,
    from_network,
    inserted,
    interpolate_latents,
    nearest_frames,
    render_latents,
    scene_context,
    to_network,
    transfer,
)


class MeanEncoder(nn.Module):
    """The pose of a frame is how much brighter each channel is than in the reference."""

    def forward(self, x):
        means = x.mean(dim=(2, 3))
        return means - means[:, :1]


class Brightener(nn.Module):
    """The nearest context frame, made brighter by what its latent lacks of the wanted one."""

    def forward(self, x, poses):
        return x[:, 0] + (poses[:, -1] - poses[:, 0])[:, None, None]


class Double(nn.Module):
    """A network whose latents can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.pose_encoder, self.renderer = MeanEncoder(), Brightener()


def grey(*levels: int, size: int = 4) -> torch.Tensor:
    """Frames of one colour each."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, size, size, 3).contiguous()


def noise(frames: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (frames, size, size, 3), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture(scope="module")
def net() -> XFactorNet:
    net = XFactorNet(Size(width=32, heads=2, blocks=2, patch=8, pose=6, registers=2, layer_scale=0.5)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return net


def test_motion_is_carried_over():
    a, b = grey(100, 120, 90), grey(10, 50, 60)
    result = transfer(Double(), a, b, source_reference=0)
    assert result.frames[:, 0, 0, 0].tolist() == [50, 70, 40]
    assert transfer(Double(), a, b).frames[:, 0, 0, 0].tolist() == [30, 50, 20], "the middle frame is the reference"
    assert transfer(Double(), a, b, context=[2, 0]).frames[:, 0, 0, 0].tolist() == [40, 60, 30]
    assert result.latents[:, 0].tolist() == pytest.approx([0, 40 / 255, -20 / 255])


def test_any_eight_bit_value_comes_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_network(to_network(values)), values)
    assert from_network(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_latents_are_those_of_the_pairs(net):
    frames = noise(7)
    latents = clip_latents(net, frames, 2, batch=3)
    x = to_network(frames)
    with torch.no_grad():
        alone = torch.stack([net.pose_encoder(torch.stack([x[2], x[i]])[None])[0, 1] for i in range(7)])
    assert latents.dtype == torch.float32
    assert latents.std() > 0.05, "the test's network tells frames apart"
    assert torch.allclose(latents, alone, atol=1e-5)
    assert (latents[2] == 0).all()
    assert torch.equal(clip_latents(net, frames, -5, batch=3), latents)


def test_a_trajectory_in_batches_is_frame_by_frame(net):
    frames = noise(5)
    context, known = scene_context(net, noise(9, seed=3), [4, 0, 8])
    latents = clip_latents(net, frames, 2)
    together = render_latents(net, context, known, latents, batch=4)
    x = to_network(context)[None]
    for row, latent in zip(together, latents, strict=True):
        with torch.no_grad():
            alone = net.renderer(x, torch.cat([known, latent[None]])[None])[0]
        assert (row.float() - (alone + 1) * 127.5).abs().max() <= 0.5 + 1e-2
    assert together.dtype == torch.uint8
    assert together.shape == (5, 32, 32, 3)
    assert (known[0] == 0).all()


def test_read_only_arrays_will_do(net):
    frames = noise(3).numpy()
    frames.setflags(write=False)
    assert torch.equal(clip_latents(net, frames, 0), clip_latents(net, torch.tensor(frames), 0))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_context_frames_are_distinct_and_the_reference_leads(length, count, data):
    reference = data.draw(st.one_of(st.none(), st.integers(0, length - 1)))
    chosen = context_frames(length, count, reference)
    assert chosen[0] == (length // 2 if reference is None else reference)
    assert len(set(chosen)) == len(chosen) == min(count, length)
    assert chosen[1:] == sorted(chosen[1:])
    assert all(0 <= index < length for index in chosen)
    if len(chosen) > 2 and length > len(chosen):
        assert {0, length - 1} <= set(chosen), "the whole clip is covered"


def test_blending_latents():
    latents = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate_latents(latents, np.arange(4)), latents)
    between = interpolate_latents(latents, torch.tensor([0.25, 2.5, -3.0, 9.0]))
    assert torch.allclose(between[0], 0.75 * latents[0] + 0.25 * latents[1])
    assert torch.allclose(between[1], (latents[2] + latents[3]) / 2)
    assert torch.equal(between[2:], latents[[0, 3]])
    assert inserted(3, 1).tolist() == [0, 0.5, 1, 1.5, 2]
    assert inserted(1, 4).tolist() == [0]
    assert torch.equal(interpolate_latents(latents, inserted(4, 2))[::3], latents)
    assert nearest_frames(inserted(3, 1), 3).tolist() == [0, 1, 1, 2, 2]


def test_the_originals_transfer(shared_fixtures):
    """Latents of one clip in the first frame of another, against what the original's code drew."""
    from xfactor_ns.checkpoint_import import load_weights

    folder = shared_fixtures / "xfactor" / "stereo_monocular"
    size, state = load_weights(folder)
    theirs = XFactorNet(size).eval()
    theirs.load_state_dict(state)
    with np.load(folder / "io.npz", allow_pickle=False) as io:
        pairs, latents, drawn = io["x_pair_u8"], io["pose_Z"], io["transfer_render"]
    ours = transfer(theirs, pairs[0], pairs[1], source_reference=0, context=[0])
    assert ours.latents.numpy() == pytest.approx(latents[0], abs=2e-5)
    assert np.abs(ours.frames[1].numpy() - (drawn[0] + 1) * 127.5).max() <= 0.5 + 1e-2


def test_what_does_not_fit_is_refused(net):
    frames = noise(3)
    with pytest.raises(ValueError, match="uint8"):
        clip_latents(net, frames.float(), 0)
    with pytest.raises(ValueError, match="frame 3 is not one of 3"):
        clip_latents(net, frames, 3)
    with pytest.raises(ValueError, match="batch is 0"):
        clip_latents(net, frames, 0, batch=0)
    with pytest.raises(ValueError, match="context frames with latents"):
        render_latents(net, frames, torch.zeros(2, 6), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="context latents"):
        render_latents(net, frames, torch.zeros(3, 6), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="no latents"):
        render_latents(net, frames, torch.zeros(3, 6), torch.zeros(0, 6))
    with pytest.raises(ValueError, match="between"):
        inserted(3, -1)
    with pytest.raises(ValueError, match="too few"):
        context_frames(5, 0)
