"""Two CPU processes on gloo train one recording: each with photos of its own, and with one model."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_runs import NOISE, run_config, train
from rank_frames import STEPS, worker

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in NOISE)]


@pytest.fixture(scope="module")
def pair(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have trained into."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        torch.multiprocessing.spawn(worker, args=(2, port, recording, folder), nprocs=2)  # type: ignore[attr-defined]
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return folder


def test_photos_are_shared_out_and_the_model_is_one(recording: Path, pair: Path, tmp_path: Path):
    seen: list[dict[str, Any]] = [torch.load(pair / f"seen{rank}.pt", weights_only=True) for rank in (0, 1)]
    first, second = (run["drawn"] for run in seen)
    assert len(first) == len(second) == STEPS
    assert sum(mine == theirs for mine, theirs in zip(first, second, strict=True)) < STEPS / 4
    for key, value in seen[0]["state"].items():
        assert torch.equal(value, seen[1]["state"][key]), key

    folder = next((pair / "rank0").rglob("nerfstudio_models"))
    assert not list((pair / "rank1").rglob("*.ckpt")), "only the first process writes"
    config = run_config(recording, tmp_path, 2, "on")
    config.load_dir = folder
    assert train(config).step == STEPS + 1, "one process goes on with it"
