"""``ns-xfactor probe``: fit real cameras to pose latents, and say how well that goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from core_ns.errors import DataError
from xfactor_ns.open_net import NetOptions
from xfactor_ns.oracle_options import PROBE_FILE, OracleOptions

if TYPE_CHECKING:
    from xfactor_ns.clip_source import ReadClip
    from xfactor_ns.probe_fit import PosedLatents, ProbeScores


@dataclass
class ProbeCommand:
    """Fit a small network between pose latents and real cameras, both ways; the networks themselves do not change."""

    clips: list[str] = field(default_factory=list)
    """Clips to fit to: videos, folders of frames, or ids of the run. Default: all clips of the run."""
    test: list[str] = field(default_factory=list)
    """Clips to score on instead. Default: the run's held-out clips; else every fifth clip, or every fourth frame of
    fewer than five clips."""
    frames: int = 48
    """Frames of each clip at most, evenly spread; 0: all."""
    references: int = 4
    """Reference frames from which each clip is seen."""
    max_clips: int = 64
    """Of the run's clips at most so many, evenly spread."""
    steps: int = 1000
    """Updates of each direction."""
    probe_seed: int = 0
    """Of the probe's first weights and of the order of the clips."""
    out: Optional[Path] = None
    """File to write, .safetensors. Default: probe.safetensors beside the run's config.yml or the weights, where the
    viewer and ns-xfactor similarity --oracle probe look for it."""
    oracle: Annotated[OracleOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: OracleOptions(oracle="poses")
    )
    """Who says where the cameras were."""
    net: Annotated[NetOptions, tyro.conf.arg(name="")] = field(default_factory=NetOptions)
    """The networks."""

    def main(self) -> int:
        """Read clips and poses, fit, score on what was held out, write.

        Raises:
            DataError: bad options or clips, or no clip with poses; nothing is written.
        """
        if self.oracle.oracle not in ("poses", "colmap", "vggt"):
            raise DataError(
                "options", "--oracle", f"{self.oracle.oracle} teaches nothing.", "Use poses, colmap or vggt."
            )
        if min(self.frames, self.steps) < 0 or min(self.references, self.max_clips) < 1 or self.frames == 1:
            raise DataError("options", "frames, references, steps", "are too small.", "Give 2, 1, and 1 or more.")
        self.oracle.check()
        opened = self.net.open()
        out = opened.folder / PROBE_FILE if self.out is None else self.out
        if out.suffix != ".safetensors" or out.is_dir():
            raise DataError(out, "--out", "is no .safetensors file.", "Name it like probe.safetensors.")

        from xfactor_ns.probe import save_probe
        from xfactor_ns.probe_fit import encoder_fingerprint, fit_probe, hold_out, score_probe

        fit, test = self._names(opened)
        found: list[PosedLatents] = []
        for name in [*fit, *test]:
            found += self._posed(name, opened)
        if not found:
            problem = "have no poses." if self.oracle.oracle == "poses" else "got no poses."
            remedy = "Add transforms.json to a clip, or use --oracle colmap."
            raise DataError(opened.folder, f"{len(fit) + len(test)} clips", problem, remedy)
        train, scored, kind = hold_out(found, test)
        if not scored:
            raise DataError(opened.folder, "clips", "have too few frames with poses.", "Give longer clips.")
        probe = fit_probe(train, steps=self.steps, seed=self.probe_seed)
        scores = score_probe(probe, scored)
        clips = len({each.clip for each in found})
        facts = {
            "encoder": encoder_fingerprint(opened.net), "clips": clips, "held_out": kind, "oracle": self.oracle.oracle,
            "pose": scores.pose, "pose_still": scores.still, "latent_residual": scores.latent_residual,
        }  # fmt: skip
        save_probe(out, probe, facts)
        for line in report(scores, clips, kind):
            print(line)
        print(f"Written: {out}")
        return 0

    def _names(self, opened: Any) -> tuple[list[str], list[str]]:
        """Clips to fit to, and those that must be scored on."""
        if self.clips:
            return list(self.clips), list(self.test)
        if not opened.sequences:
            raise DataError("options", "--clips", "is empty.", "Name clips with poses; a file of weights has none.")
        held_out = [name for name in self.test or opened.held_out if name in opened.sequences or self.test]
        known = [name for name in opened.sequences if name not in held_out]
        if self.oracle.oracle == "poses":
            known, held_out = ([n for n in names if self._has_poses(n, opened)] for names in (known, held_out))
        return _spread(known, self.max_clips), _spread(held_out, max(self.max_clips // 4, 1))

    def _has_poses(self, name: str, opened: Any) -> bool:
        return name not in opened.sequences or opened.sequences[name].has_poses

    def _posed(self, name: str, opened: Any) -> list[PosedLatents]:
        import numpy as np

        from xfactor_ns.clip_source import find_clip, read_numbers
        from xfactor_ns.probe_fit import posed_latents
        from xfactor_ns.transfer_similarity import oracle_frames

        sequence = find_clip(name, opened.sequences)
        numbers = _spread(list(range(sequence.frames)), self.frames or sequence.frames)
        clip: ReadClip = read_numbers(
            name, sequence, numbers, opened.image_size, opened.resize_mode, poses=self.oracle.oracle == "poses"
        )
        if self.oracle.oracle == "poses":
            if clip.w2c is None:
                raise DataError(clip.name, "poses", "are not there.", "Use --oracle colmap, or leave the clip out.")
            w2c = clip.w2c
        else:
            whole = read_numbers(name, sequence, numbers, None, opened.resize_mode)
            w2c = np.asarray(self.oracle.make(whole, opened)(oracle_frames(whole.frames))[0])
        return posed_latents(opened.net, name, clip.frames, w2c, self.references, self.net.batch)


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def report(scores: ProbeScores, clips: int, kind: str) -> list[str]:
    """What the probe is worth, for people."""
    pose, still = scores.pose, scores.still
    return [
        f"Fitted to {clips} clips; scored on {kind} held out (in brackets: a camera that stands still):",
        f"  latent -> camera: rotation within 10 degrees {pose['Rac_10']:.3f} ({still['Rac_10']:.3f}), direction "
        f"{pose['Tac_10']:.3f}, with sign {pose['RTA_signed_10']:.3f}, AUC at 30 degrees {pose['SE3_Auc_30']:.3f}",
        f"  camera -> latent: residual {scores.latent_residual:.3f} of the latents' square (1)",
        "  The control modes regress and invert rest on this; they are experimental.",
    ]
