"""Frames of a clip by number: few decoders stay open, any thread may ask, every answer depends on the number alone.

A clip is decoded from the last key frame before the frame wanted, or from where a decoder stands if that is nearer.
Presentation times, found once by reading the packets without decoding them, tell which picture is which frame: the
first pictures that a decoder gives after a jump may belong to the key frame before (open groups of pictures).
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from core_ns.errors import DataError
from core_ns.images import MAX_PIXELS
from dataparsers.video_names import ClipName, parse_clip_name

Array = np.ndarray

IDLE_BYTES = 512 << 20
"""Memory that decoders nobody uses may keep, estimated from their pictures' sizes."""
IDLE_DECODERS = 128
"""Open files that decoders nobody uses may keep, until `hold_decoders` says otherwise."""
INDEX_STAMPS = 4_000_000
"""Frames, 8 bytes each, whose times are remembered; of the clips asked for longest ago they are forgotten."""
LONG_GROUP = 40
"""Frames from one key frame to the next above which reading frames in any order is slow."""

_PICTURES_HELD = 12
_DEMUXERS = {
    ".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi",
}  # fmt: skip
_REMEDY = "Copy the clip again, or encode it anew (ns-r4dv process encode, or any tool that writes H.264 or H.265)."
_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Clip:
    """A clip whose header was read. Small and picklable: decoders live elsewhere."""

    file: Path
    name: ClipName
    """Camera, number of frames, place on the canvas; of a plain clip whole photos of its own size."""
    size: tuple[int, int]
    """(width, height) of the stored pictures, turned upright."""
    fps: float | None = None
    """Average frames per second, where the header tells."""

    def read(self, frame: int) -> UInt8[Array, "h w 3"]:
        """A frame on its canvas, sRGB as decoded, black around the crop. Thread-safe.

        Raises:
            DataError: the file is gone or does not decode, or there is no such frame.
        """
        return self._on_canvas(self.read_crop(frame))

    def read_brightness(self, frame: int) -> UInt8[Array, "h w"]:
        """The luma (BT.601, 0 to 255) of a frame on its canvas, stored for every pixel: colours, stored for 2x2, reach
        a pixel or two beyond the edge of a subject on black. Raises as `read`."""
        return self._on_canvas(self._picture(frame, grey=True))

    def read_crop(self, frame: int) -> UInt8[Array, "h w 3"]:
        """A frame as stored, turned upright. Raises as `read`."""
        return self._picture(frame)

    def _picture(self, frame: int, grey: bool = False) -> UInt8[Array, "h w *c"]:
        picture = _pool.read(self.file, frame, grey)
        if picture.shape[1::-1] != self.size:
            problem = f"is {picture.shape[1]}x{picture.shape[0]} pixels, the first one {self.size[0]}x{self.size[1]}."
            raise DataError(self.file, f"frame {frame}", problem, _REMEDY)
        return picture

    def _on_canvas(self, picture: UInt8[Array, "h w *c"]) -> UInt8[Array, "h2 w2 *c"]:
        (width, height), (x, y) = self.name.canvas, (self.name.x, self.name.y)
        if (x, y) == (0, 0) and picture.shape[:2] == (height, width):
            return picture
        canvas = np.zeros((height, width, *picture.shape[2:]), np.uint8)
        part = canvas[y : y + picture.shape[0], x : x + picture.shape[1]]
        part[:] = picture[: part.shape[0], : part.shape[1]]  # encoders pad odd sides by one
        return canvas

    @property
    def longest_group(self) -> int:
        """Most frames from one key frame to the next. Reads all packets at the first use."""
        index = _pool.index(self.file)
        starts = [number for number, _ in index.keys] or [0]
        return max(np.diff([*starts, index.count]).tolist())


def open_clip(file: Path, plain: bool = False) -> Clip:
    """Read a clip's header and decode its first picture.

    Args:
        plain: the name says nothing about what the clip shows, and may be any.

    Raises:
        DataError: no video, no decodable one, or one that is not what its name says.
    """
    name = None if plain else parse_clip_name(file)
    with _container(file) as (container, stream):
        try:
            first = next(container.decode(stream), None)
        except _errors() as error:
            raise _undecodable(file, "frame 0", error) from error
        if first is None:
            raise DataError(file, "video", "holds no picture.", _REMEDY)
        width, height = _converted(first, grey=True).shape[1::-1]
        fps = float(stream.average_rate) if stream.average_rate else None
        listed = stream.index_entries if _DEMUXERS[_suffix(file)] == "mov" else []
        count = sum(not entry.is_discard for entry in listed)
    count = count or _pool.index(file).count
    if name is None:
        return Clip(file, ClipName(file.stem, count, 0, 0, width, height, width, height), (width, height), fps)
    if name.frames != count:
        raise DataError(file, "name", f"says {name.frames} frames, the file holds {count}.", _REMEDY)
    if width > name.width - name.x + 1 or height > name.height - name.y + 1:
        problem = f"puts pictures of {width}x{height} at ({name.x}, {name.y}) of {name.width}x{name.height}."
        raise DataError(file, "name", problem, "Name the clip as it was named when it was encoded.")
    return Clip(file, name, (width, height), fps)


