"""Clips for tests: pictures that say their number, in any codec, and a subject on black that moves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

BITS = 8


def numbered(number: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A picture whose upper half spells a number below 256 in white and black columns; grey ramps below."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 235
    picture[height // 2 :] = np.linspace(40, 210, width).astype(np.uint8)[None, :, None]
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number that `numbered` wrote."""
    height, width = picture.shape[:2]
    columns = picture[height // 8 : height // 2 - height // 8].mean(axis=(0, 2))
    middles = [columns[(2 * bit + 1) * width // (2 * BITS)] for bit in range(BITS)]
    return sum(1 << bit for bit, light in enumerate(middles) if light > 127)


def write_any(
    file: Path, pictures: Iterable[np.ndarray], codec: str = "libx264", pix_fmt: str = "yuv420p", **options: str
) -> Path:
    """Encode with one of the encoders; options are its own, with '-' written as '_'; an mp4's header goes first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {name.replace("_", "-"): value for name, value in options.items()}
    first = {"movflags": "faststart"} if file.suffix in (".mp4", ".mov") else {}
    with av.open(str(file), "w", container_options=first) as container:
        stream = container.add_stream(codec, rate=25, options=named)
        stream.thread_count, stream.pix_fmt = 1, pix_fmt
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def subject(size: tuple[int, int], frame: int) -> tuple[np.ndarray, np.ndarray]:
    """(photo, mask): a textured ellipse with an arm that wanders over a bright, patterned background."""
    width, height = size
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    middle = 0.42 + 0.03 * frame
    body = ((u - middle) / 0.16) ** 2 + ((v - 0.55) / 0.3) ** 2 < 1
    arm = (np.abs(v - 0.5 - 0.05 * frame) < 0.04) & (np.abs(u - middle) < 0.25)
    inside = body | arm
    ground = np.stack([120 + 60 * np.sin(9 * u), 150 + 50 * np.cos(7 * v), 110 + 60 * np.sin(5 * (u + v))], axis=-1)
    coat = np.stack([190 + 50 * np.sin(20 * v), 90 + 40 * np.cos(18 * u), 60 + 30 * np.sin(25 * (u - v))], axis=-1)
    photo = np.where(inside[..., None], coat, ground)
    return photo.round().astype(np.uint8), np.where(inside, 255, 0).astype(np.uint8)
