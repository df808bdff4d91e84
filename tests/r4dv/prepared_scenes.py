"""Small recordings with a moving subject for the tests of ``ns-r4dv process``: photos, masks, plates, clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clip_scenes import subject, write_any

from core_ns.images import write_image

SIZE = (240, 180)
NAMES = ("a_1", "b")


def empty_scene(size: tuple[int, int] = SIZE) -> np.ndarray:
    """The background of `clip_scenes.subject`, without the subject."""
    far, _ = subject(size, -40)
    return far


def make_photos(root: Path, frames: int = 4, names: tuple[str, ...] = NAMES, size: tuple[int, int] = SIZE) -> Path:
    """``images/CAM/000000.png`` and ``masks/CAM/000000.png``."""
    for view, name in enumerate(names):
        for frame in range(frames):
            photo, mask = subject(size, frame + view)
            write_image(root / "images" / name / f"{frame:06d}.png", photo)
            write_image(root / "masks" / name / f"{frame:06d}.png", mask)
    return root


def make_raw(folder: Path, frames: int = 4, names: tuple[str, ...] = NAMES, size: tuple[int, int] = SIZE) -> Path:
    """``CAM.mp4`` as a camera writes it."""
    for view, name in enumerate(names):
        pictures = [subject(size, frame + view)[0] for frame in range(frames)]
        write_any(folder / f"{name}.mp4", pictures, g="3", crf="10")
    return folder


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks, above 127 is inside."""
    return float(((a > 127) & (b > 127)).sum() / max(((a > 127) | (b > 127)).sum(), 1))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by relative path; half-written ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
