"""Camera conventions against the original's own numbers, against hand-made cases, and under scene normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core_ns.frames import (
    OPENGL_FROM_OPENCV,
    c2w_opengl_from_w2c_opencv,
    camera_directions,
    clip_matrix,
    homogeneous,
    project,
    rigid_from_w2c,
    transform_cameras,
    transform_points,
    w2c_opencv_from_c2w_opengl,
)

RNG = np.random.default_rng(7)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def random_pose(rng: np.random.Generator, reach: float = 5.0) -> np.ndarray:
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = random_rotation(rng), rng.uniform(-reach, reach, 3)
    return w2c


@pytest.fixture(scope="module")
def expected(shared_fixtures: Path) -> dict[str, np.ndarray]:
    with np.load(shared_fixtures / "xscale" / "cameras" / "expected.npz") as stored:
        return dict(stored)


def pixels_from_clip(clip: np.ndarray, points: np.ndarray, w2c: np.ndarray, width: int, height: int) -> np.ndarray:
    """World points through a clip matrix to pixels, row 0 at the top (the rasteriser's y grows with the row)."""
    camera_gl = homogeneous(w2c) @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    x, y, _, w = clip @ OPENGL_FROM_OPENCV @ camera_gl
    return np.stack([(x / w + 1) / 2 * width, (y / w + 1) / 2 * height], axis=-1)


def test_cameras_of_the_original_are_read_alike(expected: dict[str, np.ndarray], shared_fixtures: Path) -> None:
    from dataparsers.mvsnet import read_cam

    for index, name in enumerate(expected["names"]):
        camera = read_cam(shared_fixtures / "xscale" / "cameras" / f"{name}_cam.txt")
        np.testing.assert_allclose(camera.w2c, expected["w2c"][index], atol=1e-12)
        np.testing.assert_array_equal(camera.intrinsics, expected["K"][index])
        centre = c2w_opengl_from_w2c_opencv(camera.w2c)[:3, 3]
        np.testing.assert_allclose(centre, expected["upstream_campos"][index], atol=1e-6)


def test_project_matches_the_fixture(expected: dict[str, np.ndarray]) -> None:
    for index in range(len(expected["names"])):
        pixels, depth = project(expected["points"], expected["K"][index], expected["w2c"][index])
        np.testing.assert_allclose(pixels, expected["correct_pixels_xy_depth"][index, :, :2], rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(depth, expected["correct_pixels_xy_depth"][index, :, 2], atol=1e-10)


def test_clip_matrix_matches_the_fixture_and_not_the_original(expected: dict[str, np.ndarray]) -> None:
    differs = []
    for index in range(len(expected["names"])):
        height, width = (int(size) for size in expected["sizes_hw"][index])
        intrinsics, w2c = expected["K"][index], expected["w2c"][index]
        clip = clip_matrix(intrinsics, width, height, 0.001, 1000.0)
        mvp = clip @ OPENGL_FROM_OPENCV @ w2c
        np.testing.assert_allclose(mvp, expected["correct_mvp"][index], atol=1e-9)
        pixels = pixels_from_clip(clip, expected["points"], w2c, width, height)
        correct = expected["correct_pixels_xy_depth"][index, :, :2]
        np.testing.assert_allclose(pixels, correct, rtol=1e-9, atol=1e-8)
        differs.append(float(np.median(np.linalg.norm(pixels - expected["upstream_pixels_xy"][index], axis=1))))
    # README of the fixture: the first camera is symmetric, the others have cx, cy or fx that the original drops.
    assert differs[0] < 1e-3
    assert min(differs[1:]) > 0.5
    assert max(differs) > 10


@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_clip_matrix_agrees_with_project_for_a_full_k(skew: float) -> None:
    intrinsics = np.array([[700.0, skew, 335.0], [0, 660.0, 255.0], [0, 0, 1]])
    w2c = random_pose(RNG)
    points_camera = np.concatenate([RNG.uniform(-1, 1, (50, 2)), RNG.uniform(2, 9, (50, 1))], axis=1)
    points = (points_camera - w2c[:3, 3]) @ w2c[:3, :3]
    clip = clip_matrix(intrinsics, 640, 480, 0.1, 100.0)
    pixels, depth = project(points, intrinsics, w2c)
    np.testing.assert_allclose(pixels_from_clip(clip, points, w2c, 640, 480), pixels, atol=1e-8)
    np.testing.assert_allclose(depth, points_camera[:, 2], atol=1e-10)
    symmetric = intrinsics.copy()
    symmetric[0, 2], symmetric[1, 2] = 320, 240
    off = pixels - pixels_from_clip(clip_matrix(symmetric, 640, 480, 0.1, 100.0), points, w2c, 640, 480)
    np.testing.assert_allclose(off, np.broadcast_to([15.0, 15.0], off.shape), atol=1e-8)


def test_clip_matrix_maps_near_and_far_to_the_unit_range() -> None:
    clip = clip_matrix(np.array([[700.0, 0, 320], [0, 700.0, 240], [0, 0, 1]]), 640, 480, 0.5, 20.0)
    for depth, expected_z in ((0.5, -1.0), (20.0, 1.0)):
        _, _, z, w = clip @ [0, 0, -depth, 1]
        assert z / w == pytest.approx(expected_z)


def test_known_camera_by_hand() -> None:
    # OpenCV camera at (0, 0, -5) looking along world +z, image y along world +y.
    w2c = np.eye(4)
    w2c[2, 3] = 5
    c2w = c2w_opengl_from_w2c_opencv(w2c)
    np.testing.assert_array_equal(c2w[:3, 3], [0, 0, -5])
    np.testing.assert_array_equal(-c2w[:3, 2], [0, 0, 1])  # looks along -z of OpenGL
    np.testing.assert_array_equal(c2w[:3, 1], [0, -1, 0])  # its up is against image y
    np.testing.assert_array_equal(c2w[:3, 0], [1, 0, 0])


def test_conversion_is_the_inverse_times_f_and_undoes_itself() -> None:
    w2c = np.stack([random_pose(RNG, 1e6) for _ in range(20)])
    c2w = c2w_opengl_from_w2c_opencv(w2c)
    reference = np.linalg.inv(w2c) @ OPENGL_FROM_OPENCV
    np.testing.assert_allclose(c2w[:, :3, :3], reference[:, :3, :3], atol=1e-12)
    np.testing.assert_allclose(c2w[:, :3, 3], reference[:, :3, 3], rtol=1e-12, atol=1e-8)
    np.testing.assert_allclose(w2c_opencv_from_c2w_opengl(c2w), w2c, rtol=0, atol=1e-8)
    np.testing.assert_allclose(w2c_opencv_from_c2w_opengl(c2w[:, :3]), w2c, rtol=0, atol=1e-8)
    assert np.linalg.det(c2w[:, :3, :3]) == pytest.approx(np.ones(20))


def test_homogeneous_shapes() -> None:
    np.testing.assert_array_equal(homogeneous(np.eye(4)[:3]), np.eye(4))
    assert homogeneous(np.zeros((5, 3, 4))).shape == (5, 4, 4)
    with pytest.raises(ValueError, match="3x4 or 4x4"):
        homogeneous(np.eye(3))


def test_directions_project_back_to_their_pixels() -> None:
    intrinsics = np.array([[700.0, 4.0, 335.0], [0, 660.0, 255.0], [0, 0, 1]])
    w2c = random_pose(RNG)
    c2w = c2w_opengl_from_w2c_opencv(w2c)
    pixels = RNG.uniform(0, 600, (100, 2))
    points = c2w[:3, 3] + RNG.uniform(1, 50, (100, 1)) * (camera_directions(pixels, intrinsics) @ c2w[:3, :3].T)
    back, depth = project(points, intrinsics, w2c)
    np.testing.assert_allclose(back, pixels, atol=1e-9)
    assert (depth > 0).all()


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 1.0, 3.7, 1e4])
def test_rigid_removes_a_scale_and_keeps_the_centre(sigma: float) -> None:
    w2c = random_pose(RNG)
    scaled = w2c.copy()
    scaled[:3] *= sigma
    np.testing.assert_allclose(rigid_from_w2c(scaled), w2c, atol=1e-9)


