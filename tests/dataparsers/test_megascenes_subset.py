"""The first scenes of a list, and what to download for them (spec megascenes 2.2)."""

from __future__ import annotations

import shlex

import pytest
from pair_lists import listed, one_row, write_list

from core_ns.errors import DataError
from dataparsers.megascenes_splits import convert_splits
from dataparsers.megascenes_subset import choose_subset, download_lines, write_subset

CATEGORIES = {"A b": "000/001", "C": "000/002", "D": "123/456"}


@pytest.fixture
def table(tmp_path):
    def row(ref: str, tgt: str, category: str) -> list:
        return [listed(ref, category, "S [1]"), listed(tgt, category, "S [1]"), *one_row()[2:]]

    rows = [
        row("1 x.jpg", "2.jpg", "A_b"), row("3.jpg", "4.jpg", "unknown"), row("5.jpg", "6.jpg", "C"),
        row("2.jpg", "it's.jpg", "A_b"), row("7.jpg", "8.jpg", "D"),
    ]  # fmt: skip
    return convert_splits([write_list(tmp_path / "trainsplit.pkl", rows)], tmp_path / "out")[0].table


def test_scenes_in_the_order_of_the_list(table):
    subset = choose_subset(table, CATEGORIES, scenes=2)
    assert [pair.index for pair in subset.table] == [0, 2, 3]
    assert (subset.scenes, subset.unmapped) == (2, ["unknown"])
    assert subset.files == [
        "images/000/001/commons/S [1]/0/pictures/1_x.jpg",
        "images/000/001/commons/S [1]/0/pictures/2.jpg",
        "images/000/001/commons/S [1]/0/pictures/it's.jpg",
        "images/000/002/commons/S [1]/0/pictures/5.jpg",
        "images/000/002/commons/S [1]/0/pictures/6.jpg",
    ]


def test_pairs_and_both(table):
    assert [pair.index for pair in choose_subset(table, CATEGORIES, pairs=2).table] == [0, 2]
    assert [pair.index for pair in choose_subset(table, CATEGORIES, scenes=1, pairs=5).table] == [0, 3]
    assert choose_subset(table, CATEGORIES, scenes=99).scenes == 3


def test_commands_survive_the_shell_s_rules(table):
    files = choose_subset(table, CATEGORIES, scenes=1).files
    for line, file in zip(download_lines(files, "/data/my photos/"), files, strict=True):
        assert shlex.split(line) == ["cp", "--raw", f"s3://megascenes/{file}", f"/data/my photos/{file}"]


def test_the_chosen_pairs_as_a_split(table, tmp_path):
    chosen = write_subset(tmp_path / "small", choose_subset(table, CATEGORIES, scenes=2))
    assert [(pair.index, pair.ref_path) for pair in chosen] == [(i, table[i].ref_path) for i in (0, 2, 3)]
    assert chosen.path_count == 5
    assert chosen.meta["source_sha256"] == table.meta["source_sha256"]
    with pytest.raises(DataError, match="is the split that the pairs are taken from"):
        write_subset(table.folder, choose_subset(table, CATEGORIES, scenes=2))


@pytest.mark.parametrize("categories", [{}, {"E": "000/009"}])
def test_nothing_to_download(table, categories):
    with pytest.raises(DataError, match=r"not in categories\.json"):
        choose_subset(table, categories, scenes=2)
