"""A set of points with all that is learned of them: the model's subject, or what stands behind it (spec r4dv 4.1-4.5).

Nothing here knows a picture: which photos the colours come from, and what is drawn, is the model's business.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from r4dv_ns import harmonics
from r4dv_ns.appearance import BlendHead, ShHead, Source, sample_sources, view_directions
from r4dv_ns.feature_net import FEATURES, FeatureNet, FrozenFeatures
from r4dv_ns.field import GeometryHead
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.planes import PlaneField
from r4dv_ns.point_state import PointState, Sighting
from r4dv_ns.points import FramePoints, MotionResidual, normalise, spacing

HIDDEN = 5.0
"""Penalty (`occlusion_penalty`) from which on a photo shows something before the point."""
STILL = -1
"""In the place of a frame's number: photos that hold for all frames (clean plates)."""


@dataclass(frozen=True)
class Learned:
    """Points of a training picture; differentiable."""

    state: PointState
    colour: Float[Tensor, "n 3"]
    """In [0, 1]: blended photos and view-dependent part."""
    residual: Float[Tensor, "n 3"]
    """The view-dependent part alone."""
    orphans: Float[Tensor, ""]
    """Share of the points that no photo sees."""


class PointBranch(nn.Module):
    """Points, planes, motion, sizes and colours. A class to inherit: the model itself is the branch of the subject.

    Attributes:
        bounds: box in which coordinates are normalised, world.
        limit: largest view-dependent change of a colour.
    """

    bounds: Float[Tensor, "2 3"]
    motion: MotionResidual | None
    limit: float

    def build_branch(self, config: R4DVModelConfig, clouds: Items[Float[Tensor, "n 3"]], scale: float) -> None:
        """Make the modules, untrained; ``bounds`` must be there.

        Args:
            config: sizes of planes, limits of radii, and the rest of the model's settings.
            clouds: points of each frame to start from, world.
            scale: world units per metre of the original's settings.
        """
        times = None if config.static else len(clouds)
        self.points = FramePoints(clouds, config.resident_frames)
        self.planes = PlaneField(
            config.plane_levels, config.plane_features, config.plane_base, times, config.aggregate,
            hashed=config.hashed_planes,
        )  # fmt: skip
        self.motion = None
        if config.motion:
            self.motion = MotionResidual(times, 0.1 * scale, config.plane_base, config.hashed_planes)
        width = self.planes.width
        self.geometry = GeometryHead(
            width, radius_init=config.radius_init, radius_min=config.radius_min, radius_max=config.radius_max,
            scale=scale,
        )  # fmt: skip
        self.feature_net = FeatureNet()
        self.blend = BlendHead(width)
        self.sh = ShHead(width, config.sh_limit)
        self.limit = config.sh_limit
        self._features = FrozenFeatures(self.feature_net, config.cache_mb << 20)

    def start_sizes(self) -> None:
        """Let the points begin as large as the distance to their neighbours."""
        self.geometry.initialise(spacing(self.points.points[0]))

    def branch_groups(self) -> dict[str, list[Parameter]]:
        """The groups of spec r4dv 4.8 that this branch has parameters for."""
        motion = self.motion
        groups = {
            "points": list(self.points.parameters()),
            "planes": [*self.planes.parameters(), *(motion.planes.parameters() if motion is not None else [])],
            "residual_mlp": list(motion.mlp.parameters()) if motion is not None else [],
            "geometry_mlp": list(self.geometry.parameters()),
            "cnn": list(self.feature_net.parameters()),
            "blend": list(self.blend.parameters()),
            "sh": list(self.sh.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def place(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Where the planes are read: coordinates in [-1, 1]."""
        return normalise(xyz, self.bounds)

    def state(self, frame: int, time: float) -> PointState:
        """The points of a frame, at a time in [0, 1]."""
        xyz, displacement = self.points(frame), None
        if self.motion is not None:
            displacement = self.motion(self.place(xyz), time)
            xyz = xyz + displacement
        features = self.planes(self.place(xyz), time)
        radius, alpha = self.geometry(features)
        return PointState(xyz, displacement, features, radius, alpha, self.sh.coefficients(features))

    def _maps(self, frame: int, photos: Items[Source], learn: bool) -> list[Tensor]:
        """Features of photos; without a gradient those of earlier steps, until the photo network changes."""
        if learn and torch.is_grad_enabled():
            return [self.feature_net(photo.image, photo.valid) for photo in photos]
        return [self._features((frame, photo.view), photo.image, photo.valid) for photo in photos]

    def residual(self, state: PointState, centre: Float[Tensor, "3"]) -> Float[Tensor, "n 3"]:
        """View-dependent part of the colours seen from a camera centre."""
        directions = view_directions(state.xyz, centre)
        return self.limit * torch.tanh(harmonics.evaluate(state.coefficients, directions))

    def learned(
        self,
        frame: int,
        state: PointState,
        photos: Items[Source],
        centre: Float[Tensor, "3"],
        learn: bool,
        penalty: Float[Tensor, "s n"] | None = None,
        own: Source | None = None,
    ) -> Learned:
        """Colours for a training picture.

        Args:
            frame: whose photos these are, or `STILL`.
            state: of `state`.
            photos: the sources.
            centre: of the target's camera, world.
            learn: whether the photo network gets a gradient (spec r4dv 4.4: not in every step).
            penalty: see `BlendHead.forward`.
            own: the target, if it is no source: it colours points that no source shows. By any other colour they would
                learn to fade away, and leave holes where the target alone sees something.
        """
        asked = [*photos, own] if own is not None else photos
        g, visible = sample_sources(asked, self._maps(frame, asked, learn), state.xyz)
        if own is not None:
            shown = visible[:-1] if penalty is None else visible[:-1] & (penalty < HIDDEN)
            alone = visible[-1] & ~shown.any(dim=0)
            visible = torch.cat([visible[:-1] & ~alone, alone[None]])
            penalty = None if penalty is None else torch.cat([penalty, torch.zeros_like(penalty[:1])])
        base, _, orphans = self.blend(state.features, g, visible, penalty)
        residual = self.residual(state, centre)
        return Learned(state, (base + residual).clamp(0, 1), residual, orphans / len(state.xyz))

    def sighting(self, frame: int, state: PointState, photo: Source) -> Sighting:
        """What one photo says about every point; what baking stores (spec r4dv 4.4, 5.2)."""
        g, visible = sample_sources([photo], self._maps(frame, [photo], False), state.xyz)
        logit = self.blend.logits(state.features, g)[0].float()
        return Sighting(g[0, :, FEATURES:].contiguous(), logit, visible[0])
