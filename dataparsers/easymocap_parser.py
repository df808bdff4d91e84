"""nerfstudio dataparser ``easymocap-data``: synchronised recordings in EasyMocap's layout (spec r4dv 2, 8.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras, transform_points
from dataparsers.easymocap_attention import box_corners, box_of_attention
from dataparsers.easymocap_options import SequenceOptions
from dataparsers.easymocap_sequence import Sequence, open_sequence

META_FILE = Path("r4dv") / "meta.json"
"""What the visual hull stage leaves in the sequence folder; its ``bounds`` are read here."""

_SKEW_LIMIT_PIXELS = 0.25


@dataclass
class EasyMocapDataParserConfig(SequenceOptions, DataParserConfig):
    """A recording in EasyMocap's layout: images/CAMERA/FRAME.jpg, masks/CAMERA/FRAME.png, intri.yml, extri.yml."""

    _target: Type = field(default_factory=lambda: EasyMocapDataParser)


class EasyMocapDataParser(DataParser):
    """Sequence folder to nerfstudio cameras with times.

    Cameras are ordered frame by frame. ``cameras.metadata`` holds ``view_idx`` and ``frame_idx`` [M, 1] (int64, into
    the sequence's chosen views and frames); ``times`` is [M, 1]. ``outputs.metadata["sequence"]`` is the
    `dataparsers.easymocap_sequence.Sequence`, always in the files' world; only cameras and scene box are moved by
    ``dataparser_transform`` (identity unless ``orientation`` is up).
    """

    config: EasyMocapDataParserConfig
    includes_time: bool = True

    def __init__(self, config: EasyMocapDataParserConfig) -> None:
        super().__init__(config=config)
        self._sequence: Sequence | None = None

    @property
    def sequence(self) -> Sequence:
        """The recording, opened at the first use. Raises DataError as `open_sequence`."""
        if self._sequence is None:
            self._sequence = open_sequence(self.config.data, self.config)
            self._report(self._sequence)
        return self._sequence

    def _report(self, sequence: Sequence) -> None:
        """Say what was chosen, and what nerfstudio's cameras cannot hold."""
        views, held_out = len(sequence.views), [sequence.views[view].name for view in sequence.eval_views]
        masks = f"masks of {sequence.masks_dir}/" if sequence.has_masks else "no masks"
        CONSOLE.print(
            f"{sequence.root}: {len(sequence.frames)} frames of {views} cameras, {masks}; "
            f"held out: {', '.join(held_out) or 'none'}"
        )
        skewed = {
            view.name: max(lens.target.skew_pixels for lens in view.lenses)
            for view in sequence.views
            if any(lens.target.skew_pixels > _SKEW_LIMIT_PIXELS for lens in view.lenses)
        }
        if skewed:
            worst = max(skewed, key=lambda name: skewed[name])
            CONSOLE.print(
                f"[yellow]{len(skewed)} cameras have skew, which nerfstudio's cameras cannot hold: up to "
                f"{skewed[worst]:.2f} px off at the border of {worst}. --undistort same removes it."
            )
        if not held_out:
            CONSOLE.print("[yellow]No view is held out: evaluation shows training views.")

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        """Outputs of "train" (training views at all frames), "val" or "test" (held-out views at ``eval_frames``).

        Headers only; no pixels, but for a few masks that are looked at.

        Raises:
            DataError: the sequence or an option cannot be used; see `open_sequence`.
        """
        sequence = self.sequence
        on_train = split != "train" and not sequence.eval_views
        if split == "train":
            pairs = [(frame, view) for frame in range(len(sequence.frames)) for view in sequence.train_views]
        else:
            chosen = sequence.eval_views or sequence.train_views
            pairs = [(frame, view) for frame in sequence.eval_frames for view in chosen]
        box, source = scene_bounds(sequence)
        moved = transform_points(box_corners(box), sequence.transform)
        views = sequence.train_views if split == "train" or on_train else sequence.eval_views
        masks = [sequence.mask_path(view, frame) for frame, view in pairs]
        return DataparserOutputs(
            image_filenames=[sequence.image_path(view, frame) for frame, view in pairs],
            cameras=sequence_cameras(sequence, pairs),
            mask_filenames=[mask for mask in masks if mask is not None] if sequence.has_masks else None,
            scene_box=SceneBox(aabb=_tensor(np.stack([moved.min(axis=0), moved.max(axis=0)]))),
            dataparser_transform=_tensor(sequence.transform[:3]),
            dataparser_scale=1.0,
            metadata={
                "sequence": sequence,
                "eval_on_train": on_train,
                "split_names": [sequence.views[view].name for view in views],
                "bounds": box.tolist(),
                "bounds_source": source,
                "dataset_preset": self.config.dataset_preset,
            },
        )


