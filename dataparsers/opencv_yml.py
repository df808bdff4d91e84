"""The part of OpenCV's FileStorage yml that calibrations use, without cv2 (spec r4dv 2.2).

Numbers, strings, lists of strings and ``!!opencv-matrix`` nodes under plain keys; cv2 reads what `format_yml` gives.
Reading is tolerant of what people's editors and scripts do: any line ends, tabs, comments, wrapped data, numbers like
``1.``, ``-0.``, ``.5``, ``1e-05`` and ``.Inf``, a missing header. Entries of a list stay text: a camera may be "007".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from core_ns.errors import DataError
from dataparsers.mvsnet import read_small_text

Array = np.ndarray
Value = Union[str, float, int, list[str], Array]

MAX_BYTES = 64_000_000
"""A camera that moves over ten thousand frames needs 8 MB."""

# cv2's letters for the element type of a matrix.
_TYPES = {
    "u": np.uint8,
    "c": np.int8,
    "w": np.uint16,
    "s": np.int16,
    "i": np.int32,
    "f": np.float32,
    "d": np.float64,
}
_LETTERS = {np.dtype(kind): letter for letter, kind in _TYPES.items()}
_DIGITS = "[0-9]+\\.?[0-9]*|\\.[0-9]+"
_NUMBER = re.compile(rf"[+-]?(?:(?:{_DIGITS})(?:[eE][+-]?[0-9]+)?|\.?[iI][nN][fF]|\.?[nN][aA][nN])")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:''|[^'])*'")
_COMMENT = re.compile(rf"({_QUOTED.pattern})|(?:^|(?<=[ \t]))#.*")
_KEY = re.compile(rf"({_QUOTED.pattern}|[^\s:\"'\[\]{{}},!|>%@`#-][^:]*):(.*)")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}

_EXPORT = "Write the file again with cv2.FileStorage or 'ns-r4dv convert', or correct it by hand."
_NODE = "A matrix needs the indented lines 'rows: 3', 'cols: 3', 'dt: d' and 'data: [..]' below its key."


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


def _lines(text: str) -> list[_Line]:
    """Lines that hold more than blanks and comments; the header and ``---`` are left out, ``...`` ends the file."""
    found = []
    # Not splitlines(): it also breaks at characters that a camera's name may hold.
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        line = (_COMMENT.sub(lambda match: match.group(1) or "", raw) if "#" in raw else raw).rstrip()
        content = line.lstrip()
        if line == "...":
            break
        if not content or line.startswith(("%", "---")):
            continue
        # Tabs are no indentation in YAML, but people write them; a tab counts as it is shown.
        found.append(_Line(number, len(line[: len(line) - len(content)].expandtabs(8)), content))
    return found


def _unquote(text: str) -> str:
    """The content of a quoted string, or the plain text itself."""
    if text.startswith('"'):
        return _ESCAPE.sub(
            lambda match: (
                chr(int(match.group(1)[1:], 16))
                if len(match.group(1)) == 3
                else _ESCAPES.get(match.group(1), match.group(1))
            ),
            text[1:-1],
        )
    return text[1:-1].replace("''", "'") if text.startswith("'") else text


class _Parser:
    """Walks the lines once. Every error names the key and the line."""

    def __init__(self, text: str, file: str | Path) -> None:
        self.file, self.lines, self.position, self.key = file, _lines(text), 0, ""

    def error(self, number: int, problem: str, remedy: str = _EXPORT) -> DataError:
        place = f"{self.key[:80]}, line {number}" if self.key else f"line {number}"
        return DataError(self.file, place, problem, remedy)

    def peek(self) -> _Line | None:
        return self.lines[self.position] if self.position < len(self.lines) else None

    def parse(self) -> dict[str, Value]:
        content: dict[str, Value] = {}
        base = self.lines[0].indent if self.lines else 0
        while (line := self.peek()) is not None:
            self.key = ""
            match = _KEY.fullmatch(line.text)
            if match is None or line.indent != base:
                shown = line.text[:60]
                raise self.error(line.number, f"'{shown}' is no 'key: value' of the file and belongs to no list.")
            self.key = _unquote(match.group(1).strip())
            if self.key in content:
                problem = "the key occurs twice."
                raise self.error(line.number, problem, "Remove one of the two: they may not agree.")
            self.position += 1
            content[self.key] = self.value(match.group(2).strip(), line)
        return content

    def value(self, text: str, line: _Line) -> Value:
        if text.split(None, 1)[:1] == ["!!opencv-matrix"]:
            if text != "!!opencv-matrix":
                raise self.error(line.number, f"'{text[15:60].strip()}' follows !!opencv-matrix.", _NODE)
            return self.matrix(line)
        if text.startswith("["):
            inner, number = self.brackets(text, line.number)
            return self.items(inner, number)
        if not text:
            return self.block(line)
        return self.scalar(text, line.number)

    def scalar(self, text: str, number: int) -> str | float | int:
        if text[0] in "\"'":
            return self.string(text, number)
        if text[0] in "!{&*|>@`" or text == "-":
            problem = f"'{text[:40]}' is YAML that calibration files do not hold."
            raise self.error(number, problem, "Write a number, a quoted string, a list or a !!opencv-matrix.")
        if not _NUMBER.fullmatch(text):
            return text
        return int(text) if _INTEGER.fullmatch(text) else self.number(text, number)

    def string(self, text: str, number: int) -> str:
        if text[:1] in ("'", '"') and not _QUOTED.fullmatch(text):
            raise self.error(number, f"{text[:40]} has no closing quote.", "Close the quote on the same line.")
        return _unquote(text)

    def number(self, text: str, line: int) -> float:
        if not _NUMBER.fullmatch(text):
            remedy = "Write numbers like 0.5 or -1e-3, with a decimal point, separated by commas."
            raise self.error(line, f"'{text[:40]}' is not a number.", remedy)
        word = text.lower()
        if word.lstrip("+-").lstrip(".") in ("inf", "nan"):
            return float(word.replace(".", ""))
        value = float(word)
        if not np.isfinite(value):
            raise self.error(line, f"'{text[:40]}' is too large for a double.")
        return value

    def brackets(self, text: str, number: int) -> tuple[str, int]:
        """The text between brackets, which may span lines, and the line of the closing one."""
        parts = []
        while True:
            bare = _QUOTED.sub(lambda match: "_" * len(match.group()), text)
            end = bare.find("]")
            if end >= 0:
                if text[end + 1 :].strip():
                    raise self.error(number, f"'{text[end + 1 :].strip()[:40]}' follows the closing bracket.")
                parts.append(text[:end])
                return " ".join(parts)[1:], number
            parts.append(text)
            line = self.peek()
            # The next key, not the rest of the list: name this key, not the last line of the file.
            if line is None or (_KEY.fullmatch(line.text) and not line.text.startswith(('"', "'"))):
                raise self.error(number, "its bracket '[' is never closed.", "End the list with ']'.")
            self.position += 1
            text, number = line.text, line.number

    def items(self, inner: str, number: int) -> list[str]:
        bare = _QUOTED.sub(lambda match: "_" * len(match.group()), inner)
        cuts = [-1, *(match.start() for match in re.finditer(",", bare)), len(inner)]
        words = [inner[start + 1 : end].strip() for start, end in pairwise(cuts)]
        if not words[-1]:  # a comma after the last entry, or an empty list
            words.pop()
        if not all(words):
            raise self.error(number, "its list has an empty entry.", "Remove the second comma.")
        return [self.string(word, number) for word in words]

    def block(self, line: _Line) -> Value:
        """What stands on the lines below a key: a list with dashes, or nothing."""
        entries = []
        while (item := self.peek()) is not None and (item.text == "-" or item.text.startswith(("- ", "-\t"))):
            if item.indent < line.indent:
                break
            word = item.text[1:].strip()
            if not word:
                raise self.error(item.number, "its list has an empty entry.", "Remove the line with the lone dash.")
            entries.append(self.string(word, item.number))
            self.position += 1
        item = self.peek()
        if item is not None and item.indent > line.indent:
            problem = f"'{item.text[:40]}' is nested below it."
            remedy = "A matrix needs '!!opencv-matrix' after its key; a list needs a dash before each entry."
            raise self.error(item.number, problem, remedy)
        return entries

    def matrix(self, head: _Line) -> Array:
        fields: dict[str, str] = {}
        while (line := self.peek()) is not None and line.indent > head.indent:
            match = _KEY.fullmatch(line.text)
            name = match.group(1).strip() if match else ""
            if match is None or name not in ("rows", "cols", "dt", "data") or name in fields:
                raise self.error(line.number, f"'{line.text[:40]}' does not belong here.", _NODE)
            self.position += 1
            text = match.group(2).strip()
            if name == "data":
                if not text.startswith("["):
                    raise self.error(line.number, "its data do not begin with '['.", _NODE)
                text, _ = self.brackets(text, line.number)
            fields[name] = text
        missing = [name for name in ("rows", "cols", "dt", "data") if name not in fields]
        if missing:
            raise self.error(head.number, f"its matrix has no '{missing[0]}'.", _NODE)
        rows, cols = (self.side(fields[name], name, head.number) for name in ("rows", "cols"))
        letter = _unquote(fields["dt"])
        if letter not in _TYPES:
            problem = f"its element type '{letter[:20]}' is not one of {', '.join(_TYPES)}."
            raise self.error(head.number, problem, "Write 'dt: d'.")
        words = self.items(fields["data"], head.number)
        if len(words) != rows * cols:
            problem = f"{len(words)} numbers where {rows}x{cols} belong."
            raise self.error(head.number, problem, "Write rows x cols numbers with a decimal point, not a comma.")
        values = np.array([self.number(word, head.number) for word in words], dtype=np.float64).reshape(rows, cols)
        return self.typed(values, letter, head.number)

    def typed(self, values: Array, letter: str, number: int) -> Array:
        kind = np.dtype(_TYPES[letter])
        finite = values[np.isfinite(values)]
        limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
        fits = not finite.size or (finite.min() >= limits.min and finite.max() <= limits.max)
        if kind.kind in "iu":
            fits = fits and finite.size == values.size and bool((finite == np.round(finite)).all())
        if not fits:
            raise self.error(number, f"a number does not fit its element type '{letter}'.", "Write 'dt: d'.")
        return values.astype(kind)

    def side(self, text: str, name: str, number: int) -> int:
        if not _INTEGER.fullmatch(text) or not 0 <= int(text) <= 1_000_000:
            raise self.error(number, f"'{name}: {text[:20]}' is not a size.", _NODE)
        return int(text)


def parse_yml(text: str, file: str | Path) -> dict[str, Value]:
    """The keys of a FileStorage text in their order; ``file`` only names it in errors.

    Matrices are ``[rows, cols]`` of the type that ``dt`` names; a key without a value is an empty list; NaN and
    infinity are read as such (``.Nan``, ``.Inf``): whether they make sense, the caller knows.

    Raises:
        DataError: anything else, with key, line and remedy.
    """
    return _Parser(text.removeprefix("\ufeff"), file).parse()


def read_yml(path: str | Path) -> dict[str, Value]:
    """Read a FileStorage yml; see `parse_yml`.

    Raises:
        DataError: no such file, not UTF-8 text, larger than 64 MB, or malformed.
    """
    return parse_yml(read_small_text(path, MAX_BYTES), path)


def _format(value: Any, is_integer: bool) -> str:
    if is_integer:
        return str(int(value))
    value = float(value)
    if not np.isfinite(value):
        return ".Nan" if np.isnan(value) else ".Inf" if value > 0 else "-.Inf"
    # repr is the shortest text that reads back as the same double (never more than 17 digits).
    text = repr(value)
    return text[:-1] if text.endswith(".0") else text


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub("[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match.group()):02x}", escaped) + '"'


def _node(key: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{key}: {_quote(value)}\n"
    if isinstance(value, np.ndarray):
        if value.dtype not in _LETTERS or value.ndim not in (1, 2):
            raise ValueError(f"'{key}' is a {value.dtype} array of shape {value.shape}; 1 or 2 axes of numbers belong")
        matrix = value.reshape(len(value), -1) if value.size else value.reshape(len(value), *value.shape[1:2] or (1,))
        words = [_format(number, value.dtype.kind in "iu") for number in matrix.ravel()]
        rows = [", ".join(words[start : start + 16]) for start in range(0, len(words), 16)]
        data = ",\n      ".join(rows)
        return (
            f"{key}: !!opencv-matrix\n  rows: {matrix.shape[0]}\n  cols: {matrix.shape[1]}\n"
            f"  dt: {_LETTERS[value.dtype]}\n  data: [{data}]\n"
        )
    if isinstance(value, Sequence):
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"'{key}' is a list of other things than strings")
        return f"{key}:\n" + "".join(f"  - {_quote(item)}\n" for item in value)
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (is_integer or isinstance(value, float | np.floating)):
        raise ValueError(f"'{key}' is a {type(value).__name__}, which a calibration file cannot hold")
    if is_integer and abs(int(value)) >= 10**18:
        raise ValueError(f"'{key}' is an integer of more than 18 digits")
    return f"{key}: {_format(value, is_integer)}\n"


def format_yml(content: Mapping[str, Any]) -> str:
    """The text of a FileStorage yml: the inverse of `parse_yml`, without loss. Arrays of one axis become columns.

    Raises:
        ValueError: a key or value that the format cannot hold.
    """
    parts = ["%YAML:1.0\n---\n"]
    for key, value in content.items():
        # No text that would read back as another key.
        if not re.fullmatch(r"""[^\W\d][^:#"'\x00-\x1f\x7f]*""", key) or key != key.rstrip():
            raise ValueError(
                f"'{key[:80]}' cannot be a key: a letter or _ first, none of : # and quotes, no blank last"
            )
        parts.append(_node(key, value))
    return "".join(parts)
