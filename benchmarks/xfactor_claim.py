"""The paper's claim at laptop size: poses transfer when training asks for it, and not when it autoencodes.

Question: same networks, budget and data (the texture world of `xfactor_ns.synthetic`, spec xfactor 12, check 16); the
objective alone differs. How well are a pair's own motion (recon) and the motion of another texture (transfer) shown?

Run from the repository root: ``python -m benchmarks.xfactor_claim`` (some minutes a run, one thread). Writes
``benchmarks/results/xfactor_claim.json`` and ``xfactor_claim.png``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.voxel_walk import cpu_model
from xfactor_ns.network import XFactorNet
from xfactor_ns.objective import Objective
from xfactor_ns.synthetic import TINY, Setting, learn, score

RESULTS = Path(__file__).parent / "results" / "xfactor_claim.json"
EVERY = 100
"""Updates between two scores."""
SEEDS = (0, 1)


def curve(objective: Objective, seed: int) -> dict[str, Any]:
    """Train one network and score it on the way."""
    net, rows = XFactorNet(TINY, seed=seed), []
    start, scoring = time.process_time(), 0.0

    def watch(update: int) -> None:
        nonlocal scoring
        if update % EVERY == 0:
            before = time.process_time()
            rows.append({"update": update, **{k: round(v, 3) for k, v in score(net, seed)._asdict().items()}})
            scoring += time.process_time() - before

    setting = Setting(objective=objective, seed=seed)
    learn(net, setting, watch)
    seconds = time.process_time() - start - scoring
    print(objective, seed, f"{seconds:.0f} s", rows[-1], flush=True)
    return {"objective": objective, "seed": seed, "train_seconds": round(seconds, 1), "curve": rows}


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Both objectives side by side: recon, transfer and copy against the updates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    colours = {"recon": "tab:blue", "transfer": "tab:red", "copy": "0.5"}
    for axis, objective in zip(axes, get_args(Objective), strict=True):
        for run in (each for each in runs if each["objective"] == objective):
            for name, colour in colours.items():
                line = [(row["update"], row[name]) for row in run["curve"]]
                label = name if run["seed"] == SEEDS[0] else None
                axis.plot(*zip(*line, strict=True), color=colour, label=label, linewidth=1.2)
        axis.set(title=f"objective: {objective}", xlabel="updates")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR on unseen textures [dB]")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train both objectives with every seed; write JSON and plot."""
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    runs = [curve(objective, seed) for seed in SEEDS for objective in get_args(Objective)]
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time of training, scoring left out",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        "setting": Setting()._asdict(),
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    plot(runs, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
