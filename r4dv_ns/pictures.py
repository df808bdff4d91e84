"""Models of recordings that draw whole pictures: times, backgrounds, judging (spec r4dv 8.4).

What does not depend on where the points' colours come from: networks and photos, or a charged folder.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Dict, Optional, Protocol, Tuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from torch import Tensor

from core_ns.metrics import LpipsOrNothing
from core_ns.ray_cameras import pinhole_from_rays
from r4dv_ns.protocols import picture_metrics
from r4dv_ns.viewer import ViewerControls, nearest_frame

SAME = 1e-5
"""Share of the way between two frames that is none: cameras hold times as float32."""


class PictureConfig(Protocol):
    """What of a model's settings is read here."""

    background: float
    time_mode: Any
    upstream_ssim: bool


class PictureModel(Model):
    """A model with frames at known times.

    Attributes:
        times: of the frames, in [0, 1], rising.
        controls: the viewer's switches.
        lpips: kept from picture to picture.
    """

    times: list[float]
    controls: ViewerControls
    lpips: LpipsOrNothing

    @abstractmethod
    def _picture(self, camera: Cameras, frame: int, time: float, box: OrientedBox | None) -> Dict[str, Tensor]:
        """Outputs [H, W, C] of one frame."""

    def _settings(self) -> PictureConfig:
        config: Any = self.config
        return config

    def moment(self, camera: Cameras) -> tuple[int, float]:
        """Frame and time in [0, 1] that a camera asks for; the first where it does not say."""
        asked = float(camera.times.reshape(-1)[0]) if camera.times is not None else 0.0
        asked = self.controls.time(min(max(asked, 0.0), 1.0))
        return nearest_frame(self.times, asked), asked

    def background(self) -> Float[Tensor, "3"]:
        """Behind the points: nerfstudio's override, else the grey of the settings; black for a random one."""
        override = renderers.BACKGROUND_COLOR_OVERRIDE
        if override is not None:
            return override.to(self.device)
        return torch.full((3,), max(self._settings().background, 0.0), device=self.device)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """Draw any perspective camera at any time; maps [H, W, C]: ``rgb``, ``accumulation``, ``depth`` (distance)...

        Raises:
            DataError: another kind of camera, except in a browser: an error there would end its rendering.
        """
        camera = camera.reshape((1,)) if not camera.shape else camera
        frame, time = self.moment(camera)
        times = self.times
        if self._settings().time_mode == "nearest" or len(times) == 1:
            return self._picture(camera, frame, times[frame], obb_box)
        after = int(np.searchsorted(times, time).clip(1, len(times) - 1))
        share = (time - times[after - 1]) / (times[after] - times[after - 1])
        if not SAME < share < 1 - SAME:
            frame = after - 1 if share <= SAME else after
            return self._picture(camera, frame, times[frame], obb_box)
        one, other = (self._picture(camera, index, times[index], obb_box) for index in (after - 1, after))
        return {name: torch.lerp(one[name], other[name], share) for name in one}

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """For ``ns-export tsdf``: the camera that cast the rays is drawn, and what is behind nothing is far away."""
        outputs = self.get_outputs_for_camera(pinhole_from_rays(camera_ray_bundle))
        # The export carves only as far as a depth reaches: space behind a silhouette must not stay undecided.
        depth = outputs["depth"]
        return outputs | {"depth": torch.where(outputs["accumulation"] > 0.5, depth, 10 * depth.max())}

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """RGBA [H, W, 4], straight alpha: the background is taken out of the colour."""
        alpha = outputs["accumulation"]
        colour = (outputs[output_name] - (1 - alpha) * self.background()) / alpha.clamp_min(1e-6)
        return torch.cat([colour.clamp(0, 1), alpha], dim=-1)

    def truth(self, batch: Dict[str, Any], background: Float[Tensor, "3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Photo over the background, mask [H, W] (ones without masks) and valid pixels [H, W] as floats."""
        image = batch["image"].to(self.device)
        ones = image.new_ones(image.shape[:2])
        mask = batch["mask"].to(image).squeeze(-1) if "mask" in batch else ones
        valid = batch["valid"].to(image).squeeze(-1) if "valid" in batch else ones
        return image * mask[..., None] + (1 - mask[..., None]) * background, mask, valid

    @abstractmethod
    def subject_box(self, batch: Dict[str, Any]) -> tuple[int, int, int, int] | None:
        """x, y, width, height in pixels of the projected bounds in a photo; None where it is not known."""

    @abstractmethod
    def has_masks(self) -> bool:
        """Whether a batch's mask tells the subject from its surroundings."""

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics of the picture, inside the mask (``_masked``) and in the projected box (``_bbox``; spec r4dv 8.4)."""
        truth, mask, valid = self.truth(batch, self.background())
        rgb = torch.where(valid[..., None] > 0, outputs["rgb"].clamp(0, 1), truth)
        inside = (mask > 0.5) & (valid > 0) if self.has_masks() and "mask" in batch else None
        box = self.subject_box(batch)
        metrics = picture_metrics(rgb, truth, inside, box, self.lpips, self._settings().upstream_ssim)
        pictures = {"img": torch.cat([truth, rgb, (rgb - truth).abs()], dim=1)}
        return metrics, pictures | {"accumulation": outputs["accumulation"].expand(-1, -1, 3)}
