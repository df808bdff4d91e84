"""A catalogue of clips: which there are, and which of them are held out (spec xfactor 2.1, 2.5).

Any folder of videos and of folders with pictures, or the layouts of the sets XFactor was trained on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core_ns.errors import DataError
from dataparsers.clips_index import INDEX_FILE, Inventory, read_index, take_inventory
from dataparsers.clips_layouts import Dataset, Layout, Walk
from dataparsers.clips_sequence import Sequence
from dataparsers.clips_splits import USER_FILE, Split, file_splits, hashed_splits

__all__ = ["Catalogue", "Sequence", "catalogue"]

MIN_FRAMES = 10
"""Shorter clips are left out."""
TAIL = (1, 5)
"""Of a single clip, this share at its end is held out."""


@dataclass(frozen=True)
class Catalogue:
    """The clips of a collection that are long enough, and their splits."""

    root: Path
    dataset: Layout
    sequences: tuple[Sequence, ...]
    """By id; those that belong to neither split as well."""
    splits: dict[str, Split]
    """By id; clips that a split file does not name are absent."""
    rule: str
    """What decided on the splits, for people."""
    skipped: tuple[tuple[str, int], ...] = ()
    """(id, frames) of clips that are too short."""
    notes: tuple[str, ...] = ()
    """What a user should know, one line each."""
    _by_id: dict[str, Sequence] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_id.update((sequence.id, sequence) for sequence in self.sequences)

    def split(self, name: Literal["train", "val", "test"]) -> list[Sequence]:
        """The clips for training, or those held out (``val`` is ``test``), by id."""
        wanted = "train" if name == "train" else "test"
        return [sequence for sequence in self.sequences if self.splits.get(sequence.id) == wanted]

    def sequence(self, id: str) -> Sequence:
        """A clip by its id.

        Raises:
            DataError: there is none of that name.
        """
        if id not in self._by_id:
            some = ", ".join(repr(each.id) for each in self.sequences[:5])
            more = ", ..." if len(self.sequences) > 5 else ""
            raise DataError(self.root, f"clip {id!r}", "is not there.", f"There are {some}{more}.")
        return self._by_id[id]

    def describe(self) -> list[str]:
        """What was found, one line each."""
        train, test = self.split("train"), self.split("test")
        frames = sum(sequence.frames for sequence in self.sequences)
        lines = [
            f"Clips: {len(self.sequences)} ({self.dataset} layout, {frames} frames), {len(train)} to train, "
            f"{len(test)} held out ({self.rule})"
        ]
        if self.skipped:
            (id, count), more = self.skipped[0], len(self.skipped) - 1
            others = f" and {more} more" if more else ""
            lines.append(f"Left out as too short: {id} ({count} frames){others}")
        return [*lines, *self.notes]


def catalogue(
    root: str | Path,
    dataset: Dataset = "auto",
    *,
    splits: Path | None = None,
    stride: int = 1,
    max_fps: float | None = None,
    min_frames: int = MIN_FRAMES,
    index: Path | None = None,
) -> Catalogue:
    """The clips of a folder (or one video). Nothing is written.

    Args:
        root: folder of the collection, or a video file.
        dataset: its layout; "auto" finds out.
        splits: a file of ids, or the folder of the paper's lists (see `file_splits`); default: ``splits.json`` in a
            user's folder, else the layout's own rule, else a hash of the id. A single clip holds out its last fifth.
        stride: use every so manieth frame.
        max_fps: thin videos further, until they have at most so many frames per second.
        min_frames: shorter clips are left out.
        index: file written by ``ns-xfactor index``; default: ``clips_index.json`` in the folder, if there is one.

    Raises:
        DataError: a file that is not what it should be (see `take_inventory`, `read_index`, `file_splits`), no clip
            that is long enough, or a split without clips.
    """
    root = Path(root)
    if stride < 1 or (max_fps is not None and not max_fps > 0):
        raise DataError("options", "stride, max-fps", f"are {stride} and {max_fps}.", "Give positive numbers.")
    inventory, notes = _inventory(root, dataset, index)
    kept: list[Sequence] = []
    skipped = []
    for stored in inventory.clips:
        sequence = stored.thinned(stride)
        if max_fps is not None and sequence.fps is not None and sequence.fps > max_fps:
            sequence = sequence.thinned(math.ceil(sequence.fps / max_fps - 1e-9))
        if sequence.frames < min_frames:
            skipped.append((sequence.id, sequence.frames))
        else:
            kept.append(sequence)
    if not kept:
        longest = max(skipped, key=lambda each: each[1])
        problem = f"holds no clip of {min_frames} frames or more; the longest, {longest[0]!r}, has {longest[1]}."
        raise DataError(root, "clips", problem, "Film longer clips, or use a smaller stride.")
    user_file = inventory.root / USER_FILE
    if splits is None and inventory.dataset == "folder" and user_file.is_file() and root.is_dir():
        splits = user_file
    chosen: dict[str, Split]
    if splits is not None:
        ids = (sequence.id for sequence in kept)
        chosen, rule = file_splits(splits, inventory.dataset, ids, (id for id, _ in skipped)), splits.name
    elif inventory.splits:
        chosen = {sequence.id: inventory.splits[sequence.id] for sequence in kept}
        rule = "the layout's rule"
        if len(kept) > 1 and len(set(chosen.values())) == 1:
            only = next(iter(chosen.values()))
            chosen, rule = hashed_splits(chosen), f"a hash of the id, for the layout puts all clips into {only}"
    elif len(kept) == 1:
        kept, rule = _head_and_tail(kept[0], min_frames)
        chosen = {sequence.id: split for sequence, split in zip(kept, ("train", "test"), strict=True)}
    else:
        chosen, rule = hashed_splits(sequence.id for sequence in kept), "by a hash of the id"
    found = Catalogue(root, inventory.dataset, tuple(kept), chosen, rule, tuple(skipped), tuple(notes))
    _check_splits(found, splits)
    return found


def _inventory(root: Path, dataset: Dataset, index: Path | None) -> tuple[Inventory, list[str]]:
    file = root / INDEX_FILE if index is None else index
    if root.is_dir() and (index is not None or file.is_file()):
        known, why = read_index(file, root, dataset)
        if known is not None:
            return known, []
        return _looked_at(root, dataset), [f"{file.name} is not used: {why}; ns-xfactor index makes a new one"]
    return _looked_at(root, dataset), []


_recent: OrderedDict[tuple[Path, str], Inventory] = OrderedDict()
_RECENT = 8


def _looked_at(root: Path, dataset: Dataset) -> Inventory:
    """A training looks at its clips twice, before anything is written and when it starts: the second time only at the
    age of folders and videos."""
    key = (root.absolute(), dataset)
    known = _recent.pop(key, None)
    if known is None or not known.stamps or known.root != root or Walk.of(root, known.stamps).changed() is not None:
        known = take_inventory(root, dataset)
    _recent[key] = known
    while len(_recent) > _RECENT:
        _recent.popitem(last=False)
    return known


def _head_and_tail(sequence: Sequence, min_frames: int) -> tuple[list[Sequence], str]:
    """A single clip's beginning to train on, and its end to hold out."""
    held_out = max(sequence.frames * TAIL[0] // TAIL[1], min_frames)
    if sequence.frames - held_out >= min_frames:
        cut = sequence.frames - held_out
        rule = f"its last {held_out} frames, for it is the only clip"
    else:
        cut, held_out, rule = sequence.frames, sequence.frames, "the same short clip twice: nothing can be held out"
    start = sequence.frames - held_out
    return [sequence.part(sequence.id, 0, cut), sequence.part(f"{sequence.id}~end", start, sequence.frames)], rule


def _check_splits(found: Catalogue, splits: Path | None) -> None:
    for name in ("train", "test"):
        if not found.split(name):
            what = "to train on" if name == "train" else "that is held out"
            problem = f"leaves no clip of {MIN_FRAMES} frames or more {what} ({found.rule})."
            raise DataError(splits or found.root, f"split {name!r}", problem, "Name one in splits.json (--splits).")
