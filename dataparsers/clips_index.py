"""What there is in a collection of clips: numbers of frames, sizes and rates; taken anew, or read from an index file.

``clips_index.json`` beside the data (or anywhere else) saves opening every video and listing every folder. Paths in it
are relative to the collection, and it counts only while every folder and video is as old as it was. Source: spec
xfactor 2.5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.images import image_size
from dataparsers.clips_layouts import LAYOUTS, Dataset, Found, Layout, Walk, detect_layout, find_clips
from dataparsers.clips_sequence import ORDERS, Sequence
from dataparsers.video_read import open_clip

INDEX_FILE = "clips_index.json"
VERSION = 1

_READERS = 4
_BLOCK = 256
_RATES = (1.0, 1000.0)
_REMEDY = "Run `ns-xfactor index` again, or delete the file."
T = TypeVar("T")


@dataclass(frozen=True)
class Inventory:
    """A collection as stored: every clip with all its frames, whatever training will use of it."""

    root: Path
    dataset: Layout
    clips: tuple[Sequence, ...]
    """By id."""
    splits: dict[str, Literal["train", "test"]]
    """What the layout itself says; empty for a user's folder."""
    stamps: dict[str, list[int]]
    """See `Walk`."""


def take_inventory(root: Path, dataset: Dataset = "auto", *, every_size: bool | None = None) -> Inventory:
    """Look at every clip of a collection.

    Args:
        root: its folder, or a single video.
        dataset: its layout; "auto" looks at the folders' names.
        every_size: read the size of every picture, not only of each clip's first; default: in a user's folder.

    Raises:
        DataError: no such folder, a video or picture that does not open, frames of several sizes in a clip, two clips
            of one name, or no clip at all.
    """
    root = Path(root)
    if root.is_file():
        clip = _video(Found(root.stem, root, None, (), None, None))
        return Inventory(root.parent, "folder", (clip,), {}, {})
    if not root.is_dir():
        raise DataError(root, "path", "is neither a folder nor a video.", "Name the folder of the clips.")
    layout: Layout = detect_layout(root) if dataset == "auto" else dataset
    every = layout == "folder" if every_size is None else every_size
    walk, clips, splits = Walk(root), {}, {}
    with ThreadPoolExecutor(_READERS) as pool:
        for block in _blocks(find_clips(walk, layout), _BLOCK):
            for found, clip in zip(block, pool.map(lambda each: _look_at(each, every), block), strict=True):
                if clip.id in clips:
                    problem = f"is clip {clip.id!r}, and so is {clips[clip.id].source.name}."
                    raise DataError(found.source, "name", problem, "Rename or move one of them.")
                clips[clip.id] = clip
                if found.split is not None:
                    splits[clip.id] = found.split
    if not clips:
        problem = "holds no video and no folder of pictures."
        raise DataError(root, "folder", problem, "Videos: mp4 mov m4v mkv webm avi; pictures: jpg png tif webp.")
    return Inventory(root, layout, tuple(clips[id] for id in sorted(clips)), splits, walk.stamps)


def _blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def _look_at(found: Found, every: bool) -> Sequence:
    try:
        found.id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(found.source, "name", "is not UTF-8.", "Rename it.") from error
    if found.order is None:
        return _video(found)
    sizes: dict[tuple[int, int], str] = {}
    for name in found.names if every else found.names[:1]:
        size = image_size(found.source / name)
        sizes.setdefault(size, name)
        if len(sizes) > 1:
            first = next(iter(sizes))
            problem = f"is {size[0]}x{size[1]} pixels, {sizes[first]} is {first[0]}x{first[1]}."
            remedy = "Frames of a clip are of one size: move the others to a folder of their own, or resize them."
            raise DataError(found.source, name, problem, remedy)
    return Sequence(found.id, len(found.names), next(iter(sizes)), None, found.source, found.order, found.transforms)


