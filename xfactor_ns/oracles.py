"""Where poses of frames come from when two clips are compared (spec xfactor 7).

An oracle maps frames ``[B V 3 H W]`` in [0, 1] to world-to-camera matrices ``[B V 4 4]``, float64, OpenCV axes. Each
clip has a world and a scale of its own. A frame that the oracle cannot place has a matrix of NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core_ns.errors import DataError, need
from xfactor_ns.pose_similarity import rebase

OracleName = Literal["poses", "colmap", "vggt", "probe", "constant", "noisy"]
VGGT_SIDE, _VGGT_PATCH = 518, 14


class PoseOracle(Protocol):
    """What `pose_similarity` is fed by."""

    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """Poses of clips of frames; each clip for itself."""
        ...


@dataclass(frozen=True)
class KnownPoses:
    """Poses that are known already; the pixels are not looked at."""

    w2c: Float[np.ndarray, "B V 4 4"]

    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """The known poses.

        Raises:
            ValueError: they are of other clips.
        """
        if self.w2c.shape[:2] != tuple(images.shape[:2]):
            raise ValueError(f"poses of {self.w2c.shape[:2]} clips and frames, not {tuple(images.shape[:2])}")
        return self.w2c


@dataclass(frozen=True)
class ConstantPoses:
    """A camera that never moves: what a score must see through."""

    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """Identities."""
        return np.broadcast_to(np.eye(4), (*images.shape[:2], 4, 4)).copy()


@dataclass(frozen=True)
class NoisyPoses:
    """Another oracle's poses, shaken: how much noise of an oracle a score bears.

    Attributes:
        oracle: that is shaken.
        rotation: standard deviation of the rotation vector's components, degrees.
        translation: of the camera's place, in root-mean-square distances of the clip's cameras from their mean.
        seed: the same noise every time.
    """

    oracle: PoseOracle
    rotation: float = 2.0
    translation: float = 0.02
    seed: int = 0

    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """Shaken poses."""
        from scipy.spatial.transform import Rotation

        random = np.random.default_rng(self.seed)
        poses = np.array(self.oracle(images), np.float64)
        turns = np.radians(self.rotation) * random.standard_normal((*poses.shape[:2], 3))
        shifts = self.translation * random.standard_normal((*poses.shape[:2], 3))
        for clip, turn, shift in zip(poses, turns, shifts, strict=True):
            places = -np.einsum("vji,vj->vi", clip[:, :3, :3], clip[:, :3, 3])
            extent = np.sqrt(np.nanmean(((places - np.nanmean(places, axis=0)) ** 2).sum(-1)))
            clip[:, :3, :3] = Rotation.from_rotvec(turn).as_matrix() @ clip[:, :3, :3]
            clip[:, :3, 3] = -np.einsum("vij,vj->vi", clip[:, :3, :3], places + extent * shift)
        return poses


def vggt_frames(images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V 3 518 518"]:
    """Frames as VGGT wants them: bicubic to a short side of 518 (the long one rounded up to a multiple of 14), the
    middle 518 x 518, clamped (spec 7)."""
    height, width = images.shape[-2:]
    ratio = VGGT_SIDE / min(height, width)
    sides = [int(-(-round(side * ratio, 6) // _VGGT_PATCH) * _VGGT_PATCH) for side in (height, width)]
    resized = torch.nn.functional.interpolate(images, sides, mode="bicubic", align_corners=False)
    top, left = ((side - VGGT_SIDE) // 2 for side in sides)
    return resized[..., top : top + VGGT_SIDE, left : left + VGGT_SIDE].clamp(0, 1)


class VggtPoses:
    """VGGT (Wang et al. 2025) as the paper's oracle. Its package and weights are the user's own: nothing is downloaded.

    Args:
        weights: file of VGGT-1B, .safetensors or .pt; its licence is its authors'.
        device: where it runs; on CUDA its trunk runs in bfloat16.

    Raises:
        MissingExtra: the package ``vggt`` is not installed.
        DataError: no such file, or other weights.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        package = "pip install git+https://github.com/facebookresearch/vggt"
        self._poses = need("vggt.utils.pose_enc", "The oracle vggt", package).pose_encoding_to_extri_intri
        model: Any = need("vggt.models.vggt", "The oracle vggt", package).VGGT()
        if not weights.is_file():
            raise DataError(
                weights, "--vggt-weights", "is not a file.", "Download VGGT-1B's weights and name the file."
            )
        try:
            if weights.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(weights)
            else:
                state = torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except Exception as error:  # the loaders raise of all kinds
            first = (str(error).splitlines() or [""])[0]
            problem = f"does not hold VGGT's weights ({type(error).__name__}: {first})."
            raise DataError(weights, "content", problem, "Download VGGT-1B's weights again.") from error
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B V 3 H W"]) -> Float[np.ndarray, "B V 4 4"]:
        """Poses with the first frame's camera as the world. The middle frame goes first through the network, which
        takes the first one as its reference."""
        return np.stack([self._clip(clip) for clip in images])

    def _clip(self, images: Float[Tensor, "V 3 H W"]) -> Float[np.ndarray, "V 4 4"]:
        count, middle = len(images), len(images) // 2
        order = [middle, *(index for index in range(count) if index != middle)]
        frames = vggt_frames(images.float())[order].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens, _ = self.model.aggregator(frames[None])
        code = self.model.camera_head([token.float() for token in tokens])[-1]
        found, _ = self._poses(code, frames.shape[-2:])
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[order, :3] = found[0].double().cpu().numpy()
        return rebase(poses)