def decoder_bytes(width: int, height: int) -> int:
    """About what an open decoder keeps: its reference pictures, 4:2:0."""
    return int(_PICTURES_HELD * 1.5 * width * height)


def close_decoders() -> None:
    """Close all decoders nobody uses, and forget the packets' times."""
    _pool.close()


def hold_decoders(count: int) -> None:
    """Keep at most so many decoders that nobody uses: few where clips are many and read at random."""
    _pool.most = count


class _Index(NamedTuple):
    """Where a clip's frames are. ``stamps``: presentation time of each, ascending, None where packets have none;
    ``keys``: (frame number, decoding time) of the key frames."""

    count: int
    stamps: array[int] | None
    keys: list[tuple[int, int]]


def _errors() -> tuple[type[BaseException], ...]:
    import av

    return av.FFmpegError, ValueError, EOFError


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def _undecodable(file: Path, place: str, error: BaseException | None) -> DataError:
    detail = f" ({type(error).__name__})" if error is not None else ""
    return DataError(file, place, f"does not decode{detail}; the file may be damaged or cut off.", _REMEDY)


def _open(file: Path) -> tuple[Any, Any]:
    """Container and video stream, decoded by one thread. The suffix names the format and only files are read: a
    playlist that bears a clip's name must not fetch what it lists."""
    import av

    if not file.is_file():
        raise DataError(file, "path", "is not a file.", "Check the folder of clips.")
    demuxer = _DEMUXERS.get(_suffix(file))
    if demuxer is None:
        raise DataError(file, "suffix", "is no clip's.", f"Clips are {', '.join(_DEMUXERS)}.")
    try:
        container = av.open(str(file), format=demuxer, container_options={"protocol_whitelist": "file"})
    except _errors() as error:
        problem = f"cannot be read as {demuxer} video ({type(error).__name__})."
        raise DataError(file, "header", problem, _REMEDY) from error
    if not container.streams.video or not container.streams.video[0].codec_context:
        container.close()
        raise DataError(file, "header", "holds no video that can be decoded.", _REMEDY)
    stream = container.streams.video[0]
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        container.close()
        problem = f"declares pictures of {stream.width}x{stream.height}; the limit is {MAX_PIXELS // 10**6} MP."
        raise DataError(file, "header", problem, "Remove the file, or encode smaller pictures.")
    stream.thread_count = 1
    stream.thread_type = "NONE"
    return container, stream


@contextmanager
def _container(file: Path) -> Iterator[tuple[Any, Any]]:
    container, stream = _open(file)
    try:
        yield container, stream
    finally:
        container.close()


def _read_index(file: Path) -> _Index:
    """Read all packets, decoding none."""
    stamps: list[int | None] = []
    found: list[tuple[int | None, int | None]] = []
    with _container(file) as (container, stream):
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_keyframe:
                    found.append((packet.pts, packet.dts))
                if not packet.is_discard:
                    stamps.append(packet.pts)
        except _errors() as error:
            raise _undecodable(file, f"packet {len(stamps)}", error) from error
    if not stamps:
        raise DataError(file, "video", "holds no picture.", _REMEDY)
    known = [stamp for stamp in stamps if stamp is not None]
    if _DEMUXERS[_suffix(file)] == "avi" and len(found) < len(stamps):
        known = []  # AVI has decoding times only
    if len(known) < len(stamps) or len(set(known)) < len(known):
        return _Index(len(stamps), None, [])
    known.sort()
    keys = [(bisect_left(known, pts), pts if dts is None else dts) for pts, dts in found if pts is not None]
    return _Index(len(known), array("q", known), sorted(keys))


def _converted(frame: Any, grey: bool = False) -> UInt8[Array, "h w *c"]:
    """RGB, or luma alone, turned as the file's display matrix says (phones); other tools that extract pictures turn
    them as well."""
    from av.video.reformatter import Interpolation as Way

    # Most converters repeat every colour over its 2x2 pixels, which costs saturated edges 9 dB. Bit-exact: not by the
    # processor's own rounding.
    way = Way.BICUBIC | Way.FULL_CHR_H_INT | Way.FULL_CHR_H_INP | Way.ACCURATE_RND | Way.BITEXACT
    picture = frame.to_ndarray(format="gray" if grey else "rgb24", interpolation=way)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


