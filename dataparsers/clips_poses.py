"""Poses of a clip's frames where the data have them: for the gallery, the probe and pose scores, never for training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv
from dataparsers.clips_sequence import Sequence
from dataparsers.transforms_json import read_transforms_json

Array = np.ndarray


class ClipPoses(NamedTuple):
    """Cameras of all frames of a clip, as its ``transforms.json`` says. World and scale are the file's own."""

    c2w: Float[Array, "f 4 4"]
    """OpenGL camera to world; NaN where the file has no pose of a frame."""
    focal: float
    """Focal length in units of the pictures' shorter side (median over the frames)."""

    @property
    def known(self) -> Bool[Array, "f"]:
        """Which frames have one."""
        return np.asarray(np.isfinite(self.c2w).all(axis=(1, 2)))


def clip_poses(sequence: Sequence) -> ClipPoses | None:
    """The poses of a clip; None where it has no file of them, or none of its frames is in the file.

    Frames are found by file name, so photos that were shrunk after their poses were found (DL3DV's ``images_8``) keep
    their poses.

    Raises:
        DataError: the file cannot be used; see `read_transforms_json`.
    """
    if sequence.transforms is None or sequence.is_video:
        return None
    try:
        frames = read_transforms_json(sequence.transforms, sequence.source)
    except DataError as error:
        remedy = f"{error.remedy} Clips need no poses: renaming the file does as well."
        raise DataError(error.file, error.place, error.problem, remedy) from error
    entries = {frame.image.name: frame.model for frame in frames}
    c2w = np.full((sequence.frames, 4, 4), np.nan)
    focal = []
    for number, file in enumerate(sequence.files()):
        model = entries.get(file.name)
        if model is None:
            continue
        assert model.width, "the reader takes it from the picture"
        assert model.height
        c2w[number] = c2w_opengl_from_w2c_opencv(model.w2c)
        focal.append(float(model.K[0, 0]) / min(model.width, model.height))
    return ClipPoses(c2w, float(np.median(focal))) if focal else None
