"""One camera's mask, prepared so that voxels, and whole blocks of voxels, are looked up quickly (spec r4dv 3.1).

A point is *seen* when it lies in front of the camera, inside the photo and on a pixel with data; it is *hit* when it
is seen and the mask, interpolated bilinearly between pixel centres (border repeated), exceeds one half there. Where the
four pixels around a point agree, which is nearly everywhere, no interpolation is needed. A block of voxels projects
into a rectangle, and a summed-area table of the mask tells whether all of it is hit, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, UInt8
from torch import Tensor

_SLACK = 0.01
"""Pixels added around a block's rectangle: more than float32 can be wrong by in an image of 2^14 pixels."""
_MIXED = 2


def sat(flags: Bool[Tensor, "h w"]) -> Int32[Tensor, "h1 w1"]:
    """Summed-area table: entry (r, c) counts the flags above row r and left of column c."""
    table = torch.zeros(flags.shape[0] + 1, flags.shape[1] + 1, dtype=torch.int32, device=flags.device)
    table[1:, 1:] = flags.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    return table


def sat_sum(table: Int32[Tensor, "h1 w1"], x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor) -> Int32[Tensor, "n"]:
    """Flags in columns x0 ... x1 - 1 and rows y0 ... y1 - 1; all four int64 and inside the table."""
    width, flat = table.shape[1], table.reshape(-1)
    y0, y1 = y0 * width, y1 * width
    return flat[y1 + x1] - flat[y0 + x1] - flat[y1 + x0] + flat[y0 + x0]


@dataclass(frozen=True)
class Placed:
    """A silhouette together with the map from voxel coordinates to its pixels."""

    silhouette: Silhouette
    matrix: Float[Tensor, "3 4"]
    """Homogeneous voxel coordinates (voxel i covers i to i + 1) to (u z, v z, z), pixels of the photo."""
    near: float

    def points(self, at: Float[Tensor, "n 3"]) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"]]:
        """Whether each point, in voxel coordinates, is seen, and whether it is hit."""
        s = self.silhouette
        uvz = torch.addmm(self.matrix[:, 3], at, self.matrix[:, :3].T)
        z = uvz[:, 2]
        ahead = z > self.near
        z = torch.where(ahead, z, 1.0)
        u, v = uvz[:, 0] / z, uvz[:, 1] / z
        seen = ahead & (u >= 0) & (u < s.width) & (v >= 0) & (v < s.height)
        if s.valid is not None:
            column, row = u.clamp(0, s.width - 1).long(), v.clamp(0, s.height - 1).long()
            seen &= s.valid.reshape(-1)[row * s.width + column]
        # Cell c of a row lies between the centres of texels c - 1 and c of the crop.
        x, y = u - (s.left - 0.5), v - (s.top - 0.5)
        rows, columns = s.cells.shape
        column, row = x.clamp(0, columns - 1).long(), y.clamp(0, rows - 1).long()
        cell = s.cells.reshape(-1)[row * columns + column]
        hit = seen & (cell == 1)
        mixed = ((cell == _MIXED) & seen).nonzero()[:, 0]
        if len(mixed):
            hit[mixed] = self._interpolated(x[mixed], y[mixed], column[mixed], row[mixed]) > 127.5
        return seen, hit

    def _interpolated(self, x: Tensor, y: Tensor, column: Tensor, row: Tensor) -> Float[Tensor, "n"]:
        """The mask (0 to 255) in cell (row, column) of the crop, bilinear."""
        texels = self.silhouette.texels
        width, flat = texels.shape[1], texels.reshape(-1)
        first = row * width + column
        fx, fy = x - column, y - row
        upper = flat[first] * (1 - fx) + flat[first + 1] * fx
        lower = flat[first + width] * (1 - fx) + flat[first + width + 1] * fx
        return upper * (1 - fy) + lower * fy

    def blocks(
        self, centre: Float[Tensor, "n 3"], half: float
    ) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"], Bool[Tensor, "n"], Bool[Tensor, "n"]]:
        """What holds for every point of axis-aligned cubes: (none is seen, all are seen, all are hit, none is hit).

        Never wrong, not always certain: with a the row of the matrix that gives u z, b the one that gives z, and d at
        most ``half`` along each axis, |u(x + d) - u(x)| = |(a - u b) d| / |z + b d| is bounded by the sums of absolute
        values.
        """
        s, m = self.silhouette, self.matrix
        uvz = torch.addmm(m[:, 3], centre, m[:, :3].T)
        z = uvz[:, 2]
        reach = half * float(m[2, :3].abs().sum())
        ahead = z - reach > self.near
        unseen = z + reach <= self.near
        z = torch.where(ahead, z, 1.0 + reach)
        u, v = uvz[:, 0] / z, uvz[:, 1] / z
        nearest = half / (z - reach)
        ru = ((m[0, :3] - u[:, None] * m[2, :3]).abs().sum(1)) * nearest + _SLACK
        rv = ((m[1, :3] - v[:, None] * m[2, :3]).abs().sum(1)) * nearest + _SLACK
        u0, u1, v0, v1 = u - ru, u + ru, v - rv, v + rv
        unseen |= ahead & ((u1 < 0) | (u0 > s.width) | (v1 < 0) | (v0 > s.height))
        seen = ahead & (u0 >= 0) & (u1 <= s.width) & (v0 >= 0) & (v1 <= s.height)
        if s.invalid is not None:
            seen &= (
                sat_sum(
                    s.invalid,
                    u0.clamp(0, s.width - 1).long(),
                    u1.clamp(0, s.width - 1).long() + 1,
                    v0.clamp(0, s.height - 1).long(),
                    v1.clamp(0, s.height - 1).long() + 1,
                )
                == 0
            )
        # First and last texel that interpolation can touch; the border is repeated.
        c0 = (u0 - 0.5).floor().clamp(0, s.width - 1).long()
        c1 = (u1 + 0.5).floor().clamp(0, s.width - 1).long() + 1
        r0 = (v0 - 0.5).floor().clamp(0, s.height - 1).long()
        r1 = (v1 + 0.5).floor().clamp(0, s.height - 1).long() + 1
        rows, columns = s.on.shape[0] - 1, s.on.shape[1] - 1
        count = sat_sum(
            s.on,
            (c0 - s.left).clamp(0, columns),
            (c1 - s.left).clamp(0, columns),
            (r0 - s.top).clamp(0, rows),
            (r1 - s.top).clamp(0, rows),
        )
        return unseen, seen, seen & (count == (c1 - c0) * (r1 - r0)), unseen | ahead & (count == 0)


