"""Two repairs that no package metadata can express; run after every install.

1. ``opencv-python`` and ``opencv-python-headless`` write the same ``cv2`` folder. A nerfstudio dependency drags in the
   first, which needs the system's libGL; only the headless files may stay.
2. ``ns-render`` looks for an ``ffmpeg`` on PATH. Where the system has none, imageio-ffmpeg's binary is linked into the
   environment.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

HEADLESS = "opencv-python-headless==4.10.0.84"


def keep_headless_opencv() -> None:
    """Reinstall the headless files over the others and remove the other package's libraries."""
    try:
        importlib.metadata.version("opencv-python")
    except importlib.metadata.PackageNotFoundError:
        return
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "opencv-python", "opencv-python-headless"], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", HEADLESS], check=True)


def link_ffmpeg() -> None:
    """Put an ``ffmpeg`` beside the environment's python when the system has none."""
    import imageio_ffmpeg

    link = Path(sys.executable).parent / "ffmpeg"
    if link.exists() or shutil.which("ffmpeg"):
        return
    link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())


if __name__ == "__main__":
    keep_headless_opencv()
    link_ffmpeg()
