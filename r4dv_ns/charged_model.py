"""A charged recording as a nerfstudio model: stored points, colours blended from stored sources, depth peeling.

No network, no photo, no parameter: for each picture the sources nearest to the camera are chosen, by the camera alone,
and the points drawn (4K4D 3.4; spec r4dv 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, NamedTuple, Optional, Type

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerCheckbox
from rich.markup import escape
from torch import Tensor
from torch.nn import Parameter

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing
from r4dv_ns.charge_store import ChargedStore
from r4dv_ns.charged_colour import shaded
from r4dv_ns.charged_frames import ChargedFrames, ChargedPoints
from r4dv_ns.charged_window import NEAR, Window, in_view
from r4dv_ns.drawing import Drawing, crop_alpha, distances, pinhole, solid
from r4dv_ns.peel import Backend, Peeled, peel
from r4dv_ns.pictures import PictureModel
from r4dv_ns.source_choice import choose_sources, own_rows
from r4dv_ns.viewer import Look, StartCamera, ViewerControls

THUMBNAIL = 160
"""Longest side of the drawings that the viewer's frusta show."""


@dataclass
class ChargedModelConfig(ModelConfig):
    """What the charge says, unless it is said here."""

    _target: Type = field(default_factory=lambda: ChargedModel)
    enable_collider: bool = False
    """Nothing is marched here."""
    layers: Optional[int] = None
    """Points blended per pixel, nearest first."""
    sources: Optional[int] = None
    """Photos that a picture takes its colours from."""
    source_metric: Optional[Literal["distance", "angle"]] = None
    """How the nearest photos are found: distance of the cameras, or angle around the middle of the box."""
    min_pixel_radius: Optional[float] = None
    """Smaller discs are drawn at this size in pixels and fainter; 0: the paper's formula."""
    background: Optional[float] = None
    """Grey behind the subject, 0 to 1."""
    time_mode: Optional[Literal["nearest", "blend"]] = None
    """Between two frames: the nearer one, or a blend of both pictures."""
    backend: Backend = "auto"
    """Rasteriser: Triton on CUDA, torch elsewhere. gsplat is an approximation for previews."""
    cache_mb: int = 1024
    """Memory for frames that are ready to draw, on the device that draws."""
    ahead: int = 3
    """Frames loaded ahead in the direction of play; 0: none."""
    upstream_ssim: bool = False
    """Also report ssim_upstream: scikit-image's with a data range of 2, as the original's numbers are (higher)."""


class Settings(NamedTuple):
    """The configuration with the charge's own values where it has none."""

    layers: int
    sources: int
    source_metric: Literal["distance", "angle"]
    min_pixel_radius: float
    background: float
    time_mode: Literal["nearest", "blend"]
    upstream_ssim: bool


class ChargedControls(ViewerControls):
    """`ViewerControls`, without the switches of photos where none are stored, and with ones for subject and background
    where the charge has both."""

    def __init__(self, times: Items[float], look: Look, start: StartCamera, photos: bool, branches: bool) -> None:
        super().__init__(times, look, start)
        self.branches = branches
        self.base.visible = self.residual.visible = photos
        if branches:
            self.subject = ViewerCheckbox("Subject", True)
            self.surroundings = ViewerCheckbox("Background", True)

    def hidden(self) -> list[int]:
        """Branches that the browser asking does not want to see: 0 the subject, 1 the background."""
        if not self.branches or not self.in_browser():
            return []
        return [branch for branch, box in enumerate((self.subject, self.surroundings)) if not box.value]


