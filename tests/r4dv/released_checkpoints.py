"""Checkpoints as the original writes them, with random weights, and its forward pass written out plainly.

Names, shapes and formulas follow spec r4dv 4 and 5.1; tiny-cuda-nn's lookup is done point by point.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

BASE, FEATURES, PRIME = 64, 8, 2654435761
Tensors = dict[str, torch.Tensor]


def plane_length(levels: int, log2_table: int) -> int:
    """Numbers of one plane."""
    return FEATURES * sum(min((BASE << level) ** 2, 1 << log2_table) for level in range(levels))


def _linears(generator: torch.Generator, prefix: str, *sizes: int) -> Tensors:
    found = {}
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        found[f"{prefix}linears.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        found[f"{prefix}linears.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return found


def _embedder(generator: torch.Generator, prefix: str, levels: int, log2_table: int, box: torch.Tensor) -> Tensors:
    found: Tensors = {f"{prefix}bounds": box}
    for axes, pair in (("xy", [0, 1]), ("xz", [0, 2]), ("yz", [1, 2])):
        found[f"{prefix}{axes}"] = torch.tensor(pair)
    for kind in ("spatial", "temporal"):
        for plane in range(3):
            name = f"{prefix}{kind}_embedding.{plane}."
            numbers = torch.rand(plane_length(levels, log2_table), generator=generator) - 0.5
            found[f"{name}tcnn_encoding.params"] = numbers
            found[f"{name}bounds"] = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    return found


def _dense_embedder(generator: torch.Generator, prefix: str, levels: int, frames: int, box: torch.Tensor) -> Tensors:
    found: Tensors = {f"{prefix}bounds": box}
    for level in range(levels):
        side = 16 << level
        for kind, last in (("spatial", side), ("temporal", frames)):
            found[f"{prefix}{kind}_embedding.{level}"] = torch.rand(3, FEATURES, side, last, generator=generator) - 0.5
    return found


def _feature_net(generator: torch.Generator, prefix: str) -> Tensors:
    found: Tensors = {}
    blocks = {"conv0": ((3, 8, 3), (8, 8, 3)), "conv1": ((8, 16, 5), (16, 16, 3)), "conv2": ((16, 32, 5), (32, 32, 3))}
    for stage, pair in blocks.items():
        for index, (inputs, outputs, side) in enumerate(pair):
            name = f"{prefix}{stage}.{index}."
            found[f"{name}conv.weight"] = 0.2 * torch.randn(outputs, inputs, side, side, generator=generator)
            found[f"{name}bn.weight"] = 1 + 0.1 * torch.randn(outputs, generator=generator)
            found[f"{name}bn.bias"] = 0.1 * torch.randn(outputs, generator=generator)
            found[f"{name}bn.running_mean"], found[f"{name}bn.running_var"] = torch.zeros(outputs), torch.ones(outputs)
            found[f"{name}bn.num_batches_tracked"] = torch.tensor(7)
    for layer, inputs, outputs, side in (
        ("toplayer", 32, 32, 1), ("lat1", 16, 32, 1), ("lat0", 8, 32, 1), ("smooth1", 32, 16, 3), ("smooth0", 32, 8, 3),
    ):  # fmt: skip
        found[f"{prefix}{layer}.weight"] = 0.1 * torch.randn(outputs, inputs, side, side, generator=generator)
        found[f"{prefix}{layer}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return found


def make_state(
    clouds: list[torch.Tensor], box: torch.Tensor, views: int, *, levels: int = 2, log2_table: int = 13,
    aggregate: str = "cat", motion: bool = False, dense: bool = False, legacy: bool = False, prefix: str = "sampler.",
    cameras: torch.Tensor | None = None, seed: int = 0, embedder: tuple[Tensors, int] | None = None,
) -> Tensors:  # fmt: skip
    """What ``model.state_dict()`` holds in the original.

    Args:
        clouds: points of each frame.
        box: bounds [2, 3] of the planes.
        dense: planes of the ``torch`` backend instead of tiny-cuda-nn's.
        legacy: names of older files.
        cameras: ``pose_resd`` [1, V, 6]; zeros by default.
        embedder: state of ``xyz_embedder`` and length of its features, instead of random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    width = levels * FEATURES * (6 if aggregate == "cat" else 1) if embedder is None else embedder[1]
    mlp = "mlp." if not legacy else ""
    found: Tensors = {"camera.pose_resd": torch.zeros(1, views, 6) if cameras is None else cameras}
    found |= {f"{prefix}pcds.{index}": cloud for index, cloud in enumerate(clouds)}

    def planes(name: str, count: int) -> Tensors:
        if dense:
            return _dense_embedder(generator, f"{prefix}{name}.", count, len(clouds), box)
        return _embedder(generator, f"{prefix}{name}.", count, log2_table, box)

    if embedder is None:
        found |= planes("xyz_embedder", levels)
    else:
        found |= {f"{prefix}xyz_embedder.{name}": value for name, value in embedder[0].items()}
    if motion:
        found |= planes("pcd_embedder", 2)
        found |= _linears(generator, f"{prefix}resd_regressor.mlp.{mlp}", 16, 64, 64, 3)
    found |= _linears(generator, f"{prefix}geo_regressor.mlp.", width, 64, 64, 2)
    found |= _feature_net(generator, f"{prefix}ibr_embedder.feat_reg.")
    found |= _linears(generator, f"{prefix}ibr_regressor.rgb_mlp.{mlp}", width + 11, 64, 1)
    found |= _linears(generator, f"{prefix}ibr_regressor.sh_mlp.{mlp}", width, 64, 48)
    return found


