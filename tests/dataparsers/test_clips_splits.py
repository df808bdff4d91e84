"""Splits: by a hash, by users' files, by the paper's lists; every unusable file is one clear error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.clips_splits import file_splits, hash_split, hashed_splits

IDS = [f"clip{number}" for number in range(8)]


def test_the_hash_is_sha1() -> None:
    for id in ["fox", "garden/ä", *map(str, range(200))]:
        expected = int.from_bytes(hashlib.sha1(id.encode()).digest(), "big") % 10 == 0
        assert (hash_split(id) == "test") == expected
    share = sum(hash_split(f"clip {number}") == "test" for number in range(5000)) / 5000
    assert 0.085 < share < 0.115


@given(st.sets(st.text(max_size=6), min_size=1, max_size=20))
def test_few_clips_always_have_both_splits(ids: set[str]) -> None:
    splits = hashed_splits(ids)
    assert set(splits) == ids
    if len(ids) > 1:
        assert set(splits.values()) == {"train", "test"}
        changed = [id for id in ids if splits[id] != hash_split(id)]
        assert len(changed) <= 1 or all(hash_split(id) == "test" for id in ids)
    else:
        assert len(set(splits.values())) == 1


def write(file: Path, content: object) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_users_file(tmp_path: Path) -> None:
    file = write(tmp_path / "splits.json", {"train": {"clip0": 1, "clip1": []}, "test": ["clip2"]})
    assert file_splits(file, "folder", IDS) == {"clip0": "train", "clip1": "train", "clip2": "test"}
    write(file, {"test": ["clip2", "short"]})
    splits = file_splits(file, "folder", IDS, dropped=["short"])
    assert splits == {id: "test" if id == "clip2" else "train" for id in IDS}
    write(file, {"train": ["clip2"], "val": ["anything"]})
    assert list(file_splits(file, "folder", IDS).values()).count("test") == 7


def test_the_papers_lists(tmp_path: Path) -> None:
    """Keys are the ids, paths mean nothing, and most clips of a set may not be there."""
    write(tmp_path / "re10k_train_frame_dict.json", {"clip0": ["/gone/0.png"], "other": []})
    write(tmp_path / "re10k_test_frame_dict.json", {"clip1": ["/gone/0.png"], "more": []})
    expected = {"clip0": "train", "clip1": "test"}
    for place in (tmp_path, tmp_path / "re10k_train_frame_dict.json", tmp_path / "re10k_test_frame_dict.json"):
        assert file_splits(place, "re10k", IDS) == expected
    (tmp_path / "re10k_test_frame_dict.json").unlink()
    one = file_splits(tmp_path, "re10k", IDS)
    assert one == {id: "train" if id == "clip0" else "test" for id in IDS}
    with pytest.raises(DataError, match=r"has no dl3dv_train_frame_dict\.json"):
        file_splits(tmp_path, "dl3dv", IDS)


BAD = {
    "not json": ("{", "is not JSON"),
    "too deep": ("[" * 100_000, "is not usable JSON|is not JSON"),
    "a list": (["clip0"], "neither 'train' nor 'test'"),
    "no split": ({"training": ["clip0"]}, "neither 'train' nor 'test'"),
    "another key": ({"train": ["clip0"], "tset": ["clip1"]}, "'tset'.*is not 'train' or 'test'"),
    "a text": ({"train": "clip0"}, "is a str, not a list of ids"),
    "numbers": ({"train": [0, 1]}, "holds '0', which is no id"),
    "nothing": ({"train": None}, "is a NoneType"),
    "twice": ({"train": ["clip0", "clip0"]}, "is there twice"),
    "in both": ({"train": ["clip0"], "test": ["clip0"]}, "is in both lists"),
    "unknown": ({"train": ["clip0", "clip9"], "test": ["clip1"]}, "'clip9'.*is not among the clips"),
    "empty": ({"train": [], "test": []}, "names none of the 8 clips"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    file = write(tmp_path / "splits.json", content)
    with pytest.raises(DataError, match=message) as caught:
        file_splits(file, "folder", IDS)
    assert caught.value.file == str(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(IDS) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*IDS, "train", "test", "val", "x"]), inner, max_size=4)
    ),
)


@given(content=JSON)
def test_any_content_gives_splits_or_is_refused(tmp_path_factory, content: object) -> None:
    file = write(tmp_path_factory.getbasetemp() / "any_splits.json", content)
    try:
        splits = file_splits(file, "folder", IDS)
    except DataError:
        return
    assert splits
    assert set(splits) <= set(IDS)
    assert set(splits.values()) <= {"train", "test"}


def test_lists_of_another_set(tmp_path: Path) -> None:
    write(tmp_path / "re10k_train_frame_dict.json", {"other": []})
    with pytest.raises(DataError, match="names none"):
        file_splits(tmp_path, "re10k", IDS)
    with pytest.raises(DataError, match="is not a file"):
        file_splits(tmp_path / "absent.json", "re10k", IDS)
