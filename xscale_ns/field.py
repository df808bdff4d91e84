"""The learned function of XScale-NVS: colour of a surface point seen from a direction."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xscale_ns.hash_grid import make_hash_grid
from xscale_ns.shading import FilmSirenHead, SphericalHarmonicsHead, ViewCodes
from xscale_ns.surface import unit_cube


class SurfaceField(nn.Module):
    """Hash features of surface points, averaged over a pixel's sub-samples, shaded for the view direction.

    Source: XScale-NVS (CVPR 2024), section 3; spec xscale 3.3, 3.4.

    Args:
        lower, upper: bounding box of the mesh, dataparser space.
        num_views: training views, for their exposure codes.
    """

    def __init__(
        self,
        lower: Float[Tensor, "3"],
        upper: Float[Tensor, "3"],
        num_views: int,
        *,
        levels: int,
        features: int,
        log2_table: int,
        base_resolution: int,
        finest_resolution: int | None,
        per_level_scale: float | None,
        interpolation: Literal["smoothstep", "linear"],
        normalization: Literal["isotropic", "per-axis"],
        head: Literal["sh-mlp", "film"],
        exposure_dim: int,
        light_dim: int,
        num_lights: int,
        linear_output: bool,
        encoding_backend: Literal["auto", "torch", "tinycudann"],
    ) -> None:
        super().__init__()
        self.register_buffer("lower", lower.clone(), persistent=True)
        self.register_buffer("upper", upper.clone(), persistent=True)
        self.lower: Tensor
        self.upper: Tensor
        self.normalization: Literal["isotropic", "per-axis"] = normalization
        self.grid = make_hash_grid(
            levels,
            features,
            log2_table,
            base_resolution,
            finest_resolution,
            per_level_scale=per_level_scale,
            interpolation=interpolation,
            backend=encoding_backend,
        )
        if head == "film":
            self.head = FilmSirenHead(self.grid.output_dim, light_dim=light_dim, exposure_dim=exposure_dim)
        else:
            self.head = SphericalHarmonicsHead(self.grid.output_dim, exposure_dim, linear_output=linear_output)
        self.exposure = ViewCodes(num_views, exposure_dim) if exposure_dim else None
        self.lighting = ViewCodes(num_lights, light_dim) if head == "film" else None

    def features(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """Hash features of points in dataparser space."""
        return self.grid(unit_cube(points, self.lower, self.upper, self.normalization))

    def codes(
        self, views: Int64[Tensor, "n"] | None, exposure: Float[Tensor, "e"] | None = None, light: int = 0
    ) -> dict[str, Tensor]:
        """Code tables and row indices for the head: of training views, a given code, or the mean (spec xscale 3.5)."""
        result: dict[str, Tensor] = {}
        if self.exposure is not None:
            if views is not None:
                result["exposure"], result["exposure_index"] = self.exposure.table(), views
            else:
                result["exposure"] = self.exposure.mean() if exposure is None else exposure
        if self.lighting is not None:
            result["lighting"] = self.lighting.table()[light]
        return result

    def forward(
        self,
        features: Float[Tensor, "n d"],
        directions: Float[Tensor, "n 3"],
        codes: dict[str, Tensor],
    ) -> Float[Tensor, "n 3"]:
        """Display colour, sRGB."""
        return self.head(features, directions, **codes)


def mean_over_hits(values: Float[Tensor, "h d"], hit: Float[Tensor, "n s"]) -> Float[Tensor, "n d"]:
    """Mean over each pixel's sub-samples that hit the surface; zero for pixels without a hit.

    Misses hold no point, so they must not enter the mean (spec xscale 7, defect 4).

    Args:
        values: one row per hit sub-sample, in row-major order of ``hit``.
        hit: bool [N, S].
    """
    if hit.shape[1] == 1 and bool(hit.all()):
        return values
    pixel = hit.nonzero()[:, 0]
    total = torch.zeros(len(hit), values.shape[1], dtype=values.dtype, device=values.device)
    total = total.index_add(0, pixel, values)
    return total / hit.sum(dim=1, keepdim=True).clamp_min(1)
