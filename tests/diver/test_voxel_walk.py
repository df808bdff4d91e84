"""The walk against a loop over single crossings, sampled rays, lengths of chords and the original's segments."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diver_ns import voxel_walk
from diver_ns.formats import read_original
from diver_ns.grid import Grid
from diver_ns.integrator import chord_weights, corner_ids, integrate
from diver_ns.voxel_walk import SLIVER, Segments, walk, walk_sorted

WALKS = pytest.mark.parametrize("walker", [walk, walk_sorted])


def random_rays(count: int, resolution: int, seed: int = 0, dtype=torch.float32):
    """Origins around and inside the grid, unit directions towards points in it, in voxels."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    origins = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 3 - 1
    directions = torch.nn.functional.normalize(targets - origins, dim=1)
    return (origins * resolution).to(dtype), directions.to(dtype)


def special_rays(resolution: int, dtype=torch.float32):
    """Zero components of either sign, along planes, edges and diagonals, grazing, inside, behind, missing."""
    n, h = float(resolution), resolution / 2 + 0.3
    rays = []
    for axis, sign, zero in itertools.product(range(3), (1.0, -1.0), (0.0, -0.0)):
        two, one = [zero] * 3, [0.6 * sign] * 3
        two[axis], one[axis] = sign, zero
        one[(axis + 1) % 3] = 0.8
        for other in (h, 3.0, 0.0, n, -0.5, 3.0 - 2e-5):
            start = [other] * 3
            start[axis] = h - sign * 2 * n
            rays.append((start, two))
            rays.append(([h, h, other], two))
        rays.append(([h - 2 * n * c for c in one], one))
        rays.append(([h, h, h], one))
    for corner in itertools.product((0.0, n), repeat=3):
        towards = [h - c for c in corner]
        rays.append((list(corner), towards))
        rays.append((list(corner), [-c for c in towards]))
        rays.append(([c - 5 for c in corner], [1.0, 1.0, 1.0]))
    rays += [
        ([-n, 2.5, 2.5], [1.0, 1e-4, -1e-4]),
        ([2.5, n + 1, 2.5], [1e-7, -1.0, 1e-7]),
        ([0.0, 0.0, -1.0], [0, 0, 1]),
    ]
    rays += [([-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]), ([-2.0, 2.0, h], [1.0, -1.0, 0.0]), ([-3.0, h, h], [-1.0, 0.0, 0.0])]
    rays += [([h, h, 3 * n], [0.0, 0.1, 1.0]), ([h, h, h], [0.0, 0.0, 0.0]), ([-2.0, h, h], [1.0, 10.0, 0.0])]
    origins, directions = (torch.tensor(x, dtype=torch.float64) for x in zip(*rays, strict=True))
    return origins.to(dtype), torch.nn.functional.normalize(directions, dim=1).to(dtype)


def both_rays(resolution: int, dtype=torch.float32):
    parts = zip(random_rays(60, resolution, dtype=dtype), special_rays(resolution, dtype), strict=True)
    return tuple(torch.cat(pair) for pair in parts)


