"""From a camera to a mixture of a clip's frames: the geometry of "move the mouse, get a latent" (spec xfactor 8.3).

The networks know no cameras. A clip's frames have some (from the data, or on a film strip), so a camera is compared
with them and their latents are mixed. Nothing here touches a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core_ns.frames import homogeneous

STILL = 1e-6
"""Translations below this are none, world units."""


@dataclass(frozen=True)
class Mixture:
    """Frames of a clip and their weights, which sum to one; the latent of a camera is the weighted sum of theirs."""

    frames: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def strongest(self) -> int:
        """The frame with the largest weight."""
        return self.frames[int(np.argmax(self.weights))]


@dataclass(frozen=True)
class PosePath:
    """A clip's cameras as its reference camera sees them.

    Attributes:
        relative: camera-to-reference matrices, OpenGL axes, translations in units of ``scale``.
        scale: median distance of the frames to the reference, world units; 1 where none moves.
    """

    relative: Float[np.ndarray, "f 4 4"]
    scale: float

    @classmethod
    def of(cls, c2w: Float[np.ndarray, "f 3 4"], reference: int) -> PosePath:
        """From camera-to-world matrices (OpenGL axes) in time order.

        Raises:
            ValueError: no such reference.
        """
        c2w = homogeneous(c2w)
        if not 0 <= reference < len(c2w):
            raise ValueError(f"reference {reference} of {len(c2w)} frames")
        relative = np.linalg.inv(c2w[reference]) @ c2w
        relative[reference] = np.eye(4)  # not the rounding of a product
        distances = np.linalg.norm(relative[:, :3, 3], axis=1)
        moving = distances[distances > STILL]
        scale = float(np.median(moving)) if len(moving) else 1.0
        relative[:, :3, 3] /= scale
        return cls(relative, scale)

    def seen(self, camera: Float[np.ndarray, "3 4"], reference: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "4 4"]:
        """A world camera as *this* clip's reference camera sees it, in this clip's unit; both camera-to-world."""
        relative = np.linalg.inv(homogeneous(reference)) @ homogeneous(camera)
        relative[:3, 3] /= self.scale
        return relative


def coordinates(relative: Float[np.ndarray, "... 4 4"], rotation_weight: float) -> Float[np.ndarray, "... 12"]:
    """Poses as points whose distance compares poses.

    Their squared distance is ``|t - t'|^2 + 4 w^2 sin^2(a / 2)`` with the angle ``a`` between the rotations: for small
    angles ``|t - t'|^2 + (w a)^2``.
    """
    rotation = relative[..., :3, :3] * (rotation_weight / np.sqrt(2.0))
    return np.concatenate([relative[..., :3, 3], rotation.reshape(*relative.shape[:-2], 9)], axis=-1)


def along(path: PosePath, pose: Float[np.ndarray, "4 4"], rotation_weight: float = 1.0) -> Mixture:
    """Mode ``trajectory``: the nearest point of the polyline through the frames, and the two frames it lies between.

    A pose of a frame gives exactly that frame (pose copying); a pose off the path gives the foot of its perpendicular.
    Where several points are as near, the earliest in time wins.
    """
    points, target = coordinates(path.relative, rotation_weight), coordinates(pose, rotation_weight)
    if len(points) == 1:
        return Mixture((0,), (1.0,))
    starts, steps = points[:-1], np.diff(points, axis=0)
    lengths = np.maximum((steps**2).sum(axis=1), 1e-24)  # two frames with one pose: either will do
    shares = np.clip(((target - starts) * steps).sum(axis=1) / lengths, 0.0, 1.0)
    distances = ((starts + shares[:, None] * steps - target) ** 2).sum(axis=1)
    segment = int(distances.argmin())
    return between(segment + float(shares[segment]), len(points))


def between(position: float, frames: int) -> Mixture:
    """The two frames on either side of a position in [0, frames - 1], by linear weights; clamped to the ends."""
    position = min(max(position, 0.0), frames - 1.0)
    first = min(int(position), max(frames - 2, 0))
    share = position - first
    if share < 1e-6 or frames == 1:
        return Mixture((first,), (1.0,))
    if share > 1 - 1e-6:
        return Mixture((first + 1,), (1.0,))
    return Mixture((first, first + 1), (1.0 - share, share))


def nearest(path: PosePath, pose: Float[np.ndarray, "4 4"], rotation_weight: float = 1.0) -> Mixture:
    """Mode ``nearest``: the one frame whose pose is nearest (pose copying)."""
    return Mixture((int(_distances(path, pose, rotation_weight).argmin()),), (1.0,))


def blend(path: PosePath, pose: Float[np.ndarray, "4 4"], neighbours: int = 3, rotation_weight: float = 1.0) -> Mixture:
    """Mode ``blend``: softmax over the nearest frames of ``-d^2 / (2 s^2)``, with s half the path's median step.

    Smooth within the cloud of cameras, but no frame's own latent is met exactly.
    """
    distances = _distances(path, pose, rotation_weight)
    chosen = np.argsort(distances, kind="stable")[:neighbours]
    steps = np.linalg.norm(np.diff(coordinates(path.relative, rotation_weight), axis=0), axis=1)
    width = max(float(np.median(steps)) / 2 if len(steps) else 1.0, STILL)
    logits = -0.5 * (distances[chosen] / width) ** 2
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return Mixture(tuple(int(each) for each in chosen), tuple(float(each) for each in weights))


def _distances(path: PosePath, pose: Float[np.ndarray, "4 4"], rotation_weight: float) -> Float[np.ndarray, "f"]:
    points, target = coordinates(path.relative, rotation_weight), coordinates(pose, rotation_weight)
    return np.linalg.norm(points - target, axis=-1)
