"""Square pictures in frames of any shape: scaled evenly, centred, black beside (spec xfactor 8.3: never stretched)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def placed(height: int, width: int, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Where a ``height x width`` picture goes in ``rows x columns`` pixels: top, left, height, width; at least one."""
    scale = min(rows / height, columns / width)
    tall, wide = min(max(round(height * scale), 1), rows), min(max(round(width * scale), 1), columns)
    return (rows - tall) // 2, (columns - wide) // 2, tall, wide


def fit(picture: Float[Tensor, "h w 3"], rows: int, columns: int) -> Float[Tensor, "rows columns 3"]:
    """The picture as large as it fits, in the middle; bilinear, with area averages where it shrinks."""
    top, left, tall, wide = placed(picture.shape[0], picture.shape[1], rows, columns)
    if (tall, wide) != tuple(picture.shape[:2]):
        planes = picture.permute(2, 0, 1)[None]
        planes = functional.interpolate(planes, (tall, wide), mode="bilinear", align_corners=False, antialias=True)
        picture = planes[0].permute(1, 2, 0)
    framed = picture.new_zeros(rows, columns, 3)
    framed[top : top + tall, left : left + wide] = picture
    return framed


def inside(height: int, width: int, rows: int, columns: int, device: torch.device) -> Float[Tensor, "rows columns 1"]:
    """1 where `fit` puts the picture, 0 beside it."""
    top, left, tall, wide = placed(height, width, rows, columns)
    covered = torch.zeros(rows, columns, 1, device=device)
    covered[top : top + tall, left : left + wide] = 1.0
    return covered


def tiled(pictures: Sequence[Float[Tensor, "h w 3"]], rows: int, columns: int) -> Float[Tensor, "height width 3"]:
    """Equal pictures side by side, in as many lines as show them largest in a ``rows x columns`` frame; black gaps."""
    height, width = pictures[0].shape[:2]
    count = len(pictures)

    def worth(across: int) -> tuple[float, int, int]:
        down = math.ceil(count / across)
        return min(rows / (height * down), columns / (width * across)), -across * down, across

    across = max(range(1, count + 1), key=worth)
    down = math.ceil(count / across)
    sheet = pictures[0].new_zeros(down * height, across * width, 3)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, across)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return sheet
