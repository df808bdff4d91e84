"""Moving points that do nothing to where the picture is wrong, during training (spec r4dv 4.10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from dataparsers.point_ply import read_ply
from r4dv_ns.points import Sightings, candidate_weights, prune_reseed

if TYPE_CHECKING:
    from r4dv_ns.drawing import Drawing
    from r4dv_ns.model import R4DVModel
    from r4dv_ns.point_state import PointState

FAINT = 0.02
"""Opacity below which a point is useless."""
PATIENCE = 5000
"""Steps after which a point that was in no picture is useless."""


@dataclass
class _Last:
    """The training picture of the present step."""

    frame: int
    drawing: Drawing
    alpha: Float[Tensor, "n"]
    error: Float[Tensor, "h w"] | None = None


class Reseeder:
    """Off unless ``every`` is positive; needs the run's hulls. Numbers of points never change.

    Args:
        every: steps between two rounds; each looks at the frame of its own step.
        seed: of the places that points are put at.
    """

    def __init__(self, every: int, seed: int) -> None:
        self.every, self.seed = every, seed
        self.sightings = Sightings()
        self._last: _Last | None = None

    def note(self, frame: int, drawing: Drawing, state: PointState) -> None:
        """A training picture was drawn; call before its backward pass."""
        if self.every > 0 and state.alpha.requires_grad:
            state.alpha.retain_grad()
            self._last = _Last(frame, drawing, state.alpha)

    def note_error(self, error: Float[Tensor, "h w"]) -> None:
        """Error of every pixel of that picture."""
        if self._last is not None:
            self._last.error = error.detach()

    def after_step(self, model: R4DVModel, optimizers: Any, step: int) -> None:
        """Remember which points the picture showed; every so many steps put useless ones elsewhere."""
        last, self._last = self._last, None
        if last is None or last.alpha.grad is None:
            return
        self.sightings.note(last.frame, last.alpha.grad != 0, step)
        if step == 0 or step % self.every or last.error is None or model.hulls is None:
            return
        unseen = self.sightings.unseen(last.frame, step, PATIENCE)
        dead = last.alpha.detach() < FAINT
        if unseen is not None:
            dead = dead | unseen
        transform = torch.from_numpy(model.sequence.transform).float()
        hull = torch.from_numpy(read_ply(model.hulls.places(last.frame)).xyz).float()
        hull = hull @ transform[:3, :3].T + transform[:3, 3]
        weights = candidate_weights(
            hull, last.error.cpu(), last.drawing.K.detach().cpu(), last.drawing.w2c.detach().cpu()
        )
        optimizer = optimizers.optimizers.get("points") if optimizers is not None else None
        moved = prune_reseed(
            model.points.points[last.frame], dead, hull, weights, jitter=model.hulls.voxel / 2,
            generator=torch.Generator().manual_seed(self.seed + step), optimizer=optimizer,
        )  # fmt: skip
        if moved:
            self.sightings.forget(last.frame, dead, step)
            CONSOLE.print(f"Frame {last.frame}: {moved:,} of {len(dead):,} points moved to where the error is.")
