"""Two CPU processes on gloo train one model: through nerfstudio's launcher protocol, `ZooTrainer` and `ZooPipeline`."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_training import RAYS, STEPS, STOP_AT, prepared, record, worker
from xscale_models import NOISE, open_trainer, ring_of_cameras, sphere_mesh, write_mvsnet_scene

from core_ns.trainer import read_checkpoint

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(text) for text in NOISE)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball whose photos show a smooth gradient, so that a few steps learn something."""
    intrinsics = np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])
    rows, columns = np.mgrid[:48, :64]
    picture = np.stack([200 + columns // 8, 40 + rows, 30 + 0 * rows], axis=-1).astype(np.uint8)
    folder = tmp_path_factory.mktemp("data") / "ball"
    return write_mvsnet_scene(folder, ring_of_cameras(6, 3.0), intrinsics, [picture] * 6, sphere_mesh(1.0, 3), (1, 4))


@pytest.fixture(scope="module")
def pair(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder two processes have trained into."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        torch.multiprocessing.spawn(worker, args=(2, port, scene, folder), nprocs=2)  # type: ignore[attr-defined]
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return folder


@pytest.fixture(scope="module")
def runs(pair: Path) -> list[dict[str, Any]]:
    """Rays, losses and final weights of both ranks."""
    return [torch.load(pair / f"seen{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def facts(pair: Path) -> list[dict[str, Any]]:
    return [json.loads((pair / f"facts{rank}.json").read_text()) for rank in (0, 1)]


def alone(scene: Path, folder: Path, replay: list[Any] | None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """One process with the batch of both."""
    torch.manual_seed(42)
    trainer = open_trainer(prepared(scene, folder, STEPS, 2 * RAYS, "alone"))
    seen = record(trainer, replay)
    trainer.train()
    return seen["loss"], trainer.pipeline.state_dict()


def test_ranks_see_different_rays_and_keep_one_model(runs, facts) -> None:
    for step in range(STEPS):
        mine, theirs = ({tuple(row) for row in run["rays"][step][3].tolist()} for run in runs)
        assert len(mine & theirs) < 0.2 * RAYS, "drawn from 4 x 64 x 48 pixels, a few coincide"
    for key, value in runs[0]["state"].items():
        assert torch.equal(value, runs[1]["state"][key]), key
    assert all(fact["dense"] == [True] * 4 for fact in facts), "gradients that can be reduced"
    assert [fact["step"] for fact in facts] == [STEPS - 1] * 2


def test_two_processes_take_the_steps_of_one_with_both_batches(scene: Path, runs, tmp_path: Path) -> None:
    """The same rays in one batch: equal up to rounding, step by step."""
    loss, state = alone(scene, tmp_path, replay=runs)
    both = np.mean([run["loss"] for run in runs], axis=0)
    np.testing.assert_allclose(both, loss, rtol=2e-3)
    assert loss[-1] < 0.8 * loss[0], "there is a curve to compare"
    for key, value in ((key, value) for key, value in state.items() if value.numel()):
        error = (value - runs[0]["state"][key]).abs()
        assert error.mean() < 1e-3 * max(1e-2, float(value.abs().mean())), key


def test_the_loss_curve_is_one_processs_within_noise(scene: Path, runs, tmp_path: Path) -> None:
    """Rays drawn anew."""
    loss, _ = alone(scene, tmp_path, replay=None)
    both = np.mean([run["loss"] for run in runs], axis=0)
    assert np.mean(both[-8:]) == pytest.approx(np.mean(loss[-8:]), rel=0.1)
    assert not np.allclose(both, loss, rtol=1e-3), "other rays"


def test_only_the_first_process_writes(pair: Path) -> None:
    def written(rank: int) -> set[str]:
        folder = pair / f"rank{rank}"
        return {path.name for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()

    assert {"snapshot.json", "mesh.npz", f"step-{STEPS - 1:09d}.ckpt"} <= written(0)
    # nerfstudio's loop itself writes the (same) transform from every process.
    assert written(1) <= {"dataparser_transforms.json"}


def test_a_checkpoint_of_two_processes_loads_in_one_and_in_two(scene: Path, pair: Path, runs, facts, tmp_path) -> None:
    folder = next((pair / "rank0").rglob("run/nerfstudio_models"))
    state = read_checkpoint(folder / f"step-{STEPS - 1:09d}.ckpt")["pipeline"]
    config = prepared(scene, tmp_path, 2, RAYS, "one")
    config.load_dir = folder
    trainer = open_trainer(config)
    for key, value in trainer.pipeline.state_dict().items():
        assert torch.equal(value, state[key]), key
        assert torch.equal(value, runs[0]["state"][key]), key
    trainer.train()
    assert trainer.step == STEPS + 1
    assert [(fact["loaded"], fact["strict"]) for fact in facts] == [(True, True)] * 2


def test_a_signal_to_one_process_stops_both_after_the_same_step(pair: Path, facts) -> None:
    assert [fact["stopped_after"] for fact in facts] == [STOP_AT] * 2
    folder = next((pair / "rank0").rglob("stopped/nerfstudio_models"))
    assert [path.name for path in folder.iterdir()] == [f"step-{STOP_AT:09d}.ckpt"]
