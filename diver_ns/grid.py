"""The cube of voxels: world coordinates to grid coordinates and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """``resolution`` voxels per axis on a cube in the dataparser's world (spec diver, symbols).

    Grid coordinates are ``u = (p - center + side / 2) * resolution / side``, in [0, resolution]^3 inside the cube,
    order x, y, z. Arrays over voxels or vertices are indexed [z, y, x].
    """

    resolution: int
    side: float = 2.8
    """World units."""
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """World position of the cube's middle."""

    @property
    def voxel_size(self) -> float:
        """World units."""
        return self.side / self.resolution

    @property
    def vertex_count(self) -> int:
        """Corners of all voxels, ``(resolution + 1)^3``."""
        return (self.resolution + 1) ** 3

    def to_grid(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"]
    ) -> tuple[Float[Tensor, "r 3"], Float[Tensor, "r 3"]]:
        """World rays in grid coordinates: origin, and change of ``u`` per world unit of distance.

        Distances along a ray keep their world unit: ``u(t) = origin_u + t * direction_u`` for unit directions.
        """
        return self.points_to_grid(origins), directions * (self.resolution / self.side)

    def points_to_grid(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """World points in grid coordinates."""
        low = torch.tensor(self.center, dtype=points.dtype, device=points.device) - self.side / 2
        return (points - low) * (self.resolution / self.side)

    def points_to_world(self, points_u: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Grid points in world coordinates."""
        low = torch.tensor(self.center, dtype=points_u.dtype, device=points_u.device) - self.side / 2
        return points_u * (self.side / self.resolution) + low

    def at(self, resolution: int) -> Grid:
        """The same cube with another number of voxels."""
        return Grid(resolution, self.side, self.center)
