"""Train a nerfstudio method for so many seconds of wall time, with pauses for scoring at marks of the budget."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer

from core_ns.schedules import cosine_factor

SHARES = (0.1, 0.2, 0.4, 1.0)
Score = Callable[[Trainer, bool], dict[str, Any]]
"""Scores of a trainer's model; the second argument says that it is the last mark."""


class Clock:
    """Stops the training time during evaluations, and the training at the end of the budget."""

    def __init__(self, trainer: Trainer, score: Score, seconds: float) -> None:
        self.trainer, self.score, self.seconds = trainer, score, seconds
        self.waiting = [share * seconds for share in SHARES]
        self.marks: list[dict[str, Any]] = []
        self.start, self.paused = math.nan, 0.0

    def trained(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self.start - self.paused

    def after_step(self, step: int) -> None:
        """Training callback: score if the step ended beyond a mark."""
        trained, begin = self.trained(), time.perf_counter()
        mark = None
        while self.waiting and trained >= self.waiting[0]:
            mark = self.waiting.pop(0)
        if mark is None:
            return
        self.trainer.pipeline.eval()
        scores = self.score(self.trainer, not self.waiting)
        self.trainer.pipeline.train()
        self.marks.append({"mark": mark, "seconds": trained, "steps": step + 1, **scores})
        shown = "  ".join(f"{key} {value:.2f}" for key, value in scores.items() if key.startswith("psnr"))
        print(f"  {trained:6.1f} s  {step + 1:6d} steps  {shown}", flush=True)
        self.paused += time.perf_counter() - begin
        self.trainer.stop_training = not self.waiting

    def anneal(self) -> None:
        """Let cosine schedules run over the time budget: how many steps that is, is not known beforehand."""

        def factor(step: int) -> float:
            milliseconds = 0 if math.isnan(self.start) else int(1000 * self.trained())
            return cosine_factor(milliseconds, max_steps=int(1000 * self.seconds))

        for schedule in self.trainer.optimizers.schedulers.values():
            schedule.lr_lambdas = [factor for _ in schedule.lr_lambdas]  # type: ignore[attr-defined]


def common_options(config: Any, data: Path, work: Path) -> Any:
    """What all trainers get: data, CPU, no viewer, no logs, no evaluation of their own."""
    config = copy.deepcopy(config)
    config.pipeline.datamanager.data = data
    config.output_dir, config.timestamp = work / "runs", "run"
    config.machine.device_type = "cpu"
    config.vis = "none"  # any word nerfstudio does not know switches viewer, writers and evaluation off
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    config.max_num_iterations, config.steps_per_save = 10**9, 10**9
    return config


class NoLpips(torch.nn.Identity):
    """Stands in for the LPIPS network that nerfstudio's models build for evaluations of their own."""


def train(name: str, config: Any, seconds: float, score: Score, views: list[str], anneal: bool) -> dict[str, Any]:
    """Train until the budget is spent, scoring at the marks.

    Args:
        name: of the scene, to print.
        config: see `common_options`.
        seconds: of training; set-up and scoring do not count.
        score: called at each mark.
        views: stems of the held-out photos, which the method's own data manager must name too.
        anneal: see `Clock.anneal`.
    """
    print(f"{name}: {config.method_name}, {seconds:g} s", flush=True)
    begin = time.perf_counter()
    random.seed(config.machine.seed)
    np.random.seed(config.machine.seed)  # noqa: NPY002  # as ns-train does
    torch.manual_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    Path(trainer.base_dir).mkdir(parents=True, exist_ok=True)
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", NoLpips):
        trainer.setup()
    manager = trainer.pipeline.datamanager
    seen = [path.stem for path in manager.eval_dataset.image_filenames]
    assert seen == views, f"held-out views differ: {seen}"
    clock = Clock(trainer, score, seconds)
    after = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
    trainer.callbacks.append(TrainingCallback(where_to_run=after, update_every_num_iters=1, func=clock.after_step))
    if anneal:
        clock.anneal()
    manager.next_train(0)  # a worker process starts and reads the photos before its first batch
    setup_seconds = time.perf_counter() - begin
    clock.start = time.perf_counter()
    trainer.train()
    if clock.waiting:  # the method had its own last step
        clock.waiting = [0.0]
        clock.after_step(trainer._start_step + config.max_num_iterations - 1)
    for process in getattr(manager, "data_procs", []):
        process.terminate()
        process.join()
    return {"setup_seconds": setup_seconds, "rays_per_batch": manager.get_train_rays_per_batch(), "marks": clock.marks}
