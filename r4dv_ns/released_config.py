"""The method ``r4dv-released``: models of the original's authors, imported or trained on (spec r4dv 5.1)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Type

from nerfstudio.models.base_model import Model
from nerfstudio.plugins.types import MethodSpecification

from r4dv_ns.config import r4dv
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.pipeline import R4DVPipelineConfig


def _model() -> Type[Model]:
    from r4dv_ns.released_model import ReleasedModel  # which needs this module first

    return ReleasedModel


@dataclass
class ReleasedModelConfig(R4DVModelConfig):
    """The point model as the original's authors trained it."""

    _target: Type = field(default_factory=_model)
    lattice: Literal["vertices", "texels"] = "vertices"
    """Where planes are stored: at tiny-cuda-nn's vertices, or at texels as in r4dv."""
    radius_init: Literal["spacing", "upstream"] = "upstream"
    """Size of the points where training starts without a checkpoint."""
    motion_levels: int = 2
    """Resolutions of the motion residual's planes."""
    motion_aggregate: Literal["sum", "cat", "mul"] = "sum"
    """How its planes are joined."""
    motion_scale: float = 0.1
    """Its reach, world units: the original's 10 cm, whatever the size of the box."""


_config: Any = copy.deepcopy(r4dv.config)

r4dv_released = MethodSpecification(
    config=replace(
        _config,
        method_name="r4dv-released",
        pipeline=R4DVPipelineConfig(datamanager=_config.pipeline.datamanager, model=ReleasedModelConfig()),
    ),
    description="Released 4K4D models (ns-r4dv charge import), to view, bake and train on.",
)