def _video(found: Found) -> Sequence:
    clip = open_clip(found.source, plain=True)
    low, high = _RATES
    rate = clip.fps if clip.fps is not None and low <= clip.fps <= high else None
    return Sequence(found.id, clip.name.frames, clip.size, rate, found.source, None, found.transforms)


def write_index(inventory: Inventory, file: Path | None = None) -> Path:
    """Write an index, atomically.

    Args:
        file: default: ``clips_index.json`` in the collection.

    Returns:
        The file written.
    """
    file = inventory.root / INDEX_FILE if file is None else Path(file)
    # Writing beside the clips changes the age of their folder: its entries stand for it.
    stamps = {name: stamp for name, stamp in inventory.stamps.items() if name != "."}
    content = {
        "version": VERSION,
        "dataset": inventory.dataset,
        "root_names": _root_names(inventory.root),
        "stamps": stamps,
        "clips": [_entry(clip, inventory) for clip in inventory.clips],
    }
    write_json(file, content)
    return file


def _root_names(root: Path) -> list[str]:
    """Entries that may be clips: lists of splits and indices come and go."""
    return sorted(name for name in os.listdir(root) if not name.startswith(".") and not name.endswith(".json"))


def _entry(clip: Sequence, inventory: Inventory) -> dict[str, Any]:
    def relative(path: Path | None) -> str | None:
        return None if path is None else path.relative_to(inventory.root).as_posix()

    return {
        "id": clip.id, "frames": clip.frames, "size": list(clip.size), "fps": clip.fps,
        "source": relative(clip.source), "order": clip.order, "transforms": relative(clip.transforms),
        "split": inventory.splits.get(clip.id),
    }  # fmt: skip


def read_index(file: Path, root: Path, dataset: Dataset = "auto") -> tuple[Inventory | None, str]:
    """The inventory in an index file, if it still holds.

    Returns:
        It, and an empty text; or None, and what changed since.

    Raises:
        DataError: the file is no index.
    """
    root = Path(root)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if content["version"] != VERSION or content["dataset"] not in LAYOUTS:
            raise ValueError("unknown version or layout")
        walk = Walk.of(root, {str(name): [int(stamp[0]), int(stamp[1])] for name, stamp in content["stamps"].items()})
        clips = tuple(_clip(entry, root) for entry in content["clips"])
        splits = {entry["id"]: entry["split"] for entry in content["clips"] if entry["split"] is not None}
        names = list(content["root_names"])
        if not clips or not set(splits.values()) <= {"train", "test"}:
            raise ValueError("no clips, or unknown splits")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DataError(file, "", f"is no index of clips ({type(error).__name__}: {error}).", _REMEDY) from error
    if dataset not in ("auto", content["dataset"]):
        return None, f"it is of the {content['dataset']} layout"
    if names != _root_names(root):
        return None, "the folder's entries changed"
    changed = walk.changed()
    if changed is not None:
        return None, f"{changed} changed"
    return Inventory(root, content["dataset"], clips, splits, walk.stamps), ""


def _clip(entry: dict[str, Any], root: Path) -> Sequence:
    frames, (width, height) = int(entry["frames"]), map(int, entry["size"])
    rate = None if entry["fps"] is None else float(entry["fps"])
    if rate is not None and not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"{rate} frames per second cannot be")
    order, transforms = entry["order"], entry["transforms"]
    if (
        frames < 1
        or min(width, height) < 1
        or not (order is None or order in ORDERS)
        or not isinstance(entry["id"], str)
    ):
        raise ValueError(f"clip {str(entry['id'])[:40]!r} cannot be")
    paths = [None if name is None else _inside(root, name) for name in (entry["source"], transforms)]
    if paths[0] is None:
        raise ValueError("a clip has no source")
    return Sequence(entry["id"], frames, (width, height), rate, paths[0], order, paths[1])


def _inside(root: Path, name: str) -> Path:
    """An index is data: it must not lead out of its collection."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name[:80]!r} leads out of the folder")
    return root / name
