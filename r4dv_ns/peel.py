"""Differentiable depth peeling: the K nearest points of each pixel, blended front to back (4K4D 3.3; spec r4dv 4.6).

Three backends behind one call, with one definition of a fragment: torch (any device, the reference), Triton (CUDA,
`r4dv_ns.peel_triton`) and gsplat (CUDA, an approximation for previews, `r4dv_ns.peel_gsplat`).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from core_ns.errors import is_importable
from r4dv_ns.peel_blend import Settings, blend
from r4dv_ns.peel_fragments import Window

__all__ = ["Backend", "Peeled", "peel"]

Backend = Literal["auto", "torch", "triton", "gsplat"]

EMPTY = 1e-8
"""Accumulations below this count as nothing when the depth is divided by them."""

log = logging.getLogger(__name__)


class Peeled(NamedTuple):
    """An image of points."""

    color: Float[Tensor, "h w c"]
    """Over the background."""
    accumulation: Float[Tensor, "h w"]
    """Sum of the weights, in [0, 1]."""
    depth: Float[Tensor, "h w"]
    """Weighted mean of camera-frame z, scene units; 0 where nothing is."""
    fragments: Int32[Tensor, "h w"]
    """Number of layers used."""


def peel(
    points_camera: Float[Tensor, "n 3"],
    radius: Float[Tensor, "n"],
    alpha: Float[Tensor, "n"],
    color: Float[Tensor, "n c"],
    *,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    height: int,
    width: int,
    layers: int | None = 15,
    near: float = 1e-4,
    min_radius: float = 0.75,
    background: Float[Tensor, "c"] | None = None,
    backend: Backend = "auto",
    max_fragment_bytes: int = 512 << 20,
) -> Peeled:
    """Render points as discs, keeping the `layers` nearest per pixel (4K4D 3.3; spec r4dv 4.6).

    A point at depth ``z > near`` is a disc of ``rho = fy r / z`` pixels around its projection. At a pixel's centre at
    distance ``d < rho`` its opacity is ``a = alpha (1 - d^2 / rho^2)``; front to back (equal depths: smaller row first)
    ``color = sum T a c + (1 - sum T a) background`` with ``T`` the product of ``1 - a`` of the layers before.
    Gradients flow to all four tensors and the background, not through the choice of layers. Half precision is computed
    in float32, whatever autocast says.

    Args:
        points_camera: OpenCV camera frame (x right, y down, z forward), scene units.
        radius: scene units; points with a radius of 0 or less do not show.
        alpha: opacities in [0, 1]; points below 1e-4 do not show.
        color: any number of channels, any range.
        fx, fy, cx, cy: pixels; the first pixel's centre is at (0.5, 0.5).
        height, width: pixels.
        layers: most fragments per pixel; None: all.
        near: smallest depth, above 0.
        min_radius: pixels. Smaller discs are drawn with this radius and their opacity times ``(rho / min_radius)^2``,
            so that the amount of light stays and no point falls between pixels. 0: the paper's formula.
        background: colour behind everything; None: black.
        backend: "auto" is Triton where it runs (CUDA) and torch elsewhere. "gsplat" is an approximation without
            a limit of layers: for previews only.
        max_fragment_bytes: the torch backend works on as many rows of the image at once as fit in this; the result
            does not depend on it.

    Raises:
        ValueError: shapes that do not fit one another, a size, number of layers or near depth that is not positive, or
            a backend that does not run here.
    """
    _check(points_camera, radius, alpha, color, background, height, width, layers, near, min_radius)
    dtype = torch.float64 if points_camera.dtype == torch.float64 else torch.float32
    points_camera, radius, alpha, color = (part.to(dtype) for part in (points_camera, radius, alpha, color))
    window = Window(float(fx), float(fy), float(cx), float(cy), height, width)
    settings = Settings(window, layers, near, min_radius, max_fragment_bytes)
    chosen = _choose(backend, points_camera.device)
    with torch.autocast(points_camera.device.type, enabled=False):
        blended = _backend(chosen)(points_camera, radius, alpha, color, settings)
        image = blended.color
        if background is not None:
            image = image + (1.0 - blended.accumulation)[:, None] * background.to(image)
        depth = blended.depth / blended.accumulation.clamp_min(EMPTY)
    shape = (height, width)
    return Peeled(
        image.reshape(height, width, color.shape[1]),
        blended.accumulation.reshape(shape),
        depth.reshape(shape),
        blended.fragments.reshape(shape),
    )


def _check(
    points_camera: Tensor,
    radius: Tensor,
    alpha: Tensor,
    color: Tensor,
    background: Tensor | None,
    height: int,
    width: int,
    layers: int | None,
    near: float,
    min_radius: float,
) -> None:
    """Raise ValueError for arguments that mean nothing."""
    count = len(points_camera)
    if points_camera.shape != (count, 3):
        raise ValueError(f"points_camera must be [N, 3], not {list(points_camera.shape)}")
    for name, part in (("radius", radius), ("alpha", alpha)):
        if part.shape != (count,):
            raise ValueError(f"{name} must be [{count}] like the points, not {list(part.shape)}")
    if color.ndim != 2 or len(color) != count:
        raise ValueError(f"color must be [{count}, channels] like the points, not {list(color.shape)}")
    if background is not None and background.shape != color.shape[1:]:
        raise ValueError(f"background must be [{color.shape[1]}] like the colours, not {list(background.shape)}")
    if height < 1 or width < 1 or (layers is not None and layers < 1):
        raise ValueError(f"height {height}, width {width} and layers {layers} must be positive")
    if not near > 0 or not min_radius >= 0:
        raise ValueError(f"near {near} must be above 0 and min_radius {min_radius} not negative")


def _choose(backend: Backend, device: torch.device) -> Literal["torch", "triton", "gsplat"]:
    """The backend that runs."""
    if backend == "torch":
        return "torch"
    if backend == "auto":
        if device.type != "cuda":
            return "torch"
        if is_importable("triton"):
            return "triton"
        _say_once("Points are rendered with plain torch operations: the package triton, which is faster, is absent.")
        return "torch"
    if backend == "triton":
        if not is_importable("triton"):
            raise ValueError("backend 'triton' needs the package triton; use 'auto' or 'torch'")
        from r4dv_ns.peel_triton import can_run

        if not can_run(device):
            raise ValueError(f"Triton kernels do not run on {device.type}; use backend 'auto' or 'torch'")
        return "triton"
    if backend == "gsplat":
        if device.type != "cuda" or not is_importable("gsplat"):
            raise ValueError("backend 'gsplat' needs a CUDA device and the package gsplat; use 'auto' or 'torch'")
        return "gsplat"
    raise ValueError(f"unknown backend {backend!r}: auto, torch, triton or gsplat")


def _backend(name: Literal["torch", "triton", "gsplat"]):
    """Its function from tensors and settings to sums."""
    if name == "triton":
        from r4dv_ns import peel_triton

        return peel_triton.blend
    if name == "gsplat":
        from r4dv_ns import peel_gsplat

        return peel_gsplat.blend
    return blend


@cache
def _say_once(text: str) -> None:
    """Log a line the first time."""
    log.info(text)
