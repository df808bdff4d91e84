"""The stages of one training: coarse, implicit, explicit, and what happens between them (spec diver 2 and 5.1).

One ``ns-train`` run does what the original's seven scripts do. Which stage a model is in is part of its checkpoint;
which stage a step belongs to follows from `StagePlan` alone, so a resumed run goes on inside any stage, and a change of
stage that a crash prevented happens at the next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from core_ns.errors import DataError
from diver_ns.compositing import blending_weights
from diver_ns.datamanager import PixelMasks
from diver_ns.occupancy import active_vertices, scatter_max
from diver_ns.voxel_walk import walk

if TYPE_CHECKING:
    from diver_ns.datamanager import DiverDataManager
    from diver_ns.model import DiverModel


class Stage(IntEnum):
    """Where the features come from."""

    COARSE = 0
    """A table of all vertices of the coarse grid, quarter-resolution photos."""
    IMPLICIT = 1
    """A network of the vertex position, full-resolution photos, empty space left out."""
    EXPLICIT = 2
    """A table of the vertices the coarse stage left, first filled by that network."""
    PRUNED = 3
    """The finished table: voxels that no training ray needs are gone."""


@dataclass(frozen=True)
class StagePlan:
    """Steps of the coarse, implicit and explicit stage."""

    coarse: int
    implicit: int
    explicit: int

    @staticmethod
    def of(steps: tuple[int, int, int], total: int) -> StagePlan:
        """The plan for a run of ``total`` steps; another total than the sum rescales the stages in proportion.

        Raises:
            DataError: fewer steps than stages.
        """
        planned = sum(steps)
        if min(steps) < 1 or total < 3:
            raise DataError(
                "config", "pipeline.model.stage-steps", f"{steps} cannot be {total} steps of three stages.",
                "Give every stage at least one step.",
            )  # fmt: skip
        if total == planned:
            return StagePlan(*steps)
        coarse = min(max(1, round(steps[0] * total / planned)), total - 2)
        implicit = min(max(1, round(steps[1] * total / planned)), total - coarse - 1)
        return StagePlan(coarse, implicit, total - coarse - implicit)

    def going_on(self, stage: Stage, first: int, total: int) -> StagePlan:
        """The plan of a run that takes a model in ``stage``, with this plan, on from step ``first`` to ``total``.

        The explicit stage ends with the run. A run too short to reach it ends before. A model ahead of its plan
        (imported weights) leaves out the stages it is beyond.
        """
        coarse, implicit = self.coarse, self.implicit
        if min(stage, Stage.EXPLICIT) > self.stage(first):
            coarse = min(coarse, first)
            share = implicit / (implicit + self.explicit)
            implicit = max(1, round((total - coarse) * share)) if stage == Stage.IMPLICIT else first - coarse
        ends = total - coarse - implicit
        return StagePlan(coarse, implicit, ends if ends > 0 else self.explicit)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.coarse + self.implicit + self.explicit

    def stage(self, step: int) -> Stage:
        """The stage a step trains."""
        if step < self.coarse:
            return Stage.COARSE
        return Stage.IMPLICIT if step < self.coarse + self.implicit else Stage.EXPLICIT

    def progress(self, step: int) -> float:
        """How far a step is through its stage, in [0, 1)."""
        first, count = {
            Stage.COARSE: (0, self.coarse),
            Stage.IMPLICIT: (self.coarse, self.implicit),
            Stage.EXPLICIT: (self.coarse + self.implicit, self.explicit),
        }[self.stage(step)]
        return (step - first) / max(count, 1)


def rate(base: float, plan: StagePlan, step: int, final_share: float) -> float:
    """Learning rate of a step: twice ``base`` in the coarse stage (spec diver 2), a cosine to ``final_share`` in each.

    ``final_share`` 1 is the original's constant rate.
    """
    factor = 2.0 if plan.stage(step) == Stage.COARSE else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * plan.progress(step)))
    return base * factor * (final_share + (1 - final_share) * fall)


# ------------------------------------------------------------------ passes over the training rays


def training_rays(
    manager: DiverDataManager, reduced: bool, stride: int, chunk: int, what: str
) -> Iterator[tuple[Float[Tensor, "r 3"], Float[Tensor, "r 3"]]]:
    """Rays through the pixel centres of all training photos, every ``stride``-th row and column, in chunks.

    Pixels that the scene's own mask files exclude are left out: nothing trains what they see.
    """
    allowed = manager.allowed_pixels(reduced)
    for view in track(range(len(manager.train_dataset)), what, console=CONSOLE, transient=True):
        origins, directions = manager.view_rays(view, reduced)
        width, height = manager.view_size(view, reduced)
        # Another corner of the stride's cell in every view, so that no pixel column is left out in all of them.
        chosen = torch.zeros(height, width, dtype=torch.bool)
        chosen[view % stride :: stride, (view // stride) % stride :: stride] = True
        pixels = (chosen.view(-1) & allowed.view(view)).nonzero()[:, 0].to(origins.device)
        yield from zip(origins[pixels].split(chunk), directions[pixels].split(chunk), strict=True)


@torch.no_grad()
def weight_map(model: DiverModel, manager: DiverDataManager, reduced: bool, stride: int = 1) -> Float[Tensor, "n n n"]:
    """Largest blending weight ``T * alpha`` that any training ray gives each voxel; the original's alpha map."""
    resolution = model.grid.resolution
    out = torch.zeros(resolution, resolution, resolution, device=model.device)
    for origins, directions in training_rays(manager, reduced, stride, model.config.rays_per_pass, "Weighing voxels"):
        segments, features = model.features_along(origins.to(model.device), directions.to(model.device))
        raw_sigma, _ = model.decoder.density(features)
        scatter_max(blending_weights(raw_sigma, segments.ray, segments.rays), segments.voxel, out)
    return out


