"""Listed names: none leads out of the photos' folder, each is found where it lies (spec megascenes 2.2, 2.6)."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_lists import CATEGORIES, listed, write_photos

from core_ns.errors import DataError
from dataparsers.megascenes_paths import (
    Resolver,
    bucket_path,
    image_key,
    original_warp_name,
    pair_key,
    path_problem,
    read_categories,
    relative_path,
    split_path,
)


def test_a_path_is_cut_at_its_last_marker():
    each = split_path("/x/main/images/y/main/images/Dome/commons/Dome/Interior/0/pictures/x 1.jpeg")
    assert (each.category, each.folders, each.name, each.released) == ("Dome", ("Dome", "Interior"), "x 1.jpeg", True)
    assert each.relative == "Dome/commons/Dome/Interior/0/pictures/x 1.jpeg"
    assert each.stem == "x 1."
    assert relative_path(each.relative) == each.relative


@pytest.mark.parametrize("path", ["a.jpg", "folder/a.jpg", "strip 0/in/a.JPG", "domain/images/a.jpg"])
def test_a_user_s_own_names_stay_as_they_are(path):
    assert relative_path(path) == path
    assert not split_path(path).released


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "./a.jpg", "a//b.jpg", "a/", "a\0b.jpg", "a\nb.jpg",
        "a\x7f.jpg",
        "\ud800.jpg", "C:/a.jpg", "C:\\a.jpg", "\\\\host\\share\\a.jpg",
        "x\\..\\..\\a.jpg", "x" * 4097, None, 3, b"a.jpg",
        "/main/images//etc/passwd", "main/images/../a.jpg", listed("..", "A"), "domain/images/../../a.jpg",
        "/x/domain/images/a.jpg",
    ],
)  # fmt: skip
def test_names_that_lead_out_or_nowhere(tmp_path, path):
    assert path_problem(path) is not None
    if isinstance(path, str):
        with pytest.raises(ValueError, match="the path"):
            list(Resolver(tmp_path).candidates(path))


NAMES = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["..", ".", "main", "images", "commons", "0"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(NAMES, max_size=8), st.sampled_from(["", "/", "/share/main/images/", "main/images/", "\\"]))
def test_no_name_leads_out_of_the_folder(tmp_path_factory, parts, start):
    root = tmp_path_factory.getbasetemp()
    path = start + "/".join(parts)
    if path_problem(path) is not None:
        return
    assert ".." not in relative_path(path).split("/")
    for candidate in Resolver(root, {"a": "000/001"}, root / "cache").candidates(path):
        assert candidate.is_relative_to(root)
        assert ".." not in candidate.relative_to(root).parts


class TestResolver:
    """Where a photo is looked for."""

    @pytest.fixture
    def categories(self, tmp_path):
        (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES), encoding="utf-8")
        return read_categories(tmp_path / "categories.json")

    def test_the_bucket_s_layout(self, tmp_path, categories):
        resolver = Resolver(write_photos(tmp_path / "images"), categories)
        assert resolver.find(listed("c d.jpg")) == tmp_path / "images/000/007/commons/Abbey_of_X/0/pictures/c_d.jpg"
        assert resolver.find(listed("Façade.png", "Château_de_X", "Exterior/North side")) is not None
        assert resolver.find(listed("gone.jpg")) is None
        assert resolver.find(listed("gone.jpg")) is None
        assert (resolver.hits, resolver.misses) == (2, 1), "each path counts once"

    def test_the_folder_above(self, tmp_path, categories):
        write_photos(tmp_path / "images")
        assert Resolver(tmp_path, categories).find(listed("a.jpg")) is not None

    @pytest.mark.parametrize(
        "place",
        [
            "Abbey_of_X/commons/Abbey_of_X/0/pictures/c_d.jpg",
            "Abbey_of_X/commons/Abbey_of_X/0/pictures/c d.jpg",
            "Abbey_of_X/commons/Abbey_of_X/c_d.jpg",
            "Abbey_of_X/commons/Abbey_of_X/0/pictures/c_d.JPG",
            "Abbey_of_X/commons/Abbey_of_X/0/pictures/c_d.png",
            "000/007/commons/Abbey_of_X/0/pictures/c_d.jpeg",
        ],
    )
    def test_folders_by_name_and_other_suffixes(self, tmp_path, categories, place):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(b"photo")
        assert Resolver(tmp_path, categories).find(listed("c d.jpg")) == tmp_path / place

    @pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
    def test_accents_in_either_form(self, tmp_path, categories, stored, asked):
        name = unicodedata.normalize(stored, "é.jpg")
        folder = tmp_path / "012/345/commons/Sub/0/pictures"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"photo")
        path = unicodedata.normalize(asked, listed("é.jpg", "Château_de_X", "Sub"))
        assert Resolver(tmp_path, categories).find(path) is not None

    def test_the_photo_comes_before_its_resized_copy(self, tmp_path, categories):
        images, cache = write_photos(tmp_path / "images"), write_photos(tmp_path / "cache")
        resolver = Resolver(images, categories, cache)
        assert resolver.find(listed("a.jpg")) == images / "000/007/commons/Abbey_of_X/0/pictures/a.jpg"
        (images / "000/007/commons/Abbey_of_X/0/pictures/b.jpg").unlink()
        assert resolver.find(listed("b.jpg")) == cache / "000/007/commons/Abbey_of_X/0/pictures/b.jpg"

    def test_a_name_too_long_for_the_disk_is_missing(self, tmp_path):
        assert Resolver(tmp_path).find(listed("a" * 1000 + ".jpg")) is None

    def test_no_folder(self, tmp_path):
        with pytest.raises(DataError, match="is no folder"):
            Resolver(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{", '{"a": -1}', '{"a": 1000000}', '{"a": "1234567"}', '{"a": 1.5}', '{"a": true}', '{"a": "../.."}',
     '{"a": null}', '{"a": "٣"}', "[" * 100000],
)  # fmt: skip
def test_categories_that_cannot_be_used(tmp_path, content):
    (tmp_path / "categories.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        read_categories(tmp_path / "categories.json")


def test_categories_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="Download"):
        read_categories(tmp_path / "categories.json")


def test_names_in_the_bucket():
    categories = {"Dome": "001/234"}
    path = listed("x 1.jpg", "Dome", "Dome/In side")
    assert bucket_path(path, categories) == "images/001/234/commons/Dome/In side/0/pictures/x_1.jpg"
    assert bucket_path(path, {}) is None
    assert bucket_path("Dome/x.jpg", categories) is None


def test_keys_tell_photos_pairs_and_settings_apart():
    a, b = listed("a.jpg"), listed("b.jpg")
    keys = [image_key(a), image_key(b), image_key(a, "v2"), pair_key(a, b), pair_key(b, a), pair_key(a, b, "v2")]
    assert len(set(keys)) == len(keys)
    assert image_key("/elsewhere/main/images/" + relative_path(a)) == image_key(a)
    assert pair_key(a, b) == hashlib.sha1(f"{relative_path(a)}\n{relative_path(b)}\n".encode()).hexdigest()


def test_the_original_s_warp_name_by_hand():
    ref, tgt = listed("one.jpg", "C", "S/T"), listed("two.jpeg", "C", "U")
    text = "C_commons_S_T_imgname:_one_to_U_imgname:_two."
    assert original_warp_name(ref, tgt) == hashlib.sha1(text.encode()).hexdigest() + ".png"
    assert isinstance(Path(original_warp_name(ref, tgt)).suffix, str)
