"""A tabulated model made ready for real-time rendering: one byte per voxel to march through, one table row per corner.

Spec diver 6. The byte says either "empty, and so is everything within r voxels", so that a ray may leap to the far side
of that box, or "occupied", with the voxel's number among the occupied ones of its block, which leads to its corners.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Int8, Int32, Int64
from torch import Tensor

from diver_ns.deploy import FusedDecoder
from diver_ns.field import Decoder
from diver_ns.grid import Grid
from diver_ns.integrator import corner_ids

BLOCK = 4
"""Occupied voxels are numbered block by block; a cell's byte holds its number within the block."""
LEAP = 31
"""Largest distance to occupied space that is told apart, voxels. Few leaps are longer; each level costs a pass."""
MOST_VOXELS = 1024
"""Per axis: flat voxel numbers must fit int32 and row numbers float32."""


@dataclass(frozen=True, eq=False)
class DeployModel:
    """A model ready to be rendered; see `make_deploy`. All tensors on one device.

    Attributes:
        grid: the cube.
        cells: one signed byte per voxel, flat over [z, y, x]. Empty: how many voxels around it in every direction are
            empty too (0 to 30). Occupied: ``-1 - k`` for the k-th occupied voxel of its 4x4x4 block.
        first: number of the first occupied voxel of each block, flat over [z, y, x] of the grid padded to whole blocks.
        corners: table rows of the eight corners of each occupied voxel, order of `diver_ns.integrator.chord_weights`.
        table: vertex features, already multiplied by the first layer where the decoder wants that; float32 or float16.
        decoder: in its fused form.
        background: RGB.
    """

    grid: Grid
    cells: Int8[Tensor, "n3"]
    first: Int32[Tensor, "m3"]
    corners: Int32[Tensor, "b 8"]
    table: Float[Tensor, "v c"]
    decoder: FusedDecoder
    background: Float32[Tensor, "3"]

    def to(self, device: torch.device | str) -> DeployModel:
        """The same model on another device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        decoder = FusedDecoder(self.decoder.width)
        decoder.load_state_dict(self.decoder.state_dict())
        moved["decoder"] = decoder
        return DeployModel(**{k: v if k == "grid" else v.to(device) for k, v in moved.items()})

    def with_table(self, features: Float[Tensor, "v c"], decoder: Decoder | FusedDecoder) -> DeployModel:
        """The same occupancy with other features and decoder: cheap, for a viewer that watches training."""
        fused = _fused(decoder)
        return replace(self, decoder=fused, table=fused.first(features.detach()).to(self.table.dtype).contiguous())

    @property
    def nbytes(self) -> int:
        """Memory of all tables."""
        return sum(part.nbytes for part in (self.cells, self.first, self.corners, self.table))


def make_deploy(
    grid: Grid,
    mask: Bool[Tensor, "m m m"],
    ids: Int64[Tensor, "v"],
    features: Float[Tensor, "v c"],
    decoder: Decoder | FusedDecoder,
    background: Literal["white", "black"] | Float[Tensor, "3"],
    *,
    dtype: torch.dtype = torch.float32,
) -> DeployModel:
    """Prepare a model for `render_rays`, on the device of ``features``.

    Args:
        grid: the cube and its N voxels per axis.
        mask: occupied voxels, indexed [z, y, x]; voxel v is looked up at ``floor(v M / N)``.
        ids: increasing vertex ids of the rows of ``features``.
        features: as trained (before `FusedDecoder.first`).
        decoder: trained or fused.
        background: colour behind everything.
        dtype: of the table; float16 halves its memory.

    Raises:
        ValueError: a grid of more than 1024 voxels per axis, a mask finer than the grid or not cubic, or a vertex of an
            occupied voxel that has no features.
    """
    n, device = grid.resolution, features.device
    if not 1 <= n <= MOST_VOXELS:
        raise ValueError(f"the real-time renderer takes 1 to {MOST_VOXELS} voxels per axis, not {n}")
    if mask.ndim != 3 or len(set(mask.shape)) != 1 or not 1 <= len(mask) <= n:
        raise ValueError(f"a mask of shape {list(mask.shape)} does not fit a grid of {n} voxels per axis")
    mask = mask.to(device)
    if len(mask) != n:
        cell = torch.arange(n, device=device) * len(mask) // n
        mask = mask[cell][:, cell][:, :, cell]
    z, y, x = mask.nonzero().unbind(1)
    blocks = -(-n // BLOCK)
    block = ((z // BLOCK) * blocks + y // BLOCK) * blocks + x // BLOCK
    block, order = block.sort(stable=True)
    voxel = torch.stack([x, y, z], dim=1)[order]
    count = torch.bincount(block, minlength=blocks**3)
    first = count.cumsum(0) - count
    cells = empty_radius(mask).view(-1)
    flat = (voxel[:, 2] * n + voxel[:, 1]) * n + voxel[:, 0]
    cells[flat] = (first[block] - 1 - torch.arange(len(block), device=device)).to(torch.int8)
    fused = _fused(decoder).to(device)
    if isinstance(background, str):
        background = torch.full((3,), {"white": 1.0, "black": 0.0}[background])
    return DeployModel(
        grid,
        cells,
        first.to(torch.int32),
        _rows(ids.to(device), corner_ids(voxel, n)),
        fused.first(features.detach()).to(dtype).contiguous(),
        fused,
        background.detach().to(device, torch.float32),
    )


def _fused(decoder: Decoder | FusedDecoder) -> FusedDecoder:
    return decoder if isinstance(decoder, FusedDecoder) else FusedDecoder.from_decoder(decoder)


def _rows(ids: Int64[Tensor, "v"], wanted: Int64[Tensor, "b 8"]) -> Int32[Tensor, "b 8"]:
    """Table rows of vertex ids."""
    rows = torch.searchsorted(ids, wanted)
    missing = int((ids[rows.clamp(max=len(ids) - 1)] != wanted).sum()) if len(ids) else wanted.numel()
    if missing:
        raise ValueError(f"{missing} corners of occupied voxels have no features")
    return rows.to(torch.int32)


def empty_radius(mask: Bool[Tensor, "n n n"]) -> Int8[Tensor, "n n n"]:
    """For each voxel how far the empty cube around it reaches: distance to the nearest occupied one minus one.

    Distances are the largest of the three coordinate differences, capped at `LEAP`; 0 in occupied voxels. What lies
    outside the grid counts as empty.
    """
    reached = mask.clone()
    radius = torch.zeros(mask.shape, dtype=torch.int8, device=mask.device)
    for _ in range(LEAP - 1):
        for axis in range(3):
            grown = reached.clone()
            grown.narrow(axis, 1, len(mask) - 1).logical_or_(reached.narrow(axis, 0, len(mask) - 1))
            grown.narrow(axis, 0, len(mask) - 1).logical_or_(reached.narrow(axis, 1, len(mask) - 1))
            reached = grown
        radius += ~reached
        if bool(reached.all()):
            break
    return radius
