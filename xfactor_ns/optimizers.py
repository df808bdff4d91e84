"""AdamW that decays the dense kernels and nothing else (spec xfactor 4.5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Tuple, Type

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from torch import Tensor, nn
from torch.nn import Parameter

GROUP = "xfactor"
"""The one parameter group: the gradient's norm is clipped over both networks together."""
_TAG = "xfactor_decays"


def tag_decay(module: nn.Module) -> list[Tensor]:
    """Mark the weights of all linear layers as decaying; everything else (biases, norms, scales, registers) does not.

    By a mark and not by the number of dimensions: norms per head and registers are matrices too.

    Returns:
        The marked parameters.
    """
    kernels = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    for kernel in kernels:
        setattr(kernel, _TAG, True)
    return kernels


@dataclass
class DecayingAdamWConfig(OptimizerConfig):
    """AdamW; the decay applies to parameters marked by `tag_decay` only."""

    _target: Type = torch.optim.AdamW
    lr: float = 4e-4
    """Highest learning rate."""
    betas: Tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 5e-3
    """Of the dense kernels, times the learning rate, per update."""
    max_norm: Optional[float] = 1.0
    """Gradients are scaled down to this norm, over both networks together."""

    def setup(self, params: Iterable[Parameter]) -> torch.optim.Optimizer:
        """The optimiser, with the marked parameters as its first group and the others as its second."""
        params = list(params)
        # One kernel per update instead of some hundred: a tenth of a step of the tiny networks.
        options: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "fused": True}
        groups = [
            {"params": [p for p in params if getattr(p, _TAG, False)], "weight_decay": self.weight_decay},
            {"params": [p for p in params if not getattr(p, _TAG, False)], "weight_decay": 0.0},
        ]
        return self._target([group for group in groups if group["params"]], **options)
