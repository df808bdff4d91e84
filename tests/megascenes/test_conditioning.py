"""Conditioning against the original's, what guidance leaves out, and one training loss (acceptance 1, 3, 8)."""

from __future__ import annotations

import pytest
import torch
from original_networks import HAVE, VARIANTS, arrays, fresh_small, imported, largest, small

from megascenes_ns.conditioning import Conditioning, condition, drop_masks
from megascenes_ns.networks import Encoded
from megascenes_ns.noise_schedule import add_noise
from megascenes_ns.sizes import SCALE

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
DRAWS = {"clip_only": 0.02, "both": 0.07, "latent_only": 0.12, "none": 0.5}


def conditioning(variant: str, uniform: torch.Tensor | None = None) -> Conditioning:
    """Of a fixture, with what the draws leave out."""
    io, nets = arrays(variant), imported(variant).networks
    embedding, latent = drop_masks(uniform) if uniform is not None else (None, None)
    encoded = nets.encode_reference(io["image_ref_u8"])
    return condition(nets, encoded, io["rel_pose"], io.get("warp_low_u8"), drop_embedding=embedding, drop_latent=latent)


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_conditioning_is_the_originals(variant):
    io, found = arrays(variant), conditioning(variant)
    assert largest(found.context, io["context"]) < 1e-5
    assert largest(found.context, io["c_crossattn"]) < 1e-5
    if "context_clip_dropped" in io:
        assert largest(found.pose_context, io["context_clip_dropped"]) < 1e-5
    assert largest(found.concat, io["c_concat"]) < 5e-5


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_legacy_empty_condition_is_the_originals(variant):
    io, (context, concat) = arrays(variant), conditioning(variant).unconditional("legacy")
    assert torch.equal(context, io["uncond_crossattn"])
    assert torch.equal(concat, io["uncond_concat"])


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", list(DRAWS))
def test_each_draw_leaves_out_what_the_original_leaves_out(variant, case):
    io = arrays(variant)
    found = conditioning(variant, torch.full((len(io["rel_pose"]),), DRAWS[case]))
    wanted = io[f"cfgmask_{case}_crossattn"] if case != "none" else io["context"]
    assert largest(found.context, wanted) < 1e-5
    assert bool(io[f"cfgmask_{case}_latent_is_zero"]) == (not found.concat[:, :4].any())
    assert largest(found.concat[:, 4:], io["c_concat"][:, 4:]) < 1e-6  # the warp is never left out


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_training_forward_gives_the_originals_loss(variant):
    io, nets = arrays(variant), imported(variant).networks
    latent = nets.encode_target(io["image_target_u8"]).target(io["train_posterior_noise"])
    times = io["train_t"].long()
    with torch.no_grad():
        given = conditioning(variant, io["train_cfg_uniform"])
        noisy = add_noise(latent, io["train_eps"], times)
        found = nets.predict_noise(noisy, times, given.context, given.concat)
    loss = (found - io["train_eps"]).square().mean()
    assert float(loss) == pytest.approx(float(io["train_loss"]), abs=2e-5)
    with torch.no_grad():  # the trap: the reference's latent scaled as well (acceptance 3)
        wrong = torch.cat([SCALE * given.concat[:, :4], given.concat[:, 4:]], 1)
        found = nets.predict_noise(noisy, times, given.context, wrong)
    assert abs(float((found - io["train_eps"]).square().mean()) - float(io["train_loss"])) > 1e-4


def test_the_shares_of_what_is_left_out_are_the_papers():
    """Acceptance 8."""
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    embedding, latent = drop_masks(uniform)
    shares = [float(mask.double().mean()) for mask in (embedding, latent, embedding & latent)]
    assert shares == pytest.approx([0.10, 0.10, 0.05], abs=0.003)
    both = drop_masks(torch.tensor([0.0, 0.05, 0.0999, 0.1, 0.1499, 0.15, 0.999]))
    assert [mask.tolist() for mask in both] == [
        [True, True, True, False, False, False, False],
        [False, True, True, True, True, False, False],
    ]


def example(in_channels: int = 11, count: int = 3) -> tuple[Conditioning, Encoded, torch.Tensor, torch.Tensor]:
    """Random conditioning of small networks, and what it is made of."""
    nets, generator = small(in_channels), torch.Generator().manual_seed(1)
    encoded = Encoded(torch.randn(count, 4, 8, 8, generator=generator), torch.randn(count, 24, generator=generator))
    pose, warp = torch.randn(count, 19, generator=generator), torch.rand(count, 8, 8, 3, generator=generator)
    return condition(nets, encoded, pose, warp), encoded, pose, warp


def test_the_consistent_empty_condition_is_what_training_leaves_out():
    found, encoded, pose, warp = example()
    everything = torch.ones(3, dtype=torch.bool)
    dropped = condition(small(), encoded, pose, warp, drop_embedding=everything, drop_latent=everything)
    context, concat = found.unconditional("consistent")
    assert torch.equal(context, dropped.context)
    assert torch.equal(concat, dropped.concat)
    assert largest(concat[:, 4:], warp.movedim(-1, 1) * 2 - 1) == 0


def test_an_unknown_empty_condition_is_refused():
    with pytest.raises(ValueError, match="sensible"):
        example()[0].unconditional("sensible")  # pyright: ignore


def test_a_missing_warp_and_one_of_another_size_are_refused():
    _, encoded, pose, _ = example()
    with pytest.raises(ValueError, match="take a warp"):
        condition(small(), encoded, pose)
    with pytest.raises(ValueError, match=r"\(4, 4\) cells"):
        condition(small(), encoded, pose, torch.zeros(3, 4, 4, 3))


def test_the_pose_only_model_takes_no_warp():
    nets, (_, encoded, pose, warp) = small(8), example()
    assert torch.equal(condition(nets, encoded, pose).concat, condition(nets, encoded, pose, warp).concat)
    assert torch.equal(condition(nets, encoded, pose).concat, encoded.latent)


def test_fresh_networks_pass_the_embedding_on_and_ignore_the_pose():
    found, encoded, _, _ = example()
    assert largest(found.context[:, 0], encoded.embedding) < 1e-6
    assert not found.pose_context.any()


def test_without_a_pose_the_embedding_goes_in_as_it_is():
    _, encoded, _, warp = example()
    assert torch.equal(condition(small(), encoded, None, warp).context[:, 0], encoded.embedding)


def test_gradients_reach_the_projection_only_where_they_are_wanted():
    nets, (_, encoded, pose, warp) = fresh_small(), example()
    condition(nets, encoded, pose, warp).context.sum().backward()
    assert nets.cc_projection.weight.grad is not None
    nets.cc_projection.requires_grad_(False)
    assert not condition(nets, encoded, pose, warp).context.requires_grad


def test_views_can_be_picked_and_joined():
    found = example()[0]
    assert len(found) == 3
    again = Conditioning.join([found[:1], found[[2, 1]]])
    assert torch.equal(again.context, found.context[[0, 2, 1]])
    assert torch.equal(again.concat, found.concat[[0, 2, 1]])
    assert torch.equal(again.pose_context, found.pose_context[[0, 2, 1]])
