"""A furnished room for generated clips: walls and boxes with patterns, seen by a camera that walks about.

World z is up, metres; the room is 4 x 4 x 2.6 around the origin of its floor. The camera stays in the middle, which
the boxes along the walls leave free, so one path serves every room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from core_ns.demo_scenes import look_at
from core_ns.demo_textures import Noise
from core_ns.frames import c2w_opengl_from_w2c_opencv
from core_ns.raycast import make_caster

Array = np.ndarray

HALF, HEIGHT = 2.0, 2.6
FREE = 0.9
"""Half side of the square of floor without boxes."""
BOXES = 9
_SAMPLES = 2
"""Per pixel and axis."""
_WAVES = 3
_TILE = 7.0
"""Metres after which the patterns repeat."""


def room_path(frames: int, seed: int, number: int) -> Float[Array, "f 4 4"]:
    """Cameras (OpenGL camera to world) of a walk within the free floor: place and gaze swing smoothly."""
    rng = np.random.default_rng([seed, number, 3])
    time = np.linspace(0.0, np.pi, frames)

    def swing(middle: float, reach: float) -> Float[Array, "f"]:
        waves = np.arange(1, _WAVES + 1)[:, None]
        sizes, phases = rng.uniform(0.3, 1.0, (_WAVES, 1)), rng.uniform(0, 2 * np.pi, (_WAVES, 1))
        curve = (sizes / waves * np.sin(waves * time + phases)).sum(axis=0)
        return middle + reach * curve / max(float(np.abs(curve).max()), 1e-9)

    turn = rng.uniform(0, 2 * np.pi)
    east, north, up = swing(0.0, 0.6), swing(0.0, 0.6), swing(1.3, 0.3)
    gaze, tilt = swing(turn, 0.35), swing(-0.05, 0.12)
    eyes = np.stack([east, north, up], axis=1)
    forward = np.stack([np.cos(gaze) * np.cos(tilt), np.sin(gaze) * np.cos(tilt), np.sin(tilt)], axis=1)
    return np.stack(
        [c2w_opengl_from_w2c_opencv(look_at(eye, eye + way)) for eye, way in zip(eyes, forward, strict=True)]
    )


class Room:
    """One room; the same numbers give the same one."""

    FOV = 70.0
    """Field of view of its cameras, degrees."""

    def __init__(self, seed: int, number: int) -> None:
        """Furnish it."""
        rng = np.random.default_rng([seed, number, 2])
        blocks = [_block((-HALF, -HALF, 0.0), (HALF, HALF, HEIGHT))]
        for _ in range(BOXES):
            blocks.append(_block(*_furniture(rng)))
        vertices = np.concatenate(blocks)
        faces = np.concatenate([_BLOCK_FACES + 8 * k for k in range(len(blocks))])
        device = torch.device("cpu")
        self._caster = make_caster(torch.from_numpy(vertices).float(), torch.from_numpy(faces), device)
        sides = len(faces) // 2
        colours = rng.uniform(0.25, 0.8, (sides, 1)) + rng.uniform(-0.2, 0.2, (sides, 3))
        self._colours = torch.from_numpy(colours).float()
        self._offset = torch.from_numpy(rng.uniform(0, _TILE, 3)).float()

    def pictures(self, path: Float[Array, "f 4 4"], size: int) -> Iterator[UInt8[Array, "s s 3"]]:
        """Square frames of a path, display sRGB."""
        for pose in path:
            yield self.picture(pose, size)

    def picture(self, c2w: Float[Array, "4 4"], size: int) -> UInt8[Array, "s s 3"]:
        """What a camera sees: the mean of four samples per pixel."""
        rotation = torch.from_numpy(c2w[:3, :3]).float()
        directions = _rays(size * _SAMPLES, self.FOV) @ rotation.T
        origins = torch.from_numpy(c2w[:3, 3]).float().expand_as(directions).contiguous()
        hits = self._caster.cast(origins, directions)
        points = origins + hits.t[:, None] * directions
        colours = self._shade(points, hits.face)
        mean = colours.reshape(size, _SAMPLES, size, _SAMPLES, 3).mean(dim=(1, 3))
        return (mean.clamp(0, 1) * 255.0).round().byte().numpy()

    def _shade(self, points: Float[Tensor, "n 3"], face: Int[Tensor, "n"]) -> Float[Tensor, "n 3"]:
        pattern = _noise()(points + self._offset, _TILE)
        return self._colours[face // 2] + pattern @ _TINTS


# Mostly brightness, a little colour.
_TINTS = 0.05 * torch.eye(3) + torch.tensor([[0.09], [0.0], [0.0]])


@cache
def _rays(count: int, fov: float) -> Float[Tensor, "n 3"]:
    """Unit directions through a square's pixels, row by row, in the OpenGL camera frame."""
    half = math.tan(math.radians(fov / 2))
    places = ((torch.arange(count) + 0.5) / count * 2 - 1) * half
    down, right = torch.meshgrid(places, places, indexing="ij")
    rays = torch.stack([right, -down, -torch.ones_like(right)], dim=-1).reshape(-1, 3)
    return torch.nn.functional.normalize(rays, dim=-1)


@cache
def _noise() -> Noise:
    return Noise(0)


def _furniture(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Lower and upper corner of a box that stands along a wall, or hangs on it."""
    wide, deep, high = rng.uniform(0.4, 1.2), rng.uniform(0.2, HALF - FREE - 0.1), rng.uniform(0.3, 1.6)
    along, bottom = rng.uniform(-HALF, HALF - wide), 0.0 if rng.random() < 0.7 else rng.uniform(0.2, HEIGHT - high)
    side, flip = rng.integers(2), rng.integers(2)
    near = HALF - deep if flip else -HALF
    low, high_corner = [along, near], [along + wide, near + deep]
    if side:
        low, high_corner = low[::-1], high_corner[::-1]
    return (low[0], low[1], bottom), (high_corner[0], high_corner[1], bottom + high)


def _block(low: tuple[float, float, float], high: tuple[float, float, float]) -> Float[Array, "8 3"]:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    return np.array(low) + corners * (np.array(high) - np.array(low))


_SIDES = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
_BLOCK_FACES = np.array([tri for a, b, c, d in _SIDES for tri in ((a, b, c), (a, c, d))], np.int64)
