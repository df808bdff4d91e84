"""Pickled lists: what NumPy writes is read, all else is refused and nothing of it happens (spec megascenes 11.7)."""

from __future__ import annotations

import builtins
import codecs
import collections
import os
import pickle
import pickletools
import struct
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_lists import Calls, named, one_row, six_rows, text, write_list

from core_ns.errors import DataError
from dataparsers.megascenes_pickle import (
    ALLOWED,
    MAX_ARRAY_ITEMS,
    ArrayValue,
    RestrictedUnpickler,
    inspect_pickle,
    read_rows,
)

PROTOCOLS = (2, 3, 4, 5)


def plain(value):
    """Arrays, scalars and what stands for them as Python values."""
    if isinstance(value, ArrayValue):
        return value.values
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return type(value)(plain(each) for each in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lists_come_as_they_were_written(tmp_path, protocol):
    assert plain(read_rows(write_list(tmp_path / "x.pkl", six_rows(), protocol))) == plain(six_rows())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(7.0),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["PINHOLE", "800", "Façade"]),
        np.array(4.5),
        np.zeros((1, 3), np.uint8),
        np.arange(12.0)[::3],
        np.float16(1.5),
        np.uint64(2**63),
        np.str_("PINHOLE"),
    ],
    ids=lambda each: f"{each.dtype}{each.shape}",
)
def test_numpy_values_become_plain_ones(tmp_path, array, protocol):
    (value,) = read_rows(write_list(tmp_path / "x.pkl", [array], protocol))
    if isinstance(array, np.ndarray):
        assert (value.shape, value.values) == (array.shape, array.ravel().tolist())
    else:
        assert value == array.item()
        assert type(value) is type(array.item())


MARK = "MARK_OF_A_GADGET"


def open_file() -> bytes:
    """A gadget made by hand at protocol 2, by GLOBAL."""
    return b"\x80\x02]cos\nmkdir\n" + text(MARK) + b"\x85Ra."


def nested(depth: int) -> bytes:
    """A tuple of two tuples of two tuples...: a few bytes a level, and twice the time to hash."""
    return b")\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(depth))


