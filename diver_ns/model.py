"""DIVeR as a nerfstudio model: one parameter set that changes its size between the stages of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, NoReturn, Optional, Tuple, Type

import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.viewer.viewer_elements import ViewerText
from torch import Tensor
from torch.nn import Parameter

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing, image_metrics
from diver_ns import stages
from diver_ns.compositing import composite, mean_distance, sparsity
from diver_ns.deploy_model import DeployModel, make_deploy
from diver_ns.field import CHANNELS, Decoder, VertexIndex, VertexNetwork, compact
from diver_ns.grid import Grid
from diver_ns.integrator import chord_weights, corner_ids, integrate
from diver_ns.occupancy import active_vertices, kept_vertices, pack_mask, unpack_mask
from diver_ns.realtime import render_rays
from diver_ns.stages import Stage, StagePlan
from diver_ns.voxel_walk import Segments, walk


@dataclass
class DiverModelConfig(ModelConfig):
    """Voxel grid of features, integrated exactly along each ray."""

    _target: Type = field(default_factory=lambda: DiverModel)
    enable_collider: bool = False
    """Rays are cut by the grid's cube, not by near and far planes."""
    resolution: int = 256
    """Voxels per axis of the fine grid."""
    coarse_resolution: int = 64
    """Voxels per axis of the coarse stage; its occupancy limits the fine stages."""
    decoder_width: Literal[64, 32] = 64
    """64: DIVeR64; 32: DIVeR32, made for real time."""
    stage_steps: Tuple[int, int, int] = (20000, 40000, 40000)
    """Steps of the coarse, implicit and explicit stage. Another --max-num-iterations rescales them in proportion."""
    coarse_rays: int = 1024
    """Rays per step of the coarse stage."""
    fine_rays: int = 8192
    """Rays per step afterwards."""
    implicit_width: int = 512
    """Width of the vertex network."""
    implicit_depth: int = 8
    """Layers of the vertex network."""
    sparsity_weight: float = 1e-5
    """Weight of the penalty on density, log(1 + 2 sigma^2)."""
    final_rate_share: float = 1.0
    """Learning rate at the end of each stage over that at its start; 1 keeps it constant, as the original does."""
    threshold: float = 1e-2
    """Voxels whose blending weight stays below this in every training ray count as empty."""
    prune_stride: int = 1
    """The final pruning looks along every n-th row and column of rays of each photo."""
    stop: float = 1e-2
    """Real-time renderer: transmittance at which a ray ends; opacities below it are skipped."""
    renderer: Literal["realtime", "exact"] = "realtime"
    """What draws pictures for viewer and ns-render. ns-eval takes the exact path (--pipeline.eval-renderer)."""
    parity: bool = False
    """Exact path: assign rays that run along a grid plane as the original does (imported weights)."""
    rays_per_pass: int = 16384
    """Rays at once in the passes between the stages."""
    eval_num_rays_per_chunk: int = 1 << 14
    """Rays rendered at once."""
    seed: int = 9
    """Of the networks that later stages start with."""

    @property
    def sdf_field(self) -> NoReturn:
        """What ``ns-export marching-cubes`` asks for, only to fail with a traceback; it gets one line instead."""
        raise SystemExit("diver has no distance field. Use ns-diver export (mesh of the occupancy) or ns-export tsdf.")


