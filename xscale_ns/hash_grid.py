"""Multi-resolution hash grid in plain torch, with tiny-cuda-nn's parameter layout (spec xscale 3.3, 8.2).

Level ``l`` is a lattice of ``R_l = ceil(scale_l) + 1`` vertices per axis, ``scale_l = N0 * b**l - 1``. A coarse level
whose ``R**3`` vertices fit the table is stored densely, a finer one through a spatial hash with collisions. The eight
corners around ``q * scale + 0.5`` are blended trilinearly or by smoothstep; the levels' features are concatenated.

Why a hand-written autograd function: `embedding_bag` is torch's fastest gather-and-blend on CPU, but its backward
either fills a gradient of the whole table or returns a row per corner and point, unsummed. `_Lookup` chooses by table
and batch, and hands compact gradients to `xscale_ns.row_adam.RowAdam` where they pay. Index maths is redone in the
backward pass rather than stored: it costs a tenth of the step and would hold 1 KiB per point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from core_ns.errors import is_importable, need
from xscale_ns.table_rows import ROW_GRADIENTS, add_rows, put_rows, sum_equal_rows

Interpolation = Literal["linear", "smoothstep"]

HASH_PRIMES = (1, 2654435761, 805459861)
SPARSE_BELOW = 8
"""A sparse gradient pays when fewer than one row in this many is touched (benchmarks/hash_grid.py)."""
CACHE_BYTES = 2**23
"""On CPU a larger table takes its gradient in sorted order: adding at random places of DRAM is slower than sorting."""


@dataclass(frozen=True)
class Level:
    """One level of the grid; `offset` counts entries (not features) in tcnn's concatenated parameter vector."""

    scale: float
    resolution: int
    entries: int
    offset: int

    @property
    def dense(self) -> bool:
        """Whether every lattice vertex has its own entry."""
        return self.resolution**3 <= self.entries


def _growth(levels: int, base_resolution: int, finest_resolution: int | None, per_level_scale: float | None) -> float:
    """b from whichever of the two ways gives it."""
    if per_level_scale is not None and finest_resolution is None:
        growth = per_level_scale
    elif finest_resolution is not None and per_level_scale is None:
        growth = (finest_resolution / base_resolution) ** (1 / (levels - 1)) if levels > 1 else 1.0
    else:
        raise ValueError("give exactly one of finest_resolution and per_level_scale")
    if not 1 <= growth < math.inf:
        raise ValueError(f"per_level_scale is {growth}; resolutions must not shrink (at least 1) and be finite")
    return growth


