"""The learned functions of DIVeR: decoder, vertex network, and the list of vertices that have features.

Vertex ids are ``z (N + 1)^2 + y (N + 1) + x``; everything here is free of rays and images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHANNELS = 32
DIRECTION_BANDS = 4
VERTEX_BANDS = 10


def encode(x: Float[Tensor, "s d"], bands: int) -> Float[Tensor, "s e"]:
    """The values, then sine and cosine of pi, 2 pi, 4 pi, ... times them: ``e = d (2 bands + 1)``.

    The original's order (spec diver 3.3): ``x, sin(pi x), cos(pi x), sin(2 pi x), cos(2 pi x), ...``, each d wide.
    """
    blocks = [x]
    for band in range(bands):
        phase = x * (2.0**band * math.pi)
        blocks += [torch.sin(phase), torch.cos(phase)]
    return torch.cat(blocks, dim=1)


class Decoder(nn.Module):
    """Feature of a segment and viewing direction to raw density and colour (spec diver 3.4).

    ``point`` turns the feature into a raw density and a view feature without activation; ``view`` turns that and the
    encoded direction into a colour. Layers are numbered as in the original, so ``mlp1.K`` is ``point.K`` and ``mlp2.K``
    is ``view.K``. PyTorch's default initialisation.

    Args:
        width: 64 for one hidden layer of 64 in ``point`` (DIVeR64), 32 for two of 32 (DIVeR32).
        channels: of the features.

    Raises:
        ValueError: another width.
    """

    def __init__(self, width: Literal[64, 32], channels: int = CHANNELS) -> None:
        super().__init__()
        if width not in (64, 32):
            raise ValueError(f"there is no decoder of width {width}; choose 64 or 32")
        self.width = width
        self.point = nn.Sequential(nn.Linear(channels, width), nn.ReLU(inplace=True))
        for _ in range(1 if width == 32 else 0):
            self.point.extend([nn.Linear(width, width), nn.ReLU(inplace=True)])
        self.point.append(nn.Linear(width, 1 + width))
        encoded = 3 * (2 * DIRECTION_BANDS + 1)
        self.view = nn.Sequential(nn.Linear(width + encoded, width), nn.ReLU(inplace=True), nn.Linear(width, 3))

    def forward(
        self, features: Float[Tensor, "s c"], directions: Float[Tensor, "r 3"], ray: Int64[Tensor, "s"] | None = None
    ) -> tuple[Float[Tensor, "s"], Float[Tensor, "s 3"]]:
        """Raw density and colour in [0, 1] of segments.

        The same as `density` and `colour`, with fewer operations: nothing bends between the last layer of ``point`` and
        the first of ``view``, so their product, a small matrix, is applied instead of both; the direction's share of
        the view layer is computed once per row of ``directions``.

        Args:
            features: of the segments.
            directions: unit world directions, one per segment or, with ``ray``, one per ray.
            ray: row of ``directions`` for each segment.

        Returns:
            Density per voxel crossing before the relu, and display colour.
        """
        hidden = self.point[:-1](features)
        last, first = self._linear(self.point[-1]), self._linear(self.view[0])
        raw_sigma = functional.linear(hidden, last.weight[:1], last.bias[:1])[:, 0]
        to_view = first.weight[:, : self.width]
        fused = functional.linear(hidden, to_view @ last.weight[1:], to_view @ last.bias[1:])
        return raw_sigma, self._shade(fused, directions, ray)

    def density(self, features: Float[Tensor, "s c"]) -> tuple[Float[Tensor, "s"], Float[Tensor, "s w"]]:
        """Raw density of segments (before the relu), and their view features for `colour`."""
        out = self.point(features)
        return out[:, 0], out[:, 1:]

    def colour(
        self, view: Float[Tensor, "s w"], directions: Float[Tensor, "r 3"], ray: Int64[Tensor, "s"] | None = None
    ) -> Float[Tensor, "s 3"]:
        """Colour in [0, 1] of view features; directions and ``ray`` as in `forward`."""
        to_view = self._linear(self.view[0]).weight[:, : self.width]
        return self._shade(functional.linear(view, to_view), directions, ray)

    def _shade(
        self, fused: Float[Tensor, "s w"], directions: Float[Tensor, "r 3"], ray: Int64[Tensor, "s"] | None
    ) -> Float[Tensor, "s 3"]:
        """Add the direction's share to the feature's share of the first view layer, and finish."""
        first = self._linear(self.view[0])
        share = functional.linear(encode(directions, DIRECTION_BANDS), first.weight[:, self.width :], first.bias)
        hidden = fused + (share if ray is None else share.index_select(0, ray))
        return torch.sigmoid(self.view[1:](hidden))

    @staticmethod
    def _linear(layer: nn.Module) -> nn.Linear:
        assert isinstance(layer, nn.Linear)
        return layer


class VertexNetwork(nn.Module):
    """Integer vertex to feature: the "implicit" stage's network (spec diver 3.3).

    Args:
        width: of the hidden layers.
        depth: number of hidden layers, ReLU.
        skip: index of the layer that gets the encoded position again; none if there is no such layer.
        channels: of the features.
        chunk: vertices evaluated at once when memory must be bounded.
        checkpoint_above: with more vertices than this, training stores only the features and computes each chunk again
            on the way back; about 16 KB per vertex are saved at the default size.

    Raises:
        ValueError: sizes below 1.
    """

    def __init__(
        self,
        width: int = 512,
        depth: int = 8,
        skip: int = 4,
        channels: int = CHANNELS,
        *,
        chunk: int = 1 << 16,
        checkpoint_above: int = 1 << 17,
    ) -> None:
        super().__init__()
        if min(width, depth, skip, channels, chunk) < 1:
            raise ValueError("width, depth, skip, channels and chunk must be at least 1")
        self.skip, self.chunk, self.checkpoint_above = skip, chunk, checkpoint_above
        encoded = 3 * (2 * VERTEX_BANDS + 1)
        inputs = [encoded] + [width + encoded if layer == skip else width for layer in range(1, depth)]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.head = nn.Linear(width, channels)

    def forward(self, ids: Int64[Tensor, "u"], resolution: int) -> Float[Tensor, "u c"]:
        """Features of vertices; pass each id once (see `compact`).

        Args:
            ids: vertex ids.
            resolution: voxels per axis N.
        """
        training = torch.is_grad_enabled() and self.head.weight.requires_grad
        if training and len(ids) <= self.checkpoint_above:
            return self._evaluate(ids, resolution)
        features = []
        for part in ids.split(self.chunk):
            if training:
                result = checkpoint(self._evaluate, part, resolution, use_reentrant=False, preserve_rng_state=False)
                assert isinstance(result, Tensor)
                features.append(result)
            else:
                features.append(self._evaluate(part, resolution))
        return torch.cat(features)

    def _evaluate(self, ids: Int64[Tensor, "u"], resolution: int) -> Float[Tensor, "u c"]:
        side = resolution + 1
        index = torch.stack([ids // side**2, ids // side % side, ids % side], dim=1)
        # The original divides by N + 1 where N would reach 1; released weights depend on it.
        place = 2.0 * index.to(self.head.weight.dtype) / side - 1.0
        encoded = encode(place, VERTEX_BANDS)
        hidden = encoded
        for number, layer in enumerate(self.layers):
            if number and number == self.skip:
                hidden = torch.cat([encoded, hidden], dim=1)
            hidden = torch.relu_(layer(hidden))
        return self.head(hidden)


class VertexIndex:
    """Vertex id to row of the feature table, for a table that holds some of the vertices only.

    Small grids use one int32 per vertex of the grid; larger ones a bit per vertex and an int32 count per byte of them
    (0.63 bytes per vertex, three to four times the look-up time). Make one with `from_ids`.
    """

    DENSE_LIMIT = 1 << 25
    """Largest number of grid vertices with an int32 each (134 MB; N = 321)."""

    def __init__(self, count: int, dense: Tensor | None, bits: Tensor | None, ranks: Tensor | None) -> None:
        self.count, self._dense, self._bits, self._ranks = count, dense, bits, ranks
        flags = torch.arange(256)[:, None] >> torch.arange(8) & 1
        # For each byte and bit: how many lower bits are set.
        self._below = None if bits is None else (flags.cumsum(1) - flags).view(-1).int().to(bits.device)

    @classmethod
    def from_ids(cls, ids: Int64[Tensor, "v"], resolution: int, dense_limit: int | None = None) -> VertexIndex:
        """The index of a table whose row k belongs to vertex ``ids[k]``, on the device of ``ids``.

        Args:
            ids: increasing.
            resolution: voxels per axis N.
            dense_limit: see `DENSE_LIMIT`, the default.

        Raises:
            ValueError: ids that are not increasing, or outside the grid.
        """
        vertices = (resolution + 1) ** 3
        if len(ids) and (int(ids[0]) < 0 or int(ids[-1]) >= vertices or not bool((ids.diff() > 0).all())):
            raise ValueError(f"vertex ids must increase and lie in [0, {vertices})")
        if vertices <= (cls.DENSE_LIMIT if dense_limit is None else dense_limit):
            dense = torch.full((vertices,), -1, dtype=torch.int32, device=ids.device)
            dense[ids] = torch.arange(len(ids), dtype=torch.int32, device=ids.device)
            return cls(len(ids), dense, None, None)
        sums = torch.zeros((vertices + 7) // 8, dtype=torch.int32, device=ids.device)
        sums.index_add_(0, ids >> 3, (1 << (ids & 7)).int())
        used = torch.zeros_like(sums).index_add_(0, ids >> 3, torch.ones_like(ids, dtype=torch.int32))
        ranks = (used.cumsum(0) - used).int()
        return cls(len(ids), None, sums.to(torch.uint8), ranks)

    def rows(self, ids: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
        """Rows of vertices of the grid (ids outside it are not checked), -1 where the table has none."""
        if self._dense is not None:
            return self._dense[ids].long()
        assert self._bits is not None
        assert self._ranks is not None
        assert self._below is not None
        byte, bit = ids >> 3, ids & 7
        word = self._bits[byte].long()
        row = self._ranks[byte] + self._below[(word << 3) + bit]
        return torch.where((word >> bit) & 1 == 1, row, -1).long()

    def to(self, device: torch.device | str) -> VertexIndex:
        """The same index on another device."""
        dense, bits, ranks = (None if part is None else part.to(device) for part in self._parts)
        return VertexIndex(self.count, dense, bits, ranks)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(part.nbytes for part in self._parts if part is not None)

    @property
    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self._dense, self._bits, self._ranks

    def __len__(self) -> int:
        return self.count


def compact(numbers: Int64[Tensor, "*n"], size: int) -> tuple[Int64[Tensor, "u"], Int64[Tensor, "*n"]]:
    """The different numbers in increasing order, and for each input its place among them.

    What ``torch.unique(return_inverse=True)`` gives, by marking instead of sorting: for the millions of corners of a
    batch of rays about seven times faster on the rows of a table. On vertex ids of a large grid the passes over
    ``size`` eat the gain, so look up the rows first.

    Args:
        numbers: vertex ids or table rows, in [0, size).
        size: bound; one byte and one int32 each are used for a while.
    """
    marks = torch.zeros(size, dtype=torch.bool, device=numbers.device)
    marks[numbers.reshape(-1)] = True
    used = marks.nonzero()[:, 0]
    place = torch.empty(size, dtype=torch.int32, device=numbers.device)
    place[used] = torch.arange(len(used), dtype=torch.int32, device=numbers.device)
    return used, place[numbers].long()
