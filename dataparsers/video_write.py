"""Clips of a minimal data set: H.265 written so that any frame is found quickly and the same pictures give the same
bytes (spec r4dv 2.5); H.264, which every player and browser shows, for films to look at."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from core_ns.atomic import atomic_path

Array = np.ndarray
Rectangle = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

CRF = 25
"""Constant rate factor of the original's clips."""
KEY_EVERY = 12
"""Frames from one key frame to the next: a frame costs six to decode on average."""
SMALLEST = 64
"""Sides that may be encoded: x265 4.1 writes beyond its buffers where a picture is less wide than one of its blocks."""

# One thread in a fixed order of work; no build information in the stream.
_ONE_THREAD = "frame-threads=1:pools=none:no-wpp=1:info=0:log-level=none"
_BT601 = 6
_REORDERED = 3


def write_clip(
    file: Path,
    pictures: Iterable[UInt8[Array, "h w 3"]],
    size: tuple[int, int],
    *,
    crf: int = CRF,
    fps: float = 25.0,
    key_every: int = KEY_EVERY,
    full_colour: bool = False,
    codec: Literal["h265", "h264"] = "h265",
) -> int:
    """Encode pictures to an mp4, atomically, on the calling thread.

    Args:
        pictures: in order, sRGB; read one at a time.
        size: (width, height) of all of them, even numbers from 64 on.
        crf: quality, 0 (best) to 51.
        fps: pictures per second of playback.
        key_every: a key frame at each multiple of this.
        full_colour: store every pixel's colour, not one for 2x2 pixels: larger, and not for every player.
        codec: h265 as in a minimal data set, or h264 for any player.

    Returns:
        The number of pictures.

    Raises:
        ValueError: a size or picture that cannot be encoded; nothing is left.
    """
    import av
    from av.video.reformatter import Interpolation as Way

    width, height = size
    if min(size) < SMALLEST or width % 2 or height % 2:
        raise ValueError(f"clips have even sides from {SMALLEST} on, got {width}x{height}")
    pictures, count = iter(pictures), 0
    ahead = list(islice(pictures, _REORDERED))
    with atomic_path(file) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # The encoder's decoding times are undefined when it ends before its first reordered picture.
        reorder = "" if len(ahead) == _REORDERED else ":bframes=0"
        own = f"keyint={key_every}:min-keyint={key_every}:scenecut=0{reorder}"
        hevc = codec == "h265"
        name, own = ("x265", f"{_ONE_THREAD}:{own}:open-gop=0") if hevc else ("x264", own)
        stream: Any = container.add_stream(
            f"lib{name}", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), f"{name}-params": own}
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if full_colour else "yuv420p"
        stream.thread_count = 1
        context = stream.codec_context
        context.colorspace, context.color_range = _BT601, 1
        if hevc:
            stream.codec_tag = "hvc1"  # what Apple's players ask for
        for picture in chain(ahead, pictures):
            if picture.dtype != np.uint8 or picture.shape != (height, width, 3):
                raise ValueError(f"expected uint8 {(height, width, 3)}, got {picture.dtype} {picture.shape}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format=stream.pix_fmt,
                dst_colorspace="ITU601",
                dst_color_range="MPEG",
                interpolation=Way.AREA | Way.FULL_CHR_H_INP | Way.ACCURATE_RND | Way.BITEXACT,
            )
            frame.pts = count
            container.mux(stream.encode(frame))
            count += 1
        if not count:
            raise ValueError("there are no pictures to encode")
        container.mux(stream.encode())
    return count


def even_canvas(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(width, height) near ``ratio`` times a photo's, even: colours are stored for 2x2 pixels."""
    width, height = (max(SMALLEST, 2 * round(side * ratio / 2)) for side in size)
    return width, height


def crop_of(shown: Bool[Array, "h w"]) -> Rectangle:
    """The smallest rectangle of even place and size, from 64 on, that holds all that is shown (of an even canvas)."""
    (x, width), (y, height) = (_even_span(np.asarray(shown.any(axis=axis))) for axis in (0, 1))
    return x, y, width, height


def _even_span(used: Bool[Array, "n"]) -> tuple[int, int]:
    places = np.flatnonzero(used)
    first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    first -= first % 2
    length = max(last - first + (last - first) % 2, SMALLEST)
    return max(0, min(first, len(used) - length)), length
