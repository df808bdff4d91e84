"""Metrics of held-out pictures against hand-made ones."""

from __future__ import annotations

import math

import pytest
import torch

from r4dv_ns.protocols import picture_metrics


def psnr(mse: float) -> float:
    return -10 * math.log10(mse)


def test_each_protocol_counts_its_own_pixels():
    """40 x 50 pixels, a mask of 10 x 10 in a box of 20 x 25; errors of 0.1 in the mask, 0.3 on one pixel of the box."""
    truth, inside = torch.full((40, 50, 3), 0.5), torch.zeros(40, 50, dtype=torch.bool)
    inside[12:22, 15:25] = True
    rgb = truth + 0.1 * inside[..., None]
    rgb[10, 11] += 0.3
    found = picture_metrics(rgb, truth, inside, (10, 8, 25, 20))
    total = 100 * 0.01 + 0.09
    assert found["psnr"] == pytest.approx(psnr(total / 2000), abs=1e-4)
    assert found["psnr_masked"] == pytest.approx(psnr(0.01), abs=1e-4)
    assert found["psnr_bbox"] == pytest.approx(psnr(total / 500), abs=1e-4)
    assert set(found) == {"psnr", "ssim", "psnr_masked", "ssim_masked", "psnr_bbox", "ssim_bbox"}


def test_without_mask_or_box_their_numbers_are_left_out():
    truth = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    rgb = (truth + 0.05).clamp(0, 1)
    assert set(picture_metrics(rgb, truth, None, None)) == {"psnr", "ssim"}
    assert set(picture_metrics(rgb, truth, None, (3, 3, 0, 5))) == {"psnr", "ssim"}, "the box is outside the picture"


def test_the_original_s_ssim_flatters():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 40, 3, generator=generator)
    rgb = (truth + 0.2 * torch.randn(40, 40, 3, generator=generator)).clamp(0, 1)
    found = picture_metrics(rgb, truth, None, None, upstream_ssim=True)
    assert found["ssim"] < found["ssim_upstream"] < 1