def test_rigid_repairs_small_defects_about_the_centre() -> None:
    w2c = random_pose(RNG)
    bent = w2c.copy()
    bent[:3, :3] += RNG.uniform(-1e-4, 1e-4, (3, 3))
    rigid = rigid_from_w2c(bent)
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rigid[:3, :3]) == pytest.approx(1.0)
    np.testing.assert_allclose(rigid[:3, :3], w2c[:3, :3], atol=5e-4)
    centre, before = -rigid[:3, :3].T @ rigid[:3, 3], -bent[:3, :3].T @ bent[:3, 3]
    np.testing.assert_allclose(centre, before, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m * np.diag([1, 1, -1, 1]), "mirrors"),
        (lambda m: m @ np.diag([1, 1, -1, 1]), "mirrors"),
        (lambda m: m @ np.diag([1, 1, 2, 1]), "not orthonormal"),
        (lambda m: m @ np.diag([1, 1, 0, 1]), "singular|mirrors"),
        (lambda m: m * np.nan, "NaN"),
        (lambda m: m + np.diag([0, 0, 0, 1]), "last row"),
    ],
    ids=["mirror", "mirror right", "stretch", "flat", "nan", "last row"],
)
def test_rigid_refuses(change, message: str) -> None:
    w2c = np.eye(4) if message == "mirrors" else random_pose(RNG)
    with pytest.raises(ValueError, match=message):
        rigid_from_w2c(change(w2c))


