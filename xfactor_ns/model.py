"""XFactor as a nerfstudio model: clips in training, cameras in the viewer (spec xfactor 8.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model
from nerfstudio.utils import comms
from torch import Tensor
from torch.nn import Parameter

from core_ns.errors import DataError
from xfactor_ns.batches import ClipBatch
from xfactor_ns.model_config import XFactorModelConfig
from xfactor_ns.network import XFactorNet
from xfactor_ns.objective import Draws, draw, photometric, psnr, seeded, step
from xfactor_ns.optimizers import GROUP, tag_decay
from xfactor_ns.perceptual import PerceptualLoss
from xfactor_ns.start_weights import read_weights
from xfactor_ns.viewing import Viewing, rgba

TRAINING, EVALUATION = 0, 1
"""Last number of a step's generator."""


class XFactorModel(Model):
    """See the config. A training step takes a `ClipBatch`, a picture takes a camera of the gallery's world.

    Attributes:
        net: both networks.
        viewing: pictures and the viewer's panel; the pipeline gives it the gallery.
        samples_per_update: over all processes and micro steps; set by the pipeline. None: each batch is a whole one.
    """

    config: XFactorModelConfig

    def populate_modules(self) -> None:
        """Fresh weights; `take_weights` replaces them where the config names others."""
        super().populate_modules()
        config = self.config
        self.net = XFactorNet(
            config.size(), config.precision, seed=config.seed,
            checkpointing=config.checkpointing, compile=config.compile,
        )  # fmt: skip
        tag_decay(self.net)
        self.samples_per_update: int | None = None
        self.viewing = Viewing(config.view)
        # Not a module: its network belongs in no checkpoint.
        self.perceptual = PerceptualLoss(config.lpips_weights) if config.lpips_weight > 0 else None

    def take_weights(self, path: Path) -> None:
        """Start from the weights of another run or of a file; the renderer too unless the config says otherwise.

        Raises:
            DataError: unreadable, or of networks of another size.
        """
        state = read_weights(path, self.net.size)
        if not self.config.init_render:
            state = {key: value for key, value in state.items() if not key.startswith("renderer.")}
        self.net.load_state_dict(state, strict=self.config.init_render)

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """One group, so that the gradient's norm is clipped over both networks together."""
        return {GROUP: list(self.net.parameters())}

    # ------------------------------------------------------------------ training

    def draws(self, batch: ClipBatch) -> Draws:
        """Masks, reference, target and jitter of a batch, by seed and update alone: a resumed run draws the same.

        A batch of training is its process's part of the update's samples in this micro step, and gets that part of the
        update's draws: their sharing out changes nothing.
        """
        config, training = self.config, self.training
        generator = seeded(config.seed, batch.update, TRAINING if training else EVALUATION)
        first = (batch.micro * comms.get_world_size() + comms.get_rank()) * len(batch)
        whole = self.samples_per_update if training else None
        grid = (batch.frames.shape[2] // config.patch, batch.frames.shape[3] // config.patch)
        return draw(
            batch.frame_ind.cpu(), grid, generator, objective=config.objective, unmasked=config.unmasked,
            self_reference=config.self_reference if training else 0.0, jitter=config.jitter and training,
            per_frame=config.jitter_per_frame, scenes=config.vary_scenes and training,
            part_of=None if whole is None else (whole, first),
        )  # fmt: skip

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: ClipBatch, draws: Draws | None = None
    ) -> Dict[str, Tensor]:
        """One step's pictures: everything that touches a parameter, since data parallelism wraps this call.

        Args:
            batch: on the model's device.
            draws: default: those of `draws`.

        Returns:
            As of `objective.step`.
        """
        return step(self.net, batch.frames, self.draws(batch) if draws is None else draws)

    def get_outputs(self, ray_bundle: Any) -> Dict[str, Tensor]:
        """A `ClipBatch` or a camera; rays mean nothing here.

        Raises:
            DataError: rays (``ns-render --render-nearest-camera``, ``ns-export pointcloud``).
        """
        if isinstance(ray_bundle, ClipBatch):
            return self(ray_bundle)
        if isinstance(ray_bundle, Cameras):
            return self.get_outputs_for_camera(ray_bundle)
        remedy = "Leave out --render-nearest-camera; of ns-export, cameras works."
        raise DataError("camera", "", "is a bundle of rays; whole pictures are drawn.", remedy)

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Any, metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """Mean absolute difference and weighted LPIPS, on [-1, 1] (spec xfactor 4.2)."""
        losses = {"l1": photometric(outputs)}
        distance = self.perceptual(outputs["render"], outputs["target"]) if self.perceptual is not None else None
        if distance is not None:
            losses["lpips"] = self.config.lpips_weight * distance
        return losses

    @torch.no_grad()
    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Any) -> Dict[str, Tensor]:
        """PSNR of the batch; of its reference frames in place of the renderings; mean size of the latents."""
        latents = outputs["latents"][:, 1:].float()
        return {
            "psnr": psnr(outputs["render"], outputs["target"]),
            "copy_psnr": psnr(outputs["context"], outputs["target"]),
            "latent_rms": latents.square().mean().sqrt(),
        }

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """What `Viewing.outputs_for_camera` draws; there is nothing that a crop box could cut."""
        return self.viewing.outputs_for_camera(self, camera)

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """See `Viewing.image_metrics`."""
        return self.viewing.image_metrics(outputs, batch)

    def get_rgba_image(self, outputs: Dict[str, Tensor], output_name: str = "rgb") -> Float[Tensor, "h w 4"]:
        """The square opaque, what is beside it transparent."""
        return rgba(outputs, output_name)