def _tensor(values: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def sequence_cameras(sequence: Sequence, pairs: Iterable[tuple[int, int]]) -> Cameras:
    """nerfstudio cameras of (frame, view) pairs, in nerfstudio's world (``sequence.transform`` applied).

    Pinhole; only with ``undistort none`` do they carry the lens of the files.
    """
    pairs = list(pairs)
    w2c = np.stack([sequence.views[view].w2c(frame) for frame, view in pairs])
    c2w = transform_cameras(c2w_opengl_from_w2c_opencv(w2c), sequence.transform[:3])
    matrices = np.stack([sequence.views[view].intrinsics(frame) for frame, view in pairs])
    sizes = np.array([(sequence.views[view].width, sequence.views[view].height) for _, view in pairs])
    kinds = [CameraType.PERSPECTIVE.value] * len(pairs)
    lenses: np.ndarray | None = None
    if sequence.options.undistort == "none":
        lenses = np.zeros((len(pairs), 6))
        for row, (frame, view) in enumerate(pairs):
            model = sequence.views[view].model(frame)
            if model.fisheye is not None:
                kinds[row], lenses[row, :4] = CameraType.FISHEYE.value, model.fisheye
            else:
                k1, k2, p1, p2, k3 = model.D
                lenses[row] = (k1, k2, k3, 0.0, p1, p2)
    return Cameras(
        camera_to_worlds=_tensor(c2w[:, :3]),
        fx=_tensor(matrices[:, 0, 0:1]),
        fy=_tensor(matrices[:, 1, 1:2]),
        cx=_tensor(matrices[:, 0, 2:3]),
        cy=_tensor(matrices[:, 1, 2:3]),
        width=_tensor(sizes[:, :1], torch.int64),
        height=_tensor(sizes[:, 1:], torch.int64),
        distortion_params=_tensor(lenses) if lenses is not None and lenses.any() else None,
        camera_type=torch.tensor(kinds)[:, None],
        times=torch.tensor([[sequence.times[frame]] for frame, _ in pairs], dtype=torch.float32),
        metadata={
            "view_idx": torch.tensor([[view] for _, view in pairs]),
            "frame_idx": torch.tensor([[frame] for frame, _ in pairs]),
        },
    )


def scene_bounds(sequence: Sequence) -> tuple[Float[np.ndarray, "2 3"], Literal["option", "hulls", "cameras"]]:
    """What is reconstructed, files' world: as given, else the hulls' box in r4dv/meta.json, else `box_of_attention`.

    Returns:
        The box and where it comes from.

    Raises:
        DataError: meta.json is damaged, or the cameras look at no common point.
    """
    if sequence.bounds is not None:
        return np.asarray(sequence.bounds, dtype=np.float64), "option"
    file = sequence.root / META_FILE
    if not file.is_file():
        return box_of_attention(sequence), "cameras"
    try:
        box = np.asarray(json.loads(file.read_text(encoding="utf-8"))["bounds"], dtype=np.float64)
        if box.shape != (2, 3) or not np.isfinite(box).all() or not (box[0] < box[1]).all():
            raise ValueError(f"{box.tolist()} is no box")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"cannot be used ({type(error).__name__}: {error})."
        raise DataError(file, "bounds", problem, "Delete the file: it is made again.") from error
    return box, "hulls"


easymocap_data = DataParserSpecification(
    config=EasyMocapDataParserConfig(),
    description="Moving scenes in EasyMocap's layout: images/CAM/FRAME.jpg, masks/CAM/FRAME.png, intri.yml, extri.yml.",
)
