"""The frozen surface: first hits of rays on the mesh, and its normalisation to the hash grid's cube.

Source: XScale-NVS (Wang et al., CVPR 2024), section 3 (hash featurized manifold); spec xscale 1, 3.1, 3.2, 3.7.
Everything is in dataparser space (nerfstudio's camera world).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from core_ns.raycast import CasterName, RayCaster, face_normals, make_caster


class SurfaceHits(NamedTuple):
    """First intersections of N rays; rows of misses hold zeros, except ``t`` = +inf and ``face`` = -1."""

    hit: Bool[Tensor, "n"]
    t: Float[Tensor, "n"]
    face: Int64[Tensor, "n"]
    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]


def unit_cube(
    points: Float[Tensor, "n 3"],
    lower: Float[Tensor, "3"],
    upper: Float[Tensor, "3"],
    normalization: Literal["isotropic", "per-axis"] = "isotropic",
) -> Float[Tensor, "n 3"]:
    """Map the mesh's bounding box into [0, 1]^3, the hash grid's domain (spec xscale 3.2).

    ``isotropic`` divides by the longest side, so grid cells are cubes; ``per-axis`` stretches every side to 1 as the
    original does. Both keep the box's centre at 0.5.
    """
    extent = upper - lower + 1e-6
    if normalization == "isotropic":
        extent = extent.max().expand(3)
    return (points - (lower + upper) / 2) / extent + 0.5


@dataclass
class Surface:
    """A triangle mesh in dataparser space with its ray caster.

    Attributes:
        vertices: float32 [V, 3]; faces: int64 [F, 3].
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int64[Tensor, "f 3"]
    device: torch.device
    caster_name: CasterName = "auto"

    def __post_init__(self) -> None:
        self.vertices = self.vertices.to(self.device, torch.float32)
        self.faces = self.faces.to(self.device, torch.int64)
        self.lower = self.vertices.amin(dim=0)
        self.upper = self.vertices.amax(dim=0)
        self.normals = face_normals(self.vertices, self.faces)
        self.caster: RayCaster = make_caster(self.vertices, self.faces, self.device, self.caster_name)

    @property
    def extent(self) -> float:
        """Longest side of the bounding box, scene units."""
        return float((self.upper - self.lower).max())

    @torch.no_grad()
    def first_hits(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> SurfaceHits:
        """Cast N rays with unit directions; both sides of a face count. Normals are turned towards the ray's origin."""
        hits = self.caster.cast(origins, directions)
        return self.locate(origins, directions, hits.hit, hits.t, hits.face)

    def locate(
        self,
        origins: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        hit: Bool[Tensor, "n"],
        t: Float[Tensor, "n"],
        face: Int64[Tensor, "n"],
    ) -> SurfaceHits:
        """Points and normals of casts whose distances are known."""
        points = torch.where(hit[:, None], origins + directions * torch.where(hit, t, 0.0)[:, None], 0.0)
        normals = self.normals[face.clamp_min(0)]
        facing = torch.where((normals * directions).sum(-1, keepdim=True) > 0, -normals, normals)
        return SurfaceHits(hit, t, face, points, torch.where(hit[:, None], facing, 0.0))

    def first_hits_inside(
        self,
        origins: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        inside_box,
        max_layers: int = 8,
    ) -> SurfaceHits:
        """First hits that lie inside a crop box, casting again behind each hit outside it.

        Args:
            inside_box: function of points [N, 3] to bool [N] (nerfstudio's ``OrientedBox.within``).
            max_layers: how many surfaces in front of the box are looked through.
        """
        result = self.first_hits(origins, directions)
        start = torch.zeros_like(result.t)
        # A hit must not find itself again; the step is small against any cell of the grid.
        step = 1e-5 * self.extent
        for layer in range(max_layers + 1):
            outside = result.hit & ~inside_box(result.points).reshape(-1)
            if not outside.any():
                break
            keep = ~outside
            if layer == max_layers:
                again = SurfaceHits(
                    hit=torch.zeros_like(result.hit),
                    t=torch.full_like(result.t, torch.inf),
                    face=torch.full_like(result.face, -1),
                    points=torch.zeros_like(result.points),
                    normals=torch.zeros_like(result.normals),
                )
            else:
                start = torch.where(outside, result.t + step, start)
                again = self.first_hits(origins + directions * start[:, None], directions)
                again = again._replace(t=again.t + start)
            merged = []
            for old, new in zip(result, again, strict=True):
                mask = keep if old.ndim == 1 else keep[:, None]
                merged.append(torch.where(mask, old, new))
            result = SurfaceHits(*merged)
        return result


def footprint(t: Float[Tensor, "n"], cosine: Float[Tensor, "n"], focal: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Size of a pixel on the surface, t / (f max(cos, 0.2)), scene units (spec xscale 3.7)."""
    return t / (focal * cosine.clamp_min(0.2))


def auto_finest_resolution(extent: float, footprints: Float[Tensor, "n"], highest: int = 2**17) -> int:
    """Finest grid resolution at which a cell is one pixel wide on the median training hit, within [512, highest].

    Raises:
        ValueError: no training ray hits the mesh.
    """
    if footprints.numel() == 0:
        raise ValueError("no training ray hits the mesh")
    return int(min(max(round(extent / float(footprints.median())), 512), highest))
