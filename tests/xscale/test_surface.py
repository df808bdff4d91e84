"""Ray-surface geometry: the hash grid's cube, first hits, crops, pixel footprints, sub-pixel points, pixel rays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from xscale_models import CPU, NOISE, Cameras, CameraType, box_surface, camera, generator, quad_surface, sphere_mesh
from xscale_models import unit_vectors as unit

from xscale_ns.datamanager import sub_pixel_offsets
from xscale_ns.rays import image_pixels, pixel_rays
from xscale_ns.surface import Surface, auto_finest_resolution, footprint, unit_cube

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

LOWER, UPPER = torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([3.0, 4.0, -2.0])
"""A box with three different sides: 4, 2, 1."""


def points_in(lower: torch.Tensor, upper: torch.Tensor, count: int = 200, seed: int = 0) -> torch.Tensor:
    return lower + (upper - lower) * torch.rand(count, 3, generator=generator(seed))


# ------------------------------------------------------------------------------------------------------------ unit cube


def test_per_axis_cube_is_the_originals_formula() -> None:
    points = points_in(LOWER, UPPER)
    centre, extent = (LOWER + UPPER) / 2, UPPER - LOWER + 1e-6  # spec xscale 3.2, as upstream writes it
    p = 2 * (points - centre) / extent
    torch.testing.assert_close(unit_cube(points, LOWER, UPPER, "per-axis"), p / 2 + 0.5, atol=1e-6, rtol=0)
    corners = unit_cube(torch.stack([LOWER, UPPER]), LOWER, UPPER, "per-axis")
    torch.testing.assert_close(corners, torch.tensor([[0.0] * 3, [1.0] * 3]), atol=1e-5, rtol=0)


def test_isotropic_cube_keeps_shapes_and_centres_every_axis() -> None:
    points = points_in(LOWER, UPPER)
    cube = unit_cube(points, LOWER, UPPER)
    assert cube.min() >= 0
    assert cube.max() <= 1
    torch.testing.assert_close(cube - cube[:1], (points - points[:1]) / 4, atol=1e-6, rtol=0)
    corners = unit_cube(torch.stack([LOWER, UPPER]), LOWER, UPPER)
    expected = torch.tensor([[0.0, 0.25, 0.375], [1.0, 0.75, 0.625]])
    torch.testing.assert_close(corners, expected, atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------- first hits


@pytest.fixture(scope="module")
def ball() -> Surface:
    vertices, faces = sphere_mesh(1.0, 5)
    return Surface(torch.from_numpy(vertices), torch.from_numpy(faces), CPU)


def rays_at_ball(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From a shell of radius 3 towards points in a ball of radius 1.6: some hit, some miss."""
    origins = 3 * unit(count, seed)
    targets = 1.6 * unit(count, seed + 1) * torch.rand(count, 1, generator=generator(seed + 2)) ** (1 / 3)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def test_first_hits_lie_on_the_sphere_and_their_normals_face_the_viewer(ball: Surface) -> None:
    origins, directions = rays_at_ball(20_000, 0)
    hits = ball.first_hits(origins, directions)
    along = -(origins * directions).sum(-1)
    gap = 1 - ((origins**2).sum(-1) - along**2)  # analytic discriminant of the unit sphere
    clear = gap.abs() > 0.02
    assert torch.equal(hits.hit[clear], (gap > 0)[clear])
    assert 0.2 < hits.hit.float().mean() < 0.9
    steep = hits.hit & (gap > 0.04)  # cos(incidence) > 0.2, spec xscale A1
    error = (hits.t - (along - gap.clamp_min(0).sqrt()))[steep].abs()
    assert error.quantile(0.99) <= 2e-3  # 20 480 faces: a quarter of A1's, so four times its sagitta
    torch.testing.assert_close(hits.points[hits.hit], (origins + hits.t[:, None] * directions)[hits.hit])
    assert ((hits.points[hits.hit].norm(dim=-1) - 1).abs() < 2e-3).all()
    corners = ball.vertices[ball.faces[hits.face[hits.hit]]]
    plane = ((hits.points[hits.hit] - corners[:, 0]) * hits.normals[hits.hit]).sum(-1).abs()
    assert plane.max() < 2e-6, "points lie in the plane of the face they name"
    assert ((hits.normals * directions).sum(-1)[hits.hit] < 0).all()
    torch.testing.assert_close(hits.normals[hits.hit].norm(dim=-1), torch.ones(int(hits.hit.sum())))
    assert ((hits.normals * hits.points).sum(-1)[hits.hit] > 0.99).all(), "seen from outside they point outwards"