def loop_walk(origins, directions, n, t_near=0.0, t_far=math.inf, occupied=None, lower=None, upper=None, parity=False):
    """The slow obvious twin in Python floats: [(ray, voxel, t_in, t_out)]."""
    found = []
    lower, upper = lower or [0.0] * 3, upper or [float(n)] * 3
    for ray, (o, d) in enumerate(zip(origins.double().tolist(), directions.double().tolist(), strict=True)):
        start, end = max(0.0, t_near), t_far
        cuts = []
        for a in range(3):
            low, high = max(0.0, lower[a]), min(float(n), upper[a])
            if d[a] == 0:
                if not low <= o[a] <= high:
                    end = -1.0
                continue
            times = sorted([(low - o[a]) / d[a], (high - o[a]) / d[a]])
            start, end = max(start, times[0]), min(end, times[1])
            cuts += [(k - o[a]) / d[a] for k in range(n + 1)]
        if not start < end < math.inf:
            continue
        edges = [start, *sorted(t for t in cuts if start < t < end), end]
        length = math.sqrt(sum(c * c for c in d))
        for t_in, t_out in itertools.pairwise(edges):
            if (t_out - t_in) * length <= SLIVER:
                continue
            voxel = []
            for a in range(3):
                if parity:
                    v = min(int(o[a] + t * d[a] + 1e-4) for t in (t_in, t_out))
                else:
                    v = math.floor(o[a] + (t_in + t_out) / 2 * d[a])
                voxel.append(min(max(v, 0), n - 1))
            if occupied is not None:
                m = len(occupied)
                x, y, z = (v * m // n for v in voxel)
                if not occupied[z, y, x]:
                    continue
            found.append((ray, voxel, t_in, t_out))
    return found


def assert_equal_to_loop(segments: Segments, expected, tolerance: float):
    ray, voxel, t_in, t_out = (list(x) for x in zip(*expected, strict=True)) if expected else ([], [], [], [])
    assert segments.ray.tolist() == ray
    assert segments.voxel.tolist() == voxel
    for ours, theirs in ((segments.t_in, t_in), (segments.t_out, t_out)):
        torch.testing.assert_close(
            ours.double(), torch.tensor(theirs, dtype=torch.float64), rtol=tolerance, atol=tolerance
        )


def assert_same(first: Segments, second: Segments, tolerance: float = 1e-6):
    for name in ("ray", "voxel"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("u_in", "u_out", "t_in", "t_out"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=tolerance, atol=tolerance)
    assert first.rays == second.rays


def random_mask(size: int, share: float, seed: int = 0):
    return torch.rand(size, size, size, generator=torch.Generator().manual_seed(seed)) < share


def lengths(segments: Segments, directions):
    return (segments.t_out - segments.t_in).double() * directions.double().norm(dim=1)[segments.ray]


def chords(origins, directions, n):
    """Length in voxels of each ray's stretch inside the box, by clipping in float64."""
    start, end = torch.zeros(len(origins), dtype=torch.float64), torch.full((len(origins),), math.inf).double()
    for o, d in zip(origins.double().t(), directions.double().t(), strict=True):
        times = torch.stack([(0 - o) / d, (n - o) / d])
        outside = torch.where((o >= 0) & (o <= n), -math.inf, math.inf)
        start = torch.maximum(start, torch.where(d == 0, outside, times.amin(0)))
        end = torch.minimum(end, torch.where(d == 0, math.inf, times.amax(0)))
    return ((end - start).clamp(min=0) * directions.double().norm(dim=1)).nan_to_num(0.0)  # no direction: no chord


@WALKS
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_loop(walker, parity, dtype):
    origins, directions = both_rays(8, dtype)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    segments = walker(origins, directions, 8, parity=parity)
    assert segments.t_in.dtype == segments.u_out.dtype == dtype
    assert segments.rays == len(origins)
    assert_equal_to_loop(segments, loop_walk(origins, directions, 8, parity=parity), tolerance)
    mask = random_mask(4, 0.5)
    segments = walker(origins, directions, 8, parity=parity, occupied=mask)
    assert_equal_to_loop(segments, loop_walk(origins, directions, 8, parity=parity, occupied=mask), tolerance)


@WALKS
def test_limits_and_crop_box(walker):
    origins, directions = both_rays(8, torch.float64)
    lower, upper = [1.5, -3.0, 2.25], [6.0, 7.5, 99.0]
    tensors = {"lower": torch.tensor(lower), "upper": torch.tensor(upper)}
    segments = walker(origins, directions, 8, t_near=2.5, t_far=9.0, **tensors)
    expected = loop_walk(origins, directions, 8, t_near=2.5, t_far=9.0, lower=lower, upper=upper)
    assert len(expected) > 100
    assert_equal_to_loop(segments, expected, 1e-12)
    per_ray = walker(origins, directions, 8, t_near=torch.full((len(origins),), 2.5), t_far=9.0, **tensors)
    assert_same(per_ray, segments)
    assert len(walker(origins, directions, 8, t_near=5.0, t_far=4.0).ray) == 0


@pytest.mark.parametrize(
    ("resolution", "cells"), [(8, 8), (8, 2), (12, 3), (12, 1), (10, 7), (10, 20), (50, 50), (96, 32), (128, 64)]
)
@pytest.mark.parametrize("parity", [False, True])
def test_levels_change_nothing(resolution, cells, parity):
    """Also masks that do not divide the grid, are finer than it, or are pooled over several levels."""
    origins, directions = both_rays(resolution)
    for share in (0.1, 0.9):
        mask = random_mask(cells, share)
        fast = walk(origins, directions, resolution, occupied=mask, parity=parity)
        assert_same(fast, walk_sorted(origins, directions, resolution, occupied=mask, parity=parity))


def test_an_empty_mask_and_no_rays():
    origins, directions = both_rays(8)
    assert len(walk(origins, directions, 8, occupied=torch.zeros(4, 4, 4, dtype=torch.bool)).ray) == 0
    for count, mask in itertools.product((0, 3), (None, random_mask(4, 0.5))):
        away = walk(torch.full((count, 3), 9.0), torch.full((count, 3), 0.5), 8, occupied=mask)
        assert (away.rays, away.u_in.shape, away.voxel.dtype) == (count, (0, 3), torch.int64)


def test_refuses_what_it_cannot_walk():
    origins, directions = both_rays(8)
    with pytest.raises(ValueError, match="at least 1 voxel"):
        walk(origins, directions, 0)
    with pytest.raises(ValueError, match="as many cells"):
        walk(origins, directions, 8, occupied=torch.ones(4, 4, 2, dtype=torch.bool))


def test_rays_that_are_not_numbers_hit_nothing():
    origins, directions = random_rays(4, 8)
    origins[0, 1], directions[1, 2], directions[2, 0] = math.nan, math.nan, math.inf
    assert walk(origins, directions, 8).ray.unique().tolist() == [3]


@WALKS
@pytest.mark.parametrize("resolution", [7, 64])
def test_properties(walker, resolution):
    """Lengths add up to the chord, distances grow, neighbours differ by one step, at most 3N - 2 pieces."""
    parts = [random_rays(400, resolution, dtype=torch.float64), special_rays(resolution, torch.float64)]
    origins, directions = (torch.cat(pair) for pair in zip(*parts, strict=True))
    segments = walker(origins, directions, resolution)
    length = lengths(segments, directions)
    assert length.min() > SLIVER
    total = torch.zeros(len(origins), dtype=torch.float64).index_add_(0, segments.ray, length)
    whole = chords(origins, directions, resolution)
    assert (total - whole).abs().max() < 1e-3
    counts = torch.bincount(segments.ray, minlength=len(origins))
    assert counts.max() <= 3 * resolution - 2
    same_ray = segments.ray[1:] == segments.ray[:-1]
    assert (segments.ray[1:] >= segments.ray[:-1]).all()
    assert (segments.t_in[1:] > segments.t_in[:-1])[same_ray].all()
    gap = segments.t_in[1:] - segments.t_out[:-1]
    assert (gap >= 0)[same_ray].all()
    steps = (segments.voxel[1:] - segments.voxel[:-1]).abs().sum(1)
    random = segments.ray[1:] < 400  # exact diagonals among the others step over edges and corners
    assert (steps == 1)[same_ray & (gap == 0) & random].all()
    # Without a dropped sliver the sum is exact.
    broken = torch.zeros(len(origins), dtype=torch.bool).index_fill_(0, segments.ray[1:][same_ray & (gap > 0)], True)
    whole_rays = ~broken & (whole > SLIVER) & ((total - whole).abs() < SLIVER / 10)
    assert whole_rays.sum() > 300
    assert ((total - whole).abs() / whole)[whole_rays].max() < 1e-9
    middle = origins[segments.ray] + (segments.t_in + segments.t_out)[:, None] / 2 * directions[segments.ray]
    assert torch.equal(middle.floor().clamp(0, resolution - 1).long(), segments.voxel)
    for local, t in ((segments.u_in, segments.t_in), (segments.u_out, segments.t_out)):
        assert ((local >= 0) & (local <= 1)).all()
        point = origins[segments.ray] + t[:, None] * directions[segments.ray]
        torch.testing.assert_close(local + segments.voxel, point, rtol=0, atol=1e-9)


@WALKS
def test_float32_keeps_the_chord(walker):
    origins, directions = random_rays(2000, 64)
    segments = walker(origins, directions, 64)
    local = (segments.u_out - segments.u_in).double().norm(dim=1)
    assert local.min() > 0
    total = torch.zeros(len(origins), dtype=torch.float64).index_add_(0, segments.ray, local)
    assert (total - chords(origins, directions, 64)).abs().max() < 1e-3
    same_ray = segments.ray[1:] == segments.ray[:-1]
    assert (segments.t_in[1:] > segments.t_in[:-1])[same_ray].all()


@WALKS
def test_zero_components_keep_their_length(walker):
    """The original loses these rays: expected 67 voxels, found 0 (spec diver 8)."""
    origins = torch.tensor([[-5.0, 10.5, 20.5], [-5.0, 10.5, 20.5], [32.0, 32.0, 80.0]])
    directions = torch.tensor([[1.0, 0.0, -0.0], [0.8, 0.6, 0.0], [-0.0, 0.0, -1.0]])
    segments = walker(origins, directions, 64)
    total = torch.zeros(3, dtype=torch.float64).index_add_(0, segments.ray, lengths(segments, directions))
    torch.testing.assert_close(total, chords(origins, directions, 64), rtol=1e-6, atol=0)
    assert (segments.voxel[segments.ray == 0][:, 1:] == torch.tensor([10, 20])).all()


def test_equals_brute_force_sampling():
    """10^5 samples per ray at N = 8: the share of samples in each voxel is its segment's share of the chord."""
    n, samples = 8, 100_000
    origins, directions = random_rays(24, n, seed=3, dtype=torch.float64)
    segments = walk(origins, directions, n)
    whole = chords(origins, directions, n)
    generator = np.random.default_rng(0)
    for ray in range(len(origins)):
        mine = segments.ray == ray
        if not mine.any():
            assert whole[ray] < SLIVER
            continue
        start, end = segments.t_in[mine][0], segments.t_out[mine][-1]
        t = start + (torch.arange(samples) + torch.from_numpy(generator.random(samples))) / samples * (end - start)
        voxel = (origins[ray] + t[:, None] * directions[ray]).floor().long().clamp(0, n - 1)
        flat = voxel @ torch.tensor([1, n, n * n])
        sampled = torch.bincount(flat, minlength=n**3).double() / samples
        ours = torch.zeros(n**3, dtype=torch.float64)
        ours.index_add_(0, segments.voxel[mine] @ torch.tensor([1, n, n * n]), lengths(segments, directions)[mine])
        assert (sampled - ours / whole[ray]).abs().max() < 4 / samples + 2 * SLIVER / whole[ray]


coordinate = st.floats(-20, 20, width=32) | st.integers(-8, 16).map(float)
component = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])


