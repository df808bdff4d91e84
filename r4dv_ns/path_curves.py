"""Camera paths along key cameras: uniform cubic B-spline, interpolating spline, straight lines; pace and smoothing.

Poses are camera-to-world [., 4, 4] float64, of any one convention. Shares of the path are numbers in [0, 1]; k keys
make k - 1 equal parts, or k parts where the path is closed (the last leads back to the first key).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

Array = np.ndarray
Spline = Literal["bspline", "interpolating", "linear"]
FEWEST_KEYS = {"bspline": 4, "interpolating": 2, "linear": 2}
"""Keys that a curve needs; the original refuses fewer than four as well."""


def parts(shares: Float[Array, "n"], keys: int, closed: bool) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """(number of the part, place in it in [0, 1]) of each share; the end belongs to the last part."""
    count = keys if closed else keys - 1
    along = np.clip(np.asarray(shares, dtype=np.float64), 0.0, 1.0) * count
    index = np.minimum(np.floor(along).astype(int), max(count - 1, 0))
    return index, along - index


def _key(index: Int[Array, "n"], keys: int, closed: bool) -> Int[Array, "n"]:
    """Numbers of keys before the first and after the last: those of the next round, else the end's."""
    return index % keys if closed else np.clip(index, 0, keys - 1)


def linear_values(values: Float[Array, "k d"], shares: Float[Array, "n"], closed: bool = False) -> Float[Array, "n d"]:
    """Piecewise linear between rows of values: fields of view, times."""
    values = np.asarray(values, dtype=np.float64)
    index, t = parts(shares, len(values), closed)
    t = t[:, None]
    return values[_key(index, len(values), closed)] * (1 - t) + values[_key(index + 1, len(values), closed)] * t


def _poses(rotations: Rotation, positions: Float[Array, "n 3"]) -> Float[Array, "n 4 4"]:
    result = np.tile(np.eye(4), (len(positions), 1, 1))
    result[:, :3, :3], result[:, :3, 3] = rotations.as_matrix(), positions
    return result


def linear(keys: Float[Array, "k 4 4"], shares: Float[Array, "n"], closed: bool = False) -> Float[Array, "n 4 4"]:
    """Straight lines and the shortest turns between keys.

    Raises:
        ValueError: fewer than two keys.
    """
    _enough(keys, "linear")
    index, t = parts(shares, len(keys), closed)
    rotations = Rotation.from_matrix(keys[:, :3, :3])
    first, second = (_pick(rotations, _key(index + step, len(keys), closed)) for step in (0, 1))
    return _poses(_slerp(first, second, t), linear_values(keys[:, :3, 3], shares, closed))


def bspline(keys: Float[Array, "k 4 4"], shares: Float[Array, "n"], closed: bool = False) -> Float[Array, "n 4 4"]:
    """Uniform cubic B-spline of positions and quaternions, the original's "cubic" (spec r4dv 15).

    C2, but it passes near the keys, not through them; at open ends the outer key counts twice.

    Raises:
        ValueError: fewer than four keys.
    """
    _enough(keys, "bspline")
    index, t = parts(shares, len(keys), closed)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    quaternions = Rotation.from_matrix(keys[:, :3, :3]).as_quat()
    position, quaternion = np.zeros((len(t), 3)), np.zeros((len(t), 4))
    for column in range(4):
        chosen = _key(index - 1 + column, len(keys), closed)
        weight = weights[:, column : column + 1]
        position += weight * keys[chosen, :3, 3]
        # q and -q are the same turn: take the one on the side of the sum so far.
        turn = quaternions[chosen]
        turn = np.where((quaternion * turn).sum(axis=1, keepdims=True) < 0, -turn, turn)
        quaternion += weight * turn
    return _poses(Rotation.from_quat(quaternion), position)


