"""Rays per second of our casters against bare embreex and bare Open3D on a CPU.

Question: what do the robust flag, the conversion to our form and the tensor interface cost, and is embree the
right first choice on a CPU (spec xscale 8.1 measured Open3D ahead of trimesh's embree)?

Every contender gets the same float32 rays. "bare" is ``EmbreeScene.run(output=True)``: one thread and, embreex's
default, not robust (it loses about 1 of 20 rays aimed at an edge); "bare robust" has the flag we need. Open3D gets its
own [N, 6] tensor ready-made. Contenders are interleaved, medians of five rounds. Wall time suffers from neighbours on a
shared machine, CPU time (all threads together) less so; both are kept, and the load average with them.

Predicted (after probes of the single parts): ours on one thread >= 0.8 of bare in every case, worst on coherent rays at
0.2 M faces, where tracing is cheapest; about twice that on two free threads; Open3D slower than ours on random rays.

Happened (21 November 2026, two cores; at first under a load of 4-5 from other work): a first version, which solved
again on every found face in float64 with torch, reached 0.57-0.78 of bare on one thread and 0.11-0.32 on two, because
torch's OpenMP threads spin when cores are taken. It was replaced by Embree's own t, u, v, converted in numpy inside the
tracing threads. On idle cores (the JSON beside this file) that has 0.94-0.98 of bare embreex on one thread and 1.6-1.8
times bare on two; robust costs 0-2 %. Open3D is 3-8 % ahead on one thread and 1.9-2.5 times bare on two, with its rays
ready-made: it is the same Embree inside, without our conversion. Under load wall time scattered by a third.

Run from the repository root: ``python -m benchmarks.caster``. Writes ``benchmarks/results/caster.json``.
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

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from core_ns.errors import is_importable
from core_ns.frames import camera_directions
from core_ns.raycast import make_caster

RESULTS = Path(__file__).parent / "results" / "caster.json"
ROUNDS = 5
CELLS = {"0.2M": 317, "2M": 1001}
WIDTH, HEIGHT = 640, 480
Case = tuple[np.ndarray, np.ndarray]


def terrain(cells: int) -> Case:
    """Bumpy heights over [-1, 1]^2: vertices float32 [V, 3], faces int32 [2 cells^2, 3]."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, cells + 1)] * 2, indexing="ij")
    z = 0.1 * np.sin(7 * x) * np.cos(5 * y) + 0.03 * np.sin(31 * x + 3 * y)
    index = np.arange((cells + 1) ** 2, dtype=np.int32).reshape(cells + 1, cells + 1)
    a, b, c, d = (i.ravel() for i in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32), faces


def image_rays() -> Case:
    """A 640x480 view obliquely from above, row by row; about nine in ten rays hit."""
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    intrinsics = np.array([[600.0, 0, WIDTH / 2], [0, 600.0, HEIGHT / 2], [0, 0, 1]])
    directions = camera_directions(np.stack([u.ravel(), v.ravel()], 1), intrinsics)
    tilt = 0.7
    directions = directions @ np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origins = np.broadcast_to(np.array([0.0, -1.2, 1.4]), directions.shape)
    return np.ascontiguousarray(origins, np.float32), directions.astype(np.float32)


def random_rays() -> Case:
    """As many rays from everywhere above towards random points of the terrain's box: a shuffled training batch."""
    generator = np.random.default_rng(0)
    targets = generator.uniform(-1, 1, (WIDTH * HEIGHT, 3)) * [1, 1, 0.1]
    directions = generator.normal(size=targets.shape)
    directions[:, 2] = -np.abs(directions[:, 2])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (targets - 2 * directions).astype(np.float32), directions.astype(np.float32)


def with_threads(threads: int, cast: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        torch.set_num_threads(threads)
        cast()

    return run


def contenders(mesh: Case, rays: Case, threads: int) -> dict[str, Callable[[], object]]:
    vertices, faces = mesh
    plain, robust = EmbreeScene(), EmbreeScene(robust=True)
    # embreex leaves the mesh to the scene: the objects must live as long as it does.
    for scene in (plain, robust):
        TriangleMesh(scene, vertices, faces)
    tensors = [torch.from_numpy(x) for x in rays]
    points, triangles = torch.from_numpy(vertices), torch.from_numpy(faces).long()
    embree, automatic = (make_caster(points, triangles, "cpu", name) for name in ("embree", "auto"))
    entries: dict[str, Callable[[], object]] = {
        "bare embreex, 1 thread": lambda: plain.run(*rays, output=True),
        "bare robust embreex, 1 thread": lambda: robust.run(*rays, output=True),
        "ours embree, 1 thread": with_threads(1, lambda: embree.cast(*tensors)),
        f"ours auto ({automatic.name}), {threads} threads": with_threads(threads, lambda: automatic.cast(*tensors)),
    }
    if is_importable("open3d"):
        import open3d

        scene = open3d.t.geometry.RaycastingScene()
        scene.add_triangles(open3d.core.Tensor(vertices), open3d.core.Tensor(faces.astype(np.uint32)))
        joined = open3d.core.Tensor(np.concatenate(rays, axis=1))
        for count in (1, threads):
            name = f"bare open3d, {count} thread{'s' if count > 1 else ''}"
            entries[name] = lambda count=count: scene.cast_rays(joined, nthreads=count)
    return entries


def measure(entries: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Median million rays per second of wall and of CPU time; one warm-up, then interleaved rounds."""
    for run in entries.values():
        run()
    wall: dict[str, list[float]] = {name: [] for name in entries}
    cpu: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(ROUNDS):
        for name, run in entries.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    count = WIDTH * HEIGHT / 1e6
    return {
        name: {
            "mrays_per_wall_second": round(count / statistics.median(wall[name]), 3),
            "mrays_per_cpu_second": round(count / statistics.median(cpu[name]), 3),
        }
        for name in entries
    }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    threads = os.cpu_count() or 1
    load_before = os.getloadavg()[0]
    cases = {}
    for size, cells in CELLS.items():
        mesh = terrain(cells)
        for kind, rays in {"image": image_rays(), "random": random_rays()}.items():
            rates = measure(contenders(mesh, rays, threads))
            bare = rates["bare embreex, 1 thread"]
            for rate in rates.values():
                for clock in ("wall", "cpu"):
                    key = f"mrays_per_{clock}_second"
                    rate[f"over_bare_{clock}"] = round(rate[key] / bare[key], 2)
            cases[f"{size} faces, {kind} rays"] = rates
            print(f"{size} faces, {kind} rays")
            for name, rate in rates.items():
                print(f"  {name:32s}", *(f"{key} {value:6.2f} " for key, value in rate.items()))
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "logical_cpus": threads,
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("embreex", "torch", "numpy", "open3d")
            if name != "open3d" or is_importable(name)
        },
        "rays": WIDTH * HEIGHT,
        "rounds": ROUNDS,
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
