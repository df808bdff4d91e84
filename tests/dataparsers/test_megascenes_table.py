"""The mapped table: the same values from every side, shared with workers, damage named (spec megascenes 2.6)."""

from __future__ import annotations

import json
import multiprocessing
import operator
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_lists import listed, six_rows, write_list
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from dataparsers.megascenes_rows import Camera, ColumnBuilder
from dataparsers.megascenes_splits import convert_splits
from dataparsers.megascenes_table import META, PairTable, list_splits, quaternion_rotation, write_table


@pytest.fixture
def table(tmp_path) -> PairTable:
    return convert_splits([write_list(tmp_path / "six.pkl", six_rows())], tmp_path / "out")[0].table


def same(one, two) -> bool:
    return one.ref_path == two.ref_path and one.index == two.index and np.array_equal(one.tgt_w2c, two.tgt_w2c)


def test_rows_slices_and_choices(table):
    assert len(table) == 6
    assert same(table[-1], table[5])
    assert [pair.index for pair in table[1:4]] == [1, 2, 3]
    chosen = table.select([4, 0, 4])
    assert [pair.index for pair in chosen] == [4, 0, 4]
    assert [pair.index for pair in chosen.select([2, 1])] == [4, 0]
    assert chosen.positions.tolist() == [4, 0, 4]
    assert [pair.index for pair in table.select([-1]).select([-1])] == [5]
    with pytest.raises(IndexError):
        chosen.select([3])
    for bad in (6, -7):
        with pytest.raises(IndexError):
            table[bad]
        with pytest.raises(IndexError):
            table.select([bad])


def test_many_at_once_are_the_same_as_one_by_one(table):
    for view in (table, table.select([5, 2, 3])):
        arrays = view.arrays()
        for i, pair in enumerate(view):
            for name in ("ref_w2c", "tgt_w2c", "ref_K", "tgt_K", "ref_size", "tgt_size", "index"):
                np.testing.assert_array_equal(getattr(arrays, name)[i], getattr(pair, name))
            np.testing.assert_array_equal(arrays.scale[i], np.nan if pair.scale is None else pair.scale)
            numbers = view.path_numbers([i])[0]
            assert tuple(view.path(number) for number in numbers) == (pair.ref_path, pair.tgt_path)
        np.testing.assert_array_equal(view.arrays([1, 0]).tgt_w2c, arrays.tgt_w2c[[1, 0]])


def test_the_pages_are_mapped_and_not_written(table):
    for column in table.columns.values():
        assert isinstance(column.base, np.memmap)
        assert not column.flags.writeable
    again = table.select(np.arange(6))
    assert again.columns["views"] is table.columns["views"]


