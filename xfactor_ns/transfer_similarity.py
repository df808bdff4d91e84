"""True Pose Similarity of clips, and of a clip with its own motion drawn in another scene (spec xfactor 7)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xfactor_ns.oracles import PoseOracle
from xfactor_ns.pose_similarity import pose_similarity
from xfactor_ns.transfer import Frames, Net, transfer


def oracle_frames(frames: Frames) -> Float[Tensor, "1 V 3 H W"]:
    """uint8 ``[V H W 3]`` as oracles take them: one clip, channels first, in [0, 1]."""
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    return frames.permute(0, 3, 1, 2)[None].cpu().float() / 255


def clip_similarity(oracle: PoseOracle, a: Frames, b: Frames, other: PoseOracle | None = None) -> dict[str, float]:
    """Scores of b's camera motion against a's, as an oracle sees them.

    Args:
        a: uint8 ``[V H W 3]``.
        b: as many frames.
        other: the oracle of b; default: that of a (they differ for known poses).

    Raises:
        ValueError: not as many frames, or fewer than two with a pose in both.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} frames")
    second = oracle if other is None else other
    return pose_similarity(oracle(oracle_frames(a))[0], second(oracle_frames(b))[0])


def transfer_similarity(
    oracle: PoseOracle, net: Net, source: Frames, scene: Frames, context: list[int] | None = None, batch: int = 8
) -> tuple[dict[str, float], Frames]:
    """The paper's score of a model: the frames of A against A's motion drawn in B.

    A model that draws A itself scores a perfect 1: look at the pictures, or at a score of theirs, too.

    Args:
        source: A, uint8 ``[F H W 3]``.
        scene: B.
        context: frames of B to draw from, the reference first; default: its middle one.

    Returns:
        The scores, and the frames drawn.
    """
    drawn = transfer(net, source, scene, context=context, batch=batch).frames
    return clip_similarity(oracle, source, drawn), drawn
