"""The catalogue: splits of few clips, thinning, real clips, and the index that stands for looking again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from clip_folders import LAYOUTS, user_folder, write_picture, write_pictures, write_video
from clip_scenes import number_of
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers import clips_index
from dataparsers.clips import catalogue
from dataparsers.clips_frames import read_frame
from dataparsers.clips_index import read_index, take_inventory, write_index
from dataparsers.clips_sequence import forget_pictures


@pytest.fixture(autouse=True)
def _fresh():
    forget_pictures()
    yield
    forget_pictures()


def test_real_clips(shared_data: Path) -> None:
    """The folder as it is: none of the four ids has the hash of a test clip, so one is chosen."""
    root = shared_data / "xfactor_clips"
    before = sorted(root.rglob("*"))
    found = catalogue(root)
    assert [(each.id, each.frames, each.size) for each in found.sequences] == [
        ("fox", 50, (256, 455)), ("room", 13, (455, 256)), ("target", 30, (256, 256)), ("transfer", 30, (256, 256)),
    ]  # fmt: skip
    assert [each.id for each in found.split("test")] == ["target"]
    assert [each.id for each in found.sequences if each.has_poses] == ["fox"]
    assert found.describe() == [
        "Clips: 4 (folder layout, 123 frames), 3 to train, 1 held out (by a hash of the id)",
    ]
    for each in found.sequences:
        assert read_frame(each, each.frames - 1).shape == (each.size[1], each.size[0], 3)
    assert sorted(root.rglob("*")) == before


def test_one_video(tmp_path: Path) -> None:
    """Its end is held out; of a short one nothing can be."""
    write_video(tmp_path / "walk.mp4", 60)
    write_picture(tmp_path / "broken" / "0.jpg").write_bytes(b"")  # what lies beside it does not matter
    found = catalogue(tmp_path / "walk.mp4")
    train, test = found.split("train"), found.split("test")
    assert [(each.id, each.frames) for each in (*train, *test)] == [("walk", 48), ("walk~end", 12)]
    assert number_of(read_frame(test[0], 0)) == 48
    assert number_of(read_frame(train[0], 47)) == 47
    assert found.split("val") == test
    write_video(tmp_path / "short.mp4", 15)
    found = catalogue(tmp_path / "short.mp4")
    assert [each.frames for each in found.sequences] == [15, 15]
    assert "nothing can be held out" in found.describe()[0]


def test_thinning(tmp_path: Path) -> None:
    """Videos of more frames a second than asked for keep every second, third, ...; folders have no rate."""
    write_video(tmp_path / "fast.mp4", 60)
    write_pictures(tmp_path / "frames", 60)
    write_video(tmp_path / "short.mp4", 20)
    found = catalogue(tmp_path, max_fps=10.0, stride=2, min_frames=10)
    assert [(each.id, each.frames, each.fps, each.stride) for each in found.sequences] == [
        ("fast", 15, 6.25, 4), ("frames", 30, None, 2),
    ]  # fmt: skip
    assert [number_of(read_frame(found.sequence("fast"), index)) for index in (0, 1, 14)] == [0, 4, 56]
    assert found.skipped == (("short", 5),)
    assert found.describe()[1] == "Left out as too short: short (5 frames)"
    assert catalogue(tmp_path, max_fps=12.5).sequence("fast").stride == 2
    with pytest.raises(DataError, match=r"clip 'walk'.*is not there"):
        found.sequence("walk")


def test_a_layout_without_held_out_clips(tmp_path: Path) -> None:
    """RE10K's training half alone still has clips to evaluate on."""
    for number in range(4):
        write_pictures(tmp_path / "train" / "images" / f"s{number}", 10, name="{}.png")
    found = catalogue(tmp_path)
    assert (len(found.split("train")), len(found.split("test"))) == (3, 1)
    assert "puts all clips into train" in found.rule


