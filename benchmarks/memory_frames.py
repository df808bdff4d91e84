"""Does training on multi-view video need more memory when there are more frames? (spec r4dv 11, check A23)

Six cameras, 640x480 JPEG photos with masks, 50 to 800 frames (five different ones per camera under many names). For
each number of frames a process of its own opens r4dv's data manager with a cache of 64 MB and takes 200 steps of one
target and four sources each, whole photos; it reports its peak resident memory above the imported libraries, and the
photos decoded. Beside it nerfstudio's own `FullImageDatamanager` on the same data (10, 20 and 40 frames; it holds every
decoded photo), stored as bytes and as its default, floats. Run:

    python benchmarks/memory_frames.py

Prediction, written before the first run: 64 MB of cache and 30 MB around it (photos being decoded, batches as floats)
at every number of frames; paths and cameras of 800 frames add 10 MB; 800 frames take 1.1 times what 50 take. With
blocks of four steps 5 photos are decoded per four steps, 250 in all. The stock manager: 5.5 MB a frame as bytes, 22 MB
as floats, so 800 frames would take 4.4 and 17.7 GB.

Result (two cores, shared with other work, so only memory and counts are to be trusted): 151 MB above the libraries with
50 frames and 158 with 800 (blocks of one step), 147 and 152 (blocks of four): 0.009 and 0.007 MB a frame, for paths and
cameras. That is 60 MB more than predicted: opening a recording loads decoders worth 40. At most 999 photos decoded in
200 steps, 255 with blocks of four. The stock manager: 6.9 and 20.3 MB a frame, 5.5 and 16 GB for 800.
Numbers: benchmarks/results/memory_frames.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VIEWS, WIDTH, HEIGHT, STEPS, SOURCES = 6, 640, 480, 200, 4
CACHE = 64_000_000
BOX = ((-0.6, -0.6, -0.6), (0.6, 0.6, 0.6))
MB = 1e6


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def reset_peak() -> int:
    """Start the peak again at the present resident size, and return it: the libraries alone."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def write(folder: Path, frames: int) -> dict:
    """The recording."""
    sys.path.insert(0, str(ROOT / "tests" / "r4dv"))
    from frame_sequences import write_long

    write_long(folder, VIEWS, frames, (WIDTH, HEIGHT))
    return {}


def ours(folder: Path, frames: int, block: int) -> dict:
    """200 steps of r4dv's data manager."""
    import torch

    from dataparsers.easymocap_parser import EasyMocapDataParserConfig
    from r4dv_ns.datamanager import R4DVDataManagerConfig

    torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
    parser = EasyMocapDataParserConfig(frame_sample=(0, frames, 1), bounds=BOX)
    config = R4DVDataManagerConfig(
        data=folder, dataparser=parser, cache_gb=CACHE / 1e9, sources=SOURCES, frame_block=block, crop_to_bounds=False
    )
    libraries = reset_peak()
    start = time.perf_counter()
    manager = config.setup(device="cpu", test_mode="test")
    opened, opened_bytes = time.perf_counter(), peak_bytes()
    for step in range(STEPS):
        _, batch = manager.next_train(step)
        manager.source_bank.get(batch["frame_idx"], batch["sources"])
    seconds = time.perf_counter() - opened
    statistics = manager.source_bank.cache.statistics
    manager.close()
    return {
        "open_seconds": opened - start,
        "ms_per_step": seconds / STEPS * 1e3,
        "decoded": statistics.loads,
        "cache_peak_mb": statistics.bytes_peak / MB,
        "libraries_mb": libraries / MB,
        "opened_mb": (opened_bytes - libraries) / MB,
        "growth_mb": (peak_bytes() - libraries) / MB,
    }


def stock(folder: Path, frames: int, floats: bool) -> dict:
    """nerfstudio's whole-image manager on the same photos: its first batch decodes all of them."""
    from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig

    from dataparsers.easymocap_parser import EasyMocapDataParserConfig

    parser = EasyMocapDataParserConfig(frame_sample=(0, frames, 1), bounds=BOX)
    kind = "float32" if floats else "uint8"
    # "gpu" means: on the manager's device. "cpu" asks for pinned memory, which needs CUDA.
    config = FullImageDatamanagerConfig(data=folder, dataparser=parser, cache_images="gpu", cache_images_type=kind)
    libraries = reset_peak()
    manager = config.setup(device="cpu", test_mode="test")
    start = time.perf_counter()
    manager.next_train(0)
    return {
        "stored_as": kind,
        "first_batch_seconds": time.perf_counter() - start,
        "libraries_mb": libraries / MB,
        "growth_mb": (peak_bytes() - libraries) / MB,
    }


def child(role: str, folder: Path, frames: int, **options: int) -> dict:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--frames", str(frames)]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def slope(runs: list[dict]) -> float:
    """MB per frame between the first and the last run."""
    return (runs[-1]["growth_mb"] - runs[0]["growth_mb"]) / (runs[-1]["frames"] - runs[0]["frames"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder (20 MB)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory_frames.json")
    parser.add_argument("--role", choices=["write", "ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, default=4, help=argparse.SUPPRESS)
    parser.add_argument("--floats", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        folder, frames = arguments.folder, arguments.frames[0]
        run = {
            "write": lambda: write(folder, frames),
            "ours": lambda: ours(folder, frames, arguments.block),
            "stock": lambda: stock(folder, frames, bool(arguments.floats)),
        }[arguments.role]
        print(json.dumps(run()))
        return 0
    own: list[dict] = []
    others: list[dict] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="frames-memory-") as name:
        folder = Path(name) / "recording"
        child("write", folder, max(arguments.frames))
        for block in (1, 4):
            for frames in arguments.frames:
                own.append({"frames": frames, "block": block, **child("ours", folder, frames, block=block)})
                print(json.dumps(own[-1]), flush=True)
        for floats in (0, 1):
            for frames in (10, 20, 40):
                others.append({"frames": frames, **child("stock", folder, frames, floats=floats)})
                print(json.dumps(others[-1]), flush=True)
    per_step = SOURCES + 1
    blocks = {block: [run for run in own if run["block"] == block] for block in (1, 4)}
    result = {
        "question": "A23: peak resident memory of 200 training steps against the number of frames",
        "device": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "setting": {
            "views": VIEWS, "size": [WIDTH, HEIGHT], "steps": STEPS, "sources": SOURCES, "cache_mb": CACHE / MB,
            "mb": "10^6 bytes",
        },
        "runs": own,
        "stock_full_images": others,
        "mb_per_frame": {
            **{f"ours, blocks of {block}": slope(runs) for block, runs in blocks.items()},
            **{f"stock, {kind}": slope([r for r in others if r["stored_as"] == kind]) for kind in ("uint8", "float32")},
        },
        "passed": bool(
            all(run["growth_mb"] <= CACHE / MB + 150 and run["decoded"] <= per_step * STEPS for run in own)
            and all(runs[-1]["growth_mb"] <= 1.2 * runs[0]["growth_mb"] for runs in blocks.values())
        ),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("mb_per_frame", "passed")}))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
