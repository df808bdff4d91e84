"""Does xfactor's loader keep up with training, and does its memory depend on the number of clips? (issue 6, benchmarks)

Two questions, a process of its own for every case; both with a cache of 64 MB and samples of two frames at 256 pixels.

*Memory*: collections of 10 to 10,000 clips (folders of twelve 320x256 JPEGs; and videos of 60 frames, H.265, a key
frame every 12) that differ in name only (hard links). A process takes the catalogue, plans, and loads 80 batches of 16
samples with two threads; reported are the peak resident memory above the imported libraries, and what the catalogue
alone adds.

*Speed*: 60 clips of one kind, 1 and 2 threads, 15 batches of 16 samples without any cache: frames per second of wall
time and of processor time (neighbours on a shared machine stretch the first). The paper's stereo stage on two GPUs
takes some 512 frames a second (spec xfactor 9).

Prediction, written before the first run: memory grows by about 1 KB per clip, 10 MB for 10,000, and is the same
otherwise, some 150 MB with videos (decoders stay open) and 100 MB with pictures. Per processor second 350 frames of
320x256 JPEG, 30 of 1920x1080 JPEG, 100 of 256x256 video, 12 of 1280x720 video, whose frames cost six decoded pictures
each. Two threads give 1.8 times one.

Happened (22 November 2026, two cores that nine other processes wanted as well, so wall times say little; the JSON
beside this file): memory is flat. Folders: 113, 121 and 124 MB above the libraries with 100, 1,000 and 10,000 clips (10
clips fit the cache whole: 76); videos: 165, 161 and 180. The catalogue takes 1.1 KB per folder and 1.7 per video of it.
A first version kept 128 decoders open and grew from 157 to 392 MB up to 1,000 videos: the loader now keeps eight per
thread. Per processor second 720-900 frames of 320x256 JPEG, twice the prediction; 60 of 1920x1080 JPEG, twice as well,
for they are decoded at half their size; 114-124 of 256x256 video and 11 of 1280x720 video, as predicted. So 512 frames
a second take one core from small JPEGs, four from 256x256 video, nine from large JPEGs and 46 from 720p video: long
trainings want clips near the training size. Two threads against one cannot be judged on such a machine.

Run from the repository root: ``python -m benchmarks.clip_loader``. Writes ``benchmarks/results/clip_loader.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "clip_loader.json"
COUNTS = (10, 100, 1000, 10_000)
BATCH, SIZE, CACHE = 16, 256, 64 << 20
MB = 1e6
KINDS = {
    "320x256 JPEG": ("pictures", (320, 256), 12),
    "1920x1080 JPEG": ("pictures", (1920, 1080), 12),
    "256x256 video": ("video", (256, 256), 60),
    "1280x720 video": ("video", (1280, 720), 60),
}


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth shapes and a little grain that move: neither the easiest nor the hardest to decode."""
    width, height = size
    rows, columns = np.mgrid[:height, :width] / 40.0
    waves = [np.sin(rows + 0.1 * number + k) * np.cos(columns * (1 + 0.2 * k) - 0.05 * number) for k in range(3)]
    grain = np.random.default_rng(number).normal(0, 6, (height, width, 1))
    return np.clip(127 + 100 * np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


def write_clips(root: Path, kind: str, count: int) -> None:
    """One clip, and hard links to it under other names."""
    from core_ns.images import write_image
    from dataparsers.video_write import write_clip

    form, size, frames = KINDS[kind]
    if form == "video":
        write_clip(root / "00000.mp4", (picture(k, size) for k in range(frames)), size, fps=30.0)
        for clip in range(1, count):
            os.link(root / "00000.mp4", root / f"{clip:05d}.mp4")
        return
    for k in range(frames):
        write_image(root / "00000" / f"{k:03d}.jpg", picture(k, size))
    for clip in range(1, count):
        (root / f"{clip:05d}").mkdir()
        for k in range(frames):
            os.link(root / "00000" / f"{k:03d}.jpg", root / f"{clip:05d}" / f"{k:03d}.jpg")


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def present_bytes() -> int:
    """Resident memory now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def load(root: Path, batches: int, workers: int, cache: int) -> dict[str, Any]:
    """What one process measures."""
    from dataparsers.clips import catalogue
    from dataparsers.clips_frames import read_square
    from dataparsers.clips_windows import PlanSet, SamplePlan
    from xfactor_ns.clip_loader import ClipLoader, FrameStore

    libraries = present_bytes()
    start = time.perf_counter()
    found = catalogue(root)
    seconds = time.perf_counter() - start
    looked = present_bytes()
    sequences = found.split("train")
    plan = SamplePlan([PlanSet(sequences, [(10, 30)] * len(sequences))], 2)
    loader = ClipLoader(
        lambda step: (step, 0, plan.batch(step, 0, size=BATCH, micros=1)), FrameStore(SIZE, "antialias", cache),
        workers=workers, prefetch=2,
    )  # fmt: skip
    read_square(sequences[0], 0, SIZE)  # codecs load their libraries
    wall, used = time.perf_counter(), processor_seconds()
    for step in range(batches):
        loader.batch(step)
    wall, used = time.perf_counter() - wall, processor_seconds() - used
    frames = loader.store.statistics.decoded
    loader.close()
    return {
        "clips": len(found.sequences),
        "catalogue_seconds": round(seconds, 2),
        "catalogue_mb": round((looked - libraries) / MB, 1),
        "peak_above_libraries_mb": round((peak_bytes() - libraries) / MB, 1),
        "frames_decoded": frames,
        "frames_per_second": round(frames / wall, 1),
        "frames_per_processor_second": round(frames / used, 1),
    }


def processor_seconds() -> float:
    """User and system time of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(kind: str, count: int, batches: int, workers: int, cache: int) -> dict[str, Any]:
    """Write the clips, and load them in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder), kind, count)
        words = [sys.executable, str(Path(__file__).resolve()), "load", folder, *map(str, (batches, workers, cache))]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(kind, count, workers, json.dumps(result), flush=True)
    return result


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure all cases and write the JSON."""
    before = os.getloadavg()[0]
    memory = {
        kind: {str(count): measure(kind, count, 80, 2, CACHE) for count in COUNTS}
        for kind in ("320x256 JPEG", "256x256 video")
    }
    speed = {kind: {f"{workers} threads": measure(kind, 60, 15, workers, 0) for workers in (1, 2)} for kind in KINDS}
    growth = {
        kind: round(1e3 * (rows["10000"]["peak_above_libraries_mb"] - rows["100"]["peak_above_libraries_mb"]) / 9900, 2)
        for kind, rows in memory.items()
    }
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("av", "numpy", "pillow")},
        "memory": memory,
        "memory_growth_kb_per_clip": growth,
        "speed": speed,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        print(json.dumps(load(Path(sys.argv[2]), *map(int, sys.argv[3:6]))))
    else:
        main()
