"""Segments per second of the two-level walk against the plain sort of all planes, on a CPU.

Question: what does cutting only occupied cells save, and what does the walk cost beside the integral that follows it?

Rays from four units away towards random points of a cube of 2.8 units; the occupied voxels are those of a sphere's
shell (6 % of 64^3) or all. All contenders are interleaved: one thread, CPU time (neighbours on a shared machine stretch
wall time), medians of nine rounds after a warm-up. Beside the walk: weights, corner ids and integral of a 32-channel
table (that of 64 voxels, else 2^20 rows) for the same segments, forward and with the table's gradient, by `integrate`,
by `embedding_bag` with its own gradient, and by `embedding_bag` with an `index_add_` per corner.

Predicted: without a mask `walk` is 2-4 times as fast (numpy's vectorised sort instead of torch's), at least 10 million
segments per second; with the shell at 256 voxels 10 times or more per ray, because the sort sees 5 % of the planes.

Happened (21 November 2026, idle cores; the JSON beside this file): with the shell `walk` is 5.9 times as fast at 64^3
cells (47.8 against 281 ms for 8192 rays) and 5.5 times at 256^3, less than predicted: placing and writing the kept
segments costs more than finding them. Without a mask it gains 7 % at 64 and a third at 256 voxels, for the same reason:
8 and 13 million segments per second. The shell gives 4.6-5.5 million, since most of its cuts lie in cells that turn out
empty. With the table's gradient `integrate` takes 40-49 % of the time of `embedding_bag` and 40-46 % of that with
`index_add_`. The walk takes 10-43 % of that step of the integral, but longer than its forward part alone where most
cells are empty.

Run from the repository root: ``python -m benchmarks.voxel_walk``. Writes ``benchmarks/results/voxel_walk.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from diver_ns.grid import Grid
from diver_ns.integrator import chord_weights, corner_ids, integrate
from diver_ns.voxel_walk import walk, walk_sorted

RESULTS = Path(__file__).parent / "results" / "voxel_walk.json"
ROUNDS = 9
Blend = Callable[[Tensor, Tensor, Tensor], Any]
CASES = {
    "coarse stage: 64 voxels, no mask, 1024 rays": (64, None, 1024),
    "fine stage: 256 voxels, shell of 64^3 cells, 8192 rays": (256, 64, 8192),
    "pruned model: 256 voxels, shell of 256^3 voxels, 8192 rays": (256, 256, 8192),
    "256 voxels, no mask, 2048 rays": (256, None, 2048),
}


def shell(cells: int) -> Tensor:
    """Cells that a sphere's surface passes, 2.4 cells of 64 thick (never thinner than a cell)."""
    axis = (torch.arange(cells) + 0.5) / cells - 0.5
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return (radius - 0.357).abs() < 1.2 / 64


def rays(grid: Grid, count: int) -> tuple[Tensor, Tensor]:
    """Grid coordinates of rays from a sphere of radius 4 towards random points of the middle of the cube."""
    generator = torch.Generator().manual_seed(0)
    origins = 4 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    targets = (torch.rand(count, 3, generator=generator) - 0.5) * 2.4
    return grid.to_grid(origins, torch.nn.functional.normalize(targets - origins, dim=1))


def median_seconds(entries: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Interleaved rounds after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for round_ in range(ROUNDS + 1):
        for name, run in entries.items():
            start = time.process_time()
            run()
            if round_:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def bag(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """torch's own operation and gradient."""
    return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


class IndexAdd(torch.autograd.Function):
    """`bag` whose gradient is added corner by corner."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """As `bag`."""
        ctx.save_for_backward(table, rows, weights)
        return bag(table, rows, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Of the table alone."""
        table, rows, weights = ctx.saved_tensors
        out = torch.zeros_like(table)
        for k in range(rows.shape[1]):
            out.index_add_(0, rows[:, k], grads[0] * weights[:, k : k + 1])
        return out, None, None


def measure(resolution: int, cells: int | None, count: int) -> dict[str, float]:
    """Rates of one case."""
    origins, directions = rays(Grid(resolution), count)
    mask = None if cells is None else shell(cells)
    segments = walk(origins, directions, resolution, occupied=mask)
    table = torch.rand((resolution + 1) ** 3 if resolution <= 64 else 1 << 20, 32, requires_grad=True)

    def inputs() -> tuple[Tensor, Tensor]:
        return corner_ids(segments.voxel, resolution) % len(table), chord_weights(segments.u_in, segments.u_out)

    def forward() -> None:
        with torch.no_grad():
            integrate(table, *inputs())

    def backward(blend: Blend) -> None:
        table.grad = None
        blend(table, *inputs()).sum().backward()

    seconds = median_seconds(
        {
            "walk": lambda: walk(origins, directions, resolution, occupied=mask),
            "walk_sorted": lambda: walk_sorted(origins, directions, resolution, occupied=mask),
            "integral": forward,
            "integral_with_gradient": lambda: backward(integrate),
            "embedding_bag_with_gradient": lambda: backward(bag),
            "index_add_with_gradient": lambda: backward(IndexAdd.apply),
        }
    )
    kept = len(segments.ray)
    return {
        "segments": kept,
        "segments_per_ray": round(kept / count, 1),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in seconds.items()},
        "walk_msegments_per_second": round(kept / seconds["walk"] / 1e6, 2),
        "sorted_msegments_per_second": round(kept / seconds["walk_sorted"] / 1e6, 2),
        "walk_krays_per_second": round(count / seconds["walk"] / 1e3, 1),
        "walk_over_sorted": round(seconds["walk_sorted"] / seconds["walk"], 2),
    }


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure all cases and write the JSON."""
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    cases = {}
    for name, case in CASES.items():
        cases[name] = measure(*case)
        print(name, json.dumps(cases[name]))
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        "rounds": ROUNDS,
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