@dataclass(frozen=True)
class Silhouette:
    """Look-up tables of one mask, of the rectangle around its foreground: the rest of the photo is background."""

    width: int
    height: int
    projection: Float[np.ndarray, "3 4"]
    """K [R | T], float64: homogeneous world coordinates to (u z, v z, z)."""
    left: int
    """First column of the crop; the tables below are the crop's."""
    top: int
    on: Int32[Tensor, "h1 w1"]
    """Summed-area table of texels above one half."""
    texels: Float[Tensor, "h2 w2"]
    """The mask, 0 to 255, its border repeated once."""
    cells: UInt8[Tensor, "h1 w1"]
    """Between four texels: 0 none is above one half, 1 all are, 2 interpolate."""
    valid: Bool[Tensor, "height width"] | None
    invalid: Int32[Tensor, "height1 width1"] | None
    """Summed-area table of pixels without data; None where all have data."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the mask is above one half."""
        return int(self.on[-1, -1]) == 0

    def placed(self, low: Float[np.ndarray, "3"], voxel: float, near: float) -> Placed:
        """The silhouette seen from voxels of side ``voxel`` whose first one has its lower corner at ``low`` (world)."""
        to_world = np.diag([voxel, voxel, voxel, 1.0])
        to_world[:3, 3] = low
        matrix = torch.from_numpy(self.projection @ to_world).float().to(self.on.device)
        return Placed(self, matrix, near)


def silhouette(
    mask: UInt8[np.ndarray, "h w"] | UInt8[Tensor, "h w"],
    K: Float[np.ndarray, "3 3"],
    w2c: Float[np.ndarray, "4 4"],
    valid: Bool[np.ndarray, "h w"] | Bool[Tensor, "h w"] | None = None,
    device: torch.device | str = "cpu",
) -> Silhouette:
    """Prepare one mask.

    Args:
        mask: 0 to 255, foreground above 127.
        K: pixels, last row 0 0 1.
        w2c: OpenCV world to camera.
        valid: pixels with data; None for all.

    Raises:
        ValueError: shapes that do not fit.
    """
    mask = torch.as_tensor(mask, device=device)
    if mask.ndim != 2 or mask.dtype != torch.uint8 or 0 in mask.shape:
        raise ValueError(f"a mask must be uint8 [h, w], got {mask.dtype} {tuple(mask.shape)}")
    height, width = mask.shape
    flags = mask > 127
    rows, columns = flags.any(1).nonzero()[:, 0], flags.any(0).nonzero()[:, 0]
    if len(rows):
        top, bottom = max(0, int(rows[0]) - 1), min(height, int(rows[-1]) + 2)
        left, right = max(0, int(columns[0]) - 1), min(width, int(columns[-1]) + 2)
    else:
        top, bottom, left, right = 0, 1, 0, 1
    crop = mask[top:bottom, left:right]
    texels = torch.nn.functional.pad(crop[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    on = (texels > 127.5).to(torch.uint8)
    corners = on[:-1, :-1] + on[1:, :-1] + on[:-1, 1:] + on[1:, 1:]
    cells = torch.where(corners == 4, 1, torch.where(corners == 0, 0, _MIXED)).to(torch.uint8)
    invalid = None
    if valid is not None:
        valid = torch.as_tensor(valid, device=device)
        if valid.shape != mask.shape or valid.dtype != torch.bool:
            raise ValueError(f"valid must be bool {tuple(mask.shape)}, got {valid.dtype} {tuple(valid.shape)}")
        valid = None if bool(valid.all()) else valid.contiguous()
        invalid = None if valid is None else sat(~valid)
    projection = np.asarray(K, dtype=np.float64) @ np.asarray(w2c, dtype=np.float64)[:3]
    return Silhouette(
        width, height, projection, left, top, sat(flags[top:bottom, left:right]), texels, cells, valid, invalid
    )
