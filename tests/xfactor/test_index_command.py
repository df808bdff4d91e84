"""``ns-xfactor index`` and ``demo-clips`` as commands: what they print, write and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_folders import user_folder

from core_ns.errors import DataError
from dataparsers.clips import catalogue
from xfactor_ns.index_command import DemoClips, Index


def test_index(tmp_path: Path, capsys) -> None:
    root = user_folder(tmp_path / "set")
    assert Index(root).main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Clips: 4 (folder layout, 76 frames)")
    assert lines[-1] == f"Index: {root / 'clips_index.json'}"
    assert catalogue(root).notes == ()
    assert Index(root, output=tmp_path / "elsewhere.json").main() == 0
    assert catalogue(root, index=tmp_path / "elsewhere.json").notes == ()


def test_index_of_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        Index(tmp_path / "absent").main()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        Index(tmp_path / "empty").main()
    assert list((tmp_path / "empty").iterdir()) == []


def test_demo_clips(tmp_path: Path, capsys) -> None:
    assert DemoClips(tmp_path / "demo", clips=2, frames=10, size=16).main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2 clips of 10 frames; path00_a and path00_b are held out",
        f"Train: ns-train xfactor-tiny --data {tmp_path / 'demo'}",
    ]
    assert len(catalogue(tmp_path / "demo").sequences) == 2
