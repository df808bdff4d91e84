"""Planes through noisy points: the walls of a box are found whatever else there is."""

from __future__ import annotations

import numpy as np

from r4dv_ns.background_planes import fitted, main_planes, near_plane


def on_plane(rng: np.random.Generator, normal, offset: float, count: int, noise: float = 0.01) -> np.ndarray:
    """Points of a square of side 4 of a plane."""
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    across = np.linalg.svd(normal[None])[2][1:]
    return offset * normal + (4 * rng.random((count, 2)) - 2) @ across + noise * rng.normal(size=(count, 3))


def agrees(plane: np.ndarray, normal, offset: float) -> bool:
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    sign = np.sign(plane[:3] @ normal)
    return bool(np.abs(sign * plane - [*normal, offset]).max() < 0.02)


def test_planes_are_found_largest_first_among_points_that_lie_anywhere():
    rng = np.random.default_rng(0)
    meant = [((1, 0, 0.1), 2.0, 3000), ((0, 1, 0), -1.5, 1500), ((0.3, -0.2, 1), 0.5, 700)]
    cloud = np.concatenate([*(on_plane(rng, *each) for each in meant), rng.uniform(-3, 3, (800, 3))])
    slack = np.full(len(cloud), 0.03)
    planes = main_planes(cloud, slack, share=0.03)
    assert len(planes) == 3
    np.testing.assert_allclose(np.linalg.norm(planes[:, :3], axis=1), 1)
    assert all(agrees(plane, normal, offset) for plane, (normal, offset, _) in zip(planes, meant, strict=True))
    np.testing.assert_array_equal(planes, main_planes(cloud, slack, share=0.03))
    assert len(main_planes(cloud, slack, most=1)) == 1


def test_many_points_are_thinned_and_far_ones_may_lie_farther_off():
    rng = np.random.default_rng(1)
    near, far = on_plane(rng, (0, 0, 1), 1.0, 9000), on_plane(rng, (1, 0, 0), 20.0, 9000, noise=0.2)
    slack = np.repeat([0.03, 0.6], 9000)
    planes = main_planes(np.concatenate([near, far]), slack, share=0.1)
    assert len(planes) == 2
    for points, own, offset in ((near, 0.03, 1.0), (far, 0.6, 20.0)):
        best = max(planes, key=lambda plane: near_plane(points, np.full(9000, own), plane).sum())
        assert abs(abs(best[3]) - offset) < 0.01 * offset


def test_no_plane_where_there_is_none():
    rng = np.random.default_rng(2)
    assert main_planes(rng.normal(size=(3000, 3)), np.full(3000, 1e-3), share=0.02).shape == (0, 4)
    assert main_planes(np.zeros((0, 3)), np.zeros(0)).shape == (0, 4)
    assert main_planes(np.zeros((50, 3)), np.full(50, 0.1)).shape == (0, 4), "one place is no plane"


def test_the_fit_is_the_weighted_least_squares_one():
    rng = np.random.default_rng(3)
    points = on_plane(rng, (1, 2, 3), 0.7, 300)
    weights = np.ones(300)
    points, weights = np.concatenate([points, [[50.0, 0, 0]]]), np.append(weights, 1e-6)
    plane = fitted(points, weights)
    assert agrees(plane, (1, 2, 3), 0.7)
    distances = np.square(weights * (points @ plane[:3] - plane[3])).sum()
    for shift in 1e-3 * np.eye(4):
        other = plane + shift
        other /= np.linalg.norm(other[:3])
        assert np.square(weights * (points @ other[:3] - other[3])).sum() > distances
