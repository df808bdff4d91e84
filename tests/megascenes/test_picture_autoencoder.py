"""The autoencoder without training: latents are small pictures."""

from __future__ import annotations

import torch
from original_networks import largest
from torch.nn import functional

from megascenes_ns.autoencoder import decode, encode
from megascenes_ns.networks import Networks
from megascenes_ns.picture_autoencoder import GAIN, is_picture_size
from megascenes_ns.sizes import SCALE, Sizes


def pictures() -> torch.Tensor:
    """Random ones, smooth and rough, bright and dark."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator) * torch.tensor([1.0, 0.2, 1.0]).reshape(3, 1, 1, 1)
    fine = functional.interpolate(coarse, scale_factor=8) + 0.05 * torch.rand(3, 3, 64, 64, generator=generator)
    return fine.clamp(0, 1).movedim(1, -1)


def test_latents_are_block_means_of_the_picture():
    nets = Networks.fresh(Sizes.tiny())
    given = pictures()
    found = encode(nets.vae, given)
    means = functional.avg_pool2d(given.movedim(-1, 1), 8)
    wanted = GAIN * (torch.cat([means, means.mean(1, keepdim=True)], 1) * 2 - 1)
    assert largest(found.mean, wanted) < 2e-3 * GAIN
    assert float(found.std.max()) < 0.01


def test_decoding_spreads_the_blocks_again():
    nets = Networks.fresh(Sizes.tiny())
    given = pictures()
    found = decode(nets.vae, SCALE * encode(nets.vae, given).mean)
    means = functional.avg_pool2d(given.movedim(-1, 1), 8)
    assert largest(found, functional.interpolate(means, scale_factor=8).movedim(1, -1)) < 2e-3


def test_scaled_latents_spread_further_than_noise():
    nets = Networks.fresh(Sizes.tiny())
    latents = nets.encode_target(pictures()).target(torch.zeros(3, 4, 8, 8))
    assert 1.5 < float(latents.std()) < 6


def test_any_latents_decode_to_a_picture():
    nets = Networks.fresh(Sizes.tiny())
    found = nets.decode(100 * torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0)), batch=2)
    assert found.shape == (5, 64, 64, 3)
    assert bool(found.isfinite().all())


def test_only_the_tiny_size_gets_it():
    assert is_picture_size(Sizes.tiny().vae)
    assert not is_picture_size(Sizes.full().vae)
