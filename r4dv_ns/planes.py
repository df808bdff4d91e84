"""A feature for every point and moment from planes through space and time (spec r4dv 4.2; K-Planes as 4K4D uses it).

Per level three spatial planes xy, xz, yz and, unless the scene is static, three temporal ones tx, ty, tz. Coordinates
are the box's, in [-1, 1]; what lies outside is read at the border. Tables are channel-last, so that a corner is one
contiguous read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from r4dv_ns.row_blend import Places, interpolate_rows

Aggregate = Literal["sum", "cat", "mul"]
PLANES = ((0, 1), (0, 2), (1, 2))
"""Axes of the spatial planes xy, xz, yz; the first runs along the rows of the table."""
_PRIME = 2654435761


class PlaneField(nn.Module):
    """Features of points in a box at a time (spec r4dv 4.2).

    Args:
        levels: resolutions ``base 2^l``, l = 0 .. levels - 1, texels per axis of a plane.
        features: channels per level.
        base: resolution of the first level, at least 2.
        frames: texels along time, one per frame (frame k of F lies at time k / (F - 1)); None: no temporal planes.
        aggregate: over the planes: "sum" (the release), "cat" (the paper) or "mul" (K-Planes). Levels are always
            concatenated; "cat" orders by plane (xy, xz, yz, tx, ty, tz), then level, then channel.
        init: planes start uniform in [-init, init]. With "mul" spatial ones start in [0.1, 0.5] and temporal ones at 1
            as in K-Planes: a product of six small numbers would not learn.
        hashed: planes with more than ``2^log2_table`` texels share that many rows through tiny-cuda-nn's hash, for a
            model of the released size. Coordinates stay those of this class.
        log2_table: see ``hashed``.

    Attributes:
        width: length of a feature.
        spatial: per level ``[3, R, R, C]`` (plane, second axis, first axis, channel), hashed ``[3, 2^log2_table, C]``.
        temporal: per level ``[3, T, R, C]`` (axis, frame, texel, channel) or hashed; empty for static scenes.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        levels: int = 4,
        features: int = 8,
        base: int = 64,
        frames: int | None = None,
        aggregate: Aggregate = "sum",
        init: float = 0.1,
        hashed: bool = False,
        log2_table: int = 16,
    ) -> None:
        super().__init__()
        if levels < 1 or features < 1 or base < 2 or (frames is not None and frames < 1):
            given = (levels, features, frames, base)
            raise ValueError(f"planes need levels, features, frames >= 1 and base >= 2, not {given}")
        if aggregate not in ("sum", "cat", "mul"):
            raise ValueError(f"unknown aggregate {aggregate!r}: use 'sum', 'cat' or 'mul'")
        self.features, self.frames, self.aggregate = features, frames, aggregate
        self.resolutions = tuple(base << level for level in range(levels))
        self.most_rows = 1 << log2_table if hashed else None
        low, high = (0.1, 0.5) if aggregate == "mul" else (-init, init)
        self.spatial, self.temporal = nn.ParameterList(), nn.ParameterList()
        for resolution in self.resolutions:
            self.spatial.append(torch.empty(self._shape(resolution, resolution)).uniform_(low, high))
            if frames is not None:
                line = torch.empty(self._shape(frames, resolution)).uniform_(low, high)
                self.temporal.append(line.fill_(1.0) if aggregate == "mul" else line)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        if self.most_rows is not None and rows * columns > self.most_rows:
            return (3, self.most_rows, self.features)
        return (3, rows, columns, self.features)

    @property
    def width(self) -> int:
        """Length of the feature of a point."""
        planes = (3 if self.frames is None else 6) if self.aggregate == "cat" else 1
        return planes * len(self.resolutions) * self.features

    def forward(self, x: Float[Tensor, "n 3"], t: float | Tensor = 0.0) -> Float[Tensor, "n width"]:
        """Features of points at a time.

        Args:
            x: in [-1, 1] over the box; clamped to the centres of the outermost texels (no gradient beyond them).
            t: in [0, 1], clamped: one number for all points (cheap: two frames of the temporal planes are touched), or
                one per point. Ignored by static fields.

        Differentiable in ``x`` and the planes, not in ``t``.
        """
        n, places, moment = x.shape[0], x.t().contiguous(), self._moment(t, x)
        blocks: list[list[Tensor]] = []
        for level, resolution in enumerate(self.resolutions):
            found = [self._spatial(level, resolution, places)]
            if moment is not None:
                found.append(self._temporal(level, resolution, places, moment))
            blocks.append(found)
        if self.aggregate == "sum":
            return torch.cat([found[0] if len(found) == 1 else found[0] + found[1] for found in blocks], dim=1)
        if self.aggregate == "mul":
            return torch.cat([_product(torch.cat(found, dim=1)) for found in blocks], dim=1)
        return torch.stack([torch.cat(found, dim=1) for found in blocks], dim=2).reshape(n, self.width)

    def _moment(self, t: float | Tensor, x: Tensor) -> tuple[int, float] | tuple[Tensor, Tensor] | None:
        """Frame before the time and how far beyond it: two numbers, or two tensors [N]."""
        if self.frames is None:
            return None
        if isinstance(t, Tensor) and t.numel() != 1:
            return _split(t.detach().reshape(-1).to(x).clamp(0.0, 1.0) * (self.frames - 1), self.frames)
        place = min(max(float(t), 0.0), 1.0) * (self.frames - 1)
        before = min(int(place), max(self.frames - 2, 0))
        return before, place - before

    def _read(self, table: Tensor, rows: list[Tensor], fractions: Tensor, places: Places) -> Tensor:
        """[N, C] summed over the planes for "sum", else [N, planes, C]."""
        table = table.reshape(-1, self.features)
        return interpolate_rows(table, torch.stack(rows), fractions, places, self.aggregate == "sum")

    def _texel(self, x: Tensor, resolution: int) -> Tensor:
        """Place on a spatial plane's axis, in texels: centres at (i + 1/2) / R of the box (``align_corners=False``)."""
        return ((x + 1.0) * resolution - 1.0) * 0.5  # rounds as torch's grid_sample does

    def _texel_in_time(self, x: Tensor, resolution: int) -> Tensor:
        """Place on a temporal plane's spatial axis: first and last texel on the faces of the box, as the original reads
        these planes with ``align_corners=True``, which holds for both axes."""
        return (x + 1.0) * 0.5 * (resolution - 1)

    def _spatial(self, level: int, resolution: int, x: Float[Tensor, "3 n"]) -> Tensor:
        low, fraction = _split(self._texel(x, resolution).clamp(0.0, resolution - 1.0), resolution)
        rows = [
            row
            for plane, (first, second) in enumerate(PLANES)
            for row in self._corners(plane, low[first], low[second], resolution, resolution)
        ]
        return self._read(self.spatial[level], rows, fraction, PLANES)

    def _temporal(self, level: int, resolution: int, x: Float[Tensor, "3 n"], moment) -> Tensor:
        """The first and last frame lie at 0 and 1."""
        low, fraction = _split(self._texel_in_time(x, resolution).clamp(0.0, resolution - 1.0), resolution)
        table, (before, beyond) = self.temporal[level], moment
        if isinstance(before, Tensor):
            assert self.frames is not None
            rows = [row for axis in range(3) for row in self._corners(axis, low[axis], before, resolution, self.frames)]
            return self._read(table, rows, torch.cat([fraction, beyond[None]]), ((0, 3), (1, 3), (2, 3)))
        rows = [low[axis] + (axis * resolution + end) for axis in range(3) for end in (0, 1)]
        return self._read(self._line(table, resolution, before, beyond), rows, fraction, ((0,), (1,), (2,)))

    def _line(self, table: Tensor, resolution: int, before: int, beyond: float) -> Float[Tensor, "3 r c"]:
        """The three temporal planes at one moment."""
        assert self.frames is not None
        steps = min(2, self.frames)
        if table.ndim == 4:
            pair = table.narrow(1, before, steps)
        else:
            columns = torch.arange(resolution, device=table.device)
            hashed = [_hash(columns, torch.full_like(columns, before + k), table.shape[1]) for k in range(steps)]
            pair = table[:, torch.stack(hashed)]
        return torch.lerp(pair[:, 0], pair[:, 1], beyond) if steps == 2 else pair[:, 0]

    def _corners(self, plane: int, column: Tensor, row: Tensor, columns: int, rows: int) -> list[Int[Tensor, "n"]]:
        """Table rows of the four corners in one of the three planes; the column runs faster."""
        down = 1 if rows > 1 else 0
        if self.most_rows is None or rows * columns <= self.most_rows:
            corner = row * columns + column + plane * rows * columns
            return [corner, corner + 1, corner + down * columns, corner + (down * columns + 1)]
        column, row = column.long(), row.long()
        ends = [(column, row), (column + 1, row), (column, row + down), (column + 1, row + down)]
        return [_hash(a, b, self.most_rows) + plane * self.most_rows for a, b in ends]


