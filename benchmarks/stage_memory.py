"""Memory that each of diver's training stages takes, by grid size.

Question: how much of the original's memory do the active vertices alone need? It keeps a dense table of all
(N+1)^3 vertices, its gradient and two moments of Adam: 35 MB x 4 at N = 64, 2.2 GB x 4 at 256.

For each grid a process of its own trains ``diver-tiny`` (coarse grid N/4, but 64 at most) with so few steps that only
the coarse stage learns where the object is, and a thread notes the largest resident size in every stage, from which the
process's size before the trainer was built (Python, torch, nerfstudio) is taken off; photos (12 MB) count. Table:
bytes of features, gradient and two moments of the explicit stage.

Scene: a generated object, 60 photos of 200x200.

Predicted: tables 5-8 times smaller than the dense ones at every size (a solid object and its neighbourhood fill an
eighth of the cube); at 256 the activations of 1024 rays add less than 0.5 GB.

Happened (21 November 2026; 64 and 128): tables 4.7 and 6.1 times smaller than dense ones (58 211 of 274 625 and 351 753
of 2.1 million vertices). Largest resident size above the start, coarse / implicit / explicit: 124 / 264 / 343 MB at 64,
233 / 446 / 651 MB at 128. The dense table alone would take 141 and 1099 MB. 256 was not run.

Run: ``python benchmarks/stage_memory.py [--grids 64 128]``. Writes benchmarks/results/stage_memory.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from parts.timed_training import common_options

RESULTS = Path(__file__).resolve().parent / "results" / "stage_memory.json"
STEPS = (300, 20, 20)


def measure(grid: int, scene: str, work: str, answer: Any) -> None:
    """Train with one grid size and put the figures into a queue."""
    from diver_ns.config import diver_tiny
    from diver_ns.stages import Stage

    config = common_options(copy.deepcopy(diver_tiny.config), Path(scene), Path(work))
    config.max_num_iterations = sum(STEPS)
    model = config.pipeline.model
    model.resolution, model.coarse_resolution, model.stage_steps = grid, min(grid // 4, 64), STEPS
    torch.manual_seed(0)
    process = psutil.Process()
    before = process.memory_info().rss
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    peaks: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            stage = trainer.pipeline.model.stage.name.lower()
            peaks[stage] = max(peaks.get(stage, 0), process.memory_info().rss)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found = {}

    def note() -> None:
        found["vertices_in_training"] = len(trainer.pipeline.model.vertex_ids)

    trained = trainer.train_iteration

    def step(number: int) -> Any:
        if trainer.pipeline.model.stage == Stage.EXPLICIT:
            note()
        return trained(number)

    trainer.train_iteration = step
    trainer.train()
    done.set()
    watcher.join()
    dense = 4 * 4 * 32 * (grid + 1) ** 3
    answer.put({
        "grid": grid, **found, "vertices_at_the_end": len(trainer.pipeline.model.vertex_ids),
        "dense_training_table_mb": dense / 1e6,
        "training_table_mb": found["vertices_in_training"] * 32 * 4 * 4 / 1e6,
        "peak_mb": {stage: (peak - before) / 1e6 for stage, peak in peaks.items()},
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from dataparsers.blender_parser import write_blender
    from dataparsers.object_scene import demo_object

    context = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory(prefix="memory-") as work:
        scene = Path(work) / "scene"
        write_blender(scene, demo_object(train=60, val=2, test=2, size=200))
        for grid in arguments.grids:
            answer = context.Queue()
            process = context.Process(target=measure, args=(grid, str(scene), f"{work}/{grid}", answer))
            process.start()
            row = answer.get(timeout=1800)
            process.join()
            rows.append(row)
            print(json.dumps(row), flush=True)
    device = {"machine": platform.machine(), "cpus": os.cpu_count(), "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"question": "memory by stage", "device": device, "grids": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
