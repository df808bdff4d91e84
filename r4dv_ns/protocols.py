"""What a held-out picture is worth, by the protocols of the field (spec r4dv 8.4, 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from core_ns.metrics import LpipsOrNothing, image_metrics

KEPT = ("psnr", "ssim", "lpips", "psnr_masked", "ssim_masked", "lpips_masked")
"""Of `core_ns.metrics.image_metrics`; its other numbers are about surfaces that miss pixels."""


def picture_metrics(
    rgb: Float[Tensor, "h w 3"],
    truth: Float[Tensor, "h w 3"],
    inside: Bool[Tensor, "h w"] | None,
    box: tuple[int, int, int, int] | None,
    lpips: LpipsOrNothing | None = None,
    upstream_ssim: bool = False,
) -> dict[str, float]:
    """Metrics of the whole picture, inside the mask, and inside the subject's projected box.

    Args:
        rgb: in [0, 1], over the same background as the truth.
        truth: the photo, outside its mask replaced by the background.
        inside: the mask; None where there is none.
        box: x, y, width, height in pixels of the projected bounds: the paper's protocol; None leaves ``_bbox`` out.
        lpips: kept from picture to picture; None leaves LPIPS out.
        upstream_ssim: also ``ssim_upstream``, scikit-image's with a data range of 2, as the original's numbers are.

    Returns:
        ``psnr``, ``ssim``, ``lpips``, each also with ``_masked`` and ``_bbox``; what cannot be computed has no key.
    """
    found = image_metrics(rgb, truth, inside, lpips)
    metrics = {name: found[name] for name in KEPT if name in found}
    if box is not None and min(box[2:]) > 0:
        x, y, width, height = box
        rows, columns = slice(y, y + height), slice(x, x + width)
        cut = image_metrics(rgb[rows, columns], truth[rows, columns], None, lpips)
        metrics |= {f"{name}_bbox": value for name, value in cut.items()}
    if upstream_ssim:
        from skimage.metrics import structural_similarity

        one, other = (image.cpu().double().numpy() for image in (rgb, truth))
        value: Any = structural_similarity(one, other, channel_axis=-1, data_range=2.0)
        metrics["ssim_upstream"] = float(value)
    return metrics


def protocol(
    views: Sequence[str],
    held_out: Iterable[int],
    source_views: Iterable[int],
    photos: Iterable[tuple[int, str, list[str]]],
) -> dict[str, Any]:
    """What ``ns-eval`` writes beside its numbers, so that no reader has to guess what they are numbers of.

    Args:
        views: names of the cameras; the other arguments count in them.
        held_out: cameras that no training has seen.
        source_views: cameras whose photos give points their colours.
        photos: of each judged photo its camera, the name of its frame, and the cameras that coloured its picture.
    """
    return {
        "held_out": [views[view] for view in held_out],
        "source_views": [views[view] for view in source_views],
        "photos": [{"view": views[view], "frame": frame, "sources": sources} for view, frame, sources in photos],
    }
