"""The real-time renderer against a loop in float64, the exact path and the originals' fixtures."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtime_scenes import BLACK, WHITE, Scene, camera, columns, exact, psnr, rays, scene, special, sphere
from torch import Tensor

from diver_ns import realtime
from diver_ns.deploy import FusedDecoder
from diver_ns.deploy_model import LEAP, empty_radius
from diver_ns.field import Decoder
from diver_ns.grid import Grid
from diver_ns.realtime import make_deploy, render_rays


@torch.no_grad()
def loop_render(it: Scene, origins: Tensor, directions: Tensor, background, stop: float, skip: float) -> Tensor:
    """The slow obvious twin, float64: one ray and one voxel at a time. Columns rgb, accumulation, depth, hits."""
    n, decoder = it.grid.resolution, Decoder(it.decoder.width).double()
    decoder.load_state_dict(it.decoder.state_dict())
    table = dict(zip(it.ids.tolist(), it.features.double(), strict=True))
    pixels = []
    for o, d in zip(origins, directions, strict=True):
        o_u, d_u = (part[0].double() for part in it.grid.to_grid(o[None], d[None]))
        times = [0.0] + [float((k - o_u[a]) / d_u[a]) for a in range(3) if d_u[a] != 0 for k in range(n + 1)]
        times = sorted(t for t in times if t >= 0)
        light, rgb, depth, hits = 1.0, torch.zeros(3).double(), 0.0, 0
        for t0, t1 in itertools.pairwise(times):
            middle = o_u + (t0 + t1) / 2 * d_u
            voxel = middle.floor().long()
            outside = (middle < 0).any() or (middle > n).any() or (voxel >= n).any()
            if outside or (t1 - t0) * d_u.norm() <= 1e-4 or not it.mask[voxel[2], voxel[1], voxel[0]]:
                continue
            feature = torch.zeros(32).double()
            for s, share in ((0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18)):
                p = o_u + (t0 + s * (t1 - t0)) * d_u - voxel
                for c in range(8):
                    bits = torch.tensor([c & 1, c >> 1 & 1, c >> 2 & 1])
                    w = float(torch.where(bits == 1, p, 1 - p).prod())
                    x, y, z = (voxel + bits).tolist()
                    feature += share * w * table[(z * (n + 1) + y) * (n + 1) + x]
            sigma, colour = decoder(feature[None], d[None].double())
            alpha = 1 - math.exp(-max(float(sigma), 0.0))
            hits += 1
            if alpha >= skip:
                rgb += light * alpha * colour[0]
                depth += light * alpha * (t0 + t1) / 2
                light *= 1 - alpha
            if light < stop:
                break
        pixels.append([*(rgb + light * background.double()), 1 - light, depth, hits])
    return torch.tensor(pixels)


# ---------------------------------------------------------------------------------------------- against the oracles


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(("stop", "skip"), [(0.0, 0.0), (0.01, 0.01), (0.3, 0.2)])
def test_equals_the_loop(width, stop, skip):
    it = scene(sphere(6) & (torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.8), width, density=0.4)
    parts = zip(rays(12), special(), strict=True)
    origins, directions = (torch.cat(part) for part in parts)
    background = torch.tensor([0.2, 0.5, 0.9])
    ours = columns(render_rays(it.deploy(background), origins, directions, stop=stop, skip=skip))
    theirs = loop_render(it, origins, directions, background, stop, skip)
    assert theirs[:, 5].max() >= (3 if stop < 0.1 else 2)
    assert torch.equal(ours[:, 5].double(), theirs[:, 5])
    torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 3, 10, 17, 40])
def test_equals_the_exact_path_without_thresholds(n):
    """Any number of voxels per axis, also those that 4 does not divide; another cube than the usual one."""
    grid = Grid(n, 1.7, (0.4, -0.2, 3.0))
    generator = torch.Generator().manual_seed(n)
    mask = torch.rand(n, n, n, generator=generator) < (0.3 if n > 1 else 2)
    it = scene(mask, density=0.1, grid=grid)
    origins, directions = rays(3000, grid=grid)
    ours, theirs = render_rays(it.deploy(), origins, directions, stop=0, skip=0), exact(it, origins, directions)
    same = ours["hits"][:, 0] == theirs.hits
    assert same.float().mean() > 0.999  # a piece may be a sliver to one and not to the other
    torch.testing.assert_close(ours["rgb"][same], theirs.rgb[same], atol=5e-5, rtol=0)
    torch.testing.assert_close(ours["accumulation"][same, 0], theirs.accumulation[same], atol=5e-5, rtol=0)
    torch.testing.assert_close(ours["depth"][same, 0], theirs.depth[same], atol=2e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 14), fill=st.floats(0, 1), density=st.floats(0.02, 5))
def test_thresholds_change_no_more_than_they_promise(seed, n, fill, density):
    """Spec diver 9.8: ``|dC| <= sum of skipped weights + 0.01``."""
    mask = torch.rand(n, n, n, generator=torch.Generator().manual_seed(seed)) < fill
    it = scene(mask, density=density, seed=seed)
    origins, directions = rays(300, seed)
    ours, theirs = render_rays(it.deploy(), origins, directions), exact(it, origins, directions)
    free = render_rays(it.deploy(), origins, directions, stop=0, skip=0)
    same = free["hits"][:, 0] == theirs.hits
    skipped = torch.zeros(300).index_add(0, theirs.ray, theirs.weights * (theirs.alpha < 0.01 + 1e-5))
    change = (ours["rgb"] - theirs.rgb).abs().amax(1)
    assert (change <= skipped + 0.01 + 1e-4)[same].all()
    assert (ours["hits"] <= free["hits"]).all()


def test_thresholds_cost_little_quality():
    """Spec diver 9.8."""
    it = scene(sphere(24), density=0.7)
    origins, directions = camera(60, 80)
    reference = exact(it, origins, directions).rgb
    assert psnr(render_rays(it.deploy(), origins, directions)["rgb"], reference) >= 45
    assert psnr(render_rays(it.deploy(dtype=torch.float16), origins, directions)["rgb"], reference) >= 45
    step = it.features.abs().amax(0) / 127
    coarse = it._replace(features=(it.features / step).round() * step)  # as int8 files hold them
    assert psnr(render_rays(coarse.deploy(), origins, directions)["rgb"], reference) >= 38


def test_reproduces_the_originals(shared_fixtures):
    formats = pytest.importorskip("diver_ns.formats")
    import numpy as np

    for name in ("fine32", "fine64"):
        folder = shared_fixtures / "diver" / name
        data = np.load(folder / "rays.npz")
        file = formats.read_original(folder / "serialize.pth", resolution={"fine32": 10, "fine64": 12}[name])
        grid = Grid(file.resolution, file.side, file.center)
        background = torch.from_numpy(data["rgb"][data["kind"] == 6]).median(dim=0).values
        model = make_deploy(grid, file.fine_mask(), file.ids, file.features, file.fused(), background)
        ours = render_rays(model, torch.from_numpy(data["o"]), torch.from_numpy(data["d"]), stop=0, skip=0)
        plain = torch.from_numpy(data["kind"] != 5)  # along a plane the original takes another voxel (spec diver 11)
        expected = torch.from_numpy(data["weight_rgb"])
        torch.testing.assert_close(ours["rgb"][plain], expected[plain], atol=1e-4, rtol=0)
        hits = torch.from_numpy(data["weight_hits"]).float()
        assert ((ours["hits"][:, 0] == hits) | ~plain).float().mean() > 0.99


# ---------------------------------------------------------------------------------------- what must have no influence


def test_no_influence_of_wave_chunk_and_neighbours(monkeypatch):
    it = scene(sphere(20, 0.8), density=0.5)
    model = it.deploy()
    origins, directions = rays(4000)
    whole = columns(render_rays(model, origins, directions))
    monkeypatch.setattr(realtime, "ENOUGH", 50)
    for options in ({"wave": 1}, {"wave": 3}, {"wave": 64}, {"chunk": 7 * 41}, {"chunk": 1000, "wave": 2}):
        other = columns(render_rays(model, origins, directions, **options))
        torch.testing.assert_close(other, whole, atol=2e-6, rtol=0)
    some = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:333]
    torch.testing.assert_close(
        columns(render_rays(model, origins[some], directions[some])), whole[some], atol=2e-6, rtol=0
    )
    single = columns(render_rays(model, origins[5:6], directions[5:6]))
    torch.testing.assert_close(single, whole[5:6], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 50)])
def test_any_resolution(size):
    it = scene(sphere(12))
    origins, directions = camera(*size)
    out = render_rays(it.deploy(), origins, directions)
    assert {key: value.shape for key, value in out.items()} == {
        "rgb": (size[0] * size[1], 3),
        **dict.fromkeys(("accumulation", "depth", "hits"), (size[0] * size[1], 1)),
    }
    reference = exact(it, origins, directions)
    assert (out["rgb"] - reference.rgb).abs().max() < 0.03


def test_repeated_rendering_is_identical():
    it = scene(sphere(16))
    model, both = it.deploy(), camera(20, 30)
    first, second = columns(render_rays(model, *both)), columns(render_rays(model, *both))
    assert torch.equal(first, second)


# ----------------------------------------------------------------------------------------------- ranges and edge cases


def test_near_and_far_cut():
    it = scene(sphere(14), density=0.2)
    origins, directions = rays(500)
    near = torch.rand(500, generator=torch.Generator().manual_seed(3)) * 4
    far = near + 1.0
    reference = exact(it, origins, directions, t_near=near, t_far=far)
    for shape in ((500,), (500, 1)):
        ours = render_rays(
            it.deploy(), origins, directions, t_near=near.reshape(shape), t_far=far.reshape(shape), stop=0, skip=0
        )
        assert (ours["hits"][:, 0] != reference.hits).sum() <= 1
        torch.testing.assert_close(ours["rgb"], reference.rgb, atol=1e-4, rtol=0)
    numbers = render_rays(it.deploy(), origins, directions, t_near=1.0, t_far=2.5, stop=0, skip=0)
    reference = exact(it, origins, directions, t_near=1.0, t_far=2.5)
    torch.testing.assert_close(numbers["rgb"], reference.rgb, atol=1e-4, rtol=0)
    assert not render_rays(it.deploy(), origins, directions, t_near=2.0, t_far=1.0)["hits"].any()


def test_nothing_behind_the_camera():
    it = scene(sphere(10))
    out = render_rays(it.deploy(), torch.tensor([[3.0, 0, 0]]), torch.tensor([[1.0, 0, 0]]), t_near=-10.0)
    assert not out["hits"].any()


def test_crop_box():
    it = scene(torch.ones(16, 16, 16, dtype=torch.bool), density=0.1)
    model, (origins, directions) = it.deploy(), rays(600)
    lower, upper = torch.tensor([-0.5, -0.7, -0.9]), torch.tensor([0.6, 0.9, 0.3])
    o_u = it.grid.points_to_grid(origins)
    d_u = it.grid.to_grid(origins, directions)[1]
    ends = torch.stack([it.grid.points_to_grid(p[None])[0] for p in (lower, upper)])
    times = ((ends[:, None] - o_u) / d_u).sort(dim=0).values
    near, far = times[0].amax(1).clamp(min=0), times[1].amin(1)
    reference = columns(render_rays(model, origins, directions, t_near=near, t_far=far))
    boxed = columns(render_rays(model, origins, directions, box=torch.stack([lower, upper])))
    assert 0.1 < (reference[:, 5] > 0).float().mean() < 0.9
    torch.testing.assert_close(boxed, reference, atol=1e-3, rtol=0)
    upright = SimpleNamespace(R=torch.eye(3), T=(lower + upper) / 2, S=upper - lower)
    torch.testing.assert_close(columns(render_rays(model, origins, directions, box=upright)), boxed, atol=1e-5, rtol=0)


def test_oriented_crop_box_keeps_what_lies_inside():
    it = scene(torch.ones(16, 16, 16, dtype=torch.bool), density=50)
    rotation = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.4, 0.5], [-0.4, 0.0, -0.3], [-0.5, 0.3, 0.0]]))
    box = SimpleNamespace(R=rotation, T=torch.tensor([0.2, -0.1, 0.3]), S=torch.tensor([0.8, 1.1, 0.6]))
    origins, directions = camera(40, 40)
    out = render_rays(it.deploy(), origins, directions, box=box)
    seen = out["accumulation"][:, 0] > 0.99
    assert 20 < seen.sum() < 1000
    surface = origins[seen] + directions[seen] * out["depth"][seen] / out["accumulation"][seen]
    local = (surface - box.T) @ box.R
    assert (local.abs() <= box.S / 2 + 0.15).all()  # the first hit's middle: at most a voxel's diagonal further in


def test_empty_grid_shows_the_background():
    nothing = scene(torch.zeros(9, 9, 9, dtype=torch.bool))
    for name, colour in (("white", WHITE), ("black", BLACK)):
        out = render_rays(nothing.deploy(name), *rays(50))
        assert torch.equal(out["rgb"], colour.expand(50, 3))
        assert not any(out[key].any() for key in ("accumulation", "depth", "hits"))
    assert render_rays(nothing.deploy(), torch.empty(0, 3), torch.empty(0, 3))["rgb"].shape == (0, 3)


def test_background_shows_through():
    it = scene(sphere(10), density=0.05)
    both = camera(24, 24)
    white, black = (render_rays(it.deploy(name), *both) for name in ("white", "black"))
    gap = white["rgb"] - black["rgb"]
    torch.testing.assert_close(gap, (1 - white["accumulation"]).expand(-1, 3), atol=1e-6, rtol=0)
    assert gap.min() < 0.9 < gap.max()


def test_rays_that_are_no_rays_see_the_background():
    it = scene(sphere(8))
    d = torch.tensor([[0.0, 0, 0], [math.nan, 0, 1], [0, 0, 1.0]])
    o = torch.tensor([[0.0, 0, 0], [0, 0, -3], [math.nan, 0, 0]])
    out = render_rays(it.deploy(), o, d)
    assert torch.equal(out["rgb"], WHITE.expand(3, 3))


def test_rays_along_planes_and_through_edges_terminate():
    """A plane, an edge or a corner belongs to one side or the other; no ray may hang or lose its way."""
    n = 8
    it = scene(torch.ones(n, n, n, dtype=torch.bool), density=0.01)
    at = torch.arange(n + 1) * (2.8 / n) - 1.4
    y, z = torch.meshgrid(at, at, indexing="ij")
    o = torch.stack([torch.full_like(y, -3.0), y, z], dim=-1).reshape(-1, 3)
    inner = (o[:, 1:].abs() < 1.39).all(1)
    out = render_rays(it.deploy(), o[inner], torch.tensor([[1.0, 0, 0]]).expand(int(inner.sum()), 3), stop=0, skip=0)
    assert (out["hits"] == n).all()
    diagonal = torch.tensor([[1.0, 1, 1], [-1, 1, 1], [1, -1, 1], [-1, -1, -1]]) / math.sqrt(3)
    out = render_rays(it.deploy(), -diagonal * 5, diagonal, stop=0, skip=0)
    assert (out["hits"] == n).all()


def test_a_ray_in_an_outer_face_runs_through_the_outermost_voxels():
    it = scene(torch.ones(8, 8, 8, dtype=torch.bool), density=0.01, grid=Grid(8, 2.0))
    origins = torch.tensor([[-3.0, 1.0, 0.1], [-3.0, -1.0, 0.1], [-3.0, 1.0, 1.0]])
    directions = torch.tensor([[1.0, 0, 0]]).expand(3, 3)
    ours, theirs = render_rays(it.deploy(), origins, directions, stop=0, skip=0), exact(it, origins, directions)
    assert (theirs.hits == 8).all()
    assert (ours["hits"] == 8).all()
    torch.testing.assert_close(ours["rgb"], theirs.rgb, atol=1e-5, rtol=0)


def test_far_cameras_and_fine_grids_keep_their_precision():
    """A voxel of 1/256 seen from 1000 sides away, by rays almost parallel to an axis."""
    n = 256
    mask = torch.zeros(n, n, n, dtype=torch.bool)
    mask[120:136, 120:136, 100:150] = True
    it = scene(mask, density=0.02)
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(400, 3, generator=generator) - 0.5) * 0.15
    d = torch.tensor([1.0, 2e-4, -1e-4]) + 1e-5 * torch.randn(400, 3, generator=generator)
    d = d / d.norm(dim=1, keepdim=True)
    ours = render_rays(it.deploy(), target - 3 * d, d, stop=0, skip=0)
    theirs = exact(it, target - 3 * d, d)
    assert theirs.hits.float().mean() > 40
    same = ours["hits"][:, 0] == theirs.hits
    assert same.float().mean() > 0.98
    torch.testing.assert_close(ours["rgb"][same], theirs.rgb[same], atol=2e-3, rtol=0)


# ------------------------------------------------------------------------------------------------- the prepared model


@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_empty_radius_equals_brute_force(n):
    mask = torch.rand(n, n, n, generator=torch.Generator().manual_seed(n)) < 0.002
    mask[0, n // 2, n - 1] = True
    occupied, all_voxels = mask.nonzero(), torch.ones_like(mask).nonzero()
    distance = torch.full((len(all_voxels),), 10**6)
    for voxel in occupied:
        distance = torch.minimum(distance, (all_voxels - voxel).abs().amax(1))
    expected = (distance - 1).clamp(0, LEAP - 1).reshape(n, n, n)
    assert torch.equal(empty_radius(mask).long(), expected)
    assert (empty_radius(torch.zeros_like(mask)) == LEAP - 1).all()


def test_a_coarse_mask_is_read_at_every_voxel():
    coarse = sphere(4)
    at = torch.arange(10) * 4 // 10
    fine = coarse[at][:, at][:, :, at]
    it = scene(fine, density=0.3)
    both = rays(200)
    one = render_rays(it.deploy(), *both)
    other = render_rays(make_deploy(it.grid, coarse, it.ids, it.features, it.decoder, WHITE), *both)
    assert torch.equal(columns(one), columns(other))


def test_fused_decoders_and_new_tables():
    it, other = scene(sphere(10), seed=0), scene(sphere(10), seed=5)
    both = rays(200)
    fused = make_deploy(*it[:4], FusedDecoder.from_decoder(it.decoder), WHITE)
    assert torch.equal(columns(render_rays(fused, *both)), columns(render_rays(it.deploy(), *both)))
    swapped = it.deploy().with_table(other.features, other.decoder)
    assert torch.equal(columns(render_rays(swapped, *both)), columns(render_rays(other.deploy(), *both)))


def test_moving_keeps_everything():
    model = scene(sphere(10)).deploy()
    moved = model.to("cpu")
    assert torch.equal(columns(render_rays(moved, *rays(50))), columns(render_rays(model, *rays(50))))
    assert model.nbytes == 10**3 + 4 * 3**3 + 32 * int(sphere(10).sum()) + 4 * 32 * len(model.table)


def test_refuses_what_it_cannot_render():
    it = scene(sphere(8))
    with pytest.raises(ValueError, match="corners of occupied voxels have no features"):
        make_deploy(it.grid, it.mask, it.ids[1:], it.features[1:], it.decoder, WHITE)
    with pytest.raises(ValueError, match="no features"):
        make_deploy(it.grid, it.mask, it.ids[:0], it.features[:0], it.decoder, WHITE)
    with pytest.raises(ValueError, match="does not fit a grid of 8"):
        make_deploy(it.grid, sphere(16), it.ids, it.features, it.decoder, WHITE)
    with pytest.raises(ValueError, match="does not fit a grid of 8"):
        make_deploy(it.grid, it.mask[:4], it.ids, it.features, it.decoder, WHITE)
    with pytest.raises(ValueError, match="1 to 1024"):
        make_deploy(Grid(2000), it.mask, it.ids, it.features, it.decoder, WHITE)
    for wrong in ({"stop": -0.1}, {"stop": 1.0}, {"skip": 1.5}, {"wave": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="need 0 <= stop"):
            render_rays(it.deploy(), *rays(1), **wrong)


# --------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.slow
def test_five_times_the_exact_path_on_a_solid_object():
    it = scene(sphere(64, 0.75), width=64, density=1.0)
    origins, directions = camera(160, 160)
    model, parts = it.deploy(), list(zip(origins.split(8192), directions.split(8192), strict=True))
    seconds: dict[str, list[float]] = {"exact": [], "realtime": []}
    for _ in range(3):
        start = time.perf_counter()
        reference = torch.cat([exact(it, *part).rgb for part in parts])
        seconds["exact"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ours = render_rays(model, origins, directions)["rgb"]
        seconds["realtime"].append(time.perf_counter() - start)
    gain = min(seconds["exact"]) / min(seconds["realtime"])
    truth = (reference + 0.05 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert abs(psnr(ours, truth) - psnr(reference, truth)) <= 0.1
    assert gain >= 5, seconds
