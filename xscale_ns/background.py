"""What is seen where a ray misses the mesh: a small learned environment, or a constant colour (spec xscale 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xscale_ns.shading import SH_TERMS, spherical_harmonics

BackgroundKind = Literal["env", "white", "black", "color"]
OCTAVES = 5


def encode_directions(directions: Float[Tensor, "N 3"], octaves: int = OCTAVES) -> Float[Tensor, "N C"]:
    """Spherical harmonics (16 terms), then sines and cosines of the components at pi, 2 pi, 4 pi, ...

    The harmonics carry sky gradients; the octaves reach skylines: the highest of five has a period of 1/8, about
    7 degrees at the horizon. C = 16 + 6 * octaves.
    """
    scales = math.pi * 2.0 ** torch.arange(octaves, dtype=directions.dtype, device=directions.device)
    phase = (directions[:, None, :] * scales[:, None]).flatten(1)
    return torch.cat([spherical_harmonics(directions), torch.sin(phase), torch.cos(phase)], dim=-1)


class Background(nn.Module):
    """Colour of a direction.

    ``env`` is a network of its own with no input from the surface model; the caller feeds it the miss pixels only, so
    sky colour cannot leak into the surface and the surface cannot explain the sky. The constant kinds have no
    parameters.
    """

    def __init__(
        self,
        kind: BackgroundKind = "env",
        color: Sequence[float] = (1.0, 1.0, 1.0),
        hidden: int = 32,
        octaves: int = OCTAVES,
    ) -> None:
        """See the class.

        Args:
            kind: which background.
            color: display sRGB in [0, 1], for ``color`` only.
            hidden: width of the two hidden layers, for ``env``.
            octaves: see `encode_directions`, for ``env``.

        Raises:
            ValueError: an unknown kind, or a colour that is not three numbers in [0, 1].
        """
        super().__init__()
        self.kind, self.octaves = kind, octaves
        self.net: nn.Sequential | None = None
        if kind == "env":
            inputs = SH_TERMS + 6 * octaves
            self.net = nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3)
            )
            return
        fixed = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "color": tuple(color)}.get(kind)
        if fixed is None:
            raise ValueError(f"background {kind!r} is not one of env, white, black, color")
        if len(fixed) != 3 or not all(0.0 <= channel <= 1.0 for channel in fixed):
            raise ValueError(f"a background colour is three numbers in [0, 1], not {fixed}")
        self.register_buffer("color", torch.tensor(fixed, dtype=torch.float32), persistent=False)

    @property
    def is_learned(self) -> bool:
        """Whether there is something to train on miss pixels."""
        return self.net is not None

    def forward(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display sRGB in [0, 1] for unit world directions."""
        if self.net is None:
            return self.get_buffer("color").to(directions.dtype).expand(len(directions), 3)
        encoded = encode_directions(directions.to(next(self.net.parameters()).dtype), self.octaves)
        logits = self.net(encoded)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return torch.sigmoid(logits)