def save_npz(path: Path, state: Tensors, half: bool = True) -> Path:
    """As the original's charger: every tensor by its name, and ``epoch``."""
    arrays: dict[str, Any] = {
        name: value.half().numpy() if half and value.is_floating_point() else value.numpy()
        for name, value in state.items()
    }
    with open(path, "wb") as handle:
        np.savez(handle, epoch=np.asarray(1599), **arrays)
    return path


def save_pt(path: Path, state: Tensors) -> Path:
    """As the original's trainer."""
    torch.save({"model": state, "epoch": 1599, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


# ---------------------------------------------------------------------- the original's forward pass


def tcnn_lookup(parameters: np.ndarray, points: np.ndarray, levels: int, log2_table: int) -> np.ndarray:
    """tiny-cuda-nn's HashGrid of two dimensions, linear interpolation, one point and corner at a time."""
    out = np.zeros((len(points), levels * FEATURES))
    start = 0
    for level in range(levels):
        side = BASE << level
        entries = min(side * side, 1 << log2_table)
        table = parameters[start * FEATURES : (start + entries) * FEATURES].reshape(entries, FEATURES)
        start += entries
        for index, point in enumerate(points):
            place = point * (side - 1) + 0.5
            corner = np.floor(place).astype(int)
            beyond = place - corner
            for across in (0, 1):
                for down in (0, 1):
                    x, y = int(corner[0]) + across, int(corner[1]) + down
                    row = (x ^ (y * PRIME & 0xFFFFFFFF)) if side * side > entries else x + y * side
                    weight = (beyond[0] if across else 1 - beyond[0]) * (beyond[1] if down else 1 - beyond[1])
                    out[index, level * FEATURES : (level + 1) * FEATURES] += weight * table[row % entries]
    return out


class Original:
    """The formulas of spec r4dv 4.1 to 4.5 on a state of `make_state`, float64 where it matters."""

    def __init__(self, state: Tensors, levels: int = 2, log2_table: int = 13, aggregate: str = "cat") -> None:
        self.state, self.levels, self.log2_table, self.aggregate = state, levels, log2_table, aggregate

    def features(self, name: str, xyz: torch.Tensor, time: float, levels: int, aggregate: str) -> torch.Tensor:
        low, high = self.state[f"sampler.{name}.bounds"].double()
        q = ((xyz.double() - low) / (high - low)).numpy()
        found = []
        for kind in ("spatial", "temporal"):
            for plane, axes in enumerate(((0, 1), (0, 2), (1, 2))):
                pair = q[:, axes] if kind == "spatial" else np.stack([np.full(len(q), time), q[:, plane]], axis=1)
                numbers = self.state[f"sampler.{name}.{kind}_embedding.{plane}.tcnn_encoding.params"].double().numpy()
                found.append(tcnn_lookup(numbers, pair, levels, self.log2_table))
        joined = np.concatenate(found, axis=1) if aggregate == "cat" else np.sum(found, axis=0)
        return torch.from_numpy(joined)

    def network(self, prefix: str, x: torch.Tensor, activation: Any) -> torch.Tensor:
        index = 0
        while f"{prefix}linears.{index}.weight" in self.state:
            x = activation(x) if index else x
            weight, bias = (self.state[f"{prefix}linears.{index}.{kind}"].double() for kind in ("weight", "bias"))
            x = x @ weight.T + bias
            index += 1
        return x

    def points(self, frame: int, time: float) -> torch.Tensor:
        xyz = self.state[f"sampler.pcds.{frame}"].double()
        if "sampler.resd_regressor.mlp.mlp.linears.0.weight" in self.state:
            feature = self.features("pcd_embedder", xyz, time, 2, "sum")
            xyz = xyz + 0.1 * self.network("sampler.resd_regressor.mlp.mlp.", feature, torch.relu)
        return xyz

    def geometry(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        radius, alpha = self.network("sampler.geo_regressor.mlp.", feature, torch.relu).unbind(-1)
        return 0.001 + 0.014 * torch.sigmoid(radius - 5), torch.sigmoid(alpha + 5)

    def feature_map(self, image: torch.Tensor) -> torch.Tensor:
        """[3, H, W] with sides that 4 divides, in [0, 1]; batch norm by the photo's own statistics."""
        net = "sampler.ibr_embedder.feat_reg."
        x, maps = (2 * image - 1)[None], []
        for stage in range(3):
            for block in range(2):
                name = f"{net}conv{stage}.{block}."
                weight = self.state[f"{name}conv.weight"]
                x = F.conv2d(x, weight, stride=2 if stage and not block else 1, padding=weight.shape[-1] // 2)
                scale, shift = self.state[f"{name}bn.weight"], self.state[f"{name}bn.bias"]
                x = torch.relu(F.batch_norm(x, None, None, scale, shift, training=True))
            maps.append(x)

        def layer(name: str, x: torch.Tensor, padding: int = 0) -> torch.Tensor:
            return F.conv2d(x, self.state[f"{net}{name}.weight"], self.state[f"{net}{name}.bias"], padding=padding)

        def double(x: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

        out = layer("toplayer", maps[2])
        out = double(out) + layer("lat1", maps[1])
        out = double(out) + layer("lat0", maps[0])
        return layer("smooth0", out, padding=1)[0]

    def sample(self, image: torch.Tensor, K: torch.Tensor, w2c: torch.Tensor, xyz: torch.Tensor) -> torch.Tensor:
        """[N, 11]: features and colour where the points project, border beyond the edges."""
        height, width = image.shape[1:]
        seen = (xyz @ w2c[:3, :3].double().T + w2c[:3, 3].double()) @ K.double().T
        place = seen[:, :2] / (seen[:, 2:] + 1e-8)
        grid = (place / torch.tensor([width, height]) * 2 - 1).float()[None, None]
        joined = torch.cat([self.feature_map(image), image])[None]
        return F.grid_sample(joined, grid, padding_mode="border", align_corners=False)[0, :, 0].T.double()

    def logit(self, feature: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([feature, sampled], dim=1)
        return self.network("sampler.ibr_regressor.rgb_mlp.mlp.", joined, torch.relu)[:, 0]

    def harmonics(self, feature: torch.Tensor) -> torch.Tensor:
        return self.network("sampler.ibr_regressor.sh_mlp.mlp.", feature, F.softplus).reshape(-1, 3, 16)