def test_from_inside_the_normals_point_inwards(ball: Surface) -> None:
    directions = unit(500, 5)
    hits = ball.first_hits(torch.zeros(500, 3), directions)
    assert hits.hit.all()
    assert ((hits.normals * hits.points).sum(-1) < -0.99).all()


def test_misses_hold_zeros_and_infinite_distance(ball: Surface) -> None:
    origins, directions = rays_at_ball(5000, 7)
    hits = ball.first_hits(origins, directions)
    missed = ~hits.hit
    assert missed.any()
    assert (hits.points[missed] == 0).all()
    assert (hits.normals[missed] == 0).all()
    assert torch.isinf(hits.t[missed]).all()
    assert (hits.face[missed] == -1).all()
    assert (hits.face[hits.hit] >= 0).all()
    empty = ball.first_hits(torch.zeros(0, 3), torch.zeros(0, 3))
    assert [tuple(part.shape) for part in empty] == [(0,), (0,), (0,), (0, 3), (0, 3)]


def test_bounds_and_extent() -> None:
    box = box_surface((-1.0, 2.0, -3.0), (3.0, 4.0, -2.0))
    torch.testing.assert_close(box.lower, LOWER)
    torch.testing.assert_close(box.upper, UPPER)
    assert box.extent == pytest.approx(4.0)
    assert box.vertices.dtype == torch.float32
    assert box.faces.dtype == torch.int64


# ----------------------------------------------------------------------------------------------------------------- crop


@pytest.fixture(scope="module")
def shells() -> Surface:
    """Spheres of radius 1, 0.8, 0.6, 0.4 round the origin in one mesh."""
    parts = [sphere_mesh(radius, 4) for radius in (1.0, 0.8, 0.6, 0.4)]
    offset, faces = 0, []
    for vertices, indices in parts:
        faces.append(indices + offset)
        offset += len(vertices)
    vertices = np.concatenate([part[0] for part in parts])
    return Surface(torch.from_numpy(vertices), torch.from_numpy(np.concatenate(faces)), CPU)


def radius_below(limit: float):
    return lambda points: (points.norm(dim=-1) < limit)[:, None]  # [N, 1] as OrientedBox.within gives


def test_crop_looks_through_the_spheres_in_front(shells: Surface) -> None:
    origins, directions = rays_at_ball(4000, 3)
    along = -(origins * directions).sum(-1)
    closest = (origins**2).sum(-1) - along**2
    hits = shells.first_hits_inside(origins, directions, radius_below(0.7))
    expected = torch.full_like(along, torch.inf)
    for radius in (0.4, 0.6):  # the outer of the two in the crop comes first
        expected = torch.where(closest < radius**2, along - (radius**2 - closest).clamp_min(0).sqrt(), expected)
    clear = ((closest - 0.36).abs() > 0.02) & ((closest - 0.16).abs() > 0.02)
    assert torch.equal(hits.hit[clear], torch.isfinite(expected)[clear])
    seen = clear & hits.hit & (closest < 0.3)
    assert seen.sum() > 300
    assert (hits.t - expected)[seen].abs().max() < 1e-2, "sagitta of 5120 faces at grazing angles"
    torch.testing.assert_close(hits.points[seen], (origins + hits.t[:, None] * directions)[seen], atol=1e-5, rtol=0)
    assert torch.isinf(hits.t[~hits.hit]).all()
    assert (hits.points[~hits.hit] == 0).all()
    assert (hits.face[~hits.hit] == -1).all()


def test_a_crop_that_holds_everything_changes_nothing(shells: Surface) -> None:
    origins, directions = rays_at_ball(1000, 11)
    for plain, cropped in zip(
        shells.first_hits(origins, directions),
        shells.first_hits_inside(origins, directions, radius_below(2.0)),
        strict=True,
    ):
        assert torch.equal(plain, cropped)


def test_the_far_wall_is_found_behind_a_cropped_front(shells: Surface) -> None:
    origins, directions = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    below = shells.first_hits_inside(origins, directions, lambda points: points[:, 2] < -0.9)
    assert below.t.item() == pytest.approx(4.0, abs=3e-3), "seven surfaces lie in front of the lowest one"
    assert below.normals[0, 2] > 0.99