GADGETS = {
    "os.system": lambda: pickle.dumps([Calls(os.system, f"mkdir {MARK}")]),
    "posix by GLOBAL": open_file,
    "builtins.eval": lambda: pickle.dumps([Calls(builtins.eval, f"__import__('os').mkdir('{MARK}')")]),
    "builtins.exec": lambda: pickle.dumps([Calls(builtins.exec, f"import os; os.mkdir('{MARK}')")]),
    "builtins.getattr": lambda: pickle.dumps([Calls(builtins.getattr, "", "join")]),
    "builtins.open": lambda: pickle.dumps([Calls(builtins.open, MARK, "w")]),
    "os.mkdir": lambda: pickle.dumps([Calls(os.mkdir, MARK)]),
    "numpy.load": lambda: pickle.dumps([Calls(np.load, "x.npy", None, True)]),
    "numpy.save": lambda: pickle.dumps([Calls(np.save, MARK, 1)]),
    "codecs.lookup": lambda: pickle.dumps([Calls(codecs.lookup, "utf-8")]),
    "codecs.encode of other kinds": lambda: b"\x80\x04]" + named("_codecs", "encode")
    + text("x") + text("hex") + b"\x86Ra.",
    "dotted name": lambda: b"\x80\x04]" + named("numpy", "ndarray.dtype") + b"a.",
    "dotted module": lambda: b"\x80\x04]" + named("numpy.dtype", "__class__") + b"a.",
    "attribute of an allowed function": lambda: b"\x80\x04]" + named("numpy", "dtype.__init__.__globals__") + b"a.",
    "sub-module of an allowed one": lambda: b"\x80\x04]" + named("numpy.core.multiarray", "fromstring") + b"a.",
    "empty name": lambda: b"\x80\x04]" + named("", "") + b"a.",
    "array of objects": lambda: pickle.dumps([np.array([Calls(os.mkdir, MARK)], dtype=object)]),
    "array of plain objects": lambda: pickle.dumps([np.array([1, "a"], dtype=object)]),
    "structured array": lambda: pickle.dumps([np.zeros(2, dtype=[("a", "f8")])]),
    "array of times": lambda: pickle.dumps([np.array(["2020-01-01"], dtype="M8[D]")]),
    "object scalar": lambda: b"\x80\x04]" + named("numpy._core.multiarray", "scalar")
    + named("numpy", "dtype") + text("O8") + b"\x85R" + b"C\x01a" + b"\x86Ra.",
    "array class of one's own": lambda: b"\x80\x04]" + named("numpy._core.multiarray", "_reconstruct")
    + named("numpy", "dtype") + b"K\x00\x85C\x01b\x87Ra.",
    "huge array": lambda: pickle.dumps([np.zeros(MAX_ARRAY_ITEMS + 1)]),
    "persistent id": lambda: b"\x80\x04]" + text("1") + b"Qa.",
    "persistent id as text": lambda: b"\x80\x02]P1\na.",
    "next buffer": lambda: b"\x80\x05]\x97a.",
    "state of a function": lambda: b"\x80\x04]" + named("numpy", "dtype") + b"}" + text("call") + b"NsbA.",
    "call of a text": lambda: b"\x80\x04]" + text("os.system") + text(MARK) + b"\x85Ra.",
    "call of an array": lambda: b"\x80\x04]" + named("numpy", "ndarray") + b"K\x02\x85Ra.",
    "new object": lambda: b"\x80\x04]" + named("numpy", "ndarray") + b")\x81a.",
    "instance by INST": lambda: b"\x80\x02](ios\nmkdir\na.",
    "instance by OBJ": lambda: b"\x80\x02](" + named("numpy", "dtype") + b"oa.",
    "extension": lambda: b"\x80\x02]\x82\x01a.",
    "ordered dictionary": lambda: pickle.dumps([collections.OrderedDict(a=1)]),
    "datetime": lambda: pickle.dumps([datetime(2020, 1, 1)]),
    "set": lambda: pickle.dumps([{1, 2}]),
    "own class": lambda: pickle.dumps([Path("x")]),
    "complex": lambda: pickle.dumps([1j]),
    "keys nested by reference": lambda: b"\x80\x04}" + nested(60) + b"Ns.",
    "tuple as a key": lambda: pickle.dumps([{(1, 2): 3}]),
    "protocol 0": lambda: pickle.dumps(one_row(), 0),
    "appending to bytes": lambda: b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a" + b"K\x01a.",
}  # fmt: skip


@pytest.mark.parametrize("gadget", GADGETS)
def test_gadgets_are_refused_and_nothing_happens(tmp_path, monkeypatch, gadget):
    file = tmp_path / "x.pkl"
    file.write_bytes(GADGETS[gadget]())
    monkeypatch.chdir(tmp_path)
    before = {key: (value, dict(getattr(value, "__dict__", {}))) for key, value in ALLOWED.items()}
    with pytest.raises(DataError) as caught:
        read_rows(file)
    assert caught.value.file == str(file)
    assert "byte" in caught.value.place
    assert os.listdir(tmp_path) == ["x.pkl"]
    assert {key: (value, dict(getattr(value, "__dict__", {}))) for key, value in ALLOWED.items()} == before


def test_the_refusal_names_what_was_asked_for(tmp_path):
    file = tmp_path / "x.pkl"
    file.write_bytes(GADGETS["os.system"]())
    with pytest.raises(DataError, match=r"asks for 'posix', 'system'.*inspect"):
        read_rows(file)


