"""Learning-rate schedules whose checkpoints load under ``weights_only=True``.

nerfstudio 1.1.5 computes its schedules with numpy, so numpy scalars end up in the states of scheduler and optimizer and
torch >= 2.6 refuses the checkpoint (spec nerfstudio 6). Two cures: the schedule here returns plain Python floats, and
`allow_numpy_scalars` admits the numpy scalars of stock methods to torch's safe list.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from typing import Optional, Type

import numpy as np
import torch
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def cosine_factor(
    step: int,
    *,
    max_steps: int,
    final_ratio: float = 1 / 30,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.01,
    start_step: int = 0,
) -> float:
    """Multiplier of the initial learning rate at a step: linear warm-up, then half a cosine (spec xscale 3.7).

    Args:
        step: global step, from 0.
        max_steps: global step at which ``final_ratio`` is reached; constant from there on.
        final_ratio: multiplier at the end.
        warmup_steps: steps, counted from ``start_step``, in which the multiplier rises from ``warmup_ratio`` to 1.
        warmup_ratio: multiplier at the first warm-up step.
        start_step: first step at which the group trains. Schedulers tick from step 0 even while a group is left out of
            the graph, so a late group would otherwise begin with a decayed rate; before it the multiplier stands still.

    Returns:
        A Python float, never a numpy scalar.
    """
    local = max(0, step - start_step)
    if local < warmup_steps:
        return warmup_ratio + (1.0 - warmup_ratio) * (local / warmup_steps)
    decay_steps = max_steps - start_step - warmup_steps
    progress = min(1.0, (local - warmup_steps) / decay_steps)
    return final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class CosineSchedulerConfig(SchedulerConfig):
    """Cosine decay with optional warm-up and start offset; its state holds plain Python numbers only."""

    _target: Type = field(default_factory=lambda: CosineScheduler)
    """target class to instantiate"""
    final_ratio: float = 1 / 30
    """Learning rate at max_steps, as a share of the initial one."""
    max_steps: Optional[int] = None
    """Step at which the final learning rate is reached; constant from there on. None: the run's last step (filled in by
    `core_ns.trainer.ZooTrainer`)."""
    warmup_steps: int = 0
    """Steps of linear warm-up, counted from start_step."""
    warmup_ratio: float = 0.01
    """Learning rate at the first warm-up step, as a share of the initial one."""
    start_step: int = 0
    """Step at which the schedule begins, for groups that join the training late."""


class CosineScheduler(Scheduler):
    """Builds the LambdaLR of a `CosineSchedulerConfig`."""

    config: CosineSchedulerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The torch scheduler; ``lr_init`` is unused because a LambdaLR multiplies the optimizer's own rate.

        Raises:
            ValueError: no step is left for the decay, a step count is negative, or a ratio is outside [0, 1].
        """
        config = self.config
        if config.max_steps is None:
            raise ValueError("max_steps is not set; only ZooTrainer fills it in")
        if min(config.warmup_steps, config.start_step) < 0:
            raise ValueError(f"warmup_steps and start_step must not be negative, got {config}")
        if config.max_steps <= config.start_step + config.warmup_steps:
            raise ValueError(
                f"max_steps ({config.max_steps}) must exceed start_step + warmup_steps "
                f"({config.start_step} + {config.warmup_steps}), or nothing is left for the decay"
            )
        if not (0.0 <= config.final_ratio <= 1.0 and 0.0 <= config.warmup_ratio <= 1.0):
            raise ValueError(f"final_ratio and warmup_ratio must lie in [0, 1], got {config}")

        # A closure, not a callable object: LambdaLR would copy an object's attributes into the checkpoint.
        max_steps = config.max_steps

        def factor(step: int) -> float:
            return cosine_factor(
                step,
                max_steps=max_steps,
                final_ratio=config.final_ratio,
                warmup_steps=config.warmup_steps,
                warmup_ratio=config.warmup_ratio,
                start_step=config.start_step,
            )

        return LambdaLR(optimizer, lr_lambda=factor)


@dataclass
class ExponentialSchedulerConfig(SchedulerConfig):
    """Exponential decay from the initial rate to a share of it; its state holds plain Python numbers only."""

    _target: Type = field(default_factory=lambda: ExponentialScheduler)
    """target class to instantiate"""
    final_ratio: float = 0.1
    """Learning rate at max_steps, as a share of the initial one."""
    max_steps: Optional[int] = None
    """Step at which the final learning rate is reached; constant from there on. None: the run's last step (filled in by
    `core_ns.trainer.ZooTrainer`)."""


class ExponentialScheduler(Scheduler):
    """Builds the LambdaLR of an `ExponentialSchedulerConfig`."""

    config: ExponentialSchedulerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The torch scheduler: the initial rate times ``final_ratio ** (step / max_steps)``.

        Raises:
            ValueError: ``max_steps`` is missing or not positive, or the ratio is outside (0, 1].
        """
        steps, ratio = self.config.max_steps, self.config.final_ratio
        if steps is None or steps < 1:
            raise ValueError(f"max_steps must be positive, got {steps}; only ZooTrainer fills it in")
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"final_ratio must lie in (0, 1], got {ratio}")
        return LambdaLR(optimizer, lr_lambda=lambda step: ratio ** min(1.0, step / steps))


def _numpy_scalar_globals() -> list[object]:
    """What a pickled numpy scalar refers to: the rebuilding function, the dtype base, and one class per plain dtype.

    The rebuilding function is listed under the module names of numpy 1 and 2, since checkpoints name the one that
    wrote them. Object, string, void and date dtypes are left out: nothing numeric needs them, and object scalars would
    let arbitrary values in.
    """
    try:
        multiarray = importlib.import_module("numpy._core.multiarray")
    except ImportError:
        multiarray = importlib.import_module("numpy.core.multiarray")
    rebuild = multiarray.scalar
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
    dtype_classes = sorted({type(np.dtype(code)) for code in codes}, key=lambda cls: cls.__name__)
    names = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
    return [*((rebuild, name) for name in names), np.dtype, *dtype_classes]


def allow_numpy_scalars() -> None:
    """Let ``torch.load(..., weights_only=True)`` read numpy numbers, as in the checkpoints of nerfstudio's schedulers.

    Call it at the import of a config module: entry points load before any checkpoint is read, so stock methods are
    cured too. Only adds to torch's safe list (`torch.load` itself stays as it is) and adds nothing twice.
    """
    known = torch.serialization.get_safe_globals()
    missing = [entry for entry in _numpy_scalar_globals() if entry not in known]
    if missing:
        torch.serialization.add_safe_globals(missing)  # pyright: ignore[reportArgumentType]
