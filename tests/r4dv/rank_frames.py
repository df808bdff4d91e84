"""What each process of test_two_processes.py runs: spawned processes can only import it from a module of its own."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from capture_runs import run_config
from nerfstudio.utils import comms

STEPS = 24


def worker(rank: int, world: int, port: int, recording: Path, folder: Path) -> None:
    """Stands for nerfstudio's ``_distributed_worker``, which insists on CUDA."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(world)))
    torch.manual_seed(42 + rank)  # as nerfstudio seeds its processes
    trainer = run_config(recording, folder / f"rank{rank}", STEPS).setup(local_rank=rank, world_size=world)
    trainer.setup()
    drawn, next_train = [], trainer.pipeline.datamanager.next_train

    def noted(step: int):
        camera, batch = next_train(step)
        drawn.append((int(batch["frame_idx"]), int(batch["view_idx"])))
        return camera, batch

    trainer.pipeline.datamanager.next_train = noted
    trainer.config.viewer.quit_on_train_completion = True
    trainer.train()
    torch.save({"drawn": drawn, "state": trainer.pipeline.state_dict()}, folder / f"seen{rank}.pt")
    comms.synchronize()
    dist.destroy_process_group()
