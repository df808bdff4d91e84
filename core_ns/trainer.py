"""nerfstudio's trainer with the four things a long run needs.

Checkpoints are written atomically; resume takes the newest checkpoint that loads; SIGTERM (and Ctrl-C) saves and stops;
the exact commands to resume, view, evaluate and render are printed at the end. All methods use it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Type

import torch
import torch.distributed as dist
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError, MissingExtra


@dataclass
class ZooTrainerConfig(TrainerConfig):
    """nerfstudio's trainer configuration; the run folder is absolute, so ``ns-*`` commands find it from anywhere."""

    _target: Type = field(default_factory=lambda: ZooTrainer)

    def save_config(self) -> None:
        """Check the data, then write ``config.yml``: bad input leaves no run folder behind.

        Raises:
            SystemExit: with the `DataError`'s or `MissingExtra`'s text, when the run cannot start.
        """
        self.output_dir = self.output_dir.expanduser().resolve()
        manager: Any = self.pipeline.datamanager
        holder: Any
        for holder in (self, manager, manager.dataparser):
            if getattr(holder, "data", None) is not None:
                holder.data = Path(holder.data).expanduser().resolve()
        if hasattr(manager, "run_dir"):
            manager.run_dir = self.get_base_dir()
        try:
            if hasattr(self.pipeline, "check_data"):
                self.pipeline.check_data()  # type: ignore[attr-defined]
        except (DataError, MissingExtra) as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        super().save_config()


