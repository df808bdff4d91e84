"""Fragments per second of depth peeling on a CPU, forward and backward, against two ways to write it plainly.

Question: what does `r4dv_ns.peel` cost in a training step, and what do its layout and its closed gradient save?

Points on the shell of a body-sized ellipsoid (radius 1.2 gaps, opacity 0.95), which fills half of the image; loss on
colour and accumulation. Contenders, each checked to give the same image: `peel`; `padded`, the textbook version with
torch operations: all pixels of all bounding boxes, one sort by (pixel, depth) keys, a padded index image [pixels, K],
cumprod and autograd; and, for the small image, `brute`: each pixel against each point and a sort per pixel. All are
interleaved: one thread, CPU time (neighbours on a shared machine stretch wall time), medians of rounds after a warm-up.
A fragment is one that is kept, that is blended; the ones found are more. No other CPU implementation is on the package
index: pytorch3d has no wheel there, gsplat renders on CUDA only.

Predicted: `peel` 3 times as fast as `padded` forward and 5 times backward; `brute` hopeless beyond a few thousand
points.

Happened (22 November 2026, under a load of 5 from other work on two cores; the JSON beside this file): on 200x300
pixels 65536 points take 27-31 ms forward and 11-14 ms backward, that is 8-10 and 20-22 million fragments per second.
`padded` takes 5-6 times as long forward and 5-8 times backward (8 and 9 on the larger image). On 3000 points the time
goes to starting small operations and hardly anything is gained over `padded`; `brute` takes 40 times as long there.
Fragments are ordered by pixel with a counting sort, scipy's change of a sparse matrix from columns to rows: two to
three times as fast as torch's radix sort and the lookup after it, so that dropping fragments early pays only where
pixels are covered several times K deep.

Run from the repository root: ``python -m benchmarks.peel``. Writes ``benchmarks/results/peel.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from r4dv_ns.peel import peel

RESULTS = Path(__file__).parent / "results" / "peel.json"
ROUNDS = 9
NEAR, MIN_RADIUS = 1e-4, 0.75
Renderer = Callable[..., tuple[Tensor, Tensor]]
CASES = {
    "3000 points, 40x50 pixels, K=15": (3000, 50, 40, 15),
    "16384 points, 200x300 pixels, K=8": (16384, 300, 200, 8),
    "65536 points, 200x300 pixels, K=8": (65536, 300, 200, 8),
    "65536 points, 200x300 pixels, K=15": (65536, 300, 200, 15),
    "262144 points, 512x612 pixels, K=15": (262144, 612, 512, 15),
}


def cloud(count: int, height: int, width: int) -> tuple[list[Tensor], dict[str, float]]:
    """Points, radii, opacities, colours; and the camera, three units away."""
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    points = points * torch.tensor([0.45, 0.8, 0.35]) * (1 - 0.04 * torch.rand(count, 1, generator=generator))
    points = points + torch.tensor([0.0, 0.0, 3.0])
    radius = torch.full((count,), 1.2 * math.sqrt(math.pi / count))
    color = torch.rand(count, 3, generator=generator)
    camera = {"fx": 1.6 * height, "fy": 1.6 * height, "cx": width / 2, "cy": height / 2}
    return [points, radius, torch.full((count,), 0.95), color], camera


def ours(points, radius, alpha, color, *, height, width, layers, **camera) -> tuple[Tensor, Tensor]:
    """`r4dv_ns.peel.peel`."""
    return peel(points, radius, alpha, color, height=height, width=width, layers=layers, **camera)[:2]


def blend(index: Tensor, points, radius, alpha, color, *, fx, fy, cx, cy, height, width) -> tuple[Tensor, Tensor]:
    """Autograd over an index image [pixels, K], -1 where there is none."""
    exists, take = index >= 0, index.clamp_min(0)
    x, y, z = points[take].unbind(-1)
    rho = fy * radius[take] / z
    drawn = rho.clamp_min(MIN_RADIUS)
    opacity = alpha[take] * (rho / MIN_RADIUS).square().clamp_max(1)
    pixel = torch.arange(height * width)[:, None]
    square = (pixel % width + 0.5 - (fx * x / z + cx)) ** 2 + (pixel // width + 0.5 - (fy * y / z + cy)) ** 2
    a = torch.where(exists, opacity * (1 - square / drawn**2), 0.0)
    light = torch.cumprod(1 - a, 1)
    weight = a * torch.cat([torch.ones_like(light[:, :1]), light[:, :-1]], 1)
    image = (weight[..., None] * color[take]).sum(1)
    return image.reshape(height, width, -1), weight.sum(1).reshape(height, width)


def padded(points, radius, alpha, color, *, height, width, layers, fx, fy, cx, cy) -> tuple[Tensor, Tensor]:
    """All bounding boxes, one sort of all fragments, a padded index image."""
    with torch.no_grad():
        z = points[:, 2]
        u, v = fx * points[:, 0] / z + cx, fy * points[:, 1] / z + cy
        rho = (fy * radius / z).clamp_min(MIN_RADIUS)
        left, top = (u - rho).floor().clamp(0, width).long(), (v - rho).floor().clamp(0, height).long()
        wide = (u + rho).ceil().clamp(0, width).long() - left
        count = wide * ((v + rho).ceil().clamp(0, height).long() - top) * (z > NEAR)
        rank = torch.empty_like(count)
        rank[z.argsort(stable=True)] = torch.arange(len(z))
        owner = torch.repeat_interleave(count)
        number = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
        column, row = left[owner] + number % wide[owner], top[owner] + number // wide[owner]
        inside = (column + 0.5 - u[owner]) ** 2 + (row + 0.5 - v[owner]) ** 2 < rho[owner] ** 2
        owner, pixel = owner[inside], (row * width + column)[inside]
        key = (pixel * len(z) + rank[owner]).sort()
        owner, pixel = owner[key.indices], pixel[key.indices]
        counts = torch.bincount(pixel, minlength=height * width)
        slot = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[pixel]
        kept = slot < layers
        index = torch.full((height * width, layers), -1)
        index[pixel[kept], slot[kept]] = owner[kept]
    return blend(index, points, radius, alpha, color, fx=fx, fy=fy, cx=cx, cy=cy, height=height, width=width)


def brute(points, radius, alpha, color, *, height, width, layers, fx, fy, cx, cy) -> tuple[Tensor, Tensor]:
    """Each pixel against each point."""
    with torch.no_grad():
        z = points[:, 2]
        u, v = fx * points[:, 0] / z + cx, fy * points[:, 1] / z + cy
        pixel = torch.arange(height * width)[:, None]
        square = (pixel % width + 0.5 - u) ** 2 + (pixel // width + 0.5 - v) ** 2
        covers = (square < (fy * radius / z).clamp_min(MIN_RADIUS) ** 2) & (z > NEAR)
        nearest = torch.where(covers, z, math.inf).sort(dim=1, stable=True)
        index = torch.where(nearest.values < math.inf, nearest.indices, -1)[:, :layers]
    return blend(index, points, radius, alpha, color, fx=fx, fy=fy, cx=cx, cy=cy, height=height, width=width)


def measure(count: int, height: int, width: int, layers: int) -> dict[str, float]:
    """Times and rates of one case."""
    tensors, camera = cloud(count, height, width)
    size = {"height": height, "width": width, "layers": layers}
    contenders: dict[str, Renderer] = {"peel": ours, "padded": padded}
    if count * height * width < 10**7:
        contenders["brute"] = brute
    everything = peel(*tensors, height=height, width=width, layers=None, **camera).fragments
    kept = int(everything.clamp_max(layers).sum())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    leaves = [part.clone().requires_grad_() for part in tensors]
    seed = torch.rand(height, width, 3)
    for _ in range(ROUNDS + 1):
        images = {}
        for name, render in contenders.items():
            for leaf in leaves:
                leaf.grad = None
            start = time.process_time()
            image, accumulation = render(*leaves, **size, **camera)
            middle = time.process_time()
            loss = (image * seed).sum() + accumulation.sum()
            before = time.process_time()
            loss.backward()
            times[name].append((middle - start, time.process_time() - before))
            images[name] = image.detach()
        for image in images.values():
            torch.testing.assert_close(image, images["peel"], atol=2e-4, rtol=0)
    seconds = {
        f"{name}_{part}": statistics.median(pair[k] for pair in rounds[1:])
        for name, rounds in times.items()
        for k, part in enumerate(("forward", "backward"))
    }
    return {
        "fragments_found": int(everything.sum()),
        "fragments_kept": kept,
        "pixels_covered": int((everything > 0).sum()),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in seconds.items()},
        "mfragments_per_second_forward": round(kept / seconds["peel_forward"] / 1e6, 1),
        "mfragments_per_second_backward": round(kept / seconds["peel_backward"] / 1e6, 1),
        **{
            f"{name}_over_peel_{part}": round(seconds[f"{name}_{part}"] / seconds[f"peel_{part}"], 1)
            for name in list(contenders)[1:]
            for part in ("forward", "backward")
        },
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
        "versions": {"torch": importlib.metadata.version("torch")},
        "rounds": ROUNDS,
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
