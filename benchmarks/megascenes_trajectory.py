"""Seconds per picture of a whole trajectory: views in batches against one view at a time (spec megascenes 8.3).

Question: what does ``ns-megascenes render`` gain over ``ns-render``, which asks for one camera per call?

Same views, same noise, same networks (megascenes-tiny, random weights, 64 pixels, UniPC 5 steps, guidance 3) on the
device; warps are drawn before the clock starts. Interleaved rounds, medians; CPU time of one thread, on CUDA wall time
after synchronising. The pictures of both must agree to one grey level.

Run from the repository root: ``python -m benchmarks.megascenes_trajectory``. Writes
``results/megascenes_trajectory.json``.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from core_ns.atomic import write_json
from megascenes_ns.depth import in_units
from megascenes_ns.drawing import Drawer, Settings, view_of
from megascenes_ns.networks import Networks
from megascenes_ns.paths import orbit
from megascenes_ns.photo import camera_matrix
from megascenes_ns.prepare import prepare
from megascenes_ns.reference import Reference
from megascenes_ns.sizes import Sizes

RESULTS = Path(__file__).parent / "results" / "megascenes_trajectory.json"
ROUNDS, FRAMES, SIDE = 3, 16, 64
BATCHES = (1, 4, 8, 16)


def reference() -> Reference:
    """Random pixels on a floor."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    prepared = prepare(pixels, camera_matrix(128, 96, 110.0), SIDE)
    height, width = prepared.image.shape[:2]
    depth = in_units(np.repeat(np.linspace(4.0, 1.5, height)[:, None], width, axis=1), "floor")
    assert depth is not None
    return Reference("floor", prepared, depth)


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nets = Networks.fresh(Sizes.tiny(), 0).to(device).eval()
    drawer, settings, seen = Drawer(1), Settings("unipc", 5, 3.0, "consistent"), reference()
    views = [view_of(seen, pose, seen.prepared.K, *seen.prepared.size) for pose in orbit(FRAMES)]
    warps = drawer.warps(views)

    def drawn(batch: int) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        for first in range(0, FRAMES, batch):
            part = slice(first, first + batch)
            count = len(views[part])
            pictures += drawer.pictures(nets, views[part], warps[part], settings, [0] * count)
        return pictures

    def seconds(batch: int) -> float:
        clock = time.perf_counter if device == "cuda" else time.process_time
        start = clock()
        drawn(batch)
        return clock() - start

    alone = drawn(1)
    worst = max(
        int(np.abs(one.astype(int) - other).max())
        for batch in BATCHES
        for one, other in zip(alone, drawn(batch), strict=True)
    )
    assert worst <= 1, worst
    rounds = [{batch: seconds(batch) / FRAMES for batch in BATCHES} for _ in range(ROUNDS)]
    each = {batch: statistics.median(found[batch] for found in rounds) for batch in BATCHES}
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, one thread",
        "torch": torch.__version__,
        "frames": FRAMES,
        "seconds_per_picture": {str(batch): round(value, 5) for batch, value in each.items()},
        "faster_than_one_at_a_time": {str(batch): round(each[1] / value, 2) for batch, value in each.items()},
        "largest_difference_grey_levels": worst,
    }
    write_json(RESULTS, content)
    print(content)


if __name__ == "__main__":
    main()
