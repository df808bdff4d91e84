"""4K4D as a nerfstudio model: per-frame points, colours from source photos, depth peeling (spec r4dv 4, 8.4)."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras
from core_ns.metrics import LpipsOrNothing
from core_ns.ray_cameras import pinhole_from_rays
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import read_ply
from r4dv_ns import harmonics, losses
from r4dv_ns.appearance import (
    BlendHead,
    ShHead,
    Source,
    blend_weights,
    occlusion_penalty,
    sample_sources,
    view_directions,
)
from r4dv_ns.drawing import Drawing, crop_alpha, distances, draw, pinhole
from r4dv_ns.feature_net import FEATURES, FeatureNet, FrozenFeatures
from r4dv_ns.field import GeometryHead
from r4dv_ns.model_config import LOSS_PRESETS, LossWeights, R4DVModelConfig
from r4dv_ns.planes import PlaneField, temporal_smoothness, total_variation
from r4dv_ns.point_state import PointState, Sighting, StateCache
from r4dv_ns.points import FramePoints, MotionResidual, normalise, spacing
from r4dv_ns.protocols import picture_metrics
from r4dv_ns.reseed import Reseeder
from r4dv_ns.source_choice import choose_sources
from r4dv_ns.sources import SourceBank
from r4dv_ns.viewer import Look, StartCamera, ViewerControls

SCENE_DIAGONAL = 2.0
"""Metres; the lengths of the original's settings belong to a box of this diagonal (spec r4dv 4.3)."""
TRANSPARENT = 0.3
"""Share of the mask's area that is covered at step 500 below which a run is likely to fail (spec r4dv 10.2)."""


