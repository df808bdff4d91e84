"""CLIP's image tower against the original's outputs (acceptance 1)."""

from __future__ import annotations

import pytest
import torch
from original_networks import HAVE, VARIANTS, arrays, imported, largest, small

from megascenes_ns.image_encoder import MEAN, STD, clip_config, clip_pixels, clip_size, embed_pictures
from megascenes_ns.sizes import Sizes

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_clip_sees_what_the_original_shows_it(variant):
    io = arrays(variant)
    found = clip_pixels(io["image_ref_u8"][:1], 224)[..., ::5, ::5]
    assert largest(found, io["clip_pixels_224_stride5"].reshape(found.shape)) < 1e-5


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_are_the_originals(variant):
    io = arrays(variant)
    found = embed_pictures(imported(variant).networks.image_encoder, io["image_ref_u8"])
    assert largest(found, io["clip_embed"]) < 1e-5


def test_the_corners_of_the_picture_stay_in_the_corners():
    picture = torch.rand(1, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    pixels = clip_pixels(picture, 56)
    for row in (0, -1):
        for column in (0, -1):
            value = pixels[0, :, row, column] * torch.tensor(STD) + torch.tensor(MEAN)
            assert largest(value, picture[0, row, column]) < 1e-5


def test_embeddings_depend_on_the_picture_alone():
    pictures = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    encoder = small().image_encoder
    all_three = embed_pictures(encoder, pictures)
    assert largest(embed_pictures(encoder, pictures[1:2]), all_three[1:2]) < 1e-6
    assert largest(all_three[:1], all_three[1:2]) > 1e-3


@pytest.mark.parametrize("size", [Sizes.full().clip, Sizes.tiny().clip])
def test_a_config_tells_the_size(size):
    assert clip_size(clip_config(size, 40)) == (size, 40)