def test_a_users_splits(tmp_path: Path) -> None:
    root = user_folder(tmp_path / "set")
    (root / "splits.json").write_text(json.dumps({"train": ["garden", "kitchen"], "test": ["walk/tour"]}))
    found = catalogue(root)
    assert [each.id for each in found.split("train")] == ["garden", "kitchen"]
    assert [each.id for each in found.split("test")] == ["walk/tour"]
    assert len(found.sequences) == 4, "the room belongs to neither"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"test": ["room"]}))
    assert [each.id for each in catalogue(root, splits=other).split("test")] == ["room"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_says_the_same(layout: str, tmp_path: Path, monkeypatch) -> None:
    root = LAYOUTS[layout](tmp_path / "set")
    looked = catalogue(root)
    assert write_index(take_inventory(root)) == root / "clips_index.json"

    def refuse(*args: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr(clips_index, "find_clips", refuse)
    assert catalogue(root) == looked
    content = (root / "clips_index.json").read_text()
    assert str(tmp_path) not in content, "paths are relative"
    root.rename(tmp_path / "moved")
    moved = catalogue(tmp_path / "moved")
    assert [each.source for each in moved.sequences] == [
        tmp_path / "moved" / each.source.relative_to(root) for each in looked.sequences
    ]
    monkeypatch.undo()


CHANGES = {
    "a new clip": lambda root: write_pictures(root / "new"),
    "a new video deep inside": lambda root: write_video(root / "walk" / "more.mp4"),
    "a picture gone": lambda root: (root / "garden" / "7.png").unlink(),
    "another video": lambda root: write_video(root / "kitchen.mp4", 25),
    "a clip gone": lambda root: (root / "walk" / "tour.MOV").unlink(),
    "another picture": lambda root: write_picture(root / "room" / "images" / "x.png"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_old_index_is_not_used(kind: str, tmp_path: Path) -> None:
    root = user_folder(tmp_path / "set")
    write_index(take_inventory(root), tmp_path / "index.json")
    os.utime(root / "kitchen.mp4", ns=(0, 10**18))  # the same size does not make it the same video
    write_index(take_inventory(root), tmp_path / "index.json")
    assert catalogue(root, index=tmp_path / "index.json").notes == ()
    CHANGES[kind](root)
    forget_pictures()
    found = catalogue(root, index=tmp_path / "index.json")
    assert found.notes[0].startswith("index.json is not used: ")
    assert found.sequences == catalogue(root).sequences
    known, why = read_index(tmp_path / "index.json", root)
    assert known is None
    assert why


def test_splits_do_not_age_an_index(tmp_path: Path) -> None:
    root = user_folder(tmp_path / "set")
    write_index(take_inventory(root))
    (root / "splits.json").write_text('{"test": ["room"]}')
    found = catalogue(root)
    assert not found.notes
    assert [each.id for each in found.split("test")] == ["room"]
    assert catalogue(root, "folder").notes == ()
    known, why = read_index(root / "clips_index.json", root, "re10k")
    assert (known, why) == (None, "it is of the folder layout")


BAD = {
    "another version": lambda content: content.update(version=2),
    "no clips": lambda content: content.update(clips=[]),
    "a way out": lambda content: content["clips"][0].update(source="../../etc"),
    "an absolute path": lambda content: content["clips"][0].update(source="/etc"),
    "no frames": lambda content: content["clips"][0].update(frames=0),
    "no order of that name": lambda content: content["clips"][0].update(order="random"),
    "an id that is none": lambda content: content["clips"][0].update(id=7),
    "stamps that are none": lambda content: content.update(stamps=[1]),
    "a split that is none": lambda content: content["clips"][0].update(split="val"),
    "no source": lambda content: content["clips"][0].update(source=None),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_indices(kind: str, tmp_path: Path) -> None:
    root = user_folder(tmp_path / "set")
    file = write_index(take_inventory(root))
    content = json.loads(file.read_text())
    BAD[kind](content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="is no index of clips"):
        catalogue(root)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = ["id", "frames", "size", "fps", "source", "order", "transforms", "split"]


@given(
    key=st.sampled_from(KEYS), value=JSON, where=st.sampled_from(["clip", "clips", "stamps", "root_names", "dataset"])
)
def test_any_content_is_an_index_or_refused(tmp_path_factory, key: str, value: object, where: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        write_pictures(root / "a", 10, (8, 6))
    content = json.loads(json.dumps(INDEX))
    if where == "clip":
        content["clips"][0][key] = value
    else:
        content[where] = value
    (root / "index.json").write_text(json.dumps(content))
    try:
        known, why = read_index(root / "index.json", root)
    except DataError:
        return
    assert (known is None) == bool(why)
    if known is not None:
        assert all(each.frames > 0 and min(each.size) > 0 for each in known.clips)


INDEX = {
    "version": 1, "dataset": "folder", "root_names": ["a"], "stamps": {},
    "clips": [{"id": "a", "frames": 10, "size": [8, 6], "fps": None, "source": "a", "order": "natural",
               "transforms": None, "split": None}],
}  # fmt: skip


def test_an_index_that_is_not_there(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set" / "a")
    with pytest.raises(DataError, match="is no index of clips"):
        catalogue(tmp_path / "set", index=tmp_path / "absent.json")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        write_pictures(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(DataError, match="is not UTF-8"):
        catalogue(tmp_path)
