"""Which clips are for training and which are held out: the layout's rule, files of ids, or a hash of the id.

Files hold ``{"train": {id: ...} | [id, ...], "test": ...}``, or, one file each, the paper's lists
``{re10k,dl3dv,mvimgnet,co3dv2}_{train,test}_frame_dict.json``: ``{id: [paths]}`` whose paths mean nothing here.
Source: spec xfactor 2.1 and 2.5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from core_ns.errors import DataError
from dataparsers.mvsnet import read_small_text

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
USER_FILE = "splits.json"
MAX_BYTES = 2_000_000_000
"""The paper's lists hold the path of every frame."""

_FORM = 'Write {"train": [ids], "test": [ids]}; an id is the clip\'s path from the folder, without suffix.'


def hash_split(id: str) -> Split:
    """``test`` where sha1 of the id is a multiple of ten."""
    return "test" if _digest(id) % 10 == 0 else "train"


def _digest(id: str) -> int:
    return int(hashlib.sha1(id.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest(), 16)


def hashed_splits(ids: Iterable[str]) -> dict[str, Split]:
    """`hash_split` of every id; few clips that all fall on one side give (or keep) the one of the smallest hash as the
    test clip. A single clip is for training: who holds out a part of it is the catalogue."""
    ids = sorted(ids)
    chosen: dict[str, Split] = {id: hash_split(id) for id in ids}
    if len(ids) > 1 and len(set(chosen.values())) == 1:
        held_out = min(ids, key=_digest)
        chosen = {id: "test" if id == held_out else "train" for id in ids}
    return chosen


def file_splits(file: Path, dataset: str, known: Iterable[str], dropped: Iterable[str] = ()) -> dict[str, Split]:
    """The splits that a file, or a folder with the paper's two lists, gives the clips of a collection.

    Ids that are not listed belong to neither; where one of the two lists is absent, to that one. The paper's lists may
    name clips that are not there (a part of the set was downloaded); a user's own file may not.

    Args:
        file: ``splits.json``, one ``*_frame_dict.json``, or a folder with both lists of ``dataset``.
        dataset: layout of the collection.
        known: the collection's ids.
        dropped: ids of clips that are too short: they may be named as well.

    Raises:
        DataError: no such file, another content, an id in both lists, unknown ids, or no clip left.
    """
    known, dropped = set(known), set(dropped)
    lists, own = _read_lists(Path(file), dataset)
    train, test = (None if ids is None else set(ids) for ids in (lists.get("train"), lists.get("test")))
    both = sorted((train or set()) & (test or set()))
    if both:
        raise DataError(file, f"id {both[0]!r}", "is in both lists.", "A clip is for training or for testing.")
    named = (train or set()) | (test or set())
    unknown = sorted(named - known - dropped)
    if own and unknown:
        problem = f"is not among the clips ({len(unknown)} of {len(named)} ids are not)."
        raise DataError(file, f"id {unknown[0]!r}", problem, _FORM)
    if not named & known:
        problem = f"names none of the {len(known)} clips, the first of which is {min(known, default='none')!r}."
        raise DataError(file, "ids", problem, _FORM)
    if train is None or test is None:
        given: Split = "test" if train is None else "train"
        other: Split = "train" if train is None else "test"
        return {id: given if id in named else other for id in known}
    return {id: "train" if id in train else "test" for id in known & named}


def _read_lists(file: Path, dataset: str) -> tuple[dict[Split, list[str]], bool]:
    """Lists by split, and whether a user wrote them."""
    if file.is_dir():
        present: dict[Split, Path] = {}
        for split in SPLITS:
            if (path := file / f"{dataset}_{split}_frame_dict.json").is_file():
                present[split] = path
        if not present:
            problem = f"has no {dataset}_train_frame_dict.json or {dataset}_test_frame_dict.json."
            raise DataError(file, "folder", problem, "Name a split file instead.")
        return {split: _ids(path, "", _load(path)) for split, path in present.items()}, False
    content = _load(file)
    for split in SPLITS:
        if file.name.endswith(f"_{split}_frame_dict.json"):
            other = file.with_name(file.name.replace(f"_{split}_", f"_{'test' if split == 'train' else 'train'}_"))
            lists: dict[Split, list[str]] = {split: _ids(file, "", content)}
            if other.is_file():
                lists["test" if split == "train" else "train"] = _ids(other, "", _load(other))
            return lists, False
    if not isinstance(content, dict) or not set(content) & set(SPLITS):
        raise DataError(file, "content", "has neither 'train' nor 'test'.", _FORM)
    unknown = sorted(set(content) - {*SPLITS, "val"})
    if unknown:
        raise DataError(file, f"key {unknown[0]!r}", "is not 'train' or 'test'.", _FORM)
    return {split: _ids(file, split, content[split]) for split in SPLITS if split in content}, True


def _load(file: Path) -> Any:
    text = read_small_text(file, MAX_BYTES)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}", f"is not JSON ({error.msg}).", _FORM) from error
    except (ValueError, RecursionError) as error:
        raise DataError(file, "content", f"is not usable JSON ({type(error).__name__}).", _FORM) from error


def _ids(file: Path, place: str, content: Any) -> list[str]:
    """The ids of a list, or of an object's keys."""
    if not isinstance(content, list | Mapping):
        problem = f"is a {type(content).__name__}, not a list of ids or an object whose keys are ids."
        raise DataError(file, place or "content", problem, _FORM)
    ids = list(content)
    wrong = next((id for id in ids if not isinstance(id, str) or not id), None)
    if wrong is not None:
        raise DataError(file, place or "content", f"holds {str(wrong)[:40]!r}, which is no id.", _FORM)
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))
        raise DataError(file, f"id {twice!r}", "is there twice.", "Name each clip once.")
    return ids
