"""MVSNet camera files (``NAME_cam.txt``) and view lists: reader and writer (spec xscale 2.2, 2.7)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core_ns.atomic import write_text
from core_ns.errors import DataError
from core_ns.frames import homogeneous, rigid_from_w2c
from core_ns.images import IMAGE_SUFFIXES

MAX_BYTES = 1_000_000

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LIST_COMMENT = re.compile(r"(?:^|\s)#.*")  # photo names may hold a '#'
_LINE_END = re.compile(r"\r\n|\r|\n")
_LAYOUT = (
    "Expected layout: the word 'extrinsic', a 3x4 or 4x4 world-to-camera matrix, the word 'intrinsic', a 3x3 matrix "
    "in pixels, optionally 'depth_min depth_interval [depth_num [depth_max]]'."
)

Token = tuple[int, str]
"""Line number (from 1) and word."""


@dataclass(frozen=True, eq=False)
class MvsCamera:
    """One pinhole camera: x_camera = R X + t, pixel = K x_camera / z.

    ``w2c`` float64 [4, 4], rigid, OpenCV axes, scene units. ``intrinsics`` float64 [3, 3] in pixels, (0, 0) at the
    outer corner of the top-left pixel. ``depth`` is the optional sweep range along camera z, kept as metadata.
    """

    w2c: Float[np.ndarray, "4 4"]
    intrinsics: Float[np.ndarray, "3 3"]
    depth: tuple[float, ...] | None = None


def read_small_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """Text of a small UTF-8 file, byte-order mark removed.

    Raises:
        DataError: no such file, more than ``max_bytes``, binary, not UTF-8, unreadable.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(path, "path", "is not a file.", "Check the path.")
        with open(path, "rb") as handle:
            raw = handle.read(max_bytes + 1)
    except OSError as error:
        problem = f"cannot be opened ({error.strerror or error})."
        raise DataError(path, "path", problem, "Check the path and its permissions.") from error
    if len(raw) > max_bytes:
        raise DataError(
            path, "size", f"is larger than {max_bytes} bytes.", "This is not a camera file or list; remove it."
        )
    if b"\0" in raw:
        place = f"byte {raw.index(0)}"
        raise DataError(path, place, "is binary or UTF-16.", "Save it as plain UTF-8 text.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"byte {error.start}", "is not UTF-8 text.", "Save it as plain UTF-8 text.") from error


def content_lines(text: str, comment: re.Pattern[str] = re.compile("#.*")) -> list[tuple[int, str]]:
    """(line number from 1, content) of the lines that hold more than blanks and a comment; any line ends."""
    lines = _LINE_END.split(text.removeprefix("\ufeff"))
    pairs = ((number, comment.sub("", line).strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in pairs if line]


def _number(token: Token, file: str | Path) -> float:
    line, word = token
    if not _NUMBER.fullmatch(word):
        remedy = "Write a finite decimal number with a point, like 0.5 or -1e-3, separated by blanks."
        raise DataError(file, f"line {line}", f"'{word[:40]}' is not a finite number.", remedy)
    value = float(word)
    if not math.isfinite(value):
        raise DataError(file, f"line {line}", f"'{word[:40]}' is too large for a double.", "Export the camera again.")
    return value


def _sections(text: str, file: str | Path) -> tuple[list[Token], list[Token], int, int]:
    """The tokens after the two key words, and the lines of the key words."""
    tokens = [(number, word) for number, line in content_lines(text) for word in line.split()]
    if not tokens:
        raise DataError(file, "line 1", "is empty.", _LAYOUT)
    places: list[int] = []
    for word in ("extrinsic", "intrinsic"):
        found = [index for index, token in enumerate(tokens) if token[1].lower() == word]
        if not found:
            raise DataError(file, f"line {tokens[-1][0]}", f"the word '{word}' is missing.", _LAYOUT)
        if len(found) > 1:
            raise DataError(file, f"line {tokens[found[1]][0]}", f"the word '{word}' occurs twice.", _LAYOUT)
        places.append(found[0])
    first, second = places
    if first != 0 or second < first:
        line, word = tokens[0]
        raise DataError(file, f"line {line}", f"begins with '{word[:40]}', not with 'extrinsic'.", _LAYOUT)
    return tokens[1:second], tokens[second + 1 :], tokens[0][0], tokens[second][0]


def _intrinsics(values: Sequence[float], file: str | Path, line: int, offset: float) -> Float[np.ndarray, "3 3"]:
    matrix = np.array(values, dtype=np.float64).reshape(3, 3)
    place = f"intrinsic, line {line}"
    remedy = "The matrix must read 'fx skew cx / 0 fy cy / 0 0 1' in pixels."
    if not np.allclose(matrix[2], [0.0, 0.0, 1.0], rtol=0.0, atol=1e-6):
        raise DataError(file, place, f"the last row is {matrix[2].tolist()}, not 0 0 1.", remedy)
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DataError(file, place, f"focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g} must be positive.", remedy)
    if abs(matrix[1, 0]) > 1e-9 * matrix[1, 1]:
        raise DataError(file, place, f"row 2 begins with {matrix[1, 0]:g}, not 0.", remedy)
    matrix[1, 0], matrix[2] = 0.0, (0.0, 0.0, 1.0)
    matrix[:2, 2] += 0.5 - offset
    return matrix


def _depth(values: Sequence[float], file: str | Path, line: int) -> tuple[float, ...] | None:
    if not values:
        return None
    remedy = "Write 'depth_min depth_interval [depth_num [depth_max]]' with positive numbers, or leave the line out."
    place = f"depth, line {line}"
    if not 2 <= len(values) <= 4:
        raise DataError(file, place, f"{len(values)} number(s) follow the 3x3 matrix; 0 or 2 to 4 can.", remedy)
    if min(values) <= 0:
        raise DataError(file, place, f"depth value {min(values):g} is not positive.", remedy)
    if len(values) == 4 and values[3] <= values[0]:
        raise DataError(file, place, f"depth_max {values[3]:g} is not beyond depth_min {values[0]:g}.", remedy)
    return tuple(values)


def parse_cam(text: str, file: str | Path, pixel_center_offset: float = 0.5) -> MvsCamera:
    """Parse one camera file.

    Any blanks, line ends and ``#`` comments; 3x4 or 4x4 extrinsic; a uniform scale is divided out (spec xscale 2.2).

    Args:
        text: content of the file.
        file: its name, for messages.
        pixel_center_offset: where the file puts the centre of the top-left pixel: 0.5, or 0.0 for integer centres,
            which adds 0.5 to cx and cy.

    Raises:
        DataError: anything else; the place names the line.
    """
    extrinsic, intrinsic, line_e, line_k = _sections(text, file)
    pose = [_number(token, file) for token in extrinsic]
    if len(pose) not in (12, 16):
        place = f"extrinsic, line {extrinsic[-1][0] if extrinsic else line_e}"
        raise DataError(file, place, f"{len(pose)} numbers where 12 (3x4) or 16 (4x4) belong.", _LAYOUT)
    rest = [_number(token, file) for token in intrinsic]
    if len(rest) < 9:
        place = f"intrinsic, line {intrinsic[-1][0] if intrinsic else line_k}"
        raise DataError(file, place, f"{len(rest)} numbers where 9 (3x3) belong.", _LAYOUT)
    intrinsics = _intrinsics(rest[:9], file, intrinsic[0][0], pixel_center_offset)
    depth = _depth(rest[9:], file, intrinsic[9][0] if len(rest) > 9 else line_k)
    try:
        with np.errstate(all="ignore"):  # absurd numbers overflow; the checks below and inside catch them
            w2c = rigid_from_w2c(np.array(pose).reshape(-1, 4))
            if not (np.isfinite(w2c).all() and np.isfinite(np.linalg.norm(w2c[:3, 3]))):
                raise ValueError("the numbers are too large")
    except (ValueError, np.linalg.LinAlgError) as error:
        remedy = "Export a rigid world-to-camera matrix (OpenCV axes: x right, y down, z forward)."
        raise DataError(file, f"extrinsic, line {extrinsic[0][0]}", f"{error}.", remedy) from error
    return MvsCamera(w2c, intrinsics, depth)


def read_cam(path: str | Path, pixel_center_offset: float = 0.5) -> MvsCamera:
    """Read one ``*_cam.txt``; see `parse_cam`. Raises DataError also for missing, huge, binary or non-UTF-8 files."""
    return parse_cam(read_small_text(path), path, pixel_center_offset)


def format_cam(camera: MvsCamera) -> str:
    """The camera as text: 4x4, 3x3, the depth line if any; 17 significant digits, so that doubles survive exactly.

    Raises:
        ValueError: NaN or infinity in the camera.
    """
    w2c, intrinsics = homogeneous(camera.w2c), np.asarray(camera.intrinsics, dtype=np.float64)
    depth = camera.depth or ()
    if not (np.isfinite(w2c).all() and np.isfinite(intrinsics).all() and all(map(math.isfinite, depth))):
        raise ValueError("the camera holds NaN or infinity")

    def rows(matrix: np.ndarray) -> list[str]:
        return [" ".join(f"{value:.17g}" for value in row) for row in matrix]

    lines = ["extrinsic", *rows(w2c), "", "intrinsic", *rows(intrinsics)]
    if depth:
        lines += ["", " ".join(f"{value:.17g}" for value in depth)]
    return "\n".join(lines) + "\n"


def write_cam(path: str | Path, camera: MvsCamera) -> None:
    """Write `format_cam` atomically."""
    write_text(path, format_cam(camera))


def read_view_list(path: str | Path, names: Sequence[str]) -> list[int]:
    """Read ``train_views.txt`` and its like: one image name, stem or id per line.

    A line is first looked up among the stems, then as a name with a suffix, and only then as a position in ``names``:
    a file called ``7.jpg`` wins over the eighth view.

    Args:
        path: the list; comments, blank lines, byte-order mark and any line ends are fine.
        names: stems of all views in file order (what an id counts).

    Returns:
        Positions in ``names``, in the order of the list, without repetition.

    Raises:
        DataError: unknown name, id out of range, or an unreadable file.
    """
    index = {name: position for position, name in enumerate(names)}
    chosen: dict[int, None] = {}
    for number, line in content_lines(read_small_text(path), _LIST_COMMENT):
        position = index.get(line)
        if position is None and line.lower().endswith(IMAGE_SUFFIXES):
            position = index.get(line.rsplit(".", 1)[0])
        if position is None and re.fullmatch(r"[0-9]{1,9}", line) and int(line) < len(names):
            position = int(line)
        if position is None:
            remedy = f"Use an image name, or an id from 0 to {len(names) - 1}."
            raise DataError(path, f"line {number}", f"'{line[:80]}' is no view of this scene.", remedy)
        chosen[position] = None
    return list(chosen)
