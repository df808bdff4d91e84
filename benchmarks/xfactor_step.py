"""CPU time and memory of a training step in torch against the jitted Flax reference.

Question: is the port slower than the JAX it replaces, where both run on the same processor (spec xfactor 8.6, 13)?

The same step (transfer objective on pairs, clip, AdamW) with the same loss, three ways: ``packed`` is what ns-train
runs, ``masked`` the original's arithmetic in torch, ``flax`` the reference under ``jax.jit``. One thread, CPU time,
interleaved, medians of five steps after a warm-up; memory is the peak of a fresh process, for JAX compilation
included.

Found (22 November 2026, a machine with six neighbours on two cores; the JSON beside this file): the Flax step takes
1.4 to 2.1 times as long as ``packed`` and 1.03 to 1.64 times as long as ``masked``, and 1.7 to 3.3 times the memory,
less so the wider the networks are.

Run from the repository root: ``python -m benchmarks.xfactor_step``. Writes ``results/xfactor_step.json``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from benchmarks.parts.xfactor_steps import WAYS, Case, median_seconds, one_thread, peak_bytes

RESULTS = Path(__file__).parent / "results" / "xfactor_step.json"
ROUNDS = 5
CONTENDERS = ["packed", "masked", "flax"]
CASES = {
    "xfactor-tiny's kind: width 64, 2 blocks, 32 px, batch 32": Case(64, 4, 2, 8, 32, 32, registers=2, pose=16),
    "checks: width 64, 3 blocks, 128 px, batch 8": Case(64, 4, 3, 16, 128, 8),
    "released tokens, width 128, 4 blocks": Case(128, 2, 4, 16, 256, 2),
    "released tokens, width 256, 4 blocks": Case(256, 4, 4, 16, 256, 1),
    "the same, blocks recomputed": Case(256, 4, 4, 16, 256, 1, checkpointing=True),
    "released tokens, width 512, 4 blocks": Case(512, 8, 4, 16, 256, 1),
}


def measure(case: Case) -> dict[str, float]:
    """Of one case."""
    seconds = median_seconds(case, CONTENDERS, ROUNDS)
    peaks = {way: peak_bytes(case, way) for way in CONTENDERS}
    return {
        **{f"{way}_ms": round(1e3 * value, 1) for way, value in seconds.items()},
        **{f"{way}_mb": round(value / 1e6, 1) for way, value in peaks.items()},
        "flax_over_packed": round(seconds["flax"] / seconds["packed"], 2),
        "flax_over_masked": round(seconds["flax"] / seconds["masked"], 2),
        "flax_over_packed_memory": round(peaks["flax"] / peaks["packed"], 2),
    }


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure all cases and write the JSON."""
    one_thread()
    load_before = os.getloadavg()[0]
    cases = {}
    for name, case in CASES.items():
        cases[name] = {"case": asdict(case), **measure(case)}
        print(name, json.dumps(cases[name]), flush=True)
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time; memory: peak of a fresh process after its imports, compilation included, two steps",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "jax", "flax", "optax")},
        "rounds": ROUNDS,
        "ways": {way: WAYS[way] for way in CONTENDERS},
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
