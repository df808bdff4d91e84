"""A small reference, tiny networks and cameras for the tests of viewing and rendering."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.viewer.render_state_machine  # noqa: F401
    from nerfstudio.cameras.cameras import Cameras

    from megascenes_ns.viewing import Viewing

from core_ns.images import write_image
from megascenes_ns.canonical import c2w_ns_from_rel
from megascenes_ns.depth import Depth, in_units
from megascenes_ns.model_config import SamplingOptions
from megascenes_ns.networks import Networks
from megascenes_ns.photo import camera_matrix
from megascenes_ns.prepare import prepare
from megascenes_ns.reference import Reference
from megascenes_ns.reference_shelf import ReferenceShelf
from megascenes_ns.sizes import Sizes
from megascenes_ns.view_options import ViewOptions

CANVAS = 64
NOISE = ("ignore:Using a non-tuple sequence:UserWarning",)
"""nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1)."""


def small_photo(width: int = 128, height: int = 96, phase: float = 0.0) -> np.ndarray:
    """Smooth coloured waves, uint8 [h, w, 3]."""
    rows, columns = np.mgrid[:height, :width] / 12.0
    tint = np.array([0.0, 1.0, 2.1]) + phase
    waves = np.sin(rows[..., None] + tint) * np.cos(0.7 * columns[..., None] - tint)
    return (127.5 + 120 * waves).astype(np.uint8)


def slanted_depth(width: int = 128, height: int = 96) -> np.ndarray:
    """z of a floor that comes nearer downwards, float32 [h, w]."""
    return np.repeat(np.linspace(4.0, 1.5, height, dtype=np.float32)[:, None], width, axis=1)


def write_photo(folder: Path, name: str = "photo", phase: float = 0.0) -> Path:
    """A photo with its depth beside it."""
    file = folder / f"{name}.png"
    write_image(file, small_photo(phase=phase))
    np.save(file.with_suffix(".npy"), slanted_depth())
    return file


def small_reference(phase: float = 0.0, canvas: int = CANVAS) -> Reference:
    """128 x 96 waves on a slanted floor."""
    image = small_photo(phase=phase)
    prepared = prepare(image, camera_matrix(128, 96, 110.0), canvas)
    height, width = prepared.image.shape[:2]
    depth = in_units(slanted_depth(width, height), "test")
    assert isinstance(depth, Depth)
    return Reference(f"waves{phase:g}", prepared, depth)


def tiny_networks(seed: int = 0, in_channels: int = 11) -> Networks:
    """Networks of megascenes-tiny whose pose matters."""
    nets = Networks.fresh(Sizes.tiny(in_channels), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = nets.cc_projection.weight
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return nets


def small_viewing(count: int = 3, **options: Any) -> Viewing:
    """Viewing of ``count`` references, with three quick steps; options of ViewOptions or SamplingOptions."""
    view, sampling = ViewOptions(samples_per_pixel=1), SamplingOptions(sampler="ddim", steps=4, preview_steps=2)
    for name, value in options.items():
        holder = view if hasattr(view, name) else sampling
        assert hasattr(holder, name), name
        setattr(holder, name, value)
    made = Viewing(view, sampling, "consistent", CANVAS)
    made.attach(ReferenceShelf(lambda pair: small_reference(0.5 * pair), range(count)))
    return made


def moved_pose(x: float = 0.2, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """Camera to reference, OpenCV axes, shifted without turning."""
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def camera_at(
    pose: np.ndarray, width: int = 64, height: int = 48, focal: float = 55.0, metadata: dict[str, Any] | None = None
) -> Cameras:
    """nerfstudio's camera [1] of a pose (OpenCV axes, canonical world)."""
    c2w = torch.from_numpy(c2w_ns_from_rel(pose)[None, :3]).float()
    return Cameras(
        c2w, torch.tensor([[focal]]), torch.tensor([[focal]]), torch.tensor([[width / 2]]),
        torch.tensor([[height / 2]]), torch.tensor([[width]]), torch.tensor([[height]]), metadata=metadata,
    )  # fmt: skip
