"""The points of a charged recording on disk: one frame at a time, mapped into memory (spec r4dv 5.2).

``frames/STEM/{xyz,radius,...}.npy`` are plain arrays, because numpy maps no others; ``frames/STEM.npz`` is the same
frame in one compressed file, for shipping. The geometry of a background that does not change lies once in ``static/``.
"""

from __future__ import annotations

import os
import shutil
import struct
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Float16, Float32, UInt8, UInt16

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from dataparsers.easymocap_options import sampled
from r4dv_ns.charge_fields import REMEDY
from r4dv_ns.charge_hashes import file_sha256, read_hashes
from r4dv_ns.charge_manifest import Manifest, read_manifest
from r4dv_ns.charge_parts import ARRAYS, FILE, GEOMETRY

Array = np.ndarray
UNSEEN = -6e4
"""Logit of a source that cannot see the point; everything below `UNSEEN` / 2 means that."""
_READING = (
    OSError, ValueError, EOFError, KeyError, SyntaxError, TypeError, RuntimeError, MemoryError, OverflowError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise over damaged files. Not all errors: the viewer interrupts its render threads by one."""


@dataclass(frozen=True, eq=False)
class ChargedFrame:
    """Points of one frame in nerfstudio's world, and what its source photos say about them.

    Colour: with w the softmax over the chosen sources' logits (those that see the point; all of them where none does),
    ``clamp(sum_s w_s src_rgb_s + limit tanh(sum_k sh_k Y_k(d)), 0, 1)`` (4K4D eq. 3 to 6). Without sources (S = 0) the
    harmonics alone are the colour, as in 3D Gaussian splatting: ``clamp(0.5 + sum_k sh_k Y_k(d), 0, 1)``.

    The arrays may be memory maps: read only, each element read when it is touched. With ``colours f32`` the f16 and u8
    arrays are f32.
    """

    xyz: Float32[Array, "n 3"] | UInt16[Array, "n 3"]
    """World; quantised ones are 0 at the smallest and 65535 at the largest corner of ``box``. See `positions`."""
    radius: Float16[Array, "n"] | Float32[Array, "n"]
    """World units."""
    alpha: Float16[Array, "n"] | Float32[Array, "n"]
    sh: Float16[Array, "n k 3"] | Float32[Array, "n k 3"]
    """Spherical harmonics, before the limit."""
    src_rgb: UInt8[Array, "s n 3"] | Float32[Array, "s n 3"]
    """Colour that each source photo shows at the points; bytes, or in [0, 1]."""
    src_logit: Float16[Array, "s n"] | Float32[Array, "s n"]
    """`UNSEEN` where the photo cannot see the point (f32: plus the logit it would have, so that a softmax over photos
    of which none sees the point is the run's); a point that no stored photo sees keeps all its logits."""
    src_id: UInt16[Array, "s"]
    """View of each source: a row of the manifest's ``views``."""
    branch: UInt8[Array, "n"] | None = None
    """0 for the subject, 1 for the background; None: all subject."""
    box: Float[Array, "2 3"] | None = None
    """What quantised positions refer to."""

    def __len__(self) -> int:
        return len(self.xyz)

    def positions(self) -> Float32[Array, "n 3"]:
        """World positions; a new array only where they are quantised.

        Raises:
            ValueError: quantised positions without their box.
        """
        if self.xyz.dtype != np.uint16:
            return self.xyz
        if self.box is None:
            raise ValueError("quantised positions need their box")
        low, high = np.asarray(self.box, np.float64)
        return (self.xyz * ((high - low) / 65535) + low).astype(np.float32)

    def arrays(self) -> dict[str, Array]:
        """Those that are stored, by name, in the order of `ARRAYS`."""
        found = {key: getattr(self, key) for key in ARRAYS}
        return {key: value for key, value in found.items() if value is not None}


def quantise(xyz: Float[Array, "n 3"]) -> tuple[UInt16[Array, "n 3"], Float[Array, "2 3"]]:
    """Positions as 16-bit steps within their own box, and the box; off by at most half a step (its side / 131070)."""
    xyz = np.asarray(xyz, np.float64)
    low, high = xyz.min(axis=0), xyz.max(axis=0)
    share = (xyz - low) / np.where(high > low, high - low, 1.0)
    return np.rint(share * 65535).astype(np.uint16), np.stack([low, high])


# ---------------------------------------------------------------------- writing


def write_frame(
    folder: Path, stem: str, frame: ChargedFrame, *, pack: bool = False, static_count: int = 0
) -> dict[str, str]:
    """Write one frame of a charge, whole or not at all; an older one of the name is replaced.

    Args:
        folder: of the charge.
        stem: name of the frame.
        pack: one compressed file instead of one for each array.
        static_count: the geometry of this many points at the end is not written (see `write_static`).

    Returns:
        SHA-256 of each file by its path relative to ``folder``.

    Raises:
        ValueError: arrays whose shapes or types do not belong together.
    """
    _check(frame)
    own = len(frame) - static_count
    arrays = {key: array[:own] if key in GEOMETRY else array for key, array in frame.arrays().items()}
    # Of one byte order and layout, so that equal frames are equal files.
    arrays = {key: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for key, array in arrays.items()}
    frames = folder / "frames"
    if pack:
        with atomic_path(frames / f"{stem}.npz") as file, open(file, "wb") as handle:
            np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]
        return {f"frames/{stem}.npz": file_sha256(frames / f"{stem}.npz")}
    frames.mkdir(parents=True, exist_ok=True)
    draft = frames / f".tmp-{uuid.uuid4().hex[:12]}-{stem}"
    hashes = {}
    try:
        draft.mkdir()
        for key, array in arrays.items():
            hashes[f"frames/{stem}/{key}.npy"] = _save(draft / f"{key}.npy", array)
        shutil.rmtree(frames / stem, ignore_errors=True)
        os.replace(draft, frames / stem)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return hashes


def write_static(folder: Path, frame: ChargedFrame, static_count: int) -> dict[str, str]:
    """Write the geometry of a frame's last ``static_count`` points, once for all frames; positions as f32.

    Returns: as `write_frame`.
    """
    _check(frame)
    own = len(frame) - static_count
    last = {"xyz": frame.positions()[own:], **{key: getattr(frame, key)[own:] for key in GEOMETRY[1:]}}
    hashes = {}
    for key, array in last.items():
        with atomic_path(folder / "static" / f"{key}.npy") as file:
            hashes[f"static/{key}.npy"] = _save(file, np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
    return hashes


def _save(file: Path, array: Array) -> str:
    with open(file, "wb") as handle:
        np.save(handle, array, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())
    return file_sha256(file)


def _check(frame: ChargedFrame) -> None:
    n, s, k = len(frame.xyz), len(frame.src_id), frame.sh.shape[1] if frame.sh.ndim == 3 else -1
    shapes = {
        "xyz": (n, 3), "radius": (n,), "alpha": (n,), "sh": (n, k, 3),
        "src_rgb": (s, n, 3), "src_logit": (s, n), "src_id": (s,), "branch": (n,),
    }  # fmt: skip
    for key, array in frame.arrays().items():
        if array.shape != shapes[key]:
            raise ValueError(f"{key}: expected {shapes[key]}, got {array.shape}")
        if array.dtype.kind not in "fu":
            raise ValueError(f"{key}: {array.dtype} is never stored")


# ---------------------------------------------------------------------- reading


class ChargedStore:
    """A charge opened for reading: ``store.frame(index)``. Opening reads ``manifest.json`` alone. Thread-safe.

    Args:
        folder: of the charge.
        frame_sample: frames to use: begin, end (exclusive, None for all) and step, or a list; ``0 30 5`` are six.
        first_frame: use the first of them only.

    Raises:
        DataError: the manifest cannot be used, or frames are asked for that are not there.
    """

    def __init__(
        self, folder: Path, *, frame_sample: Items[int | None] | None = None, first_frame: bool = False
    ) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        chosen = list(range(len(manifest.frames)))
        if frame_sample is not None:
            chosen = sampled(len(chosen), frame_sample, self.folder, "--frame-sample")
        self.manifest: Manifest = manifest.select(chosen[:1] if first_frame else chosen)
        """Of the chosen frames alone, which it numbers anew."""

    def __len__(self) -> int:
        return len(self.manifest.frames)

    def bytes(self, index: int) -> int:
        """Of a frame's arrays in memory, as `frame` gives them."""
        manifest, total = self.manifest, self.manifest.bytes(index)
        if manifest.static_count:  # joined, positions as f32
            sizes, own = manifest.array_bytes(index), manifest.counts[index] - manifest.static_count
            total += 12 * manifest.counts[index] - sizes["xyz"]
            total += sum(sizes[key] // own * manifest.static_count for key in GEOMETRY[1:])
        return total

    def frame(self, index: int) -> ChargedFrame:
        """The arrays of a frame as memory maps: only headers are read. (Of a packed charge all is read, and the
        geometry of a charge with background is joined, with positions as f32.)

        Raises:
            IndexError: no such frame.
            DataError: a file is missing, damaged, or not what the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        manifest = self.manifest
        files, wanted = manifest.files(index), {key: manifest.shape(key, index) for key in manifest.array_names()}
        if manifest.packed:
            arrays = _unpack(self.folder / files["xyz"], wanted, manifest.dtypes)
        else:
            arrays = {key: _open(self.folder / file, wanted[key], manifest.dtypes[key]) for key, file in files.items()}
        frame = ChargedFrame(**arrays, box=manifest.box(index))
        if manifest.static_count:
            joined = {key: np.concatenate([arrays[key], self.static[key]]) for key in GEOMETRY[1:]}
            frame = replace(frame, xyz=np.concatenate([frame.positions(), self.static["xyz"]]), box=None, **joined)
        return frame

    @cached_property
    def static(self) -> dict[str, Array]:
        """Geometry of the background, memory maps by name; empty without one. Raises DataError as `frame`."""
        manifest, n = self.manifest, self.manifest.static_count
        shapes = {"xyz": (n, 3), "radius": (n,), "alpha": (n,), "sh": (n, (manifest.sh_degree + 1) ** 2, 3)}
        kinds = {**manifest.dtypes, "xyz": "<f4"}
        return {
            key: _open(self.folder / file, shapes[key], kinds[key]) for key, file in manifest.static_files().items()
        }

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file of the chosen frames and all others, by path. Raises DataError as `read_hashes`."""
        return read_hashes(self.folder, self.manifest)

    def damaged(self) -> Iterator[tuple[str, str]]:
        """Read every file of the chosen frames and all others; the path of each, and "" or what is wrong with it.

        Raises:
            DataError: as `read_hashes`.
        """
        for path, expected in self.hashes.items():
            try:
                problem = "" if file_sha256(self.folder / path) == expected else "is not the file that was written"
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
            yield path, problem

    def verify(self, progress: bool = False) -> None:
        """Compare every file with its SHA-256.

        Args:
            progress: show a bar.

        Raises:
            DataError: naming the first damaged file and how many there are.
        """
        results: Any = self.damaged()
        if progress:
            from rich.progress import track

            results = track(results, "Reading", total=len(self.hashes))
        wrong = [(path, problem) for path, problem in results if problem]
        if wrong:
            path, problem = wrong[0]
            more = f" ({len(wrong) - 1} more files are damaged)" if len(wrong) > 1 else ""
            raise DataError(self.folder / path, "SHA-256", f"{problem}{more}.", REMEDY)


def _open(file: Path, shape: tuple[int, ...], kind: str) -> Array:
    """Map an array into memory.

    Raises:
        DataError: the file is missing, torn, or holds another array.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except _READING as error:
        raise _unreadable(file, error) from error
    if not isinstance(array, np.ndarray):
        raise DataError(file, "", "is not an array.", REMEDY)
    _compare(file, "header", array.shape, array.dtype, shape, kind)
    return array


def _compare(
    file: Path, place: str, shape: tuple[int, ...], dtype: np.dtype, wanted: tuple[int, ...], kind: str
) -> None:
    if shape != wanted or dtype != np.dtype(kind):
        problem = f"holds {dtype} {list(shape)}, where {FILE} says {np.dtype(kind)} {list(wanted)}."
        raise DataError(file, place, problem, REMEDY)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(file, "", f"cannot be read ({type(error).__name__}: {error}).", REMEDY)


def _unpack(file: Path, shapes: dict[str, tuple[int, ...]], kinds: dict[str, str]) -> dict[str, Array]:
    """Arrays of a packed frame; nothing is read before its header says what the manifest says.

    Raises:
        DataError: the file is missing, damaged, or holds other arrays.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {key: _member(archive, file, key, shape, kinds[key]) for key, shape in shapes.items()}
    except _READING as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(file, error) from error


def _member(archive: zipfile.ZipFile, file: Path, key: str, shape: tuple[int, ...], kind: str) -> Array:
    with archive.open(f"{key}.npy") as handle:
        found, fortran, dtype = _header(handle)
        _compare(file, key, found, dtype, shape, kind)
        if fortran and len(shape) > 1:
            raise DataError(file, key, "is stored by columns.", REMEDY)
        size = int(np.prod(shape)) * dtype.itemsize
        data = bytearray(handle.read(size))
        if len(data) != size or handle.read(1):
            raise DataError(file, key, f"does not hold {size} bytes of data.", REMEDY)
    return np.frombuffer(data, dtype).reshape(shape)


def _header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(handle)
    if version != (1, 0):
        raise ValueError(f"version {version} of numpy's format")
    return np.lib.format.read_array_header_1_0(handle)
