"""Rays through continuous pixel positions of nerfstudio cameras."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor


def pixel_rays(
    cameras: Cameras, views: Int64[Tensor, "n"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """World origins and unit directions of rays through pixel positions.

    Undistorted perspective cameras take a direct path (the same numbers as nerfstudio's, which builds three ray sets
    for pixel areas that surface methods do not use); all others go through `Cameras.generate_rays`.

    Args:
        cameras: [M] cameras, dataparser space.
        views: camera of each ray.
        pixels: continuous (x, y), (0, 0) being the outer corner of the top-left pixel.
    """
    pixels, views = pixels.to(cameras.device), views.to(cameras.device)
    distortion = cameras.distortion_params
    plain = bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())
    if plain and (distortion is None or not bool((distortion != 0).any())):
        x = (pixels[:, 0] - cameras.cx[views, 0]) / cameras.fx[views, 0]
        y = (pixels[:, 1] - cameras.cy[views, 0]) / cameras.fy[views, 0]
        c2w = cameras.camera_to_worlds[views]
        directions = x[:, None] * c2w[:, :, 0] - y[:, None] * c2w[:, :, 1] - c2w[:, :, 2]
        return c2w[:, :, 3], torch.nn.functional.normalize(directions, dim=-1)
    rays = cameras.generate_rays(camera_indices=views[:, None], coords=pixels.flip(-1))
    return rays.origins, rays.directions


def image_pixels(width: int, rows: range, offset: tuple[float, float]) -> Float[Tensor, "n 2"]:
    """Continuous positions (column + offset x, row + offset y) of some rows of an image, row-major."""
    y, x = torch.meshgrid(
        torch.arange(rows.start, rows.stop, dtype=torch.float32),
        torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([x + offset[0], y + offset[1]], dim=-1).reshape(-1, 2)
