"""Hulls of many frames seen together: empty ones, suspicious ones, and the box of all (spec r4dv 3.1, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_WINDOW = 11
_DEVIATIONS = 3.0
_SMALLEST_CHANGE = 0.1
"""Of the median volume: what a change of pose explains. Without it the frames of a still subject would be flagged."""
_VOLUME = "volume "


def nearest_filled(counts: Sequence[int]) -> list[int | None]:
    """For each frame the nearest one with points (itself if it has some; the earlier of two); None if all are empty."""
    filled = np.flatnonzero(np.asarray(counts) > 0)
    if not len(filled):
        return [None] * len(counts)
    return [int(filled[np.abs(filled - frame).argmin()]) for frame in range(len(counts))]


def odd_volumes(volumes: Float[np.ndarray, "f"]) -> tuple[Bool[np.ndarray, "f"], Float[np.ndarray, "f"]]:
    """Which volumes lie more than 3 median absolute deviations, and a tenth, from the median of the 11 frames around.

    Returns:
        The flags, and every frame's rolling median.
    """
    volumes = np.asarray(volumes, dtype=np.float64)
    medians, spreads = np.empty_like(volumes), np.empty_like(volumes)
    for frame in range(len(volumes)):
        # At the ends the window moves inwards: it never gets smaller.
        start = max(0, min(frame - _WINDOW // 2, len(volumes) - _WINDOW))
        around = volumes[start : start + _WINDOW]
        medians[frame] = np.median(around)
        spreads[frame] = np.median(np.abs(around - medians[frame]))
    limit = np.maximum(_DEVIATIONS * spreads, _SMALLEST_CHANGE * medians)
    return np.abs(volumes - medians) > limit, medians


def flag_volumes(entries: list[dict[str, Any]]) -> None:
    """Write a flag into the entries of frames whose hull has an odd volume; flags of an earlier call are replaced."""
    odd, medians = odd_volumes(np.array([entry["volume"] for entry in entries]))
    for entry, is_odd, median in zip(entries, odd, medians, strict=True):
        entry["flags"] = [flag for flag in entry["flags"] if not flag.startswith(_VOLUME)]
        if is_odd:
            change = 100.0 * (entry["volume"] / median - 1.0)
            entry["flags"].append(f"{_VOLUME}differs by {change:+.0f} % from that of the frames around")


def aggregate(entries: Sequence[dict[str, Any]], voxel: float) -> Float[np.ndarray, "2 3"]:
    """The box of all frames, one voxel wider; frames of odd volume do not count, unless all are odd (spec r4dv 3.2)."""
    sound = [entry for entry in entries if not any(flag.startswith(_VOLUME) for flag in entry["flags"])]
    boxes = np.array([entry["bbox"] for entry in sound or entries], dtype=np.float64)
    return np.stack([boxes[:, 0].min(0) - voxel, boxes[:, 1].max(0) + voxel])
