"""Masks against their statistics and the original's (acceptance 5); jitter and blur against a loop over pixels."""

from __future__ import annotations

import colorsys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from xfactor_ns.augment import (
    LAYOUTS,
    Jitter,
    Scenes,
    apply_jitter,
    apply_scenes,
    draw_jitter,
    draw_scenes,
    gaussian_blur,
    hsv_from_rgb,
    jitter_blur,
    quadrant_masks,
    rgb_from_hsv,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ masks


def quadrants(mask: torch.Tensor, rows: int, cols: int) -> tuple[int, ...]:
    """Group of each quadrant; each must be of one group."""
    grid = mask.reshape(rows, cols)
    parts = [half for side in grid.tensor_split([rows // 2], dim=0) for half in side.tensor_split([cols // 2], dim=1)]
    assert all(len(part.unique()) == 1 for part in parts)
    return tuple(int(part[0, 0]) for part in parts)


def test_groups_are_two_and_two_quadrants_or_nothing():
    masks, ones = quadrant_masks(64, 8, 6, generator(), unmasked=0.25)
    assert masks.shape == (64, 48)
    for mask, count in zip(masks, ones, strict=True):
        assert sum(quadrants(mask, 8, 6)) == int(count)
        assert int(count) in (0, 2)
        assert int(mask.sum()) == 12 * int(count)
    assert int((ones == 0).sum()) == 16


def test_layouts_are_equiprobable_and_one_in_twenty_is_unmasked():
    """Acceptance 5: chi-squared over 4096 draws."""
    draws, found = generator(1), Counter()
    for _ in range(128):
        masks, _ = quadrant_masks(32, 4, 4, draws)
        found.update(quadrants(mask, 4, 4) for mask in masks)
    unmasked = found.pop((0, 0, 0, 0))
    expected = {tuple(int(q in layout) for q in range(4)) for layout in LAYOUTS}
    assert set(found) == expected
    assert scipy.stats.chisquare(list(found.values())).pvalue > 0.01
    assert scipy.stats.binomtest(unmasked, 4096, 0.05).pvalue > 0.01


@pytest.mark.parametrize(
    ("batch", "share", "allowed"), [(32, 0.05, {1, 2}), (20, 0.05, {1}), (8, 0.0, {0}), (5, 1.0, {5})]
)
def test_the_number_of_unmasked_samples_takes_two_values_at_most(batch, share, allowed):
    draws = generator(2)
    counts = {int((quadrant_masks(batch, 2, 2, draws, share)[1] == 0).sum()) for _ in range(60)}
    assert counts == allowed


def test_the_originals_masks_are_among_ours(shared_fixtures: Path):
    with np.load(shared_fixtures / "xfactor" / "stereo_monocular" / "io.npz", allow_pickle=False) as stored:
        masks, ones = stored["train_pmask"], stored["train_qc"]
    side = round(masks.shape[1] ** 0.5)
    allowed = {tuple(int(q in layout) for q in range(4)) for layout in LAYOUTS} | {(0, 0, 0, 0)}
    for mask, count in zip(masks, ones, strict=True):
        found = quadrants(torch.from_numpy(mask), side, side)
        assert found in allowed
        assert sum(found) == count


def test_odd_grids_still_have_four_quadrants_and_thin_ones_none():
    masks, _ = quadrant_masks(8, 3, 5, generator(), unmasked=0.0)
    assert all(sum(quadrants(mask, 3, 5)) == 2 for mask in masks)
    with pytest.raises(ValueError, match="no four quadrants"):
        quadrant_masks(1, 1, 4, generator())


# ------------------------------------------------------------------ jitter and blur


def slow_jitter(frames: np.ndarray, jitter: Jitter) -> np.ndarray:
    """Picture by picture and pixel by pixel, with the standard library's HSV."""
    out = frames.copy()
    for n, sample in enumerate(out):
        for v, picture in enumerate(sample):
            if jitter.coloured[n]:
                for kind in jitter.order[n].tolist():
                    if kind == 0:
                        picture = picture + float(jitter.brightness[n])
                    elif kind == 1:
                        mean = picture.mean(axis=(0, 1))
                        picture = mean + float(jitter.contrast[n]) * (picture - mean)
                    else:
                        picture = np.array([[_turned(pixel, jitter, n, kind) for pixel in row] for row in picture])
            picture = picture.clip(0, 1)
            if jitter.blurred[n]:
                taps = np.exp(-0.5 * (np.arange(-3, 4) / float(jitter.sigma[n])) ** 2)
                taps = (taps / taps.sum())[:, None] * (taps / taps.sum())
                picture = scipy.ndimage.convolve(picture, taps[..., None], mode="mirror")
            out[n, v] = picture
    return out


def _turned(pixel: np.ndarray, jitter: Jitter, n: int, kind: int) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    if kind == 2:
        return colorsys.hsv_to_rgb(hue, saturation * float(jitter.saturation[n]), value)
    return colorsys.hsv_to_rgb((hue + float(jitter.hue[n])) % 1.0, saturation, value)


def test_jitter_and_blur_agree_with_a_loop_over_pixels():
    frames = torch.rand(6, 2, 9, 8, 3, generator=generator(3), dtype=torch.float64) * 0.6 + 0.2
    jitter = draw_jitter(6, generator(4))._replace(blurred=torch.tensor([True, False, True, True, False, False]))
    jitter = jitter._replace(coloured=torch.tensor([True, True, True, False, True, False]))
    before = frames.clone()
    fast = apply_jitter(frames, jitter)
    np.testing.assert_allclose(fast.numpy(), slow_jitter(frames.numpy(), jitter), atol=1e-6)
    assert torch.equal(frames, before), "the input is left alone"
    assert torch.equal(fast[5], frames[5])


def test_hsv_there_and_back_also_outside_the_range():
    rgb = torch.rand(1000, 3, generator=generator(5), dtype=torch.float64) * 2 - 0.5
    rgb[:3] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3]])
    torch.testing.assert_close(rgb_from_hsv(*hsv_from_rgb(rgb)), rgb, atol=1e-5, rtol=0)
    inside = rgb[(rgb > 0).all(dim=1)][:50]
    expected = torch.tensor([colorsys.rgb_to_hsv(*pixel) for pixel in inside.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(hsv_from_rgb(inside), dim=1), expected)


def test_both_frames_of_a_pair_get_the_same_draw_unless_asked_otherwise():
    frames = torch.rand(16, 1, 8, 8, 3, generator=generator(6)).expand(-1, 2, -1, -1, -1)
    pairwise = jitter_blur(frames, generator(7))
    assert torch.equal(pairwise[:, 0], pairwise[:, 1])
    single = jitter_blur(frames, generator(7), per_frame=True)
    assert single.shape == frames.shape
    assert (single[:, 0] != single[:, 1]).flatten(1).any(dim=1).float().mean() > 0.9


def test_draws_have_the_published_shares_and_ranges():
    jitter = draw_jitter(20000, generator(8))
    assert float(jitter.coloured.float().mean()) == pytest.approx(0.9, abs=0.01)
    assert float(jitter.blurred.float().mean()) == pytest.approx(0.3, abs=0.015)
    for values, low, high in (
        (jitter.brightness, -0.2, 0.2), (jitter.contrast, 0.8, 1.2), (jitter.saturation, 0.8, 1.2),
        (jitter.hue, -0.05, 0.05), (jitter.sigma, 0.1, 2.0),
    ):  # fmt: skip
        assert scipy.stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    orders = Counter(map(tuple, jitter.order.tolist()))
    assert len(orders) == 24
    assert scipy.stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_blur_keeps_a_constant_and_spreads_a_point():
    flat = torch.full((1, 1, 10, 10, 3), 0.37)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([1.5])), flat)
    point = torch.zeros(2, 1, 15, 15, 3)
    point[:, :, 7, 7] = 1.0
    spread = gaussian_blur(point, torch.tensor([0.1, 2.0]))
    torch.testing.assert_close(spread[0], point[0], atol=1e-6, rtol=0)
    assert float(spread[1].sum()) == pytest.approx(3.0, abs=1e-5)
    assert float(spread[1].max()) < 0.06


