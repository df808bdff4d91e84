"""Which voxels matter: alpha maps, bit masks, the vertices that stay, and their export (spec diver 2, 3.6).

Masks and maps over voxels are indexed [z, y, x]; coordinates are (x, y, z). A mask of M cells per axis may describe a
finer grid of N voxels: voxel v lies in cell ``floor(v M / N)`` (spec diver 3.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from diver_ns.grid import Grid


def scatter_max(
    weights: Float[Tensor, "s"], voxel: Int64[Tensor, "s 3"], out: Float[Tensor, "n n n"], pad: int = 0
) -> None:
    """Raise a map of the largest blending weight per voxel, in place (the alpha map of spec diver 2).

    Args:
        weights: blending weights of ray segments; no gradient is recorded.
        voxel: their voxels.
        out: the map, contiguous; start with zeros and call once per batch of rays.
        pad: segments in the outermost ``pad`` layers of voxels are left out.

    Raises:
        ValueError: ``out`` is not contiguous.
    """
    if not out.is_contiguous():
        raise ValueError("the alpha map must be contiguous to be raised in place")
    n = len(out)
    with torch.no_grad():
        if pad:
            inside = ((voxel >= pad) & (voxel < n - pad)).all(dim=1)
            weights, voxel = weights[inside], voxel[inside]
        flat = (voxel[:, 2] * n + voxel[:, 1]) * n + voxel[:, 0]
        out.view(-1).scatter_reduce_(0, flat, weights.detach().to(out.dtype), "amax", include_self=True)


def upsample(mask: Bool[Tensor, "m m m"], resolution: int) -> Bool[Tensor, "n n n"]:
    """The mask per voxel of a grid at least as fine: each voxel looks up its cell.

    Raises:
        ValueError: the grid is coarser than the mask.
    """
    cells = _cells(len(mask), resolution, mask.device)
    return mask[cells][:, cells][:, :, cells]


def downsample(mask: Bool[Tensor, "n n n"], cells: int) -> Bool[Tensor, "m m m"]:
    """The coarser mask whose cells are occupied if any of their voxels is.

    Raises:
        ValueError: ``cells`` is finer than the mask.
    """
    n = len(mask)
    cell = _cells(cells, n, mask.device)
    if n % cells == 0:
        k = n // cells
        return mask.reshape(cells, k, cells, k, cells, k).any(dim=(1, 3, 5))
    coarse = mask.new_zeros(cells, cells, cells)
    z, y, x = cell[mask.nonzero()].unbind(1)
    coarse[z, y, x] = True
    return coarse


def _cells(cells: int, resolution: int, device: torch.device) -> Int64[Tensor, "n"]:
    """Cell of each voxel along one axis, in whole numbers: a product with a rounded scale would miss some."""
    if not 1 <= cells <= resolution:
        raise ValueError(f"a mask of {cells} cells per axis cannot describe a grid of {resolution} voxels per axis")
    return torch.arange(resolution, device=device) * cells // resolution


def active_vertices(mask: Bool[Tensor, "m m m"], resolution: int) -> Int64[Tensor, "v"]:
    """Sorted ids ``z (N + 1)^2 + y (N + 1) + x`` of the corners of all voxels in occupied cells (spec diver 3.6).

    Args:
        mask: occupied cells.
        resolution: voxels per axis N, at least M.

    Raises:
        ValueError: the grid is coarser than the mask.
    """
    touched = upsample(mask, resolution)
    for axis in range(3):
        layer = torch.zeros_like(touched.narrow(axis, 0, 1))
        touched = torch.cat([touched, layer], dim=axis) | torch.cat([layer, touched], dim=axis)
    return touched.view(-1).nonzero()[:, 0]


def kept_vertices(mask: Bool[Tensor, "n n n"]) -> Int64[Tensor, "v"]:
    """Sorted ids of the corners of all occupied voxels, for a mask at the grid's resolution (spec diver 2, convert)."""
    return active_vertices(mask, len(mask))


def pack_mask(mask: Bool[Tensor, "..."]) -> UInt8[Tensor, "b"]:
    """Eight flags per byte, in the tensor's order, lowest bit first; the last byte is filled with zeros."""
    flags = mask.reshape(-1).to(torch.uint8)
    flags = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8)
    place = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=mask.device)
    return (flags * place).sum(dim=1, dtype=torch.uint8)


def unpack_mask(bits: UInt8[Tensor, "b"], cells: int) -> Bool[Tensor, "m m m"]:
    """The inverse of `pack_mask` for a cube of ``cells`` per axis.

    Raises:
        ValueError: the number of bytes does not fit.
    """
    if len(bits) != (cells**3 + 7) // 8:
        raise ValueError(f"{len(bits)} bytes do not hold a mask of {cells}^3 flags")
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flags = (bits[:, None] >> place) & 1
    return flags.view(-1)[: cells**3].bool().view(cells, cells, cells)


def mask_box(mask: Bool[Tensor, "m m m"]) -> tuple[Int64[Tensor, "3"], Int64[Tensor, "3"]] | None:
    """Smallest box around the occupied cells: lower and upper corner in cells, x, y, z; None for an empty mask.

    The upper corner is the outer face of the last cell, so ``upper - lower`` is the size.
    """
    lower, upper = [], []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        used = mask.any(dim=others).nonzero()[:, 0]
        if len(used) == 0:
            return None
        lower.append(used[0])
        upper.append(used[-1] + 1)
    return torch.stack(lower), torch.stack(upper)