class R4DVModel(Model):
    """See the config. ``metadata`` holds the ``sequence`` and, in a training run, its ``hulls``.

    Attributes:
        sources: photos; set by the pipeline.
        step: of the training, for what depends on it.
    """

    config: R4DVModelConfig
    bounds: Float[Tensor, "2 3"]
    sources: SourceBank

    def populate_modules(self) -> None:
        """Points of every frame (a training run) or room for them (a checkpoint follows), planes and heads."""
        super().populate_modules()
        config, metadata = self.config, self.kwargs["metadata"]
        self.sequence: Sequence = metadata["sequence"]
        self.hulls: Any = metadata.get("hulls")
        frames = len(self.sequence.frames)
        planes_in_time = None if config.static else frames
        self.register_buffer("bounds", self.scene_box.aabb.clone().float())
        scale = self.scale
        clouds = [torch.zeros(1, 3)] * frames if self.hulls is None else [self._start(i) for i in range(frames)]
        self.points = FramePoints(clouds, config.resident_frames)
        self.planes = PlaneField(
            config.plane_levels, config.plane_features, config.plane_base, planes_in_time, config.aggregate,
            hashed=config.hashed_planes,
        )  # fmt: skip
        self.motion = None
        if config.motion:
            self.motion = MotionResidual(planes_in_time, 0.1 * scale, config.plane_base, config.hashed_planes)
        width = self.planes.width
        self.geometry = GeometryHead(
            width,
            radius_init=config.radius_init,
            radius_min=config.radius_min,
            radius_max=config.radius_max,
            scale=scale,
        )
        if self.hulls is not None:
            self.geometry.initialise(spacing(clouds[0]))
            self.points.share_outside(self.bounds)
        self.feature_net = FeatureNet()
        self.blend = BlendHead(width)
        self.sh = ShHead(width, config.sh_limit)
        self.camera_refinement = config.camera_refinement.setup(num_cameras=len(self.sequence.views))
        self.controls = ViewerControls(frames, Look(config.layers, backend=config.backend), self._start_camera())
        given = config.loss
        self.weights = LOSS_PRESETS.get(metadata.get("dataset_preset", ""), given) if given == LossWeights() else given
        self.perceptual = losses.PerceptualTerm()
        self.lpips = LpipsOrNothing()
        self.reseeder = Reseeder(config.prune_every, config.seed)
        self.step = self._updates = 0
        self._cache = StateCache(config.cache_mb << 20)
        self._features = FrozenFeatures(self.feature_net, config.cache_mb << 20)

    @property
    def scale(self) -> float:
        """World units per metre of the original's settings."""
        return float((self.bounds[1] - self.bounds[0]).norm()) / SCENE_DIAGONAL

    def _start_camera(self) -> StartCamera:
        """Facing the middle of the box from between two training cameras."""
        w2c = np.stack([self.sequence.views[view].w2c(0) for view in self.sequence.train_views])
        c2w = transform_cameras(c2w_opengl_from_w2c_opencv(w2c), self.sequence.transform[:3])
        return StartCamera(c2w[:, :3], self.bounds.mean(dim=0).double().cpu().numpy())

    def _start(self, frame: int) -> Float[Tensor, "n 3"]:
        """Surface points of a frame, in nerfstudio's world."""
        xyz = read_ply(self.hulls.points(frame)).xyz
        transform = self.sequence.transform
        return torch.from_numpy(xyz @ transform[:3, :3].T + transform[:3, 3]).float()

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """The groups of spec r4dv 4.8."""
        motion = self.motion
        groups = {
            "points": list(self.points.parameters()),
            "planes": [*self.planes.parameters(), *(motion.planes.parameters() if motion is not None else [])],
            "residual_mlp": list(motion.mlp.parameters()) if motion is not None else [],
            "geometry_mlp": list(self.geometry.parameters()),
            "cnn": list(self.feature_net.parameters()),
            "blend": list(self.blend.parameters()),
            "sh": list(self.sh.parameters()),
            **self.camera_refinement.param_groups(),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """Keep the step; re-seed points; say when a run is about to fail."""

        def before(step: int) -> None:
            self.step = step

        def after(step: int) -> None:
            self._updates += 1
            self.reseeder.after_step(self, attributes.optimizers, step)

        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before, update_every_num_iters=1),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after, update_every_num_iters=1),
        ]

    # ------------------------------------------------------------------ points

    def state(self, frame: int, time: float) -> PointState:
        """The points of a frame, at a time in [0, 1]."""
        xyz, displacement = self.points(frame), None
        if self.motion is not None:
            displacement = self.motion(normalise(xyz, self.bounds), time)
            xyz = xyz + displacement
        features = self.planes(normalise(xyz, self.bounds), time)
        radius, alpha = self.geometry(features)
        return PointState(xyz, displacement, features, radius, alpha, self.sh.coefficients(features))

    def _photos(self, frame: int, views: Items[int]) -> list[Source]:
        """Photos with their corrected cameras; corrections of sources get no gradient (spec r4dv 7)."""
        photos = [photo.to(self.device) for photo in self.sources.get(frame, views)]
        if not self.camera_refinement.active:
            return photos
        return [replace(photo, w2c=self.camera_refinement(photo.w2c, photo.view).detach()) for photo in photos]

    def _maps(self, frame: int, photos: Items[Source], learn: bool) -> list[Tensor]:
        """Features of photos; without a gradient those of earlier steps, until the photo network changes."""
        if learn and torch.is_grad_enabled():
            return [self.feature_net(photo.image, photo.valid) for photo in photos]
        return [self._features((frame, photo.view), photo.image, photo.valid) for photo in photos]

    def _base(self, frame: int, state: PointState, views: Items[int]) -> tuple[Tensor, Tensor]:
        """Blended photo colour [N, 3] in training, and the share of points that no photo sees."""
        photos = self._photos(frame, views)
        learn = self.step < self.config.cnn_grad_warmup or self.step % self.config.cnn_grad_every == 0
        g, visible = sample_sources(photos, self._maps(frame, photos, learn), state.xyz)
        rgb, _, orphans = self.blend(state.features, g, visible)
        return rgb, orphans / len(state.xyz)

    def _sighting(self, frame: int, state: PointState, view: int) -> Sighting:
        photos = self._photos(frame, [view])
        g, visible = sample_sources(photos, self._maps(frame, photos, False), state.xyz)
        logit = self.blend.logits(state.features, g)[0].float()
        if self.config.occlusion:
            logit = logit - self._hidden(photos[0], state)
        return Sighting(g[0, :, FEATURES:].contiguous(), logit, visible[0])

    def _hidden(self, photo: Source, state: PointState) -> Float[Tensor, "n"]:
        height, width = photo.image.shape[1:]
        look = Drawing(photo.K, photo.w2c, height, width)
        seen = draw(look, state.xyz, state.radius, state.alpha, state.xyz[:, :0], self.controls.default, self.config)
        return occlusion_penalty(state.xyz, state.radius, photo, seen.depth, seen.accumulation)

    def _version(self) -> tuple:
        """Changes with the parameters: by training (fused optimisers do not count versions), in place or not."""
        return self._updates, *((parameter.data_ptr(), parameter._version) for parameter in self.parameters())

    # ------------------------------------------------------------------ pictures

    def moment(self, camera: Cameras) -> tuple[int, float]:
        """Frame and time in [0, 1] that a camera asks for; the first where it does not say."""
        times = self.sequence.times
        if self.training and camera.metadata is not None and "frame_idx" in camera.metadata:
            frame = int(camera.metadata["frame_idx"])
            return frame, times[frame]
        asked = float(camera.times.reshape(-1)[0]) if camera.times is not None else 0.0
        asked = self.controls.time(min(max(asked, 0.0), 1.0))
        return int(np.abs(np.asarray(times) - asked).argmin()), asked

    def _background(self) -> Float[Tensor, "3"]:
        override = renderers.BACKGROUND_COLOR_OVERRIDE
        if override is not None:
            return override.to(self.device)
        grey = self.config.background
        if grey < 0:
            grey = float(np.random.default_rng([self.config.seed, self.step]).random()) if self.training else 0.0
        return torch.full((3,), grey, device=self.device)

    def get_outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        """One training picture; the camera's metadata names frame, view and source views.

        Returns:
            ``rgb`` [H, W, 3], ``accumulation`` and ``depth`` [H, W, 1] (distance from the camera, world units),
            ``background`` [3], and what the losses need of the points.
        """
        metadata: Any = camera.metadata
        frame, time = self.moment(camera)
        state = self.state(frame, time)
        drawing = pinhole(camera)
        view = int(metadata["view_idx"])
        drawing = Drawing(drawing.K, self.camera_refinement(drawing.w2c, view), drawing.height, drawing.width)
        base, orphans = self._base(frame, state, metadata["sources"].reshape(-1).tolist())
        directions = view_directions(state.xyz, drawing.centre)
        residual = self.config.sh_limit * torch.tanh(harmonics.evaluate(state.coefficients, directions))
        colour = (base + residual).clamp(0, 1)
        background = self._background()
        seen = draw(drawing, state.xyz, state.radius, state.alpha, colour, self.controls.default, self.config)
        rgb = seen.color + (1 - seen.accumulation[..., None]) * background
        self.reseeder.note(frame, drawing, state)
        return {
            "rgb": rgb, "accumulation": seen.accumulation[..., None],
            "depth": distances(drawing, seen), "background": background,
            "state_alpha": state.alpha, "state_radius": state.radius, "sh_residual": residual, "orphans": orphans,
            **({"displacement": state.displacement} if state.displacement is not None else {}),
        }  # fmt: skip

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """Draw any perspective camera at any time; maps [H, W, C].

        Returns:
            ``rgb``, ``accumulation``, ``depth`` (distance, world units), ``rgb_ibr`` (colour from the photos alone),
            ``sh_residual`` (size of the view-dependent part), ``layers`` (share of the layers in use).

        Raises:
            DataError: another kind of camera, except in a browser: an error there would end its rendering.
        """
        camera = camera.reshape((1,)) if not camera.shape else camera
        frame, time = self.moment(camera)
        times = self.sequence.times
        if self.config.time_mode == "nearest" or len(times) == 1:
            return self._picture(camera, frame, times[frame], obb_box)
        after = int(np.searchsorted(times, time).clip(1, len(times) - 1))
        share = (time - times[after - 1]) / (times[after] - times[after - 1])
        if share <= 0 or share >= 1:
            return self._picture(camera, after - 1 if share <= 0 else after, time, obb_box)
        one, other = (self._picture(camera, index, times[index], obb_box) for index in (after - 1, after))
        return {name: torch.lerp(one[name], other[name], share) for name in one}

    def _picture(self, camera: Cameras, frame: int, time: float, box: OrientedBox | None) -> Dict[str, Tensor]:
        look, version = self.controls.look(), self._version()
        drawing = pinhole(camera.to(self.device), any_kind=self.controls.in_browser())
        if camera.metadata is not None and "view_idx" in camera.metadata:
            view = int(camera.metadata["view_idx"])
            drawing = Drawing(drawing.K, self.camera_refinement(drawing.w2c, view), drawing.height, drawing.width)
        state: PointState = self._cache.get(version, (frame, time), lambda: self.state(frame, time))
        chosen = self.nearest_views(frame, drawing.centre)
        sightings: list[Sighting] = [
            self._cache.get(version, (frame, time, view), lambda view=view: self._sighting(frame, state, view))
            for view in chosen
        ]
        weights, _ = blend_weights(
            torch.stack([each.logit for each in sightings]), torch.stack([each.visible for each in sightings])
        )
        base = torch.einsum("sn,snc->nc", weights, torch.stack([each.rgb for each in sightings]).to(weights))
        directions = view_directions(state.xyz, drawing.centre)
        residual = self.config.sh_limit * torch.tanh(harmonics.evaluate(state.coefficients, directions))
        colour = (look.base * base + look.residual * residual).clamp(0, 1)
        alpha = state.alpha if box is None else crop_alpha(state.alpha, state.xyz, box)
        channels = torch.cat([colour, base, residual.norm(dim=1, keepdim=True)], dim=1)
        seen = draw(drawing, state.xyz, state.radius, alpha, channels, look, self.config)
        background, behind = self._background(), 1 - seen.accumulation[..., None]
        most = look.layers if look.layers is not None else int(seen.fragments.max().clamp_min(1))
        return {
            "rgb": seen.color[..., :3] + behind * background,
            "accumulation": seen.accumulation[..., None],
            "depth": distances(drawing, seen),
            "rgb_ibr": seen.color[..., 3:6] + behind * background,
            "sh_residual": seen.color[..., 6:],
            "layers": seen.fragments[..., None].float() / most,
        }

    def nearest_views(self, frame: int, centre: Float[Tensor, "3"]) -> list[int]:
        """Training views whose photos colour a picture from ``centre``, best first."""
        middle = self.bounds.mean(dim=0).double().cpu().numpy()
        rows = choose_sources(
            centre.detach().double().cpu().numpy(), self.sources.centres(frame), self.config.sources,
            self.config.source_metric, middle,
        )  # fmt: skip
        return [self.sources.views[row] for row in rows]

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """For ``ns-export tsdf``: the camera that cast the rays is drawn, and what is behind nothing is far away."""
        outputs = self.get_outputs_for_camera(pinhole_from_rays(camera_ray_bundle))
        # The export carves only as far as a depth reaches: space behind a silhouette must not stay undecided.
        depth = outputs["depth"]
        return outputs | {"depth": torch.where(outputs["accumulation"] > 0.5, depth, 10 * depth.max())}

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """RGBA [H, W, 4], straight alpha: the background is taken out of the colour."""
        alpha = outputs["accumulation"]
        colour = (outputs[output_name] - (1 - alpha) * self._background()) / alpha.clamp_min(1e-6)
        return torch.cat([colour.clamp(0, 1), alpha], dim=-1)

    # ------------------------------------------------------------------ losses and metrics

    def _truth(self, batch: Dict[str, Any], background: Float[Tensor, "3"]) -> tuple[Tensor, Tensor, Tensor]:
        """Photo over the background, mask [H, W] (ones without masks) and valid pixels [H, W] as floats."""
        image = batch["image"].to(self.device)
        ones = image.new_ones(image.shape[:2])
        mask = batch["mask"].to(image).squeeze(-1) if "mask" in batch else ones
        valid = batch["valid"].to(image).squeeze(-1) if "valid" in batch else ones
        return image * mask[..., None] + (1 - mask[..., None]) * background, mask, valid

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """The weighted terms of `LossWeights` (spec r4dv 4.7)."""
        truth, mask, valid = self._truth(batch, outputs["background"])
        weights, found = self.weights, {}
        rgb, seen = outputs["rgb"], outputs["accumulation"][..., 0]
        self.reseeder.note_error((rgb - truth).abs().mean(dim=-1) * valid)
        found["colour"] = weights.colour * losses.huber(rgb, truth, weight=valid[..., None])
        if weights.perceptual:
            whole = torch.where(valid[..., None] > 0, rgb, truth)
            found["perceptual"] = weights.perceptual * self.perceptual(whole, truth)
        if weights.mask and self.sequence.has_masks:
            found["mask"] = weights.mask * losses.soft_iou(seen, mask, self.config.detach_union, valid)
        if weights.residual and "displacement" in outputs:
            found["residual"] = weights.residual * losses.residual_size(outputs["displacement"] / self.scale)
        if weights.sh_size:
            found["sh_size"] = weights.sh_size * losses.sh_size(outputs["sh_residual"])
        if weights.entropy:
            found["entropy"] = weights.entropy * losses.entropy(outputs["state_alpha"])
        if weights.total_variation:
            found["total_variation"] = weights.total_variation * total_variation(self.planes)
        if weights.temporal_smoothness:
            found["temporal_smoothness"] = weights.temporal_smoothness * temporal_smoothness(self.planes)
        if self.camera_refinement.active:
            found["cameras"] = self.camera_refinement.penalty()
        return found

    @torch.no_grad()
    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """PSNR of the crop and inside the mask, share of the mask that is covered, mean radius and opacity."""
        truth, mask, valid = self._truth(batch, outputs.get("background", self._background()))
        square = (outputs["rgb"] - truth).square().mean(dim=-1)
        inside = mask * valid

        def decibel(weight: Tensor) -> Tensor:
            return -10 * torch.log10(((square * weight).sum() / weight.sum().clamp_min(1)).clamp_min(1e-10))

        covered = (outputs["accumulation"][..., 0] * inside).sum() / inside.sum().clamp_min(1)
        found = {"psnr": decibel(valid), "psnr_masked": decibel(inside), "covered": covered}
        if "state_radius" in outputs:
            found |= {"radius": outputs["state_radius"].mean(), "opacity": outputs["state_alpha"].mean()}
            found |= {"orphans": outputs["orphans"], **self.camera_refinement.metrics()}
            if self.step == 500 and float(covered) < TRANSPARENT:
                CONSOLE.print(
                    f"[yellow]The picture covers only {100 * float(covered):.0f} % of the mask after 500 steps. Stop, "
                    "check hulls (ns-r4dv hull) and cameras, or raise radius-max."
                )
        return found

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics of the picture, inside the mask (``_masked``) and in the projected box (``_bbox``; spec r4dv 8.4)."""
        background = self._background()
        truth, mask, valid = self._truth(batch, background)
        rgb = torch.where(valid[..., None] > 0, outputs["rgb"].clamp(0, 1), truth)
        inside = (mask > 0.5) & (valid > 0) if self.sequence.has_masks and "mask" in batch else None
        box = None
        if "view_idx" in batch and self.sequence.bounds is not None:
            box = self.sequence.extent(int(batch["view_idx"]), int(batch["frame_idx"]), self.sequence.bounds, pad=0)
        metrics = picture_metrics(rgb, truth, inside, box, self.lpips, self.config.upstream_ssim)
        pictures = {"img": torch.cat([truth, rgb, (rgb - truth).abs()], dim=1)}
        return metrics, pictures | {"accumulation": outputs["accumulation"].expand(-1, -1, 3)}
