"""A voxel model as files carry it: a table over vertices, a mask, a decoder, and the cube they fill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Optional

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diver_ns.deploy import PACKED_LENGTHS, FusedDecoder
from diver_ns.field import CHANNELS
from diver_ns.occupancy import active_vertices, upsample

LARGEST_RESOLUTION = 1024
"""Voxels per axis that a file may claim."""


@dataclass(eq=False)
class VoxelModel:
    """What every file of this method is read into and written from; tensors on the CPU.

    Attributes:
        resolution: N, voxels per axis.
        side: of the cube, world units.
        center: of the cube, world.
        background: colour behind the object.
        ids: ascending vertex ids ``z (N+1)^2 + y (N+1) + x`` that the model needs.
        features: ``[V, 32]``, row by row of ``ids``; no rows when only the vertex network exists (`implicit_state`).
        mask: occupied voxels ``[M, M, M]``, indexed z, y, x, M <= N; voxel v is looked up at ``floor(v M / N)``. None:
            every voxel is occupied.
        decoder_state: state dict of `diver_ns.field.Decoder`. A decoder that a file holds in fused form is stored as
            the equal one with an identity first layer (`FusedDecoder.to_state`).
        width: of the decoder, 32 or 64.
        implicit_state: state dict of `diver_ns.field.VertexNetwork`, or None when there is a table.
        parity: render with the original's rule for the voxel of a segment (spec diver 11).

    Raises:
        ValueError: sizes that contradict one another.
    """

    resolution: int
    side: float
    center: tuple[float, float, float]
    background: Literal["white", "black"]
    ids: Int64[Tensor, "V"]
    features: Float[Tensor, "V 32"]
    mask: Optional[Bool[Tensor, "M M M"]]
    decoder_state: dict[str, Tensor]
    width: int
    implicit_state: Optional[dict[str, Tensor]] = None
    parity: bool = False

    def __post_init__(self) -> None:
        if self.width not in PACKED_LENGTHS:
            raise ValueError(f"a decoder is 32 or 64 wide, not {self.width}")
        rows = 0 if self.implicit_state is not None else len(self.ids)
        if tuple(self.features.shape) not in {(rows, CHANNELS), (len(self.ids), CHANNELS)}:
            raise ValueError(f"{len(self.ids)} vertices do not fit features {list(self.features.shape)}")
        if len(self.ids) and not (
            int(self.ids[0]) >= 0
            and int(self.ids[-1]) < (self.resolution + 1) ** 3
            and bool((self.ids[1:] > self.ids[:-1]).all())
        ):
            raise ValueError(f"vertex ids must ascend and lie in a grid of {self.resolution} voxels")
        if self.mask is not None and (
            self.mask.ndim != 3 or len(set(self.mask.shape)) > 1 or len(self.mask) > self.resolution
        ):
            raise ValueError(f"a mask of shape {list(self.mask.shape)} does not fit {self.resolution} voxels")

    def fine_mask(self) -> Bool[Tensor, "N N N"]:
        """The mask at the grid's own resolution."""
        if self.mask is None:
            return torch.ones((self.resolution,) * 3, dtype=torch.bool)
        return self.mask if len(self.mask) == self.resolution else upsample(self.mask, self.resolution)

    def fused(self) -> FusedDecoder:
        """The decoder for rendering."""
        return FusedDecoder.from_state(self.decoder_state)

    def compact(self) -> VoxelModel:
        """The same model with the mask at the grid's resolution and only the vertices that an occupied voxel touches.

        Raises:
            ValueError: the model has no table, or a vertex of an occupied voxel is missing.
        """
        if self.implicit_state is not None and not len(self.features):
            raise ValueError("there is no table yet, only the network that predicts one: train it to its end")
        mask = self.fine_mask()
        needed = active_vertices(mask, self.resolution)
        if not len(needed):
            rows = needed
        else:
            rows = torch.searchsorted(self.ids, needed).clamp(max=max(len(self.ids) - 1, 0))
            if not len(self.ids) or not torch.equal(self.ids[rows], needed):
                raise ValueError("a vertex of an occupied voxel is missing from the table")
        return VoxelModel(
            self.resolution, self.side, self.center, self.background, needed, self.features[rows], mask,
            self.decoder_state, self.width, None, self.parity,
        )  # fmt: skip


