"""Settings of the point model (spec r4dv 4, 8.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional, Type

import torch
from nerfstudio.models.base_model import Model, ModelConfig

from r4dv_ns.camera_refinement import CameraRefinementConfig
from r4dv_ns.peel import Backend


def _model() -> Type[Model]:
    from r4dv_ns.model import R4DVModel  # which needs this module first

    return R4DVModel


@dataclass
class LossWeights:
    """Weights of the loss terms (spec r4dv 4.7); zero leaves a term out."""

    colour: float = 1.0
    """Huber loss of the colours."""
    perceptual: float = 1e-3
    """LPIPS where its weights are on this machine, else 1 - SSIM."""
    mask: float = 1e-3
    """1 - soft IoU of accumulation and mask."""
    residual: float = 1.0
    """Mean squared motion residual."""
    sh_size: float = 0.0
    """Mean squared view-dependent colour."""
    entropy: float = 0.0
    """Mean entropy of the opacities."""
    total_variation: float = 0.0
    """Of the spatial planes; 2e-4 where wanted."""
    temporal_smoothness: float = 0.0
    """Second differences of the temporal planes; 1e-3 where wanted."""


LOSS_PRESETS = {"nhr": LossWeights(mask=1e-2, residual=0.1)}
"""Weights of the original for a published data set, taken where none are chosen (spec r4dv 2.4, 4.7)."""


@dataclass
class R4DVModelConfig(ModelConfig):
    """Points with features from 4D planes, coloured from the nearest photos."""

    _target: Type = field(default_factory=_model)
    enable_collider: bool = False
    """Nothing is marched here."""
    layers: int = 15
    """Points blended per pixel, nearest first."""
    sources: int = 4
    """Photos that a rendered point takes its colour from (training: pipeline.datamanager.sources)."""
    source_metric: Literal["distance", "angle"] = "distance"
    """How the nearest photos are found: distance of the cameras, or angle around the middle of the box."""
    occlusion: bool = False
    """Lower the weight of photos from which something hides the point."""
    occlusion_every: int = 0
    """In training too: where the surface is seen from a photo is found anew every so many steps (or a part of them, so
    that a checkpoint falls on a beginning). 0: outside training only, as the original's."""
    plane_levels: int = 4
    """Resolutions of the planes: 64, 128, ..."""
    plane_base: int = 64
    """Texels per axis of the coarsest plane."""
    plane_features: int = 8
    """Channels per level."""
    aggregate: Literal["sum", "cat", "mul"] = "sum"
    """How the six planes are joined."""
    hashed_planes: bool = False
    """Planes share 2^16 rows per level through a hash, as in the released models."""
    static: bool = False
    """No planes along time."""
    motion: bool = True
    """Add a small displacement that space and time predict to every point."""
    radius_init: Literal["spacing", "upstream"] = "spacing"
    """Size of the points at the start: the distance to their neighbours, or the original's constant."""
    radius_min: Optional[float] = None
    """Smallest radius, world units. None: 1 mm for a box of 2 m diagonal."""
    radius_max: Optional[float] = None
    """Largest radius, world units. None: 15 mm for a box of 2 m diagonal, more where points are sparse."""
    min_pixel_radius: float = 0.75
    """Smaller discs are drawn at this size in pixels and fainter; 0: the paper's formula."""
    sh_limit: float = 0.25
    """Largest view-dependent change of a colour; older released checkpoints: 1."""
    cnn_grad_warmup: int = 1000
    """Steps in which the photo network is trained in every step..."""
    cnn_grad_every: int = 100
    """...and afterwards in every n-th."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms. All at their defaults: those of easymocap-data's --dataset-preset, if it has any."""
    detach_union: bool = False
    """The original's mask loss, which never shrinks what covers too much."""
    camera_refinement: CameraRefinementConfig = field(default_factory=CameraRefinementConfig)
    """Correct the calibration of each physical camera while training."""
    background: float = 0.0
    """Grey behind the subject, 0 to 1; below 0: another one in every training step, black elsewhere."""
    time_mode: Literal["nearest", "blend"] = "nearest"
    """Between two frames: the nearer one, or a blend of both pictures."""
    backend: Backend = "auto"
    """Rasteriser: Triton on CUDA, torch elsewhere. gsplat is an approximation for previews."""
    prune_every: int = 0
    """Every so many steps, points that are nearly transparent or unseen are put where the error is; 0: never."""
    resident_frames: int = 300
    """With more frames than this their points stay in main memory."""
    upstream_ssim: bool = False
    """Also report ssim_upstream: scikit-image's with a data range of 2, as the original's numbers are (higher)."""
    cache_mb: int = 512
    """Memory for what does not change between pictures of the same moment, and as much for features of photos."""
    seed: int = 9
    """Of re-seeded points and random backgrounds."""

    def shared_parameters(self, frames: int) -> int:
        """Numbers learned for all of ``frames`` frames together: planes and networks."""
        from r4dv_ns.planes import PlaneField
        from r4dv_ns.points import MotionResidual

        times = None if self.static else frames
        with torch.device("meta"):
            planes = PlaneField(
                self.plane_levels, self.plane_features, self.plane_base, times, self.aggregate,
                hashed=self.hashed_planes,
            )  # fmt: skip
            modules = [planes, *([MotionResidual(times, base=self.plane_base)] if self.motion else [])]
        heads = 30_000  # photo network, geometry, blending and harmonics: small beside the planes
        return heads + sum(parameter.numel() for module in modules for parameter in module.parameters())
