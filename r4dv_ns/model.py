"""4K4D as a nerfstudio model: per-frame points, colours from source photos, depth peeling (spec r4dv 4, 8.4)."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras
from core_ns.metrics import LpipsOrNothing
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import read_ply
from r4dv_ns import losses
from r4dv_ns.appearance import Source, blend_weights, occlusion_penalty
from r4dv_ns.branch import PointBranch
from r4dv_ns.drawing import Drawing, crop_alpha, distances, draw, pinhole
from r4dv_ns.model_config import LOSS_PRESETS, LossWeights, R4DVModelConfig
from r4dv_ns.peel import Peeled
from r4dv_ns.pictures import PictureModel
from r4dv_ns.planes import PlaneField, temporal_smoothness, total_variation
from r4dv_ns.point_state import Front, PointState, Sighting, StateCache
from r4dv_ns.reseed import Reseeder
from r4dv_ns.source_choice import choose_sources, own_rows
from r4dv_ns.sources import SourceBank
from r4dv_ns.viewer import Look, StartCamera, ViewerControls, start_between

SCENE_DIAGONAL = 2.0
"""Metres; the lengths of the original's settings belong to a box of this diagonal (spec r4dv 4.3)."""
EARLY, TRANSPARENT = 300, 0.3
"""A step, and the share of the mask that is covered then, below which a run is likely to fail (spec r4dv 10.2)."""


@dataclass(frozen=True)
class Shown:
    """Points as one camera sees them."""

    state: PointState
    colour: Float[Tensor, "n 3"]
    base: Float[Tensor, "n 3"]
    """Colour of the photos alone."""
    residual: Float[Tensor, "n 3"]
    """The view-dependent part alone."""


