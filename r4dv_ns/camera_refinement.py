"""A small learned correction of every physical camera: a turn about its own centre and a shift, shared by all frames.

Spec r4dv 7. As in nerfstudio's optimiser the correction acts on the camera-to-world side in world axes, R' = E R and
C' = C + d, so turning a camera does not move it. On world-to-camera matrices [A | b] (A = R^T, b = -A C) this is

    A' = A E^T        b' = -A' (C + d)

The correction goes to the camera that is rendered and, detached, to the cameras whose pixels are blended. Cameras that
the viewer or a path asks for have no physical camera behind them and are left alone: do not call this for them.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal, Type

import numpy as np
import torch
from jaxtyping import Float, Int64
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor, nn


@dataclass
class CameraRefinementConfig(InstantiateConfig):
    """Correction of the calibration during training."""

    _target: Type = field(default_factory=lambda: CameraRefinement)
    mode: Literal["off", "SO3xR3"] = "off"
    """off: cameras as in the files. SO3xR3: one turn and one shift per physical camera."""
    trans_l2_penalty: float = 1e-2
    """Weight of the mean length of the shifts, per scene unit."""
    rot_l2_penalty: float = 1e-3
    """Weight of the mean angle of the turns, per radian."""


def rotation_from_vector(vectors: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rodrigues' formula, I + sin(a)/a K + (1 - cos a)/a^2 K^2, differentiable at zero too; angles in radians."""
    squared = vectors.square().sum(dim=-1)[..., None, None]
    small = squared < 1e-6
    # The untaken branch of `where` must not divide by zero: its gradient would be NaN.
    angle = squared.where(~small, torch.ones_like(squared)).sqrt()
    first = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / angle.square())
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return identity + first * cross + second * (cross @ cross)


class CameraRefinement(nn.Module):
    """Corrections of ``num_cameras`` physical cameras (index = ``view``); all zero at the start.

    ``adjustment`` [V, 6] holds shift (scene units) and rotation vector (radians) of each camera, in world axes.
    """

    def __init__(self, config: CameraRefinementConfig, num_cameras: int) -> None:
        super().__init__()
        self.config = config
        self.adjustment = nn.Parameter(torch.zeros(num_cameras, 6), requires_grad=config.mode != "off")

    @property
    def active(self) -> bool:
        """Whether the mode asks for corrections."""
        return self.config.mode != "off"

    def forward(self, w2c: Float[Tensor, "*n 4 4"], views: Int64[Tensor, "*n"] | int) -> Float[Tensor, "*n 4 4"]:
        """Correct world-to-camera matrices (OpenCV axes).

        Args:
            w2c: as in the files.
            views: physical camera of each.

        Returns:
            New matrices of the dtype of ``w2c``; ``w2c`` itself when the mode is off.
        """
        if not self.active:
            return w2c
        shift, vector = self.adjustment[views].to(w2c.dtype).split(3, dim=-1)
        linear, offset = w2c[..., :3, :3], w2c[..., :3, 3:]
        turned = linear @ rotation_from_vector(vector).transpose(-1, -2)
        centre = -linear.transpose(-1, -2) @ offset + shift[..., None]
        return torch.cat([torch.cat([turned, -turned @ centre], dim=-1), w2c[..., 3:, :]], dim=-2)

    def penalty(self, views: Int64[Tensor, "n"] | None = None) -> Float[Tensor, ""]:
        """Weighted mean shift and angle of all cameras, or of ``views``; 0 when the mode is off."""
        if not self.active:
            return self.adjustment.new_zeros(())
        chosen = self.adjustment if views is None else self.adjustment[views]
        shift, vector = chosen.split(3, dim=-1)
        return (
            self.config.trans_l2_penalty * shift.norm(dim=-1).mean()
            + self.config.rot_l2_penalty * vector.norm(dim=-1).mean()
        )

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """Mean and largest shift (scene units) and turn (degrees), for the training log; empty when the mode is off."""
        if not self.active:
            return {}
        shift, vector = (part.norm(dim=-1) for part in self.adjustment.split(3, dim=-1))
        angle = torch.rad2deg(vector)
        return {
            "camera_shift_mean": shift.mean(),
            "camera_shift_max": shift.max(),
            "camera_turn_mean": angle.mean(),
            "camera_turn_max": angle.max(),
        }

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """``camera_opt`` with the corrections; nothing when the mode is off."""
        return {"camera_opt": [self.adjustment]} if self.active else {}

    @torch.no_grad()
    def corrected(
        self, w2c: Float[np.ndarray, "n 4 4"], views: Items[int], transform: Float[np.ndarray, "4 4"]
    ) -> Float[np.ndarray, "n 4 4"]:
        """Corrected cameras of a recording's files, in the world of the files.

        Args:
            w2c: as in the files.
            views: physical camera of each.
            transform: from the files' world to nerfstudio's, in whose axes the corrections are learned.
        """
        placed = torch.from_numpy(w2c @ np.linalg.inv(transform)).to(self.adjustment.device)
        return self(placed, torch.tensor(views, device=placed.device)).cpu().numpy() @ transform
