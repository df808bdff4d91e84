"""How far apart the frames of a sample may be in each collection, and the plan of all samples (spec xfactor 2.2)."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from core_ns.errors import DataError
from dataparsers.clips import Catalogue
from dataparsers.clips_mix import MixEntry
from dataparsers.clips_sequence import Sequence
from dataparsers.clips_windows import PlanSet, SamplePlan


class Window(NamedTuple):
    """The paper's setting of a set: longest window at the first update and after the warm-up, frames; its weight."""

    begin: float
    end: float
    weight: int


STEREO = {
    "co3dv2": Window(9, 20, 1),
    "dl3dv": Window(5, 10, 1),
    "re10k": Window(40, 100, 1),
    "mvimgnet": Window(5, 10, 1),
}
"""Two frames per sample; spec xfactor 2.2."""
MULTI_VIEW = {
    "co3dv2": Window(9, 40, 2),
    "dl3dv": Window(6, 20, 5),
    "re10k": Window(40, 200, 3),
    "mvimgnet": Window(6, 20, 2),
}
"""Six frames per sample."""


@dataclass(frozen=True)
class WindowOptions:
    """What decides on windows; see the data manager's options of the same names."""

    frames_per_sample: int = 2
    begin: float | None = None
    end: float | None = None
    begin_seconds: float = 0.5
    end_seconds: float = 3.0
    picture_fps: float = 10.0
    bump: bool = False
    warmup_updates: int = 50_000
    seed: int = 9


def window_of(sequence: Sequence, dataset: str, entry: MixEntry, options: WindowOptions) -> tuple[float, float]:
    """(begin, end) of a clip's longest window in frames.

    The mix's own numbers go first, then the options, then the paper's (counted in stored frames), and for a user's
    folder seconds times the clip's rate.
    """
    table = STEREO if options.frames_per_sample == 2 else MULTI_VIEW
    if dataset in table:
        begin, end = table[dataset].begin / sequence.stride, table[dataset].end / sequence.stride
    else:
        rate = options.picture_fps / sequence.stride if sequence.fps is None else sequence.fps
        begin, end = options.begin_seconds * rate, options.end_seconds * rate
    begin = options.begin if options.begin is not None else begin
    end = options.end if options.end is not None else end
    begin = entry.begin if entry.begin is not None else begin
    end = entry.end if entry.end is not None else end
    shortest = float(options.frames_per_sample)
    return max(begin, shortest), max(end, begin, shortest)


def make_plan(
    catalogues: Items[tuple[MixEntry, Catalogue]],
    sequences: Items[Items[Sequence]],
    options: WindowOptions,
) -> SamplePlan:
    """The samples of a split.

    Args:
        catalogues: collections, with what the mix says of them.
        sequences: of each collection the clips to use, ids unique over all of them.
        options: windows, seed.

    Raises:
        DataError: a clip has fewer frames than a sample.
    """
    n = options.frames_per_sample
    table = STEREO if n == 2 else MULTI_VIEW
    sets = []
    for (entry, found), clips in zip(catalogues, sequences, strict=True):
        kept = [clip for clip in clips if clip.frames > n]
        if not kept:
            problem = f"has no clip of more than {n} frames, which a sample shows."
            raise DataError(found.root, "clips", problem, "Choose fewer --pipeline.datamanager.frames-per-sample.")
        default = table[found.dataset].weight if found.dataset in table else 1
        windows = [window_of(clip, found.dataset, entry, options) for clip in kept]
        sets.append(PlanSet(kept, windows, default if entry.weight is None else entry.weight))
    return SamplePlan(sets, n, seed=options.seed, bump=options.bump, warmup=options.warmup_updates)


def describe(plan: SamplePlan, warmup: int) -> list[str]:
    """Windows and shares of each collection, one line each."""
    whole = sum(each.weight for each in plan.sets)
    lines = []
    for each in plan.sets:
        begins, ends = zip(*each.windows, strict=True)
        share = f", {100 * each.weight / whole:.0f} % of the samples" if len(plan.sets) > 1 else ""
        lines.append(
            f"Windows: up to {_span(begins)} frames at first, {_span(ends)} after {warmup} updates, "
            f"{plan.n} frames of each ({len(each.sequences)} clips{share})"
        )
    return lines


def _span(values: Items[float]) -> str:
    low, high = int(min(values)), int(max(values))
    return str(low) if low == high else f"{low} to {high}"