def level_layout(
    levels: int,
    log2_table: int,
    base_resolution: int,
    finest_resolution: int | None = None,
    *,
    per_level_scale: float | None = None,
) -> tuple[Level, ...]:
    """Scales, resolutions and table sizes of all levels, without allocating anything (spec xscale 3.3).

    tcnn computes ``scale = exp2(l * log2(b)) * N0 - 1`` in float32; each step is rounded to float32 here too, because a
    last-bit difference moves ``ceil(scale)`` when the product is nearly an integer. For the same reason the last level
    of ``finest_resolution=2048`` may have 2049 vertices per axis, in tcnn as here.

    Args:
        levels: number of levels L.
        log2_table: log2 of the largest number of entries T per level.
        base_resolution: vertices per axis of level 0.
        finest_resolution: nominal vertices per axis of the last level, ``b = (finest / base)**(1 / (L - 1))``.
        per_level_scale: b itself; exactly one of the two is given.

    Raises:
        ValueError: a parameter out of range, or not exactly one of the two ways to give b.
    """
    given = (levels, log2_table, base_resolution)
    if levels < 1 or not 3 <= log2_table <= 30 or base_resolution < 2:
        raise ValueError(f"need levels >= 1, 3 <= log2_table <= 30, base_resolution >= 2; got {given}")
    log2_scale = np.float32(math.log2(np.float32(_growth(levels, base_resolution, finest_resolution, per_level_scale))))
    layout: list[Level] = []
    offset = 0
    for level in range(levels):
        growth = np.float32(2.0 ** float(np.float32(level) * log2_scale))
        scale = float(growth * np.float32(base_resolution) - np.float32(1))
        resolution = math.ceil(scale) + 1
        if resolution > 2**24:
            raise ValueError(f"level {level}: {resolution} vertices per axis exceed float32 positions; lower the scale")
        entries = min(2**log2_table, -(-(resolution**3) // 8) * 8)
        layout.append(Level(scale, resolution, entries, offset))
        offset += entries
    return tuple(layout)


def _corners(
    q: Float[Tensor, "3 N"], level: Level, smooth: bool
) -> tuple[Int[Tensor, "8 N"], Float[Tensor, "2 3 N"], Float[Tensor, "3 N"]]:
    """Table rows of the eight corners (int32, x fastest), per-axis blend weights, and lattice fractions.

    Indices beyond the last vertex wrap as in tcnn (``mod entries``): q = 1 lands half a cell outside the lattice.
    """
    position = q * level.scale + 0.5
    corner = position.floor()
    fraction = position - corner
    # Only low bits survive the mask, so int64 products equal uint32 wrap-around. The clamp keeps a NaN position from
    # addressing outside the table; its weights, and hence its features, stay NaN.
    factors = (1, level.resolution, level.resolution**2) if level.dense else HASH_PRIMES
    factor = torch.tensor(factors, device=q.device)[:, None]
    low = corner.long().clamp_(0, level.resolution) * factor
    keys = torch.stack([low, low + factor])
    if level.dense:
        x, y, z = keys.int().unbind(1)
        rows = x + (y + z[:, None])[:, :, None]
        rows = torch.where(rows >= level.entries, rows - level.entries, rows)
    else:
        x, y, z = (keys & (level.entries - 1)).int().unbind(1)
        rows = x ^ (y ^ z[:, None])[:, :, None]
    upper = fraction * fraction * (3 - 2 * fraction) if smooth else fraction
    return rows.view(8, -1), torch.stack([1 - upper, upper]), fraction


def _corner_weights(axis_weights: Float[Tensor, "2 3 N"]) -> Float[Tensor, "8 N"]:
    x, y, z = axis_weights.unbind(1)
    return (x * (y * z[:, None])[:, :, None]).view(8, -1)


def _sends_rows(table: Tensor, touches: int) -> bool:
    """Whether a sparse gradient is wanted, possible (DistributedDataParallel reduces only dense ones) and cheaper."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = not distributed or torch.distributed.get_world_size() == 1
    return alone and SPARSE_BELOW * touches < len(table) and getattr(table, ROW_GRADIENTS, False)


class _Lookup(torch.autograd.Function):
    """All levels at once; see the module's docstring. First derivatives only."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, layout: tuple[Level, ...], smooth: bool, *tables: Tensor) -> Tensor:
        ctx.layout, ctx.smooth = layout, smooth
        ctx.save_for_backward(positions, *tables)
        features = tables[0].shape[1]
        q = positions.t().contiguous()
        out = positions.new_empty(len(positions), len(layout) * features)
        for k, (level, table) in enumerate(zip(layout, tables, strict=True)):
            rows, axis_weights, _ = _corners(q, level, smooth)
            weights = _corner_weights(axis_weights)
            bags, bag_weights = rows.t().contiguous(), weights.t().contiguous()
            blended = embedding_bag(bags, table, per_sample_weights=bag_weights, mode="sum")
            out[:, k * features : (k + 1) * features] = blended
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        positions, *tables = ctx.saved_tensors
        features = tables[0].shape[1]
        q = positions.t().contiguous()
        grad_q = torch.zeros_like(q) if ctx.needs_input_grad[0] else None
        grad_tables: list[Tensor | None] = []
        for k, (level, table) in enumerate(zip(ctx.layout, tables, strict=True)):
            grad = grad_outputs[0][:, k * features : (k + 1) * features].contiguous()
            rows, axis_weights, fraction = _corners(q, level, ctx.smooth)
            if grad_q is not None:
                grad_q += _position_gradient(table, rows, axis_weights, fraction, grad, level.scale, ctx.smooth)
            if not ctx.needs_input_grad[3 + k]:
                grad_tables.append(None)
                continue
            values = (_corner_weights(axis_weights)[:, :, None] * grad).view(-1, features)
            grad_tables.append(_table_gradient(table, rows.view(-1), values))
        return (None if grad_q is None else grad_q.t(), None, None, *grad_tables)


def _table_gradient(table: Tensor, rows: Int[Tensor, "M"], values: Float[Tensor, "M F"]) -> Tensor:
    if _sends_rows(table, len(rows)):
        distinct, sums = sum_equal_rows(rows, values)
        # The rows are sorted and distinct by construction. As an argument, check_invariants=False still warns.
        with torch.sparse.check_sparse_tensor_invariants(False):
            return torch.sparse_coo_tensor(distinct[None], sums, table.shape, is_coalesced=True)
    dense = torch.zeros_like(table)
    if table.device.type == "cpu" and table.numel() * table.element_size() > CACHE_BYTES:
        put_rows(dense, *sum_equal_rows(rows, values))
    else:
        add_rows(dense, rows, values)
    return dense


def _position_gradient(
    table: Float[Tensor, "T F"],
    rows: Int[Tensor, "8 N"],
    axis_weights: Float[Tensor, "2 3 N"],
    fraction: Float[Tensor, "3 N"],
    grad: Float[Tensor, "N F"],
    scale: float,
    smooth: bool,
) -> Float[Tensor, "3 N"]:
    """d(loss)/d(q) of one level: blend the corners' ``feature . grad`` with one axis's weights replaced by -1, +1."""
    corner = (table[rows.view(-1)].view(8, *grad.shape) * grad).sum(-1).view(2, 2, 2, -1)  # z, y, x, N
    x, y, z = axis_weights.unbind(1)
    along_x = ((corner[:, :, 1] - corner[:, :, 0]) * (y * z[:, None])).sum((0, 1))
    along_y = ((corner[:, 1] - corner[:, 0]) * (x * z[:, None])).sum((0, 1))
    along_z = ((corner[1] - corner[0]) * (x * y[:, None])).sum((0, 1))
    slope = 6 * fraction * (1 - fraction) if smooth else torch.ones_like(fraction)
    return torch.stack([along_x, along_y, along_z]) * slope * scale


class HashGrid(nn.Module):
    """Trainable features of a point in the unit cube.

    Args:
        levels: number of levels L.
        features: features per level F.
        log2_table: log2 of the most entries a level may have.
        base_resolution, finest_resolution, per_level_scale: see `level_layout`.
        interpolation: "smoothstep" blends with ``f^2 (3 - 2 f)``: continuous first derivatives (upstream's choice).
        init_scale: tables start uniform in [-init_scale, init_scale].

    State dict: ``tables.0`` ... ``tables.{L-1}``, each [entries, F]; `TcnnHashGrid` uses the same keys.
    """

    def __init__(
        self,
        levels: int,
        features: int,
        log2_table: int,
        base_resolution: int,
        finest_resolution: int | None = None,
        *,
        per_level_scale: float | None = None,
        interpolation: Interpolation = "smoothstep",
        init_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        if features < 1 or interpolation not in ("linear", "smoothstep"):
            raise ValueError(f"features >= 1 and linear or smoothstep; got {features}, {interpolation!r}")
        self.layout = level_layout(
            levels, log2_table, base_resolution, finest_resolution, per_level_scale=per_level_scale
        )
        self.features = features
        self.log2_table = log2_table
        self.per_level_scale = _growth(levels, base_resolution, finest_resolution, per_level_scale)
        self.interpolation: Interpolation = interpolation
        self.init_scale = init_scale
        tables = (torch.empty(level.entries, features).uniform_(-init_scale, init_scale) for level in self.layout)
        self.tables = nn.ParameterList(nn.Parameter(table) for table in tables)

    @property
    def output_dim(self) -> int:
        """L * F."""
        return len(self.layout) * self.features

    def forward(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """Blended features, level after level, features fastest, in the tables' dtype.

        Positions outside the unit cube are clamped to it (their gradient is then 0): the mesh fits the cube, and only
        displaced samples or a foreign point leave it. Differentiable once, in tables and positions.
        """
        positions = positions.to(self.tables[0].dtype).clamp(0, 1)
        smooth = self.interpolation == "smoothstep"
        out = _Lookup.apply(positions, self.layout, smooth, *self.tables)
        assert isinstance(out, Tensor)
        return out

    @torch.no_grad()
    def to_tcnn_params(self) -> Float[Tensor, "P"]:
        """All tables as tcnn stores them: one vector, levels concatenated, feature index fastest."""
        return torch.cat([table.detach().reshape(-1) for table in self.tables])

    @torch.no_grad()
    def load_tcnn_params(self, params: Float[Tensor, "P"]) -> None:
        """Fill the tables from tcnn's parameter vector (any float dtype or device).

        Raises:
            ValueError: another number of parameters than this layout has.
        """
        for table, part in zip(self.tables, split_tcnn_params(params, self.layout, self.features), strict=True):
            table.copy_(part)


def split_tcnn_params(
    params: Float[Tensor, "P"], layout: tuple[Level, ...], features: int
) -> Iterator[Float[Tensor, "T F"]]:
    """Views of tcnn's parameter vector, one [entries, F] table per level.

    Raises:
        ValueError: the vector's length is not that of the layout.
    """
    expected = sum(level.entries for level in layout) * features
    if params.shape != (expected,):
        raise ValueError(f"this grid has {expected} parameters; got a tensor of shape {tuple(params.shape)}")
    for level in layout:
        yield params[level.offset * features : (level.offset + level.entries) * features].view(-1, features)


class TcnnHashGrid(nn.Module):
    """The same grid computed by tiny-cuda-nn (CUDA only): `HashGrid`'s arguments and state-dict keys.

    Weights move freely between the two. Optimiser state does not: tcnn has one flat parameter, `HashGrid` one per
    level.

    Raises:
        MissingExtra: tinycudann is absent or does not load.
        ValueError: tcnn's own layout differs from `level_layout` (a version with other rounding).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        tcnn = need("tinycudann", "the tinycudann hash grid", "see github.com/NVlabs/tiny-cuda-nn (needs nvcc)")
        with torch.device("meta"):  # checks the arguments, allocates nothing
            twin = HashGrid(*args, **kwargs)
        self.layout, self.features = twin.layout, twin.features
        config = {
            "otype": "HashGrid",
            "n_levels": len(twin.layout),
            "n_features_per_level": twin.features,
            "log2_hashmap_size": twin.log2_table,
            "base_resolution": twin.layout[0].resolution,
            "per_level_scale": twin.per_level_scale,
            "interpolation": {"linear": "Linear", "smoothstep": "Smoothstep"}[twin.interpolation],
        }
        encoding = tcnn.Encoding(3, config, dtype=torch.float32)
        # The parameter is ours, the encoding hidden from nn.Module: else the state dict would hold tcnn's name for it.
        self.params = encoding.params
        self._encoding: Callable[[Tensor], Tensor]
        object.__setattr__(self, "_encoding", encoding)
        list(split_tcnn_params(self.params.detach(), self.layout, self.features))
        nn.init.uniform_(self.params, -twin.init_scale, twin.init_scale)

    @property
    def output_dim(self) -> int:
        """L * F."""
        return len(self.layout) * self.features

    def forward(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        """As `HashGrid.forward`."""
        return self._encoding(positions.float().clamp(0, 1))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        params = self.params if keep_vars else self.params.detach()
        for k, table in enumerate(split_tcnn_params(params, self.layout, self.features)):
            destination[f"{prefix}tables.{k}"] = table

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *args: Any
    ) -> None:
        keys = [f"{prefix}tables.{k}" for k in range(len(self.layout))]
        absent = [key for key in keys if key not in state_dict]
        found = [state_dict.pop(key).reshape(-1) for key in keys if key in state_dict]
        state_dict[f"{prefix}params"] = self.params if absent else torch.cat(found)
        missing.extend(absent)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)


def make_hash_grid(
    *args: Any, backend: Literal["auto", "torch", "tinycudann"] = "auto", **kwargs: Any
) -> HashGrid | TcnnHashGrid:
    """A `HashGrid`, or a `TcnnHashGrid` when tinycudann and CUDA are both there (or when asked for by name).

    Args:
        args, kwargs: those of `HashGrid`.
        backend: "auto" prefers tinycudann.

    Raises:
        MissingExtra: "tinycudann" was asked for and does not load.
    """
    if backend not in ("auto", "torch", "tinycudann"):
        raise ValueError(f"backend is auto, torch or tinycudann; got {backend!r}")
    if backend == "tinycudann" or (backend == "auto" and torch.cuda.is_available() and is_importable("tinycudann")):
        return TcnnHashGrid(*args, **kwargs)
    return HashGrid(*args, **kwargs)
