"""True Pose Similarity in ``ns-eval``: each clip's motion drawn in another's scene, as an oracle sees it (spec 7).

Angles alone can be had by drawing the first clip itself; read the scores beside ``cycle`` and the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from xfactor_ns.latents import ShownClip
from xfactor_ns.oracle_options import OracleOptions
from xfactor_ns.oracles import PoseOracle
from xfactor_ns.pose_similarity import mean_scores
from xfactor_ns.transfer import context_frames
from xfactor_ns.transfer_similarity import transfer_similarity


def make_oracle(options: OracleOptions, net: Any, probe: Path | None) -> PoseOracle:
    """The oracle of evaluation, which must see pictures: those that a network drew have no known poses.

    Args:
        probe: the run's, for the oracle of that name.

    Raises:
        DataError: what it needs is not there.
    """
    if options.oracle != "probe":
        return options.make(None)
    from xfactor_ns.probe import load_probe
    from xfactor_ns.probe_fit import LatentPoses, encoder_fingerprint

    if probe is None:
        raise DataError(
            "config", "pipeline.eval-oracle", "is probe, but the run has none.", "Make it: ns-xfactor probe."
        )
    return LatentPoses(net, load_probe(probe, net.size.pose, encoder_fingerprint(net))[0])


def motion_scores(net: Any, clips: Sequence[ShownClip], oracle: PoseOracle, count: int, batch: int) -> dict[str, float]:
    """Means over the clips of how well the drawn motion matches the clip's own, as ``tps_...``.

    Args:
        net: `XFactorNet`.
        clips: held-out ones; each gives its motion, the next one its scene.
        oracle: asked about both.
        count: context frames.
        batch: frames at once.

    Returns:
        Scores of `pose_similarity`, and ``tps_placed``, the share of clips whose poses the oracle found; no more than
        that where it found none, or where there is one clip alone.
    """
    if len(clips) < 2:
        CONSOLE.print("Pose similarity needs two held-out clips: left out.", soft_wrap=True)
        return {}
    scores = []
    for place, clip in enumerate(clips):
        scene = clips[(place + 1) % len(clips)]
        context = context_frames(len(scene.numbers), count, scene.reference)
        try:
            found, _ = transfer_similarity(oracle, net, clip.read(), scene.read(), context, batch)
        except ValueError as error:  # fewer than two frames that the oracle could place in both
            if isinstance(error, DataError):
                raise
            CONSOLE.print(f"Pose similarity of {clip.id} in {scene.id}: {error}", soft_wrap=True, markup=False)
            continue
        scores.append(found)
    means = mean_scores(scores) if scores else {}
    placed = len(scores) / len(clips)
    return {f"tps_{name}": value for name, value in means.items()} | {"tps_placed": placed}
