"""COLMAP as a pose oracle: structure from motion of each clip, on the CPU, in a temporary folder (spec xfactor 7)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from core_ns.atomic import write_json
from core_ns.errors import DataError, MissingExtra
from core_ns.images import write_image
from xfactor_ns.colmap_child import MISSING

INSTALL = 'pip install "nvs-zoo[colmap]"'
SHORT_SIDE = 512
"""Smaller frames are enlarged, by at most four times: SIFT finds too little in small pictures."""


def check_colmap() -> None:
    """Refuse early where pycolmap is not installed; it is not imported.

    Raises:
        MissingExtra: it is not there.
    """
    if importlib.util.find_spec("pycolmap") is None:
        raise MissingExtra(f"The oracle colmap needs 'pycolmap'. Install: {INSTALL}")


@dataclass(frozen=True)
class ColmapPoses:
    """Incremental structure from motion with one camera for all frames of a clip.

    Attributes:
        camera_model: COLMAP's name; the focal length is estimated, starting from a field of view of about 45 degrees.
        threads: of COLMAP; results repeat exactly only with one.
        seed: of its random samples.
    """

    camera_model: str = "SIMPLE_RADIAL"
    threads: int = 1
    seed: int = 0

    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """World-to-camera poses; NaN for frames that COLMAP could not place (all of them where it finds no start).

        Raises:
            MissingExtra: pycolmap is not installed.
            DataError: COLMAP broke off.
        """
        check_colmap()
        return np.stack([self._clip(clip) for clip in images])

    def _clip(self, images: Float[Tensor, "V 3 H W"]) -> Float[np.ndarray, "V 4 4"]:
        with tempfile.TemporaryDirectory(prefix="ns-xfactor-colmap-") as name:
            folder = Path(name)
            names = _write_frames(images, folder / "frames")
            options = {"camera_model": self.camera_model, "threads": self.threads, "seed": self.seed}
            write_json(folder / "options.json", options)
            command = [sys.executable, "-m", "xfactor_ns.colmap_child", str(folder)]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace")
            said = (result.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
            if result.returncode == MISSING:
                raise MissingExtra(f"The oracle colmap needs 'pycolmap' ({said}). Install: {INSTALL}")
            if result.returncode:
                problem = f"ended with status {result.returncode} ({said})."
                raise DataError("COLMAP", f"{len(names)} frames", problem, "Use other frames, or another oracle.")
            found = json.loads((folder / "poses.json").read_text())
        poses = np.full((len(names), 4, 4), np.nan)
        for name, pose in found.items():
            poses[names.index(name)] = pose
        return poses


def _write_frames(images: Float[Tensor, "V 3 H W"], folder: Path) -> list[str]:
    """Frames as PNG files whose names sort by number."""
    import cv2

    height, width = images.shape[-2:]
    factor = min(4, max(1, -(-SHORT_SIDE // min(height, width))))
    names = [f"{index:06d}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()
        if factor > 1:
            pixels = cv2.resize(pixels, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
        write_image(folder / name, pixels)
    return names