@pytest.mark.parametrize(("layers", "found"), [(3, False), (4, True)])
def test_at_most_max_layers_surfaces_are_looked_through(shells: Surface, layers: int, found: bool) -> None:
    origins, directions = torch.tensor([[0.01, 0.02, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    hits = shells.first_hits_inside(origins, directions, lambda points: points[:, 2] < 0, max_layers=layers)
    assert bool(hits.hit) is found, "the four upper halves lie in front of the lower ones"


# ------------------------------------------------------------------------------------------------------------ footprint


def test_footprint_of_a_fronto_parallel_plane_is_distance_over_focal() -> None:
    plane, focal, distance = quad_surface(4.0), 50.0, 3.0
    view = camera(40, 30, focal=focal, distance=distance)
    pixels = image_pixels(40, range(30), (0.5, 0.5))
    origins, directions = pixel_rays(view, torch.zeros(len(pixels), dtype=torch.int64), pixels)
    hits = plane.first_hits(origins, directions)
    cosine = -(hits.normals * directions).sum(-1)
    sizes = footprint(hits.t, cosine, torch.full_like(hits.t, focal))
    # t = d / cos, so t / (f cos) = d / (f cos^2); cos from the pixel's offset.
    squared = ((pixels - torch.tensor([20.0, 15.0])) / focal).square().sum(-1) + 1
    torch.testing.assert_close(sizes, distance / focal * squared, atol=1e-6, rtol=1e-5)
    # Neighbouring pixels on a plane across the axis are exactly d / f apart.
    step = hits.points.reshape(30, 40, 3)[15, 21] - hits.points.reshape(30, 40, 3)[15, 20]
    assert step.norm().item() == pytest.approx(distance / focal, rel=1e-5)
    grazing = footprint(torch.tensor([2.0]), torch.tensor([0.01]), torch.tensor([10.0]))
    assert grazing.item() == pytest.approx(2.0 / (10.0 * 0.2))


def test_finest_resolution_is_one_cell_per_median_pixel_within_bounds() -> None:
    assert auto_finest_resolution(2.0, torch.tensor([1.0, 2e-3, 1e-9])) == 1000
    assert auto_finest_resolution(2.0, torch.tensor([1.0])) == 512
    assert auto_finest_resolution(2.0, torch.tensor([1e-9])) == 2**17
    assert auto_finest_resolution(2.0, torch.tensor([1e-9]), highest=2048) == 2048
    with pytest.raises(ValueError, match="no training ray"):
        auto_finest_resolution(2.0, torch.zeros(0))


# ----------------------------------------------------------------------------------------------------- sub-pixel points


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6, 8, 9, 12, 16])
@pytest.mark.parametrize("jitter", [False, True])
def test_sub_pixel_points_tile_the_pixel(samples: int, jitter: bool) -> None:
    count = 4000 if jitter else 3
    offsets = sub_pixel_offsets(count, samples, jitter, generator(4))
    assert offsets.shape == (count, samples, 2)
    assert offsets.dtype == torch.float32
    assert offsets.min() >= 0
    assert offsets.max() <= 1
    torch.testing.assert_close(
        offsets.mean(dim=(0, 1)), torch.tensor([0.5, 0.5]), atol=0.01 if jitter else 1e-6, rtol=0
    )
    rows = max(row for row in range(1, int(math.sqrt(samples)) + 1) if samples % row == 0)
    cells = (offsets * torch.tensor([samples // rows, rows])).floor().clamp_min(0)
    number = (cells[..., 1] * (samples // rows) + cells[..., 0]).long()
    assert torch.equal(number, torch.arange(samples).expand(count, samples)), "one point in each cell"
    if jitter:
        spread = offsets[:, 0].std(dim=0) * torch.tensor([samples // rows, rows])
        torch.testing.assert_close(spread, torch.full((2,), 12**-0.5), atol=0.02, rtol=0)
        assert torch.equal(offsets, sub_pixel_offsets(count, samples, True, generator(4)))
    else:
        assert torch.equal(offsets[0], offsets[2])


def test_image_pixels_are_row_major_and_start_at_their_rows() -> None:
    pixels = image_pixels(3, range(2, 4), (0.5, 0.25))
    expected = [[0.5, 2.25], [1.5, 2.25], [2.5, 2.25], [0.5, 3.25], [1.5, 3.25], [2.5, 3.25]]
    assert pixels.tolist() == expected


# ----------------------------------------------------------------------------------------------------------- pixel rays


def many_cameras(count: int, kind: CameraType = CameraType.PERSPECTIVE, distortion: torch.Tensor | None = None):
    """Cameras of different poses and off-centre, non-square intrinsics."""
    rng = generator(2)
    axes = torch.linalg.qr(torch.randn(count, 3, 3, generator=rng)).Q
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    c2w = torch.cat([axes, torch.randn(count, 3, 1, generator=rng)], dim=-1)
    low = torch.tensor([60.0, 70.0, 35.0, 20.0])
    k = low + torch.rand(count, 4, generator=rng) * 20
    return Cameras(
        c2w, *(k[:, i : i + 1].contiguous() for i in range(4)),
        width=torch.full((count, 1), 80), height=torch.full((count, 1), 60),
        distortion_params=distortion.expand(count, 6).clone() if distortion is not None else None, camera_type=kind,
    )  # fmt: skip


def random_pixels(count: int, cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    views = torch.randint(len(cameras), (count,), generator=generator(3))
    return views, torch.rand(count, 2, generator=generator(4)) * torch.tensor([80.0, 60.0])


@pytest.mark.parametrize("distortion", [None, torch.zeros(6)])
def test_pinhole_rays_are_nerfstudios(distortion) -> None:
    cameras = many_cameras(5, distortion=distortion)
    views, pixels = random_pixels(2000, cameras)
    origins, directions = pixel_rays(cameras, views, pixels)
    theirs = cameras.generate_rays(camera_indices=views[:, None], coords=pixels.flip(-1))
    torch.testing.assert_close(origins, theirs.origins, atol=1e-6, rtol=0)
    torch.testing.assert_close(directions, theirs.directions, atol=1e-6, rtol=0)


def test_distorted_rays_project_back_through_opencvs_polynomial() -> None:
    k1, k2, k3, p1, p2 = 0.08, -0.03, 0.01, 1.5e-3, -1e-3
    # nerfstudio's order is k1, k2, k3, k4, p1, p2.
    cameras = many_cameras(4, distortion=torch.tensor([k1, k2, k3, 0.0, p1, p2]))
    views, pixels = random_pixels(2000, cameras)
    origins, directions = pixel_rays(cameras, views, pixels)
    c2w = cameras.camera_to_worlds[views].double()
    local = torch.einsum("nji,nj->ni", c2w[:, :, :3], directions.double())
    x, y = local[:, 0] / -local[:, 2], local[:, 1] / local[:, 2]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    projected = torch.stack([u * cameras.fx[views, 0] + cameras.cx[views, 0],
                             v * cameras.fy[views, 0] + cameras.cy[views, 0]], dim=-1)  # fmt: skip
    assert (projected - pixels).abs().max() < 5e-3
    _, straight = pixel_rays(many_cameras(4), views, pixels)
    assert (straight - directions).abs().max() > 5e-3, "and the distortion matters here"
    torch.testing.assert_close(origins, cameras.camera_to_worlds[views][:, :, 3])


@pytest.mark.parametrize("kind", [CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_other_camera_types_go_through_nerfstudio(kind) -> None:
    cameras = many_cameras(1, kind)
    pixels = torch.rand(500, 2, generator=generator(4)) * torch.tensor([80.0, 60.0])
    views = torch.zeros(500, dtype=torch.int64)
    origins, directions = pixel_rays(cameras, views, pixels)
    theirs = cameras.generate_rays(camera_indices=views[:, None], coords=pixels.flip(-1))
    assert torch.equal(origins, theirs.origins)
    assert torch.equal(directions, theirs.directions)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(500))
    assert (directions - pixel_rays(many_cameras(1), views, pixels)[1]).abs().max() > 0.05


def test_equirectangular_rays_sweep_the_whole_sphere() -> None:
    view = camera(64, 32, focal=32.0, kind=CameraType.EQUIRECTANGULAR)
    pixels = image_pixels(64, range(32), (0.5, 0.5))
    _, directions = pixel_rays(view, torch.zeros(len(pixels), dtype=torch.int64), pixels)
    latitude = math.pi * (0.5 - pixels[:, 1] / 32)
    longitude = 2 * math.pi * (pixels[:, 0] / 64 - 0.5)  # 0 straight ahead, growing to the right
    expected = torch.stack([torch.sin(longitude) * torch.cos(latitude), torch.sin(latitude),
                            -torch.cos(longitude) * torch.cos(latitude)], dim=-1)  # fmt: skip
    torch.testing.assert_close(directions, expected, atol=1e-5, rtol=0)
