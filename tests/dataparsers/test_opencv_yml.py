"""The FileStorage reader and writer: cv2 as the judge, tolerance, refusals, and arbitrary text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from core_ns.errors import DataError
from dataparsers.opencv_yml import format_yml, parse_yml, read_yml

MATRIX = "A: !!opencv-matrix\n  rows: 2\n  cols: 2\n  dt: d\n  data: [1., -0., .5, 1e-05]\n"


def same(found: Any, wanted: Any) -> None:
    """Equal to the last bit, NaN and the sign of zero included; arrays of one axis come back as columns."""
    if isinstance(wanted, np.ndarray):
        wanted = wanted.reshape(len(wanted), 1) if wanted.ndim == 1 else wanted
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)
        if wanted.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted) & ~np.isnan(wanted))
    elif isinstance(wanted, float):
        assert isinstance(found, float)
        assert math.isnan(found) if math.isnan(wanted) else found.hex() == wanted.hex()
    else:
        assert (type(found), found) == (type(wanted), wanted)


def test_cv2_reads_what_we_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = {
        "names": ["00", "cam_3", "a b", 'q"\\'],
        "K_00": rng.normal(size=(3, 3)) * 1e3,
        "D_00": rng.normal(size=5) * 1e-7,
        "long": rng.normal(size=(7, 9)),
        "small": rng.normal(size=(2, 2)).astype(np.float32),
        "count": np.array([[-3, 2**31 - 1]], dtype=np.int32),
        "H_00": 768,
        "W_00": 1024.0,
        "f_00": 1e-300,
        "word": "plain: # text",
    }
    (tmp_path / "x.yml").write_text(format_yml(content))
    storage = cv2.FileStorage(str(tmp_path / "x.yml"), cv2.FILE_STORAGE_READ)
    names = storage.getNode("names")
    assert [names.at(i).string() for i in range(names.size())] == content["names"]
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            found = storage.getNode(key).mat()
            same(found, value)
        elif isinstance(value, int | float):
            assert storage.getNode(key).real() == value
    assert storage.getNode("word").string() == content["word"]
    storage.release()
    for key, value in read_yml(tmp_path / "x.yml").items():
        same(value, content[key])


def test_we_read_what_cv2_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    storage = cv2.FileStorage(str(tmp_path / "x.yml"), cv2.FILE_STORAGE_WRITE)
    storage.write("K_0", first := rng.normal(size=(3, 3)))
    storage.write("wide", second := rng.normal(size=(2, 40)).astype(np.float32))
    storage.write("bytes", third := np.arange(6, dtype=np.uint8).reshape(2, 3))
    storage.write("odd", fourth := np.array([[np.inf, -np.inf, np.nan, 0.0, 3.0]]))
    storage.write("H_0", 480)
    storage.write("f_0", 0.1)
    storage.write("names", ["00", "a b"])
    storage.release()
    found = read_yml(tmp_path / "x.yml")
    for key, value in {"K_0": first, "wide": second, "bytes": third, "odd": fourth}.items():
        same(found[key], value)
    assert (found["H_0"], found["f_0"], found["names"]) == (480, 0.1, ["00", "a b"])


@pytest.mark.parametrize(
    "text",
    [
        f"%YAML:1.0\n---\n{MATRIX}",
        f"%YAML 1.0\n---\n{MATRIX}...\nnot read: [",
        f"\ufeff{MATRIX}",
        MATRIX.replace("\n", "\r\n"),
        MATRIX.replace("\n", "\r"),
        MATRIX.replace("  ", "\t"),
        MATRIX.replace("\n", "  # a comment\n"),
        f"# first\n\n{MATRIX}\n\n",
        MATRIX.replace(", .5", ",\n      .5").replace("1e-05]", "1e-05\n]"),
        MATRIX.replace(", ", ",\n"),
        MATRIX.replace("1e-05]", "1.0E-5, ]"),
        MATRIX.replace("1., -0.", "+1,-0.0"),
        MATRIX.replace("dt: d", 'dt: "d"'),
        MATRIX.replace("rows: 2\n  cols: 2", "cols: 2\n  rows: 2"),
        "".join(f"   {line}\n" for line in MATRIX.splitlines()),
    ],
)
def test_tolerated_forms(text: str) -> None:
    same(parse_yml(text, "x")["A"], np.array([[1.0, -0.0], [0.5, 1e-5]]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("612", 612),
        ("612.", 612.0),
        ("-1", -1),
        ("1e3", 1000.0),
        (".Inf", math.inf),
        ("-.inf", -math.inf),
        (".Nan", math.nan),
        ('"007"', "007"),
        ("'it''s # here'", "it's # here"),
        (r'"tab\t quote\" hex\x41 \\"', 'tab\t quote" hexA \\'),
        ("two words", "two words"),
        ("a#b", "a#b"),
        ("[a, 007, 'x, y', \"]\"]", ["a", "007", "x, y", "]"]),
        ("[]", []),
        ("[a,\n b,\n]", ["a", "b"]),
        ("", []),
        ("\n- 00\n- '1'", ["00", "1"]),
        ('\n   - "00"  # first\n   - b c', ["00", "b c"]),
        ("99999999999999999999", 1e20),
    ],
)
def test_values(text: str, value: Any) -> None:
    same(parse_yml(f"key: {text}\nnext: 1\n", "x")["key"], value)


def test_list_entries_stay_text() -> None:
    assert parse_yml("names:\n  - 00\n  - 1e3\n", "x")["names"] == ["00", "1e3"]


REFUSED = {
    "loose text": ("A: 1\nloose\n", "line 2", "'loose'"),
    "a list without a key": ("- a\n", "line 1", "belongs to no list"),
    "another indentation": ("A: 1\n  B: 2\n", "line 2", "B: 2"),
    "a key twice": ("A: 1\nA: 2\n", "A, line 2", "occurs twice"),
    "a nested map": ("A:\n  b: 1\n", "A, line 2", "nested below it"),
    "an unknown tag": ("A: !!python/object:os.system\n", "A, line 1", "do not hold"),
    "an alias": ("A: *x\n", "A, line 1", "do not hold"),
    "a flow map": ("A: {a: 1}\n", "A, line 1", "do not hold"),
    "a block text": ("A: |\n  x\n", "A, line 1|A, line 2", "do not hold|nested"),
    "an open quote": ('A: "x\n', "A, line 1", "no closing quote"),
    "an open quote in a list": ("A:\n  - 'x\n", "A, line 2", "no closing quote"),
    "an open bracket": (MATRIX.replace("]", "") + "B: 1\n", "A, line 5", "never closed"),
    "an open bracket at the end": (MATRIX.replace("]", ""), "A, line 5", "never closed"),
    "text after a bracket": (MATRIX.replace("]", "] 3"), "A, line 5", "'3' follows"),
    "text after the tag": (MATRIX.replace("matrix\n", "matrix x\n"), "A, line 1", "'x' follows"),
    "an empty entry": ("A: [a,,b]\n", "A, line 1", "empty entry"),
    "a lone dash": ("A:\n  -\n", "A, line 2", "empty entry"),
    "no rows": (MATRIX.replace("  rows: 2\n", ""), "A, line 1", "no 'rows'"),
    "no data": (MATRIX[: MATRIX.index("  data")], "A, line 1", "no 'data'"),
    "no type": (MATRIX.replace("  dt: d\n", ""), "A, line 1", "no 'dt'"),
    "an unknown type": (MATRIX.replace("dt: d", "dt: z"), "A, line 1", "'z'"),
    "rows twice": (MATRIX.replace("cols", "rows"), "A, line 3", "'rows: 2' does not belong"),
    "negative rows": (MATRIX.replace("rows: 2", "rows: -2"), "A, line 1", "not a size"),
    "no whole rows": (MATRIX.replace("rows: 2", "rows: 2.5"), "A, line 1", "not a size"),
    "absurd rows": (MATRIX.replace("rows: 2", "rows: 99999999999999999999999"), "A, line 1", "not a size"),
    "another key inside": (MATRIX.replace("dt: d", "dt: d\n  kind: 3"), "A, line 5", "kind"),
    "data without brackets": (MATRIX.replace("[", "").replace("]", ""), "A, line 5", "do not begin"),
    "too few numbers": (MATRIX.replace(", .5", ""), "A, line 1", "3 numbers where 2x2"),
    "decimal commas": (MATRIX.replace(".5", "0,5"), "A, line 1", "5 numbers where 2x2"),
    "a word": (MATRIX.replace(".5", "half"), "A, line 1", "'half' is not a number"),
    "no commas": (MATRIX.replace(", .5", " .5").replace("1., ", "1., 3, "), "A, line 1", "'-0. .5'"),
    "too large": (MATRIX.replace(".5", "1e999"), "A, line 1", "too large"),
    "too large for its type": (MATRIX.replace("dt: d", "dt: f").replace(".5", "1e300"), "A, line 1", "element type"),
    "a fraction of an integer": (MATRIX.replace("dt: d", "dt: i"), "A, line 1", "element type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_key_line_and_remedy(tmp_path: Path, name: str) -> None:
    text, place, problem = REFUSED[name]
    file = tmp_path / "x.yml"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_yml(file)
    error = caught.value
    assert error.file == str(file)
    assert error.place in place.split("|")
    assert any(part in error.problem for part in problem.split("|")), error.problem
    assert error.remedy.endswith(".")


@pytest.mark.parametrize(("data", "problem"), [(b"A: 1\0", "binary"), (b"A: \xff", "not UTF-8"), (None, "not a file")])
def test_unreadable_files(tmp_path: Path, data: bytes | None, problem: str) -> None:
    if data is not None:
        (tmp_path / "x.yml").write_bytes(data)
    with pytest.raises(DataError, match=problem):
        read_yml(tmp_path / "x.yml")


PIECES = ["A", "B", ":", ": ", " ", "\n", "  ", "\t", "- ", "[", "]", ",", '"', "'", "#", "%", "---", "...", "1", "1e9"]
PIECES += ["!!opencv-matrix", "rows: 2", "cols: 2", "dt: d", "data: [", ".Inf", "nan", "\\", "{", "é", "\r", MATRIX]


def named(error: DataError) -> None:
    assert error.file
    assert error.place
    assert error.remedy


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text_reads_or_is_refused(text: str) -> None:
    try:
        content = parse_yml(text, "x")
    except DataError as error:
        named(error)
    else:
        assert all(isinstance(value, str | int | float | list | np.ndarray) for value in content.values())


KINDS = [np.float64, np.float32, np.int32, np.uint8, np.int8, np.int16, np.uint16]
VALUES = st.one_of(
    st.floats(),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.text(st.characters(codec="utf-8")),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=4),
    st.sampled_from(KINDS).flatmap(lambda kind: arrays(kind, array_shapes(max_dims=2, min_side=0, max_side=6))),
)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_. äß-]{0,9}[A-Za-z0-9]", fullmatch=True)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_round_trip_is_exact(content: dict[str, Any]) -> None:
    found = parse_yml(format_yml(content), "x")
    assert list(found) == list(content)
    for key, value in content.items():
        same(found[key], value)


@pytest.mark.parametrize(
    "content",
    [
        {"a:b": 1},
        {"": 1},
        {"1a": 1},
        {"a ": 1},
        {'a"b': 1},
        {"a#": 1},
        {"a\n": 1},
        {"a": True},
        {"a": None},
        {"a": 10**18},
        {"a": [1, 2]},
        {"a": b"x"},
        {"a": np.zeros((2, 2, 2))},
        {"a": np.zeros(3, dtype=np.int64)},
        {"a": np.zeros(())},
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        format_yml({"good": 1, **content})
