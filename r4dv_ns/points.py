"""The points of every frame: learnable positions, a common residual, spacing and re-seeding (spec r4dv 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from r4dv_ns.field import relu_mlp
from r4dv_ns.planes import PlaneField

RESIDENT_FRAMES = 300
"""Up to this many frames the points lie on the model's device; parameter and Adam state take 9.4 MB a frame at 262144
points."""
MOST_QUERIES = 16384
"""Points whose neighbour is looked up for the median spacing."""

logger = logging.getLogger(__name__)


class FramePoints(nn.Module):
    """One parameter ``points.{i}`` [N_i, 3] per frame, world frame and units (spec r4dv 4.1).

    Only the frame that was asked for receives a gradient; the others keep ``grad = None``, so that an optimiser neither
    moves them nor keeps state for them. Above ``resident_frames`` the parameters stay in (pinned) main memory wherever
    the module is moved, and `forward` copies the one frame.

    Points are put into `spatial_order`; what depends on their order elsewhere must be taken from here.

    `load_state_dict` takes the stored number of points per frame; the parameters keep their identity, so optimisers
    made before remain valid.

    Args:
        clouds: points of each frame, world.
        resident_frames: see above.

    Raises:
        ValueError: no frame, a frame without points, or coordinates that are not finite.
    """

    def __init__(self, clouds: Sequence[Float[Tensor, "n 3"]], resident_frames: int = RESIDENT_FRAMES) -> None:
        super().__init__()
        if not clouds:
            raise ValueError("there is no frame")
        for index, cloud in enumerate(clouds):
            if cloud.ndim != 2 or cloud.shape[1] != 3 or cloud.shape[0] == 0 or not bool(cloud.isfinite().all()):
                raise ValueError(f"frame {index}: expected finite points [N > 0, 3], got {tuple(cloud.shape)}")
        self.points = nn.ParameterList(nn.Parameter(cloud.detach()[spatial_order(cloud)]) for cloud in clouds)
        self.resident = len(clouds) <= resident_frames
        self._device = self.points[0].device

    def __len__(self) -> int:
        return len(self.points)

    def forward(self, frame: int) -> Float[Tensor, "n 3"]:
        """Positions of a frame on the model's device, world; differentiable.

        Raises:
            IndexError: no such frame (negative ones included).
        """
        if not 0 <= frame < len(self.points):
            raise IndexError(f"frame {frame} of {len(self.points)}")
        points = self.points[frame]
        return points if self.resident else points.to(self._device, non_blocking=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FramePoints:
        """Moves and casts the parameters; above `resident_frames` only casts them and remembers the device."""
        if self.resident:
            super()._apply(fn, recurse)
            self._device = self.points[0].device
            return self

        def stay(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0])
            self._device = moved.device
            kept = tensor if moved.dtype == tensor.dtype else tensor.to(moved.dtype)
            return kept.pin_memory() if moved.is_cuda and not kept.is_pinned() else kept

        return super()._apply(stay, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._resize(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def _resize(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Give every parameter the stored number of rows; anything but ``[N, 3]`` is left for torch to refuse."""
        for index, parameter in enumerate(self.points):
            stored = state_dict.get(f"{prefix}points.{index}")
            if stored is not None and stored.ndim == 2 and stored.shape[1] == 3 and stored.shape != parameter.shape:
                parameter.data = parameter.data.new_empty(stored.shape)
                parameter.grad = None

    @torch.no_grad()
    def share_outside(self, bounds: Float[Tensor, "2 3"]) -> float:
        """Share of all points outside the box, whose features would all be read at its border; warns above 1 %."""
        inside = total = 0
        for points in self.points:
            low, high = bounds.to(points)
            inside += int(((points >= low) & (points <= high)).all(dim=1).sum())
            total += points.shape[0]
        share = 1.0 - inside / total
        if share > 0.01:
            logger.warning("%.1f %% of the points lie outside the box of the scene; widen the bounds", 100 * share)
        return share


@torch.no_grad()
def spatial_order(points: Float[Tensor, "n 3"]) -> Int64[Tensor, "n"]:
    """Permutation along a Morton curve: points near each other in memory are near each other in space.

    Plane, photo and pixel lookups then find their rows in the processor's cache. Stable, so deterministic.
    """
    low, high = points.amin(dim=0), points.amax(dim=0)
    cell = ((points - low) / (high - low).clamp_min(1e-12) * 1023.0).to(torch.int64)
    for shift, mask in ((16, 0x30000FF), (8, 0x300F00F), (4, 0x30C30C3), (2, 0x9249249)):
        cell = (cell | cell << shift) & mask
    return (cell[:, 0] | cell[:, 1] << 1 | cell[:, 2] << 2).argsort(stable=True)


def normalise(x: Float[Tensor, "n 3"], bounds: Float[Tensor, "2 3"]) -> Float[Tensor, "n 3"]:
    """World coordinates to [-1, 1] over the box, clamped (the original's tables wrap around; spec r4dv 10.1, B13).

    Args:
        bounds: least and greatest corner, world.
    """
    low, high = bounds.to(x).unbind(0)
    return ((x - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0)


def spacing(points: Float[Tensor, "n 3"]) -> float:
    """Median distance to the nearest other point, in the points' unit; 0 when there are fewer than two places.

    Exact duplicates count as one place. At most `MOST_QUERIES` evenly chosen points are asked.
    """
    from scipy.spatial import KDTree

    cloud = np.unique(points.detach().cpu().double().numpy(), axis=0)
    if len(cloud) < 2:
        return 0.0
    queries = cloud[:: max(1, -(-len(cloud) // MOST_QUERIES))]
    distances, _ = KDTree(cloud).query(queries, k=2)
    return float(np.median(distances[:, 1]))


class MotionResidual(nn.Module):
    """Displacement ``0.1 MLP(planes(x, t))`` in world units, common to all frames (spec r4dv 4.1).

    Args:
        frames: texels along time; None for a static scene.
        scale: the 0.1, metres; scale it with the scene.
        base: resolution of the first of the two levels.
        hashed: see `PlaneField`.
    """

    def __init__(self, frames: int | None, scale: float = 0.1, base: int = 64, hashed: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.planes = PlaneField(levels=2, base=base, frames=frames, init=1e-4, hashed=hashed)
        self.mlp = relu_mlp(self.planes.width, 64, 3)

    def forward(self, x: Float[Tensor, "n 3"], t: float | Tensor) -> Float[Tensor, "n 3"]:
        """Displacements, world units.

        Args:
            x: positions in [-1, 1] (`normalise`).
            t: time in [0, 1].
        """
        return self.scale * self.mlp(self.planes(x, t)).to(x.dtype)


class Sightings:
    """When each point of each frame was last drawn, to find those that never are (spec r4dv 4.10)."""

    def __init__(self) -> None:
        self._last: dict[int, Tensor] = {}

    def note(self, frame: int, seen: Bool[Tensor, "n"], step: int) -> None:
        """Points that had a share in a rendered image of ``frame`` at ``step``."""
        last = self._last.get(frame)
        if last is None or last.shape != seen.shape:
            last = self._last[frame] = torch.full(seen.shape, step, dtype=torch.int64, device=seen.device)
        last[seen] = step

    def unseen(self, frame: int, step: int, patience: int = 5000) -> Bool[Tensor, "n"] | None:
        """Points not drawn for more than ``patience`` steps since the frame was first noted; None before that."""
        last = self._last.get(frame)
        return None if last is None else step - last > patience

    def forget(self, frame: int, moved: Bool[Tensor, "n"], step: int) -> None:
        """Begin anew for points that were put elsewhere."""
        if frame in self._last:
            self._last[frame][moved] = step


def candidate_weights(
    candidates: Float[Tensor, "m 3"],
    error: Float[Tensor, "h w"],
    K: Float[Tensor, "3 3"],
    w2c: Float[Tensor, "4 4"],
) -> Float[Tensor, "m"]:
    """Error of the pixel that each hull voxel falls on, 0 behind the camera or off the image: where points are missing.

    Args:
        candidates: hull voxels of the frame, world.
        error: non-negative error per pixel of one rendered view.
        K: intrinsics in pixels of that view.
        w2c: OpenCV world-to-camera.
    """
    camera = candidates @ w2c[:3, :3].T.to(candidates) + w2c[:3, 3].to(candidates)
    depth = camera[:, 2]
    pixel = (camera @ K.T.to(candidates))[:, :2] / depth.clamp_min(1e-6)[:, None]
    column, row = pixel.nan_to_num().floor().clamp(-1, max(error.shape)).to(torch.int64).unbind(-1)
    inside = (depth > 0) & (column >= 0) & (column < error.shape[1]) & (row >= 0) & (row < error.shape[0])
    found = error[row.clamp(0, error.shape[0] - 1), column.clamp(0, error.shape[1] - 1)]
    return torch.where(inside, found, 0.0).to(candidates)


@torch.no_grad()
def prune_reseed(
    parameter: Float[Tensor, "n 3"],
    dead: Bool[Tensor, "n"],
    candidates: Float[Tensor, "m 3"],
    weights: Float[Tensor, "m"] | None = None,
    *,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> int:
    """Put useless points (opacity below 0.02, or long unseen) where they are missing; their number stays (spec 4.10).

    Args:
        parameter: positions of one frame, changed in place.
        dead: the points to move.
        candidates: places to choose from (hull voxels), world.
        weights: chance of each place, not negative (`candidate_weights`); uniform when absent or all zero.
        jitter: half side of the cube in which a point is placed around its candidate (half a voxel).
        generator: source of randomness, on the CPU.
        optimizer: what it remembers about moved points (Adam's moments) is cleared.

    Returns:
        Number of points moved; 0 when nothing is dead or there is no candidate.
    """
    rows = dead.nonzero()[:, 0].to(parameter.device)
    if rows.numel() == 0 or candidates.shape[0] == 0:
        return 0
    chance = torch.ones(candidates.shape[0]) if weights is None else weights.detach().float().cpu()
    chance = chance.nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
    # Inverse transform sampling: torch.multinomial refuses more than 2^24 places.
    total = (chance if float(chance.sum()) > 0 else torch.ones_like(chance)).double().cumsum(0)
    drawn = torch.rand(rows.numel(), generator=generator, dtype=torch.float64) * total[-1]
    chosen = torch.searchsorted(total, drawn, right=True).clamp_max(candidates.shape[0] - 1)
    offset = (torch.rand(rows.numel(), 3, generator=generator) * 2.0 - 1.0) * jitter
    parameter[rows] = candidates[chosen.to(candidates.device)].to(parameter) + offset.to(parameter)
    if optimizer is not None and parameter in optimizer.state:
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows.to(value.device)] = 0.0
    return rows.numel()