class R4DVModel(PointBranch, PictureModel):
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
        self.times = list(self.sequence.times)
        frames = len(self.sequence.frames)
        self.register_buffer("bounds", self.scene_box.aabb.clone().float())
        clouds = [torch.zeros(1, 3)] * frames if self.hulls is None else [self._start(i) for i in range(frames)]
        self.build_branch(config, clouds, self.scale)
        if self.hulls is not None:
            self.start_sizes()
            self.points.share_outside(self.bounds)
        self.camera_refinement = config.camera_refinement.setup(num_cameras=len(self.sequence.views))
        self.controls = ViewerControls(self.times, Look(config.layers, backend=config.backend), self._start_camera())
        given = config.loss
        self.weights = LOSS_PRESETS.get(metadata.get("dataset_preset", ""), given) if given == LossWeights() else given
        self.perceptual = losses.PerceptualTerm()
        self.lpips = LpipsOrNothing()
        self.reseeder = Reseeder(config.prune_every, config.seed)
        self.step = self._updates = 0
        self._cache, self._fronts = StateCache(config.cache_mb << 20), StateCache(config.cache_mb << 20)
        self._occlusion_period = max(config.occlusion_every, 1)

    @property
    def scale(self) -> float:
        """World units per metre of the original's settings."""
        return float((self.bounds[1] - self.bounds[0]).norm()) / SCENE_DIAGONAL

    def _start_camera(self) -> StartCamera:
        """Facing the middle of the box from between two training cameras."""
        w2c = np.stack([self.sequence.views[view].w2c(0) for view in self.sequence.train_views])
        c2w = transform_cameras(c2w_opengl_from_w2c_opencv(w2c), self.sequence.transform[:3])
        return start_between(c2w[:, :3], self.bounds.mean(dim=0).double().cpu().numpy())

    def _start(self, frame: int) -> Float[Tensor, "n 3"]:
        """Surface points of a frame, in nerfstudio's world."""
        xyz = read_ply(self.hulls.points(frame)).xyz
        transform = self.sequence.transform
        return torch.from_numpy(xyz @ transform[:3, :3].T + transform[:3, 3]).float()

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """The groups of spec r4dv 4.8."""
        return {**self.branch_groups(), **self.camera_refinement.param_groups()}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """Keep the step; re-seed points; say when a run is about to fail."""
        if attributes.trainer is not None:
            saved = attributes.trainer.config.steps_per_save
            self._occlusion_period = max(n for n in range(1, self._occlusion_period + 1) if saved % n == 0)

        def before(step: int) -> None:
            self.step = step

        def after(step: int) -> None:
            self._updates += 1
            self.reseeder.after_step(self, attributes.optimizers, step)

        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before, update_every_num_iters=1),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after, update_every_num_iters=1),
        ]

    # ------------------------------------------------------------------ photos

    def _photos(self, frame: int, views: Items[int]) -> list[Source]:
        """Photos with their corrected cameras; corrections of sources get no gradient (spec r4dv 7)."""
        return self._corrected([photo.to(self.device) for photo in self.sources.get(frame, views)])

    def _corrected(self, photos: list[Source]) -> list[Source]:
        if not self.camera_refinement.active:
            return photos
        return [replace(photo, w2c=self.camera_refinement(photo.w2c, photo.view).detach()) for photo in photos]

    @property
    def learning_photos(self) -> bool:
        """Whether the photo network gets a gradient in the present step (spec r4dv 4.4)."""
        return self.step < self.config.cnn_grad_warmup or self.step % self.config.cnn_grad_every == 0

    def _sighting(self, frame: int, state: PointState, view: int) -> Sighting:
        photo = self._photos(frame, [view])[0]
        seen = self.sighting(frame, state, photo)
        return replace(seen, logit=seen.logit - self._hidden(photo, state)) if self.config.occlusion else seen

    @torch.no_grad()
    def _front(self, photo: Source, state: PointState) -> Front:
        height, width = photo.image.shape[1:]
        look = Drawing(photo.K, photo.w2c, height, width)
        seen = draw(look, state.xyz, state.radius, state.alpha, state.xyz[:, :0], self.controls.default, self.config)
        return Front(seen.depth, seen.accumulation)

    def _hidden(self, photo: Source, state: PointState, front: Front | None = None) -> Float[Tensor, "n"]:
        front = front or self._front(photo, state)
        return occlusion_penalty(state.xyz, state.radius, photo, front.depth, front.accumulation)

    def hidden_in_training(
        self, frame: Hashable, photos: Items[Source], state: PointState
    ) -> Float[Tensor, "s n"] | None:
        """Penalties for a training step. Drawing every source in every step would take a third of the time: a surface
        of the last ``occlusion_every`` steps will do.

        Args:
            frame: whose points these are; anything that tells them from others.
            photos: the sources.
            state: the points.
        """
        if not self.config.occlusion or not self.config.occlusion_every:
            return None
        # The step after a checkpoint begins anew: a resumed run sees what an uninterrupted one does.
        since = (self.step - 1) // self._occlusion_period
        fronts = [
            self._fronts.get(since, (frame, photo.view), lambda photo=photo: self._front(photo, state))
            for photo in photos
        ]
        return torch.stack([self._hidden(photo, state, front) for photo, front in zip(photos, fronts, strict=True)])

    def _version(self) -> tuple:
        """Changes with the parameters: by training (fused optimisers do not count versions), in place or not."""
        return self._updates, *((parameter.data_ptr(), parameter._version) for parameter in self.parameters())

    # ------------------------------------------------------------------ pictures

    def moment(self, camera: Cameras) -> tuple[int, float]:
        """Frame and time in [0, 1] that a camera asks for; in training its metadata names the frame."""
        if self.training and camera.metadata is not None and "frame_idx" in camera.metadata:
            frame = int(camera.metadata["frame_idx"])
            return frame, self.times[frame]
        return super().moment(camera)

    def background(self) -> Float[Tensor, "3"]:
        """As `PictureModel.background`; in training another grey in every step where the settings ask for it."""
        if self.config.background >= 0 or not self.training or renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            return super().background()
        grey = float(np.random.default_rng([self.config.seed, self.step]).random())
        return torch.full((3,), grey, device=self.device)

    def drawing(self, camera: Cameras, any_kind: bool = False) -> Drawing:
        """A camera to draw, corrected where its metadata names a camera of the recording. Raises as `pinhole`."""
        drawing = pinhole(camera.to(self.device), any_kind)
        if camera.metadata is None or "view_idx" not in camera.metadata:
            return drawing
        view = int(camera.metadata["view_idx"])
        return replace(drawing, w2c=self.camera_refinement(drawing.w2c, view), view=view)

    def get_outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        """One training picture; the camera's metadata names frame, view and source views.

        Returns:
            ``rgb`` [H, W, 3], ``accumulation`` and ``depth`` [H, W, 1] (distance from the camera, world units),
            ``background`` [3], and what the losses need of the points.
        """
        metadata: Any = camera.metadata
        frame, time = self.moment(camera)
        # The subject's own points, whatever a model adds to its state.
        drawing, state = self.drawing(camera), PointBranch.state(self, frame, time)
        photos = self._photos(frame, metadata["sources"].reshape(-1).tolist())
        hidden = self.hidden_in_training(frame, photos, state)
        learned = self.learned(frame, state, photos, drawing.centre, self.learning_photos, hidden)
        background = self.background()
        seen = draw(drawing, state.xyz, state.radius, state.alpha, learned.colour, self.controls.default, self.config)
        self.reseeder.note(frame, drawing, state)
        return {
            "rgb": seen.color + (1 - seen.accumulation[..., None]) * background,
            "accumulation": seen.accumulation[..., None], "depth": distances(drawing, seen), "background": background,
            "state_alpha": state.alpha, "state_radius": state.radius, "sh_residual": learned.residual,
            "orphans": learned.orphans,
            **({"displacement": state.displacement} if state.displacement is not None else {}),
        }  # fmt: skip

    def shown(self, drawing: Drawing, frame: int, time: float, look: Look) -> Shown:
        """The points of a frame coloured from the photos nearest to a camera."""
        version = self._version()
        state: PointState = self._cache.get(version, (frame, time), lambda: self.state(frame, time))
        sightings: list[Sighting] = [
            self._cache.get(version, (frame, time, view), lambda view=view: self._sighting(frame, state, view))
            for view in self.nearest_views(frame, drawing.centre, drawing.view)
        ]
        weights, _ = blend_weights(
            torch.stack([each.logit for each in sightings]), torch.stack([each.visible for each in sightings])
        )
        base = torch.einsum("sn,snc->nc", weights, torch.stack([each.rgb for each in sightings]).to(weights))
        residual = self.residual(state, drawing.centre)
        return Shown(state, (look.base * base + look.residual * residual).clamp(0, 1), base, residual)

    def _picture(self, camera: Cameras, frame: int, time: float, box: OrientedBox | None) -> Dict[str, Tensor]:
        """``rgb_ibr``: colour from the photos alone. ``sh_residual``: size of the view-dependent part. ``layers``:
        share of the layers in use."""
        look = self.controls.look()
        drawing = self.drawing(camera, self.controls.in_browser())
        return self._drawn(drawing, self.shown(drawing, frame, time, look), box, look)

    def _drawn(self, drawing: Drawing, shown: Shown, box: OrientedBox | None, look: Look) -> Dict[str, Tensor]:
        state, alpha = shown.state, self._cropped(shown.state, box)
        channels = torch.cat([shown.colour, shown.base, shown.residual.norm(dim=1, keepdim=True)], dim=1)
        return self.maps(drawing, draw(drawing, state.xyz, state.radius, alpha, channels, look, self.config), look)

    def _cropped(self, state: PointState, box: OrientedBox | None) -> Float[Tensor, "n"]:
        """Opacities, those outside the viewer's crop box taken away."""
        return state.alpha if box is None else crop_alpha(state.alpha, state.xyz, box)

    def maps(self, drawing: Drawing, seen: Peeled, look: Look) -> Dict[str, Tensor]:
        """What the tools are given, from drawn channels: colour [3], photo colour [3], size of the residual [1]."""
        accumulation = seen.accumulation[..., None]
        behind = (1 - accumulation) * self.background()
        most = look.layers if look.layers is not None else int(seen.fragments.max().clamp_min(1))
        return {
            "rgb": seen.color[..., :3] + behind,
            "accumulation": accumulation,
            "depth": distances(drawing, seen),
            "rgb_ibr": seen.color[..., 3:6] + behind,
            "sh_residual": seen.color[..., 6:7],
            "layers": seen.fragments[..., None].float() / most,
        }

    def nearest_views(self, frame: int, centre: Float[Tensor, "3"], view: int | None = None) -> list[int]:
        """Training views whose photos colour a picture from ``centre``, best first.

        Args:
            frame: the moment.
            centre: of the camera, world.
            view: the recording's camera that is drawn, if it is one: it is not judged by its own photo (spec r4dv 4.4),
                unless there is no other.
        """
        views, middle = self.sources.views, self.bounds.mean(dim=0).double().cpu().numpy()
        rows = choose_sources(
            centre.detach().double().cpu().numpy(), self.sources.centres(frame), self.config.sources,
            self.config.source_metric, middle,
            exclude=own_rows(views, view),
        )  # fmt: skip
        return [views[row] for row in rows]

    # ------------------------------------------------------------------ losses and metrics

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """The weighted terms of `LossWeights` (spec r4dv 4.7)."""
        truth, mask, valid = self.truth(batch, outputs["background"])
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
            found["total_variation"] = weights.total_variation * sum(map(total_variation, self.regularised_planes()))
        if weights.temporal_smoothness:
            smooth = sum(map(temporal_smoothness, self.regularised_planes()))
            found["temporal_smoothness"] = weights.temporal_smoothness * smooth
        if self.camera_refinement.active:
            found["cameras"] = self.camera_refinement.penalty()
        return found

    def regularised_planes(self) -> list[PlaneField]:
        """The planes that the losses of planes are about."""
        return [self.planes]

    @torch.no_grad()
    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """PSNR of the crop and inside the mask, share of the mask that is covered, mean radius and opacity."""
        truth, mask, valid = self.truth(batch, outputs.get("background", self.background()))
        square = (outputs["rgb"] - truth).square().mean(dim=-1)
        inside = mask * valid

        def decibel(weight: Tensor) -> Tensor:
            return -10 * torch.log10(((square * weight).sum() / weight.sum().clamp_min(1)).clamp_min(1e-10))

        covered = (outputs["accumulation"][..., 0] * inside).sum() / inside.sum().clamp_min(1)
        found = {"psnr": decibel(valid), "psnr_masked": decibel(inside), "covered": covered}
        if "state_radius" in outputs:
            found |= {"radius": outputs["state_radius"].mean(), "opacity": outputs["state_alpha"].mean()}
            found |= {"orphans": outputs["orphans"], **self.camera_refinement.metrics()}
            if self.step == EARLY and float(covered) < TRANSPARENT:
                CONSOLE.print(
                    f"[yellow]The picture covers only {100 * float(covered):.0f} % of the mask after {EARLY} steps. "
                    "Stop, check hulls (ns-r4dv hull) and cameras, or raise radius-max."
                )
        return found

    def has_masks(self) -> bool:
        """Whether the recording has masks."""
        return self.sequence.has_masks

    def subject_box(self, batch: Dict[str, Any]) -> tuple[int, int, int, int] | None:
        """See `PictureModel.subject_box`."""
        if "view_idx" not in batch or self.sequence.bounds is None:
            return None
        return self.sequence.extent(int(batch["view_idx"]), int(batch["frame_idx"]), self.sequence.bounds, pad=0)
