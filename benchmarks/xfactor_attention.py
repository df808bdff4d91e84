"""CPU time and memory of a training step with packed mask groups against attention masks.

Question: what does it save to run the two halves of a masked sample as items of their own (spec xfactor 13.1)?

Three contenders take the same step (transfer objective, clip, AdamW) with the same loss: ``packed``; ``masked``,
which is what the original computes (all tokens of all groups in one sequence, every token in every block);
``masked_trimmed``, which leaves out of the last block what nobody looks at, as ``packed`` does, to show what the mask
alone costs. One thread, CPU time, interleaved, medians of five steps after a warm-up; memory is the peak of a fresh
process.

Predicted: at least 1.5 times as fast (spec 13.1).

Happened (22 November 2026, a machine with six neighbours on two cores; the JSON beside this file): 1.41 to 1.50 for
pairs at these narrow widths, 1.76 with five context views, 2.97 with 1024 patches a view; memory 0.66 to 0.93 of the
masked form's. The mask alone costs 1.16 to 1.26 for pairs, 1.41 and 1.70 in the other two. Less than predicted for
pairs: halving the attention is worth the more the longer the sequence is, and 320 tokens a view are few beside the
dense layers; on CPUs torch's fast kernel also takes a mask, which it does not on GPUs.

Run from the repository root: ``python -m benchmarks.xfactor_attention``. Writes ``results/xfactor_attention.json``.
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

RESULTS = Path(__file__).parent / "results" / "xfactor_attention.json"
ROUNDS = 5
CONTENDERS = ["packed", "masked_trimmed", "masked"]
CASES = {
    "checks: 128 px, 64 + 64 tokens a view, pairs": Case(64, 4, 3, 16, 128, 8),
    "released tokens (256 + 64 a view), width 64, pairs": Case(64, 1, 4, 16, 256, 2),
    "released tokens, width 128, pairs": Case(128, 2, 4, 16, 256, 2),
    "released tokens, width 256, pairs": Case(256, 4, 4, 16, 256, 1),
    "released tokens, width 128, 5 context views": Case(128, 2, 4, 16, 256, 1, views=6),
    "finer patches (1024 + 64 a view), width 64, pairs": Case(64, 1, 2, 8, 256, 1),
}


def measure(case: Case) -> dict[str, float]:
    """Of one case."""
    seconds = median_seconds(case, CONTENDERS, ROUNDS)
    peaks = {way: peak_bytes(case, way) for way in CONTENDERS}
    return {
        **{f"{way}_ms": round(1e3 * value, 1) for way, value in seconds.items()},
        **{f"{way}_mb": round(value / 1e6, 1) for way, value in peaks.items()},
        "masked_over_packed": round(seconds["masked"] / seconds["packed"], 2),
        "trimmed_over_packed": round(seconds["masked_trimmed"] / seconds["packed"], 2),
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
        "clock": "CPU time; memory: peak of a fresh process after its imports, two steps",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch",)},
        "rounds": ROUNDS,
        "ways": {way: WAYS[way] for way in CONTENDERS},
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
