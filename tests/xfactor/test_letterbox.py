"""Square pictures in frames of any shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xfactor_ns.letterbox import fit, inside, placed, tiled


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_pictures_stay_inside_keep_their_shape_and_fill_one_side(height, width, rows, columns):
    top, left, tall, wide = placed(height, width, rows, columns)
    assert 0 <= top <= rows - tall
    assert 0 <= left <= columns - wide
    assert tall == rows or wide == columns
    assert abs(top - (rows - tall - top)) <= 1
    assert abs(left - (columns - wide - left)) <= 1
    scale = min(rows / height, columns / width)
    assert abs(tall - height * scale) <= 1
    assert abs(wide - width * scale) <= 1
    picture = torch.rand(height, width, 3)
    framed = fit(picture, rows, columns)
    covered = inside(height, width, rows, columns, torch.device("cpu"))
    assert framed.shape == (rows, columns, 3)
    assert covered.shape == (rows, columns, 1)
    assert set(covered.unique().tolist()) <= {0.0, 1.0}
    assert covered.sum() == tall * wide
    assert framed[(covered == 0)[..., 0]].abs().sum() == 0
    assert framed.min() >= 0
    assert framed.max() <= 1 + 1e-6


def test_the_same_size_changes_nothing():
    picture = torch.rand(9, 9, 3)
    assert torch.equal(fit(picture, 9, 9), picture)
    assert torch.equal(fit(picture, 9, 15)[:, 3:12], picture)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_averages_instead_of_skipping(factor):
    stripes = torch.zeros(16, 16, 3)
    stripes[::2] = 1.0
    small = fit(stripes, 16 // factor, 16 // factor)
    assert (small - 0.5).abs().max() < 0.2, "the pattern is finer than a pixel: grey"


def test_tiles_fill_wide_frames_side_by_side_and_tall_ones_below_one_another():
    pictures = [torch.full((4, 4, 3), 0.1 * (k + 1)) for k in range(5)]
    wide, tall, square = tiled(pictures, 10, 100), tiled(pictures, 100, 10), tiled(pictures, 50, 50)
    assert wide.shape == (4, 20, 3)
    assert tall.shape == (20, 4, 3)
    assert square.shape == (8, 12, 3)
    assert square[4:, 8:].abs().sum() == 0, "the sixth place stays black"
    assert square[0, 5, 0] == pytest.approx(0.2)
    assert torch.equal(tiled(pictures[:1], 7, 90), pictures[0])
