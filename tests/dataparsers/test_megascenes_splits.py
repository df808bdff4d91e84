"""From pickled lists to tables: the original's numbers, spec megascenes 11.6, and lists that cannot be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_lists import CATEGORIES, Q1, Q2, camera, listed, one_row, six_rows, write_list, write_photos

from core_ns.errors import DataError
from dataparsers.megascenes_missing import MISSING_FILE
from dataparsers.megascenes_paths import (
    original_depth_name,
    original_local_name,
    original_warp_name,
    read_categories,
)
from dataparsers.megascenes_rows import compact, parse_row
from dataparsers.megascenes_splits import convert_splits, split_name
from dataparsers.megascenes_table import PairTable, list_splits

FIXTURES = ["pairs_protocol2", "pairs_protocol3", "pairs_protocol4", "pairs_protocol5", "pairs_numpy1_protocol2"]


@pytest.mark.parametrize("name", FIXTURES)
def test_the_original_s_cameras_and_names(shared_fixtures, tmp_path, name):
    """Every field of pairs_expected.json but the pose vector (tests/megascenes/test_pose_vector.py has that)."""
    folder = shared_fixtures / "megascenes/data"
    (converted,) = convert_splits([folder / f"{name}.pkl"], tmp_path)
    expected = json.loads((folder / "pairs_expected.json").read_text(encoding="utf-8"))
    assert len(converted.table) == converted.listed == len(expected) == 6
    for pair, row in zip(converted.table, expected, strict=True):
        assert pair.index == row["row"]
        np.testing.assert_allclose(pair.ref_w2c, row["ref_w2c"], rtol=1e-6, atol=3e-8)
        np.testing.assert_allclose(pair.tgt_w2c, row["target_w2c"], rtol=1e-6, atol=3e-8)
        np.testing.assert_allclose(pair.ref_K, row["ref_K"], rtol=1e-12)
        np.testing.assert_allclose(pair.tgt_K, row["target_K"], rtol=1e-12)
        assert pair.scale == row["scale"]
        assert "LOCAL/" + original_local_name(pair.ref_path) == row["local_path_ref"]
        assert "LOCAL/" + original_local_name(pair.tgt_path) == row["local_path_target"]
        assert original_warp_name(pair.ref_path, pair.tgt_path) == row["warp_file_original"]
        assert original_depth_name(pair.ref_path) == row["depth_name_original"]


def test_lists_without_a_scale(shared_fixtures, tmp_path):
    (converted,) = convert_splits([shared_fixtures / "megascenes/data/pairs_without_scale.pkl"], tmp_path)
    assert [pair.scale for pair in converted.table] == [None, None]
    assert np.isnan(converted.table.arrays().scale).all()


def test_the_real_pairs(shared_data, tmp_path):
    root = shared_data / "megascenes_pairs"
    train, test = convert_splits(
        [root / "splits/trainsplit.pkl", root / "splits/testsplit.pkl"], tmp_path, images=root / "images", strict=True
    )
    assert (train.split, len(train.table), test.split, len(test.table)) == ("train", 4, "test", 2)
    assert list_splits(tmp_path) == {"test": tmp_path / "test", "train": tmp_path / "train"}
    pair = train.table[0]
    assert (pair.ref_size, pair.tgt_size) == ((708, 532), (708, 532))
    assert pair.scale == pytest.approx(7.931, abs=1e-3)
    assert train.table.path_count == 4


@pytest.fixture
def six(tmp_path) -> PairTable:
    return convert_splits([write_list(tmp_path / "six.pkl", six_rows())], tmp_path / "out")[0].table


def test_six_rows_with_one_photo_gone(tmp_path):
    """Spec megascenes 11.6."""
    file = write_list(tmp_path / "trainsplit.pkl", six_rows())
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES), encoding="utf-8")
    categories = read_categories(tmp_path / "categories.json")
    images = write_photos(tmp_path / "images")
    (converted,) = convert_splits([file], tmp_path / "out", images=images, categories=categories)
    assert (len(converted.table), converted.listed, len(converted.missing)) == (5, 6, 1)
    assert [pair.index for pair in converted.table] == [0, 1, 2, 3, 4]
    assert (converted.missing[0].row, converted.missing[0].missing) == (5, "target")
    report = (tmp_path / "out/train" / MISSING_FILE).read_text(encoding="utf-8").splitlines()
    assert report[1:] == [f"5\ttarget\t{listed('a.jpg')}\t{listed('gone.jpg')}"]
    assert converted.table.path_count == 4, "the missing photo's path went with it"
    assert converted.table.meta["missing"] == 1
    with pytest.raises(DataError, match=r"lacks photos of 1 of 6 pairs, first of row 5.*gone\.jpg"):
        convert_splits([file], tmp_path / "strict", images=images, categories=categories, strict=True)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(DataError, match="lacks photos of 6 of 6"):
        convert_splits([file], tmp_path / "strict", images=images)
    (whole,) = convert_splits([file], tmp_path / "out")
    assert len(whole.table) == 6
    assert not (tmp_path / "out/train" / MISSING_FILE).exists(), "the report of another conversion"


def test_numbers_of_every_kind_are_the_same_numbers(six):
    pair = six[0]
    np.testing.assert_array_equal(pair.ref_K, [[700, 0, 400], [0, 710, 300], [0, 0, 1]])
    np.testing.assert_array_equal(pair.tgt_K, [[500, 0, 320], [0, 500, 240], [0, 0, 1]])
    assert (pair.ref_size, pair.tgt_size, pair.scale) == ((800, 600), (640, 480), 4.0)
    a, b = math.radians(5), math.radians(10)
    np.testing.assert_allclose(
        pair.ref_w2c,
        [[math.cos(a), 0, math.sin(a), 0.5], [0, 1, 0, -0.25], [-math.sin(a), 0, math.cos(a), 2], [0, 0, 0, 1]],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        pair.tgt_w2c,
        [[1, 0, 0, -1], [0, math.cos(b), -math.sin(b), 0.125], [0, math.sin(b), math.cos(b), 3], [0, 0, 0, 1]],
        atol=1e-12,
    )
    assert (six[1].scale, six[2].scale, six[3].scale, six[4].scale) == (4.0, 2.5, 1.5, None)
    for text, plain in ((six[1].ref_w2c, pair.tgt_w2c), (six[2].ref_w2c, pair.tgt_w2c), (six[3].ref_w2c, pair.ref_w2c)):
        np.testing.assert_array_equal(text, plain)
    np.testing.assert_array_equal(six[2].ref_K, [[500, 0, 320], [0, 500, 240], [0, 0, 1]])
    assert six[2].ref_size == (640, 480)
    np.testing.assert_allclose(six[3].tgt_w2c, pair.tgt_w2c, atol=1e-7)


def test_protocols_give_identical_tables(tmp_path):
    """Spec megascenes 11.6."""
    tables = [
        convert_splits([write_list(tmp_path / f"p{protocol}.pkl", six_rows(), protocol)], tmp_path / "out")[0].table
        for protocol in (2, 3, 4, 5)
    ]
    for table in tables[1:]:
        for name, column in tables[0].columns.items():
            assert column.tobytes() == table.columns[name].tobytes(), name


def test_views_and_paths_are_stored_once(six):
    assert len(six.columns["views"]) == 6  # a photo counts again with another camera: a.jpg has two
    assert six.path_count == 5
    assert six.paths(3) == (listed("Façade.png", "Château_de_X", "Exterior/North side"), listed("a.jpg"))


def test_compact_keeps_what_is_left(six):
    columns = compact(six.columns, np.array([4, 2]))
    table = PairTable(Path("memory"), columns, {}, None)
    for new, old in zip(table, (six[4], six[2]), strict=True):
        assert (new.ref_path, new.tgt_path, new.scale, new.index) == (old.ref_path, old.tgt_path, old.scale, old.index)
        np.testing.assert_array_equal(new.tgt_w2c, old.tgt_w2c)
        np.testing.assert_array_equal(new.ref_K, old.ref_K)
    assert table.path_count == 2


@pytest.mark.parametrize(
    ("file", "name"),
    [("trainsplit.pkl", "train"), ("test_split.pkl", "test"), ("mine.pkl", "mine"), ("split.pkl", "split")],
)
def test_split_names(file, name):
    assert split_name(Path("x") / file) == name


PINHOLE = ["PINHOLE", 800, 600, 700.0, 710.0, 400.0, 300.0]
MIRROR = ["PINHOLE", 800, 600, -700.0, 710.0, 400.0, 300.0]
POSE = [*Q1, 0.5, -0.25, 2.0]


def changed(place: int, value) -> list:
    row = one_row()
    row[place] = value
    return row


MALFORMED = {
    "not a list": ({"rows": []}, "not a list of pairs"),
    "empty": ([], "holds no pair"),
    "row is a number": ([one_row(), 3], "row 1.*is a int"),
    "row is a dictionary": ([{"a": 1}], "row 0.*is a dict"),
    "three items": ([one_row()[:3]], "has 3 items"),
    "six items": ([[*one_row(), 1.0]], "has 6 items"),
    "path is a number": ([changed(0, 7)], "path1.*is a int"),
    "path is empty": ([changed(1, "")], "path2.*has 0 characters"),
    "path leads out": ([changed(0, listed("../../../../../../etc/passwd"))], "path1.*'..' part"),
    "path is absolute": ([changed(1, "/etc/passwd")], "path2.*is absolute"),
    "path holds NUL": ([changed(0, listed("a\0.jpg"))], "control character"),
    "path holds a line feed": ([changed(0, listed("a\n.jpg"))], "control character"),
    "path is very long": ([changed(0, listed("a" * 5000))], "characters"),
    "camera is None": ([changed(2, None)], "camera 1.*is a NoneType"),
    "no extrinsics": ([changed(2, {"intrinsics": PINHOLE})], "extrinsics.*is missing"),
    "no intrinsics": ([changed(3, {"extrinsics": POSE})], "camera 2, intrinsics.*is missing"),
    "six pose numbers": ([changed(2, camera(POSE[:6], *PINHOLE))], "has 6 numbers"),
    "a matrix": ([changed(2, camera(np.eye(4), *PINHOLE))], "has 16 numbers"),
    "a million pose numbers": ([changed(2, camera(list(range(100)), *PINHOLE))], "over 64"),
    "pose of words": ([changed(2, camera(["a", *POSE[1:]], *PINHOLE))], r"extrinsics\[0\].*is 'a'"),
    "pose of lists": ([changed(2, camera([[1.0], *POSE[1:]], *PINHOLE))], r"extrinsics\[0\].*is a list"),
    "truth values": ([changed(2, camera([True, 0, 0, 0, 0, 0, 0], *PINHOLE))], "is a bool"),
    "NaN in the pose": ([changed(2, camera([*POSE[:6], math.nan], *PINHOLE))], r"extrinsics\[6\].*not finite"),
    "infinite text": ([changed(2, camera([*POSE[:6], "inf"], *PINHOLE))], "'inf', not a number"),
    "zero quaternion": ([changed(2, camera([0.0] * 7, *PINHOLE))], "length 0, not 1"),
    "translation first": ([changed(2, camera([5.0, 1.0, 2.0, *Q2], *PINHOLE))], "quaternion of length"),
    "unknown model": ([changed(2, camera(POSE, "OPENCV", 8, 6, 7, 7, 4, 3, 0, 0, 0, 0))], "camera model 'OPENCV'"),
    "no model": ([changed(2, camera(POSE, 800, 600, 700.0, 400.0, 300.0))], "camera model a int"),
    "empty intrinsics": ([changed(2, {"extrinsics": POSE, "intrinsics": []})], "camera model a NoneType"),
    "too few parameters": ([changed(3, camera(POSE, *PINHOLE[:-1]))], "has 3 parameters; PINHOLE has 4"),
    "half a pixel": ([changed(3, camera(POSE, "PINHOLE", 800.5, *PINHOLE[2:]))], "width 800.5"),
    "height zero": ([changed(3, camera(POSE, "PINHOLE", 800, 0, *PINHOLE[3:]))], "height 0"),
    "negative focal length": ([changed(3, camera(POSE, *MIRROR))], "focal length -700"),
    "huge integer": ([changed(2, camera([10**400, *POSE[1:]], *PINHOLE))], r"extrinsics\[0\].*not finite"),
    "scale is a word": ([changed(4, "large")], "scale.*'large'"),
    "scale is NaN": ([changed(4, math.nan)], "scale.*not finite"),
    "scale is negative": ([changed(4, -1.0)], "a depth is not negative"),
    "scale is a list": ([changed(4, [4.0])], "scale.*is a list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_list_is_one_error_and_nothing_is_written(tmp_path, kind):
    rows, words = MALFORMED[kind]
    good = write_list(tmp_path / "good.pkl", [one_row()])
    file = write_list(tmp_path / "bad.pkl", rows)
    with pytest.raises(DataError, match=words) as caught:
        convert_splits([good, file], tmp_path / "out")
    error = caught.value
    assert error.file == str(file)
    assert error.place
    assert error.problem
    assert error.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [b"]\x94h\x00a.", b"](" + b")\x94" + b"h\x00\x86\x94" * 60 + b"e.", b"]" + b"](" * 5000 + b"e" * 5000 + b"."],
)
def test_lists_in_themselves_and_in_one_another(tmp_path, data):
    file = tmp_path / "deep.pkl"
    file.write_bytes(b"\x80\x04" + data)
    with pytest.raises(DataError, match=r"deep\.pkl"):
        convert_splits([file], tmp_path / "out")


def test_two_lists_of_one_name(tmp_path):
    files = [write_list(tmp_path / name, [one_row()]) for name in ("train.pkl", "trainsplit.pkl")]
    with pytest.raises(DataError, match="'train'"):
        convert_splits(files, tmp_path / "out")


LOOSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["PINHOLE", "700"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["extrinsics", "intrinsics", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_values_are_a_row_or_one_error(data):
    row = one_row()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 4))
        if place in (2, 3) and data.draw(st.booleans()) and isinstance(row[place], dict):
            key = data.draw(st.sampled_from(["extrinsics", "intrinsics"]))
            value = row[place].get(key)
            items = list(value) if isinstance(value, list) and value else [0]
            items[data.draw(st.integers(0, len(items) - 1))] = data.draw(LOOSE)
            row[place] = {**row[place], key: items}
        else:
            row[place] = data.draw(LOOSE)
    try:
        _, _, ref, tgt, scale = parse_row(row, 0, "list.pkl")
    except DataError:
        return
    assert np.isfinite([*ref.q, *ref.t, *ref.f, *ref.c, *tgt.q, *tgt.t, *tgt.f, *tgt.c]).all()
    assert min(*ref.size, *tgt.size, *ref.f, *tgt.f) > 0
    assert math.isnan(scale) or scale >= 0