def test_names_are_exact_pairs():
    assert len(ALLOWED) == 9
    inner = {f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")}
    assert {module for module, _ in ALLOWED} == {"numpy", "_codecs", *inner}
    for value in ALLOWED.values():
        assert not callable(value), "a name leads to something the interpreter could call"


def test_no_instruction_of_the_base_class_is_left_by_accident():
    """Those that build or call are ours; an instruction outside the list is not even known."""
    own = {code for code, method in RestrictedUnpickler.dispatch.items() if "megascenes" in method.__module__}
    names = {each.name for each in pickletools.opcodes if ord(each.code) in own}
    assert names >= {"REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINUNICODE8", "BYTEARRAY8"}
    known = {each.name for each in pickletools.opcodes if ord(each.code) in RestrictedUnpickler.dispatch}
    assert not known & {
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "BINPERSID",
        "EMPTY_SET",
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a.", "length 1152921504606846976"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "length 1099511627776"),
        (b"\x80\x04]X" + struct.pack("<I", 20_000) + b"a" * 20_000 + b"a.", "length 20000"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].", None),  # reads what there is
        (b"\x80\x04]r" + struct.pack("<I", 4_000_000_000) + b".", None),  # a key of ours, not a size
    ],
    ids=["text", "bytes", "long text", "frame", "memo"],
)
def test_lengths_that_a_file_names_take_no_memory(tmp_path, data, words):
    file = tmp_path / "x.pkl"
    file.write_bytes(data)
    if words is None:
        assert read_rows(file) == []
        return
    with pytest.raises(DataError, match=words):
        read_rows(file)


@pytest.mark.parametrize(
    "data", [b"", b"not a pickle", b"\x80\x04", b"\x80\x09].", b"\x80\x04}.", b"\x80\x04]..", b"PK\x03\x04" * 9]
)
def test_what_is_no_list(tmp_path, data):
    file = tmp_path / "x.pkl"
    file.write_bytes(data)
    with pytest.raises(DataError):
        read_rows(file)
    with pytest.raises(DataError, match="not a file"):
        read_rows(tmp_path / "absent.pkl")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_one_error_or_a_list(tmp_path, data):
    whole = pickle.dumps(six_rows(), data.draw(st.sampled_from(PROTOCOLS)))
    cut = data.draw(st.integers(1, len(whole)))
    raw = bytearray(whole[:cut])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, cut - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = value
    file = tmp_path / "x.pkl"
    file.write_bytes(raw)
    with suppress(DataError):
        assert isinstance(read_rows(file), list)
    inspect_pickle(file)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200))
def test_noise_gives_one_error_or_a_list(tmp_path, noise):
    file = tmp_path / "x.pkl"
    file.write_bytes(b"\x80\x04]" + noise)
    with suppress(DataError):
        assert isinstance(read_rows(file), list)
    inspect_pickle(file)


class TestInspect:
    """`ns-megascenes inspect` reads, and runs nothing."""

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_names_of_a_sound_list(self, tmp_path, protocol):
        report = inspect_pickle(write_list(tmp_path / "x.pkl", six_rows(), protocol))
        assert report.protocol == protocol
        assert ("numpy", "dtype") in report.names
        assert set(report.names) <= set(ALLOWED)
        assert not report.refused
        assert not report.broken

    def test_the_same_as_the_interpreter_asks_for(self, tmp_path, monkeypatch):
        asked = []
        find = RestrictedUnpickler.find_class
        monkeypatch.setattr(
            RestrictedUnpickler, "find_class", lambda self, *pair: asked.append(pair) or find(self, *pair)
        )
        for protocol in PROTOCOLS:
            file = write_list(tmp_path / "x.pkl", six_rows(), protocol)
            asked.clear()
            read_rows(file)
            assert {pair: asked.count(pair) for pair in asked} == inspect_pickle(file).names

    @pytest.mark.parametrize(
        "gadget", ["os.system", "posix by GLOBAL", "instance by INST", "dotted name", "persistent id"]
    )
    def test_gadgets_are_named_and_not_run(self, tmp_path, monkeypatch, gadget):
        file = tmp_path / "x.pkl"
        file.write_bytes(GADGETS[gadget]())
        monkeypatch.chdir(tmp_path)
        report = inspect_pickle(file)
        assert report.refused
        assert os.listdir(tmp_path) == ["x.pkl"]

    def test_computed_names_are_said_to_be(self, tmp_path):
        file = tmp_path / "x.pkl"
        file.write_bytes(b"\x80\x04](l" + text("os") + b"N\x93a.")
        assert ("os", "(computed)") in inspect_pickle(file).names

    def test_a_cut_file_is_listed_as_far_as_it_goes(self, tmp_path):
        file = tmp_path / "x.pkl"
        file.write_bytes(pickle.dumps(six_rows())[:-40])
        report = inspect_pickle(file)
        assert report.names
        assert report.broken
