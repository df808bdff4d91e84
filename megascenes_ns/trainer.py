"""The trainer: one of its steps is one optimiser update; a photo alone makes a run without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Type

from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError, MissingExtra
from core_ns.trainer import ZooTrainer, ZooTrainerConfig


@dataclass
class MegaScenesTrainerConfig(ZooTrainerConfig):
    """The trainer of all presets."""

    _target: Type = field(default_factory=lambda: MegaScenesTrainer)
    target_steps: Optional[int] = None
    """Train until so many updates are done, those before a resume included; max-num-iterations counts further ones."""

    def save_config(self) -> None:
        """As `ZooTrainerConfig`'s; a photo as data means that nothing is trained.

        Raises:
            SystemExit: with one line, when the run cannot start; nothing is written.
        """
        pipeline: Any = self.pipeline
        try:
            self._check()
            manager: Any = pipeline.datamanager
            data = self.data if self.data is not None else manager.data
            if data is not None:
                manager.data = data = data.expanduser().resolve()
            if data is not None and data.is_file() and data.suffix.lower() != ".pkl":
                if self.max_num_iterations:
                    CONSOLE.print("The data are one photo: nothing is trained, the run is for its views.")
                self.max_num_iterations = 0
                self.logging.local_writer.enable = False  # it has no line for a run without steps, and fails
                pipeline.check_data()
        except (DataError, MissingExtra) as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        super().save_config()

    def _check(self) -> None:
        if self.gradient_accumulation_steps:
            raise DataError(
                "config", "gradient-accumulation-steps", "does not apply: a step here is one whole update.",
                "Use --pipeline.datamanager.micro-batch.",
            )  # fmt: skip
        if self.mixed_precision or self.use_grad_scaler:
            raise DataError(
                "config", "mixed-precision, use-grad-scaler", "mean half precision, which overflows here.",
                "Use --pipeline.model.precision bf16.",
            )  # fmt: skip
        if self.target_steps is not None and self.target_steps < 1:
            raise DataError("config", "target-steps", f"is {self.target_steps}.", "Give 1 or more.")
        manager: Any = self.pipeline.datamanager
        manager.micro_steps(self.machine.num_devices * self.machine.num_machines)


class MegaScenesTrainer(ZooTrainer):
    """See the module docstring."""

    config: MegaScenesTrainerConfig

    def train(self) -> None:
        """Train until done or told to stop; with ``target_steps`` until that many updates are done in all.

        Raises:
            SystemExit: with the text of a `DataError` that a step met.
        """
        if self.config.target_steps is not None:
            self.config.max_num_iterations = max(self.config.target_steps - self._start_step, 0)
        try:
            super().train()
        finally:
            manager: Any = self.pipeline.datamanager
            manager.close()

    def _after_train(self) -> None:
        # A run of no steps is saved as well: its weights are those of the config, and it is there to be viewed.
        if self._last_finished < 0 and self.config.max_num_iterations == 0:
            self._last_finished = 0
        super()._after_train()