class _Decoder:
    """One open clip and the frame it gave last."""

    def __init__(self, file: Path, index: _Index) -> None:
        self.file, self.index, self.at = file, index, -1
        self._last: Any = None
        self._container, self._stream = _open(file)
        self._pictures: Iterator[Any] = self._container.decode(self._stream)
        self.bytes = decoder_bytes(self._stream.width, self._stream.height)

    def close(self) -> None:
        self._container.close()

    def cost(self, number: int) -> int:
        """Pictures to decode until a frame comes."""
        start = self._key(number)[0]
        return number - (self.at if start <= self.at <= number else start - 1)

    def frame(self, number: int) -> Any:
        """The decoded picture, for `_converted`; the decoder is of no use after an error.

        Raises:
            DataError: it does not decode.
        """
        if number == self.at:
            return self._last
        try:
            frame = self._by_count(number) if self.index.stamps is None else self._by_stamp(number, self.index.stamps)
        except _errors() as error:
            raise _undecodable(self.file, f"frame {number}", error) from error
        if frame is None or frame.is_corrupt:
            raise _undecodable(self.file, f"frame {number}", None)
        self.at, self._last = number, frame
        return frame

    def _key(self, number: int) -> tuple[int, int]:
        """Number and time of the last key frame up to a frame; the clip's start where there is none."""
        row = bisect_right(self.index.keys, number, key=lambda key: key[0])
        return self.index.keys[row - 1] if row else (0, 0)

    def _by_stamp(self, number: int, stamps: array[int]) -> Any:
        start, time = self._key(number)
        if start <= self.at < number and (frame := self._forward(stamps[number])) is not None:
            return frame
        for moment in (time, None):
            if moment is None:
                self._reopen()  # a container whose jumps land too late
            else:
                self._container.seek(moment, stream=self._stream, backward=True)
                self._pictures = self._container.decode(self._stream)
            if (frame := self._forward(stamps[number])) is not None:
                return frame
        return None

    def _forward(self, stamp: int) -> Any:
        for frame in self._pictures:
            if frame.pts is None or frame.pts >= stamp:
                return frame if frame.pts == stamp else None
        return None

    def _by_count(self, number: int) -> Any:
        if number <= self.at:
            self._reopen()
        for _ in range(number - self.at - 1):
            next(self._pictures, None)
        return next(self._pictures, None)

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = _open(self.file)
        self._pictures, self.at = self._container.decode(self._stream), -1


class _Pool:
    """Decoders by clip, each lent to one thread at a time; those idle longest are closed beyond a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.most, self._lock = limit, IDLE_DECODERS, threading.Lock()
        self._idle: OrderedDict[int, tuple[_Key, _Decoder]] = OrderedDict()
        self._indices: OrderedDict[_Key, _Index] = OrderedDict()
        self._stamps = 0  # of all indices

    def read(self, file: Path, number: int, grey: bool = False) -> UInt8[Array, "h w *c"]:
        """A stored picture, or its luma; see `Clip.read_crop`."""
        key = _file_key(file)
        index = self._index(file, key)
        if not 0 <= number < index.count:
            raise DataError(file, f"frame {number}", f"is not there; the clip holds {index.count}.", _REMEDY)
        decoder = self._take(key, number) or _Decoder(file, index)
        try:
            picture = _converted(decoder.frame(number), grey)
        except BaseException:
            decoder.close()
            raise
        for closed in self._give_back(key, decoder):
            closed.close()
        return picture

    def index(self, file: Path) -> _Index:
        """Where the frames of a clip are; read once."""
        return self._index(file, _file_key(file))

    def _index(self, file: Path, key: _Key) -> _Index:
        with self._lock:
            if key in self._indices:
                self._indices.move_to_end(key)
                return self._indices[key]
        index = _read_index(file)  # two threads may read the same; both find the same
        with self._lock:
            if key not in self._indices:
                self._indices[key] = index
                self._stamps += index.count
            while len(self._indices) > 1 and self._stamps > INDEX_STAMPS:
                self._stamps -= self._indices.popitem(last=False)[1].count
        return index

    def _take(self, key: _Key, number: int) -> _Decoder | None:
        """The idle decoder of a clip that is nearest before a frame, or at it."""
        with self._lock:
            own = [(decoder.cost(number), token) for token, (owner, decoder) in self._idle.items() if owner == key]
            return self._idle.pop(min(own)[1])[1] if own else None

    def _give_back(self, key: _Key, decoder: _Decoder) -> list[_Decoder]:
        """Keep it; returns those to be closed."""
        with self._lock:
            self._idle[id(decoder)] = (key, decoder)
            closed, held = [], sum(each.bytes for _, each in self._idle.values())
            while self._idle and (len(self._idle) > self.most or held > self.limit):
                closed.append(self._idle.popitem(last=False)[1][1])
                held -= closed[-1].bytes
            return closed

    def close(self) -> None:
        with self._lock:
            decoders = [decoder for _, decoder in self._idle.values()]
            self._idle.clear()
            self._indices.clear()
            self._stamps = 0
        for decoder in decoders:
            with suppress(Exception):
                decoder.close()


def _file_key(file: Path) -> _Key:
    """A clip and the version of it: a changed file is another clip."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(file, "path", "is not a file.", "Check the folder of clips.") from error
    return str(file), status.st_size, status.st_mtime_ns


_pool = _Pool(IDLE_BYTES)
