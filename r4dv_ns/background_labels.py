"""One label for every pixel of a picture, smooth but for edges: semi-global matching (Hirschmüller 2008).

Each pixel has a cost for each label. Along eight directions the least cost of all chains of labels that end in a pixel
is found, where a change from one label to the next costs something; the sums over the directions decide. Where costs
say nothing, labels come from around.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64

Array = np.ndarray
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def summed_costs(
    costs: Float32[Array, "h w n"],
    change: Float32[Array, "h w"],
    step: float | None = None,
) -> Float32[Array, "h w n"]:
    """Costs of labels with those of the chains that lead to each pixel, summed over eight directions.

    Args:
        costs: of each label, finite.
        change: what any change of label into a pixel costs; lower at edges of the picture.
        step: what a change to the label before or after costs, where labels are ordered (depths); None: as any other.
    """
    total = np.zeros_like(costs)
    for down, across in DIRECTIONS:
        if down:
            previous: Array | None = None
            for row in _order(costs.shape[0], down):
                moved = previous if previous is None or not across else _shifted(previous, across)
                previous = costs[row] + _carried(moved, change[row], step)
                total[row] += previous
        else:
            previous = None
            for column in _order(costs.shape[1], across):
                previous = costs[:, column] + _carried(previous, change[:, column], step)
                total[:, column] += previous
    return total


def _order(length: int, direction: int) -> Iterator[int]:
    return iter(range(length) if direction > 0 else range(length - 1, -1, -1))


def _shifted(line: Float32[Array, "m n"], across: int) -> Float32[Array, "m n"]:
    """Of each pixel the one that lies before it along a diagonal; nothing precedes the first."""
    moved = np.zeros_like(line)
    if across > 0:
        moved[1:] = line[:-1]
    else:
        moved[:-1] = line[1:]
    return moved


def _carried(
    before: Float32[Array, "m n"] | None, change: Float32[Array, "m"], step: float | None
) -> Float32[Array, "m n"] | float:
    """What the cheapest chain through the pixel before adds to each label; the least is taken off, so that sums stay
    small."""
    if before is None:
        return 0.0
    least = before.min(axis=1, keepdims=True)
    found = np.minimum(before, least + change[:, None])
    if step is not None:
        np.minimum(found[:, 1:], before[:, :-1] + step, out=found[:, 1:])
        np.minimum(found[:, :-1], before[:, 1:] + step, out=found[:, :-1])
    return found - least


def between(total: Float32[Array, "h w n"], chosen: Int64[Array, "h w"]) -> Float32[Array, "h w"]:
    """Where the costs of the labels around the chosen ones are least, in labels: a parabola through three of them.

    Args:
        chosen: labels of least cost.

    Returns:
        Labels with fractions, at most half a label away.
    """
    last = total.shape[2] - 1
    at = chosen.clip(1, max(last - 1, 1))[..., None]
    if last < 2:
        return chosen.astype(np.float32)
    low, middle, high = (np.take_along_axis(total, at + shift, axis=2)[..., 0] for shift in (-1, 0, 1))
    bend = low - 2 * middle + high
    shift = np.where(bend > 1e-9, 0.5 * (low - high) / np.maximum(bend, 1e-9), 0.0).clip(-0.5, 0.5)
    return (chosen + np.where((chosen > 0) & (chosen < last), shift, 0.0)).astype(np.float32)