def interpolating(
    keys: Float[Array, "k 4 4"], shares: Float[Array, "n"], closed: bool = False
) -> Float[Array, "n 4 4"]:
    """Passes through every key with continuous velocity: Catmull-Rom positions, squad rotations (Shoemake 1987).

    Raises:
        ValueError: fewer than two keys.
    """
    _enough(keys, "interpolating")
    count = len(keys)
    index, t = parts(shares, count, closed)
    centres = keys[:, :3, 3]
    before, first, second, after = (centres[_key(index + step, count, closed)] for step in (-1, 0, 1, 2))
    if not closed:  # beyond the ends the path goes on straight
        before = np.where((index == 0)[:, None], 2 * first - second, before)
        after = np.where((index == count - 2)[:, None], 2 * second - first, after)
    s = t[:, None]
    position = first + 0.5 * s * (
        second - before + s * (2 * before - 5 * first + 4 * second - after)
        + s**2 * (3 * (first - second) + after - before)
    )  # fmt: skip
    rotations = Rotation.from_matrix(keys[:, :3, :3])
    controls = _controls(rotations, closed)
    here, there = _key(index, count, closed), _key(index + 1, count, closed)
    chord = _slerp(_pick(rotations, here), _pick(rotations, there), t)
    guide = _slerp(_pick(controls, here), _pick(controls, there), t)
    return _poses(_slerp(chord, guide, 2 * t * (1 - t)), position)


def _controls(rotations: Rotation, closed: bool) -> Rotation:
    """Squad's inner control rotations: q exp(-(log(q^-1 q+) + log(q^-1 q-)) / 4)."""
    every = np.arange(len(rotations))
    inverse = rotations.inv()
    ahead, behind = (
        (inverse * _pick(rotations, _key(every + step, len(every), closed))).as_rotvec() for step in (1, -1)
    )
    bend = -0.25 * (ahead + behind)
    if not closed:
        bend[[0, -1]] = 0.0
    return rotations * Rotation.from_rotvec(bend)


def _pick(rotations: Rotation, rows: Int[Array, "n"]) -> Rotation:
    return Rotation.from_quat(rotations.as_quat()[rows])


def _slerp(first: Rotation, second: Rotation, t: Float[Array, "n"]) -> Rotation:
    return first * Rotation.from_rotvec(t[:, None] * (first.inv() * second).as_rotvec())


def _enough(keys: Array, curve: Spline) -> None:
    if len(keys) < FEWEST_KEYS[curve]:
        raise ValueError(f"a path of kind '{curve}' needs {FEWEST_KEYS[curve]} key cameras, there are {len(keys)}")


CURVES: dict[str, Callable[..., Float[Array, "n 4 4"]]] = {
    "bspline": bspline,
    "interpolating": interpolating,
    "linear": linear,
}


def even_pace(
    curve: Spline, keys: Float[Array, "k 4 4"], shares: Float[Array, "n"], closed: bool = False
) -> Float[Array, "n"]:
    """Shares at which the curve has covered those shares of its length: constant speed instead of equal time per part.

    Where the camera only turns, its pace is as it was.
    """
    fine = np.linspace(0.0, 1.0, 64 * len(keys) + 1)
    steps = np.linalg.norm(np.diff(CURVES[curve](keys, fine, closed)[:, :3, 3], axis=0), axis=1)
    total = steps.sum()
    if total <= 1e-9 * np.abs(keys[:, :3, 3]).max():
        return np.asarray(shares, dtype=np.float64)
    # A ten-thousandth of even time keeps the map invertible where the curve stands still.
    grown = np.concatenate([[0.0], np.cumsum(steps / total + 1e-4 / len(steps))])
    return np.interp(shares, grown / grown[-1], fine)


def smoothed(poses: Float[Array, "n 4 4"], sigma: float, closed: bool = False) -> Float[Array, "n 4 4"]:
    """Poses averaged along the path with a Gaussian window; rotations by their mean quaternion (Markley 2007).

    Args:
        sigma: standard deviation in poses; 0 changes nothing.
        closed: the window goes round; else the ends are repeated.
    """
    if sigma < 0.05:  # the neighbours' weight is below 1e-80
        return poses
    mode = "wrap" if closed else "nearest"
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    # The outer product does not know a quaternion's sign, so none has to be chosen.
    outer = gaussian_filter1d(quaternions[:, :, None] * quaternions[:, None, :], sigma, axis=0, mode=mode)
    mean = np.linalg.eigh(outer)[1][:, :, -1]
    return _poses(Rotation.from_quat(mean), gaussian_filter1d(poses[:, :3, 3], sigma, axis=0, mode=mode))
