"""Where the generated sequences are set: a lamp, a studio or a room with shadows, and a posed subject in it.

Colours are linear light until `display`. Every sub-sample of a pixel has its own point on the lamp, which makes the
edges of shadows soft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional

from core_ns.demo_textures import Noise, dot
from core_ns.raycast import Hits, RayCaster, interpolate, make_caster
from dataparsers.moving_figure import Part, Pose
from dataparsers.moving_room import lit_room

Background = Literal["studio", "black", "room"]

LIGHT = functional.normalize(torch.tensor([0.55, -0.42, 0.95]), dim=0)
LIGHT_WIDTH = 0.05
"""Tangent of the lamp's half angle."""
LIGHT_COLOUR = torch.tensor([2.35, 2.2, 2.0])
SKY = torch.tensor([0.62, 0.68, 0.80])
BOUNCE = torch.tensor([0.40, 0.36, 0.34])
HORIZON = torch.tensor([1.55, 1.52, 1.46])
ZENITH = torch.tensor([0.42, 0.62, 0.90])
FLOOR = torch.tensor([[0.72, 0.66, 0.58], [0.52, 0.47, 0.42]])


class Nothing:
    """What rays are cast against where there is no subject (see `core_ns.raycast.RayCaster`)."""

    name = "nothing"

    def cast(self, origins: Float32[Tensor, "n 3"], directions: Float32[Tensor, "n 3"]) -> Hits:
        """No hit."""
        count = len(origins)
        none = torch.zeros(count, dtype=torch.bool)
        return Hits(none, torch.full((count,), torch.inf), torch.full((count,), -1), torch.zeros(count, 2))


