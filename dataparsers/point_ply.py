"""Point clouds in PLY files, binary (either byte order) and ASCII: positions; colour, radius and opacity if present.

Read by hand: a point cloud may come from anywhere, and every file that is not one must end in a `DataError`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.atomic import atomic_path
from core_ns.errors import DataError

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_NAMES = {"f4": "float", "u1": "uchar", "f8": "double"}
_MOST_HEADER = 1 << 16
_MOST_POINTS = 1 << 28
_AGAIN = "Write it again as a PLY point cloud (binary_little_endian or ascii)."


@dataclass
class PointCloud:
    """Points with what the file knew about them."""

    xyz: Float[np.ndarray, "n 3"]
    """float32, or float64 where the file held doubles."""
    rgb: UInt8[np.ndarray, "n 3"] | None = None
    radius: Float[np.ndarray, "n"] | None = None
    """float32, in the units of xyz."""
    alpha: Float[np.ndarray, "n"] | None = None
    """float32 in [0, 1]."""


def write_ply(
    path: str | Path,
    xyz: Float[np.ndarray, "n 3"],
    rgb: UInt8[np.ndarray, "n 3"] | None = None,
    radius: Float[np.ndarray, "n"] | None = None,
    alpha: Float[np.ndarray, "n"] | None = None,
    *,
    ascii: bool = False,
    double: bool = False,
    comment: str = "",
) -> None:
    """Write points atomically; float32 unless ``double``; ASCII keeps every digit; a line of ``comment`` on request.

    Raises:
        ValueError: shapes that do not fit, colours that are not uint8, or numbers that are not finite.
    """
    xyz = np.asarray(xyz)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"points must be [n, 3], got {xyz.shape}")
    kind = "f8" if double else "f4"
    columns = {name: (kind, xyz[:, i]) for i, name in enumerate("xyz")}
    if rgb is not None:
        rgb = np.asarray(rgb)
        if rgb.shape != xyz.shape or rgb.dtype != np.uint8:
            raise ValueError(f"colours must be uint8 {xyz.shape}, got {rgb.dtype} {rgb.shape}")
        columns |= {name: ("u1", rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))}
    for name, values in (("radius", radius), ("alpha", alpha)):
        if values is not None:
            if np.shape(values) != (len(xyz),):
                raise ValueError(f"{name} must be [{len(xyz)}], got {np.shape(values)}")
            columns[name] = ("f4", np.asarray(values))
    write_vertices(path, columns, ascii=ascii, comment=comment)


def write_vertices(
    path: str | Path, columns: Mapping[str, tuple[str, np.ndarray]], *, ascii: bool = False, comment: str = ""
) -> None:
    """Write the element ``vertex`` with these properties, in their order, atomically; ASCII keeps every digit.

    Args:
        columns: numpy's code of the stored type ("f4", "u1", "f8") and the values [n] of each property.
        comment: a line for the header, see `ply_comments`.

    Raises:
        ValueError: different lengths, numbers that are not finite in the stored precision, or a comment that is no line
            of ASCII.
    """
    if not (comment.isascii() and comment.isprintable()):
        raise ValueError("a comment is one line of ASCII")
    count = len(next(iter(columns.values()))[1])
    table = np.empty(count, dtype=[(name, "<" + code) for name, (code, _) in columns.items()])
    for name, (_, values) in columns.items():
        with np.errstate(over="ignore"):
            table[name] = values
        if not np.isfinite(table[name]).all():
            raise ValueError(f"{name} holds numbers that are not finite in the file's precision")
    header = ["ply", f"format {'ascii' if ascii else 'binary_little_endian'} 1.0"]
    header += [f"comment {comment}"] if comment else []
    header += [f"element vertex {count}"]
    header += [f"property {_NAMES[code]} {name}" for name, (code, _) in columns.items()]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(("\n".join([*header, "end_header"]) + "\n").encode("ascii"))
        if ascii:
            # numpy's own text of a number is the shortest that reads back as the same.
            handle.writelines((" ".join(map(str, row)) + "\n").encode("ascii") for row in table)
        else:
            handle.write(table.tobytes())


def _bad(path: Path, place: str, problem: str) -> DataError:
    return DataError(path, place, problem, _AGAIN)


@dataclass
class _Element:
    name: str
    count: int
    columns: list[tuple[str, str]]
    has_list: bool = False


def _header(path: Path, data: bytes) -> tuple[str, list[_Element], int]:
    """(format, elements, offset of the body)."""
    end = data.find(b"end_header", 0, _MOST_HEADER)
    newline = data.find(b"\n", end) if end >= 0 else -1
    if not data.startswith(b"ply") or newline < 0 or data[end + 10 : newline].strip():
        raise _bad(path, "header", "is not that of a PLY file.")
    try:
        lines = [line.strip() for line in data[:end].decode("ascii").replace("\r", "\n").split("\n")]
    except UnicodeDecodeError as error:
        raise _bad(path, "header", "is not plain text.") from error
    form, elements = "", []
    for line in lines[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3:
            form = words[1]
        elif words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 12:
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and len(words) == 3 and words[1] in _TYPES and elements:
            if words[2] in dict(elements[-1].columns):
                raise _bad(path, "header", f"names the property '{words[2]}' twice.")
            elements[-1].columns.append((words[2], _TYPES[words[1]]))
        elif words[0] == "property" and len(words) == 5 and words[1] == "list" and elements:
            elements[-1].has_list = True
        else:
            raise _bad(path, "header", f"has the line '{line[:60]}', which means nothing here.")
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise _bad(path, "header", f"states the format '{form}'.")
    return form, elements, newline + 1


def ply_comments(path: str | Path) -> list[str]:
    """The comments in a PLY file's header, which alone is read.

    Raises:
        DataError: not a PLY file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            start = handle.read(_MOST_HEADER)
    except OSError as error:
        raise _bad(path, "", f"cannot be read ({error.strerror or error}).") from error
    _header(path, start)
    lines = start[: start.find(b"end_header")].decode("ascii").splitlines()
    return [line.strip().removeprefix("comment ") for line in lines if line.startswith("comment ")]


