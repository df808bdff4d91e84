"""``ns-xfactor similarity``: how alike the camera motions of two clips are, or of a clip and its transfer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from core_ns.errors import DataError
from xfactor_ns.open_net import NetOptions
from xfactor_ns.oracle_options import OracleOptions

if TYPE_CHECKING:
    from xfactor_ns.clip_source import ReadClip

_TABLE_THRESHOLDS = (5, 10, 20, 30)


@dataclass
class SimilarityCommand:
    """Compare the camera motion of two clips frame by frame (True Pose Similarity)."""

    a: str
    """Clip: a video, a folder of frames, or a clip's id of the run."""
    b: str
    """Clip whose frame i belongs to frame i of the first one."""
    transfer: bool = False
    """Draw the motion of a in the scene of b first, and compare the frames drawn with a: the paper's score of a model.
    Needs --load-config or --weights."""
    frames: int = 30
    """Frames of each clip at most; 0: all."""
    stride: int = 1
    """Take every so manieth frame of each clip."""
    a_start: int = 0
    """First frame of a."""
    b_start: int = 0
    """First frame of b."""
    out: Optional[Path] = None
    """JSON file for all scores."""
    oracle: Annotated[OracleOptions, tyro.conf.arg(name="")] = field(default_factory=OracleOptions)
    """Who says where the cameras were."""
    net: Annotated[NetOptions, tyro.conf.arg(name="")] = field(default_factory=NetOptions)
    """The networks, for --transfer and for the oracle probe."""

    def main(self) -> int:
        """Read, ask the oracle, score, print a table.

        Raises:
            DataError: bad options or clips, or poses of fewer than two frames; nothing is written.
        """
        if self.out is not None and (self.out.suffix != ".json" or self.out.is_dir()):
            raise DataError(self.out, "--out", "is no .json file.", "Name it like scores.json.")
        self.oracle.check()
        given = self.net.load_config is not None or self.net.weights is not None
        needed = self.transfer or self.oracle.oracle == "probe"
        opened = self.net.open() if given or needed else None

        from core_ns.atomic import write_json
        from xfactor_ns.transfer_similarity import clip_similarity, transfer_similarity

        # Oracles see the frames as they are, unless a network is to see them too.
        size = opened.image_size if opened is not None and needed else None
        a, b = self._read(self.a, self.a_start, size, opened), self._read(self.b, self.b_start, size, opened)
        try:
            if self.transfer:
                from xfactor_ns.transfer import context_frames

                assert opened is not None  # needed
                oracle = self.oracle.make(None, opened)
                context = context_frames(len(b.frames), opened.context_frames)
                scores, _ = transfer_similarity(oracle, opened.net, a.frames, b.frames, context, self.net.batch)
            else:
                # Two clips do not shake alike.
                shaken = self.oracle.oracle == "noisy"
                of_b = replace(self.oracle, seed=self.oracle.seed + 1) if shaken else self.oracle
                first, second = self.oracle.make(a, opened), of_b.make(b, opened)
                scores = clip_similarity(first, a.frames, b.frames, second)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            remedy = "Choose clips of as many frames (--frames), with more texture, or another oracle."
            raise DataError(f"{self.a}, {self.b}", "frames", f"cannot be compared: {error}.", remedy) from error
        if self.out is not None:
            facts = {"a": a.id, "b": b.id, "oracle": self.oracle.oracle, "transfer": self.transfer}
            write_json(self.out, facts | {"scores": scores})
        for line in score_table(scores):
            print(line)
        return 0

    def _read(self, name: str, start: int, size: Optional[int], opened: Any) -> ReadClip:
        from xfactor_ns.clip_source import Span, read_clip

        mode = "antialias" if opened is None else opened.resize_mode
        known, stored = (None, None) if opened is None else (opened.sequences, opened.stored)
        return read_clip(name, size, mode, Span(start, self.frames, self.stride), known, True, stored)


def score_table(scores: dict[str, float]) -> list[str]:
    """The scores for people: shares of pairs of frames below each angle, areas under those curves, distances."""
    lines = [f"{'degrees':22}" + "".join(f"{t:>8}" for t in _TABLE_THRESHOLDS)]
    names = {
        "Rac": "rotation (RRA)", "Tac": "direction (RTA)", "RTA_signed": "direction with sign",
        "Rot_Auc": "AUC rotation", "Trans_Auc": "AUC direction", "SE3_Auc": "AUC both",
    }  # fmt: skip
    for key, label in names.items():
        lines.append(f"{label:22}" + "".join(f"{scores[f'{key}_{t}']:8.3f}" for t in _TABLE_THRESHOLDS))
    rest = {
        "traj_err_scale_invariant": "distance, best scale", "traj_err_unscaled": "distance",
        "ATE_relative": "ATE / extent", "scale_drift": "scale drift", "posed": "frames with poses",
    }  # fmt: skip
    return lines + [f"{label:22}{scores[key]:8.3f}" for key, label in rest.items() if key in scores]
