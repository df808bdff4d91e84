"""How good a generated view is: whole pictures, where the warp has content, and by the original's protocol.

All pictures are float in [0, 1], unpadded unless said otherwise. Three families of keys (spec megascenes 7):

* ``psnr``, ``ssim``, ``lpips``: the view against its photo. ``psnr`` is the mean of the pictures' PSNRs,
  ``psnr_of_mean_mse`` that of their mean squared error.
* ``*_masked``: over M = coverage > 0.5, what the reference really shows: the error averaged over M, the SSIM map
  averaged over M, LPIPS with both pictures black outside M.
* ``compat_*``: the original's: padded white squares in [-1, 1], PSNR of the mean squared error, and for
  ``compat_masked_*`` both pictures times the RGB warp.

``copy_warp_*`` are the scores of the warp itself, of a method that does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from core_ns.metrics import SMALLEST_MSE, LpipsOrNothing, backbone_problem, masked_psnr, psnr, ssim

MASK_FROM = 0.5
"""Coverage above which a pixel counts as seen."""
SIGMA, WINDOW = 1.5, 11
"""Of SSIM's Gaussian window."""
INTERNAL = ("mse", "compat_mse", "compat_masked_mse")
"""Of rows: what set-wide numbers are made of."""


class LpipsVgg(LpipsOrNothing):
    """LPIPS with VGG-16, the original's, if its weights are on this machine; otherwise None, and `problem` says why."""

    @classmethod
    def _build(cls) -> torch.nn.Module | None:
        try:
            if backbone_problem("vgg16") is None:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True).eval()
        except Exception:  # an optional number must never end an evaluation; `problem` has the reason
            return None
        return None

    def problem(self) -> str | None:
        """Why there is no LPIPS; None where there is."""
        try:
            found = backbone_problem("vgg16")
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return found


class Judged(NamedTuple):
    """A view and what it is measured by; float [h, w, 3] in [0, 1]."""

    drawn: Float[Tensor, "h w 3"]
    truth: Float[Tensor, "h w 3"]
    warp: Float[Tensor, "h w 3"]
    coverage: Float[Tensor, "h w"]

    @property
    def mask(self) -> Bool[Tensor, "h w"]:
        """What the reference shows."""
        return self.coverage > MASK_FROM


