"""What each process of test_distributed.py runs: spawned processes can only import it from a module of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from xscale_models import bundle, open_trainer, short_run

from core_ns.errors import DataError

STEPS, RAYS, STOP_AT = 25, 256, 3
MODEL = {"levels": 4, "log2_table": 12, "finest_resolution": 64, "exposure_dim": 4}


def prepared(scene: Path, folder: Path, steps: int, rays: int, name: str) -> Any:
    config = short_run(scene, folder, steps, rays=rays, **MODEL)
    config.timestamp = name
    config.pipeline.datamanager.run_dir = config.get_base_dir()
    return config


def record(trainer: Any, replay: list[Any] | None = None) -> dict[str, list[Any]]:
    """Keep each step's rays and loss; ``replay`` feeds stored rays instead of drawing."""
    seen: dict[str, list[Any]] = {"rays": [], "loss": []}
    draw, step_once = trainer.pipeline.datamanager.next_train, trainer.train_iteration

    def next_train(step: int) -> Any:
        rays, batch = draw(step)
        if replay is not None:
            parts = [run["rays"][step] for run in replay]
            origins, directions, image, indices = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            rays, batch = bundle(origins, directions, indices[:, 0]), {"image": image, "indices": indices}
        seen["rays"].append((rays.origins, rays.directions, batch["image"], batch["indices"]))
        return rays, batch

    def train_iteration(step: int) -> Any:
        output = step_once(step)
        seen["loss"].append(float(output[0].detach()))
        return output

    trainer.pipeline.datamanager.next_train, trainer.train_iteration = next_train, train_iteration
    return seen


def train_loop(rank: int, world: int, scene: Path, folder: Path) -> None:
    """What nerfstudio's ``train_loop`` does in each process; every rank has its own output folder to betray itself."""
    torch.manual_seed(42 + rank)
    trainer = open_trainer(prepared(scene, folder / f"rank{rank}", STEPS, RAYS, "run"), rank, world)
    seen = record(trainer)
    trainer.train()
    tables = trainer.pipeline.model.field.grid.tables
    facts: dict[str, Any] = {"dense": [not table.grad.is_sparse for table in tables]}
    facts["step"] = trainer.step
    state = {key: value.clone() for key, value in trainer.pipeline.state_dict().items()}
    torch.save({"rays": seen["rays"], "loss": seen["loss"], "state": state}, folder / f"seen{rank}.pt")

    # A checkpoint without prefixes loads into the wrapped model, strictly.
    with torch.no_grad():
        tables[0].zero_()
    trainer.pipeline.load_pipeline(state, STEPS - 1)
    facts["loaded"] = all(torch.equal(value, state[key]) for key, value in trainer.pipeline.state_dict().items())
    try:
        trainer.pipeline.load_pipeline({key: state[key] for key in list(state)[1:]}, STEPS - 1)
        facts["strict"] = False
    except DataError:
        facts["strict"] = True

    # One process is told to stop, as a cluster's scheduler does: all stop after the same step.
    stopped = open_trainer(prepared(scene, folder / f"rank{rank}", 1000, RAYS, "stopped"), rank, world)
    step_once = stopped.train_iteration

    def interrupted(step: int) -> Any:
        if rank == 1 and step == STOP_AT:
            signal.raise_signal(signal.SIGTERM)
        return step_once(step)

    stopped.train_iteration = interrupted
    stopped.train()
    facts["stopped_after"] = stopped.step
    (folder / f"facts{rank}.json").write_text(json.dumps(facts))


def worker(rank: int, world: int, port: int, scene: Path, folder: Path) -> None:
    """Stands for nerfstudio's ``_distributed_worker``, which insists on CUDA."""
    from nerfstudio.utils import comms

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(world)))
    train_loop(rank, world, scene, folder)
    comms.synchronize()
    dist.destroy_process_group()
