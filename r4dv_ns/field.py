"""Size and opacity of a point from its feature (spec r4dv 4.3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

RADIUS_MIN, RADIUS_MAX = 0.001, 0.015
"""Metres, for a box whose diagonal is 2 m (spec r4dv 4.3); both scale with the box."""
RADIUS_BIAS, ALPHA_BIAS = -5.0, 5.0
ROOM = 4.0
"""A radius may grow to this many times the spacing of the points, whatever the fixed limit says."""

RadiusInit = Literal["spacing", "upstream"]


class GeometryHead(nn.Module):
    """``r = r_min + (r_max - r_min) sigmoid(r^ + b_r)``, ``alpha = sigmoid(a^ + b_a)`` (spec r4dv 4.3).

    Limits and biases are buffers, so that a checkpoint renders the same without knowing how it was initialised.

    Args:
        features: length of a point's feature.
        radius_init: "spacing": points begin as large as the distance to their neighbours (`initialise` sets it);
            "upstream": the original's bias, about 1.09 mm.
        radius_min, radius_max: fixed limits, world units; None: the original's times ``scale``, and, with "spacing", an
            upper limit that leaves room for at least four spacings (small models have few, distant points).
        scale: diagonal of the box / 2 m.
        radius_bias: b_r of "upstream".
        alpha_bias: b_a.
        hidden: width of the two hidden layers.

    Raises:
        ValueError: unknown ``radius_init`` or limits out of order.
    """

    limits: Tensor
    biases: Tensor

    def __init__(
        self,
        features: int,
        *,
        radius_init: RadiusInit = "spacing",
        radius_min: float | None = None,
        radius_max: float | None = None,
        scale: float = 1.0,
        radius_bias: float = RADIUS_BIAS,
        alpha_bias: float = ALPHA_BIAS,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if radius_init not in ("spacing", "upstream"):
            raise ValueError(f"unknown radius_init {radius_init!r}: use 'spacing' or 'upstream'")
        self.radius_init, self.fixed_max = radius_init, radius_max is not None
        low = RADIUS_MIN * scale if radius_min is None else radius_min
        high = RADIUS_MAX * scale if radius_max is None else radius_max
        if not 0.0 < low < high:
            raise ValueError(f"radius limits {low} and {high} are not positive and in order")
        self.register_buffer("limits", torch.tensor([low, high]))
        self.register_buffer("biases", torch.tensor([radius_bias, alpha_bias]))
        self.mlp = relu_mlp(features, hidden, 2)

    def initialise(self, spacing: float) -> float:
        """Set b_r so that points begin with radius ``spacing``, clipped to [1.2 r_min, 0.5 r_max].

        Args:
            spacing: median distance to the nearest neighbour, world units (`points.spacing`).

        Returns:
            The radius that points begin with, world units. With "upstream" nothing changes.
        """
        if self.radius_init == "spacing":
            low, high = self.limits.tolist()
            if not self.fixed_max:
                high = max(high, ROOM * spacing)
                self.limits[1] = high
            radius = min(max(spacing, 1.2 * low), 0.5 * high)
            share = min(max((radius - low) / (high - low), 0.01), 0.99)
            self.biases[0] = math.log(share / (1.0 - share))
        return self.start_radius

    @property
    def start_radius(self) -> float:
        """Radius of a point whose network output is zero, world units."""
        low, high = self.limits.tolist()
        return low + (high - low) / (1.0 + math.exp(-float(self.biases[0])))

    def forward(self, f: Float[Tensor, "n features"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Radius (world units) and opacity in (0, 1) of points with features ``f``."""
        raw = self.mlp(f).float() if f.dtype != torch.float64 else self.mlp(f)
        share, alpha = torch.sigmoid(raw + self.biases.to(raw)).unbind(-1)
        low, high = self.limits.to(raw).unbind()
        return low + (high - low) * share, alpha


def relu_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """``inputs -> hidden -> hidden -> outputs`` with ReLU; last biases from N(0, 1e-4) (spec r4dv 4.1, 4.3)."""
    last = nn.Linear(hidden, outputs)
    nn.init.normal_(last.bias, 0.0, 1e-4)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
