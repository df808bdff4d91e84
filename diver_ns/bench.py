"""Quality and speed of a trained run, exact path against real-time path (``ns-diver bench``)."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Optional

import torch

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.metrics import image_metrics, psnr
from diver_ns.export import load_run
from diver_ns.stages import Stage


@torch.no_grad()
def bench_run(config_file: Path, views: int = 4, output: Optional[Path] = None) -> str:
    """Render evenly spread held-out views by both paths, one after the other, and compare.

    The clock covers ray set-up to finished picture; one warm-up frame per path; medians over the views.

    Args:
        config_file: ``config.yml`` of a run with a table.
        views: held-out views to render.
        output: JSON file for the figures.

    Returns:
        A table for the terminal.

    Raises:
        DataError: no such run, or no table yet.
    """
    if views < 1:
        raise DataError(config_file, "views", f"is {views}.", "Name a positive number.")
    pipeline, model = load_run(config_file)
    if model.stage < Stage.EXPLICIT:
        problem = f"is {model.stage.name.lower()}: the real-time path needs the table of a later stage."
        raise DataError(config_file, "stage", problem, "Train it further.")
    model.eval()
    model.config.renderer = "realtime"  # so that `exact` alone decides which path is taken
    dataset = pipeline.datamanager.eval_dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(views, len(dataset))).round().int().tolist()
    cuda = torch.device(model.device).type == "cuda"
    seconds: dict[str, list[float]] = {"exact": [], "realtime": []}
    rows: dict[str, list[dict[str, float]]] = {"exact": [], "realtime": []}
    agreement, voxels = [], []
    for turn, view in enumerate([chosen[0], *chosen]):
        pictures = {}
        for path in seconds:
            model.exact = path == "exact"
            begin = perf_counter()
            outputs = model.get_outputs_for_camera(dataset.cameras[view : view + 1])
            if cuda:
                torch.cuda.synchronize()
            elapsed = perf_counter() - begin
            pictures[path] = outputs["rgb"].clamp(0, 1)
            if turn == 0:
                continue  # warm-up: indices, kernels and caches are made
            truth = model.composited(dataset.get_data(view)["image"].to(model.device))
            seconds[path].append(elapsed)
            rows[path].append(image_metrics(pictures[path], truth))
        if turn:
            agreement.append(psnr(pictures["realtime"], pictures["exact"]))
            voxels.append(float(outputs["hits"].mean()))
    model.exact = False
    size = model.voxels.numel() * 4 + model.vertex_ids.numel() * 4 + model.mask_bits.numel()
    result: dict[str, Any] = {
        "device": str(model.device), "threads": torch.get_num_threads(), "resolution": model.grid.resolution,
        "vertices": len(model.vertex_ids), "megabytes": size / 1e6,
        "picture": list(pictures["exact"].shape[:2]), "views": len(chosen),
        "realtime_against_exact_psnr": sum(agreement) / len(agreement),
        "voxels_per_ray": sum(voxels) / len(voxels),
    }  # fmt: skip
    lines = [f"{len(chosen)} views, {result['picture'][1]}x{result['picture'][0]}, {result['device']}; "
             f"{result['resolution']}^3, {result['vertices']:,} vertices, {result['megabytes']:.1f} MB"]  # fmt: skip
    for path, times in seconds.items():
        mean = {key: sum(row[key] for row in rows[path]) / len(rows[path]) for key in rows[path][0]}
        result[path] = {"fps": 1 / median(times), **mean}
        figures = "  ".join(f"{key} {value:.3f}" for key, value in result[path].items())
        lines.append(f"{path:10s}{figures}")
    lines.append(
        f"real-time against exact: {result['realtime_against_exact_psnr']:.1f} dB, "
        f"{median(seconds['exact']) / median(seconds['realtime']):.1f} times as fast"
    )
    if output is not None:
        write_json(output, result)
    return "\n".join(lines)
