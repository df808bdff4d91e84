"""The autoencoder against the original's outputs, and the scaling trap (acceptance 1, 3)."""

from __future__ import annotations

import pytest
import torch
from original_networks import HAVE, VARIANTS, arrays, imported, largest, small

from megascenes_ns.autoencoder import decode, decode_raw, encode, network_range, vae_config, vae_size
from megascenes_ns.sizes import SCALE, Sizes

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_encoding_is_the_originals(variant):
    io, vae = arrays(variant), imported(variant).networks.vae
    found = encode(vae, io["image_ref_u8"])
    assert largest(found.mean, io["vae_mean"]) < 5e-5
    assert largest(found.mean, io["vae_mode"]) < 5e-5
    assert largest(found.std, (io["vae_logvar"] / 2).exp()) < 5e-5


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_is_the_originals(variant):
    io, vae = arrays(variant), imported(variant).networks.vae
    found = decode_raw(vae, SCALE * io["vae_mode"][:1])
    wanted = io["vae_decode_of_scaled_mode_first"]
    assert largest(found, wanted.reshape(found.shape)) < 5e-5


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_are_scaled_and_references_are_not(variant):
    """Acceptance 3: swapping the two fails by far more than the tolerance."""
    io, nets = arrays(variant), imported(variant).networks
    target = nets.encode_target(io["image_target_u8"])
    reference = nets.encode_reference(io["image_ref_u8"])
    assert largest(target.target(io["test_z_noise"]), io["test_target_latent"]) < 5e-5
    assert largest(reference.latent, io["c_concat"][:, :4]) < 5e-5
    unscaled = target.mean + target.std * io["test_z_noise"]
    assert largest(unscaled, io["test_target_latent"]) > 0.1
    assert largest(SCALE * reference.latent, io["c_concat"][:, :4]) > 0.1


def test_bytes_and_floats_are_the_same_picture():
    picture = torch.arange(0, 240, dtype=torch.uint8).reshape(1, 8, 10, 3)
    assert network_range(picture).shape == (1, 3, 8, 10)
    assert largest(network_range(picture), network_range(picture.float() / 255)) < 1e-6
    assert network_range(torch.tensor([0, 255, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)).flatten().tolist() == [
        -1, 1, 1,
    ]  # fmt: skip


def test_decoded_pictures_are_in_range():
    picture = decode(small().vae, 30 * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert picture.shape == (2, 8, 8, 3)
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1


@pytest.mark.parametrize("size", [Sizes.full().vae, Sizes.tiny().vae])
def test_a_config_tells_the_size(size):
    assert vae_size(vae_config(size)) == size
