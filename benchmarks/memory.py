"""Does training from tiles need more memory when there are more 8K photos? (spec xscale 9, check A12)

Photos of 8192x5460 pixels, 8 and then 64 of them (four different ones under many names), become a tile store; a second
process opens it and draws 200 steps of 8192 rays from a pool of 4096 tiles. Each process reports its own peak resident
memory. Needs 9 GB of disk in the temporary folder, which is emptied at the end. Run:

    python benchmarks/memory.py

Prediction, written before the first run: drawing takes what importing torch takes (0.5 GB) plus 50 MB of pool, for 8
and for 64 views alike, ratio 1.00; building takes the same plus, per job, a decoded photo twice (Pillow's 4 bytes and
our 3 bytes per pixel, 0.3 GB): 1.2 GB with two jobs, ratio 1.0. A loader that keeps all photos takes 1.1, 8.6 GB.

Result (two cores, shared with other work, so only the memory counts): drawing 559.4 and 559.5 MiB, of which 506.5 are
libraries and 48.2 the pool, ratio 1.0002 as predicted. Building 1318 and 1381 MiB, ratio 1.05: 0.1 GB more than
predicted, because the two jobs' peaks meet more often the longer the build runs, and a row of tiles comes on top.
Numbers: benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, DISTINCT = 8192, 5460, 4
STEPS, RAYS, TILES, JOBS = 200, 8192, 4096, 2
MB = 1 << 20


def peak_bytes() -> int:
    """Peak resident memory of this process. `ru_maxrss` would inherit the parent's, so /proc comes first."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> int:
    """Start the peak again at the present resident size (Linux), and return it: the libraries alone."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def photos(folder: Path, views: int) -> None:
    """Write the distinct photos (smooth colours with sensor-like noise) and link them under ``views`` names."""
    import numpy as np
    from PIL import Image

    for seed in range(DISTINCT):
        noise = np.random.default_rng(seed)
        coarse = Image.fromarray(noise.integers(40, 216, (HEIGHT // 60, WIDTH // 60, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).copy()
        pixels += noise.integers(0, 16, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"distinct_{seed}.jpg", quality=90)
    for index in range(views):
        os.link(folder / f"distinct_{index % DISTINCT}.jpg", folder / f"photo_{index:03d}.jpg")


def build(folder: Path, views: int) -> dict:
    """Build the store of the first ``views`` photos."""
    from xscale_ns.tile_format import ViewSource
    from xscale_ns.tiles import TileStore

    names = [f"photo_{index:03d}.jpg" for index in range(views)]
    sources = [ViewSource(name, folder / name, WIDTH, HEIGHT, {"fx": 9000.0}) for name in names]
    start, libraries = time.perf_counter(), reset_peak()
    TileStore.build(folder / f"tiles_{views}", sources, jobs=JOBS, progress=lambda line: None)
    return {"seconds": time.perf_counter() - start, "libraries_mb": libraries / MB, "peak_mb": peak_bytes() / MB}


def draw(folder: Path, views: int) -> dict:
    """Open the store and draw."""
    import torch

    from xscale_ns.tile_pool import TilePool
    from xscale_ns.tiles import TileStore

    libraries, start = reset_peak(), time.perf_counter()
    with TilePool(TileStore.open(folder / f"tiles_{views}"), TILES) as pool:
        filled = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            pool.draw(RAYS, generator)
        end = time.perf_counter()
        return {
            "fill_seconds": filled - start,
            "ms_per_step": (end - filled) / STEPS * 1e3,
            "pool_mb": pool.nbytes / MB,
            "libraries_mb": libraries / MB,
            "peak_mb": peak_bytes() / MB,
        }


def child(role: str, folder: Path, views: int) -> dict:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--views", str(views)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder (9 GB)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory.json")
    parser.add_argument("--role", choices=["photos", "build", "draw"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        run = {"photos": photos, "build": build, "draw": draw}[arguments.role]
        print(json.dumps(run(arguments.folder, arguments.views[0]) or {}))
        return 0
    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="tiles-memory-") as name:
        folder = Path(name)
        child("photos", folder, max(arguments.views))
        for views in arguments.views:
            built, drawn = child("build", folder, views), child("draw", folder, views)
            store = sum(path.stat().st_size for path in (folder / f"tiles_{views}").iterdir())
            runs.append({"views": views, "store_gb": store / 1e9, "build": built, "draw": drawn})
            print(json.dumps(runs[-1]), flush=True)
            for path in (folder / f"tiles_{views}").iterdir():
                path.unlink()
    first, last = runs[0]["draw"], runs[-1]["draw"]
    result = {
        "question": "A12: peak resident memory of drawing from tiles against the number of 8192x5460 photos",
        "device": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "setting": {"steps": STEPS, "rays": RAYS, "tiles": TILES, "jobs": JOBS, "size": [WIDTH, HEIGHT]},
        "runs": runs,
        "ratio_draw": last["peak_mb"] / first["peak_mb"],
        "ratio_build": runs[-1]["build"]["peak_mb"] / runs[0]["build"]["peak_mb"],
        "passed": bool(
            last["peak_mb"] <= 1.1 * first["peak_mb"]
            and all(r["draw"]["peak_mb"] <= r["draw"]["pool_mb"] + 2048 for r in runs)
        ),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("ratio_draw", "ratio_build", "passed")}))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
