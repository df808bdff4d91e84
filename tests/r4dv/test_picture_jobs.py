"""Jobs of all cameras: the first error ends the others; folders are found where people mean them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prepared_scenes import make_photos

from core_ns.errors import DataError
from r4dv_ns.picture_jobs import each_camera, open_photos, place_below


def test_all_jobs_run() -> None:
    done: list[str] = []

    def job(name: str, step) -> None:
        step()
        done.append(name)

    each_camera(list("abcde"), job, 5, "Testing", workers=2)
    assert sorted(done) == list("abcde")


def test_one_error_ends_the_others() -> None:
    steps: list[str] = []
    failed = threading.Event()

    def job(name: str, step) -> None:
        if name == "bad":
            failed.set()
            raise DataError("file", "place", "is bad.", "Mend it.")
        failed.wait(10)
        for _ in range(10**6):
            step()
            steps.append(name)

    with pytest.raises(DataError, match="is bad"):
        each_camera(["a", "bad", "late"], job, 10**6, "Testing", workers=2)
    assert len(steps) < 10**6, "it stopped"
    assert "late" not in steps


def test_folders(tmp_path: Path, monkeypatch) -> None:
    make_photos(tmp_path / "scene", frames=3)
    (tmp_path / "raw").mkdir()
    monkeypatch.chdir(tmp_path)
    assert place_below(Path("scene"), "images") == Path("scene/images")
    assert place_below(Path("scene"), "raw") == tmp_path / "raw"
    assert place_below(Path("new"), "raw") == tmp_path / "raw"
    assert place_below(Path("new"), str(tmp_path / "raw")) == tmp_path / "raw"
    assert place_below(Path("scene"), "absent") == Path("scene/absent")
    with pytest.raises(DataError, match="is not a folder"):
        place_below(Path("new"), "absent")
    photos, stems = open_photos(Path("scene"), "images", (0, None, 2))
    assert (photos.names, stems) == (["a_1", "b"], ["000000", "000002"])
    (tmp_path / "scene" / "empty").mkdir()
    with pytest.raises(DataError, match="holds no camera"):
        open_photos(Path("scene"), "empty", (0, None, 1))
