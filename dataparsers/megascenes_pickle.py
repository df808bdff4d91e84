"""Pickled pair lists, read without letting them run anything.

A pickle is a program; lists come off the network. Here a program may build lists, tuples, dictionaries with text keys,
numbers, text and bytes, and may call five functions of NumPy's own format, all replaced by inert ones of ours. Any
other instruction or name ends the reading. Nothing but the converter opens such a file at all. Source: spec megascenes
2.6; the names that NumPy 1 and 2 ask for at protocols 2 to 5 were measured there.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from core_ns.errors import DataError

MAX_FILE_BYTES = 16 << 30
MAX_ROWS = 20_000_000
MAX_TEXT_BYTES = 16_384
MAX_ARRAY_ITEMS = 4096

_NOT_TRUSTED = "Do not use this file; `ns-megascenes inspect` lists all that it asks for."
_DAMAGED = "It may be truncated: download it again."
_NUMBER_CODE = re.compile(r"f[248]|[iu][1248]|U[0-9]{1,4}")


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that a list of pairs does not need."""


class _DtypeValue:
    """``numpy.dtype``, of numbers and text only: never of objects, structures or sub-arrays."""

    def __init__(self, *args: Any) -> None:
        code = args[0] if args else None
        if len(args) > 3 or type(code) is not str or not _NUMBER_CODE.fullmatch(code):
            raise Refused(f"asks for NumPy items of the kind {_show(code)}; only numbers and text are read")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise Refused("describes NumPy items in an unknown way")
        if any(each is not None for each in state[2:5]):
            raise Refused("asks for NumPy items with parts; only numbers and text are read")
        self.dtype = self.dtype.newbyteorder(state[1])


