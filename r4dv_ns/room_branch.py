"""The points behind the subject: one cloud for all frames, reaching as far as the photos see (spec r4dv 4.9)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from r4dv_ns.branch import PointBranch
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.point_state import PointState
from r4dv_ns.points import MOST_QUERIES

RADIUS_MAX = 0.1
"""Metres, for a subject in a box of 2 m diagonal (spec r4dv 4.9)."""
INNER = 0.8
"""Share of the planes' half width for the box that holds most points; what is beyond is drawn together in the rest."""
MOST = (0.05, 0.95)
"""Quantiles of the coordinates that this box spans."""
AROUND = 4
"""Neighbours of a point of a surface."""
CLOSED = 1.25
"""Radii at the start over the distance to that many neighbours."""


def inner_box(cloud: Float[Tensor, "n 3"]) -> Float[Tensor, "2 3"]:
    """The box that holds most of a cloud; no side is shorter than a hundredth of the longest."""
    low, high = np.quantile(cloud.double().cpu().numpy(), MOST, axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    half = np.maximum(half, max(float(half.max()) / 100, 1e-6))
    return torch.from_numpy(np.stack([middle - half, middle + half])).to(cloud)


def outward(x: Float[Tensor, "n 3"], box: Float[Tensor, "2 3"]) -> Float[Tensor, "n"]:
    """How many times farther from the middle of the box than its surface a point lies, at least 1 (largest of axes)."""
    low, high = box.to(x).unbind(0)
    return ((x - (low + high) / 2) / ((high - low) / 2)).abs().amax(dim=1).clamp_min(1.0)


def contract(x: Float[Tensor, "n 3"], box: Float[Tensor, "2 3"]) -> Float[Tensor, "n 3"]:
    """All of space to [-1, 1]^3: the box linearly to [-`INNER`, `INNER`]^3, what is beyond by ``1 - (1 - INNER) / s``
    with ``s`` of `outward` (as mip-NeRF 360 contracts scenes, but box-shaped)."""
    low, high = box.to(x).unbind(0)
    scaled = (x - (low + high) / 2) / ((high - low) / 2)
    far = scaled.abs().amax(dim=1, keepdim=True).clamp_min(1.0)
    return scaled / far * (1.0 - (1.0 - INNER) / far)


class Room(PointBranch, nn.Module):
    """Points without time. Radii grow with the distance beyond the box, as the gaps between far points do.

    Args:
        config: of the planes, limits and heads (see `JointModelConfig.room_settings`).
        cloud: points to start from, world; a single row where a checkpoint follows.
        scale: world units per metre of the original's settings.
    """

    def __init__(self, config: R4DVModelConfig, cloud: Float[Tensor, "n 3"], scale: float) -> None:
        super().__init__()
        self.register_buffer("bounds", inner_box(cloud.float()))
        self.build_branch(config, [cloud.float()], scale)
        if not self.geometry.fixed_max:
            self.geometry.limits[1] = max(RADIUS_MAX * scale, 2 * float(self.geometry.limits[0]))
        if config.radius_init == "upstream":
            self.geometry.biases[0] = 0.0

    def start_sizes(self) -> None:
        """Points begin as large as the distance to the nearest, and, where that is small, larger than the distance to
        those around them: surfaces are closed then. At most half of the largest radius."""
        from scipy.spatial import KDTree

        cloud = self.points.points[0].detach()
        stretch = outward(cloud, self.bounds).cpu().numpy()
        places = np.unique(cloud.cpu().double().numpy(), axis=0, return_index=True)
        if len(places[0]) < 2:
            return
        step = max(1, -(-len(places[0]) // MOST_QUERIES))
        around = min(AROUND, len(places[0]) - 1)
        distances, _ = KDTree(places[0]).query(places[0][::step], k=around + 1)
        gaps = np.asarray(distances)[:, 1:] / stretch[places[1][::step], None]
        nearest, around = np.median(gaps[:, 0]), np.median(gaps[:, -1])
        self.geometry.initialise(float(max(nearest, min(CLOSED * around, float(self.geometry.limits[1])))))

    def place(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """See `contract`."""
        return contract(xyz, self.bounds)

    def state(self, frame: int = 0, time: float = 0.0) -> PointState:
        """The points; frame and time are not looked at (spec r4dv 4.9: time is fixed at 0)."""
        found = super().state(0, 0.0)
        return PointState(
            found.xyz, found.displacement, found.features, found.radius * outward(found.xyz.detach(), self.bounds),
            found.alpha, found.coefficients,
        )  # fmt: skip
