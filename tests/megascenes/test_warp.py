"""Warps of every backend: spec megascenes 11.4, the original's own pictures, brute force, and one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion
from warp_scenes import (
    BACKENDS,
    CHECK_K,
    SIZE,
    OriginalPictures,
    check_pose,
    draw,
    plane_view,
    random_pose,
    relief,
    smooth_colour,
)

from megascenes_ns.mesh import DepthMesh
from megascenes_ns.warp import RenderOptions, render, render_many, sample_offsets, warp_bytes, warp_low


@pytest.fixture(scope="module")
def made(shared_fixtures) -> OriginalPictures:
    return OriginalPictures(shared_fixtures)


@pytest.fixture(scope="module")
def demo_mesh(made) -> DepthMesh:
    return DepthMesh.from_depth(made.depth, made["demo_K"], made.image)


# ---------------------------------------------------------------------- check 4


@pytest.mark.parametrize("spp", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plane_is_warped_by_its_homography(backend, spp):
    view = plane_view(CHECK_K, check_pose())
    warp = draw(backend, view.mesh, CHECK_K, check_pose(), SIZE, SIZE, spp)
    interior = view.inside > 1.5
    assert interior.mean() > 0.4
    assert (warp.coverage[interior] == 1).all()
    assert np.abs(warp.rgb - view.colour)[interior].mean() < 1e-3
    assert (np.abs(warp.depth - view.depth) / view.depth)[interior].max() < 1e-4
    inside = view.inside >= 0
    hit = warp.coverage > 0
    assert not (hit & ~binary_dilation(inside, np.ones((3, 3)))).any()
    assert not (~hit & binary_erosion(inside, np.ones((3, 3)), border_value=1)).any()


@pytest.mark.parametrize("spp", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_sees_its_own_photo(backend, spp):
    v, u = np.mgrid[0:60, 0:80]
    depth = 2 + 0.3 * np.sin(u / 9.0) + 0.2 * np.cos(v / 7.0)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    K = np.array([[70.0, 0, 40], [0, 70.0, 30], [0, 0, 1]])
    warp = draw(backend, DepthMesh.from_depth(depth, K, image), K, np.eye(4), 60, 80, spp)
    inner = (slice(1, -1), slice(1, -1))
    assert (warp.coverage[inner] == 1).all()
    # Noise from pixel to pixel: with colours taken at the pixel's centre not even that is blurred.
    assert np.abs(warp_bytes(warp.rgb)[inner].astype(int) - image[inner]).max() <= 1
    np.testing.assert_allclose(warp.depth[inner], depth[inner], rtol=2e-3 if spp == 4 else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plane_from_behind_is_empty(backend, made):
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    mesh = DepthMesh.from_depth(np.full((48, 64), 2.0), K, np.full((48, 64, 3), 200, np.uint8))
    assert draw(backend, mesh, K, made["behind_c2w"], 48, 64).coverage.max() == 0 == made["behind_rgb_max"]
    assert (draw(backend, mesh, K, np.eye(4), 48, 64).coverage > 0).mean() == made["behind_front_coverage"]


# ---------------------------------------------------------------------- the original's pictures


@pytest.mark.parametrize("backend", ["cast embree", "torch"])
def test_the_demo_frames_of_the_original(backend, made, demo_mesh):
    height, width = made.depth.shape
    for pose, expected, small in zip(made["demo_c2w"], made["demo_rgb_u8"], made["demo_warp32_u8"], strict=True):
        warp = draw(backend, demo_mesh, made["demo_K"], pose, height, width)
        difference = np.abs(warp_bytes(warp.rgb).astype(int) - expected)
        assert difference[warp.coverage == 1].mean() < 1.2  # the README allows 2
        assert difference.mean() < 1.0
        assert ((warp.coverage > 0) == (expected > 0).any(axis=2)).mean() >= 0.99  # 0.98
        assert np.abs(warp_low(warp) * 255 - small).mean() < 0.3
        np.testing.assert_allclose(warp_low(expected) * 255, small, atol=1e-4)


@pytest.mark.parametrize("backend", ["cast embree", "torch"])
def test_the_training_style_of_the_original(backend, made):
    mesh = DepthMesh.from_depth(made.depth, made["train_K_ref"], made.image, c2w_opencv=made["train_c2w_ref"])
    width, height = (int(side) for side in made["train_target_wh"])
    warp = draw(backend, mesh, made["train_K_target"], made["train_c2w_target"], height, width, near=0.01, far=200.0)
    expected = made["train_rgb_u8"].astype(int)
    assert np.abs(warp_bytes(warp.rgb) - expected)[warp.coverage == 1].mean() < 1.2
    assert ((warp.coverage > 0) == (expected > 0).any(axis=2)).mean() >= 0.99


@pytest.mark.parametrize("backend", ["cast embree", "torch"])
def test_the_depths_of_the_original_are_those_of_its_first_sample(backend, made, demo_mesh):
    """OpenGL resolves depth to one sample: the first of the rotated grid, at (-1/8, -3/8) with y upwards."""
    height, width = made.depth.shape
    K = made["demo_K"].copy()
    K[0, 2] += 0.125
    K[1, 2] -= 0.375
    for pose, expected in zip(made["demo_c2w"], made["demo_depth_first2"], strict=False):
        warp = draw(backend, demo_mesh, K, pose, height, width, 1)
        both = (warp.depth > 0) & (expected > 0)
        assert np.median(np.abs(warp.depth - expected)[both] / expected[both]) < 2e-4
        assert ((warp.depth > 0) == (expected > 0)).mean() > 0.999


def test_colours_at_the_centre_are_nearer_to_the_original_than_at_the_samples(made, demo_mesh):
    height, width = made.depth.shape
    errors = {}
    for shading in ("centre", "sample"):
        warp = draw("cast embree", demo_mesh, made["demo_K"], made["demo_c2w"][1], height, width, shading=shading)
        full = warp.coverage == 1
        errors[shading] = np.abs(warp_bytes(warp.rgb).astype(int) - made["demo_rgb_u8"][1])[full].mean()
    assert errors["centre"] < 0.1 < 1.0 < errors["sample"]


# ---------------------------------------------------------------------- backends against one another


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([0.3, 1.5, 4.0]), st.sampled_from([1, 4]))
def test_backends_agree_with_brute_force(seed, reach, spp):
    """Also from within and behind the surface, where triangles reach behind the camera."""
    mesh, K = relief(24, 30, seed)
    pose = random_pose(np.random.default_rng(seed), reach, 1.0)
    exact = draw("cast torch", mesh, K, pose, 20, 26, spp)
    for backend in ("cast embree", "torch"):
        warp = draw(backend, mesh, K, pose, 20, 26, spp)
        # A sample on an edge between a near and a far triangle may fall to either.
        same = np.isclose(warp.coverage, exact.coverage) & np.isclose(warp.depth, exact.depth, rtol=1e-3)
        assert same.mean() > 0.99
        assert (np.abs(warp.rgb - exact.rgb).max(axis=2) > 0.02).mean() < 0.025


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100_000))
def test_near_and_far_cut_alike(seed):
    mesh, K = relief(20, 20, seed)
    pose = random_pose(np.random.default_rng(seed), 0.5)
    warps = [draw(name, mesh, K, pose, 24, 24, 1, near=1.4, far=2.6) for name in ("cast torch", "cast embree", "torch")]
    for warp in warps:
        seen = warp.depth[warp.coverage > 0]
        assert ((seen >= 1.4 - 1e-4) & (seen <= 2.6 + 1e-4)).all()
        assert (np.isclose(warp.depth, warps[0].depth, rtol=1e-3)).mean() > 0.99


def test_back_faces_do_not_hide_what_lies_behind_them():
    """A wall seen from behind stands before a wall seen from the front."""
    K = np.array([[20.0, 0, 8], [0, 20.0, 8], [0, 0, 1]])
    near = DepthMesh.from_depth(np.full((16, 16), 1.0), K, np.zeros((16, 16, 3)))
    far = DepthMesh.from_depth(np.full((16, 16), 3.0), K, np.ones((16, 16, 3)))
    both = DepthMesh(
        np.concatenate([near.vertices, far.vertices]), np.concatenate([near.colours, far.colours]),
        np.concatenate([near.faces[:, ::-1], far.faces + 256]).astype(np.int32), 32, 16, 900,
    )  # fmt: skip
    for backend in (*BACKENDS, "cast torch"):
        warp = draw(backend, both, K, np.eye(4), 16, 16)
        assert (warp.coverage[1:-1, 1:-1] == 1).all()
        assert (warp.rgb[1:-1, 1:-1] > 0.99).all()


@pytest.mark.parametrize("backend", ["cast", "torch"])
def test_cameras_rendered_together_are_rendered_alike(backend):
    mesh, K = relief(24, 30, 3)
    rng = np.random.default_rng(0)
    poses = np.stack([random_pose(rng, 0.4) for _ in range(5)])
    Ks = np.stack([K * [[1 + 0.1 * i], [1 + 0.1 * i], [1]] for i in range(5)])
    many = render_many(mesh, Ks, poses, 20, 26, backend=backend)
    for i in range(5):
        one = render(mesh, Ks[i], poses[i], 20, 26, backend=backend)
        for a, b in zip(one, (many.rgb[i], many.coverage[i], many.depth[i]), strict=True):
            np.testing.assert_array_equal(a, b)
    shared = render_many(mesh, Ks[:1], poses, 20, 26, backend=backend)
    np.testing.assert_array_equal(shared.rgb[0], many.rgb[0])


def test_the_rasteriser_does_not_care_how_many_cameras_or_candidates_it_takes_at_a_time(monkeypatch):
    from megascenes_ns import warp as module
    from megascenes_ns import warp_torch

    mesh, K = relief(24, 30, 4)
    rng = np.random.default_rng(1)
    poses = torch.from_numpy(np.stack([random_pose(rng, 0.6) for _ in range(4)]))
    Ks = torch.from_numpy(np.stack([K] * 4))
    settings = (20, 26, sample_offsets(4), "torch", torch.device("cpu"), RenderOptions())
    together = module._render(mesh, Ks, poses, *settings)
    monkeypatch.setitem(warp_torch.CANDIDATES, "cpu", 100)
    for i in range(4):
        alone = module._render(mesh, Ks[i : i + 1], poses[i : i + 1], *settings)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_rasteriser_gives_the_same_on_cuda():
    mesh, K = relief(64, 80, 5)
    poses = np.stack([random_pose(np.random.default_rng(2), 0.5) for _ in range(3)])
    here, there = (render_many(mesh, K[None], poses, 60, 70, backend="torch", device=d) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(there.coverage, here.coverage)
    np.testing.assert_allclose(there.rgb, here.rgb, atol=1e-5)


# ---------------------------------------------------------------------- samples, sizes, refusals


@pytest.mark.parametrize("spp", [1, 4, 9, 16])
def test_samples_are_spread_evenly(spp):
    offsets = sample_offsets(spp)
    assert offsets.shape == (spp, 2)
    assert offsets.abs().max() < 0.5
    torch.testing.assert_close(offsets.mean(dim=0), torch.zeros(2, dtype=torch.float64))
    if spp > 1:  # each of so many columns and rows holds as many as another
        assert len({round(x, 6) for x in offsets[:, 0].tolist()}) >= round(spp**0.5)


def test_four_samples_darken_the_border_of_a_hole():
    K = np.array([[30.0, 0, 16], [0, 30, 16], [0, 0, 1]])
    mesh = DepthMesh.from_depth(np.full((32, 32), 2.0), K, np.ones((32, 32, 3)))
    pose = np.eye(4)
    pose[0, 3] = 0.5 * 2 / 30 + 0.3  # the left border moves to x = -4.5: right border at 27
    warp = render(mesh, K, pose, 32, 32)
    partly = (warp.coverage > 0) & (warp.coverage < 1)
    assert partly.any()
    np.testing.assert_allclose(warp.rgb[..., 0], warp.coverage, atol=1e-6)
    assert set(np.unique(warp.coverage)) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_mesh_without_faces_and_no_cameras_are_empty():
    nothing = DepthMesh.from_depth(np.zeros((4, 4)), CHECK_K, np.zeros((4, 4, 3)))
    for backend in ("cast", "torch"):
        assert render(nothing, CHECK_K, np.eye(4), 8, 9, backend=backend).coverage.max() == 0
        assert render_many(nothing, CHECK_K[None], np.zeros((0, 4, 4)), 8, 9, backend=backend).rgb.shape == (0, 8, 9, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"spp": 3}, {"spp": 0}, {"backend": "gl"}, {"height": 0}, {"c2w_opencv": np.full((4, 4), np.nan)},
        {"c2w_opencv": np.diag([2.0, 2, 2, 1])}, {"c2w_opencv": np.eye(3)}, {"K": -CHECK_K}, {"K": np.eye(4)},
    ],
)  # fmt: skip
def test_no_camera_no_picture(change):
    mesh, K = relief(8, 8, 0)
    given = {"mesh": mesh, "K": K, "c2w_opencv": np.eye(4), "height": 8, "width": 8} | change
    with pytest.raises(ValueError, match=r"expected|samples|backend|render|rigid|intrinsics"):
        render(**given)


# ---------------------------------------------------------------------- at the latents' size


def test_the_small_warp_is_resized_by_itself_or_averaged():
    v, u = np.mgrid[0:171, 0:256]
    picture = np.rint(smooth_colour(u, v) * 255).astype(np.uint8)
    averaged = warp_low(picture, mode="area_from_256")
    # 171 rows begin at row 42: cell 5 holds two white rows and six of the picture.
    block = np.concatenate([np.full((2, 8, 3), 255, np.uint8), picture[:6, 8:16]])
    np.testing.assert_allclose(averaged[5, 1], block.mean(axis=(0, 1)) / 255, atol=1e-6)
    original = warp_low(picture)
    assert original.shape == averaged.shape == (32, 32, 3)
    assert original.dtype == averaged.dtype == np.float32
    assert np.abs(original - averaged)[8:24].mean() < 0.05
    assert (original[:5] == 1).all()
    assert (original[-5:] == 1).all()
    assert warp_low(np.zeros((48, 64, 3), np.uint8), 8, "area_from_256").shape == (8, 8, 3)


def test_the_small_warp_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="unknown mode"):
        warp_low(np.zeros((8, 8, 3), np.uint8), 4, "nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cells"):
        warp_low(np.zeros((8, 9, 3), np.uint8), 4, "area_from_256")
