"""The texture world, and the method's claim on it (acceptance 16)."""

from __future__ import annotations

import pytest
import torch

from xfactor_ns.network import XFactorNet
from xfactor_ns.objective import psnr, seeded
from xfactor_ns.synthetic import REACH, TINY, Scores, Setting, learn, linear_r2, pairs, score, textures, windows


def test_windows_show_the_texture_where_they_lie():
    pictures = textures(3, seeded(0))
    assert pictures.shape == (3, 44, 44, 3)
    assert float(pictures.abs().max()) < 1.0
    shifts = torch.tensor([[[0, 0], [REACH, -REACH]]]).expand(3, -1, -1)
    shown = windows(pictures, shifts)
    assert torch.equal(shown[:, 0], pictures[:, 6:38, 6:38])
    assert torch.equal(shown[:, 1], pictures[:, 12:44, 0:32])


def test_copying_the_context_reaches_about_15_db():
    world = pairs(512, seeded(1))
    assert float(psnr(world.frames[:, 0], world.frames[:, 1])) == pytest.approx(15.0, abs=0.5)
    again = pairs(512, seeded(2), world.shift)
    assert torch.equal(again.shift, world.shift)
    assert not torch.equal(again.frames, world.frames)


def test_linear_r2_of_linear_and_unrelated_latents():
    motion = torch.randn(400, 2, generator=seeded(3))
    mixed = motion @ torch.randn(2, 5, generator=seeded(4)) + 3.0
    assert linear_r2(mixed, motion) > 0.999
    assert linear_r2(torch.randn(400, 5, generator=seeded(5)), motion) < 0.1
    assert linear_r2(torch.zeros(400, 5), motion) < 0.1


class Mover:
    """A perfect network of this world: its latent is the shift, its renderer knows the textures."""

    def __init__(self, seed: int, count: int, transfers: bool) -> None:
        generator = seeded(seed, 1)
        self.world = pairs(count, generator)
        self.other = pairs(count, generator, self.world.shift)
        self.at, self.shown, self.transfers = 0, 0, transfers

    def pose_encoder(self, frames: torch.Tensor) -> torch.Tensor:
        shift = self.world.shift[self.at : self.at + len(frames)].float()
        self.at += len(frames)
        return torch.stack([torch.zeros_like(shift), shift], dim=1)

    def renderer(self, context: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        truth = torch.cat([self.world.frames, self.other.frames if self.transfers else self.world.frames])[:, 1]
        self.shown += len(latents)
        return truth[self.shown - len(latents) : self.shown]


@pytest.mark.parametrize("transfers", [True, False])
def test_scores_of_a_perfect_network_and_of_one_that_draws_the_wrong_texture(transfers):
    found = score(Mover(7, 128, transfers), 7, 128)
    assert found.recon == pytest.approx(100.0)
    assert found.r2 > 0.999
    assert (found.transfer == pytest.approx(100.0)) if transfers else (found.transfer < found.copy)


def trained(setting: Setting) -> Scores:
    net = XFactorNet(TINY)
    losses = learn(net, setting)
    found = score(net)
    print(f"{setting.objective}: loss {losses[0]:.3f} -> {sum(losses[-50:]) / 50:.3f}, {found}")
    return found


@pytest.mark.slow
def test_poses_transfer_between_textures():
    """Acceptance 16."""
    found = trained(Setting(updates=700))
    assert found.transfer >= found.copy + 2.5
    assert abs(found.recon - found.transfer) <= 1.0
    assert found.r2 >= 0.6


@pytest.mark.slow
def test_autoencoded_poses_do_not_transfer():
    """Acceptance 16, the control experiment, at the spec's learning rate (at lower ones it takes up motion as well:
    `benchmarks.xfactor_claim`)."""
    found = trained(Setting(updates=700, objective="autoencode", lr=3e-3, final_ratio=0.25))
    assert found.transfer <= found.copy
    assert found.recon - found.transfer >= 1.5  # other machines round otherwise
    assert found.r2 < 0.1
