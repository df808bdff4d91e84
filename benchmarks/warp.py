"""Megapixels per second of the warp's two backends, and of a whole orbit rendered together.

Question: which backend should draw warps where there is no GPU (spec megascenes 3.4 suggests Open3D's ray casting,
0.13 s per sample of a picture of 256 x 256), and what do four samples per pixel cost?

One thread, CPU time, interleaved, medians of seven rounds; on CUDA wall time after synchronising. The surface is a
picture of 256 x 256 with boxes before a bumpy wall; the cameras are an orbit of 19. "cast" builds a search tree of the
faces that show their front for each camera, or uses the whole mesh's where all do; "torch" prepares and rasterises all
faces; both find the same triangles and share the shading. "bare open3d" is the search alone, over one tree, without
culling, colours or depth.

Predicted: cast ahead of torch on a CPU, where torch's atomic minimum is a serial loop.

Happened (22 November 2026, two cores with seven neighbours): at first both drew 0.53 megapixels a second with four
samples. Over a third of torch's time went into fancy indexing, which is three times as slow as `index_select` row by
row, and colours were computed once per sample instead of once per triangle of a pixel. Without that torch is 1.3 to 1.4
times as fast as cast, whose tree costs as much as two samples. Four samples cost 2.5 times one. "auto" therefore takes
torch everywhere.

Run from the repository root: ``python -m benchmarks.warp``. Writes ``results/warp.json``.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core_ns.errors import is_importable
from megascenes_ns.edge_functions import pinhole_rays
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.paths import orbit
from megascenes_ns.warp import Backend, render, render_many, sample_offsets

RESULTS = Path(__file__).parent / "results" / "warp.json"
ROUNDS = 7
BACKENDS: tuple[Backend, ...] = ("cast", "torch")
SIZE = 256
VIEWS = (0, 5, 13)
"""Cameras of the orbit that single pictures are drawn from."""


def surface() -> tuple[DepthMesh, np.ndarray]:
    """A bumpy wall with twelve boxes before it, and its K: 55 degrees."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[0:SIZE, 0:SIZE]
    depth = 2.0 + 0.3 * np.sin(u / 31.0) + 0.2 * np.cos(v / 23.0)
    for _ in range(12):
        top, left = rng.integers(0, SIZE - 60, 2)
        depth[top : top + rng.integers(15, 60), left : left + rng.integers(15, 60)] = rng.uniform(0.8, 1.6)
    focal = SIZE / 2 / np.tan(np.radians(27.5))
    K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    return DepthMesh.from_depth(depth, K, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)), K


def bare_open3d(mesh: DepthMesh, K: np.ndarray, pose: np.ndarray, spp: int) -> Callable[[], object]:
    """The search alone."""
    open3d: Any = importlib.import_module("open3d")
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(open3d.core.Tensor(mesh.vertices), open3d.core.Tensor(mesh.faces.astype(np.uint32)))
    pixel = torch.arange(SIZE * SIZE)
    centres = torch.stack([pixel % SIZE, pixel // SIZE], dim=1).double() + 0.5
    batches = []
    for offset in sample_offsets(spp):
        rays = pinhole_rays(torch.from_numpy(K)[None], centres + offset)[0].numpy() @ pose[:3, :3].T
        origins = np.broadcast_to(pose[:3, 3], rays.shape)
        batches.append(open3d.core.Tensor(np.concatenate([origins, rays], axis=1).astype(np.float32)))
    return lambda: [scene.cast_rays(batch, nthreads=1) for batch in batches]


def contenders(mesh: DepthMesh, K: np.ndarray) -> dict[str, tuple[Callable[[], object], float]]:
    """What is run, and how many megapixels it gives."""
    poses = orbit()
    single, whole = len(VIEWS) * SIZE * SIZE / 1e6, len(poses) * SIZE * SIZE / 1e6
    entries: dict[str, tuple[Callable[[], object], float]] = {}
    for spp in (1, 4):
        for backend in BACKENDS:

            def views(backend: Backend = backend, spp: int = spp) -> None:
                for view in VIEWS:
                    render(mesh, K, poses[view], SIZE, SIZE, spp, backend)

            entries[f"{backend}, {spp} samples"] = (views, single)
        if is_importable("open3d"):
            searches = [bare_open3d(mesh, K, poses[view], spp) for view in VIEWS]
            entries[f"bare open3d, {spp} samples"] = (lambda each=searches: [run() for run in each], single)
    for backend in BACKENDS:
        entries[f"{backend}, orbit of 19 together, 4 samples"] = (
            lambda backend=backend: render_many(mesh, K[None], poses, SIZE, SIZE, 4, backend),
            whole,
        )
    if torch.cuda.is_available():

        def on_cuda() -> None:
            render_many(mesh, K[None], poses, SIZE, SIZE, 4, "torch", device="cuda")
            torch.cuda.synchronize()

        entries["torch on CUDA, orbit of 19 together, 4 samples (wall time)"] = (on_cuda, whole)
    return entries


def measure(entries: dict[str, tuple[Callable[[], object], float]]) -> dict[str, dict[str, float]]:
    """Median megapixels per second and milliseconds per picture; one warm-up, then interleaved rounds."""
    for run, _ in entries.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(ROUNDS):
        for name, (run, _) in entries.items():
            clock = time.perf_counter if "CUDA" in name else time.process_time
            start = clock()
            run()
            seconds[name].append(clock() - start)
    picture = SIZE * SIZE / 1e6
    found = {}
    for name, (_, megapixels) in entries.items():
        median = statistics.median(seconds[name])
        found[name] = {
            "megapixels_per_second": round(megapixels / median, 3),
            "ms_per_picture": round(1e3 * median * picture / megapixels, 1),
        }
    return found


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure, print, write the JSON."""
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    mesh, K = surface()
    start = time.process_time()
    for _ in range(ROUNDS):
        surface_depth = mesh.vertices[:, 2].reshape(SIZE, SIZE)
        DepthMesh.from_depth(surface_depth, K, mesh.colours.reshape(SIZE, SIZE, 3))
    building = (time.process_time() - start) / ROUNDS
    cases = measure(contenders(mesh, K))
    for name, figures in cases.items():
        print(f"{name:60s}", *(f"{key} {value:8.3f} " for key, value in figures.items()))
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "embreex", "open3d")
            if name != "open3d" or is_importable(name)
        },
        "rounds": ROUNDS,
        "picture": [SIZE, SIZE],
        "faces": len(mesh.faces),
        "ms_to_build_the_mesh": round(1e3 * building, 1),
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
