"""AdamW and the original's warm-up, whose checkpoints hold plain Python numbers (spec megascenes 6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Tuple, Type

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

UNET, CC_PROJECTION = "unet", "cc_projection"
"""Names of the parameter groups."""


@dataclass
class AdamWOptimizerConfig(OptimizerConfig):
    """AdamW with decoupled weight decay (nerfstudio brings none)."""

    _target: Type = torch.optim.AdamW
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: Tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.01
    """Per step, times the learning rate."""


@dataclass
class WarmupSchedulerConfig(SchedulerConfig):
    """Linear warm-up, then constant."""

    _target: Type = field(default_factory=lambda: WarmupScheduler)
    warmup_steps: int = 100
    """Steps until the full learning rate."""
    first_ratio: float = 1e-6
    """Learning rate at the first step, as a share of the full one."""


def warmup_factor(step: int, warmup_steps: int, first_ratio: float) -> float:
    """Multiplier of the learning rate at a step (from 0): linear from ``first_ratio`` to 1. A Python float."""
    if step >= warmup_steps:
        return 1.0
    return first_ratio + (1.0 - first_ratio) * (step / warmup_steps)


class WarmupScheduler(Scheduler):
    """Builds the LambdaLR of a `WarmupSchedulerConfig`."""

    config: Any

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The torch scheduler; ``lr_init`` is unused, a LambdaLR multiplies the optimiser's own rate.

        Raises:
            ValueError: a negative number of steps, or a ratio outside [0, 1].
        """
        del lr_init
        steps, ratio = self.config.warmup_steps, self.config.first_ratio
        if steps < 0 or not 0.0 <= ratio <= 1.0:
            raise ValueError(f"warmup_steps must be 0 or more and first_ratio in [0, 1], got {self.config}")
        # A closure, not a callable object: LambdaLR would copy an object's attributes into the checkpoint.
        return LambdaLR(optimizer, lr_lambda=lambda step: warmup_factor(step, steps, ratio))
