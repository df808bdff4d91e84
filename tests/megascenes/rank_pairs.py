"""What each process of test_two_processes.py runs: spawned processes can only import it from a module of its own."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from tiny_runs import open_trainer, run_config, weights

STEPS = 3
OPTIONS = {"batch_size": 4, "ema_decay": 0.9}


def worker(rank: int, world: int, port: int, data: Path, folder: Path, micro: int) -> None:
    """Stands for nerfstudio's ``_distributed_worker``, which insists on CUDA."""
    from nerfstudio.utils import comms

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(world)))
    config = run_config(data, folder / f"rank{rank}", STEPS, "run", micro_batch=micro, **OPTIONS)
    trainer = open_trainer(config, rank, world)
    served: list[int] = []
    next_train = trainer.pipeline.datamanager.next_train

    def seen(step: int):
        batch, rest = next_train(step)
        served.extend(batch.numbers)
        return batch, rest

    trainer.pipeline.datamanager.next_train = seen
    trainer.train()
    losses = [trainer.losses[step] for step in range(STEPS)]
    kept = {"losses": losses, "weights": weights(trainer), "served": served}
    torch.save(kept, folder / f"seen{rank}.pt")
    comms.synchronize()
    dist.destroy_process_group()
