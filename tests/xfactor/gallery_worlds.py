"""Small galleries and lively random networks, for the tests of viewing and evaluation."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    from nerfstudio.cameras.cameras import Cameras, CameraType

    from xfactor_ns.latents import ShownClip
    from xfactor_ns.viewing import Viewing

from xfactor_ns.network import XFactorNet
from xfactor_ns.size import Size
from xfactor_ns.view_options import ViewOptions

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""

SIDE = 32
TINY = Size(width=16, heads=2, blocks=2, patch=8, pose=6, registers=2, layer_scale=1.0)


def lively(seed: int = 0, size: Size = TINY) -> XFactorNet:
    """Networks whose weights are random in every leaf, so that every latent and picture differs."""
    net = XFactorNet(size, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return net


def scene(seed: int, frames: int, side: int = SIDE) -> np.ndarray:
    """A smooth texture that moves sideways and down: uint8 [F H W 3]."""
    random = np.random.default_rng(seed)
    waves = random.normal(size=(3, 4, 2)) * 3
    phases = random.uniform(0, 2 * np.pi, size=(3, 4))
    grid = np.stack(np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij"), axis=-1)
    pictures = []
    for frame in range(frames):
        at = grid + 0.03 * frame * np.array([0.5, 1.0])
        value = np.sin(np.einsum("hwx,cnx->hwcn", at, waves) + phases).sum(-1)
        pictures.append((255 / (1 + np.exp(-value))).astype(np.uint8))
    return np.stack(pictures)


def film_strip(frames: int, row: int, step: float = 0.2) -> np.ndarray:
    """Cameras on a line that look along -z, [F 3 4]; clips one above the other."""
    c2w = np.tile(np.eye(4)[:3], (frames, 1, 1))
    c2w[:, 0, 3], c2w[:, 1, 3] = step * np.arange(frames), -row
    return c2w


def orbit(frames: int, row: int, radius: float = 2.0, arc: float = 1.5) -> np.ndarray:
    """Cameras on an arc around the point (0, -3 row, 0), looking at it: [F 3 4]."""
    angles = np.linspace(-arc / 2, arc / 2, frames)
    c2w = np.zeros((frames, 3, 4))
    c2w[:, :, 0] = np.stack([np.cos(angles), 0 * angles, -np.sin(angles)], axis=1)
    c2w[:, 1, 1] = 1
    c2w[:, :, 2] = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1)
    c2w[:, :, 3] = radius * c2w[:, :, 2] + np.array([0.0, -3.0 * row, 0.0])
    return c2w


def shown(
    name: str, frames: int = 7, row: int = 0, split: str = "train", step: int = 2, poses: Any = None, window: int = 9
) -> ShownClip:
    """A clip whose every ``step``-th frame is shown."""
    pixels = scene(sum(name.encode()), frames)
    c2w = film_strip(frames, row) if poses is None else poses
    return ShownClip(name, split, tuple(range(0, step * frames, step)), c2w, lambda: pixels, window)


def gallery() -> list[ShownClip]:
    """Two training clips on film strips of 7 and 5 frames, one with known poses on an arc, one held out."""
    return [
        shown("kitchen", 7, 0),
        shown("garden", 5, 1),
        shown("statue", 9, 2, poses=orbit(9, 2)),
        shown("hall", 6, 3, split="test"),
    ]


def make_model(options: ViewOptions | None = None, context_frames: int = 1, seed: int = 0) -> Any:
    """What `Viewing` needs of a model, with the gallery attached; the first three clips are for training."""
    viewing = Viewing(options or ViewOptions())
    clips = gallery()
    owners = [index for index, clip in enumerate(clips) if clip.split == "train" for _ in clip.numbers]
    viewing.attach(clips, owners, context_frames)
    return SimpleNamespace(net=lively(seed), viewing=viewing)


def camera(
    c2w: np.ndarray, height: int = 24, width: int = 24, kind: CameraType = CameraType.PERSPECTIVE, **metadata: Any
) -> Cameras:
    """A camera [1] of a given size and with metadata, as nerfstudio's tools make them."""
    return Cameras(
        torch.from_numpy(np.array(c2w[:3], np.float32))[None], 20.0, 20.0, width / 2, height / 2,
        width=width, height=height, camera_type=kind, metadata=metadata or None,
    )  # fmt: skip