@settings(max_examples=150, deadline=None)
@given(st.lists(coordinate, min_size=3, max_size=3), st.lists(component, min_size=3, max_size=3), st.booleans())
def test_any_ray_keeps_its_chord(origin, direction, use_mask):
    origins, directions = torch.tensor([origin], dtype=torch.float64), torch.tensor([direction], dtype=torch.float64)
    if directions.norm() < 1e-3:
        return
    mask = torch.ones(2, 2, 2, dtype=torch.bool) if use_mask else None
    segments = walk(origins, directions, 8, occupied=mask)
    whole, total = float(chords(origins, directions, 8)), float(lengths(segments, directions).sum())
    assert abs(total - whole) < 24 * SLIVER
    assert len(segments.ray) <= 22
    assert all(0 <= v < 8 for v in segments.voxel.flatten().tolist())


def test_chunks_change_nothing(monkeypatch):
    origins, directions = random_rays(500, 32)
    mask = random_mask(16, 0.3)
    whole = [walk(origins, directions, 32, occupied=m) for m in (None, mask)]
    monkeypatch.setattr(voxel_walk, "CHUNK", {"cpu": 1})
    for before, m in zip(whole, (None, mask), strict=True):
        assert_same(walk(origins, directions, 32, occupied=m), before, 0.0)