def split_ids(ids: Int64[Tensor, "V"], resolution: int) -> tuple[Int64[Tensor, "V"], ...]:
    """The z, y and x index of vertices."""
    across = resolution + 1
    return ids // across**2, ids // across % across, ids % across


def lower_corners(ids: Int64[Tensor, "V"], mask: Bool[Tensor, "N N N"]) -> Bool[Tensor, "V"]:
    """Which vertices are the lower corner of an occupied voxel: the mask, told by vertices (spec diver 2, ``m``)."""
    z, y, x = split_ids(ids, len(mask))
    return torch.nn.functional.pad(mask, (0, 1, 0, 1, 0, 1))[z, y, x]


def mask_from_lower_corners(
    ids: Int64[Tensor, "V"], lower: Bool[Tensor, "V"], resolution: int
) -> Bool[Tensor, "N N N"]:
    """Inverse of `lower_corners`.

    Raises:
        ValueError: a marked vertex lies on an upper face of the grid, so that no voxel begins there.
    """
    z, y, x = split_ids(ids[lower], resolution)
    if len(z) and int(torch.stack([z, y, x]).max()) >= resolution:
        raise ValueError("a vertex on an upper face of the grid is marked as the lower corner of a voxel")
    mask = torch.zeros((resolution,) * 3, dtype=torch.bool)
    mask[z, y, x] = True
    return mask


def infer_resolution(ids: Int64[Tensor, "V"], lower: Bool[Tensor, "V"]) -> Optional[int]:
    """The smallest N for which the lower corners' voxels have all eight vertices among ``ids`` (spec diver 5.6, 11).

    Args:
        ids: ascending vertex ids ``z (N+1)^2 + y (N+1) + x``.
        lower: which of them are the lower corner of an occupied voxel.

    Returns:
        N, or None when no N fits or no voxel is occupied.
    """
    first = ids[lower]
    if not len(first):
        return None
    smallest = max(math.floor(int(ids[-1]) ** (1 / 3)) - 1, 1)
    # The last voxel's upper corner lies (n^2 + n + 1) after its lower one, n = N + 1, and must be listed.
    largest = min(math.isqrt(max(int(ids[-1]) - int(first[-1]), 0)), LARGEST_RESOLUTION)
    sample = first[:: max(len(first) // 64, 1)]
    sizes = range(smallest, largest + 1)
    return next((n for n in sizes if fits_resolution(ids, sample, n) and fits_resolution(ids, first, n)), None)


def _corners(first: Int64[Tensor, "K"], resolution: int) -> Int64[Tensor, "K8"]:
    n = resolution + 1
    offsets = torch.tensor([0, 1, n, n + 1])
    return (first[:, None] + torch.cat([offsets, offsets + n * n])).flatten()


def fits_resolution(ids: Int64[Tensor, "V"], first: Int64[Tensor, "K"], resolution: int) -> bool:
    """Whether all ids lie in a grid of that size and the voxels that begin at ``first`` have their eight corners in it.

    Args:
        ids: ascending vertex ids.
        first: those of lower corners of occupied voxels.
        resolution: voxels per axis to try.
    """
    n = resolution + 1
    if not 1 <= resolution <= LARGEST_RESOLUTION or (len(ids) and int(ids[-1]) >= n**3):
        return False
    if not len(first):
        return True
    if int(torch.stack([first // n**2, first // n % n, first % n]).max()) >= resolution:
        return False
    wanted = _corners(first, resolution)
    return bool((ids[torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)] == wanted).all())
