"""What nerfstudio shows of a view: pictures of the size that was asked for (spec megascenes 8.3, item 5)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from megascenes_ns.warp import Warp

Array = np.ndarray
OUTPUTS = ("rgb", "warp", "coverage", "depth", "reference", "accumulation")
"""Names, always all of them."""


def resized(
    picture: Float[Tensor, "h w c"], height: int, width: int, smooth: bool = True
) -> Float[Tensor, "height width c"]:
    """Resize without changing the range; ``smooth`` False takes the nearest pixel, for depth with holes."""
    if picture.shape[:2] == (height, width):
        return picture
    planes = picture.permute(2, 0, 1)[None]
    if smooth:
        found = interpolate(planes, (height, width), mode="bilinear", align_corners=False, antialias=True)
    else:
        found = interpolate(planes, (height, width), mode="nearest-exact")
    return found[0].permute(1, 2, 0).contiguous()


def fitted(picture: Float[Tensor, "h w c"], height: int, width: int) -> Float[Tensor, "height width c"]:
    """A picture of another aspect in the middle, black beside it."""
    factor = min(height / picture.shape[0], width / picture.shape[1])
    rows, columns = max(1, round(picture.shape[0] * factor)), max(1, round(picture.shape[1] * factor))
    rows, columns = min(rows, height), min(columns, width)
    made = picture.new_zeros(height, width, picture.shape[2])
    top, left = (height - rows) // 2, (width - columns) // 2
    made[top : top + rows, left : left + columns] = resized(picture, rows, columns)
    return made


def outputs_of(
    picture: UInt8[Array, "h w 3"] | None,
    warp: Warp,
    reference: UInt8[Array, "h2 w2 3"],
    unit: float,
    height: int,
    width: int,
    device: torch.device,
) -> dict[str, Float[Tensor, "height width c"]]:
    """The outputs of one view, float32.

    Args:
        picture: what was sampled; None: the warp stands in for it.
        warp: on the canvas.
        reference: the reference's pixels.
        unit: length of the warp's depth unit in the world.
        height, width: asked for.
        device: of the result.

    Returns:
        ``rgb``, ``warp``, ``reference`` [H, W, 3] in [0, 1]; ``coverage`` [H, W, 1] in [0, 1], the share of a pixel
        that the reference sees; ``depth`` [H, W, 1], z of what the warp shows in the world's unit, 0 in holes;
        ``accumulation`` [H, W, 1], 1 where there is depth.
    """

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    warped = resized(tensor(warp.rgb), height, width).clamp(0, 1)
    depth = resized(tensor(warp.depth)[..., None], height, width, smooth=False) * unit
    rgb = warped if picture is None else resized(tensor(picture) / 255, height, width).clamp(0, 1)
    return {
        "rgb": rgb,
        "warp": warped,
        "coverage": resized(tensor(warp.coverage)[..., None], height, width).clamp(0, 1),
        "depth": depth,
        "reference": fitted(tensor(reference) / 255, height, width).clamp(0, 1),
        "accumulation": (depth > 0).float(),
    }


def blank(height: int, width: int, device: torch.device) -> dict[str, Float[Tensor, "height width c"]]:
    """Black outputs: for a browser whose reference cannot be opened, since an error would end its render thread."""
    channels = {name: 3 if name in ("rgb", "warp", "reference") else 1 for name in OUTPUTS}
    return {name: torch.zeros(height, width, count, device=device) for name, count in channels.items()}


def rgba(outputs: dict[str, Tensor], name: str = "rgb") -> Float[Tensor, "h w 4"]:
    """An output for ``ns-render ... rgba``: pictures are opaque, warps transparent where nothing is seen."""
    colour = outputs[name]
    colour = colour.expand(*colour.shape[:2], 3)
    alpha = outputs["coverage"] if name == "warp" else torch.ones_like(colour[..., :1])
    return torch.cat([colour, alpha], dim=-1)