# ------------------------------------------------------------------ other scenes


def test_scenes_are_mirrored_transposed_and_recoloured_as_a_whole():
    frames = torch.rand(3, 2, 5, 5, 3, generator=generator(9))
    scenes = Scenes(
        torch.tensor([False, True, False]), torch.tensor([False, False, True]), torch.tensor([False, False, True]),
        torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 2]]), torch.tensor([[0.0, 0.0, 1.0]]).expand(3, -1),
    )  # fmt: skip
    found = apply_scenes(frames, scenes)
    torch.testing.assert_close(found[0], frames[0])
    torch.testing.assert_close(found[1, 1, 0, 3], frames[1, 1, 4, 3][[2, 0, 1]])
    torch.testing.assert_close(found[2, 0, 1, 4], frames[2, 0, 4, 3])  # columns exchanged, then transposed
    with pytest.raises(ValueError, match="transposed"):
        apply_scenes(frames[:, :, :4], scenes)


def test_all_scenes_are_equiprobable():
    drawn = draw_scenes(9600, generator(10))
    rows = torch.cat([torch.stack(drawn[:3], dim=1).long(), drawn.channels], dim=1)
    assert float((drawn.window[:, :2].abs() + drawn.window[:, 2:]).max()) <= 1.0 + 1e-6, "inside the frame"
    assert 0.7 <= float(drawn.window[:, 2].min()) < 0.72
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 48
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_part_of_a_picture_is_what_bilinear_sampling_sees_there():
    """Oracle: pixel centres of the part, looked up by hand in a picture that is linear in place."""
    side = 16
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    plane = torch.stack([at[:, None].expand(-1, side), at[None, :].expand(side, -1), torch.zeros(side, side)], dim=-1)
    flags = torch.zeros(1, dtype=torch.bool)
    scenes = Scenes(flags, flags, flags, torch.tensor([[0, 1, 2]]), torch.tensor([[0.2, -0.1, 0.7]]))
    found = apply_scenes(plane[None, None], scenes)[0, 0]
    inside = slice(1, -1)
    torch.testing.assert_close(found[inside, 5, 0], (-0.1 + 0.7 * at)[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[5, inside, 1], (0.2 + 0.7 * at)[inside], atol=1e-5, rtol=0)