def _split(place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Texel before a place and the share of the way to the next; the index is valid even for a place that is NaN."""
    low = place.detach().to(torch.int32).clamp_(0, max(count - 2, 0))
    return low, place - low


def _product(found: Float[Tensor, "n p c"]) -> Float[Tensor, "n c"]:
    out = found[:, 0]
    for plane in range(1, found.shape[1]):
        out = out * found[:, plane]
    return out


def _hash(column: Tensor, row: Tensor, rows: int) -> Tensor:
    """tiny-cuda-nn's spatial hash of two coordinates (32-bit wrap is harmless: ``rows`` is a power of two)."""
    return (column ^ (row * _PRIME)) & (rows - 1)


def total_variation(field: PlaneField) -> Float[Tensor, ""]:
    """Mean squared difference of neighbouring texels of the spatial planes, mean over levels (K-Planes eq. 8).

    Levels stored through a hash have no neighbours and are left out; zero when that is all of them. Weight 2e-4 where
    wanted (spec r4dv 4.2).
    """
    planes = [table for table in field.spatial if table.ndim == 4]
    parts = [table.diff(dim=1).square().mean() + table.diff(dim=2).square().mean() for table in planes]
    return torch.stack(parts).mean() if parts else field.spatial[0].new_zeros(())


def temporal_smoothness(field: PlaneField) -> Float[Tensor, ""]:
    """Mean squared second difference along time of the temporal planes, mean over levels (K-Planes eq. 9).

    Zero for static scenes, for fewer than three frames, and for levels stored through a hash. Weight 1e-3 where wanted.
    """
    planes = [table for table in field.temporal if table.ndim == 4 and table.shape[1] > 2]
    parts = [table.diff(n=2, dim=1).square().mean() for table in planes]
    return torch.stack(parts).mean() if parts else field.spatial[0].new_zeros(())


def import_planes(state: Mapping[str, Tensor], aggregate: Aggregate = "sum") -> PlaneField:
    """A field with the planes of the original's dense (``torch``) embedder.

    Args:
        state: ``spatial_embedding.l`` [3, C, R, R] and, for moving scenes, ``temporal_embedding.l`` [3, C, R, T]; other
            keys are ignored. A plane's first coordinate runs along its last axis.

    Raises:
        ValueError: no planes, or shapes that do not belong together.
    """
    spatial, temporal = (_levels(state, f"{kind}_embedding.") for kind in ("spatial", "temporal"))
    base, frames = (spatial[0].shape[-1] if spatial else 0), (temporal[0].shape[-1] if temporal else None)
    features = spatial[0].shape[1] if spatial else 0
    wanted = [(3, features, base << level, base << level) for level in range(len(spatial))]
    lines = [(3, features, base << level, frames) for level in range(len(temporal))]
    found = [tuple(plane.shape) for plane in spatial + temporal]
    if not spatial or len(temporal) not in (0, len(spatial)) or found != wanted + lines:
        raise ValueError(f"not the planes of one field: {found}")
    field = PlaneField(len(spatial), features, base, frames, aggregate)
    with torch.no_grad():
        for ours, theirs in zip(field.spatial, spatial, strict=True):
            ours.copy_(theirs.permute(0, 2, 3, 1))
        for ours, theirs in zip(field.temporal, temporal, strict=True):
            ours.copy_(theirs.permute(0, 3, 2, 1))
    return field


def _levels(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    found = {int(key[len(prefix) :]): value for key, value in state.items() if key.startswith(prefix)}
    return [found[level] for level in sorted(found)]
