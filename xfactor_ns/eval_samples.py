"""Which frames of a clip are judged: pairs at half the training baseline, or frames inside windows (spec 8.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stereo_samples(numbers: Sequence[int], gap: int, count: int) -> list[tuple[int, int]]:
    """Pairs of a context frame and a target about ``gap`` frames away.

    Args:
        numbers: of the shown frames in the whole clip, ascending.
        gap: wanted distance in frames; the nearest that the shown frames have is taken, later in time where there is
            room, else earlier.
        count: pairs at most; their context frames are spread over the clip.

    Returns:
        Indices into ``numbers``: (reference, target).
    """
    shown = np.asarray(numbers)
    if len(shown) < 2:
        return []
    references = np.unique(np.linspace(0, len(shown) - 1, count).round().astype(int))
    pairs = []
    for reference in references.tolist():
        wanted = shown[reference] + (gap if shown[reference] + gap <= shown[-1] else -gap)
        others = np.delete(np.arange(len(shown)), reference)
        pairs.append((reference, int(others[np.abs(shown[others] - wanted).argmin()])))
    return pairs


def window_samples(numbers: Sequence[int], window: int, frames: int, count: int) -> list[tuple[int, ...]]:
    """Windows of ``frames`` frames: the reference, the other context frames in time order, an interior target.

    Args:
        numbers: of the shown frames in the whole clip, ascending.
        window: wanted distance in frames between a window's ends.
        frames: of a window, target included; at least 3.
        count: windows at most; spread over the clip.

    Returns:
        Indices into ``numbers``; empty when the clip shows fewer frames than a window has.
    """
    shown = np.asarray(numbers)
    if len(shown) < frames or frames < 3:
        return []
    last = max(int(np.searchsorted(shown, shown[-1] - window, side="right")) - 1, 0)
    starts = np.unique(np.linspace(0, min(last, len(shown) - frames), count).round().astype(int))
    samples = []
    for turn, start in enumerate(starts.tolist()):
        end = int(np.abs(shown - (shown[start] + window)).argmin())
        end = max(end, start + frames - 1)
        inside = _spread(start, end, frames)
        target = inside.pop(1 + turn % (frames - 2))
        # As in training the reference is the most central frame of the context.
        ends = np.abs(shown[inside][:, None] - shown[[inside[0], inside[-1]]]).max(axis=1)
        reference = inside.pop(int(ends.argmin()))
        samples.append((reference, *inside, target))
    return samples


def _spread(start: int, end: int, count: int) -> list[int]:
    """``count`` different whole numbers from ``start`` to ``end``, evenly; there are enough of them."""
    return [start + (step * (end - start)) // (count - 1) for step in range(count)]
