"""The furnished room that the generated sequences can be set in: walls with posters, planks, cupboards along the walls.

All of it is axis-aligned boxes with closed formulas for paint, so that every ray's hit is exact and cheap. The cameras
stand inside, the subject in the middle; nothing stands between them. World z is up, the floor is z = 0, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core_ns.demo_textures import Noise, dot

HALF, HEIGHT = 3.9, 3.3
"""Half side of the square floor, and the ceiling."""
FLOOR, CEILING, WALL, FURNITURE = range(4)
"""Kinds of surfaces; pieces of furniture count on from the last."""

_BOXES = torch.tensor(
    [  # smallest and largest corner of each piece
        [[3.3, -1.9, 0.0], [3.9, -0.5, 1.9]],
        [[3.4, 0.9, 0.0], [3.9, 2.5, 0.8]],
        [[-3.9, -0.8, 0.0], [-3.35, 0.7, 1.3]],
        [[-3.9, 1.7, 0.0], [-3.3, 2.6, 2.3]],
        [[-1.4, 3.3, 0.0], [0.5, 3.9, 1.05]],
        [[1.6, 3.4, 0.0], [2.7, 3.9, 2.1]],
        [[-2.6, -3.9, 0.0], [-1.2, -3.35, 1.6]],
        [[0.4, -3.9, 0.0], [2.2, -3.4, 0.75]],
    ]
)
_PAINTS = torch.tensor(
    [[0.55, 0.20, 0.12], [0.10, 0.30, 0.42], [0.62, 0.45, 0.12], [0.16, 0.34, 0.16],
     [0.40, 0.14, 0.32], [0.20, 0.20, 0.24], [0.66, 0.34, 0.20], [0.12, 0.40, 0.38]]
)  # fmt: skip
_WALLPAPER = torch.tensor([[0.62, 0.52, 0.36], [0.36, 0.50, 0.58], [0.55, 0.36, 0.34], [0.40, 0.54, 0.38]])
_PLANKS = torch.tensor([[0.46, 0.30, 0.17], [0.36, 0.22, 0.12], [0.52, 0.36, 0.22]])
_AMBIENT = torch.tensor([0.62, 0.62, 0.64])


class Struck(NamedTuple):
    """Where rays meet the room."""

    t: Float[Tensor, "n"]
    """Distance in lengths of the direction."""
    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    """Unit, into the room."""
    item: Int[Tensor, "n"]
    """`FLOOR`, `CEILING`, `WALL`, or `FURNITURE` plus the number of the piece."""


def strike(origins: Float[Tensor, "n 3"], dirs: Float[Tensor, "n 3"]) -> Struck:
    """First hits of rays that start inside the room; directions of any length.

    Every ray hits: the room is closed.
    """
    steep = torch.where(dirs.abs() < 1e-9, torch.full_like(dirs, 1e-9), dirs)
    low, high = torch.tensor([-HALF, -HALF, 0.0]), torch.tensor([HALF, HALF, HEIGHT])
    away = (torch.where(steep > 0, high, low) - origins) / steep
    t, axis = away.min(dim=1)
    item = torch.where(axis < 2, WALL, torch.where(dirs[:, 2] < 0, FLOOR, CEILING))
    for number, (near, far) in enumerate(_BOXES):
        one, other = (near - origins) / steep, (far - origins) / steep
        enter, face = torch.minimum(one, other).max(dim=1)
        leave = torch.maximum(one, other).amin(dim=1)
        nearer = (enter > 0) & (enter <= leave) & (enter < t)
        t, axis = torch.where(nearer, enter, t), torch.where(nearer, face, axis)
        item = torch.where(nearer, FURNITURE + number, item)
    normals = torch.zeros_like(dirs).scatter_(1, axis[:, None], -dirs.gather(1, axis[:, None]).sign())
    return Struck(t, origins + t[:, None] * dirs, normals, item)


def paint(struck: Struck, noise: Noise) -> Float[Tensor, "n 3"]:
    """Linear albedo of hits."""
    points, item = struck.points, struck.item
    colour = torch.full_like(points, 0.72)
    colour += 0.03 * noise(points, 2.5)[:, :1]  # plaster of the ceiling
    for kind, painter in ((FLOOR, _planks), (WALL, _wall)):
        mine = (item == kind).nonzero()[:, 0]
        if len(mine):
            colour[mine] = painter(points[mine], struck.normals[mine], noise)
    mine = (item >= FURNITURE).nonzero()[:, 0]
    if len(mine):
        colour[mine] = _cupboard(points[mine], struck.normals[mine], item[mine] - FURNITURE, noise)
    return colour.clamp(0.02, 0.95)


def _planks(points: Tensor, normals: Tensor, noise: Noise) -> Tensor:
    """Boards of 0.24 m along x, their ends shifted from row to row; dark joints."""
    row = torch.floor(points[:, 1] / 0.24)
    along = points[:, 0] / 1.3 + 0.37 * row
    board = torch.remainder(row * 7 + torch.floor(along) * 3, 3).long()
    grain = noise(points * torch.tensor([0.25, 1.0, 1.0]), 1.6)[:, :1]
    joint = (torch.frac(points[:, 1] / 0.24).abs() < 0.045) | (torch.frac(along).abs() < 0.012)
    return _PLANKS[board] * (1 + 0.16 * grain) * torch.where(joint, 0.45, 1.0)[:, None]


def _wall(points: Tensor, normals: Tensor, noise: Noise) -> Tensor:
    """Another wallpaper on every wall, dark panels below one metre, a row of posters above."""
    wide = normals[:, 0].abs() > 0.5
    along = torch.where(wide, points[:, 1], points[:, 0])
    number = (2 * wide.long() + (normals.sum(dim=1) > 0).long()) % 4
    paper = _WALLPAPER[number] * (1 + 0.22 * torch.sign(torch.sin(along * 13.0)))[:, None]
    paper = paper * (1 + 0.10 * noise(points, 1.7)[:, :1])
    cell, inside = torch.floor(along / 1.05), torch.frac(along / 1.05 + 20)
    height = points[:, 2]
    poster = ((inside - 0.5).abs() < 0.36) & ((height - 1.75).abs() < 0.42)
    frame = poster & (((inside - 0.5).abs() > 0.325) | ((height - 1.75).abs() > 0.385))
    offset = torch.stack([cell * 0.37, number.float() * 0.71, cell * 0.13], dim=1)
    print_ = (0.45 + 0.30 * noise(points + offset, 3.4)).clamp(0.03, 0.95)
    paper = torch.where(poster[:, None], print_, paper)
    paper = torch.where(frame[:, None], torch.tensor([0.10, 0.08, 0.06]), paper)
    panel = torch.tensor([0.30, 0.21, 0.14]) * (1 + 0.20 * noise(points, 0.9)[:, :1])
    panel = panel * torch.where(torch.frac(along / 0.33 + 20) < 0.06, 0.5, 1.0)[:, None]
    return torch.where((height < 0.95)[:, None], panel, paper)


def _cupboard(points: Tensor, normals: Tensor, number: Tensor, noise: Noise) -> Tensor:
    """Doors with light edges, and a grain."""
    low, high = _BOXES[number].unbind(1)
    inside = (points - low) / (high - low)
    edge = ((inside - 0.5).abs() > 0.46) & (normals.abs() < 0.5)
    # On a face one share is 0 or 1 up to rounding, which must not choose the colour: other cameras round differently.
    door = torch.remainder(torch.floor(inside.clamp(1e-3, 0.999) * torch.tensor([3.0, 3.0, 2.0])).sum(dim=1), 2)
    colour = _PAINTS[number] * (0.75 + 0.5 * door)[:, None] * (1 + 0.14 * noise(points, 1.1)[:, :1])
    return torch.where(edge.any(dim=1)[:, None], 1.5 * _PAINTS[number] + 0.12, colour)


def lit_room(
    origins: Float[Tensor, "n 3"],
    dirs: Float[Tensor, "n 3"],
    lamp: Float[Tensor, "n 3"],
    lamp_colour: Float[Tensor, "3"],
    noise: Noise,
    sunlit: Callable[[Tensor, Tensor], Float[Tensor, "n 1"]],
) -> Float[Tensor, "n 3"]:
    """Linear light of rays from inside the room.

    Args:
        lamp: unit directions to each ray's point on the lamp.
        lamp_colour: its light.
        sunlit: (points, lamp) to 1 where nothing keeps the lamp's light away: the subject throws its shadow.
    """
    struck = strike(origins, dirs)
    facing = dot(struck.normals, lamp).clamp(min=0)
    light = torch.zeros_like(facing)
    index = (facing[:, 0] > 0).nonzero()[:, 0]
    light[index] = sunlit(struck.points[index] + 1e-3 * struck.normals[index], lamp[index])
    # Corners are darker: the open share of the hemisphere falls towards every other surface of the box.
    room = torch.tensor([HALF, HALF, HEIGHT / 2])
    middle = torch.tensor([0.0, 0.0, HEIGHT / 2])
    gap = (room - (struck.points - middle).abs()).clamp(min=0)
    gap = torch.where(struck.normals.abs() > 0.5, 9.0, gap)
    corner = 1 - 0.4 * torch.exp(-gap.amin(dim=1, keepdim=True) / 0.35)
    return paint(struck, noise) * (_AMBIENT * corner + 0.42 * lamp_colour * facing * light)
