"""What training minimises (spec r4dv 4.7); weights are the caller's. Plane regularisers are in `planes`, LPIPS in
`perceptual`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from r4dv_ns.perceptual import PerceptualTerm, ssim_loss
from r4dv_ns.planes import temporal_smoothness, total_variation

__all__ = [
    "PerceptualTerm",
    "entropy",
    "huber",
    "residual_size",
    "sh_size",
    "soft_iou",
    "ssim_loss",
    "temporal_smoothness",
    "total_variation",
]


def huber(
    pred: Float[Tensor, "*s"],
    truth: Float[Tensor, "*s"],
    delta: float = 1.0,
    weight: Float[Tensor, "*w"] | None = None,
) -> Float[Tensor, ""]:
    """Mean Huber loss: ``d^2 / 2`` up to ``delta``, then linear; half the mean squared error for colours in [0, 1].

    Args:
        weight: not negative, broadcast against the difference (valid pixels); the mean is then weighted, and zero where
            all weights are.
    """
    size = (pred - truth).abs()
    inner = size.clamp(max=delta)
    loss = inner * (size - 0.5 * inner)
    if weight is None:
        return loss.mean()
    weight = weight.to(loss).expand_as(loss)
    return (loss * weight).sum() / weight.sum().clamp_min(torch.finfo(loss.dtype).tiny)


def soft_iou(
    accumulation: Float[Tensor, "*s"],
    mask: Float[Tensor, "*s"],
    detach_union: bool = False,
    weight: Float[Tensor, "*s"] | None = None,
) -> Float[Tensor, ""]:
    """``1 - sum M m / sum (M + m - M m)``: zero when the rendered silhouette is the mask (spec r4dv 4.7).

    Args:
        accumulation: M in [0, 1].
        mask: m in [0, 1]; soft values are meant.
        detach_union: the original's: no gradient through the denominator, so that nothing ever shrinks M outside m.
        weight: pixels that count (valid ones); zero elsewhere.

    Zero where both silhouettes are empty.
    """
    both = accumulation * mask
    union = accumulation + mask - both
    if weight is not None:
        both, union = both * weight, union * weight
    shared, covered = both.sum(), union.sum()
    if detach_union:
        covered = covered.detach()
    # An empty union is a perfect match; a union below epsilon must not blow its gradient up.
    small = torch.finfo(covered.dtype).eps
    return torch.where(covered > small, 1.0 - shared / covered.clamp_min(small), covered - shared)


def residual_size(displacement: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Mean squared length of the motion residual, world units squared."""
    return displacement.square().sum(dim=-1).mean()


def sh_size(residual: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Mean square of the view-dependent colour: what can be explained by the photos should be."""
    return residual.square().mean()


def entropy(alpha: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean binary entropy of opacities, in nats: pushes points to be solid or absent.

    Finite value and gradient at 0 and 1.
    """
    alpha = alpha.clamp(1e-6, 1.0 - 1e-6)
    return -(alpha * alpha.log() + (1.0 - alpha) * (1.0 - alpha).log()).mean()
