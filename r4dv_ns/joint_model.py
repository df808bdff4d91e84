"""A whole scene: the subject's points in time, and the background's behind them (spec r4dv 4.9).

Both are peeled together, nearest first, so each hides the other as it should. Three stages in one training: background
alone, subject alone, both; see `r4dv_ns.joint_stages`.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any, Dict, List, Optional

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerText
from torch import Tensor
from torch.nn import Parameter

from core_ns.errors import DataError
from r4dv_ns.appearance import Source
from r4dv_ns.branch import STILL, Learned, PointBranch
from r4dv_ns.branch_checkpoint import load_branch
from r4dv_ns.drawing import Drawing, distances, draw
from r4dv_ns.joint_settings import JointModelConfig
from r4dv_ns.joint_sources import JointSources
from r4dv_ns.joint_stages import ROOM, Freeze, Stage, StagePlan, set_rates
from r4dv_ns.model import R4DVModel, Shown
from r4dv_ns.planes import PlaneField
from r4dv_ns.point_state import PointState, Sighting, joined
from r4dv_ns.room_branch import Room
from r4dv_ns.viewer import Look

SUBJECT, BEHIND = 0, 1
"""Numbers of the branches in `PointState.branch`."""


class JointModel(R4DVModel):
    """See the config. The model itself is the subject's branch; ``room`` is the background's.

    ``metadata`` also holds, in a training run, ``room_points`` [n, 3] (nerfstudio's world).
    """

    config: JointModelConfig
    sources: JointSources
    stage_steps: Tensor

    def populate_modules(self) -> None:
        """As `R4DVModel.populate_modules`, and the background's modules."""
        super().populate_modules()
        cloud = self.kwargs["metadata"].get("room_points")
        start = torch.zeros(1, 3) if cloud is None or self.hulls is None else cloud
        self.room = Room(self.config.room_settings(), start, self.scale)
        self.room.start_sizes()
        self.register_buffer("stage_steps", torch.zeros(3, dtype=torch.int64))
        self.stage_shown = ViewerText("Stage", "", disabled=True, hint="What learns at present")
        self._joint_weights = self.weights
        self._entered: Stage | None = None

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """The subject's groups, and the background's with ``bg_`` before their names."""
        room = {ROOM + name: parameters for name, parameters in self.room.branch_groups().items()}
        return {**super().get_param_groups(), **room}

    # ------------------------------------------------------------------ stages

    @property
    def plan(self) -> StagePlan:
        """Steps of the stages; before a training all belong to the last."""
        background, foreground, joint = (int(count) for count in self.stage_steps.tolist())
        return StagePlan(background, foreground, joint) if background + foreground + joint else StagePlan(0, 0, 1)

    @property
    def stage(self) -> Stage:
        """That of the present step; a finished model is in its last."""
        return self.plan.stage(self.step)

    def update_to_step(self, step: int) -> None:
        """Remember the step of a checkpoint, before it is loaded."""
        self.step = step

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """Plan the stages before the first step; then, before each, its stage, its rates, its photos.

        Raises:
            SystemExit: with one line about stages that cannot be, or a branch's checkpoint that does not fit.
        """
        trainer: Any = attributes.trainer
        manager: Any = attributes.pipeline.datamanager  # type: ignore[union-attr]
        first = trainer._start_step
        try:
            self._make_plan(first, first + trainer.config.max_num_iterations)
        except DataError as error:
            raise SystemExit(f"DataError: {error}") from error
        manager.plan = plan = self.plan

        def before(step: int) -> None:
            self.step = step
            if plan.stage(step) is not self._entered:
                self._enter(plan.stage(step), step)
            set_rates(attributes.optimizers, plan.factor(step, self.config.joint_rate))

        callback = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before, update_every_num_iters=1)
        return [*super().get_training_callbacks(attributes), callback]

    def _make_plan(self, first: int, total: int) -> None:
        """That of the settings for a new run; a run that goes on has its checkpoint's, to the new end."""
        if first:
            plan = self.plan.going_on(total)
        else:
            steps, config = list(self.config.stage_steps), self.config
            for number, file in enumerate((config.background_checkpoint, config.foreground_checkpoint)):
                if file is not None:
                    load_branch(self, file, subject=number == 1)
                    steps[number] = 0
            plan = StagePlan.of((steps[0], steps[1], steps[2]), total)
        self.stage_steps.copy_(torch.tensor([plan.background, plan.foreground, plan.joint]))
        CONSOLE.print(
            f"Stages: background {plan.background} steps, foreground {plan.foreground}, both {plan.joint}; "
            f"step {first} is in {plan.stage(first).title}."
        )

    def _enter(self, stage: Stage, step: int) -> None:
        """Set what learns, and from which losses."""
        self._entered = stage
        self.weights = self.config.room.loss if stage is Stage.BACKGROUND else self._joint_weights
        both = stage is Stage.JOINT
        for branch, freeze in ((self, self.config.freeze_foreground), (self.room, self.config.freeze_background)):
            set_frozen(branch, freeze if both else Freeze())
        corrects = self.camera_refinement.active and stage is not Stage.BACKGROUND
        self.camera_refinement.adjustment.requires_grad_(corrects)
        learned = [parameter for group in self.get_param_groups().values() for parameter in group]
        if not any(parameter.requires_grad for parameter in learned):
            raise DataError(
                "config", "pipeline.model.freeze-foreground, freeze-background", "leave nothing to learn.",
                "Leave out the last stage (--pipeline.model.stage-steps A B 0), or freeze less.",
            )  # fmt: skip
        CONSOLE.print(f"Step {step}: stage {stage.title}.")
        self.stage_shown.value = stage.title

    # ------------------------------------------------------------------ points and photos

    def state(self, frame: int, time: float) -> PointState:
        """The subject's points at a time, then the background's."""
        subject = PointBranch.state(self, frame, time)
        if self.stage is Stage.BACKGROUND:  # nothing has learned of it yet
            subject = replace(subject, alpha=torch.zeros_like(subject.alpha))
        if torch.is_grad_enabled():
            return joined([subject, self.room.state()])
        return joined([subject, self._cache.get(self._version(), "room", self.room.state)])

    def _sighting(self, frame: int, state: PointState, view: int) -> Sighting:
        subject, room = getattr(state, "parts")  # noqa: B009 (a `JointState`; others have no parts)
        photo = self._room_photos(frame, [view])[0]
        behind = self.room.sighting(frame, room, photo)
        if self.config.occlusion:  # its surface is that of all frames
            front = self._cache.get(self._version(), (self._room_key(frame), view), lambda: self._front(photo, room))
            behind = replace(behind, logit=behind.logit - self._hidden(photo, room, front))
        seen = super()._sighting(frame, subject, view), behind
        return Sighting(*(torch.cat([getattr(part, name) for part in seen]) for name in ("rgb", "logit", "visible")))

    def _room_key(self, frame: int) -> Hashable:
        """What tells the background's surfaces apart that photos of different frames show: nothing, but for cameras
        that move."""
        return ("room", frame) if any(view.is_moving for view in self.sequence.views) else "room"

    def _room_photos(self, frame: int, views: Items[int]) -> list[Source]:
        """Photos of the background with corrected cameras; `STILL`: clean plates."""
        found = self.sources.plate_sources(views) if frame == STILL else self.sources.room(frame, views)
        return self._corrected([photo.to(self.device) for photo in found])

    # ------------------------------------------------------------------ training

    @property
    def learning_photos(self) -> bool:
        """As `R4DVModel.learning_photos`; the warm-up counts from the beginning of a branch's own stage."""
        plan, step = self.plan, self.step
        if self.stage is not Stage.BACKGROUND:
            step -= plan.background
        if self.stage is Stage.JOINT and not plan.foreground and self.config.foreground_checkpoint is not None:
            step += self.config.cnn_grad_warmup  # what comes from a checkpoint has had its own
        return step < self.config.cnn_grad_warmup or self.step % self.config.cnn_grad_every == 0

    def get_outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        """One training picture of what learns in the present stage; as `R4DVModel.get_outputs`.

        Returns:
            Also ``subject`` [H, W, 1]: accumulation of the subject's points alone, those behind something left out.
        """
        stage = self.stage
        if stage is Stage.FOREGROUND:
            return super().get_outputs(camera)
        metadata: Any = camera.metadata
        frame, time = self.moment(camera)
        drawing, views = self.drawing(camera), metadata["sources"].reshape(-1).tolist()
        look, parts = self.controls.default, []
        if stage is Stage.JOINT:
            subject = PointBranch.state(self, frame, time)
            photos = self._photos(frame, views)
            hidden = self.hidden_in_training(frame, photos, subject)
            parts.append(self.learned(frame, subject, photos, drawing.centre, self.learning_photos, hidden))
            self.reseeder.note(frame, drawing, subject)
        else:
            look = replace(look, layers=self.config.room.layers)
        still = STILL if stage is Stage.BACKGROUND and self.sources.still else frame
        photos, room = self._room_photos(still, views), self.room.state()
        hidden = self.hidden_in_training(self._room_key(frame), photos, room)
        target = int(metadata["view_idx"].reshape(-1)[0])
        own = None if target in views else self._room_photos(still, [target])[0]
        parts.append(self.room.learned(still, room, photos, drawing.centre, self.learning_photos, hidden, own))
        return self._learned_picture(drawing, parts, look)

    def _learned_picture(self, drawing: Drawing, parts: list[Learned], look: Look) -> Dict[str, Tensor]:
        """Peel one branch (the background's) or both together."""
        state = joined([part.state for part in parts])
        is_subject = torch.cat(
            [part.colour.new_full((len(part.colour), 1), float(len(parts) - 1 - row)) for row, part in enumerate(parts)]
        )
        channels = torch.cat([torch.cat([part.colour for part in parts]), is_subject], dim=1)
        seen = draw(drawing, state.xyz, state.radius, state.alpha, channels, look, self.config)
        background, moved = self.background(), parts[0].state.displacement
        return {
            "rgb": seen.color[..., :3] + (1 - seen.accumulation[..., None]) * background,
            "accumulation": seen.accumulation[..., None], "subject": seen.color[..., 3:],
            "depth": distances(drawing, seen), "background": background,
            "state_alpha": state.alpha, "state_radius": state.radius,
            "sh_residual": torch.cat([part.residual for part in parts]), "orphans": parts[-1].orphans,
            **({"displacement": moved} if moved is not None else {}),
        }  # fmt: skip

    # ------------------------------------------------------------------ pictures

    def _drawn(self, drawing: Drawing, shown: Shown, box: OrientedBox | None, look: Look) -> Dict[str, Tensor]:
        """``fg_only``, ``bg_only``: each branch as if the other were not there."""
        maps = super()._drawn(drawing, shown, box, look)
        if not self.config.separate:
            return maps
        state, branch = shown.state, shown.state.branch
        assert branch is not None
        for name, number in (("fg_only", SUBJECT), ("bg_only", BEHIND)):
            rows = branch == number
            alpha = self._cropped(state, box)[rows]
            seen = draw(drawing, state.xyz[rows], state.radius[rows], alpha, shown.colour[rows], look, self.config)
            maps[name] = seen.color + (1 - seen.accumulation[..., None]) * self.background()
        return maps

    # ------------------------------------------------------------------ losses and metrics

    def truth(self, batch: Dict[str, Any], background: Float[Tensor, "3"]) -> tuple[Tensor, Tensor, Tensor]:
        """The whole photo; in stage A only its background counts, in stage B the subject over ``background``."""
        over, mask, valid = super().truth(batch, background)
        if self.training and self.stage is Stage.FOREGROUND:
            return over, mask, valid
        if self.training and "room" in batch:
            valid = batch["room"].to(valid).squeeze(-1)
        return batch["image"].to(self.device), mask, valid

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """As `R4DVModel.get_loss_dict`; the mask is compared with the subject's share of the picture."""
        if "subject" in outputs:
            outputs = outputs | {"accumulation": outputs["subject"]}
        return super().get_loss_dict(outputs, batch, metrics_dict)

    def regularised_planes(self) -> list[PlaneField]:
        """The planes of what learns."""
        stage = self.stage
        return [branch.planes for branch, other in ((self, Stage.BACKGROUND), (self.room, Stage.FOREGROUND))
                if stage is not other]  # fmt: skip

    @torch.no_grad()
    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """As `R4DVModel.get_metrics_dict`; ``stage`` is 0, 1 or 2."""
        if "subject" in outputs and self.stage is Stage.JOINT:
            outputs = outputs | {"accumulation": outputs["subject"]}
        found = super().get_metrics_dict(outputs, batch)
        return found | {"stage": torch.tensor(float(self.stage), device=self.device)}


def set_frozen(branch: PointBranch, freeze: Freeze) -> None:
    """Let the parameters of the named parts get no gradient, and all others one."""
    frozen = freeze.parts()
    motion = branch.motion
    parts: dict[str, list[torch.nn.Module]] = {
        "points": [branch.points],
        "residual": [motion] if motion is not None else [],
        "geometry": [branch.geometry, branch.planes],
        "colours": [branch.feature_net, branch.blend, branch.sh],
    }
    for name, modules in parts.items():
        for module in modules:
            module.requires_grad_(name not in frozen)