@pytest.mark.parametrize("name", ["coarse64", "fine64", "fine32", "implicit32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@WALKS
def test_segments_of_the_original(shared_fixtures, name, walker, dtype):
    """Voxels and ends of the kept pieces (tolerance 1e-4 voxel), and every ray's number of them."""
    with np.load(shared_fixtures / "diver" / name / "rays.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fiu"}
    resolution, cells = {"coarse64": (8, 0), "fine64": (12, 3), "fine32": (10, 10), "implicit32": (8, 4)}[name]
    mask = None
    if cells:
        mask = read_original(shared_fixtures / "diver" / name / "last.ckpt").mask
        assert mask is not None
        assert len(mask) == cells
    origins_u, dirs_u = Grid(resolution).to_grid(data["o"].to(dtype), data["d"].to(dtype))
    segments = walker(origins_u, dirs_u, resolution, occupied=mask, parity=True)
    hits = torch.bincount(segments.ray, minlength=len(origins_u))
    assert torch.equal(hits, data["hits"].long())
    assert torch.equal(segments.ray, data["seg_ray"].long())
    assert torch.equal(segments.voxel, data["seg_voxel_xyz"].long())
    for local, expected in ((segments.u_in, data["seg_in"]), (segments.u_out, data["seg_out"])):
        torch.testing.assert_close((local + segments.voxel).double(), expected.double(), rtol=0, atol=1e-4)
    for t, expected in ((segments.t_in, data["seg_t_in"]), (segments.t_out, data["seg_t_out"])):
        torch.testing.assert_close(t.double(), expected.double(), rtol=0, atol=1e-4 * Grid(resolution).voxel_size)


def shell(resolution: int, thickness: float = 2.4):
    """Occupied voxels of a sphere's surface: 5.9 % of the grid at 64 voxels (spec diver 9.9)."""
    axis = torch.arange(resolution) + 0.5 - resolution / 2
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return (radius - 0.357 * resolution).abs() < thickness / 2


def test_empty_space_is_skipped():
    mask = shell(64)
    assert 0.045 < mask.float().mean() < 0.07
    origins, directions = random_rays(3000, 64)
    everything = walk(origins, directions, 64)
    occupied = walk(origins, directions, 64, occupied=mask)
    cells = walk(origins, directions, 64, occupied=mask.view(16, 4, 16, 4, 16, 4).amax((1, 3, 5)))
    assert len(everything.ray) >= 10 * len(occupied.ray)
    assert len(everything.ray) >= 4 * len(cells.ray)
    table = torch.rand(65**3, 32)

    def seconds(occupied):
        # CPU time: neighbours on the machine do not stretch it.
        best = math.inf
        for _ in range(4):
            start = time.process_time()
            segments = walk(origins, directions, 64, occupied=occupied)
            integrate(table, corner_ids(segments.voxel, 64), chord_weights(segments.u_in, segments.u_out))
            best = min(best, time.process_time() - start)
        return best

    assert seconds(None) >= 2 * seconds(mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    origins, directions = random_rays(5000, 64, dtype=torch.float64)
    for mask, parity in itertools.product((None, random_mask(16, 0.2)), (False, True)):
        on_gpu = None if mask is None else mask.cuda()
        ours = walk(origins.cuda(), directions.cuda(), 64, occupied=on_gpu, parity=parity)
        expected = walk(origins, directions, 64, occupied=mask, parity=parity)
        assert_same(Segments(*(x.cpu() for x in ours[:-1]), rays=ours.rays), expected, 1e-9)
