"""Which views the mvsnet-data parser trains on and holds out, masks, and broken scenes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mvsnet_scene import HEIGHT, WIDTH, make_scene, outputs, split_names

from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers import mvsnet_parser


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path / "scene")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(mvsnet_parser.CONSOLE, "print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    return lines


EIGHT = [f"v{index:02d}" for index in range(8)]


def test_interval_and_fraction_and_all(scene: Path) -> None:
    assert split_names(scene) == (EIGHT[1:7], ["v00", "v07"])
    assert split_names(scene, eval_mode="interval", eval_interval=3)[1] == ["v00", "v03", "v06"]
    train, test = split_names(scene, eval_mode="fraction", train_split_fraction=0.75)
    assert len(train) == 6
    assert sorted(train + test) == EIGHT
    assert split_names(scene, eval_mode="all") == (EIGHT, EIGHT)


@pytest.mark.parametrize(
    ("lists", "train", "test"),
    [
        ({"test": "v03\nv01\n"}, ["v00", "v02", "v04", "v05", "v06", "v07"], ["v01", "v03"]),
        ({"train": "v03\nv01\n"}, ["v01", "v03"], ["v00", "v02", "v04", "v05", "v06", "v07"]),
        ({"train": "1\n2\n", "test": "5\n6\n"}, ["v01", "v02"], ["v05", "v06"]),
        ({"test": "v03.png\nv01\n", "ignore": "v03\nv00\nv02"}, ["v04", "v05", "v06", "v07"], ["v01"]),
        ({"ignore": "v07\n"}, EIGHT[1:7], ["v00"]),
    ],
)
def test_lists(scene: Path, lists: dict[str, str], train: list[str], test: list[str], printed: list[str]) -> None:
    for name, content in lists.items():
        (scene / f"{name}_views.txt").write_text(content)
    assert split_names(scene) == (train, test)
    assert split_names(scene, eval_mode="files") == (train, test)
    assert any("Only one view" in line for line in printed) == (len(test) == 1)
    assert split_names(scene, eval_mode="interval") == (EIGHT[1:7], ["v00", "v07"])


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ({"test": "v01\n\nv99\n"}, {}, "test_views.txt (line 3)"),
        ({"train": "v01\nv02\n", "test": "v02\n"}, {}, "1 views are in train_views.txt and in test_views.txt: v02"),
        ({"test": "# nothing\n"}, {}, "8 views to train on and 0 held out"),
        ({"test": "\n".join(EIGHT)}, {}, "0 views to train on"),
        ({"ignore": "\n".join(EIGHT)}, {}, "0 views to train on and 0 held out"),
        ({}, {"eval_mode": "files"}, "none of train_views.txt"),
        ({}, {"eval_interval": 1}, "eval_interval 1"),
        ({}, {"eval_mode": "fraction", "train_split_fraction": 1.0}, "train_split_fraction 1.0"),
    ],
)
def test_unusable_splits(scene: Path, lists: dict[str, str], options: dict, message: str) -> None:
    for name, content in lists.items():
        (scene / f"{name}_views.txt").write_text(content)
    with pytest.raises(DataError) as caught:
        outputs(scene, **options)
    assert message in str(caught.value)
    assert caught.value.remedy


def test_masks_follow_the_views(scene: Path) -> None:
    (scene / "masks_2").mkdir()
    for name in EIGHT:
        write_image(scene / "masks_2" / f"{name}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    part = outputs(scene, "test")
    assert part.mask_filenames == [scene / "masks_2" / "v00.png", scene / "masks_2" / "v07.png"]
    write_image(scene / "masks_2" / "v07.png", np.full((HEIGHT, WIDTH + 1), 255, np.uint8))
    with pytest.raises(DataError, match="the mask is"):
        outputs(scene, "test")
    (scene / "masks_2" / "v07.png").unlink()
    with pytest.raises(DataError, match=r"v07.png \(path\): is not a file"):
        outputs(scene, "test")


def break_scene(scene: Path, defect: str) -> None:
    if defect == "no folder":
        shutil.rmtree(scene)
    elif defect == "no cams":
        shutil.rmtree(scene / "cams_2")
    elif defect == "one view":
        for name in EIGHT[1:]:
            (scene / "images_2" / f"{name}.png").unlink()
    elif defect == "same name twice":
        shutil.copy(scene / "images_2" / "v03.png", scene / "images_2" / "v03.tif")
    elif defect == "broken photo":
        (scene / "images_2" / "v03.png").write_bytes(b"no photo")
    elif defect == "broken camera":
        (scene / "cams_2" / "v03_cam.txt").write_text("extrinsic\n")
    elif defect == "broken mesh":
        (scene / "mesh.obj").write_text("v 0 0 0\n")


@pytest.mark.parametrize(
    "defect", ["no folder", "no cams", "one view", "same name twice", "broken photo", "broken camera", "broken mesh"]
)
def test_broken_scenes_give_one_complete_error_and_write_nothing(scene: Path, defect: str) -> None:
    break_scene(scene, defect)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in scene.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        outputs(scene)
    error = caught.value
    assert all((error.file, error.place, error.problem, error.remedy))
    assert sorted((str(path), path.stat().st_mtime_ns) for path in scene.parent.rglob("*")) == before
