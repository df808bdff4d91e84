"""Features of points in planes through space and time: our lookup against the obvious one, forward and backward.

Question: how many points a second does `PlaneField` look up and learn from on a CPU (on CUDA too where there is a
device), against one ``grid_sample`` per plane and level, which is how K-Planes and 4K4D's dense backend read theirs?

Both hold the same numbers (levels of 64 to 512 texels, 8 channels, 20 frames, sum over the six planes, one time for all
points, points on a bumpy sphere) and must return the same features; the largest difference is written down. "learn" is
forward and backward to planes and positions. Contenders are interleaved round by round; one round to warm up.

Predicted before the first run: 3 times faster forward (contiguous channels, one gather for three planes, temporal
planes cut at the moment first), 5 times backward.

Result (2026-11-21, two cores of an AMD EPYC shared with other programs): right in direction, wrong in size. Lookup 1.1
to 1.2 times faster, learning 1.2 to 1.4 times, about 2.5 microseconds a point. torch's grid_sample is well vectorised
on CPUs; the first version of ours was no faster at all, because torch's own ways to read and scatter rows are slow: a
table that wants gradients makes embedding_bag seven times slower (it is detached now), scatter_add_ takes ten times as
long as the sparse product used instead. Our rows also serve hashed tables and photos of different sizes, which
grid_sample cannot read in one pass. Larger than all of this: torch's default Adam over these 8.6 million texels takes
120 ms a step, the fused one 13 ms.

Run from the repository root: ``python -m benchmarks.planes``. Writes ``benchmarks/results/planes.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.hash_grid import cpu_name, surface_points
from r4dv_ns.planes import PLANES, PlaneField

RESULTS = Path(__file__).parent / "results" / "planes.json"
COUNTS = (16384, 65536)
FRAMES, MOMENT, ROUNDS = 20, 0.37, 15


class GridSampledPlanes(nn.Module):
    """The obvious twin: planes as images [1, C, rows, columns], one `grid_sample` each."""

    def __init__(self, field: PlaneField) -> None:
        super().__init__()
        self.spatial, self.temporal = (
            nn.ParameterList(
                plane.detach().permute(2, 0, 1)[None].clone(memory_format=torch.contiguous_format)
                for table in tables
                for plane in table
            )
            for tables in (field.spatial, field.temporal)
        )

    def forward(self, x: Tensor, t: float) -> Tensor:
        """As `PlaneField.forward` with "sum"."""
        down = torch.full_like(x[:, 0], 2.0 * t - 1.0)
        levels = []
        for level in range(len(self.spatial) // 3):
            total = x.new_zeros(())
            for k, (first, second) in enumerate(PLANES):
                total = total + _sample(self.spatial[3 * level + k], x[:, first], x[:, second], False)
                total = total + _sample(self.temporal[3 * level + k], x[:, k], down, True)
            levels.append(total)
        return torch.cat(levels, dim=1)


def _sample(plane: Tensor, across: Tensor, down: Tensor, align_corners: bool) -> Tensor:
    grid = torch.stack([across, down], dim=-1)[None, None]
    return F.grid_sample(plane, grid, padding_mode="border", align_corners=align_corners)[0, :, 0].T


def seconds(module: Callable[..., Tensor], x: Tensor, upstream: Tensor) -> tuple[float, float]:
    """Of a lookup without gradients, and of a lookup with its backward pass.

    One thread on a CPU is timed by the processor's clock, which other programs on the machine disturb less.
    """

    def wait() -> float:
        if x.is_cuda:
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    start = wait()
    with torch.no_grad():
        module(x, MOMENT)
    middle = wait()
    module(x.requires_grad_(), MOMENT).backward(upstream)
    return middle - start, wait() - middle


def measure(count: int, device: str) -> dict[str, object]:
    """Thousands of points per second of each contender, medians, and their ratio."""
    torch.manual_seed(0)
    field = PlaneField(frames=FRAMES)
    made = {"grid_sample": GridSampledPlanes(field).to(device), "ours": field.to(device)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(ROUNDS + 1):
        x = (surface_points(count) * 2.0 - 1.0).to(device)
        upstream = torch.randn(count, field.width, device=device)
        for name, module in made.items():
            module.zero_grad()
            times[name].append(seconds(module, x.clone(), upstream))
    with torch.no_grad():
        difference = float((made["ours"](x, MOMENT) - made["grid_sample"](x, MOMENT)).abs().max())
    rates = {
        name: {
            part: round(count / statistics.median(run[k] for run in runs[1:]) / 1e3)
            for k, part in enumerate(["lookup", "learn"])
        }
        for name, runs in times.items()
    }
    ratio = {part: round(rates["ours"][part] / rates["grid_sample"][part], 2) for part in rates["ours"]}
    return {"thousand points per second": rates, "ours / grid_sample": ratio, "largest difference": difference}


def main() -> None:
    """Measure, print, write the JSON."""
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        "clock": "processor time with one CPU thread, else wall time",
        "cases": [],
    }
    places = [("cpu", threads) for threads in (2, 1)] + ([("cuda", 1)] if torch.cuda.is_available() else [])
    for (device, threads), count in itertools.product(places, COUNTS):
        torch.set_num_threads(threads)
        about = {"device": device, "threads": threads, "points": count, "load_average": os.getloadavg()}
        case = {**about, **measure(count, device)}
        result["cases"].append(case)
        print(case)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
