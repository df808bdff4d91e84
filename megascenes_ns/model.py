"""MegaScenes NVS as a nerfstudio model: pairs in training, cameras in the viewer (spec megascenes 4, 6, 8.2)."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model
from torch import Tensor, nn
from torch.nn import Parameter

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing, image_metrics
from megascenes_ns.batches import Draws, PairBatch, StepInputs, training_draws
from megascenes_ns.conditioning import condition
from megascenes_ns.ema import WeightMean
from megascenes_ns.latent_cache import LatentCache, encode_photos, frozen_digest, stacked
from megascenes_ns.model_config import MegaScenesModelConfig
from megascenes_ns.networks import Encoded, Networks
from megascenes_ns.noise_schedule import add_noise
from megascenes_ns.optimizers import CC_PROJECTION, UNET
from megascenes_ns.view_outputs import rgba
from megascenes_ns.viewing import Viewing


class MegaScenesModel(Model):
    """See the config. A training step takes `StepInputs`, a picture takes a camera of the canonical world.

    Attributes:
        networks: those that train, and the frozen ones.
        mean: running means of the trained weights, or None.
        viewing: pictures and the viewer's panel; the pipeline gives it the references.
    """

    config: MegaScenesModelConfig

    def populate_modules(self) -> None:
        """Networks from the config's weights, or fresh ones by its seed."""
        super().populate_modules()
        config = self.config
        channels = config.sizes().unet.in_channels
        if config.weights is None:
            self.networks = Networks.fresh(config.sizes(), config.seed)
        else:
            from megascenes_ns.weights_folder import load

            self.networks = load(config.weights, channels)
        self.networks.train()
        self.networks.unet.requires_grad_(True)
        self.networks.cc_projection.requires_grad_(config.train_cc_projection)
        if config.checkpointing:
            self.networks.unet.enable_gradient_checkpointing()
        if config.channels_last:
            self.networks.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.compile:
            self.networks.unet.compile()
        self.mean: WeightMean | None = None
        if config.ema_decay > 0:
            self.mean = WeightMean(config.ema_decay, **self._trained())
        digest = bytes.fromhex(frozen_digest(self.networks))
        self.register_buffer("frozen_digest", torch.tensor(list(digest), dtype=torch.uint8))
        self.viewing = Viewing(
            config.view, config.sampling, config.uncond(), config.picture, config.squash(), config.precision
        )
        # Not a module: its network belongs in no checkpoint.
        self.lpips = LpipsOrNothing()
        # Modules outside the module tree: the frozen networks must not be found twice.
        self._sampling: list[Networks] = []

    @property
    def cells(self) -> int:
        """Side of the latents."""
        return self.config.picture // self.networks.sizes.shrink

    def _trained(self) -> dict[str, nn.Module]:
        return {UNET: self.networks.unet, CC_PROJECTION: self.networks.cc_projection}

    def sampling_networks(self) -> Networks:
        """The networks that pictures are drawn with: the means where there are any."""
        if self.mean is None:
            return self.networks
        if not self._sampling:
            both = Networks.__new__(Networks)
            nn.Module.__init__(both)
            both.sizes = self.networks.sizes
            both.unet, both.cc_projection = self.mean.unet, self.mean.cc_projection  # pyright: ignore
            both.vae, both.image_encoder = self.networks.vae, self.networks.image_encoder
            self._sampling.append(both.eval())
        return self._sampling[0]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the networks compute in."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """``unet``, and ``cc_projection`` where it trains."""
        groups = {name: [each for each in part.parameters() if each.requires_grad] for name, part in
                  self._trained().items()}  # fmt: skip
        return {name: parameters for name, parameters in groups.items() if parameters}

    def get_training_callbacks(self, attrs: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """The means follow after every step."""
        if self.mean is None:
            return []
        return [
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.follow, update_every_num_iters=1)
        ]

    def follow(self, step: int) -> None:
        """Update the means with the weights of a step."""
        assert self.mean is not None
        self.mean.update(step, **self._trained())

    # ------------------------------------------------------------------ training

    @torch.no_grad()
    def inputs(self, batch: PairBatch, draws: Draws, cache: LatentCache) -> StepInputs:
        """Everything that touches no trained weight: latents of photos not seen before, noise, what is left out.

        The target's latent is a scaled sample, the reference's the unscaled mode (spec megascenes 4.1).

        Args:
            batch: of the data manager.
            draws: for its samples.
            cache: where new latents are kept.
        """
        device = self.device
        # In float32 whatever the precision: once per photo, and precomputed latents are no others.
        new = encode_photos(self.networks, cache, list(batch.photos.items()), self.config.encode_batch)
        known = {**batch.latents, **new}
        _, reference = stacked([known[key] for key in batch.references], device)
        target, _ = stacked([known[key] for key in batch.targets], device)
        here = Draws(*(each.to(device) for each in draws))
        return StepInputs(
            reference=reference.latent.masked_fill(here.drop_latent[:, None, None, None], 0),
            embedding=reference.embedding.masked_fill(here.drop_embedding[:, None], 0),
            target=target.target(here.posterior),
            pose=torch.from_numpy(batch.pose).to(device),
            low=None if batch.low is None else torch.from_numpy(batch.low).to(device),
            times=here.times,
            noise=here.noise,
        )

    def training_inputs(self, batch: PairBatch, cache: LatentCache) -> StepInputs:
        """`inputs` with the draws of the batch's update."""
        config = self.config
        return self.inputs(batch, training_draws(batch, self.cells, config.seed, config.condition_dropout), cache)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: StepInputs
    ) -> Dict[str, Tensor]:
        """One step's prediction: everything that touches a trained weight, since data parallelism wraps this call.

        Returns:
            ``predicted`` and ``noise``, [b, 4, l, l], float32.
        """
        with self.autocast():
            given = condition(self.networks, Encoded(inputs.reference, inputs.embedding), inputs.pose, inputs.low)
            noisy = add_noise(inputs.target, inputs.noise, inputs.times)
            predicted = self.networks.predict_noise(noisy, inputs.times, given.context, given.concat)
        return {"predicted": predicted.float(), "noise": inputs.noise}

    def get_outputs(self, ray_bundle: Any) -> Dict[str, Tensor]:
        """`StepInputs` or a camera; rays mean nothing here.

        Raises:
            DataError: rays (``ns-render --render-nearest-camera``, ``ns-export pointcloud``).
        """
        if isinstance(ray_bundle, StepInputs):
            return self(ray_bundle)
        if isinstance(ray_bundle, Cameras):
            return self.get_outputs_for_camera(ray_bundle)
        remedy = "Leave out --render-nearest-camera; of ns-export, cameras works."
        raise DataError("camera", "", "is a bundle of rays; whole pictures are drawn.", remedy)

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Any, metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """Mean squared error of the noise, nothing else (spec megascenes 4.5); the trainer sums what is in here."""
        return {"diffusion_mse": (outputs["predicted"] - outputs["noise"]).square().mean()}

    @torch.no_grad()
    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Any) -> Dict[str, Tensor]:
        """Size of the predicted noise, 1 where it is as large as it should be."""
        return {"predicted_rms": outputs["predicted"].square().mean().sqrt()}

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """What `Viewing.outputs` draws; there is nothing that a crop box could cut."""
        return self.viewing.outputs(self.sampling_networks(), camera)

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics of a drawn view against its photo, and a strip: reference, warp, drawn, photo.

        What the warp covers is what ``psnr_masked`` and its like look at (coverage above one half).
        """
        truth = batch["image"].to(self.device)[..., :3].float()
        mask = outputs["coverage"][..., 0] > 0.5
        metrics = image_metrics(outputs["rgb"], truth, mask, self.lpips)
        strip = [outputs[name].to(truth) for name in ("reference", "warp", "rgb")]
        return metrics, {"img": torch.cat([*strip, truth], dim=1).clamp(0, 1)}

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Float[Tensor, "h w 4"]:
        """Pictures are opaque, warps transparent where nothing is seen."""
        return rgba(outputs, output_name)
