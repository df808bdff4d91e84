"""A recording for the tests of camera paths, the command as a function, and what cameras look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from easymocap_scene import make_sequence, ring

from core_ns.console import run_command
from dataparsers.easymocap_options import SequenceOptions
from r4dv_ns import paths
from r4dv_ns.path_command import CameraPathCommand

TARGET = np.array([0.2, -0.1, 1.0])
"""What `easymocap_scene.ring` looks at."""
OPTIONS = SequenceOptions(eval_views=("02",), masks_dir="none")
DATA = ("--eval-views", "02", "--masks-dir", "none")
"""`OPTIONS` on the command line."""


def record(folder: Path) -> Path:
    """Eight cameras round the subject, of which 02 is held out; four frames."""
    return make_sequence(folder, ring(8), frames=4, masks=False)


def run(*arguments) -> int:
    """The exit status of ``ns-r4dv path``."""
    words = [str(argument) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        run_command(CameraPathCommand, "ns-r4dv path", "Paths.", words)
    return int(end.value.code or 0)


def gaze(c2w: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angle in radians between where cameras look and where the target is."""
    wanted = paths.unit(target - c2w[:, :3, 3])
    cross = np.linalg.norm(np.cross(-c2w[:, :3, 2], wanted), axis=1)
    return np.arctan2(cross, (-c2w[:, :3, 2] * wanted).sum(axis=1))
