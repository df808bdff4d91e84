"""Training photos for a whole scene: plates, cut-outs of the subject, or whole photos, by the stage (spec r4dv 4.9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Optional, Type

import numpy as np
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from core_ns.frames import transform_points
from dataparsers.easymocap_plates import Plates, find_plates
from r4dv_ns.background_points import BackgroundOptions, ensure_background
from r4dv_ns.datamanager import R4DVDataManager, R4DVDataManagerConfig
from r4dv_ns.joint_sources import JointSources, widened
from r4dv_ns.joint_stages import Stage, StagePlan
from r4dv_ns.sources import Crop


@dataclass
class JointDataManagerConfig(R4DVDataManagerConfig):
    """Training photos of a subject and what is behind it."""

    _target: Type = field(default_factory=lambda: JointDataManager)
    plates: Literal["auto", "none"] = "auto"
    """Clean plates, bkgd/CAMERA.jpg or bkgd/images/CAMERA/000000.jpg: used where they are, or never."""
    dilation: Optional[int] = None
    """Pixels around the masks that do not count as background. None: 1 % of the photo's longer side."""
    background: BackgroundOptions = field(default_factory=BackgroundOptions)
    """Points that the background starts from, where bkgd/boost/000000.ply is not there."""
    crop_to_bounds: tyro.conf.Suppress[bool] = False
    """The cache holds whole photos: the background needs them."""


class JointDataManager(R4DVDataManager):
    """As `R4DVDataManager`; what a step's photo is depends on its stage.

    Attributes:
        plan: of the stages; set by the model when training begins. Until then all steps belong to the last stage.
    """

    config: JointDataManagerConfig  # type: ignore[assignment]
    source_bank: JointSources

    def __init__(self, config: JointDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        self.plan = StagePlan(0, 0, 1)
        config.crop_to_bounds = False
        super().__init__(config, *args, **kwargs)
        assert self.sequence.bounds is not None
        self.source_bank = JointSources(
            self.sequence, self.source_bank.cache, self.plates, self.sequence.bounds.copy(), pad=config.crop_pad,
            dilation=config.dilation, device=self.device,
        )  # fmt: skip

    @cached_property
    def plates(self) -> Plates:
        """The clean plates in use. Raises DataError as `find_plates`."""
        return Plates(self.sequence, {}) if self.config.plates == "none" else find_plates(self.sequence)

    def setup_train(self) -> None:
        """As `R4DVDataManager.setup_train`; then the points that the background starts from.

        Raises:
            DataError: no hull, a bad plate, or points that cannot be used.
        """
        super().setup_train()
        if not self.training_run:
            return
        with_plate = sum(view in self.plates for view in self.sequence.train_views)
        total = len(self.sequence.train_views)
        if with_plate < total:
            seen = f"{with_plate} of {total}" if with_plate else "none"
            CONSOLE.print(f"Clean plates: {seen}. The background is learned from photos, outside the masks.")
        if not self.sequence.has_masks and with_plate < total:
            raise DataError(
                self.sequence.root, "bkgd", "lacks clean plates, and there are no masks to tell the background by.",
                "Add bkgd/CAMERA.jpg for every camera, or masks/CAMERA/FRAME.png.",
            )  # fmt: skip
        cloud = ensure_background(self.sequence, self.points_folder, self.config.background, self.plates)
        moved = transform_points(cloud.xyz, self.sequence.transform)
        self.train_dataset.metadata["room_points"] = torch.from_numpy(moved).float()

    # ------------------------------------------------------------------ training

    def still(self, step: int) -> bool:
        """Whether a step compares with a clean plate."""
        return self.plan.stage(step) is Stage.BACKGROUND and self.source_bank.still

    def target(self, step: int, frame: int, view: int) -> Crop:
        """A plate, the subject's cut-out, or a whole photo."""
        if self.still(step):
            return self.source_bank.plate(view)
        if self.plan.stage(step) is not Stage.FOREGROUND:
            return self.source_bank.crop(frame, view)
        crop = self.source_bank.subject_crop(frame, view)
        return crop.around_mask(self.config.crop_pad) if self.config.crop_to_mask else crop

    def _photos_of(self, step: int, ahead: int) -> Iterator[tuple[int, int]]:
        return iter(()) if self.still(step) else super()._photos_of(step, ahead)

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """As `R4DVDataManager.next_train`; in stage A ``room`` [H, W, 1] is True for pixels that show the background.

        Raises:
            DataError: a photo, mask or plate cannot be decoded.
        """
        camera, batch = super().next_train(step)
        if self.plan.stage(step) is Stage.BACKGROUND:
            behind = batch["valid"]
            if not self.still(step):
                mask = (255 * batch["mask"][..., 0]).round().byte().cpu().numpy()
                found = widened(mask, self.source_bank.pixels(int(batch["view_idx"])))
                behind = behind & torch.from_numpy(~np.asarray(found)).to(behind.device)[..., None]
            batch["room"] = behind
        return camera, batch
