"""Alpha maps, masks, vertex lists and occupancy export: against loops over voxels, trimesh and the original's files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from diver_ns.compositing import blending_weights, composite
from diver_ns.grid import Grid
from diver_ns.occupancy import (
    active_vertices,
    downsample,
    kept_vertices,
    mask_box,
    occupancy_mesh,
    occupancy_points,
    pack_mask,
    scatter_max,
    unpack_mask,
    upsample,
)


def random_mask(cells: int, share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(cells, cells, cells, generator=torch.Generator().manual_seed(seed)) < share


def crossings(rays: int = 60, resolution: int = 6, seed: int = 0):
    """Random segments with the voxels they lie in."""
    g = torch.Generator().manual_seed(seed)
    hits = torch.randint(0, 10, (rays,), generator=g)
    ray = torch.repeat_interleave(torch.arange(rays), hits)
    voxel = torch.randint(0, resolution, (len(ray), 3), generator=g)
    sigma = torch.randn(len(ray), generator=g) * 2
    return sigma, torch.rand(len(ray), 3, generator=g), torch.rand(len(ray), generator=g), ray, rays, voxel


def active_by_loop(mask: torch.Tensor, resolution: int) -> list[int]:
    """The slow twin: visit every voxel, look up its cell, note its eight corners."""
    cells, side, found = len(mask), resolution + 1, set()
    for x, y, z in itertools.product(range(resolution), repeat=3):
        if mask[z * cells // resolution, y * cells // resolution, x * cells // resolution]:
            for i, j, k in itertools.product((0, 1), repeat=3):
                found.add((z + k) * side**2 + (y + j) * side + x + i)
    return sorted(found)


@pytest.mark.parametrize("pad", [0, 1])
def test_the_alpha_map_holds_the_largest_weight_of_each_voxel(pad) -> None:
    sigma, _, _, ray, rays, voxel = crossings()
    weights = blending_weights(sigma.requires_grad_(), ray, rays)
    alpha = torch.zeros(6, 6, 6)
    half = len(ray) // 2
    scatter_max(weights[:half], voxel[:half], alpha, pad)
    scatter_max(weights[half:], voxel[half:], alpha, pad)
    expected = torch.zeros(6, 6, 6)
    for weight, (x, y, z) in zip(weights.tolist(), voxel.tolist(), strict=True):
        if pad <= min(x, y, z) and max(x, y, z) <= 5 - pad:
            expected[z, y, x] = max(float(expected[z, y, x]), weight)
    assert torch.equal(alpha, expected)
    assert not alpha.requires_grad
    assert alpha.max() > 0.3


def test_an_alpha_map_that_is_a_view_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        scatter_max(torch.zeros(1), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(4, 4, 4).transpose(0, 2))


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.2])
def test_pruning_by_the_alpha_map_keeps_training_rays_within_the_bound(threshold) -> None:
    """Spec diver 9 (5): equal at threshold 0; else off by at most the removed weights."""
    sigma, rgb, t, ray, rays, voxel = crossings(rays=200, resolution=12, seed=1)
    sigma = torch.where(
        torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(2))[voxel.unbind(1)] < 0.7, -1.0, sigma
    )
    before = composite(sigma, rgb, t, ray, rays, torch.ones(3))
    alpha = torch.zeros(12, 12, 12)
    scatter_max(before.weights, voxel, alpha)
    x, y, z = voxel.unbind(1)
    kept = (alpha > threshold)[z, y, x]
    after = composite(sigma[kept], rgb[kept], t[kept], ray[kept], rays, torch.ones(3))
    lost = torch.zeros(rays).index_add(0, ray, before.weights * ~kept)
    assert bool(((after.rgb - before.rgb).abs().amax(dim=1) <= lost + 1e-6).all())
    if threshold == 0.0:
        torch.testing.assert_close(after.rgb, before.rgb, atol=1e-6, rtol=0)
        assert int(kept.sum()) < 0.6 * len(kept)
    assert bool((before.weights[~kept] <= threshold).all())


@pytest.mark.parametrize(("cells", "resolution"), [(3, 3), (3, 6), (2, 8), (3, 7), (5, 8), (1, 4)])
def test_active_vertices_are_the_corners_of_voxels_in_occupied_cells(cells, resolution) -> None:
    for seed in range(3):
        mask = random_mask(cells, 0.3, seed)
        ids = active_vertices(mask, resolution)
        assert ids.dtype == torch.int64
        assert ids.tolist() == active_by_loop(mask, resolution)
        if cells == resolution:
            assert torch.equal(kept_vertices(mask), ids)
    assert len(active_vertices(torch.zeros(cells, cells, cells, dtype=torch.bool), resolution)) == 0
    everything = active_vertices(torch.ones(cells, cells, cells, dtype=torch.bool), resolution)
    assert everything.tolist() == list(range((resolution + 1) ** 3))


@pytest.mark.parametrize(("fine", "coarse"), [(6, 6), (8, 2), (7, 3), (10, 4), (5, 1)])
def test_masks_change_resolution_like_a_loop_over_voxels(fine, coarse) -> None:
    mask, cells = random_mask(fine, 0.15, 4), random_mask(coarse, 0.5, 5)
    pooled, spread = torch.zeros_like(cells), torch.zeros_like(mask)
    for z, y, x in itertools.product(range(fine), repeat=3):
        cell = z * coarse // fine, y * coarse // fine, x * coarse // fine
        pooled[cell] |= mask[z, y, x]
        spread[z, y, x] = cells[cell]
    assert torch.equal(downsample(mask, coarse), pooled)
    assert torch.equal(upsample(cells, fine), spread)
    assert torch.equal(downsample(upsample(cells, fine), coarse), cells)


@pytest.mark.parametrize("function", [upsample, active_vertices])
def test_a_mask_finer_than_the_grid_is_refused(function) -> None:
    with pytest.raises(ValueError, match="8 cells per axis cannot describe a grid of 4"):
        function(random_mask(8, 0.5), 4)
    with pytest.raises(ValueError, match="8 cells"):
        downsample(random_mask(4, 0.5), 8)


@given(st.integers(0, 9), st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_packing_a_mask_loses_nothing(cells, seed, share) -> None:
    mask = random_mask(cells, share, seed)
    bits = pack_mask(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-(cells**3) // 8)
    assert torch.equal(unpack_mask(bits, cells), mask)
    assert bits.tolist() == np.packbits(mask.numpy().reshape(-1), bitorder="little").tolist()


def test_bits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"27 bytes do not hold a mask of 5\^3"):
        unpack_mask(pack_mask(random_mask(6, 0.5)), 5)


def test_the_box_encloses_the_mask_tightly() -> None:
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    assert mask_box(mask) is None
    mask[2, 3, 5] = mask[6, 4, 8] = True  # z, y, x
    box = mask_box(mask)
    assert box is not None
    assert box[0].tolist() == [5, 3, 2]
    assert box[1].tolist() == [9, 5, 7]


def test_points_are_the_centres_of_occupied_cells_in_the_world() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[0, 1, 3] = True  # z, y, x
    points = occupancy_points(mask, Grid(16, side=8.0, center=(1.0, 2.0, 3.0)))
    torch.testing.assert_close(points, torch.tensor([[1.0 - 4 + 7, 2.0 - 4 + 3, 3.0 - 4 + 1]]))


def closed_volume(mask: torch.Tensor, grid: Grid) -> trimesh.Trimesh:
    """The mesh, after the checks of closedness: each edge twice, in opposite directions; no flat triangle."""
    vertices, faces = occupancy_mesh(mask, grid)
    mesh = trimesh.Trimesh(vertices.double().numpy(), faces.numpy(), process=False)
    edges = {}
    for a, b in mesh.edges.tolist():
        edges[a, b] = edges.get((a, b), 0) + 1
    assert all(count == 1 and edges.get((b, a)) == 1 for (a, b), count in edges.items())
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.area_faces.min() > 0
    assert sorted(set(faces.reshape(-1).tolist())) == list(range(len(vertices)))
    return mesh


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 1.0])
def test_the_mesh_is_closed_points_outward_and_has_the_voxels_volume(share) -> None:
    """Random masks are full of cells that touch along an edge or at a corner only."""
    for seed in range(4):
        mask = random_mask(5, share, seed)
        grid = Grid(20, side=2.5, center=(0.5, -1.0, 2.0))
        mesh = closed_volume(mask, grid)
        assert mesh.volume == pytest.approx(int(mask.sum()) * 0.5**3, rel=1e-5)
        occupied = torch.nn.functional.pad(mask, (1, 1, 1, 1, 1, 1)).int()
        squares = sum(int(occupied.diff(dim=axis).abs().sum()) for axis in range(3))
        assert mesh.area == pytest.approx(squares * 0.25, rel=1e-5)


def test_a_single_voxel_is_a_box_at_its_place() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[3, 0, 1] = True  # z, y, x
    grid = Grid(4, side=4.0, center=(0.0, 0.0, 0.0))
    mesh = closed_volume(mask, grid)
    assert mesh.bounds.tolist() == [[-1.0, -2.0, 1.0], [0.0, -1.0, 2.0]]
    assert len(mesh.vertices) == 8
    assert len(mesh.faces) == 12
    outward = mesh.triangles_center - occupancy_points(mask, grid).numpy()
    assert bool(((mesh.face_normals * outward).sum(axis=1) > 0).all())


def test_an_edge_between_two_rings_of_cells_is_closed_too() -> None:
    """Cells that touch along an edge and are joined above and below it: no split of corners would do."""
    mask = torch.zeros(3, 2, 2, dtype=torch.bool)
    mask[1, 0, 0] = mask[1, 1, 1] = True
    mask[0] = mask[2] = True
    cube = torch.zeros(4, 4, 4, dtype=torch.bool)
    cube[:3, :2, :2] = mask
    mesh = closed_volume(cube, Grid(4, side=4.0))
    assert mesh.volume == pytest.approx(int(cube.sum()))


def test_an_empty_mask_gives_an_empty_mesh() -> None:
    vertices, faces = occupancy_mesh(torch.zeros(3, 3, 3, dtype=torch.bool), Grid(3))
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)


@pytest.mark.parametrize("name", ["fine64", "fine32"])
def test_the_originals_conversion_kept_these_vertices(shared_fixtures, name) -> None:
    """`serialize.pth` and `weight.pth` were written by the original from `alpha_map.pt`, threshold 0.01."""
    folder = shared_fixtures / "diver" / name
    alpha = torch.load(folder / "alpha_map.pt", weights_only=True)
    packed = torch.load(folder / "serialize.pth", weights_only=True)
    with torch.sparse.check_sparse_tensor_invariants():
        weight = torch.load(folder / "weight.pth", weights_only=True)
    mask = alpha > 1e-2
    n = len(mask)
    assert torch.equal(weight["voxel_mask"], mask)
    ids = kept_vertices(mask)
    assert torch.equal(ids, packed["i"].long())
    z, y, x = weight["voxels"].coalesce().indices()
    assert torch.equal(ids, (z * (n + 1) + y) * (n + 1) + x)
    corner = mask.nonzero()
    lowest = (corner[:, 0] * (n + 1) + corner[:, 1]) * (n + 1) + corner[:, 2]
    assert torch.equal(ids[packed["m"]], lowest)