def ssim_map(first: Float[Tensor, "h w 3"], second: Float[Tensor, "h w 3"], span: float = 1.0) -> Float[Tensor, "h w"]:
    """SSIM of every pixel, averaged over the channels (Wang et al. 2004), mirrored borders.

    Args:
        first, second: at least 6 pixels a side.
        span: difference of the largest and the smallest possible value.
    """
    places = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    line = torch.exp(-places.square() / (2 * SIGMA**2))
    line = line / line.sum()
    a, b = (each.permute(2, 0, 1)[:, None] for each in (first, second))
    stack = torch.cat([a, b, a * a, b * b, a * b])
    stack = F.pad(stack, (WINDOW // 2,) * 4, mode="reflect")
    stack = F.conv2d(F.conv2d(stack, line[None, None, :, None]), line[None, None, None, :])
    mean_a, mean_b, aa, bb, ab = stack.chunk(5)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    covariance = ab - mean_a * mean_b
    variance = (aa - mean_a.square()).clamp(min=0) + (bb - mean_b.square()).clamp(min=0)
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    value = value / ((mean_a.square() + mean_b.square() + c1) * (variance + c2))
    return value.mean(dim=(0, 1))


def padded(picture: Float[Tensor, "h w c"], canvas: int) -> Float[Tensor, "canvas canvas c"]:
    """In the middle of a white square, as the networks see it."""
    height, width = picture.shape[:2]
    square = picture.new_ones(canvas, canvas, picture.shape[2])
    top, left = (canvas - height) // 2, (canvas - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _against(
    drawn: Tensor, judged: Judged, mask: Bool[Tensor, "h w"], lpips: LpipsOrNothing | None
) -> dict[str, float]:
    truth = judged.truth
    found: dict[str, float | None] = {
        "psnr": psnr(drawn, truth),
        "ssim": ssim(drawn, truth),
        "lpips": lpips(drawn, truth) if lpips is not None else None,
        "psnr_masked": masked_psnr(drawn, truth, mask),
    }
    if bool(mask.any()):
        if min(mask.shape) >= WINDOW:
            found["ssim_masked"] = float(ssim_map(drawn, truth)[mask].mean())
        if lpips is not None:
            inside = mask[..., None].to(drawn)
            found["lpips_masked"] = lpips(drawn * inside, truth * inside)
    return {key: value for key, value in found.items() if value is not None}


@torch.no_grad()
def row_of(judged: Judged, canvas: int, lpips: LpipsOrNothing | None = None) -> dict[str, float]:
    """All numbers of one view; what cannot be computed has no key. `INTERNAL` ones are for `averaged`.

    Args:
        judged: the view.
        canvas: side of the networks' square, for the original's protocol.
        lpips: kept from view to view; None leaves it out.
    """
    mask = judged.mask
    drawn = judged.drawn.clamp(0, 1)
    row = _against(drawn, judged, mask, lpips)
    row["coverage"] = float(mask.double().mean())
    # Holes' borders are blended with black: that is what copying the warp gives.
    row |= {f"copy_warp_{key}": value for key, value in _against(judged.warp, judged, mask, lpips).items()}
    row["mse"] = float((drawn - judged.truth).square().mean(dtype=torch.float64))
    squares = [padded(each, canvas) for each in (drawn, judged.truth, judged.warp)]
    ours, theirs = (2 * each - 1 for each in squares[:2])
    row["compat_mse"] = float((ours - theirs).square().mean(dtype=torch.float64))
    seen = squares[2]
    row["compat_masked_mse"] = float((ours * seen - theirs * seen).square().mean(dtype=torch.float64))
    if canvas >= WINDOW:
        row["compat_ssim"] = float(ssim_map(ours, theirs, span=2.0).mean())
        row["compat_masked_ssim"] = float(ssim_map(ours * seen, theirs * seen, span=2.0).mean())
    if lpips is not None:
        # The metric takes [0, 1] here: -1..1 times a mask, moved.
        pairs = {"compat_lpips": (squares[0], squares[1])}
        pairs["compat_masked_lpips"] = ((ours * seen + 1) / 2, (theirs * seen + 1) / 2)
        for key, (first, second) in pairs.items():
            value = lpips(first, second)
            if value is not None:
                row[key] = value
    return row


def decibel(mse: float, span: float = 1.0) -> float:
    """PSNR of a mean squared error; at most 100 dB for a span of 1."""
    return 10.0 * math.log10(span**2 / max(mse, SMALLEST_MSE))


def averaged(rows: Sequence[dict[str, Any]], with_deviation: bool = False) -> dict[str, float]:
    """Means over the rows that have a number (and ``KEY_std``), and the numbers of the whole set; ``count``.

    Args:
        rows: of `row_of`; values that are no numbers are left out.
        with_deviation: with standard deviations; 0 for a single row.
    """
    found: dict[str, float] = {"count": float(len(rows))}
    keys = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)} - set(INTERNAL))
    for key in keys:
        values = torch.tensor([row[key] for row in rows if key in row], dtype=torch.float64)
        found[key] = float(values.mean())
        if with_deviation:
            found[f"{key}_std"] = float(values.std()) if len(values) > 1 else 0.0
    sets = (("psnr_of_mean_mse", "mse", 1.0), ("compat_psnr", "compat_mse", 2.0),
            ("compat_masked_psnr", "compat_masked_mse", 2.0))  # fmt: skip
    for key, source, span in sets:
        values = [row[source] for row in rows if source in row]
        if values:
            found[key] = decibel(sum(values) / len(values), span)
    return found
