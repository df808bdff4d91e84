"""Planes on the lattice of tiny-cuda-nn, which released models of 4K4D were trained with (spec r4dv 4.2, 5.1).

With R vertices per axis a coordinate q in [0, 1] lies at ``q (R - 1) + 1/2``, between the vertices 0 .. R. Texels of
`PlaneField` lie elsewhere. Here every vertex has a row of its own, also those that tiny-cuda-nn makes share one (the
vertex R with others, and all of a level with more than 2^T vertices through a hash), and time has one row per frame:
the features are the same, and training can go on.

The rule is taken from tiny-cuda-nn's published formula; it was not compared with its binary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from r4dv_ns.planes import Aggregate, PlaneField

PRIME = 2654435761
_MOST_LOG2 = 24


class VertexPlanes(PlaneField):
    """`PlaneField` with R + 1 texels per spatial axis at ``(i - 1/2) / (R - 1)`` of the box, i = 0 .. R.

    Arguments as of `PlaneField`, without hashing. ``resolutions`` are numbers of texels, R + 1.
    """

    def __init__(
        self,
        levels: int = 4,
        features: int = 8,
        base: int = 64,
        frames: int | None = None,
        aggregate: Aggregate = "sum",
        init: float = 1e-4,
    ) -> None:
        with torch.device("meta"):
            super().__init__(levels, features, base, frames, aggregate, init)
        low, high = (0.1, 0.5) if aggregate == "mul" else (-init, init)
        self.resolutions = tuple(resolution + 1 for resolution in self.resolutions)
        for level, texels in enumerate(self.resolutions):
            self.spatial[level] = torch.nn.Parameter(torch.empty(3, texels, texels, features).uniform_(low, high))
            if frames is not None:
                line = torch.empty(3, frames, texels, features).uniform_(low, high)
                self.temporal[level] = torch.nn.Parameter(line.fill_(1.0) if aggregate == "mul" else line)

    def _texel(self, x: Tensor, resolution: int) -> Tensor:
        return (x + 1.0) * (0.5 * (resolution - 2)) + 0.5

    def _texel_in_time(self, x: Tensor, resolution: int) -> Tensor:
        return self._texel(x, resolution)


def table_rows(
    column: Int64[Tensor, "n"], row: Int64[Tensor, "n"], resolution: int, entries: int
) -> Int64[Tensor, "n"]:
    """Row of tiny-cuda-nn's table that holds a vertex (column, row): counted row by row, modulo its length, where the
    level fits into it, else hashed."""
    if resolution * resolution <= entries:
        return (column + row * resolution) % entries
    return (column ^ (row * PRIME)) % entries


def level_entries(resolution: int, log2_table: int) -> int:
    """Rows of a level's table: R^2, rounded up to a multiple of 8, at most 2^T."""
    return min(-(-(resolution * resolution) // 8) * 8, 1 << log2_table)


def find_log2_table(parameters: int, levels: int, features: int, base: int) -> int | None:
    """The T with which one plane of all levels has so many parameters; None: there is none.

    Where every level fits into its table, several do; the smallest of them is given.
    """
    for log2_table in range(1, _MOST_LOG2 + 1):
        if features * sum(level_entries(base << level, log2_table) for level in range(levels)) == parameters:
            return log2_table
    return None


def vertex_tables(
    parameters: Float[Tensor, "p"], levels: int, features: int, base: int, log2_table: int
) -> list[Float[Tensor, "r r c"]]:
    """One plane's flat parameters as a value per vertex: for each level [R + 1, R + 1, C], the first coordinate last.

    Raises:
        ValueError: another number of parameters than such a plane has.
    """
    entries = [level_entries(base << level, log2_table) for level in range(levels)]
    if parameters.shape != (features * sum(entries),):
        raise ValueError(f"{list(parameters.shape)} parameters, not {features * sum(entries)}")
    tables = []
    for level, part in enumerate(parameters.split([features * count for count in entries])):
        side = torch.arange((base << level) + 1, device=parameters.device)
        row, column = torch.meshgrid(side, side, indexing="ij")
        place = table_rows(column.reshape(-1), row.reshape(-1), base << level, entries[level])
        tables.append(part.reshape(-1, features)[place].reshape(len(side), len(side), features))
    return tables


def at_times(table: Float[Tensor, "r v c"], times: Items[float], lattice: bool = True) -> Float[Tensor, "v f c"]:
    """Rows of a temporal plane at some moments.

    Args:
        table: time is the second axis: its vertices.
        times: moments in [0, 1].
        lattice: vertices lie as in tiny-cuda-nn (V = R + 1); False: the first and last at 0 and 1.
    """
    last = table.shape[1] - 1
    place = torch.tensor(times, dtype=torch.float64).clamp(0, 1)
    place = place * (last - 1) + 0.5 if lattice else place * last
    low = place.floor().long().clamp_(0, max(last - 1, 0))
    beyond = (place - low).to(table)[:, None]
    return torch.lerp(table[:, low], table[:, (low + 1).clamp_max(last)], beyond)
