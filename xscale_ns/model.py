"""XScale-NVS as a nerfstudio model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Tuple, Type

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing, image_metrics
from core_ns.raycast import CasterName
from xscale_ns.background import Background
from xscale_ns.field import SurfaceField, mean_over_hits
from xscale_ns.rays import image_pixels, pixel_rays
from xscale_ns.surface import Surface, SurfaceHits
from xscale_ns.viewer import ViewerControls


@dataclass
class XScaleModelConfig(ModelConfig):
    """Surface hash field on a fixed mesh."""

    _target: Type = field(default_factory=lambda: XScaleModel)
    enable_collider: bool = False
    """Rays end on the mesh; there are no near and far planes."""
    mesh_path: Optional[Path] = None
    """The mesh, in the world frame of the data set's cameras. Default: the one the dataparser names."""
    caster: CasterName = "auto"
    """First-hit ray caster. auto: embree on CPU, warp on CUDA."""
    levels: int = 16
    """Levels of the hash grid."""
    features_per_level: int = 4
    """Features per level."""
    log2_table: int = 21
    """log2 of the most entries per level."""
    base_resolution: int = 16
    """Coarsest grid resolution."""
    finest_resolution: int = 0
    """Finest grid resolution; 0: one cell per pixel on the median training hit."""
    highest_resolution: int = 2**17
    """Upper bound of the automatic finest resolution."""
    per_level_scale: Optional[float] = None
    """Ratio of neighbouring levels; overrides finest_resolution."""
    interpolation: Literal["smoothstep", "linear"] = "smoothstep"
    """Blending of grid corners."""
    normalization: Literal["isotropic", "per-axis"] = "isotropic"
    """Grid cells are cubes, or stretched with the bounding box (as the original does)."""
    encoding_backend: Literal["auto", "torch", "tinycudann"] = "auto"
    """Hash grid implementation; auto takes tinycudann where it is installed and a GPU is there."""
    head: Literal["sh-mlp", "film"] = "sh-mlp"
    """Shading network: spherical harmonics with a small MLP, or the original's FiLM-SIREN."""
    head_linear: bool = False
    """sh-mlp only: treat the network's output as linear light, as the original does."""
    exposure_dim: int = 4
    """Length of the exposure code of each training view; 0: none."""
    light_dim: int = 8
    """film only: length of the lighting code."""
    num_lights: int = 1
    """film only: number of lighting codes."""
    background: Literal["env", "white", "black", "color"] = "env"
    """What is seen where a ray misses the mesh: a learned environment, or a constant."""
    background_color: Tuple[float, float, float] = (1.0, 1.0, 1.0)
    """The constant of --background color, sRGB."""
    displacement: float = 0.0
    """Random shift of training points along their ray, in finest grid cells (0.5: up to half a cell both ways)."""
    eval_sub_samples: int = 4
    """Rays per rendered pixel; alpha is the share that hits."""
    moving_sub_samples: int = 1
    """Rays per pixel while the viewer's camera moves."""
    output_face_id: bool = False
    """Also output the face index of each pixel's first sub-sample."""
    eval_num_rays_per_chunk: int = 1 << 16
    """Rays rendered at once."""
    mesh_opacity: float = 0.6
    """Opacity of the proxy mesh in the viewer, when shown."""


