"""Patches and packs against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import pictures, quadrants

from xfactor_ns.packing import packs, patchify, unpatchify


def test_patches_are_row_major_and_hold_row_column_channel():
    x = pictures(2, 3, (8, 12))
    patches = patchify(x, 4)
    assert patches.shape == (2, 3, 6, 48)
    for row in range(2):
        for col in range(3):
            wanted = x[:, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].reshape(2, 3, 48)
            torch.testing.assert_close(patches[:, :, 3 * row + col], wanted, rtol=0, atol=0)
    torch.testing.assert_close(unpatchify(patches, 2, 3), x, rtol=0, atol=0)


@pytest.mark.parametrize("side", [(8, 10), (6, 8), (0, 8)])
def test_pictures_that_do_not_divide_are_refused(side):
    with pytest.raises(ValueError, match="do not divide"):
        patchify(torch.zeros(1, 1, *side, 3), 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=5))
def test_every_patch_is_in_exactly_one_item(rows):
    mask = torch.tensor(rows)
    seen = torch.full_like(mask, -1)
    sizes = []
    for pack in packs(mask):
        sizes.append(pack.tokens.shape[1])
        for sample, group, tokens in zip(pack.sample.tolist(), pack.group.tolist(), pack.tokens, strict=True):
            assert (seen[sample, tokens] == -1).all()
            assert (tokens.diff() > 0).all()
            seen[sample, tokens] = group
    assert (seen == mask).all()
    assert len(set(sizes)) == len(sizes)


def test_equal_halves_make_one_pack_and_unmasked_samples_another():
    found = packs(quadrants(4, 4))
    assert sorted(tuple(pack.tokens.shape) for pack in found) == [(1, 16), (12, 8)]


def test_items_hold_what_their_tokens_say():
    patches = torch.arange(2 * 3 * 4).view(2, 3, 4, 1)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    (pack,) = packs(mask)
    for i, taken in enumerate(pack.take(patches)):
        assert (taken == patches[pack.sample[i]][:, pack.tokens[i]]).all()


def test_other_numbers_in_a_mask_are_refused():
    with pytest.raises(ValueError, match="only 0 and 1"):
        packs(torch.tensor([[0, 2]]))
