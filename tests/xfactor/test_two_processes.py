"""Two CPU processes on gloo take the steps of one (acceptance 17): the same frames, masks, jitter and updates."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_clips import OPTIONS, STEPS, worker
from training_runs import NOISE, run_config, train, weights, write_clips

from core_ns.trainer import read_checkpoint

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(text) for text in NOISE)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "waves")


@pytest.fixture(scope="module")
def pair(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder two processes have trained into: half of the batch each, in two micro batches."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        torch.multiprocessing.spawn(worker, args=(2, port, clips, folder, 2), nprocs=2)  # type: ignore[attr-defined]
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return folder


@pytest.fixture(scope="module")
def seen(pair: Path) -> list[dict[str, Any]]:
    return [torch.load(pair / f"seen{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_processes_keep_one_model(seen):
    assert seen[0]["losses"] != seen[1]["losses"], "of different halves"
    for key, value in seen[0]["weights"].items():
        assert torch.equal(value, seen[1]["weights"][key]), key


def test_they_take_the_steps_of_one_process_with_the_whole_batch(clips: Path, seen, tmp_path: Path):
    alone = train(run_config(clips, tmp_path, STEPS, "alone", **OPTIONS))
    both = np.mean([run["losses"] for run in seen], axis=0)
    np.testing.assert_allclose(both, [alone.losses[step] for step in range(STEPS)], atol=1e-5)
    ours = weights(alone)
    mean = sum(float((ours[key] - value).abs().mean()) for key, value in seen[0]["weights"].items()) / len(ours)
    print(f"two processes with two micro batches each against one: weights differ by {mean:.1e} on average")
    assert mean < 1e-5


def test_the_checkpoint_loads_in_one_process(clips: Path, pair: Path, seen, tmp_path: Path):
    folder = next((pair / "rank0").rglob("nerfstudio_models"))
    assert not list((pair / "rank1").rglob("*.ckpt")), "only the first process writes"
    state = read_checkpoint(folder / f"step-{STEPS - 1:09d}.ckpt")["pipeline"]
    for key, value in seen[0]["weights"].items():
        assert torch.equal(value, state[f"_model.net.{key}"]), key
    config = run_config(clips, tmp_path, 2, "on", **OPTIONS)
    config.load_dir = folder
    assert train(config).step == STEPS + 1
