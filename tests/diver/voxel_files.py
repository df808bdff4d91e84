"""Small voxel models in the original's file layouts, and a slow renderer of the fixtures' segments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diver_ns.voxel_model import VoxelModel

CHANNELS = 32


def decoder_state(width: int, seed: int = 0, names: tuple[str, str] = ("point", "view")) -> dict[str, torch.Tensor]:
    """Random decoder weights of about the size that training gives."""
    g = torch.Generator().manual_seed(seed)
    point, view = names
    sizes = [(f"{point}.0", width, CHANNELS)]
    if width == 32:
        sizes.append((f"{point}.2", width, width))
    sizes += [
        (f"{point}.{4 if width == 32 else 2}", 1 + width, width),
        (f"{view}.0", width, width + 27),
        (f"{view}.2", 3, width),
    ]
    state = {}
    for name, outputs, inputs in sizes:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=g) * inputs**-0.5
        state[f"{name}.bias"] = torch.randn(outputs, generator=g) * 0.3
    return state


def blob(resolution: int, seed: int = 0) -> torch.Tensor:
    """A lumpy occupied region away from the faces of the grid, [N, N, N]."""
    g = torch.Generator().manual_seed(seed)
    axis = (torch.arange(resolution) + 0.5) / resolution
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    mask = torch.zeros(resolution, resolution, resolution, dtype=torch.bool)
    for centre in torch.rand(4, 3, generator=g) * 0.4 + 0.3:
        mask |= (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 0.15**2
    return mask


def original_state(
    resolution: int, width: int, mask: torch.Tensor | None, seed: int = 0, sparse: bool = False
) -> dict[str, torch.Tensor]:
    """A state dict under the original's names, in its order."""
    n = resolution + 1
    table = torch.randn(n, n, n, CHANNELS, generator=torch.Generator().manual_seed(seed))
    state: dict[str, torch.Tensor] = {"voxels": table.to_sparse(3) if sparse else table}
    if mask is not None:
        state["voxel_mask"] = mask
    return state | decoder_state(width, seed, ("mlp1", "mlp2"))


def lightning(state: dict[str, torch.Tensor], **settings: Any) -> dict[str, Any]:
    """A checkpoint as Lightning 1.2 writes it, settings in a Namespace."""
    return {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.2.0", "callbacks": {}, "lr_schedulers": [],
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 5e-4, "params": [0]}]}],
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "hparams_name": "hparams", "hyper_parameters": argparse.Namespace(**settings),
    }  # fmt: skip


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def load(path: Path) -> dict[str, torch.Tensor]:
    """A file of tensors."""
    with torch.sparse.check_sparse_tensor_invariants(True):
        return torch.load(path, weights_only=True)


def encode_direction(d: torch.Tensor) -> torch.Tensor:
    """Spec diver 2: d, then per frequency sin(3), cos(3); in float64."""
    blocks = [d]
    for band in range(4):
        blocks += [(d * 2**band * torch.pi).sin(), (d * 2**band * torch.pi).cos()]
    return torch.cat(blocks, -1)


def decode(state: dict[str, torch.Tensor], features: torch.Tensor, directions: torch.Tensor):
    """Slow decoder in float64: raw density and colour (spec diver 3.4)."""

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()

    layers = sorted({int(name.split(".")[1]) for name in state if name.startswith("point.")})
    h = features.double()
    for number in layers:
        h = layer(f"point.{number}", h)
        if number != layers[-1]:
            h = h.clamp(min=0)
    view = torch.cat([h[:, 1:], encode_direction(directions.double())], 1)
    return h[:, 0], torch.sigmoid(layer("view.2", layer("view.0", view).clamp(min=0)))


def corner_weights(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Closed form of the mean trilinear weights along a chord (spec diver 3.2); corner c as in diver_ns.integrator."""
    (x0, y0, z0), (x1, y1, z1) = a.double().T, b.double().T

    def pair(p0, p1, q0, q1):
        return (2 * p0 * q0 + 2 * p1 * q1 + p0 * q1 + p1 * q0) / 6

    x, y, z = (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2
    xy, yz, xz = pair(x0, x1, y0, y1), pair(y0, y1, z0, z1), pair(x0, x1, z0, z1)
    xyz = ((x0 + x1) * (y0 + y1) * (z0 + z1) + 2 * x0 * y0 * z0 + 2 * x1 * y1 * z1) / 12
    return torch.stack(
        [
            1 - x - y - z + xy + yz + xz - xyz, x - xy - xz + xyz, y - xy - yz + xyz, xy - xyz,
            z - xz - yz + xyz, xz - xyz, yz - xyz, xyz,
        ], 1,
    )  # fmt: skip


def integrated(model: VoxelModel, table: torch.Tensor, u_in: torch.Tensor, u_out: torch.Tensor, voxel: torch.Tensor):
    """Mean feature of segments given by grid coordinates, float64."""
    n = model.resolution + 1
    features = torch.zeros(len(voxel), CHANNELS, dtype=torch.float64)
    weights = corner_weights(u_in - voxel, u_out - voxel)
    for corner in range(8):
        x, y, z = (voxel[:, axis] + (corner >> axis & 1) for axis in range(3))
        ids = (z * n + y) * n + x
        rows = torch.searchsorted(model.ids, ids)
        assert torch.equal(model.ids[rows], ids)
        features += weights[:, corner, None] * table[rows].double()
    return features


def render_fixture(model: VoxelModel, rays: dict[str, np.ndarray], decoder=None, table=None) -> dict[str, torch.Tensor]:
    """Render a model along the segments that a fixture lists, restricted to the model's mask; loop over the segments.

    ``decoder(features, directions)`` and ``table`` replace the model's own.
    """
    voxel, ray = torch.from_numpy(rays["seg_voxel_xyz"]).long(), torch.from_numpy(rays["seg_ray"]).long()
    x, y, z = voxel.T
    keep = model.fine_mask()[z, y, x]
    voxel, ray = voxel[keep], ray[keep]
    u_in, u_out = (torch.from_numpy(rays[f"seg_{end}"])[keep] for end in ("in", "out"))
    features = integrated(model, model.features if table is None else table, u_in, u_out, voxel)
    directions = torch.from_numpy(rays["d"])[ray]
    sigma, rgb = decode(model.decoder_state, features, directions) if decoder is None else decoder(features, directions)
    # The exit distance where a mask buffer exists, the entry distance in the coarse model (the fixtures' README).
    t = torch.from_numpy(rays["seg_t_in" if model.mask is None else "seg_t_out"])[keep]
    count = len(rays["o"])
    through, colour = torch.ones(count, dtype=torch.float64), torch.zeros(count, 3, dtype=torch.float64)
    depth, hits = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
    for k in range(len(ray)):
        weight = through[ray[k]] * (1 - torch.exp(-sigma[k].clamp(min=0)))
        colour[ray[k]] += weight * rgb[k]
        depth[ray[k]] += weight * t[k]
        hits[ray[k]] += 1
        through[ray[k]] -= weight
    background = 1.0 if model.background == "white" else 0.0
    return {
        "rgb": colour + through[:, None] * background, "accumulation": 1 - through, "depth": depth, "hits": hits,
        "seg_sigma_raw": sigma, "seg_rgb": rgb,
    }  # fmt: skip
