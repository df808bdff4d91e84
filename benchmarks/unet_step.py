"""Time of our UNet step against plain diffusers at the same shapes.

Question: does anything we wrap around diffusers' UNet (joining inputs, conditioning, guidance, the sampler's own step)
cost time (acceptance 4: at most 1.05 times)?

One thread, CPU time, interleaved, medians after a warm-up. ``plain`` is a ``UNet2DConditionModel`` built from spec 5's
arguments, called as a diffusers pipeline calls it: joined input, both halves of guidance in one batch,
``DDIMScheduler.step``; in training the bare forward and backward pass. ``ours`` is `sampler.guided_noise` with
`sampler.DdimSolver`, in training `conditioning.condition` with `networks.Networks.predict_noise`. Same weights, same
inputs; the full size shares one copy of the weights (3.4 GB) and is not trained.

Predicted: 1.00 within the noise, the work being diffusers' own.

Found (22 November 2026, seven neighbours on two cores; the JSON beside this file): a guided sampling step takes 1.00 of
plain diffusers' time at the released size (4.4 s on one thread) and 1.00 to 1.05 at the small ones, a training step
0.97 to 1.04, where ours includes the projection that plain diffusers lacks. Asking diffusers for a model's ``dtype``
searches all its modules and was 2 % of a tiny step; we ask one weight.

Run from the repository root: ``python -m benchmarks.unet_step``. Writes ``results/unet_step.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from benchmarks.voxel_walk import cpu_model
from megascenes_ns.conditioning import Conditioning, condition
from megascenes_ns.networks import Encoded, Networks
from megascenes_ns.noise_schedule import DIFFUSERS
from megascenes_ns.sampler import guided_noise, make_solver
from megascenes_ns.sizes import Sizes, UNetSize

RESULTS = Path(__file__).parent / "results" / "unet_step.json"


@dataclass(frozen=True)
class Case:
    """Shapes of one measurement."""

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    context: int
    latent: int
    views: int
    train: bool
    rounds: int
    share: bool = False


CASES = {
    "megascenes-tiny: width 32, 8x8 latents, 8 views": Case(32, (1, 2, 2, 2), 1, 32, 8, 8, True, 61),
    "width 64, 32x32 latents, 2 views": Case(64, (1, 2, 4, 4), 2, 768, 32, 2, True, 11),
    "width 128, 32x32 latents, 1 view": Case(128, (1, 2, 4, 4), 2, 768, 32, 1, True, 9),
    "released size: width 320, 32x32 latents, 1 view": Case(320, (1, 2, 4, 4), 2, 768, 32, 1, False, 5, share=True),
}


def build(case: Case) -> tuple[Networks, Any, Conditioning, dict[str, torch.Tensor]]:
    """Our networks, plain diffusers' UNet with the same weights, and inputs."""
    tiny, context = Sizes.tiny(), case.context
    nets = Networks.fresh(
        Sizes(UNetSize(11, case.width, case.multipliers, case.blocks, 8, context), tiny.vae, tiny.clip)
    )
    lower = len(case.multipliers) - 1
    plain: Any = nets.unet
    if not case.share:
        plain = UNet2DConditionModel(
            sample_size=32,
            in_channels=11,
            out_channels=4,
            block_out_channels=tuple(case.width * each for each in case.multipliers),
            layers_per_block=case.blocks,
            down_block_types=("CrossAttnDownBlock2D",) * lower + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * lower,
            cross_attention_dim=context,
            attention_head_dim=8,
        )
        plain.load_state_dict(nets.unet.state_dict())
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    side, views = case.latent, case.views
    inputs = {
        "noisy": draw(views, 4, side, side),
        "noise": draw(views, 4, side, side),
        "latent": draw(views, 4, side, side),
        "embedding": draw(views, context),
        "pose": draw(views, 19),
        "warp": torch.rand(views, side, side, 3, generator=generator),
    }
    with torch.no_grad():
        given = condition(nets, Encoded(inputs["latent"], inputs["embedding"]), inputs["pose"], inputs["warp"])
    return nets, plain, given, inputs


def sampling(nets: Networks, plain: Any, given: Conditioning, noisy: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """One guided step of each, at the middle of 20."""
    solver = make_solver("ddim", 20, lambda: noisy)
    time_ = solver.times[10]
    scheduler: Any = DDIMScheduler(**DIFFUSERS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(20)
    context = torch.cat([torch.zeros_like(given.context), given.context])
    concat = torch.cat([torch.zeros_like(given.concat), given.concat])

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return solver.step(10, guided_noise(nets, noisy, time_, given, 3.0, "legacy"), noisy)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        both = plain(torch.cat([torch.cat([noisy] * 2), concat], 1), time_, encoder_hidden_states=context).sample
        empty, full = both.chunk(2)
        return scheduler.step(empty + 3.0 * (full - empty), time_, noisy).prev_sample

    return {"ours": ours, "plain": theirs}


def training(
    nets: Networks, plain: Any, given: Conditioning, inputs: dict[str, torch.Tensor]
) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass of each."""
    times = torch.full((len(given),), 481)
    joined = torch.cat([inputs["noisy"], given.concat], 1)
    nets.train()
    plain.train()

    def ours() -> torch.Tensor:
        nets.zero_grad(set_to_none=True)
        encoded = Encoded(inputs["latent"], inputs["embedding"])
        made = condition(nets, encoded, inputs["pose"], inputs["warp"])
        found = nets.predict_noise(inputs["noisy"], times, made.context, made.concat)
        loss = (found - inputs["noise"]).square().mean()
        loss.backward()
        return loss.detach()

    def theirs() -> torch.Tensor:
        plain.zero_grad(set_to_none=True)
        found = plain(joined, times, encoder_hidden_states=given.context).sample
        loss = (found - inputs["noise"]).square().mean()
        loss.backward()
        return loss.detach()

    return {"ours": ours, "plain": theirs}


def compare(entries: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, in turn, and their ratio: the median of the rounds' ratios."""
    results = {name: entry() for name, entry in entries.items()}
    torch.testing.assert_close(results["ours"], results["plain"], rtol=1e-3, atol=1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(rounds):
        for name in list(entries) if number % 2 else list(entries)[::-1]:
            begin = time.process_time()
            entries[name]()
            seconds[name].append(time.process_time() - begin)
    ratios = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        **{f"{name}_ms": round(1e3 * statistics.median(each), 2) for name, each in seconds.items()},
        "ours_over_plain": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Measure all cases and write the JSON."""
    parser = argparse.ArgumentParser(description="UNet step against plain diffusers.")
    parser.add_argument("--skip-full", action="store_true", help="without the released size (8 GB, minutes)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    cases = {}
    for name, case in CASES.items():
        if case.share and arguments.skip_full:
            continue
        nets, plain, given, inputs = build(case)
        entry: dict[str, Any] = {
            "case": asdict(case),
            "sampling": compare(sampling(nets, plain, given, inputs["noisy"]), case.rounds),
        }
        if case.train:
            entry["training"] = compare(training(nets, plain, given, inputs), case.rounds)
        cases[name] = entry
        print(name, json.dumps(entry), flush=True)
    report = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "clock": "CPU time, interleaved, medians",
        "load_average": {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        "cases": cases,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