class ChargedModel(PictureModel):
    """See the module. ``metadata`` holds the ``store``.

    Attributes:
        frames: the charge in memory.
    """

    config: ChargedModelConfig
    controls: ChargedControls

    def populate_modules(self) -> None:
        """Open the charge; nothing but its manifest is read."""
        super().populate_modules()
        config, store = self.config, self.kwargs["metadata"]["store"]
        self.store: ChargedStore = store
        self.manifest = manifest = store.manifest
        self.times = list(manifest.times)
        self.settings = settings_of(config, store)
        start = StartCamera(manifest.start.position, manifest.start.middle, manifest.start.up)
        look = Look(self.settings.layers, backend=config.backend)
        self.controls = ChargedControls(
            self.times, look, start, manifest.stored_sources > 0, "branch" in manifest.dtypes
        )
        self.lpips = LpipsOrNothing()
        self._frames: ChargedFrames | None = None
        self._missing: set[int] = set()

    def _settings(self) -> Any:
        return self.settings

    def opened(self) -> ChargedFrames:
        """The frames; made at the first picture, on the device that the model lies on by then."""
        if self._frames is None or self._frames.device != self.device:
            self.close()
            config = self.config
            self._frames = ChargedFrames(self.store, config.cache_mb << 20, device=self.device, ahead=config.ahead)
        return self._frames

    def close(self) -> None:
        """Drop the frames and end the thread that loads them."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """None: there is nothing to train."""
        return {}

    def has_masks(self) -> bool:
        """Whether the stored photos have masks."""
        return any(photo.mask is not None for photo in self.manifest.eval_photos)

    def truth(self, batch: Dict[str, Any], background: Float[Tensor, "3"]) -> tuple[Tensor, Tensor, Tensor]:
        """As `PictureModel.truth`; of a whole scene, which draws what is behind its subject, the whole photo."""
        over, mask, valid = super().truth(batch, background)
        return (batch["image"].to(self.device) if self.controls.branches else over), mask, valid

    def subject_box(self, batch: Dict[str, Any]) -> tuple[int, int, int, int] | None:
        """The box that the manifest tells of a stored photo."""
        return batch.get("box")

    # ------------------------------------------------------------------ pictures

    def get_outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        """As `get_outputs_for_camera`.

        Raises:
            DataError: rays instead of a camera (``ns-render --render-nearest-camera``, ``ns-export pointcloud``).
        """
        if not isinstance(camera, Cameras):
            remedy = "Leave out --render-nearest-camera; of ns-export, cameras and tsdf work."
            raise DataError("camera", "", "is a bundle of rays; points are drawn.", remedy)
        return self.get_outputs_for_camera(camera)

    def source_rows(self, points: ChargedPoints, centre: Float[Tensor, "3"], view: int | None) -> list[int]:
        """The sources for a picture from ``centre`` (world), best first, as positions in ``points.views``.

        ``view`` is the recording's camera that is drawn, if it is one, as in `R4DVModel.nearest_views`.
        """
        settings = self.settings
        return choose_sources(
            centre.double().cpu().numpy(), np.asarray(points.centres), settings.sources, settings.source_metric,
            self.manifest.bounds.mean(axis=0), exclude=own_rows(points.views, view),
        )  # fmt: skip

    def source_names(self, frame: int, centre: Float[Tensor, "3"], view: int | None = None) -> list[str]:
        """Cameras whose photos colour a picture, best first. Raises DataError where the frame is damaged."""
        points = self.opened().points(frame)
        rows = self.source_rows(points, centre, view) if points.views else []
        return [self.manifest.views[points.views[row]].name for row in rows]

    def _picture(self, camera: Cameras, frame: int, time: float, box: OrientedBox | None) -> Dict[str, Tensor]:
        """``layers``: share of the layers in use."""
        look = self.controls.look()
        drawing = pinhole(camera.to(self.device), any_kind=self.controls.in_browser())
        view = int(camera.metadata["view_idx"]) if camera.metadata and "view_idx" in camera.metadata else None
        try:
            points, base = self.opened().get(frame, lambda points: self.source_rows(points, drawing.centre, view))
        except DataError as error:
            if not self.controls.in_browser():
                raise
            # An error would end the browser's rendering; the frames that are whole shall still play.
            self._complain(frame, error)
            points, base = ChargedPoints.none(self.device), None
        seen, window = self._draw(drawing, points, base, look, box)
        behind, accumulation = self.background(), seen.accumulation[..., None]
        depth = distances(window.of(drawing), seen)
        shape = drawing.height, drawing.width
        return {
            "rgb": window.paste(seen.color + (1 - accumulation) * behind, behind.expand(*shape, 3)),
            "accumulation": window.paste(accumulation, accumulation.new_zeros(1).expand(*shape, 1)),
            "depth": window.paste(depth, depth.max().expand(*shape, 1)),
            "layers": window.paste(
                seen.fragments[..., None] / (look.layers or 1), depth.new_zeros(1).expand(*shape, 1)
            ),
        }

    def _complain(self, frame: int, error: DataError) -> None:
        """Say once that a frame cannot be shown."""
        if frame not in self._missing:
            self._missing.add(frame)
            CONSOLE.print(f"[red]Frame {self.manifest.frames[frame]} stays empty: {escape(str(error))}", soft_wrap=True)

    def _draw(
        self, drawing: Drawing, points: ChargedPoints, base: Tensor | None, look: Look, box: OrientedBox | None
    ) -> tuple[Peeled, Window]:
        """Peel the part of the picture that has points; colours are made only for points in view."""
        least, w2c = self.settings.min_pixel_radius, drawing.w2c.to(points.xyz)
        centre, alpha = drawing.centre.to(points.xyz), points.alpha
        if box is not None:
            alpha = crop_alpha(alpha, points.xyz.t(), box)
        for branch in self.controls.hidden() if points.branch is not None else ():
            alpha = torch.where(points.branch == branch, 0.0, alpha)
        placed = torch.addmm(w2c[:3, 3, None], w2c[:3, :3], points.xyz)
        radius = points.radius * look.radius_scale
        xyz, coefficients = points.xyz, points.coefficients
        kept, window = in_view(placed, radius, alpha, drawing, least)
        if 2 * len(kept) < len(radius):
            placed, xyz, coefficients = (part.index_select(-1, kept) for part in (placed, xyz, coefficients))
            radius, alpha = radius.index_select(0, kept), alpha.index_select(0, kept)
            base = None if base is None else base.index_select(-1, kept)
        colour = shaded(
            xyz, coefficients, base, centre, self.manifest.sh_limit, show_base=look.base, show_residual=look.residual
        )
        part = window.of(drawing)
        fx, fy, cx, cy = (float(part.K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
        seen = peel(
            placed.t(), radius, alpha, colour.t(), fx=fx, fy=fy, cx=cx, cy=cy, height=part.height, width=part.width,
            layers=look.layers, near=NEAR, min_radius=least, backend=look.backend,  # type: ignore[arg-type]
        )  # fmt: skip
        return (solid(seen) if look.solid else seen), window

    def thumbnail(self, camera: Cameras) -> UInt8[np.ndarray, "h w 3"]:
        """A small drawing of what a camera [1] sees at its time, black where the frame is damaged: the viewer must open
        for those that are whole. The camera is made smaller."""
        longest = max(int(camera.width.max()), int(camera.height.max()))
        camera.rescale_output_resolution(min(THUMBNAIL / longest, 1.0))
        try:
            rgb = self.get_outputs_for_camera(camera)["rgb"]
        except DataError as error:
            self._complain(self.moment(camera)[0], error)
            rgb = torch.zeros(int(camera.height), int(camera.width), 3)
        return (rgb.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def settings_of(config: ChargedModelConfig, store: ChargedStore) -> Settings:
    """What to draw with.

    Raises:
        DataError: a number that means nothing.
    """
    manifest = store.manifest

    def chosen(name: str, stored: Any) -> Any:
        given = getattr(config, name)
        return stored if given is None else given

    found = Settings(
        chosen("layers", manifest.layers), chosen("sources", manifest.sources),
        chosen("source_metric", manifest.source_metric), chosen("min_pixel_radius", manifest.min_radius),
        chosen("background", manifest.background), chosen("time_mode", manifest.time_mode), config.upstream_ssim,
    )  # fmt: skip
    wrong = [
        (name, value, remedy)
        for name, value, allowed, remedy in (
            ("layers", found.layers, found.layers >= 1, "1 or more"),
            ("sources", found.sources, found.sources >= 1, "1 or more"),
            ("min-pixel-radius", found.min_pixel_radius, found.min_pixel_radius >= 0, "0 or more"),
            ("background", found.background, 0 <= found.background <= 1, "0 to 1"),
            ("cache-mb", config.cache_mb, config.cache_mb >= 0, "0 or more"),
            ("ahead", config.ahead, config.ahead >= 0, "0 or more"),
        )
        if not allowed
    ]
    for name, value, remedy in wrong:
        raise DataError(store.folder / "config.yml", f"pipeline.model.{name}", f"is {value}.", f"Give {remedy}.")
    return found
