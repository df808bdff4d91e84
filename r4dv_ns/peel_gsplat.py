"""Preview of a point cloud with gsplat's Gaussians: close to depth peeling, not equal to it (spec r4dv 6.1).

A disc whose opacity falls as ``1 - d^2 / rho^2`` becomes an isotropic Gaussian of `SCALE` times its radius. For an
opaque surface of overlapping discs that is about 30 dB from the exact image. Gaussians have no limit of layers, and no
rim. Use it for looking, never for measuring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r4dv_ns.peel_blend import Blended, Settings
from r4dv_ns.peel_fragments import MIN_ALPHA

SCALE = 0.46
"""Standard deviation over radius. 0.5 preserves the light of one disc; overlapping opaque discs look best a little
smaller (spec r4dv 6.1)."""


def blend(points_camera: Tensor, radius: Tensor, alpha: Tensor, color: Tensor, settings: Settings) -> Blended:
    """Render Gaussians in place of discs, with the same sub-pixel rule; arguments as `r4dv_ns.peel_blend.blend`.

    Differentiable as far as gsplat is. ``layers`` and ``max_fragment_bytes`` have no effect; the numbers of fragments
    are zero, since gsplat does not count.
    """
    from gsplat import rasterization

    window, least = settings.window, settings.min_radius
    depth = points_camera[:, 2]
    shows = ((depth > settings.near) & (alpha >= MIN_ALPHA) & (radius > 0)).nonzero().squeeze(1)
    inputs = (points_camera, radius, alpha, color)
    points, radius, alpha, color = (part.index_select(0, shows).float() for part in inputs)
    area = window.height * window.width
    count = torch.zeros(area, dtype=torch.int32, device=points.device)
    if not len(points):
        return Blended(color.new_zeros(area, color.shape[1]), color.new_zeros(area), color.new_zeros(area), count)
    depth = points[:, 2]
    if least > 0:
        rho = window.fy * radius / depth
        alpha = alpha * (rho / least).square().clamp_max(1.0)
        radius = torch.where(rho < least, least * depth / window.fy, radius)
    quaternions = points.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4).contiguous()
    intrinsics = points.new_tensor([[window.fx, 0, window.cx], [0, window.fy, window.cy], [0, 0, 1]])
    image, accumulation, _ = rasterization(
        points,
        quaternions,
        (SCALE * radius)[:, None].expand(-1, 3).contiguous(),
        alpha,
        torch.cat([color, depth[:, None]], dim=1),
        torch.eye(4, device=points.device)[None],
        intrinsics[None],
        window.width,
        window.height,
        near_plane=settings.near,
        eps2d=0.0,
        packed=False,
    )
    flat = image.reshape(area, -1).to(points_camera.dtype)
    return Blended(flat[:, :-1], accumulation.reshape(-1).to(flat), flat[:, -1], count)
