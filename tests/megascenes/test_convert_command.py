"""inspect, convert-splits, pairs and subset as a user calls them."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated, Union

import pytest
import tyro
from pair_lists import CATEGORIES, Calls, six_rows, write_list, write_photos

from core_ns.console import run_command
from dataparsers.megascenes_table import PairTable
from megascenes_ns.convert_command import ConvertSplits, Inspect, Pairs, Subset

Command = Union[
    Annotated[Inspect, tyro.conf.subcommand("inspect")],
    Annotated[ConvertSplits, tyro.conf.subcommand("convert-splits")],
    Annotated[Pairs, tyro.conf.subcommand("pairs")],
    Annotated[Subset, tyro.conf.subcommand("subset")],
]


@pytest.fixture
def call(capsys):
    """Run a command; its exit status and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(Command, "ns-megascenes", "", [str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_from_a_list_to_a_download(call, tmp_path):
    file = write_list(tmp_path / "trainsplit.pkl", six_rows())
    status, out, _ = call("inspect", file)
    assert status == 0
    assert "numpy dtype: known" in out
    assert "may read it" in out

    status, out, _ = call("convert-splits", file, "--output", tmp_path / "data")
    assert status == 0
    assert "6 of 6 pairs, 5 photos" in out
    assert call("inspect", tmp_path / "data")[1].startswith("train: 6 pairs of 5 photos, from trainsplit.pkl")
    assert call("inspect", tmp_path / "data/train")[1].startswith("train: 6 pairs")

    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES), encoding="utf-8")
    choice = ("--categories", tmp_path / "categories.json", "--scenes", 1, "--table", tmp_path / "small")
    status, out, _ = call("subset", tmp_path / "data/train", "--output", tmp_path / "dl.txt", *choice)
    assert status == 0
    assert "4 photos for 5 pairs of 1 scenes" in out
    assert len(PairTable.open(tmp_path / "small")) == 5
    lines = (tmp_path / "dl.txt").read_text(encoding="utf-8").splitlines()
    assert [shlex.split(line)[0] for line in lines] == ["cp"] * 4


def test_the_folder_may_stand_last(call, tmp_path):
    """As the data parser and the spec write it: convert-splits trainsplit.pkl testsplit.pkl data/."""
    files = [write_list(tmp_path / name, six_rows()) for name in ("trainsplit.pkl", "testsplit.pkl")]
    assert call("convert-splits", *files, tmp_path / "data")[0] == 0
    assert [len(PairTable.open(tmp_path / "data" / name)) for name in ("train", "test")] == [6, 6]


def test_a_photo(call, shared_data):
    photo = shared_data / "megascenes_examples/blenheim_palace.jpg"
    status, out, _ = call("inspect", photo, "--fov", "60")
    assert status == 0
    assert "degrees horizontal" in out


def test_missing_photos(call, tmp_path):
    file = write_list(tmp_path / "trainsplit.pkl", six_rows())
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES), encoding="utf-8")
    photos = ("--images", write_photos(tmp_path / "images"), "--categories", tmp_path / "categories.json")
    status, out, _ = call("convert-splits", file, "--output", tmp_path / "data", *photos)
    assert status == 0
    assert "5 of 6 pairs" in out
    assert "1 pairs lack a photo" in out
    status, _, err = call("convert-splits", file, "--output", tmp_path / "other", *photos, "--strict")
    assert status == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_a_gadget_is_named_and_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_list(tmp_path / "bad.pkl", [Calls(os.mkdir, "made")])
    status, out, _ = call("inspect", file)
    assert status == 1
    assert "posix mkdir: REFUSED" in out
    status, _, err = call("convert-splits", file, "--output", tmp_path / "data")
    assert status == 2
    assert err.startswith("DataError: ")
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["bad.pkl"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["inspect", "absent.pkl"], "is not a file"),
        (["inspect", "."], "holds no converted split"),
        (["inspect", "absent.jpg"], "is not a file"),
        (["convert-splits"], "and then a folder to write"),
        (["convert-splits", "x.pkl"], "and then a folder to write"),
        (["convert-splits", "x.pkl", "y.pkl"], "and then a folder to write"),
        (["convert-splits", "x.pkl", "--output", "data", "--strict"], "--strict"),
        (["pairs", ".", "--output", "data"], "sparse"),
        (["pairs", ".", "--output", "data", "--min-shared", "0"], "too small"),
        (["subset", ".", "--output", "dl.txt", "--categories", "c.json"], "ask for nothing"),
        (["subset", ".", "--output", "dl.txt", "--categories", "c.json", "--scenes", "0"], "ask for nothing"),
        (["subset", ".", "--output", "dl.txt", "--categories", "c.json", "--pairs", "3"], "no converted split"),
    ],
)
def test_bad_options_are_one_line(call, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(*words)
    assert status == 2
    assert problem in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []
