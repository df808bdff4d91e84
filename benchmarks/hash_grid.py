"""One training step of our hash grid on a CPU against nerfstudio's torch fallback.

Question: how much faster than ``HashEncoding(implementation="torch")`` with torch's Adam are `HashGrid` and `RowAdam`,
and which of the two earns it?

A step is zero_grad, forward, backward from a given upstream gradient, optimiser step. Points are drawn anew each round
on a bumpy sphere, as surface hits of random training rays are. Contenders are interleaved round by round; one round to
warm up. nerfstudio's encoding only blends linearly; ours runs smoothstep, which is more work. Both have levels of 16 to
1024 vertices; nerfstudio gives full tables to coarse levels too. "fused Adam" is Adam(fused=True), which nerfstudio
does not use; it also moves rows without gradient, which RowAdam leaves alone.

Predicted after the first version, from probes of the parts on an idle machine (640 ms against 140 ms): 4 to 5 times
faster at F2 T19, over 10 times at F4 T21 where dense Adam moves over 2 GB a step; half the gain from the optimiser.

Result (2026-11-21, two cores of an AMD EPYC, otherwise idle; 2 threads): the whole step is 5.1 times faster at F2 T19
(394 ms against 78 ms; forward 3.7, backward 12.5, optimiser 2.0), 2.0 at F2 T17 and 12.9 at F4 T21 (26 with 1 thread).
The prediction held, but not its reason: the gain is the backward pass, which nerfstudio spends on scattering into one
table for all levels. RowAdam beats torch's default Adam on large tables only; torch's fused Adam beats both (6 ms of
the 78 at F2 T19), but moves rows that got no gradient. On a loaded machine all of this shrinks to noise.

Run from the repository root: ``python -m benchmarks.hash_grid``. Writes ``benchmarks/results/hash_grid.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

from xscale_ns.hash_grid import HashGrid
from xscale_ns.row_adam import RowAdam

RESULTS = Path(__file__).parent / "results" / "hash_grid.json"
THREADS = (2, 1)
LEVELS, BASE, FINEST = 16, 16, 1024
# points, features, log2 table, rounds
CASES = {"F2 T19": (16384, 2, 19, 9), "F2 T17": (8192, 2, 17, 9), "F4 T21": (16384, 4, 21, 5)}


def surface_points(count: int) -> Tensor:
    """Points on a bumpy sphere inside the unit cube, [N, 3]."""
    direction = nn.functional.normalize(torch.randn(count, 3), dim=1)
    radius = 0.4 + 0.03 * (direction * 9).sin().prod(1, keepdim=True)
    return 0.5 + radius * direction


def contenders(features: int, log2_table: int) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    """Encoding and optimiser of each contender."""

    def nerfstudio() -> HashEncoding:
        return HashEncoding(LEVELS, BASE, FINEST, log2_table, features, implementation="torch")

    def ours() -> HashGrid:
        return HashGrid(LEVELS, features, log2_table, BASE, FINEST)

    made: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
    for name, build in {"nerfstudio": nerfstudio, "ours": ours}.items():
        for optimizer, fused in {"Adam": False, "fused Adam": True}.items():
            module = build()
            made[f"{name} + {optimizer}"] = module, torch.optim.Adam(module.parameters(), 1e-2, eps=1e-15, fused=fused)
    grid = ours()
    made["ours + RowAdam"] = grid, RowAdam(grid.parameters(), 1e-2)
    return made


def step(module: nn.Module, optimizer: torch.optim.Optimizer, points: Tensor, upstream: Tensor) -> list[float]:
    """Seconds of forward, backward and optimiser."""
    marks = [time.perf_counter()]
    optimizer.zero_grad()
    out = module(points)
    marks.append(time.perf_counter())
    out.backward(upstream)
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(marks)]


def measure(count: int, features: int, log2_table: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per contender: medians of the parts and of the whole, and the fastest whole."""
    torch.manual_seed(0)
    made = contenders(features, log2_table)
    times: dict[str, list[list[float]]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        points, upstream = surface_points(count), torch.randn(count, LEVELS * features)
        for name, (module, optimizer) in made.items():
            times[name].append(step(module, optimizer, points, upstream))
    table = {}
    for name, runs in times.items():
        kept = runs[1:]
        row = {
            part: statistics.median(run[k] for run in kept)
            for k, part in enumerate(["forward", "backward", "optimiser"])
        }
        row |= {"step": statistics.median(map(sum, kept)), "fastest step": min(map(sum, kept))}
        table[name] = {key: round(1e3 * value, 2) for key, value in row.items()}
    return table


def cpu_name() -> str:
    """The processor's model name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print, write the JSON."""
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "nerfstudio", "numpy")},
        "unit": "milliseconds; medians",
        "cases": [],
    }
    for threads, (case, (count, features, log2_table, rounds)) in itertools.product(THREADS, CASES.items()):
        torch.set_num_threads(threads)
        table = measure(count, features, log2_table, rounds)
        ours, theirs = table["ours + RowAdam"], table["nerfstudio + Adam"]
        ratios = {key: round(theirs[key] / ours[key], 2) for key in ours}
        about = {"case": case, "threads": threads, "points": count, "rounds": rounds, "load_average": os.getloadavg()}
        result["cases"].append({**about, "times": table, "nerfstudio / ours": ratios})
        print(about)
        for name, row in table.items():
            print(f"  {name:24}", row)
        print("  ratio", ratios)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
