"""``ns-megascenes generate``: a split's views and their scores, on one process or many (spec megascenes 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

from core_ns.errors import DataError, need

INSTALL = 'pip install "nvs-zoo[megascenes]"'


@dataclass
class GenerateCommand:
    """Generate the views of a split's pairs, then score them against the photos. On many processes: accelerate launch
    -m megascenes_ns.generate; the result is that of one."""

    load_config: Path
    """config.yml of the run."""
    out: Path
    """Folder for pictures and scores.json; what is there of an interrupted run is kept."""
    split: Literal["train", "val", "test"] = "test"
    """Which pairs."""
    max_pairs: Optional[int] = None
    """The first so many of them; default: all."""
    steps: Optional[int] = None
    """Of the sampler; default: the run's."""
    sampler: Optional[Literal["legacy", "ddim", "dpm", "unipc"]] = None
    """Default: the run's."""
    guidance: Optional[float] = None
    """Default: the run's."""
    seed: Optional[int] = None
    """Of the noise: pair n has this number plus n; default: the run's."""
    batch: int = 8
    """Pairs that are sampled at once on each process."""
    features: bool = True
    """Compute FID and KID as well, where Inception's weights are on this machine."""
    strips: bool = False
    """Write reference, warp, view and photo side by side too."""

    def main(self) -> int:
        """Generate this process's share; the first process scores all of them.

        Raises:
            DataError: bad options, a run without its data, or results of other settings in the folder.
        """
        self._check()
        accelerate: Any = need("accelerate", "ns-megascenes generate", INSTALL)
        import torch

        from core_ns.runs import load_run
        from megascenes_ns.drawing import weights_fingerprint
        from megascenes_ns.generate import generate_share, open_folder, score_folder
        from megascenes_ns.open_view import PIPELINE
        from megascenes_ns.render_path import sampled_with

        state = accelerate.PartialState(cpu=not torch.cuda.is_available())
        pipeline, model = load_run(self.load_config, PIPELINE)
        pipeline.eval()
        reader: Any = pipeline.datamanager.reader
        if reader is None:
            raise DataError(self.load_config, "data", "are one photo, or gone.", "Name a run on pairs.")
        numbers = [int(number) for number in reader.pairs.rows(self.split)][: self.max_pairs]
        if not numbers:
            raise DataError(self.load_config, "--split", f"{self.split} has no pairs.", "Choose another.")
        nets, viewing = model.sampling_networks(), model.viewing
        settings = sampled_with(viewing.settings(), sampler=self.sampler, steps=self.steps, guidance=self.guidance)
        seed = viewing.sampling.seed if self.seed is None else self.seed
        about: dict[str, Any] = {
            "weights": weights_fingerprint(nets), "split": self.split, "pairs": len(numbers), "seed": seed,
            "sampler": settings.sampler, "steps": settings.steps, "guidance": settings.guidance,
            "uncond": settings.uncond, "batch": self.batch, "warp": viewing.drawer.warp_settings,
        }  # fmt: skip
        if state.is_main_process:
            open_folder(self.out, about)
        state.wait_for_everyone()
        open_folder(self.out, about)
        written = generate_share(
            nets, viewing.drawer, reader, numbers, settings, seed, self.batch, self.out, state.process_index,
            state.num_processes,
        )  # fmt: skip
        print(f"process {state.process_index + 1} of {state.num_processes}: {written} pictures", flush=True)
        state.wait_for_everyone()
        if state.is_main_process:
            content = score_folder(
                viewing.drawer, reader, numbers, self.out, about, str(nets.device), features=self.features,
                strips=self.strips,
            )  # fmt: skip
            for name, value in sorted(content["means"].items()):
                print(f"{name:28} {value:.5g}")
            for name, reason in content["skipped"].items():
                print(f"{name:28} skipped: {reason}")
            print(self.out / "scores.json")
        state.wait_for_everyone()
        state.destroy_process_group()
        return 0

    def _check(self) -> None:
        for name, least in (("batch", 1), ("steps", 1), ("max_pairs", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                option = f"--{name.replace('_', '-')}"
                raise DataError("options", option, f"is {value}.", f"Give {least} or more.")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise DataError("options", "--guidance", f"is {self.guidance}.", "Give 0 or more.")
