"""Films and sheets of a transfer: the clip whose camera moved, beside the other scene that moves alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from dataparsers.video_write import write_clip

Array = np.ndarray

GAP = 8
"""Pixels between pictures."""
SMALLEST = 256
"""Smaller pictures are enlarged by a whole factor, without smoothing, until they have at least this height."""
_PAPER, _INK = 255, 40
_LABEL_HEIGHT = 18
QUALITY = 16
"""Constant rate factor of films."""


def enlarged(frames: UInt8[Array, "F h w 3"], smallest: int = SMALLEST) -> UInt8[Array, "F H W 3"]:
    """Every pixel repeated, so that the height is at least ``smallest``; large pictures stay as they are."""
    factor = max(1, -(-smallest // frames.shape[1]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(panels: Sequence[UInt8[Array, "F h w 3"]], gap: int = GAP) -> UInt8[Array, "F h W 3"]:
    """Clips of one length and height next to each other, white between; even sides, as films want them."""
    count, height = panels[0].shape[:2]
    between = np.full((count, height, gap, 3), _PAPER, np.uint8)
    parts = [part for panel in panels for part in (between, panel)][1:]
    row = np.concatenate(parts, axis=2)
    return np.pad(row, ((0, 0), (0, row.shape[1] % 2), (0, row.shape[2] % 2), (0, 0)), constant_values=_PAPER)


def write_film(file: Path, panels: Sequence[UInt8[Array, "F h w 3"]], fps: float) -> tuple[int, int]:
    """Write clips side by side as an H.264 film, atomically.

    Returns:
        (width, height) of the film.

    Raises:
        ValueError: clips of several lengths or heights.
    """
    frames = side_by_side([enlarged(panel) for panel in panels])
    size = (frames.shape[2], frames.shape[1])
    write_clip(file, frames, size, crf=QUALITY, fps=fps, codec="h264")
    return size


def evenly(length: int, count: int) -> list[int]:
    """``count`` indices from the first to the last, evenly spread; all of them where there are no more."""
    count = min(length, count)
    return [round(i * (length - 1) / max(count - 1, 1)) for i in range(count)]


def sheet(rows: Sequence[tuple[str, UInt8[Array, "n h w 3"]]], gap: int = GAP) -> UInt8[Array, "H W 3"]:
    """Rows of pictures, each with its label above; rows may differ in length, the pictures are of one size."""
    rows = [(label, enlarged(pictures)) for label, pictures in rows]
    height, width = rows[0][1].shape[1:3]
    columns = max(len(pictures) for _, pictures in rows)
    step = height + _LABEL_HEIGHT + gap
    page = np.full((len(rows) * step + gap, columns * (width + gap) + gap, 3), _PAPER, np.uint8)
    canvas = Image.fromarray(page)
    pen = ImageDraw.Draw(canvas)
    for row, (label, pictures) in enumerate(rows):
        top = gap + row * step
        pen.text((gap, top + 2), label, fill=(_INK,) * 3)
        for column, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (gap + column * (width + gap), top + _LABEL_HEIGHT))
    return np.array(canvas)
