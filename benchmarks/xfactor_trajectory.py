"""A camera motion of 30 frames carried into another scene: in batches against frame by frame, on a CPU.

Question: what does drawing a whole trajectory at once save (issue 6, benchmark 4)?

Three ways to the same 30 pictures: `anew` asks the networks for everything for each frame, as a viewer without memory
would (latent of the frame, latents of the context, the picture); `one by one` reads the latents once and draws single
frames; `batched` draws 8 or 30 frames at once. One thread, CPU time (neighbours on a shared machine stretch wall time),
interleaved, medians after a warm-up round; random weights, whose arithmetic is that of trained ones. Memory is
the growth of the process's peak in the warm-up round, the ways in the order above.

Predicted: batching gains little on one CPU thread with large networks, whose matrix products are large enough for one
frame, and up to twice with the small ones; asking anew costs the encoder's share again: 193 of 355 GFLOP a frame for
one context frame at full size.

Happened (22 November 2026, a machine that others loaded heavily; the JSON beside this file): batches of 8 are 4.0 times
as fast as single frames at xfactor-tiny's size (batches of 30: 4.8 times), more than predicted, 1.9 times at 64 pixels
with five context frames, and 1.1 to 1.4 times at width 256, as predicted. Asking anew takes 2.0 to 2.8 times as long as
single frames: with five context frames their latents come on top. Larger batches than 8 gain nothing from 64 pixels
on and need up to three times the memory, so 8 is the default.

Run from the repository root: ``python -m benchmarks.xfactor_trajectory``. Writes
``benchmarks/results/xfactor_trajectory.json``.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.voxel_walk import cpu_model
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size
from xfactor_ns.transfer import clip_latents, render_latents, scene_context

RESULTS = Path(__file__).parent / "results" / "xfactor_trajectory.json"
FRAMES = 30
MB = 1e6
TINY = Size(width=64, heads=4, blocks=2, patch=8, pose=16, registers=2)
MIDDLE = Size(width=256, heads=8, blocks=4, patch=16, pose=64, registers=8)
CASES = {
    "xfactor-tiny: 32 pixels, width 64, 2 blocks, 1 context frame": (TINY, 32, 1, 9),
    "64 pixels, width 64, 2 blocks, 5 context frames": (TINY, 64, 5, 9),
    "128 pixels, width 256, 4 blocks, 1 context frame": (MIDDLE, 128, 1, 3),
    "128 pixels, width 256, 4 blocks, 5 context frames": (MIDDLE, 128, 5, 1),
}


def noise(frames: int, side: int, seed: int) -> Tensor:
    """uint8 pictures."""
    return torch.randint(0, 256, (frames, side, side, 3), generator=torch.Generator().manual_seed(seed)).byte()


def idle_bytes() -> int:
    """Resident memory once the allocator has given back what it only keeps (Linux), where the peak starts anew."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return reset_peak()


def ways(net: XFactorNet, side: int, count: int) -> dict[str, Callable[[], Tensor]]:
    """The three ways to the same pictures; the last one in two batch sizes."""
    a, b = noise(FRAMES, side, 0), noise(count, side, 1)
    chosen, middle = list(range(count)), FRAMES // 2

    def anew() -> Tensor:
        pictures = []
        for frame in range(FRAMES):
            latent = clip_latents(net, a[[middle, frame]], 0, 1)[1:]
            pictures.append(render_latents(net, *scene_context(net, b, chosen, 1), latent, 1))
        return torch.cat(pictures)

    def together(batch: int) -> Tensor:
        latents = clip_latents(net, a, middle, batch)
        return render_latents(net, *scene_context(net, b, chosen, batch), latents, batch)

    return {
        "anew": anew,
        "one_by_one": lambda: together(1),
        "batches_of_8": lambda: together(8),
        "batches_of_30": lambda: together(FRAMES),
    }


def measure(size: Size, side: int, count: int, rounds: int) -> dict[str, float]:
    """Seconds, memory and factors of one case."""
    entries = ways(XFactorNet(size).eval(), side, count)
    pictures, memory = {}, {}
    for name, run in entries.items():
        before = idle_bytes()
        pictures[name] = run()
        memory[name] = (peak_bytes() - before) / MB
    off = max(int((each.int() - pictures["anew"].int()).abs().max()) for each in pictures.values())
    assert off <= 1, "the ways draw the same pictures, up to rounding"
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(rounds):
        for name, run in entries.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    best = min(seconds["batches_of_8"], seconds["batches_of_30"])
    return {
        **{f"{name}_s": round(value, 3) for name, value in seconds.items()},
        **{f"{name}_mb": round(value, 1) for name, value in memory.items()},
        "frames_per_second": round(FRAMES / best, 2),
        "batched_over_one_by_one": round(seconds["one_by_one"] / best, 2),
        "batched_over_anew": round(seconds["anew"] / best, 2),
        "rounds": rounds,
    }


def main() -> None:
    """Measure all cases and write the JSON."""
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    cases = {}
    for name, case in CASES.items():
        cases[name] = measure(*case)
        print(name, json.dumps(cases[name]), flush=True)
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {"torch": importlib.metadata.version("torch")},
        "frames": FRAMES,
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
