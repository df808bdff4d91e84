"""Which moment each picture of a camera path shows (spec r4dv 6.3). Times lie in [0, 1] over the chosen frames."""

from __future__ import annotations

from collections.abc import Sequence as Items
from fractions import Fraction

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def check_range(knots: Items[float]) -> None:
    """Refuse what is no range of times.

    Raises:
        ValueError: no number, or one outside [0, 1].
    """
    if not knots or not all(0 <= each <= 1 for each in knots):
        raise ValueError(f"{' '.join(f'{each:g}' for each in knots) or 'nothing'} is no list of times between 0 and 1")


def temporal_range(count: int, knots: Items[float]) -> Float[Array, "n"]:
    """Times that run evenly from knot to knot: [0, 1] forwards, [0, 1, 0] there and back, [.5] or [.5, .5] stand still.

    The first and the last picture show the first and the last knot exactly.

    Raises:
        ValueError: see `check_range`.
    """
    check_range(knots)
    values = np.asarray(knots, dtype=np.float64)
    times = np.interp(np.linspace(0.0, 1.0, count), np.linspace(0.0, 1.0, len(values)), values)
    return times.clip(values.min(), values.max())  # interpolation rounds: 1.0000000000000002 is no time


def played(
    count: int, fps: float, play_fps: float, times: Items[float], knots: Items[float] = (0.0, 1.0)
) -> Float[Array, "n"]:
    """Times of the recording's frames played at their own pace, over and over, whatever the path's length.

    Picture k shows frame floor(k play_fps / fps), so every frame stands equally long.

    Args:
        count: pictures of the path.
        fps: pictures per second.
        play_fps: the recording's frames per second.
        times: of the recording's frames, rising.
        knots: first and last time to play; the first the larger: backwards; a single one stands still.

    Raises:
        ValueError: a rate that is not positive, more than two knots, or no frame between them.
    """
    check_range(knots)
    if not (0 < play_fps < np.inf and 0 < fps < np.inf):
        raise ValueError(f"{play_fps:g} frames at {fps:g} pictures per second cannot be played")
    if len(knots) > 2:
        raise ValueError("playing at a fixed rate takes a first and a last time, not a list of turning points")
    first, last = knots[0], knots[-1]
    low, high = min(first, last) - 1e-9, max(first, last) + 1e-9
    shown = [time for time in times if low <= time <= high]
    if not shown:
        raise ValueError(f"no frame of the recording lies between the times {first:g} and {last:g}")
    if first > last:
        shown.reverse()
    # Fractions: 3 x 30 / 90 must not become 0.9999.
    ratio = Fraction(play_fps).limit_denominator(10**6) / Fraction(fps).limit_denominator(10**6)
    return np.array([shown[int(k * ratio) % len(shown)] for k in range(count)], dtype=np.float64)
