"""What each process of test_row_adam.py runs: spawned processes can only import it from a module of its own."""

from __future__ import annotations

import torch

from xscale_ns.hash_grid import HashGrid
from xscale_ns.row_adam import RowAdam


def grid_of(features: int = 2) -> HashGrid:
    return HashGrid(3, features, 12, 4, 64, init_scale=0.1)


def train_rank(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    grid = grid_of()
    wrapped = torch.nn.parallel.DistributedDataParallel(grid)
    optimizer = RowAdam(wrapped.parameters(), eps=1e-6)
    for step in range(3):
        optimizer.zero_grad()
        q = torch.rand(20, 3, generator=torch.Generator().manual_seed(2 * step + rank))
        (wrapped(q) - q.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    torch.save(grid.state_dict(), f"{out}.{rank}")
    torch.distributed.destroy_process_group()
