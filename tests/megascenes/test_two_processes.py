"""Two CPU processes on gloo take the steps of one: the same pairs, noise and updates, shared out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planar_pairs import write_pairs
from rank_pairs import OPTIONS, STEPS, worker
from tiny_runs import NOISE, run_config, train

from core_ns.trainer import read_checkpoint
from megascenes_ns.pair_order import samples

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(text) for text in NOISE)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "wall", pairs=6)


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder two processes have trained into: half of the batch each, in two micro batches."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        torch.multiprocessing.spawn(worker, args=(2, port, data, folder, 1), nprocs=2)  # type: ignore[attr-defined]
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return folder


@pytest.fixture(scope="module")
def seen(pair: Path) -> list[dict[str, Any]]:
    return [torch.load(pair / f"seen{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_the_pairs_are_shared_out(seen):
    size = OPTIONS["batch_size"]
    served = [each for run in seen for each in run["served"]]
    assert sorted(served) == sorted(samples(0, STEPS * size, 6, 17))
    assert len(seen[0]["served"]) == len(seen[1]["served"])


def test_both_processes_keep_one_model(seen):
    assert seen[0]["losses"] != seen[1]["losses"], "of different halves"
    for key, value in seen[0]["weights"].items():
        assert torch.equal(value, seen[1]["weights"][key]), key


def test_they_take_the_steps_of_one_process_with_the_whole_batch(data: Path, seen, tmp_path: Path):
    alone = train(run_config(data, tmp_path, STEPS, "alone", **OPTIONS))
    both = np.mean([run["losses"] for run in seen], axis=0)
    print(f"losses of two processes {both}, of one {[alone.losses[step] for step in range(STEPS)]}")
    one = [alone.losses[step] for step in range(STEPS)]
    # Adam divides by the gradient's own size and the lowest level norms groups of two numbers: rounding grows with
    # every update, while another pair or another noise would be seen at once.
    np.testing.assert_allclose(both[:2], one[:2], atol=1e-5)
    np.testing.assert_allclose(both, one, atol=3e-3)


def test_the_checkpoint_loads_in_one_process(data: Path, pair: Path, seen, tmp_path: Path):
    folder = next((pair / "rank0").rglob("nerfstudio_models"))
    assert not list((pair / "rank1").rglob("*.ckpt")), "only the first process writes"
    state = read_checkpoint(folder / f"step-{STEPS - 1:09d}.ckpt")["pipeline"]
    assert not [key for key in state if ".vae." in key]
    for key, value in seen[0]["weights"].items():
        assert torch.equal(value, state[f"_model.networks.{key}"]), key
    config = run_config(data, tmp_path, 1, "on", **OPTIONS)
    config.load_dir = folder
    assert train(config).step == STEPS