@dataclass(frozen=True, eq=False)
class PosedSubject:
    """A subject's mesh at one time: what rays are cast against, and per vertex or face what its paint needs."""

    parts: tuple[Part, ...]
    caster: RayCaster
    faces: Int[Tensor, "f 3"]
    owner: Int[Tensor, "f"]
    """Number of the part that a face belongs to."""
    rest: Float32[Tensor, "v 3"]
    normals: Float32[Tensor, "v 3"]
    """Unit, in the world."""
    noise: Noise

    @classmethod
    def at(cls, parts: tuple[Part, ...], pose: Pose, noise: Noise) -> PosedSubject:
        """Put every part where the pose has it."""
        starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
        faces = torch.from_numpy(np.concatenate([part.faces + starts[k] for k, part in enumerate(parts)]))
        normals = np.concatenate([part.normals @ pose[part.name][:3, :3].T for part in parts])
        vertices = torch.from_numpy(world_vertices(parts, pose)).float()
        return cls(
            parts=parts,
            caster=make_caster(vertices, faces, "cpu"),
            faces=faces,
            owner=torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part.faces) for part in parts])),
            rest=torch.from_numpy(np.concatenate([part.vertices for part in parts])).float(),
            normals=torch.from_numpy(normals).float(),
            noise=noise,
        )

    @classmethod
    def absent(cls, noise: Noise) -> PosedSubject:
        """Nobody there: for clean plates."""
        none = torch.zeros(0, 3)
        return cls((), Nothing(), none.int(), torch.zeros(0, dtype=torch.int64), none, none, noise)

    def shade(
        self,
        origins: Float32[Tensor, "n 3"],
        dirs: Float32[Tensor, "n 3"],
        lamp: Float32[Tensor, "n 3"],
        background: Background,
    ) -> tuple[Float32[Tensor, "n 3"], Bool[Tensor, "n"]]:
        """What single rays see.

        Args:
            origins: world, metres.
            dirs: unit directions away from the camera.
            lamp: unit directions to each ray's point on the lamp (see `lamp_directions`).
            background: behind the subject.

        Returns:
            Display sRGB, and whether the subject is hit.
        """
        hits = self.caster.cast(origins, dirs)
        rgb = torch.zeros_like(dirs)
        index = hits.hit.nonzero()[:, 0]
        if len(index):
            seen = Hits._make(values[index] for values in hits)
            points = origins[index] + seen.t[:, None] * dirs[index]
            normals = functional.normalize(interpolate(seen, self.faces, self.normals), dim=-1)
            albedo, gloss = self._paint(seen)
            rgb[index] = self._lit(points, normals, dirs[index], lamp[index], albedo, gloss)
        index = (~hits.hit).nonzero()[:, 0]
        if background == "studio":
            rgb[index] = self._surroundings(origins[index], dirs[index], lamp[index])
        elif background == "room":
            behind = origins[index], dirs[index], lamp[index]
            rgb[index] = display(lit_room(*behind, LIGHT_COLOUR, self.noise, self._sunlit))
        return rgb, hits.hit

    def _paint(self, seen: Hits) -> tuple[Tensor, Tensor]:
        """Albedo [n, 3] and gloss [n, 1] of hits."""
        rest, owner = interpolate(seen, self.faces, self.rest), self.owner[seen.face]
        albedo, gloss = torch.empty_like(rest), torch.empty(len(rest), 1)
        for number, part in enumerate(self.parts):
            mine = (owner == number).nonzero()[:, 0]
            if len(mine):
                albedo[mine], gloss[mine] = part.paint(rest[mine], self.noise)
        return albedo, gloss

    def _sunlit(self, points: Tensor, lamp: Tensor) -> Float[Tensor, "n 1"]:
        """1 where nothing stands between a point and its point on the lamp."""
        if not len(points):
            return torch.ones(0, 1)
        return (~self.caster.cast(points.contiguous(), lamp.contiguous()).hit).float()[:, None]

    def _lit(
        self, points: Tensor, normals: Tensor, dirs: Tensor, lamp: Tensor, albedo: Tensor, gloss: Tensor
    ) -> Tensor:
        """Lamp with cast shadow, light from above, bounce from the floor, and a Blinn-Phong highlight."""
        facing = dot(normals, lamp)
        lit = (facing > 0).float()
        index = (facing[:, 0] > 0).nonzero()[:, 0]
        # Lifted off the surface: the shading normal leaves the facets by a little.
        lit[index] = self._sunlit(points[index] + 3e-3 * normals[index], lamp[index])
        up = 0.5 + 0.5 * normals[:, 2:]
        closeness = 1 - 0.45 * torch.exp(-points[:, 2:].clamp(min=0) / 0.12) * (1 - up)
        ambient = (SKY * up + BOUNCE * (1 - up)) * closeness
        half = functional.normalize(lamp - dirs, dim=-1)
        shine = gloss * lit * 0.45 * dot(normals, half).clamp(min=0) ** 40
        rim = 0.12 * gloss * (1 + dot(normals, dirs)).clamp(0, 1) ** 3
        return display(albedo * (ambient + LIGHT_COLOUR * facing.clamp(min=0) * lit) + (shine + rim) * LIGHT_COLOUR)

    def _surroundings(self, origins: Tensor, dirs: Tensor, lamp: Tensor) -> Tensor:
        """A tiled floor with the subject's shadow, which fades into a plain backdrop."""
        linear = HORIZON + (ZENITH - HORIZON) * dirs[:, 2:].clamp(0, 1).sqrt()
        distance = -origins[:, 2] / dirs[:, 2].clamp(max=-1e-6)
        points = origins + distance[:, None] * dirs
        radius = points[:, :2].norm(dim=1)
        index = ((dirs[:, 2] < 0) & (radius < 4.0)).nonzero()[:, 0]
        points, radius, lamp = points[index], radius[index], lamp[index]
        tile = torch.floor(radius / 0.3) + torch.floor(torch.atan2(points[:, 1], points[:, 0]) / (torch.pi / 12))
        floor = FLOOR[torch.remainder(tile, 2).long()] * (1 + 0.08 * self.noise(points, 2.0)[:, :1])
        near = radius < 2.6
        lit = torch.ones(len(points), 1)
        lit[near] = self._sunlit(points[near], lamp[near])
        light = SKY + LIGHT_COLOUR * lit * lamp[:, 2:]
        fade = ((radius - 1.5) / 2.3).clamp(0, 1)[:, None]
        linear[index] = torch.lerp(0.62 * floor * light, linear[index], fade * fade * (3 - 2 * fade))
        return display(linear)


def world_vertices(parts: tuple[Part, ...], pose: Pose) -> Float[np.ndarray, "v 3"]:
    """Vertices of all parts in the world, metres, float64."""
    return np.concatenate([part.vertices @ pose[part.name][:3, :3].T + pose[part.name][:3, 3] for part in parts])


def lamp_directions(supersample: int) -> Float[Tensor, "n 3"]:
    """Unit directions to supersample^2 points of the square lamp, in an order unlike that of a pixel's samples."""
    count = supersample**2
    order = torch.arange(count) * 5 % count if count % 5 else torch.arange(count)
    offset = (torch.stack([order // supersample, order % supersample], dim=-1) + 0.5) * 2 / supersample - 1
    across = functional.normalize(torch.linalg.cross(LIGHT, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    along = torch.linalg.cross(LIGHT, across)
    return functional.normalize(LIGHT + LIGHT_WIDTH * (offset[:, :1] * across + offset[:, 1:] * along), dim=-1)


def display(linear: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Linear light to display sRGB in [0, 1] with a soft shoulder."""
    x = linear.clamp(min=0)
    return (x * (1 + x / 6) / (1 + x)).clamp(0, 1) ** (1 / 2.2)