class DiverModel(Model):
    """See the config. Metadata must hold ``grid_side``, ``grid_center`` and ``background`` [3] (the data manager's).

    Attributes:
        grid: the voxel grid of the present stage.
        stage: what the parameters are at present.
        plan: steps of the stages of this run.
        mask: occupied voxels [M, M, M], indexed z, y, x, of the grid or a coarser one; all true in the coarse stage.
        vertex_ids: ascending ids of the stored vertices, row by row of ``voxels``.
    """

    config: DiverModelConfig
    background: Float[Tensor, "3"]
    stage_code: Int[Tensor, ""]
    plan_steps: Int[Tensor, "3"]
    mask_bits: UInt8[Tensor, "b"]
    mask_size: Int[Tensor, ""]
    vertex_ids: Int[Tensor, "v"]

    def populate_modules(self) -> None:
        """A coarse table and decoder; the vertex network waits for its stage.

        Raises:
            DataError: the coarse grid does not divide the fine one.
        """
        super().populate_modules()
        config, metadata = self.config, self.kwargs["metadata"]
        if config.resolution % config.coarse_resolution:
            raise DataError(
                "config", "pipeline.model.coarse-resolution",
                f"{config.coarse_resolution} does not divide the resolution {config.resolution}.", "Choose a divisor.",
            )  # fmt: skip
        self.cube = Grid(config.resolution, float(metadata["grid_side"]), tuple(metadata["grid_center"]))
        self.register_buffer("background", torch.tensor(metadata["background"], dtype=torch.float32))
        # All that later stages decide is a tensor, so that it lives in the checkpoint (nothing else loads safely).
        coarse = config.coarse_resolution
        self.register_buffer("stage_code", torch.tensor(int(Stage.COARSE)))
        self.register_buffer("plan_steps", torch.tensor(config.stage_steps))
        self.register_buffer("mask_bits", pack_mask(torch.ones(coarse, coarse, coarse, dtype=torch.bool)))
        self.register_buffer("mask_size", torch.tensor(coarse))
        self.register_buffer("vertex_ids", torch.arange((coarse + 1) ** 3))
        self.voxels = Parameter(torch.randn((coarse + 1) ** 3, CHANNELS) * 1e-2)
        self.decoder = Decoder(config.decoder_width, CHANNELS)
        self.implicit = VertexNetwork(config.implicit_width, config.implicit_depth, channels=CHANNELS)
        self._network_shapes = {f"implicit.{name}": value.shape for name, value in self.implicit.named_parameters()}
        self._empty_implicit()
        self.register_load_state_dict_pre_hook(self._take_shapes)
        self.register_load_state_dict_post_hook(lambda *_: self._check_loaded())
        self.lpips = LpipsOrNothing()
        self.fed: Stage | None = None
        self.exact = False
        self._deploy: tuple[Any, DeployModel] | None = None
        self.stage_text = ViewerText("Stage", "", disabled=True)
        self._refresh()

    # ------------------------------------------------------------------ stages

    def _refresh(self) -> None:
        """Derive stage, plan, grid, mask and index from the buffers."""
        self.stage, self.plan = Stage(int(self.stage_code)), StagePlan(*self.plan_steps.tolist())
        coarse = self.stage == Stage.COARSE
        self.grid = self.cube.at(self.config.coarse_resolution if coarse else self.config.resolution)
        self.mask: Bool[Tensor, "m m m"] = unpack_mask(self.mask_bits, int(self.mask_size))
        self.index = VertexIndex.from_ids(self.vertex_ids, self.grid.resolution)
        self._deploy = None
        text = f"{self.stage.name.lower()}, {self.grid.resolution}^3, {len(self.vertex_ids):,} vertices"
        self.stage_text.value = text

    def _apply(self, fn: Any, recurse: bool = True) -> DiverModel:
        """Moving the model (``to``, ``cuda``) also moves what is derived from its buffers."""
        super()._apply(fn, recurse)
        self._refresh()
        return self

    def _set(self, stage: Stage, mask: Bool[Tensor, "m m m"], ids: Int[Tensor, "v"], table: Tensor) -> None:
        self.stage_code.fill_(int(stage))
        self.mask_bits, self.mask_size = pack_mask(mask), torch.tensor(len(mask), device=self.mask_size.device)
        self.vertex_ids = ids
        # The optimiser and the resume path hold the Parameter: its data changes, the object never does (spec 5.2).
        self.voxels.data, self.voxels.grad = table, None
        self._refresh()

    def set_plan(self, plan: StagePlan) -> None:
        """Take another plan of the stages' steps; it is part of the checkpoint."""
        self.plan_steps.copy_(torch.tensor((plan.coarse, plan.implicit, plan.explicit)))
        self.plan = plan

    def start_implicit(self, mask: Bool[Tensor, "m m m"], ids: Int[Tensor, "v"]) -> None:
        """Drop the coarse table; fresh decoder and vertex network on the active vertices."""
        fresh = Decoder(self.config.decoder_width, CHANNELS)
        for mine, new in zip(self.decoder.parameters(), fresh.parameters(), strict=True):
            mine.data, mine.grad = new.data.to(mine.device), None
        network = VertexNetwork(self.config.implicit_width, self.config.implicit_depth, channels=CHANNELS)
        for mine, new in zip(self.implicit.parameters(), network.parameters(), strict=True):
            mine.data, mine.grad = new.data.to(mine.device), None
        self._set(Stage.IMPLICIT, mask, ids, self.voxels.data.new_zeros(0, CHANNELS))

    def start_explicit(self, table: Float[Tensor, "v c"]) -> None:
        """Take the tabulated features; the vertex network is done."""
        self._empty_implicit()
        self._set(Stage.EXPLICIT, self.mask, self.vertex_ids, table)

    @torch.no_grad()
    def prune(self, keep: Bool[Tensor, "n n n"]) -> None:
        """Keep only these voxels and the vertices they touch."""
        ids = kept_vertices(keep)
        rows = self.index.rows(ids)
        self._set(Stage.PRUNED, keep, ids, self.voxels.data[rows])

    def _empty_implicit(self) -> None:
        for parameter in self.implicit.parameters():
            parameter.data, parameter.grad = parameter.data.new_zeros(0), None

    def _take_shapes(self, _: Any, state: Dict[str, Tensor], prefix: str, *__: Any) -> None:
        """Give table, mask and vertex network the sizes of the checkpoint that is about to be loaded.

        All else keeps its size, and the network has its own or none: torch refuses a checkpoint of another model.
        """
        for name, mine in [*self.named_parameters(), *self.named_buffers()]:
            theirs = state.get(prefix + name)
            if theirs is None or theirs.shape == mine.shape:
                continue
            rows = name in ("voxels", "vertex_ids", "mask_bits") and theirs.shape[1:] == mine.shape[1:]
            if rows or (name in self._network_shapes and theirs.shape in (self._network_shapes[name], (0,))):
                mine.data = mine.data.new_zeros(theirs.shape)

    def _check_loaded(self) -> None:
        """Follow the loaded buffers.

        Raises:
            DataError: they contradict one another or the configured resolution.
        """
        try:
            self._refresh()
            if self.stage != Stage.IMPLICIT and len(self.voxels) != len(self.vertex_ids):
                raise ValueError(f"{len(self.voxels)} rows of features for {len(self.vertex_ids)} vertices.")
            if bool((self.index.rows(active_vertices(self.mask, self.grid.resolution)) < 0).any()):
                raise ValueError(f"corners of occupied voxels are missing at resolution {self.grid.resolution}.")
        except ValueError as error:
            raise DataError(
                "checkpoint", "voxels", f"does not fit this model: {error}", "Use the config.yml that lies beside it."
            ) from error

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """``decoder``, ``implicit``, ``voxels``, whatever the stage."""
        return {
            "decoder": list(self.decoder.parameters()),
            "implicit": list(self.implicit.parameters()),
            "voxels": [self.voxels],
        }

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """Change the stage before a step that needs it; prune after the last step, before it is saved."""
        manager: Any = attributes.pipeline.datamanager  # type: ignore[union-attr]
        trainer: Any = attributes.trainer
        last = -1

        def before(step: int) -> None:
            nonlocal last
            if last < 0:
                last = trainer._start_step + trainer.config.max_num_iterations - 1
                stages.make_plan(self, step, last + 1)
            stages.catch_up(self, manager, attributes.optimizers, step)

        def after(step: int) -> None:
            if step == last:
                stages.finish(self, manager, attributes.optimizers)

        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before, update_every_num_iters=1),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after, update_every_num_iters=1),
        ]

    # ------------------------------------------------------------------ rendering

    def features_along(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        t_near: Tensor | float = 0.0,
        t_far: Tensor | float = float("inf"),
    ) -> tuple[Segments, Float[Tensor, "s c"]]:
        """Pieces of world rays inside occupied voxels, and the mean feature along each (spec diver 3.1 and 3.2)."""
        origins_u, directions_u = self.grid.to_grid(origins, directions)
        mask = None if self.stage == Stage.COARSE else self.mask
        resolution = self.grid.resolution
        segments = walk(
            origins_u, directions_u, resolution, t_near=t_near, t_far=t_far, occupied=mask, parity=self.config.parity
        )
        weights = chord_weights(segments.u_in, segments.u_out)
        ids = corner_ids(segments.voxel, resolution)
        if self.stage != Stage.IMPLICIT:
            return segments, integrate(self.voxels, self.index.rows(ids), weights)
        # Numbering rows of the active vertices is cheaper than numbering all of the grid's.
        used, rows = compact(self.index.rows(ids), len(self.index))
        return segments, integrate(self.implicit(self.vertex_ids[used], resolution), rows, weights)

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """The exact path: every occupied voxel of every ray.

        Returns:
            ``rgb`` [N, 3], ``accumulation`` [N, 1], ``depth`` [N, 1] (mean distance along the ray under the blending
            weights, 0 where nothing is met), ``hits`` [N, 1] (voxels evaluated); in training also ``sparsity``.
        """
        origins, directions = ray_bundle.origins, ray_bundle.directions
        count = len(origins)
        near = ray_bundle.nears[:, 0] if ray_bundle.nears is not None else 0.0
        far = ray_bundle.fars[:, 0] if ray_bundle.fars is not None else float("inf")
        segments, features = self.features_along(origins, directions, near, far)
        raw_sigma, rgb = self.decoder(features, directions, segments.ray)
        middle = (segments.t_in + segments.t_out) / 2
        out = composite(raw_sigma, rgb, middle, segments.ray, count, self.background)
        hits = torch.bincount(segments.ray, minlength=count)
        outputs = {
            "rgb": out.rgb,
            "accumulation": out.accumulation[:, None],
            "depth": mean_distance(out.depth, out.accumulation)[:, None],
            "hits": hits[:, None].float(),
        }
        if self.training:
            outputs["sparsity"] = sparsity(raw_sigma, segments.ray, count)
        return outputs

    def deploy(self) -> DeployModel:
        """The present table and decoder as the real-time renderer takes them; made anew when training changed them."""
        version = (self.voxels._version, self.decoder.point[0].weight._version, self.voxels.data_ptr())
        if self._deploy is None:
            self._deploy = (
                version,
                make_deploy(self.grid, self.mask, self.vertex_ids, self.voxels.data, self.decoder, self.background),
            )
        elif self._deploy[0] != version:
            self._deploy = version, self._deploy[1].with_table(self.voxels.data, self.decoder)
        return self._deploy[1]

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """Render one camera of any nerfstudio type, inside the crop box if one is given; maps [H, W, C]."""
        camera = camera.reshape((1,)) if not camera.shape else camera
        bundle = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        return self.get_outputs_for_camera_ray_bundle(bundle)

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Dict[str, Tensor]:
        """Render a bundle [H, W] in chunks; exactly where that is asked for or there is no table yet."""
        height, width = camera_ray_bundle.origins.shape[:2]
        flat = camera_ray_bundle.flatten()
        exact = self.exact or self.config.renderer == "exact" or self.stage == Stage.IMPLICIT
        parts: List[Dict[str, Any]] = []
        for first in range(0, height * width, self.config.eval_num_rays_per_chunk):
            rays = flat[first : first + self.config.eval_num_rays_per_chunk].to(self.device)
            parts.append(self.forward(rays) if exact else self._render_realtime(rays))
        names = [name for name in parts[0] if name != "sparsity"]
        maps = {name: torch.cat([part[name] for part in parts]).reshape(height, width, -1) for name in names}
        # The colour that viewer and ns-render put behind a crop box.
        behind = renderers.BACKGROUND_COLOR_OVERRIDE
        if behind is not None:
            maps["rgb"] = maps["rgb"] + (1 - maps["accumulation"]) * (behind.to(self.device) - self.background)
        return maps

    def _render_realtime(self, rays: RayBundle) -> Dict[str, Tensor]:
        near = rays.nears[:, 0] if rays.nears is not None else 0.0
        far = rays.fars[:, 0] if rays.fars is not None else float("inf")
        stop = self.config.stop
        out = render_rays(self.deploy(), rays.origins, rays.directions, t_near=near, t_far=far, stop=stop, skip=stop)
        return out | {"depth": mean_distance(out["depth"], out["accumulation"])}

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """RGBA [H, W, 4], straight alpha: the background is taken out of the colour."""
        alpha = outputs["accumulation"]
        colour = (outputs[output_name] - (1 - alpha) * self.background) / alpha.clamp_min(1e-6)
        return torch.cat([colour.clamp(0, 1), alpha], dim=-1)

    # ------------------------------------------------------------------ losses and metrics

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """Mean squared error over all rays and channels, and the sparsity of raw densities (spec diver 3.5)."""
        losses = {"rgb": (outputs["rgb"] - batch["image"].to(self.device)).square().mean()}
        if "sparsity" in outputs:
            losses["sparsity"] = self.config.sparsity_weight * outputs["sparsity"]
        return losses

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """PSNR of the batch, voxels evaluated per ray, and the stage."""
        mse = (outputs["rgb"].detach() - batch["image"].to(self.device)).square().mean()
        return {
            "psnr": -10 * torch.log10(mse.clamp_min(1e-10)),
            "voxels_per_ray": outputs["hits"].mean(),
            "stage": torch.tensor(float(self.stage)),
        }

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Full-frame metrics against the photo on the model's background; truth, render and error side by side."""
        truth, rgb = self.composited(batch["image"].to(self.device)), outputs["rgb"].clamp(0, 1)
        if "mask" in batch:
            valid = batch["mask"].to(self.device)[..., 0].bool()
            rgb = torch.where(valid[..., None], rgb, truth)
        metrics = image_metrics(rgb, truth, None, self.lpips)
        pictures = {"img": torch.cat([truth, rgb, (rgb - truth).abs()], dim=1)}
        return metrics, pictures | {"accumulation": outputs["accumulation"].expand(-1, -1, 3)}

    def composited(self, image: Float[Tensor, "h w c"]) -> Float[Tensor, "h w 3"]:
        """A photo on the model's background, if it has alpha."""
        if image.shape[-1] == 3:
            return image
        return image[..., :3] * image[..., 3:] + (1 - image[..., 3:]) * self.background