def valid_checkpoint(folder: Path, step: int | None = None) -> tuple[dict[str, Any], Path]:
    """Load the newest checkpoint of a folder that is whole.

    A file that does not load (torn by a crash or a full disk) is skipped with a warning and moved beside the folder, so
    that ``ns-eval`` and the other tools, which take the highest step unseen, also work again.

    Args:
        folder: a run's ``nerfstudio_models``.
        step: take exactly this step instead of the newest.

    Raises:
        DataError: no checkpoint loads.
    """
    pattern = "step-*.ckpt" if step is None else f"step-{step:09d}.ckpt"
    candidates = sorted(folder.glob(pattern), reverse=True)
    for path in candidates:
        try:
            return read_checkpoint(path), path
        except DataError as error:
            aside = folder.parent / f"torn-{path.name}"
            CONSOLE.print(f"[bold yellow]Skipping {error} It is kept as {aside}.", soft_wrap=True)
            with contextlib.suppress(FileNotFoundError):  # another process of this run was faster
                path.replace(aside)
    found = f"{len(candidates)} damaged ones" if candidates else "none"
    raise DataError(
        folder, "", f"holds no checkpoint that loads ({found}).", "Train again, or name another --load-dir."
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint (tensors and plain Python values only).

    Raises:
        DataError: the file is absent, torn, or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        raise DataError(
            path, "", f"does not load ({type(error).__name__}: {first_line}).", "Use an older checkpoint of the run."
        ) from error
    missing = {"step", "pipeline", "optimizers"} - set(state) if isinstance(state, dict) else {"step"}
    if missing:
        raise DataError(path, "", f"has no {sorted(missing)}.", "It is not a nerfstudio checkpoint.")
    return state


class ZooTrainer(Trainer):
    """See the module docstring. ``self.step`` counts finished steps only, so a stop never skips one."""

    config: ZooTrainerConfig

    def __init__(self, config: ZooTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        self._terminated = False
        self._last_finished = -1
        self._loaded: tuple[dict[str, Any], Path] | None = None
        self.stop_training = False

    # ------------------------------------------------------------------ resume

    def setup_optimizers(self) -> Optimizers:
        """Read the checkpoint first: a schedule without ``max_steps`` spans this run's first to last step."""
        if self.config.load_dir is not None:
            self._loaded = valid_checkpoint(self.config.load_dir, self.config.load_step)
        elif self.config.load_checkpoint is not None:
            self._loaded = read_checkpoint(self.config.load_checkpoint), self.config.load_checkpoint
        first = self._loaded[0]["step"] + 1 if self._loaded else 0
        for group in self.config.optimizers.values():
            scheduler = group.get("scheduler")
            if scheduler is not None and getattr(scheduler, "max_steps", 0) is None:
                scheduler.max_steps = first + self.config.max_num_iterations
        return super().setup_optimizers()

    def _load_checkpoint(self) -> None:
        if self._loaded is None:
            CONSOLE.print("Training from scratch.")
            return
        state, path = self._loaded
        self._loaded = None
        self._start_step = state["step"] + 1
        self._last_finished = state["step"]
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler and "schedulers" in state:
            self.optimizers.load_schedulers(state["schedulers"])
        # A checkpoint from a CPU run has an empty scaler state, which an active scaler refuses.
        if state.get("scalers"):
            self.grad_scaler.load_state_dict(state["scalers"])
        CONSOLE.print(f"Resumed from {path} (step {state['step']})", soft_wrap=True)

    # ------------------------------------------------------------------ training

    def train(self) -> None:
        """Train until done or told to stop (SIGTERM, Ctrl-C).

        Raises:
            SystemExit: with the text of a `DataError` that a step or a change of stage met.
        """
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, self._on_signal)
        try:
            super().train()
        except DataError as error:
            raise SystemExit(f"DataError: {error}") from error
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.training_state == "completed" or self._terminated:
            # Second signal, or the viewer waiting after the end: nothing is left to save.
            raise SystemExit(128 + number)
        CONSOLE.print(f"[bold yellow]{signal.Signals(number).name}: saving after this step, then stopping.")
        self._terminated = True
        self.stop_training = True

    def train_iteration(self, step: int):
        """One step; afterwards all ranks agree on whether one of them was told to stop."""
        output = super().train_iteration(step)
        self._last_finished = step
        if self.world_size > 1:
            flag = torch.tensor([float(self._terminated)], device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self._terminated = bool(flag.item())
        if self._terminated:
            self.stop_training = True
        return output

    def _after_train(self) -> None:
        if self._last_finished < 0:
            CONSOLE.print("Stopped before the first step: nothing to save.")
            return
        self.step = self._last_finished
        quit_on_completion = self.config.viewer.quit_on_train_completion
        # The viewer loop of the base class never returns; print the commands before it, and skip it when stopped.
        self.config.viewer.quit_on_train_completion = True
        try:
            super()._after_train()
        finally:
            self.config.viewer.quit_on_train_completion = quit_on_completion
        if comms.is_main_process():
            self._print_commands()
        if self._terminated and self.viewer_state is not None:
            self.shutdown()
        elif not quit_on_completion:
            self._train_complete_viewer()

    def save_checkpoint(self, step: int) -> None:
        """Write ``step-%09d.ckpt`` whole or not at all: to a file beside the folder, fsync, rename.

        The partial file stays out of ``nerfstudio_models``: nerfstudio parses a step out of every name in it.
        """
        if not comms.is_main_process():
            return
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        partial = self.base_dir / "checkpoint.partial"
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        try:
            with open(partial, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self.checkpoint_dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("step-*.ckpt"):
                if other != path:
                    other.unlink()

    # ------------------------------------------------------------------ what to type next

    def _print_commands(self) -> None:
        total = self._start_step + self.config.max_num_iterations
        for line in next_commands(
            self.config, sys.argv, done=self._last_finished + 1, total=total, checkpoints=self.checkpoint_dir
        ):
            CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)


def next_commands(config: ZooTrainerConfig, argv: list[str], done: int, total: int, checkpoints: Path) -> list[str]:
    """The commands that go on from a finished or stopped run, one line each, ready to paste.

    The resume line repeats the user's own options; ``--max-num-iterations`` counts further steps in nerfstudio 1.1.5.
    """
    run = config.get_base_dir()
    config_file = shlex.quote(str(run / "config.yml"))
    remaining = total - done if done < total else total
    user = argv[2:] if len(argv) > 1 and argv[1] == config.method_name else ["--data", str(config.data)]
    user = without_options(user, {"--load-dir", "--load-checkpoint", "--load-step", "--max-num-iterations"})
    resume = ["ns-train", str(config.method_name), "--load-dir", str(checkpoints)]
    resume += ["--max-num-iterations", str(remaining), *user]
    verb = "Resume" if done < total else "Train on"
    return [
        f"{verb + ':':10}{shlex.join(resume)}",
        f"View:     ns-viewer --load-config {config_file}",
        f"Evaluate: ns-eval --load-config {config_file} --output-path {shlex.quote(str(run / 'eval.json'))}",
        f"Render:   ns-render interpolate --load-config {config_file} --output-path "
        f"{shlex.quote(str(run / 'render.mp4'))}",
    ]


def without_options(arguments: list[str], names: set[str]) -> list[str]:
    """Drop ``--name value`` and ``--name=value`` pairs (underscores count as dashes, as in tyro)."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
            continue
        name, equals, _ = argument.partition("=")
        if name.replace("_", "-") in names:
            skip = not equals
            continue
        kept.append(argument)
    return kept


def default_device() -> Literal["cpu", "cuda"]:
    """``cuda`` where a driver works, else ``cpu``; nerfstudio's own default fails on a machine without a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
