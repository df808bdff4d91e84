"""Which pixels are drawn, what colour they have and which rays go through them: each against a slow twin."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posed_photos import NOISE, SIZES, WHITE, make_cameras, ring
from scipy.stats import chi2

from diver_ns.grid import Grid
from diver_ns.photos import Photos, boxes, composite, reduce_mask
from diver_ns.pixel_choice import PixelMasks, ViewRays, meets_cube, seeded, stage_points

pytestmark = pytest.mark.filterwarnings(NOISE)


# -------------------------------------------------------------------------------------------------------- pixel masks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.02, 0.5, 1.0])), min_size=1, max_size=6))
def test_ranks_list_the_kept_pixels_in_order(views: list[tuple[int, float]]) -> None:
    rng = np.random.default_rng(len(views))
    masks = [torch.from_numpy(rng.random(count) < share) for count, share in views]
    packed = PixelMasks.of(iter(masks))
    expected = [(view, int(pixel)) for view, mask in enumerate(masks) for pixel in mask.nonzero()[:, 0]]
    assert packed.kept == len(expected)
    assert packed.kept_share == pytest.approx(len(expected) / sum(len(mask) for mask in masks))
    found = packed.select(torch.arange(packed.kept))
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
    for view, mask in enumerate(masks):
        assert torch.equal(packed.view(view), mask)


def test_each_kept_pixel_is_equally_likely() -> None:
    """Chi-square over 1,200 kept pixels in views of very different kept shares, and over the views."""
    rng = np.random.default_rng(1)
    shares = (0.01, 0.9, 0.0, 0.3, 0.05)
    packed = PixelMasks.of(torch.from_numpy(rng.random((31, 33)) < share) for share in shares)
    draws = 400_000
    view, pixel = packed.draw(draws, seeded(3))
    counts = np.bincount(view.numpy() * 31 * 33 + pixel.numpy(), minlength=len(shares) * 31 * 33)
    kept = torch.cat([packed.view(index) for index in range(len(packed))]).numpy()
    assert counts[~kept].sum() == 0
    expected = draws / packed.kept
    assert expected > 100
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    low, high = chi2.ppf([1e-4, 1 - 1e-4], packed.kept - 1)
    assert low < statistic < high


def test_masks_meet_and_refuse_strangers() -> None:
    rng = np.random.default_rng(2)
    one, other = ([torch.from_numpy(rng.random((13, 17)) < 0.5) for _ in range(3)] for _ in range(2))
    both = PixelMasks.of(one).intersect(PixelMasks.of(other))
    for view in range(3):
        assert torch.equal(both.view(view), (one[view] & other[view]).reshape(-1))
    assert both.kept == sum(int((a & b).sum()) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="masks of other photos"):
        both.intersect(PixelMasks.full([221, 221, 222]))
    empty = both.intersect(PixelMasks.of(torch.zeros(221, dtype=torch.bool) for _ in range(3)))
    with pytest.raises(ValueError, match="no pixel is kept"):
        empty.draw(1, seeded(0))


def test_masks_take_two_bits_per_pixel() -> None:
    masks = PixelMasks.full([250_000] * 4)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (masks.bits, masks.prefix, masks.starts))
    assert size * 8 < 2.01 * 1_000_000
    assert masks.kept_share == 1.0


# ----------------------------------------------------------------------------------------------------- reduced photos


def test_reduced_photos_average_premultiplied_colours() -> None:
    """Oracle: a loop over boxes in float64. Straight-alpha averaging would leave dark fringes (spec diver 4.1)."""
    rng = np.random.default_rng(3)
    photos = Photos([(21, 18), (8, 8)], channels=4)
    pictures = [rng.integers(0, 256, (18, 21, 4), dtype=np.uint8), np.zeros((8, 8, 4), dtype=np.uint8)]
    pictures[1][:, ::2] = 255  # white stripes between fully transparent black ones
    for view, picture in enumerate(pictures):
        photos.put(view, torch.from_numpy(picture))
    background = torch.tensor([1.0, 0.5, 0.0])
    for view, (width, height) in enumerate([(5, 4), (2, 2)]):
        straight = pictures[view].astype(np.float64) / 255
        expected = np.empty((height, width, 3))
        for row in range(height):
            for column in range(width):
                box = straight[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(16, 4)
                cover = box[:, 3].mean()
                expected[row, column] = (box[:, :3] * box[:, 3:]).mean(axis=0) + background.numpy() * (1 - cover)
        pixels = torch.arange(width * height)
        found = photos.colours(torch.full_like(pixels, view), pixels, background, reduced=True)
        np.testing.assert_allclose(found.numpy(), expected.reshape(-1, 3), atol=1e-6)
    white = photos.colours(torch.ones(4, dtype=torch.int64), torch.arange(4), WHITE, reduced=False)
    assert torch.equal(white, torch.ones(4, 3))


def test_a_reduced_pixel_needs_its_whole_box() -> None:
    mask = torch.ones(9, 12, dtype=torch.bool)
    mask[5, 2] = False
    mask[8, :] = False  # beyond the last whole box
    assert reduce_mask(mask).tolist() == [[True, True, True], [False, True, True]]
    assert boxes(torch.arange(64.0).reshape(8, 8))[0, :, 0].tolist() == [
        [8 * r + c for c in range(4)] for r in range(4)
    ]


def test_photos_without_alpha_join_those_with_it() -> None:
    photos = Photos([(4, 4), (4, 4)], channels=4)
    photos.put(0, torch.full((4, 4, 3), 51, dtype=torch.uint8))
    photos.put(1, torch.zeros(4, 4, 4, dtype=torch.uint8))
    colours = photos.colours(torch.tensor([0, 1]), torch.tensor([7, 7]), WHITE, reduced=False)
    torch.testing.assert_close(colours, torch.tensor([[0.2] * 3, [1.0] * 3]))
    assert torch.equal(composite(torch.full((2, 3), 51, dtype=torch.uint8), WHITE), torch.full((2, 3), 51 / 255))


# --------------------------------------------------------------------------------------------------------------- rays


@pytest.mark.parametrize("distortion", [None, torch.tensor([0.1, -0.02, 0.0, 0.0, 0.003, -0.002])])
def test_rays_are_nerfstudios(distortion: torch.Tensor | None) -> None:
    extra = {"distortion_params": distortion.expand(6, 6).clone()} if distortion is not None else {}
    cameras = make_cameras(ring(6), **extra)
    rays = ViewRays(cameras, "cpu")
    assert rays.plain == (distortion is None)
    views, points = torch.arange(6).repeat(50), torch.rand(300, 2, generator=seeded(1)) * 16
    expected = cameras.generate_rays(camera_indices=views[:, None], coords=points.flip(-1))
    origins, directions = rays(views, points)
    torch.testing.assert_close(origins, expected.origins)
    torch.testing.assert_close(directions, expected.directions, atol=1e-6, rtol=0)


def test_reduced_rays_are_those_of_intrinsics_divided_by_four() -> None:
    cameras = make_cameras(ring(6)[:2], SIZES[1:3])
    small = copy.deepcopy(cameras)
    small.rescale_output_resolution(0.25)
    for view, (width, height) in enumerate([(6, 4), (5, 4)]):
        pixels = torch.arange(width * height)
        cells, points = stage_points(pixels, width, reduced=True)
        index = torch.full_like(pixels, view)
        _, found = ViewRays(cameras, "cpu")(index, points)
        _, expected = ViewRays(small, "cpu")(index, cells.float() + 0.5)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert cells[-1].tolist() == [width - 1, height - 1]


def test_the_cube_is_met_where_a_walk_along_the_ray_finds_it() -> None:
    """Oracle: 500 points per unit along each ray in float64; rays that graze an edge within the step are left out."""
    generator = seeded(7)
    grid = Grid(16, 2.0, (0.3, -0.2, 0.1))
    origins = torch.randn(3000, 3, generator=generator) * 1.5
    directions = torch.nn.functional.normalize(torch.randn(3000, 3, generator=generator), dim=-1)
    directions[:600, 0] = 0.0
    directions[300:900, 2] = -0.0
    directions = torch.nn.functional.normalize(directions, dim=-1)
    low = torch.tensor(grid.center, dtype=torch.float64) - 1.0
    for limits, end in (((0.0, float("inf")), 12.0), ((0.5, 4.0), 4.0)):
        times = torch.linspace(limits[0], end, int((end - limits[0]) * 500) + 1, dtype=torch.float64)
        depth = torch.full((3000,), -np.inf, dtype=torch.float64)
        for start in range(0, len(times), 500):
            points = origins[:, None].double() + directions[:, None].double() * times[None, start : start + 500, None]
            # How deep inside the cube: the least distance to a face.
            margin = torch.minimum(points - low, low + 2.0 - points).amin(dim=-1).amax(dim=-1)
            depth = torch.maximum(depth, margin)
        clear = depth.abs() > 5e-3
        found = meets_cube(origins, directions, grid, *limits)
        assert torch.equal(found[clear], depth[clear] > 0)
        assert 300 < int(found.sum()) < 2700
        assert clear.float().mean() > 0.98


def test_axis_parallel_rays_meet_the_cube_from_outside_inside_and_never_backwards() -> None:
    grid = Grid(4, 2.0)
    origins = torch.tensor([[-5.0, 0.5, 0.5], [-5.0, 1.5, 0.5], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.5]])
    directions = torch.tensor([1.0, 0.0, -0.0]).expand(5, 3)
    assert meets_cube(origins, directions, grid).tolist() == [True, False, True, False, False]
    assert not meets_cube(origins[:1], directions[:1], grid, far=3.9)
    assert meets_cube(origins[:1], directions[:1], grid, far=4.1)
    assert not meets_cube(origins[:1], directions[:1], grid, near=6.1)