class XScaleModel(Model):
    """See the config. Metadata must hold ``surface``; the data manager puts it there."""

    config: XScaleModelConfig

    def populate_modules(self) -> None:
        """Build field and background around the data manager's surface.

        Raises:
            DataError: the data manager provides no mesh.
        """
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        surface = metadata.get("surface")
        if not isinstance(surface, Surface):
            raise DataError("config", "datamanager", "provides no mesh.", "Use the xscale-nvs data manager.")
        self.surface = surface
        config = self.config
        finest = config.finest_resolution or min(metadata["finest_resolution"], config.highest_resolution)
        if config.per_level_scale is not None:
            finest = None
        self.field = SurfaceField(
            surface.lower,
            surface.upper,
            self.num_train_data,
            levels=config.levels,
            features=config.features_per_level,
            log2_table=config.log2_table,
            base_resolution=config.base_resolution,
            finest_resolution=finest,
            per_level_scale=config.per_level_scale,
            interpolation=config.interpolation,
            normalization=config.normalization,
            head=config.head,
            exposure_dim=config.exposure_dim,
            light_dim=config.light_dim,
            num_lights=config.num_lights,
            linear_output=config.head_linear,
            encoding_backend=config.encoding_backend,
        )
        self.finest_resolution = self.field.grid.layout[-1].resolution
        entries = sum(level.entries for level in self.field.grid.layout)
        CONSOLE.print(
            f"Hash grid: {config.levels} levels, {config.base_resolution} to {self.finest_resolution}, "
            f"{entries * config.features_per_level / 1e6:.1f} M features; "
            f"mesh: {len(surface.faces)} faces, caster {surface.caster.name}"
        )
        self.background = Background(config.background, config.background_color)
        self.lpips = LpipsOrNothing()
        self.train_names: list[str] = list(metadata.get("train_names", []))
        self.controls = ViewerControls(self)

    def get_param_groups(self) -> Dict[str, list[Parameter]]:
        """``hash``, ``head``, and ``exposure``, ``lighting``, ``background`` where they exist."""
        groups = {
            "hash": list(self.field.grid.parameters()),
            "head": list(self.field.head.parameters()),
            "exposure": list(self.field.exposure.parameters()) if self.field.exposure is not None else [],
            "lighting": list(self.field.lighting.parameters()) if self.field.lighting is not None else [],
            "background": list(self.background.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    # ------------------------------------------------------------------ rendering

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """Render pixels.

        Args:
            ray_bundle: rays of shape [N] (one per pixel) or [N, S] (S sub-samples per pixel). Where
                ``metadata["t"]`` holds known hit distances, [N, S, 1], no ray is cast.

        Returns:
            ``rgb`` [N, 3], ``accumulation`` [N, 1] (share of sub-samples that hit), ``depth`` [N, 1] (mean distance
            along the hitting rays), ``normal`` [N, 3] (mapped to 0..1).
        """
        origins = ray_bundle.origins if ray_bundle.origins.ndim == 3 else ray_bundle.origins[:, None]
        directions = ray_bundle.directions.reshape(origins.shape)
        known = (ray_bundle.metadata or {}).get("t")
        views = ray_bundle.camera_indices
        train_views = views.reshape(len(origins), -1)[:, 0] if self.training and views is not None else None
        return self.render_rays(origins, directions, train_views=train_views, known_t=known)

    def render_rays(
        self,
        origins: Float[Tensor, "n s 3"],
        directions: Float[Tensor, "n s 3"],
        train_views: Tensor | None = None,
        known_t: Tensor | None = None,
        obb_box: OrientedBox | None = None,
    ) -> Dict[str, Tensor]:
        """See `get_outputs`. ``train_views`` selects exposure codes; without it the mean code (or the viewer's)."""
        pixels, samples = origins.shape[:2]
        flat_origins, flat_directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        hits = self._hits(flat_origins, flat_directions, known_t, obb_box)
        hit = hits.hit.reshape(pixels, samples)
        alpha = hit.float().mean(dim=1, keepdim=True)
        seen = hit.any(dim=1)
        mean_direction = torch.nn.functional.normalize(directions.sum(dim=1), dim=-1)
        background = self._background(mean_direction)
        points = hits.points[hits.hit]
        if self.training and self.config.displacement > 0:
            cell = self.surface.extent / self.finest_resolution
            shift = (torch.rand(len(points), 1, device=points.device) * 2 - 1) * self.config.displacement * cell
            points = points + flat_directions[hits.hit] * shift
        features = mean_over_hits(self.field.features(points), hit[seen])
        towards = torch.nn.functional.normalize((directions * hit[..., None]).sum(dim=1)[seen], dim=-1)
        codes = self.field.codes(
            train_views[seen] if train_views is not None else None,
            None if self.training else self.controls.exposure_code(),
            self.controls.light_index(),
        )
        colour = self.field(features, towards, codes)
        if self.controls.geometry_only() and not self.training:
            colour = self._headlight(mean_over_hits(hits.normals[hits.hit], hit[seen]), towards)
        outputs = self._composite(colour, background, alpha, seen)
        t = mean_over_hits(hits.t[hits.hit][:, None], hit[seen])
        far = t.max() if len(t) else torch.tensor(self.surface.extent, device=alpha.device)
        # Misses lie behind every hit: depth layering in the viewer would else draw them in front.
        outputs["depth"] = far.expand(pixels, 1).clone().index_put((seen.nonzero()[:, 0],), t)
        normals = torch.nn.functional.normalize(mean_over_hits(hits.normals[hits.hit], hit[seen]), dim=-1)
        outputs["normal"] = torch.zeros(pixels, 3, device=alpha.device).index_put(
            (seen.nonzero()[:, 0],), normals * 0.5 + 0.5
        )
        if self.config.output_face_id:
            outputs["face_id"] = hits.face.reshape(pixels, samples)[:, :1].float()
        return outputs

    def _hits(
        self, origins: Tensor, directions: Tensor, known_t: Tensor | None, obb_box: OrientedBox | None
    ) -> SurfaceHits:
        if known_t is not None:
            t = known_t.reshape(-1)
            hit = torch.isfinite(t)
            # Training needs no normals: face 0 stands in, its normal is never read.
            return self.surface.locate(origins, directions, hit, t, torch.zeros_like(t, dtype=torch.int64))
        if obb_box is not None:
            box = OrientedBox(*(part.to(origins.device) for part in (obb_box.R, obb_box.T, obb_box.S)))
            return self.surface.first_hits_inside(origins, directions, box.within)
        return self.surface.first_hits(origins, directions)

    def _background(self, directions: Tensor) -> Tensor:
        mode = self.controls.background_mode()
        if self.training or mode in ("trained", None):
            return self.background(directions)
        shade = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "magenta": (1.0, 0.0, 1.0)}[mode]
        return torch.tensor(shade, device=directions.device).expand_as(directions)

    @staticmethod
    def _headlight(normals: Tensor, directions: Tensor) -> Tensor:
        """Grey shading by the angle to the viewer: the geometry without its colours."""
        cosine = -(torch.nn.functional.normalize(normals, dim=-1) * directions).sum(-1, keepdim=True)
        return (0.15 + 0.85 * cosine.clamp(0, 1)).expand(-1, 3)

    def _composite(self, colour: Tensor, background: Tensor, alpha: Tensor, seen: Tensor) -> Dict[str, Tensor]:
        full = torch.zeros_like(background).index_put((seen.nonzero()[:, 0],), colour.to(background.dtype))
        # Where anything was hit, the background is a constant: only pure misses train it (spec xscale 5).
        behind = torch.where(seen[:, None], background.detach(), background)
        return {"rgb": alpha * full + (1 - alpha) * behind, "accumulation": alpha}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """Render one camera of any nerfstudio type; maps [H, W, C]. A crop box looks through what lies in front."""
        from xscale_ns.datamanager import sub_pixel_offsets

        camera = camera.reshape((1,)) if not camera.shape else camera
        camera = camera.to(self.device)
        height, width = int(camera.height.item()), int(camera.width.item())
        samples = self.controls.sub_samples(self.config.eval_sub_samples, self.config.moving_sub_samples)
        offsets = sub_pixel_offsets(1, samples, False, torch.Generator())[0]
        rows_at_once = max(1, self.config.eval_num_rays_per_chunk // (width * samples))
        parts: list[Dict[str, Tensor]] = []
        for first in range(0, height, rows_at_once):
            rows = range(first, min(first + rows_at_once, height))
            centres = image_pixels(width, rows, (0.0, 0.0)).to(self.device)
            points = (centres[:, None] + offsets.to(self.device)).reshape(-1, 2)
            view = torch.zeros(len(points), dtype=torch.int64, device=self.device)
            origins, directions = pixel_rays(camera, view, points)
            shape = (len(centres), samples, 3)
            parts.append(self.render_rays(origins.reshape(shape), directions.reshape(shape), obb_box=obb_box))
        outputs = {key: torch.cat([part[key] for part in parts]).reshape(height, width, -1) for key in parts[0]}
        # Chunks know only their own farthest hit.
        hit = outputs["accumulation"] > 0
        if hit.any():
            outputs["depth"] = torch.where(hit, outputs["depth"], outputs["depth"][hit].max())
        return outputs

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """RGBA [H, W, 4], alpha being the hit share."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

    # ------------------------------------------------------------------ losses and metrics

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """Mean absolute error over surface pixels, and over pure misses where the background learns (spec 3.5)."""
        truth = batch["image"].to(self.device)[..., :3]
        error = (outputs["rgb"] - truth).abs().mean(dim=-1)
        seen = outputs["accumulation"][:, 0] > 0
        count = torch.tensor(float(len(error)), device=self.device)
        losses = {"surface": error[seen].sum() / count.clamp_min(1)}
        if self.background.is_learned:
            losses["background"] = error[~seen].sum() / count.clamp_min(1)
        return losses

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """PSNR over the batch's surface pixels, and the share of pixels that hit."""
        truth = batch["image"].to(self.device)[..., :3]
        seen = outputs["accumulation"][:, 0] > 0
        mse = (outputs["rgb"].detach()[seen] - truth[seen]).square().mean() if seen.any() else torch.tensor(1.0)
        return {"psnr": -10 * torch.log10(mse.clamp_min(1e-10)), "coverage": seen.float().mean()}

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Full-frame, masked and white-background metrics (spec xscale 5); truth, render and error side by side."""
        truth = batch["image"].to(self.device)[..., :3]
        rgb = outputs["rgb"].clamp(0, 1)
        hit = outputs["accumulation"][..., 0] > 0.5
        if "mask" in batch:
            valid = batch["mask"].to(self.device)[..., 0].bool()
            # Masked-out pixels count nowhere: they show the truth and are no hits.
            rgb, hit = torch.where(valid[..., None], rgb, truth), hit & valid
        metrics = image_metrics(rgb, truth, hit, self.lpips)
        error = (rgb - truth).abs()
        accumulation = outputs["accumulation"].expand(-1, -1, 3)
        return metrics, {"img": torch.cat([truth, rgb, error], dim=1), "accumulation": accumulation}