def test_a_worker_gets_a_name_and_not_the_arrays(table):
    chosen = table.select([5, 1])
    sent = pickle.dumps(chosen)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert [pair.index for pair in back] == [5, 1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        # Functions of the standard library: a fresh process cannot import a test module.
        assert pool.apply_async(len, (chosen,)).get(120) == 2
        assert pool.apply_async(operator.methodcaller("paths", 1), (chosen,)).get(120)[0] == listed("b.jpg")


def test_quaternions_against_scipy():
    q = Rotation.random(50, random_state=3).as_quat()
    np.testing.assert_allclose(
        quaternion_rotation(np.roll(q, 1, axis=1)), Rotation.from_quat(q).as_matrix(), atol=1e-12
    )


def test_a_new_conversion_leaves_readers_their_pages(table, tmp_path):
    before = [pair.ref_path for pair in table]
    convert_splits([write_list(tmp_path / "six.pkl", six_rows()[::-1])], tmp_path / "out")
    assert [pair.ref_path for pair in table] == before
    assert [pair.ref_path for pair in PairTable.open(table.folder)] == before[::-1]


def test_a_half_written_table_is_none(table, monkeypatch):
    columns = {name: np.array(column) for name, column in table.columns.items()}
    monkeypatch.setattr("dataparsers.megascenes_table.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_table(table.folder, columns, {})
    with pytest.raises(DataError, match="no converted split"):
        PairTable.open(table.folder)
    assert list_splits(table.folder.parent) == {}
    monkeypatch.undo()
    (table.folder / ".tmp-0-pairs.npy").write_bytes(b"of a killed process")
    again = write_table(table.folder, columns, {})
    assert [pair.index for pair in again] == [pair.index for pair in table]
    assert not list(table.folder.glob(".tmp-*"))


def test_the_folder_above_is_told_from_a_split(table):
    with pytest.raises(DataError, match=r"folder of splits: name one of them \(six\)"):
        PairTable.open(table.folder.parent)
    with pytest.raises(DataError, match="convert-splits"):
        PairTable.open(table.folder / "absent")


def rewrite(folder: Path, name: str, change) -> None:
    """Change one array on disk."""
    array = np.array(np.load(folder / f"{name}.npy", allow_pickle=False))
    np.save(folder / f"{name}.npy", change(array), allow_pickle=False)


def beyond(column: str):
    def change(array):
        array[column][0] = 1000
        return array

    return change


DAMAGE = {
    "view beyond": lambda folder: rewrite(folder, "pairs", beyond("tgt")),
    "path beyond": lambda folder: rewrite(folder, "views", beyond("path")),
    "ends do not fit": lambda folder: rewrite(folder, "path_ends", lambda a: a + 1),
    "ends go back": lambda folder: rewrite(folder, "path_ends", lambda a: np.r_[a[1], a[0], a[2:]]),
    "shorter": lambda folder: rewrite(folder, "pairs", lambda a: a[:-1]),
    "other type": lambda folder: rewrite(folder, "path_bytes", lambda a: a.astype(np.int16)),
    "cut": lambda folder: (folder / "views.npy").write_bytes((folder / "views.npy").read_bytes()[:-9]),
    "empty file": lambda folder: (folder / "views.npy").write_bytes(b""),
    "gone": lambda folder: (folder / "views.npy").unlink(),
    "objects": lambda folder: np.save(folder / "views.npy", np.array([{}], object), allow_pickle=True),
    "no JSON": lambda folder: (folder / META).write_text("{"),
    "other schema": lambda folder: (folder / META).write_text(json.dumps({"schema": 9, "lengths": {}})),
    "no lengths": lambda folder: (folder / META).write_text(json.dumps({"schema": 1})),
    "list": lambda folder: (folder / META).write_text("[]"),
    "deep": lambda folder: (folder / META).write_text("[" * 100000),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_error(table, kind):
    DAMAGE[kind](table.folder)
    with pytest.raises(DataError, match="onvert"):
        PairTable.open(table.folder)


def test_an_empty_table(tmp_path):
    table = write_table(tmp_path / "none", ColumnBuilder().columns(), {})
    assert len(table) == 0
    assert list(table) == []
    assert table.arrays().ref_w2c.shape == (0, 4, 4)


NUMBER = st.floats(-1e6, 1e6)
CAMERA = st.builds(
    Camera,
    st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
    st.tuples(NUMBER, NUMBER, NUMBER),
    st.tuples(NUMBER, NUMBER),
    st.tuples(NUMBER, NUMBER),
    st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
)
PATH = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PATH, PATH, CAMERA, CAMERA, st.floats(0, 1e9)), min_size=1, max_size=12))
def test_what_goes_in_comes_out(tmp_path, rows):
    builder = ColumnBuilder()
    for number, row in enumerate(rows):
        builder.add(*row, 3 * number)
    table = write_table(tmp_path / "t", builder.columns(), {})
    assert len(table) == len(rows)
    for number, (pair, (ref_path, tgt_path, ref, tgt, scale)) in enumerate(zip(table, rows, strict=True)):
        assert (pair.ref_path, pair.tgt_path, pair.scale, pair.index) == (ref_path, tgt_path, scale, 3 * number)
        assert (pair.ref_size, pair.tgt_size) == (ref.size, tgt.size)
        assert tuple(pair.tgt_w2c[:3, 3]) == tgt.t
        assert (pair.ref_K[0, 0], pair.ref_K[1, 1], *pair.ref_K[:2, 2]) == (*ref.f, *ref.c)
        np.testing.assert_array_equal(pair.ref_w2c[:3, :3], quaternion_rotation(np.array(ref.q)))