def read_ply(path: str | Path) -> PointCloud:
    """Read the ``vertex`` element of a PLY file; what comes after it (faces) is not looked at.

    Colours may be uchar (0 to 255) or float (0 to 1), an alpha of type uchar is divided by 255, ``opacity`` is not
    taken for alpha (splat files store its logit there).

    Raises:
        DataError: not a PLY file, no vertex element with x, y and z, more than 2^28 points, too few data, or positions,
            radii or opacities that are not finite.
    """
    path = Path(path)
    return _cloud(path, read_vertices(path, "xyz"))


def read_vertices(path: str | Path, needed: Iterable[str] = ()) -> np.ndarray:
    """The element ``vertex`` of a PLY file as a structured array [n], one field a property.

    Args:
        needed: properties that must be there.

    Raises:
        DataError: not a PLY file, no vertex element with these properties, lists in it, more than 2^28 points, or too
            few data.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _bad(path, "", f"cannot be read ({error.strerror or error}).") from error
    form, elements, offset = _header(path, data)
    before: list[_Element] = []
    for vertex in elements:
        if vertex.name == "vertex":
            break
        before.append(vertex)
    else:
        raise _bad(path, "header", "has no element 'vertex'.")
    if vertex.has_list or any(each.has_list for each in before):
        raise _bad(path, "header", "has lists in or before its points.")
    missing = [name for name in needed if name not in dict(vertex.columns)]
    if missing:
        raise _bad(path, "element vertex", f"has no property {', '.join(missing)}.")
    if vertex.count > _MOST_POINTS:
        raise _bad(path, "element vertex", f"declares {vertex.count} points; the limit is {_MOST_POINTS}.")
    body = memoryview(data)[offset:]
    if form == "ascii":
        return _ascii_table(path, bytes(body), before, vertex)
    return _binary_table(path, body, before, vertex, "<" if form == "binary_little_endian" else ">")


def _binary_table(path: Path, body: memoryview, before: list[_Element], vertex: _Element, order: str) -> np.ndarray:
    """The vertex element's rows."""
    skip = sum(each.count * sum(int(code[1]) for _, code in each.columns) for each in before)
    dtype = np.dtype([(name, order + code) for name, code in vertex.columns])
    if len(body) < skip + vertex.count * dtype.itemsize:
        problem = (
            f"declares {vertex.count} points of {dtype.itemsize} bytes, {max(0, len(body) - skip)} bytes are there."
        )
        raise _bad(path, "body", problem)
    return np.frombuffer(body, dtype, vertex.count, skip)


def _ascii_table(path: Path, body: bytes, before: list[_Element], vertex: _Element) -> np.ndarray:
    """The vertex element's rows, one a line."""
    lines = body.split(b"\n")
    first = sum(each.count for each in before)
    if len(lines) < first + vertex.count:
        problem = f"declares {vertex.count} points, {max(0, len(lines) - first)} lines are there."
        raise _bad(path, "body", problem)
    table = np.zeros(vertex.count, dtype=[(name, code) for name, code in vertex.columns])
    if not vertex.count:
        return table
    text = io.StringIO("\n".join(line.decode("latin-1") for line in lines[first : first + vertex.count]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # blank lines are told by their number below
            values = np.loadtxt(text, dtype=np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise _bad(path, "body", f"holds something else than numbers ({error}).") from error
    if values.shape != (vertex.count, len(vertex.columns)):
        raise _bad(path, "body", f"has {values.shape[0]} rows of {values.shape[1]} numbers.")
    for i, (name, code) in enumerate(vertex.columns):
        column = values[:, i]
        if code[0] in "iu":
            limits = np.iinfo(code)
            if not ((column >= limits.min) & (column <= limits.max) & (column == np.floor(column))).all():
                raise _bad(path, f"property {name}", "holds numbers that its type does not allow.")
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            table[name] = column
    return table


def _cloud(path: Path, table: np.ndarray) -> PointCloud:
    """Columns to arrays."""
    names = table.dtype.names or ()
    wide = any(table.dtype[name].itemsize == 8 for name in "xyz")
    xyz = np.stack([table[name] for name in "xyz"], axis=1).astype(np.float64 if wide else np.float32)
    alpha = None
    if "alpha" in names:
        alpha = _finite(path, _narrow(table["alpha"])) / np.float32(255 if table.dtype["alpha"].kind == "u" else 1)
    return PointCloud(
        _finite(path, xyz),
        _colours(path, table) if {"red", "green", "blue"} <= set(names) else None,
        _finite(path, _narrow(table["radius"])) if "radius" in names else None,
        alpha,
    )


def _narrow(values: np.ndarray) -> Float[np.ndarray, "n"]:
    """float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    """The values, refused when some are not numbers."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise _bad(path, f"point {bad[0][0]}", f"holds {values[tuple(bad[0])]}.")
    return values


def _colours(path: Path, table: np.ndarray) -> UInt8[np.ndarray, "n 3"]:
    """Colours as 8 bit."""
    columns = [table[name] for name in ("red", "green", "blue")]
    colours = np.stack([column.astype(np.float64) for column in columns], axis=1)
    if columns[0].dtype.kind == "f":
        colours = np.rint(255.0 * colours)
    if not ((colours >= 0) & (colours <= 255)).all():
        raise _bad(path, "colours", "are neither whole numbers from 0 to 255 nor floats from 0 to 1.")
    return colours.astype(np.uint8)
