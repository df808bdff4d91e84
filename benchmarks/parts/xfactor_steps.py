"""One training step of XFactor's two networks, four ways; run as a module, it tells the peak memory of one of them.

``python -m benchmarks.parts.xfactor_steps CASE WAY`` with JSON of a `Case`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from xfactor_ns.attention import dense_kernels
from xfactor_ns.masked_twin import masked_frame, masked_latents
from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size

WAYS = {
    "packed": "xfactor_ns: each mask group an item of its own",
    "masked_trimmed": "attention mask, but the last block computes only what is looked at",
    "masked": "attention mask, all tokens in all blocks: what the original computes, in torch",
    "flax": "the Flax reference, jitted: attention mask, all tokens",
}
Step = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Sizes of the networks and of a batch of noise."""

    width: int
    heads: int
    blocks: int
    patch: int
    side: int
    batch: int
    views: int = 2
    registers: int = 32
    pose: int = 32
    checkpointing: bool = False

    @property
    def size(self) -> Size:
        """Of the networks."""
        return Size(self.width, self.heads, self.blocks, self.patch, self.pose, self.registers)


def batch_of(case: Case) -> tuple[Tensor, Tensor]:
    """Frames [B V H W 3], and masks [B T] that give the left half to group 0."""
    frames = (
        2 * torch.rand(case.batch, case.views, case.side, case.side, 3, generator=torch.Generator().manual_seed(0)) - 1
    )
    rows = case.side // case.patch
    return frames, (torch.arange(rows) >= rows // 2).long().repeat(case.batch, rows)


def torch_step(case: Case, way: str) -> Step:
    """Forward, backward, clip, AdamW; L1 between the last view and its rendering with exchanged latents."""
    net = XFactorNet(case.size, checkpointing=case.checkpointing)
    kernels = {id(kernel) for kernel in dense_kernels(net)}
    groups = [
        {"params": [p for p in net.parameters() if (id(p) in kernels) == decays], "weight_decay": 5e-3 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    frames, mask = batch_of(case)
    pairs = torch.stack([frames[:, :1].expand_as(frames[:, 1:]), frames[:, 1:]], 2).flatten(0, 1)
    pair_mask, trim = mask.repeat_interleave(case.views - 1, 0), way == "masked_trimmed"

    def step() -> float:
        optimizer.zero_grad()
        if way == "packed":
            found = net.pose_encoder(pairs, pair_mask)
        else:
            found = masked_latents(net.pose_encoder, pairs, pair_mask, trim)
        others = found[:, 1].unflatten(0, (case.batch, case.views - 1))
        swapped = torch.cat([torch.zeros_like(others[:, :1]), others], 1).flip(2)
        if way == "packed":
            made = net.renderer(frames[:, :-1], swapped, mask)
        else:
            made = masked_frame(net.renderer, frames[:, :-1], swapped, mask, trim)
        loss = (made - frames[:, -1]).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def flax_step(case: Case) -> Step:
    """The same in JAX; pairs only."""
    import jax.numpy as jnp

    from xfactor_ns.flax_reference.parameters import from_torch
    from xfactor_ns.flax_reference.training import optimizer, train_step

    assert case.views == 2
    rule = optimizer()
    params = from_torch(XFactorNet(case.size).state_dict())
    state, run = rule.init(params), train_step(case.size, rule, remat=case.checkpointing)
    frames, mask = (jnp.array(part.numpy()) for part in batch_of(case))

    def step() -> float:
        nonlocal params, state
        params, state, loss = run(params, state, frames, mask)
        return float(loss)

    return step


def step_of(case: Case, way: str) -> Step:
    """A step of one of `WAYS`."""
    return flax_step(case) if way == "flax" else torch_step(case, way)


def one_thread() -> None:
    """For both libraries; before jax is imported."""
    torch.set_num_threads(1)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def median_seconds(case: Case, ways: list[str], rounds: int) -> dict[str, float]:
    """CPU seconds of a step, interleaved, after a warm-up (of which the losses have to agree)."""
    steps = {way: step_of(case, way) for way in ways}
    losses = [step() for step in steps.values()]
    assert max(losses) - min(losses) < 1e-5, losses
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, step in steps.items():
            start = time.process_time()
            step()
            times[way].append(time.process_time() - start)
    return {way: statistics.median(values) for way, values in times.items()}


def peak_bytes(case: Case, way: str) -> int:
    """What two steps need in a fresh process, beyond its imports."""
    command = [sys.executable, "-m", "benchmarks.parts.xfactor_steps", json.dumps(asdict(case)), way]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def peak_of_this_process() -> int:
    """Bytes. From /proc: getrusage's figure is inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Print the bytes."""
    one_thread()
    case, way = Case(**json.loads(sys.argv[1])), sys.argv[2]
    if way == "flax":
        from xfactor_ns.flax_reference import training  # noqa: F401
    before = peak_of_this_process()
    step = step_of(case, way)
    for _ in range(2):
        step()
    print(peak_of_this_process() - before)


if __name__ == "__main__":
    main()
