"""The stages of one training of a whole scene: background, foreground, both together (spec r4dv 4.9).

Which stage a step belongs to, and how fast its groups learn, follow from `StagePlan` and the step alone, so that a
resumed run goes on inside any stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

from core_ns.errors import DataError

ROOM = "bg_"
"""Begins the names of the background's parameter groups."""
REST = -1
"""In the place of a number of steps: as many as the recording's frames ask for."""
FALL = 0.1
"""Rates fall to this share over a stage (spec r4dv 4.8)."""


class Stage(IntEnum):
    """What learns."""

    BACKGROUND = 0
    """A: the background's points, from clean plates or from photos outside the masks."""
    FOREGROUND = 1
    """B: the subject's points, as ``r4dv`` does."""
    JOINT = 2
    """C: all of them, from whole photos."""

    @property
    def title(self) -> str:
        """For people."""
        return ("A: background", "B: foreground", "C: both together")[self]


@dataclass(frozen=True)
class StagePlan:
    """Steps of the three stages; a stage of no steps is left out."""

    background: int
    foreground: int
    joint: int

    @staticmethod
    def of(steps: tuple[int, int, int], total: int) -> StagePlan:
        """The plan for a run of ``total`` steps; another total than the sum rescales the stages in proportion.

        Raises:
            DataError: negative numbers, no step at all, or fewer steps than stages.
        """
        wanted = [count > 0 for count in steps]
        if min(steps) < 0 or total < max(sum(wanted), 1) or not any(wanted):
            raise DataError(
                "config", "pipeline.model.stage-steps", f"{steps} cannot be {total} steps of {sum(wanted)} stages.",
                "Give every stage that is wanted at least one step.",
            )  # fmt: skip
        if total == sum(steps):
            return StagePlan(*steps)
        counts, left = [0, 0, 0], total
        for number in range(3):
            after = sum(wanted[number + 1 :])
            if wanted[number]:
                share = steps[number] / sum(steps[number:])
                counts[number] = left if not after else min(max(1, round(left * share)), left - after)
            left -= counts[number]
        return StagePlan(*counts)

    def going_on(self, total: int) -> StagePlan:
        """The plan of a run that takes a model with this plan on to ``total`` steps: its last stage ends with the run.

        A run too short to reach the last stage ends before.
        """
        joint = total - self.background - self.foreground
        return replace(self, joint=joint) if joint > 0 else self

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.background + self.foreground + self.joint

    def stage(self, step: int) -> Stage:
        """The stage a step trains; after the end the last one that there is."""
        if step < self.background:
            return Stage.BACKGROUND
        if step < self.background + self.foreground:
            return Stage.FOREGROUND
        if self.joint:
            return Stage.JOINT
        return Stage.FOREGROUND if self.foreground else Stage.BACKGROUND

    def progress(self, step: int) -> float:
        """How far a step is through its stage, in [0, 1]."""
        first, count = {
            Stage.BACKGROUND: (0, self.background),
            Stage.FOREGROUND: (self.background, self.foreground),
            Stage.JOINT: (self.background + self.foreground, self.joint),
        }[self.stage(step)]
        return min(max((step - first) / max(count, 1), 0.0), 1.0)

    def factor(self, step: int, joint_rate: float) -> float:
        """Multiplier of the learning rates at a step: to a tenth over a stage.

        Together the rates begin anew at ``joint_rate`` and fall to a tenth over the first half, as the original's do
        over 25 000 of 50 000 steps, and to another tenth over the second.
        """
        through = self.progress(step)
        if self.stage(step) is Stage.JOINT:
            return joint_rate * FALL ** (2 * through)
        return FALL**through


def set_rates(optimizers: Any, factor: float, constant: tuple[str, ...] = ()) -> None:
    """Multiply the configured rate of every group, but for the ``constant`` ones.

    Args:
        optimizers: nerfstudio's `Optimizers`.
        factor: of `StagePlan.factor`.
        constant: names of groups that keep their rate.
    """
    for name, optimizer in optimizers.optimizers.items():
        base = optimizers.config[name]["optimizer"].lr
        for group in optimizer.param_groups:
            group["lr"] = base if name in constant else base * factor


Part = Literal["points", "residual", "geometry", "colours"]


@dataclass
class Freeze:
    """What of a branch stays as it is while both learn together."""

    points: bool = False
    """Positions."""
    residual: bool = False
    """Motion: the small displacement that space and time predict."""
    geometry: bool = False
    """Sizes and opacities, and with them the planes that they are read from."""
    colours: bool = False
    """Photo network, weights of the photos, view-dependent colour."""

    def parts(self) -> set[Part]:
        """The frozen parts by name."""
        names: tuple[Part, ...] = ("points", "residual", "geometry", "colours")
        return {name for name in names if getattr(self, name)}
