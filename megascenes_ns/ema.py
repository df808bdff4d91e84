"""A running mean of trained weights that is really updated (spec megascenes 4.5; the original's never is)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class WeightMean(nn.Module):
    """Copies of modules whose weights are exponential means of the originals' over the steps.

    The mean after step ``n`` (from 0) is ``d * mean + (1 - d) * weight`` with ``d = min(decay, (1 + n) / (10 + n))``:
    the first steps keep less, or the start would weigh for thousands of steps. It depends on the step alone, so a
    resumed run goes on exactly. The copies are in the module's state and need no gradient.

    Args:
        decay: of the mean, in (0, 1).
        modules: to copy, by name; they become attributes.
    """

    def __init__(self, decay: float, **modules: nn.Module) -> None:
        super().__init__()
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie in (0, 1), got {decay}")
        self.decay = decay
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False).eval())

    def train(self, mode: bool = True) -> WeightMean:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self, step: int, **modules: nn.Module) -> None:
        """Take in the weights after a step.

        Args:
            step: number of the step, from 0.
            modules: the originals, by the names of the constructor.
        """
        keep = mean_weight(self.decay, step)
        for name, module in modules.items():
            mine: Any = list(getattr(self, name).parameters())
            theirs: Any = [each.detach() for each in module.parameters()]
            torch._foreach_lerp_(mine, theirs, 1.0 - keep)
            for buffer, source in zip(getattr(self, name).buffers(), module.buffers(), strict=True):
                buffer.copy_(source)


def mean_weight(decay: float, step: int) -> float:
    """What the mean keeps of itself at a step (from 0)."""
    return min(decay, (1.0 + step) / (10.0 + step))
