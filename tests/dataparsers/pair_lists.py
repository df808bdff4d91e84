"""Pair lists for tests: six rows as spec megascenes 11.6 asks, and pickles nobody should run."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

AUTHORS = "/share/WikiSFM/data/main/images"
Q1 = [0.9990482215818578, 0.0, 0.043619387365336, 0.0]
"""5 degrees about y."""
Q2 = [0.9961946980917455, 0.0871557427476582, 0.0, 0.0]
"""10 degrees about x."""


def listed(name: str, category: str = "Abbey_of_X", sub: str = "Abbey_of_X") -> str:
    """A path as the authors' lists have it."""
    return f"{AUTHORS}/{category}/commons/{sub}/0/pictures/{name}"


def camera(pose: Any, *intrinsics: Any) -> dict[str, Any]:
    """A camera as listed."""
    return {"extrinsics": pose, "intrinsics": list(intrinsics)}


def one_row() -> list[Any]:
    """A row of plain values, made anew at each call."""
    return [
        listed("a.jpg"),
        listed("b.jpg"),
        camera([*Q1, 0.5, -0.25, 2.0], "PINHOLE", 800, 600, 700.0, 710.0, 400.0, 300.0),
        camera([*Q2, -1.0, 0.125, 3.0], "SIMPLE_PINHOLE", 640, 480, 500.0, 320.0, 240.0),
        4.0,
    ]


def six_rows() -> list[list[Any]]:
    """All three camera models, text and float numbers, list, tuple and array poses, a NumPy scale, a space, a letter
    beyond ASCII; the second photo of row 5 is not among `write_photos`'."""
    ref, tgt = [*Q1, 0.5, -0.25, 2.0], [*Q2, -1.0, 0.125, 3.0]
    pinhole = ("PINHOLE", 800, 600, 700.0, 710.0, 400.0, 300.0)
    simple = ("SIMPLE_PINHOLE", 640, 480, 500.0, 320.0, 240.0)
    as_numpy, few_digits = np.float64(4.0), [np.float32(each) for each in (500, 510, 320, 240)]
    radial = ("SIMPLE_RADIAL", "640", "480", "500", "320.0", "2.4e2", "-0.03")
    return [
        [listed("a.jpg"), listed("b.jpg"), camera(ref, *pinhole), camera(tgt, *simple), 4.0],
        [listed("b.jpg"), listed("a.jpg"), camera(np.array(tgt), *simple), camera(np.array(ref), *pinhole), as_numpy],
        [listed("c d.jpg"), listed("a.jpg"), camera(tuple(tgt), *radial), camera(ref, *pinhole), np.float32(2.5)],
        [
            listed("Façade.png", "Château_de_X", "Exterior/North side"),
            listed("a.jpg"),
            camera([np.float64(each) for each in ref], *radial),
            camera(np.array(tgt, np.float32), "PINHOLE", np.int64(640), np.int32(480), *few_digits),
            "1.5",
        ],
        [listed("a.jpg"), listed("c d.jpg"), camera(ref, *pinhole), camera(tgt, *radial)],
        [listed("a.jpg"), listed("gone.jpg"), camera(ref, *pinhole), camera(tgt, *simple), 4.0],
    ]  # fmt: skip


def write_list(file: Path, rows: Any, protocol: int = 4) -> Path:
    """Pickle rows into a file."""
    file.write_bytes(pickle.dumps(rows, protocol))
    return file


def write_photos(root: Path) -> Path:
    """Files (a few bytes, no pictures) for all but one photo of `six_rows`, as the bucket has them; see CATEGORIES."""
    first = root / "000/007/commons/Abbey_of_X/0/pictures"
    second = root / "012/345/commons/Exterior/North side/0/pictures"
    for folder, names in ((first, ("a.jpg", "b.jpg", "c_d.jpg")), (second, ("Façade.png",))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(b"photo")
    return root


CATEGORIES = {"Abbey of X": 7, "Château_de_X": "012345"}


class Calls:
    """Unpickles by calling a function: what a gadget is."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str) -> bytes:
    """The instructions that push a function by its name, which may have dots."""
    return text(module) + text(name) + b"\x93"
