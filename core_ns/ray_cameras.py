"""From image-shaped rays back to the pinhole camera that cast them: for methods that draw whole images."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle


def pinhole_from_rays(rays: RayBundle) -> Cameras:
    """The camera [1] through whose pixel centres the rays [H, W] go, row by row.

    ``ns-export tsdf`` and mesh texturing hand a model rays where it wants a camera. Exact for undistorted perspective
    cameras (principal point and unequal focal lengths included).

    Args:
        rays: at least 2 x 2, all from one origin, ``metadata["directions_norm"]`` as nerfstudio fills it. Rays of other
            cameras, for instance fisheye ones, are found out by their directions.

    Raises:
        ValueError: fewer than 2 x 2 rays, or rays that are not those of one pinhole camera.
    """
    if len(rays.shape) != 2 or min(rays.shape) < 2:
        raise ValueError(f"expected rays [H, W] of at least 2 x 2 pixels, got {tuple(rays.shape)}")
    # In float64: differences of neighbouring directions are a thousandth of their length.
    directions = (rays.directions * rays.metadata["directions_norm"]).double()
    height, width = directions.shape[:2]
    right = (directions[0, -1] - directions[0, 0]) / (width - 1)
    down = (directions[-1, 0] - directions[0, 0]) / (height - 1)
    rows = torch.arange(height, device=down.device)[:, None, None]
    columns = torch.arange(width, device=down.device)[None, :, None]
    expected = directions[0, 0] + columns * right + rows * down
    spread = float((rays.origins - rays.origins[0, 0]).abs().max())
    if float((expected - directions).abs().max()) > 1e-3 * float(right.norm()) * width or spread > 1e-4:
        raise ValueError("the rays are not those of one pinhole camera")
    fx, fy = 1 / right.norm(), 1 / down.norm()
    x, y = right * fx, -down * fy
    axes = torch.stack([x, y, torch.linalg.cross(x, y)], dim=1)
    corner = directions[0, 0]
    cx, cy = 0.5 - (corner @ x) * fx, 0.5 + (corner @ y) * fy
    c2w = torch.cat([axes.float(), rays.origins[0, 0].float()[:, None]], dim=1)
    times = None if rays.times is None else rays.times.reshape(-1)[:1, None]
    numbers = [value.float().reshape(1, 1) for value in (fx, fy, cx, cy)]
    return Cameras(c2w[None], *numbers, width=torch.tensor([[width]]), height=torch.tensor([[height]]), times=times).to(
        rays.origins.device
    )
