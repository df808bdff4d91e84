"""The point model with the planes of the original's released checkpoints (spec r4dv 5.1)."""

from __future__ import annotations

from collections.abc import Sequence as Items

from jaxtyping import Float
from torch import Tensor

from r4dv_ns.field import relu_mlp
from r4dv_ns.model import R4DVModel
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.planes import PlaneField
from r4dv_ns.released_config import ReleasedModelConfig
from r4dv_ns.vertex_planes import VertexPlanes


class ReleasedModel(R4DVModel):
    """`R4DVModel`, its planes replaced."""

    config: ReleasedModelConfig

    def build_branch(self, config: R4DVModelConfig, clouds: Items[Float[Tensor, "n 3"]], scale: float) -> None:
        """As `R4DVModel`'s."""
        super().build_branch(config, clouds, scale)
        mine, frames = self.config, None if config.static else len(clouds)
        kind = VertexPlanes if mine.lattice == "vertices" else PlaneField
        size = (config.plane_features, config.plane_base, frames)
        self.planes = kind(config.plane_levels, *size, config.aggregate, init=0.1)
        if self.motion is not None:
            self.motion.planes = kind(mine.motion_levels, *size, mine.motion_aggregate, init=1e-4)
            self.motion.mlp = relu_mlp(self.motion.planes.width, 64, 3)
            self.motion.scale = mine.motion_scale