def occupancy_points(mask: Bool[Tensor, "m m m"], grid: Grid) -> Float[Tensor, "p 3"]:
    """World positions of the centres of the occupied cells, in the mask's order.

    Args:
        mask: any resolution; only the cube of ``grid`` is used.
        grid: where the cube lies.
    """
    return grid.at(len(mask)).points_to_world(mask.nonzero().flip(1).float() + 0.5)


def occupancy_mesh(mask: Bool[Tensor, "m m m"], grid: Grid) -> tuple[Float[Tensor, "v 3"], Int64[Tensor, "f 3"]]:
    """The surface of the occupied cells as triangles, for export.

    Closed and wound so that normals point out of the occupied cells: every edge belongs to exactly two triangles, which
    run through it in opposite directions. Where two cells touch along an edge only, four of their squares would meet
    there; each cell then gets a middle point of its own on that edge, so the surfaces pass each other.

    Args:
        mask: any resolution; only the cube of ``grid`` is used.
        grid: where the cube lies.

    Returns:
        World positions, and indices into them.
    """
    cell, normal, corner, side = _open_squares(mask)
    solid = torch.nn.functional.pad(mask, (1, 1, 1, 1, 1, 1))
    beside, across = cell[:, None] + side, cell[:, None] + side + normal[:, None]
    pinched = ~_at(solid, beside) & _at(solid, across)
    bent = pinched.any(dim=1)
    middle = 2 * cell + 1 + normal  # twice the grid coordinates: whole numbers for corners and middles alike

    size = len(mask)
    corner_points = middle[:, None] + corner
    keys, corner_ids = torch.unique(_key(corner_points // 2, size + 1), return_inverse=True)
    points = [2 * torch.stack([keys % (size + 1), keys // (size + 1) % (size + 1), keys // (size + 1) ** 2], dim=1)]

    # An edge of a cell is named by the sum of the normals of its two squares, so both squares find the same point.
    edge_keys = _key(cell, size)[:, None] * 27 + _key(normal[:, None] + side + 1, 3)
    keys, found = torch.unique(edge_keys[pinched], return_inverse=True)
    edge_points = middle.new_zeros(len(keys), 3)
    edge_points[found] = (middle[:, None] + side)[pinched]
    edge_ids = torch.full_like(edge_keys, -1)
    edge_ids[pinched] = found + len(points[0])
    points += [edge_points, middle[bent]]

    flat = corner_ids[~bent]
    faces = [flat[:, [0, 1, 2]], flat[:, [0, 2, 3]]]
    centre = len(points[0]) + len(edge_points) + torch.arange(int(bent.sum()), device=mask.device)
    for k in range(4):
        first, last = corner_ids[bent, k], corner_ids[bent, (k + 1) % 4]
        split, half = pinched[bent, k], edge_ids[bent, k]
        faces.append(torch.stack([centre, first, torch.where(split, half, last)], dim=1))
        faces.append(torch.stack([centre, half, last], dim=1)[split])
    vertices = grid.at(size).points_to_world(torch.cat(points).float() / 2)
    return vertices, torch.cat(faces)


def _open_squares(
    mask: Bool[Tensor, "m m m"],
) -> tuple[Int64[Tensor, "f 3"], Int64[Tensor, "f 3"], Int64[Tensor, "f 4 3"], Int64[Tensor, "f 4 3"]]:
    """Squares between an occupied and an empty cell: the occupied cell and the normal; relative to the square's
    middle, in half cells, the corners (counter-clockwise from outside) and the directions of the sides between."""
    occupied = mask.nonzero().flip(1)
    solid = torch.nn.functional.pad(mask, (1, 1, 1, 1, 1, 1))
    axes = torch.eye(3, dtype=torch.int64, device=mask.device)
    found = []
    for axis in range(3):
        b, c = axes[(axis + 1) % 3], axes[(axis + 2) % 3]
        around = torch.stack([-b - c, b - c, b + c, c - b])
        for sign in (1, -1):
            normal = sign * axes[axis]
            corner = around if sign > 0 else around.flip(0)
            side = (corner + corner.roll(-1, dims=0)) // 2
            cell = occupied[~_at(solid, occupied + normal)]
            rows = len(cell)
            found.append((cell, normal.expand(rows, 3), corner.expand(rows, 4, 3), side.expand(rows, 4, 3)))
    cells, normals, corners, sides = zip(*found, strict=True)
    return torch.cat(cells), torch.cat(normals), torch.cat(corners), torch.cat(sides)


def _at(solid: Bool[Tensor, "p p p"], cell: Int64[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
    """Look-up in a mask with one empty layer around it."""
    x, y, z = (cell + 1).unbind(-1)
    return solid[z, y, x]


def _key(place: Int64[Tensor, "*n 3"], size: int) -> Int64[Tensor, "*n"]:
    """One number for a place (x, y, z) on a lattice of ``size`` per axis."""
    x, y, z = place.unbind(-1)
    return (z * size + y) * size + x