class ArrayValue:
    """``numpy.ndarray`` as plain values, in C order. ``values`` is None until the pickle has filled it."""

    __slots__ = ("shape", "values")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.values: list[Any] | None = None

    def build(self, state: Any) -> None:
        """Take the state that NumPy pickles: version, shape, items' type, order, bytes. Raises `Refused`."""
        if type(state) is not tuple or len(state) != 5:
            raise Refused("describes a NumPy array in an unknown way")
        self.fill(state[4], state[2], state[1], "F" if state[3] else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> ArrayValue:
        """Take the values out of bytes; itself. Raises `Refused`, or ValueError where the bytes do not fit."""
        if type(dtype) is not _DtypeValue or type(data) not in (bytes, bytearray):
            raise Refused("holds a NumPy array of objects")
        if type(shape) is not tuple or len(shape) > 4 or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused("holds a NumPy array of an impossible shape")
        if order not in ("C", "F") or math.prod(shape) > MAX_ARRAY_ITEMS:
            raise Refused(f"holds a NumPy array of {_show(shape)} items; at most {MAX_ARRAY_ITEMS} are read")
        flat = np.frombuffer(bytes(data), dtype.dtype)
        self.shape, self.values = shape, flat.reshape(shape, order=order).ravel(order="C").tolist()
        return self


class _Function:
    """A name that a pickle may call; it leads to ours, never to the named one."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _ArrayType:
    """``numpy.ndarray``, which is named but never called."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> ArrayValue:
    if type(kind) is not _ArrayType:
        raise Refused("builds a NumPy array of another class")
    return ArrayValue()


def _scalar(dtype: Any, data: Any) -> Any:
    return ArrayValue().fill(data, dtype, (), "C").values[0]  # pyright: ignore[reportOptionalSubscript]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> ArrayValue:
    return ArrayValue().fill(data, dtype, shape, order)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise Refused("encodes something that is not Latin-1 text")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], _Function | _ArrayType]:
    names: dict[tuple[str, str], _Function | _ArrayType] = {
        ("numpy", "dtype"): _Function(_DtypeValue),
        ("numpy", "ndarray"): _ArrayType(),
        ("_codecs", "encode"): _Function(_encode),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _Function(_reconstruct)
        names[f"{core}.multiarray", "scalar"] = _Function(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = _Function(_frombuffer)
    return names


ALLOWED = _allowed()
"""Every (module, name) a list may ask for, and what it gets. Exact pairs: no prefix, no dotted name."""

_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
ALLOWED_OPCODES = frozenset(_OPCODES.split())
_NAME_OF_CODE = {ord(each.code): each.name for each in pickletools.opcodes}
_PROTOCOL_OF_NAME = {each.name: each.proto for each in pickletools.opcodes}
_CODE_OF_NAME = {name: code for code, name in _NAME_OF_CODE.items()}


class _Dispatch(dict):
    """Instruction to method; what is not in it is refused by its name."""

    def __missing__(self, code: int) -> NoReturn:
        name = _NAME_OF_CODE.get(code)
        if name is None:
            raise pickle.UnpicklingError(f"byte {code} is no pickle instruction")
        old = "; lists written with protocols 2 to 5 are read" if _PROTOCOL_OF_NAME[name] < 2 else ""
        raise Refused(f"uses the instruction {name}, which a list of pairs does not need{old}")


# The interpreter in Python, not the one in C: its memo is a dictionary (the other allocates whatever index a file
# names), and each instruction can be replaced.
class RestrictedUnpickler(pickle._Unpickler):
    """See the module docstring. Raises `Refused`, or whatever a damaged file leads to."""

    dispatch = _Dispatch(
        {_CODE_OF_NAME[name]: pickle._Unpickler.dispatch[_CODE_OF_NAME[name]] for name in ALLOWED_OPCODES}
    )
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        """What the pair of names leads to here. Raises `Refused`."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise Refused(f"asks for {_show(module)}, {_show(name)}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        """Never. Raises `Refused`."""
        raise Refused("asks for a persistent object")

    def _reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not _Function or type(args) is not tuple:
            raise Refused(f"calls a {type(function).__name__}")
        try:
            self.stack[-1] = function.call(*args)
        except TypeError as error:  # another number of arguments
            raise Refused(f"calls a NumPy function in an unknown way ({error})") from None

    def _build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in (_DtypeValue, ArrayValue):
            raise Refused(f"sets the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].build(state)

    def _extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise Refused(f"appends to a {type(target).__name__}")
        target.extend(items)
        if len(target) > MAX_ROWS:
            raise Refused(f"holds a list of more than {MAX_ROWS} items")

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend(self.stack[-1], [item])

    def _appends(self) -> None:
        items = self.pop_mark()
        self._extend(self.stack[-1], items)

    def _update(self, target: Any, items: list[Any]) -> None:
        # Text keys only: the hash of tuples nested by reference can take for ever.
        if type(target) is not dict or any(type(key) is not str for key in items[::2]):
            raise Refused("builds a dictionary whose keys are not text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self.pop_mark()
        self._update(self.stack[-1], items)

    def _counted(self, layout: str) -> bytes:
        (length,) = struct.unpack(layout, self.read(struct.calcsize(layout)))
        if length > MAX_TEXT_BYTES:
            raise Refused(f"holds text or bytes of length {length}; at most {MAX_TEXT_BYTES} are read")
        data = self.read(length)
        if len(data) != length:
            raise EOFError("the file ends inside a text")
        return data


def _instruction(name: str, method: Callable[[Any], None]) -> None:
    RestrictedUnpickler.dispatch[_CODE_OF_NAME[name]] = method


def _text(layout: str) -> Callable[[Any], None]:
    return lambda self: self.append(self._counted(layout).decode("utf-8"))


def _bytes(layout: str) -> Callable[[Any], None]:
    return lambda self: self.append(self._counted(layout))


for _name, _method in {
    "REDUCE": RestrictedUnpickler._reduce, "BUILD": RestrictedUnpickler._build,
    "APPEND": RestrictedUnpickler._append, "APPENDS": RestrictedUnpickler._appends,
    "SETITEM": RestrictedUnpickler._setitem, "SETITEMS": RestrictedUnpickler._setitems,
    "SHORT_BINUNICODE": _text("<B"), "BINUNICODE": _text("<I"), "BINUNICODE8": _text("<Q"),
    "SHORT_BINBYTES": _bytes("<B"), "BINBYTES": _bytes("<I"), "BINBYTES8": _bytes("<Q"), "BYTEARRAY8": _bytes("<Q"),
}.items():  # fmt: skip
    _instruction(_name, _method)


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    """The file's bytes; reading beyond the end gives what there is, however much a damaged length asks for."""
    if not file.is_file():
        raise DataError(file, "path", "is not a file.", "Name a .pkl list of pairs.")
    size = file.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        limit = f"lists of up to {MAX_FILE_BYTES >> 30} GiB are read"
        raise DataError(file, "size", f"is of {size} bytes; {limit}.", _DAMAGED)
    with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def read_rows(file: str | Path) -> list[Any]:
    """The list in a pickle, as plain Python values (arrays as `ArrayValue`). Takes about 3 kB of memory per row.

    Raises:
        DataError: not a pickled list, damaged, larger than the limits above, or asking for anything that is not on the
            list of `ALLOWED`; nothing of it was carried out then.
    """
    file = Path(file)
    with _mapped(file) as mapped:
        place = "pickle"
        try:
            rows = RestrictedUnpickler(mapped).load()
            left = len(mapped) - mapped.tell()
        except Refused as error:
            raise DataError(file, f"before byte {mapped.tell()}", f"{error}.", _NOT_TRUSTED) from error
        except Exception as error:  # a damaged program fails in as many ways as there are instructions
            problem = f"does not unpickle ({type(error).__name__}: {str(error)[:120]})."
            raise DataError(file, f"before byte {mapped.tell()}", problem, _DAMAGED) from error
    if type(rows) is not list:
        raise DataError(file, place, f"holds a {type(rows).__name__}, not a list of pairs.", "Name a list of pairs.")
    if left:
        raise DataError(file, place, f"has {left} bytes after its list.", _DAMAGED)
    return rows


@dataclass
class PickleReport:
    """What a pickle would do. Names are as written in it."""

    protocol: int = 0
    instructions: int = 0
    names: dict[tuple[str, str], int] = field(default_factory=dict)
    """(module, name) that it asks for, and how often."""
    refused: dict[str, int] = field(default_factory=dict)
    """What `read_rows` would refuse, and the byte where it first stands."""
    broken: str = ""
    """Why the listing ends early; empty if it does not."""


def inspect_pickle(file: str | Path) -> PickleReport:
    """List what a pickle asks for, by reading its instructions; none is carried out.

    Raises:
        DataError: no file, or an empty one. A damaged one is listed as far as it goes.
    """
    file, report = Path(file), PickleReport()
    recent: list[str | None] = []
    memo: dict[int, str | None] = {}
    with _mapped(file) as mapped:
        try:
            for opcode, argument, position in pickletools.genops(cast(Any, mapped)):
                report.instructions += 1
                where = position or 0
                if opcode.name == "PROTO":
                    report.protocol = int(argument or 0)
                if opcode.name not in ALLOWED_OPCODES:
                    report.refused.setdefault(f"instruction {opcode.name}", where)
                asked = _asked_name(opcode.name, argument, recent)
                if asked is not None:
                    report.names[asked] = report.names.get(asked, 0) + 1
                    if asked not in ALLOWED:
                        report.refused.setdefault(".".join(asked), where)
                _follow(opcode.name, argument, recent, memo)
        except Exception as error:  # as above
            report.broken = f"{type(error).__name__}: {str(error)[:120]}"
    return report


def _asked_name(opcode: str, argument: Any, recent: list[str | None]) -> tuple[str, str] | None:
    if opcode in ("GLOBAL", "INST"):
        module, _, name = str(argument).partition(" ")
        return module, name
    if opcode == "STACK_GLOBAL":
        module, name = recent[-2:] if len(recent) >= 2 else (None, None)
        return module or "(computed)", name or "(computed)"
    return None


def _follow(opcode: str, argument: Any, recent: list[str | None], memo: dict[int, str | None]) -> None:
    """Keep the last texts pushed: the name of a STACK_GLOBAL is two of them."""
    if opcode == "MEMOIZE":
        memo[len(memo)] = recent[-1] if recent else None
    elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[int(argument)] = recent[-1] if recent else None
    elif opcode in ("BINGET", "LONG_BINGET", "GET"):
        recent.append(memo.get(int(argument)))
    elif opcode not in ("PROTO", "FRAME"):
        recent.append(argument if isinstance(argument, str) and "UNICODE" in opcode else None)
    del recent[:-4]


def _show(value: Any) -> str:
    """A value in a message: short, and never the text of something nested."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        try:
            return repr(value)[:60]
        except ValueError:  # an integer of thousands of digits
            return "a huge number"
    return f"a {type(value).__name__}"
