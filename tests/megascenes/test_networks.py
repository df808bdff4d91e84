"""Fresh networks: frozen parts, seeds, modes, precision."""

from __future__ import annotations

import torch
from original_networks import fresh_small, largest, small

from megascenes_ns.networks import FROZEN, Networks
from megascenes_ns.sizes import Sizes


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, other = fresh_small(seed=1).state_dict(), fresh_small(seed=1).state_dict(), fresh_small(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert largest(first["unet.conv_in.weight"], other.unet.conv_in.weight) > 1e-3


def test_the_frozen_parts_stay_frozen_and_in_evaluation_mode():
    nets = fresh_small().train()
    assert nets.unet.training
    assert nets.cc_projection.training
    for part in FROZEN:
        assert not getattr(nets, part).training
        assert not any(each.requires_grad for each in getattr(nets, part).parameters())
    trained = {name.split(".")[0] for name, value in nets.named_parameters() if value.requires_grad}
    assert trained == {"unet", "cc_projection"}


def test_a_photo_can_stand_for_several_views():
    encoded = small().encode_reference(torch.rand(1, 16, 16, 3))
    many = encoded.expand(5)
    assert many.latent.shape == (5, 4, 8, 8)
    assert many.embedding.shape == (5, 24)
    assert torch.equal(many.latent[4], encoded.latent[0])


def test_bytes_and_floats_are_encoded_alike():
    picture = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = small().encode_reference(picture), small().encode_reference(picture.float() / 255)
    assert largest(first.latent, second.latent) < 1e-4
    assert largest(first.embedding, second.embedding) < 1e-4


def test_half_precision_gives_about_the_same_estimate():
    nets, generator = fresh_small(), torch.Generator().manual_seed(0)
    noisy, concat = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 8, 8, generator=generator)
    context, times = torch.randn(1, 1, 24, generator=generator), torch.tensor([300])
    with torch.no_grad():
        wanted = nets.predict_noise(noisy, times, context, concat)
        found = nets.bfloat16().predict_noise(noisy, times, context, concat)
    assert found.dtype == torch.bfloat16
    assert largest(found, wanted) < 0.1 * max(1.0, float(wanted.abs().max()))
    picture = nets.encode_reference(torch.rand(1, 16, 16, 3))
    assert picture.latent.dtype == picture.embedding.dtype == torch.float32


def test_recomputing_blocks_in_the_backward_pass_changes_no_gradient():
    generator = torch.Generator().manual_seed(0)
    noisy, concat = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 8, 8, generator=generator)
    context, times = torch.randn(2, 1, 24, generator=generator), torch.tensor([3, 300])
    gradients = []
    for checkpointing in (False, True):
        nets = fresh_small().train()
        if checkpointing:
            nets.unet.enable_gradient_checkpointing()
        nets.predict_noise(noisy, times, context, concat).square().mean().backward()
        assert nets.unet.conv_in.weight.grad is not None
        gradients.append(nets.unet.conv_in.weight.grad)
    assert largest(*gradients) < 1e-6


def test_the_tiny_networks_are_small():
    nets = Networks.fresh(Sizes.tiny())
    assert sum(each.numel() for each in nets.parameters()) < 3_000_000
