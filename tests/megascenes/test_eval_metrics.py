"""The metrics against slow twins, torchmetrics and numbers worked out by hand (spec megascenes 7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from core_ns.metrics import psnr, ssim
from megascenes_ns.eval_metrics import Judged, LpipsVgg, averaged, padded, row_of, ssim_map


def pictures(seed: int, height: int = 20, width: int = 26) -> Judged:
    generator = torch.Generator().manual_seed(seed)
    drawn, truth, warp = (torch.rand(height, width, 3, generator=generator) for _ in range(3))
    coverage = (torch.rand(height, width, generator=generator) > 0.3).float()
    return Judged(drawn, truth, warp, coverage)


def slow_ssim(a: np.ndarray, b: np.ndarray, row: int, column: int) -> float:
    """One pixel of the map, window by window, in float64."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    rows = np.abs(np.arange(row - 5, row + 6))
    columns = np.abs(np.arange(column - 5, column + 6))
    rows = np.where(rows >= a.shape[0], 2 * (a.shape[0] - 1) - rows, rows)
    columns = np.where(columns >= a.shape[1], 2 * (a.shape[1] - 1) - columns, columns)
    window = np.outer(line, line)
    values = []
    for channel in range(3):
        x, y = (each[np.ix_(rows, columns)][..., channel] for each in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
        cov = (window * x * y).sum() - mx * my
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


def test_the_ssim_map_is_its_definition_and_averages_to_torchmetrics():
    judged = pictures(0)
    found = ssim_map(judged.drawn.double(), judged.truth.double())
    a, b = judged.drawn.double().numpy(), judged.truth.double().numpy()
    for row, column in [(0, 0), (3, 24), (10, 13), (19, 25)]:
        assert float(found[row, column]) == pytest.approx(slow_ssim(a, b, row, column), abs=1e-9)
    mean = float(ssim_map(judged.drawn, judged.truth).mean())
    assert mean == pytest.approx(ssim(judged.drawn, judged.truth), abs=1e-5)
    two = [2 * each - 1 for each in (judged.drawn, judged.truth)]
    theirs = structural_similarity_index_measure(*(each.permute(2, 0, 1)[None] for each in two), data_range=2.0)
    assert float(ssim_map(*two, span=2.0).mean()) == pytest.approx(float(theirs), abs=1e-5)


def test_masked_numbers_look_at_the_mask_alone():
    judged = pictures(1)
    row = row_of(judged, 32)
    mask = judged.mask
    error = [float((judged.drawn - judged.truth)[r, c].square().mean()) for r, c in mask.nonzero().tolist()]
    assert row["psnr_masked"] == pytest.approx(-10 * math.log10(np.mean(error)), abs=1e-4)
    spoiled = judged._replace(drawn=torch.where(mask[..., None], judged.drawn, torch.rand_like(judged.drawn)))
    assert row_of(spoiled, 32)["psnr_masked"] == pytest.approx(row["psnr_masked"], abs=1e-6)
    assert row["coverage"] == pytest.approx(float(mask.float().mean()))
    # SSIM of a pixel looks at its neighbours, so only its average is masked.
    assert row["ssim_masked"] == pytest.approx(float(ssim_map(judged.drawn, judged.truth)[mask].mean()), abs=1e-6)


def test_nothing_seen_means_no_masked_number_and_no_nan():
    judged = pictures(2)._replace(coverage=torch.zeros(20, 26))
    row = row_of(judged, 32)
    assert "psnr_masked" not in row
    assert "ssim_masked" not in row
    assert row["coverage"] == 0.0
    assert all(math.isfinite(value) for value in row.values())


def test_the_copied_warp_is_scored_as_a_method():
    judged = pictures(3)
    row = row_of(judged, 32)
    assert row["copy_warp_psnr"] == pytest.approx(psnr(judged.warp, judged.truth))
    perfect = row_of(judged._replace(warp=judged.truth), 32)
    assert perfect["copy_warp_psnr"] == 100.0
    assert perfect["psnr"] == row["psnr"]


def test_both_psnr_conventions_and_the_originals():
    rows = []
    squared = []
    for seed in range(3):
        judged = pictures(seed)
        judged = judged._replace(drawn=judged.truth + (seed + 1) * 0.05 * (judged.drawn - judged.truth))
        rows.append(row_of(judged, 32))
        squared.append(float((judged.drawn.clamp(0, 1) - judged.truth).square().double().mean()))
    found = averaged(rows, with_deviation=True)
    assert found["count"] == 3
    assert found["psnr"] == pytest.approx(np.mean([-10 * math.log10(value) for value in squared]), abs=1e-4)
    assert found["psnr_of_mean_mse"] == pytest.approx(-10 * math.log10(np.mean(squared)), abs=1e-4)
    assert found["psnr"] > found["psnr_of_mean_mse"], "Jensen"
    # White borders are no errors, and [-1, 1] with a range of 2 is the same as [0, 1] with 1.
    share = 20 * 26 / 32**2
    assert found["compat_psnr"] == pytest.approx(-10 * math.log10(np.mean(squared) * share), abs=1e-4)
    assert found["psnr_std"] > 0
    assert not any(key.startswith(("mse", "compat_mse")) for key in found)


def test_the_originals_mask_is_the_colours_of_the_warp():
    judged = pictures(4)
    found = averaged([row_of(judged, 32)])
    ours, theirs, warp = (padded(each, 32).double() for each in (judged.drawn, judged.truth, judged.warp))
    mse = float((((2 * ours - 1) - (2 * theirs - 1)) * warp).square().mean())
    assert found["compat_masked_psnr"] == pytest.approx(10 * math.log10(4 / mse), abs=1e-4)


def test_lpips_says_why_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    lpips = LpipsVgg()
    assert "vgg16 weights are not in" in str(lpips.problem())
    assert lpips(torch.zeros(64, 64, 3), torch.zeros(64, 64, 3)) is None


def test_padding_is_white_and_in_the_middle():
    square = padded(torch.zeros(2, 5, 3), 5)
    assert square[0].min() == 1
    assert square[1:3].max() == 0
    assert square[3:].min() == 1
