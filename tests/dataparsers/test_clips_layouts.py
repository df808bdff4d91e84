"""The four published layouts and a user's folder: which files are frames, in which order, held out or not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from clip_folders import LAYOUTS, write_picture, write_pictures, write_video
from clip_scenes import number_of
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.clips import catalogue
from dataparsers.clips_frames import read_frame
from dataparsers.clips_layouts import CO3D_CATEGORIES, Walk, detect_layout, find_clips
from dataparsers.clips_sequence import forget_pictures, ordered_pictures, picture_key


@pytest.fixture(autouse=True)
def _fresh():
    forget_pictures()
    yield
    forget_pictures()


EXPECTED = {
    "folder": {"garden": 14, "kitchen": 20, "room": 12, "walk/tour": 30},
    "re10k": {"aaa": 11, "bbb": 11, "ccc": 11},
    "dl3dv": {"s1": 11, "s2": 11},
    "mvimgnet": {f"7/{number:08x}": 10 for number in range(11)},
    "co3dv2": {"chair/1_a": 10, "chair/2_b": 10},
}
HELD_OUT = {
    "re10k": {"ccc"},
    "dl3dv": {"s2"},
    "mvimgnet": {"7/00000009", "7/0000000a"},
    "co3dv2": {"chair/2_b"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_and_read(layout: str, tmp_path: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "set")
    assert detect_layout(root) == layout
    for dataset in ("auto", layout):
        found = catalogue(root, dataset)
        assert {sequence.id: sequence.frames for sequence in found.sequences} == EXPECTED[layout]
        assert found.dataset == layout
        if layout in HELD_OUT:
            assert {sequence.id for sequence in found.split("test")} == HELD_OUT[layout]
            assert {sequence.id for sequence in found.split("train")} == set(EXPECTED[layout]) - HELD_OUT[layout]
    if layout in ("folder", "re10k", "dl3dv"):  # small jpgs do not spell their number
        for sequence in found.sequences:
            assert [number_of(read_frame(sequence, index)) for index in (0, 3, 9)] == [0, 3, 9], sequence


def test_share_of_a_category_is_the_floor_of_nine_tenths() -> None:
    for count in range(1, 60):
        assert count * 9 // 10 == math.floor(0.9 * count + 1e-9)
    assert len(CO3D_CATEGORIES) == 51


@pytest.mark.parametrize("layout", ["re10k", "dl3dv", "mvimgnet", "co3dv2"])
def test_a_layout_that_is_not_there(layout: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "garden")
    with pytest.raises(DataError, match=f"which the {layout} layout keeps its frames in"):
        catalogue(tmp_path, layout)


def test_orders_of_names() -> None:
    assert ordered_pictures(["10.png", "9.PNG", "1.jpg", ".2.png", "a.txt"], "natural") == ("1.jpg", "9.PNG", "10.png")
    assert ordered_pictures(["b2.png", "a10.png", "a9.png"], "natural") == ("a9.png", "a10.png", "b2.png")
    assert ordered_pictures(["x_100.png", "x_99.png", "x.png", "1.jpg"], "trailing") == ("x_99.png", "x_100.png")
    assert ordered_pictures(["frame_2.png", "frame_10.png", "frame_1.jpg"], "frame_n") == (
        "frame_2.png",
        "frame_10.png",
    )
    assert ordered_pictures(["002.jpg", "001.jpg", "0003.jpg", "003.png"], "first3") == ("001.jpg", "002.jpg")
    assert ordered_pictures(["frame000010.jpg", "frame000009.jpg", "frame1.jpg"], "co3d") == (
        "frame000009.jpg", "frame000010.jpg",
    )  # fmt: skip


@given(st.lists(st.text("0123456789ab_.٣", min_size=1, max_size=12).map(lambda stem: f"{stem}.png"), unique=True))
def test_any_names_sort(names: list[str]) -> None:
    ordered = ordered_pictures(names, "natural")
    assert sorted(ordered) == sorted(name for name in names if picture_key(name, "natural") is not None)
    assert ordered_pictures(names[::-1], "natural") == ordered
    numbers = [int(name[:-4]) for name in ordered if name[:-4].isascii() and name[:-4].isdigit()]
    assert numbers == sorted(numbers)


def test_companions_of_images_are_no_clips(tmp_path: Path) -> None:
    for name in ("images", "images_4", "masks", "depths", "sparse", "outdoors"):
        write_pictures(tmp_path / "scene" / name)
    write_video(tmp_path / "scene" / "walk.mp4")
    ids = {found.id for found in find_clips(Walk(tmp_path), "folder")}
    assert ids == {"scene", "scene/outdoors", "scene/walk"}
    write_pictures(tmp_path / "masks")
    assert "masks" in {found.id for found in find_clips(Walk(tmp_path), "folder")}, "alone it is a clip"


def test_links(tmp_path: Path) -> None:
    """Linked folders are read, links to a folder above are not followed for ever."""
    write_pictures(tmp_path / "elsewhere" / "garden")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere" / "garden", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "again")
    assert {found.id for found in find_clips(Walk(tmp_path / "set"), "folder")} == {"linked"}


def test_the_folder_itself_is_a_clip(tmp_path: Path) -> None:
    write_pictures(tmp_path / "holiday", 30)
    found = catalogue(tmp_path / "holiday")
    assert [sequence.id for sequence in found.sequences] == ["holiday", "holiday~end"]


def test_poses_beside_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "fox")
    write_picture(tmp_path / "other.png")
    (tmp_path / "fox_transforms.json").write_text("{}")
    found = {each.id: each.transforms for each in find_clips(Walk(tmp_path), "folder")}
    assert found == {tmp_path.name: None, "fox": tmp_path / "fox_transforms.json"}


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be listed"):
        Walk(tmp_path).entries(tmp_path / "absent")