def similarity() -> tuple[np.ndarray, float]:
    return np.concatenate([random_rotation(RNG), RNG.uniform(-9, 9, (3, 1))], axis=1), float(RNG.uniform(0.01, 20))


def test_a8_normalisation_keeps_every_projection() -> None:
    intrinsics = np.array([[700.0, 2.0, 335.0], [0, 660.0, 255.0], [0, 0, 1]])
    for _ in range(10):
        transform, scale = similarity()
        w2c = random_pose(RNG)
        points = RNG.uniform(-3, 3, (40, 3))
        moved_w2c = w2c_opencv_from_c2w_opengl(
            transform_cameras(c2w_opengl_from_w2c_opencv(w2c)[None], transform, scale)
        )[0]
        before, depth = project(points, intrinsics, w2c)
        after, moved_depth = project(transform_points(points, transform, scale), intrinsics, moved_w2c)
        np.testing.assert_allclose(after, before, rtol=1e-8, atol=1e-7)
        np.testing.assert_allclose(moved_depth, scale * depth, atol=1e-9)


def first_hits(origins: np.ndarray, directions: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ray against every triangle, float64 (Moeller and Trumbore): nearest face (-1: none) and distance."""
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(directions[:, None], edge2[None])
    determinant = (p * edge1).sum(-1)
    s = origins[:, None] - corners[None, :, 0]
    u = (s * p).sum(-1) / determinant
    q = np.cross(s, edge1[None])
    v = (q * directions[:, None]).sum(-1) / determinant
    t = (q * edge2).sum(-1) / determinant
    t = np.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, np.inf)
    face = t.argmin(axis=1)
    nearest = t.min(axis=1)
    return np.where(np.isfinite(nearest), face, -1), nearest


def test_a8_the_same_pixels_hit_the_same_faces() -> None:
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = np.asarray(sphere.vertices), np.asarray(sphere.faces)
    transform, scale = similarity()
    w2c = random_pose(RNG, 0.2)
    w2c[2, 3] = 4.0
    c2w = c2w_opengl_from_w2c_opencv(w2c)
    intrinsics = np.array([[40.0, 0, 17.0], [0, 42.0, 15.0], [0, 0, 1]])
    columns, rows = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
    local = camera_directions(np.stack([columns.ravel(), rows.ravel()], axis=-1), intrinsics)
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    results = []
    for pose, points in (
        (c2w, vertices),
        (transform_cameras(c2w[None], transform, scale)[0], transform_points(vertices, transform, scale)),
    ):
        origins = np.broadcast_to(pose[:3, 3], local.shape)
        results.append(first_hits(origins, local @ pose[:3, :3].T, points[faces]))
    (face, distance), (moved_face, moved_distance) = results
    assert 0.1 < (face >= 0).mean() < 0.9
    assert (face == moved_face).mean() >= 0.999
    both = (face >= 0) & (face == moved_face)
    np.testing.assert_allclose(moved_distance[both], scale * distance[both], rtol=1e-9)