@torch.no_grad()
def pixel_masks(model: DiverModel, manager: DiverDataManager, mask: Bool[Tensor, "m m m"]) -> PixelMasks:
    """Pixels of the full-resolution photos whose ray crosses an occupied voxel of the coarse grid."""
    coarse = model.grid.at(len(mask))
    kept = []
    for view in track(range(len(manager.train_dataset)), "Choosing rays", console=CONSOLE, transient=True):
        origins, directions = manager.view_rays(view, reduced=False)
        met = torch.zeros(len(origins), dtype=torch.bool)
        parts = zip(
            met.split(model.config.rays_per_pass),
            origins.split(model.config.rays_per_pass),
            directions.split(model.config.rays_per_pass),
            strict=True,
        )
        for part, o, d in parts:
            segments = walk(*coarse.to_grid(o.to(model.device), d.to(model.device)), len(mask), occupied=mask)
            part[segments.ray.cpu()] = True
        kept.append(met)
    return PixelMasks.of(kept)


# ------------------------------------------------------------------ changes of stage


def make_plan(model: DiverModel, first: int, total: int) -> None:
    """Give a new run its plan, or a run that goes on at step ``first`` the plan of its checkpoint, to the new end.

    Raises:
        DataError: fewer steps than stages.
    """
    plan = (
        StagePlan.of(model.config.stage_steps, total) if first == 0 else model.plan.going_on(model.stage, first, total)
    )
    model.set_plan(plan)
    CONSOLE.print(
        f"Stages: coarse {plan.coarse} steps, implicit {plan.implicit}, explicit {plan.explicit}; "
        f"step {first} is in the {plan.stage(first).name.lower()} stage."
    )


def enter_implicit(model: DiverModel, manager: DiverDataManager) -> None:
    """Coarse weights to occupancy; the coarse table and decoder are thrown away, only the mask survives.

    Raises:
        DataError: the coarse stage found nothing.
    """
    mask = weight_map(model, manager, reduced=True) > model.config.threshold
    if not bool(mask.any()):
        raise DataError(
            "training", "the coarse stage", "left no voxel occupied.",
            "Check the data parser's box and the background, or give the coarse stage more steps "
            "(--pipeline.model.stage-steps).",
        )  # fmt: skip
    ids = active_vertices(mask, model.config.resolution)
    share = float(mask.float().mean())
    CONSOLE.print(
        f"Coarse stage done: {100 * share:.1f} % of {len(mask)}^3 voxels occupied; "
        f"{len(ids):,} of {(model.config.resolution + 1) ** 3:,} fine vertices are active."
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.config.seed + 1)
        model.start_implicit(mask, ids)


@torch.no_grad()
def enter_explicit(model: DiverModel) -> None:
    """Tabulate the vertex network on the active vertices; the pictures stay the same."""
    table = model.implicit(model.vertex_ids, model.grid.resolution)
    model.start_explicit(table)
    CONSOLE.print(f"Implicit stage done: {table.numel() * 4 / 1e6:.1f} MB of features tabulated.")


def finish(model: DiverModel, manager: DiverDataManager, optimizers: Any) -> None:
    """Drop the voxels whose weight stays below the threshold in every training ray, and their vertices.

    A run that ends before the explicit stage is left as it is, and so is one that would keep nothing.
    """
    if model.stage < Stage.EXPLICIT:
        CONSOLE.print(
            f"[yellow]The run ends in its {model.stage.name.lower()} stage, at {model.plan.total} steps it would be "
            "complete: train on to get there."
        )
        return
    keep = weight_map(model, manager, reduced=False, stride=model.config.prune_stride) > model.config.threshold
    if not bool(keep.any()):
        CONSOLE.print("[yellow]Not pruned: no voxel shows in any training photo.")
        return
    before = len(model.vertex_ids)
    model.prune(keep)
    forget(optimizers)
    CONSOLE.print(f"Pruned: {before:,} to {len(model.vertex_ids):,} vertices, {int(keep.sum()):,} voxels.")


def catch_up(model: DiverModel, manager: DiverDataManager, optimizers: Any, step: int) -> None:
    """Bring model, data and learning rates into the stage of ``step``; cheap when nothing changes."""
    plan = model.plan
    wanted = plan.stage(step)
    if model.stage == Stage.COARSE and wanted > Stage.COARSE:
        enter_implicit(model, manager)
        forget(optimizers)
    if model.stage == Stage.IMPLICIT and wanted > Stage.IMPLICIT:
        enter_explicit(model)
        forget(optimizers)
    feed(model, manager)
    for name, optimizer in optimizers.optimizers.items():
        base = optimizers.config[name]["optimizer"].lr
        for group in optimizer.param_groups:
            group["lr"] = rate(base, plan, step, model.config.final_rate_share)


def feed(model: DiverModel, manager: DiverDataManager) -> None:
    """Set the data manager to the model's stage; after a resume the pixel masks are computed anew from the mask."""
    if model.fed == model.stage:
        return
    if model.stage == Stage.COARSE:
        manager.set_stage(reduced=True, rays=model.config.coarse_rays, masks=None)
    elif model.fed in (None, Stage.COARSE):
        masks = pixel_masks(model, manager, model.mask)
        CONSOLE.print(f"Training on {100 * masks.kept_share:.1f} % of the pixels: their rays cross occupied voxels.")
        manager.set_stage(reduced=False, rays=model.config.fine_rays, masks=masks)
    model.fed = model.stage


def forget(optimizers: Any) -> None:
    """Drop the optimisers' moments: they belong to parameters of another size or meaning."""
    for optimizer in optimizers.optimizers.values():
        optimizer.state.clear()
        optimizer.zero_grad(set_to_none=True)
