"""LPIPS as a training loss where its weights are on this machine, structural similarity where they are not.

Never a download, never a network module inside a checkpoint (spec r4dv 4.7, acceptance A29).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from core_ns.metrics import SSIM_WINDOW, backbone_problem

VGG_SMALLEST_SIDE = 32
"""Four poolings and 3x3 windows need this much of an image."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]


class PerceptualTerm:
    """``1e-3 * term(rendered, photo)``: LPIPS with VGG16, or 1 - SSIM after one warning (spec r4dv 4.7).

    Holds no parameters and is not a module: a model may keep it as an attribute. Building costs nothing; the network is
    looked for at the first call, so a run whose weight is zero needs neither the file nor the import.
    """

    _warned = False

    def __init__(self) -> None:
        self._network: torch.nn.Module | None = None
        self._tried = False

    @property
    def name(self) -> str:
        """Which term is in use: "lpips", or "ssim" (also before the first call)."""
        return "ssim" if self._network is None else "lpips"

    def __call__(self, pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> Float[Tensor, ""]:
        """Distance of two images in [0, 1], lower is better; differentiable in both.

        Images with a side below 32 pixels use SSIM, below 11 pixels the term is zero.
        """
        if not self._tried:
            self._tried = True
            self._network = self._build()
        if self._network is None or min(truth.shape[:2]) < VGG_SMALLEST_SIDE:
            return ssim_loss(pred, truth)
        network = self._network.to(truth.device)
        images = (image.permute(2, 0, 1)[None].float().clamp(0.0, 1.0) for image in (pred, truth))
        return network(*images, normalize=True).mean()

    @classmethod
    def _build(cls) -> torch.nn.Module | None:
        try:
            problem = backbone_problem("vgg16")
            if problem is None:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True).net
        except Exception as error:  # an optional term must never end a training run
            problem = f"{type(error).__name__}: {error}"
        if not PerceptualTerm._warned:
            PerceptualTerm._warned = True
            logger.warning("The perceptual loss falls back from LPIPS to SSIM: %s", problem)
        return None


def ssim_loss(pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> Float[Tensor, ""]:
    """``1 - SSIM`` (Wang et al. 2004, 11 pixel Gaussian window of sigma 1.5, mirrored borders, peak 1), differentiable.

    The number is one minus `core_ns.metrics.ssim`. Zero below 11 pixels a side.
    """
    if min(truth.shape[:2]) < SSIM_WINDOW:
        return (pred * 0.0).sum()
    x, y = (image.permute(2, 0, 1).to(pred) for image in (pred, truth))
    mean_x, square_x, product = _Blur.apply(torch.cat([x, x * x, x * y])).chunk(3)  # pyright: ignore
    mean_y, square_y = _Blur.apply(torch.cat([y, y * y])).chunk(2)  # pyright: ignore
    mean_xx, mean_yy, mean_xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    # Rounding can make a variance slightly negative.
    variances = (square_x - mean_xx).clamp_min(0.0) + (square_y - mean_yy).clamp_min(0.0)
    similarity = (2.0 * mean_xy + _C1) * (2.0 * (product - mean_xy) + _C2)
    return 1.0 - (similarity / ((mean_xx + mean_yy + _C1) * (variances + _C2))).mean()


class _Blur(torch.autograd.Function):
    """Gaussian window over [c, h, w], rows then columns, mirrored at the borders.

    A sum of shifted images: torch's convolution of single channels spends over 300 ms on a 200 x 300 photo.
    """

    @staticmethod
    def forward(ctx, planes):  # pyright: ignore[reportIncompatibleMethodOverride]
        reach = SSIM_WINDOW // 2
        padded = F.pad(planes, (reach, reach, reach, reach), mode="reflect")
        return _shifted_sum(_shifted_sum(padded, 1), 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        reach = SSIM_WINDOW // 2
        # The window is symmetric: its adjoint is the same sum over the zero-padded gradient, then the mirrored
        # borders are folded back.
        grad = F.pad(grad, (2 * reach,) * 4)
        return _fold(_fold(_shifted_sum(_shifted_sum(grad, 1), 2), 1), 2)


def _shifted_sum(planes: Tensor, dim: int) -> Tensor:
    taps, size = _taps(), planes.shape[dim] - SSIM_WINDOW + 1
    out = planes.narrow(dim, 0, size) * taps[0]
    for offset, tap in enumerate(taps[1:], start=1):
        out.add_(planes.narrow(dim, offset, size), alpha=tap)
    return out


def _fold(padded: Tensor, dim: int) -> Tensor:
    """Adjoint of mirroring ``reach`` pixels at both ends."""
    reach = SSIM_WINDOW // 2
    size = padded.shape[dim] - 2 * reach
    out = padded.narrow(dim, reach, size).clone()
    out.narrow(dim, 1, reach).add_(padded.narrow(dim, 0, reach).flip(dim))
    out.narrow(dim, size - 1 - reach, reach).add_(padded.narrow(dim, size + reach, reach).flip(dim))
    return out


@cache
def _taps() -> tuple[float, ...]:
    reach = SSIM_WINDOW // 2
    raw = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / _SIGMA).square())
    return tuple((raw / raw.sum()).tolist())
