"""Image quality on the full frame, on the hit pixels only, and after upstream's white-background protocol.

Images are ``[H, W, 3]`` float tensors in [0, 1], display sRGB. torchmetrics costs two seconds to import, so everything
heavy is imported at the first use.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALLEST_MSE = 1e-10
"""Floor of the mean squared error, so identical images score 100 dB and no infinity reaches a mean or a JSON file."""
SSIM_WINDOW = 11
LPIPS_SMALLEST_SIDE = 32
"""AlexNet's two strided poolings leave nothing of a smaller image."""

logger = logging.getLogger(__name__)


def _psnr_from_mse(mse: Tensor) -> float:
    value = float(mse)
    return -10.0 * math.log10(max(value, SMALLEST_MSE)) if not math.isnan(value) else math.nan


def psnr(pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; at most 100 (see `SMALLEST_MSE`)."""
    return _psnr_from_mse((pred - truth).square().mean(dtype=torch.float64))


def masked_psnr(pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> float | None:
    """PSNR in dB over the pixels where ``mask`` is true; None when there are none."""
    if not bool(mask.any()):
        return None
    return _psnr_from_mse((pred[mask] - truth[mask]).square().mean(dtype=torch.float64))


def ssim(pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> float | None:
    """Structural similarity, averaged over all pixels and channels; None when an image side is below 11 pixels.

    Wang et al. 2004 with an 11 pixel Gaussian window (sigma 1.5) and mirrored borders: the same number as nerfstudio's
    own models report, so that columns of one table compare.
    """
    if min(truth.shape[0], truth.shape[1]) < SSIM_WINDOW:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(_batch(pred), _batch(truth), data_range=1.0)
    return float(value)  # pyright: ignore[reportArgumentType]  # a tuple only when the full map is asked for


def fill_misses(
    image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], fill: Float[Tensor, "h w 3"] | float
) -> Float[Tensor, "h w 3"]:
    """The image with the pixels outside ``mask`` replaced by another image's, or by one grey value."""
    other = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
    return torch.where(mask[..., None], image, other)


def _batch(image: Float[Tensor, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    return image.permute(2, 0, 1)[None].contiguous()


class LpipsOrNothing:
    """LPIPS (Zhang et al. 2018, AlexNet) if its weights are already on this machine, otherwise None; never a download.

    Built at the first call, so that training needs neither the weights nor the import. Not an ``nn.Module``: a model
    may hold one as an attribute and its checkpoints stay free of the backbone (spec nerfstudio 4.4). What is missing
    is logged once per process, and a failed construction is not tried again.
    """

    _warned = False

    def __init__(self) -> None:
        self._metric: torch.nn.Module | None = None
        self._tried = False

    def __call__(self, pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> float | None:
        """LPIPS distance (lower is better) of images in [0, 1]; None without weights or below 32 pixels a side."""
        if min(truth.shape[0], truth.shape[1]) < LPIPS_SMALLEST_SIDE:
            return None
        if not self._tried:
            self._tried = True
            self._metric = self._build()
        if self._metric is None:
            return None
        with torch.no_grad():
            metric = self._metric.to(truth.device)
            value = float(metric(_batch(pred.float()).clamp(0, 1), _batch(truth.float()).clamp(0, 1)))
            metric.reset()  # pyright: ignore[reportCallIssue]  # the metric would otherwise sum over all images
        return value

    @classmethod
    def _build(cls) -> torch.nn.Module | None:
        try:
            problem = backbone_problem()
            if problem is None:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()
        except Exception as error:  # an optional number must never end a training run
            problem = f"{type(error).__name__}: {error}"
        if not LpipsOrNothing._warned:
            LpipsOrNothing._warned = True
            logger.warning("LPIPS is left out of the metrics: %s", problem)
        return None


def backbone_problem(network: Literal["alexnet", "vgg16"] = "alexnet") -> str | None:
    """Why an LPIPS backbone cannot be used from torch.hub's cache; None when it can. Touches no network.

    Args:
        network: torchvision's name; AlexNet is the metric's, VGG16 the one usual in losses.

    The file is the one torchvision would load. Its name ends in the first digits of its SHA-256; a file with another
    hash is not the published backbone and would give wrong numbers. It must also open without unpickling objects,
    because torch.hub itself loads with ``weights_only=False``.
    """
    from torchvision.models import get_model_weights

    url = get_model_weights(network)["DEFAULT"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        return f"the {network} weights are not in {path.parent} (put {url} there to have it)"
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        return f"{path} is not the published file (SHA-256 {digest[:8]}..., expected {expected}...); delete it"
    torch.load(path, map_location="cpu", weights_only=True)
    return None


def _similarities(
    pred: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"], lpips: LpipsOrNothing | None, suffix: str
) -> dict[str, float]:
    values = {"ssim": ssim(pred, truth), "lpips": lpips(pred, truth) if lpips is not None else None}
    return {key + suffix: value for key, value in values.items() if value is not None}


@torch.no_grad()
def image_metrics(
    rgb: Float[Tensor, "h w 3"],
    truth: Float[Tensor, "h w 3"],
    hit_mask: Bool[Tensor, "h w"] | None = None,
    lpips: LpipsOrNothing | None = None,
) -> dict[str, float]:
    """All image metrics of one evaluation view (spec xscale 5).

    Args:
        rgb: rendered image; clamped to [0, 1] as a display would.
        truth: the photo, on the same device.
        hit_mask: true where the renderer met geometry; None when it has no such notion.
        lpips: kept by the caller from view to view; None leaves LPIPS out.

    Returns:
        ``psnr``, ``ssim``, ``lpips`` on the full frame. With a mask also ``coverage`` (share of hit pixels);
        ``psnr_masked`` over hit pixels, ``ssim_masked`` and ``lpips_masked`` with the misses replaced by the truth (all
        three absent when nothing is hit); ``psnr_misses`` over the other pixels (absent when there are none);
        ``psnr_white`` and ``ssim_white`` with the misses of both images painted white, which is the original's
        protocol and flatters by 10 log10(1/coverage) dB. A value that cannot be computed (image smaller than the SSIM
        window, no LPIPS weights) has no key; no value is infinite.

    Raises:
        ValueError: the shapes differ or are not images.
    """
    if rgb.shape != truth.shape or rgb.ndim != 3 or rgb.shape[-1] != 3:
        raise ValueError(f"expected two [H, W, 3] images, got {tuple(rgb.shape)} and {tuple(truth.shape)}")
    rgb = rgb.clamp(0.0, 1.0)
    metrics = {"psnr": psnr(rgb, truth), **_similarities(rgb, truth, lpips, "")}
    if hit_mask is None:
        return metrics
    hit_mask = hit_mask.reshape(hit_mask.shape[:2]).bool() if hit_mask.ndim == 3 else hit_mask.bool()
    if hit_mask.shape != truth.shape[:2]:
        raise ValueError(f"the mask is {tuple(hit_mask.shape)}, the images are {tuple(truth.shape[:2])}")
    metrics["coverage"] = float(hit_mask.double().mean())
    masked = masked_psnr(rgb, truth, hit_mask)
    if masked is not None:
        metrics["psnr_masked"] = masked
        metrics |= _similarities(fill_misses(rgb, hit_mask, truth), truth, lpips, "_masked")
    misses = masked_psnr(rgb, truth, ~hit_mask)
    if misses is not None:
        metrics["psnr_misses"] = misses
    white_rgb, white_truth = fill_misses(rgb, hit_mask, 1.0), fill_misses(truth, hit_mask, 1.0)
    metrics["psnr_white"] = psnr(white_rgb, white_truth)
    metrics |= _similarities(white_rgb, white_truth, None, "_white")
    return metrics
