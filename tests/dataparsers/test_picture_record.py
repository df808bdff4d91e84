"""The record of a folder of pictures: work goes on after an interruption, and is never mixed with other work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from core_ns.errors import DataError
from dataparsers.picture_record import RECORD, Record, begin, read_record, stamp_of


def test_going_on(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "masks"
    wanted = Record("masks", {"threshold": 12, "frames": (0, None, 1)}, {"00": "ab"}, {"00": [4, 3, 8, 6]})
    first = begin(folder, wanted)
    assert first.done == []
    first.done = ["00"]
    first.write(folder)
    (folder / "00").mkdir()
    (folder / "00" / ".tmp-0123-000000.png").touch()
    again = begin(folder, wanted)
    assert again.done == ["00"]
    assert not list((folder / "00").iterdir()), "what a killed process left is gone"
    assert read_record(folder) == again
    for other in (
        replace(wanted, what="images"),
        replace(wanted, settings={"threshold": 13, "frames": (0, None, 1)}),
        replace(wanted, sources={"00": "cd"}),
        replace(wanted, sizes={}),
    ):
        with pytest.raises(DataError, match="of another run"):
            begin(folder, other)


def test_folders_of_somebody_else(tmp_path: Path) -> None:
    assert read_record(tmp_path / "absent") is None
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    with pytest.raises(DataError, match="did not write"):
        begin(tmp_path / "images", Record("images"))
    with pytest.raises(DataError, match="did not write"):
        begin(tmp_path / "images" / "a.jpg", Record("images"))
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "a.jpg"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".tmp-0123-ns-r4dv.json").touch()
    begin(tmp_path / "killed", Record("images"))
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [RECORD]


GOOD = {"what": "images", "settings": {}, "sources": {}, "sizes": {"00": [1, 2, 3, 4]}, "done": ["00"]}
DAMAGED = [
    "", "{", "[]", "3", "{}", "[" * 100000,
    *(json.dumps({**GOOD, name: value}) for name, value in [
        ("what", 3), ("settings", []), ("sources", None), ("sizes", []), ("sizes", {"a": 3}), ("sizes", {"a": [1, 2]}),
        ("sizes", {"a": [1, 2, 3, -4]}), ("sizes", {"a": [1, 2, 3, True]}), ("sizes", {"a": [1, 2, 3, 4.5]}),
        ("sizes", {"a": [1, 2, 3, 1 << 40]}), ("done", [3]), ("done", 3),
    ]),
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_records(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(DataError, match="cannot be used"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps(GOOD))
    assert read_record(tmp_path) == Record(**GOOD)


def test_stamps_tell_changed_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    before = stamp_of([file])
    assert stamp_of([file]) == before
    os.utime(file, ns=(1, 1))
    assert stamp_of([file]) != before
    with pytest.raises(DataError, match="cannot be read"):
        stamp_of([file, tmp_path / "b"])
