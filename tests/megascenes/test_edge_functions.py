"""Edge functions against rays that are intersected with each triangle's plane, also behind the camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from warp_scenes import random_pose, relief

from megascenes_ns.edge_functions import evaluate, pinhole_rays, see_faces, shade
from megascenes_ns.warp import sample_offsets
from megascenes_ns.warp_torch import rasterise

K = torch.tensor([[[20.0, 0.3, 8.0], [0, 18.0, 6.0], [0, 0, 1]]], dtype=torch.float64)


def triangle(seed: int) -> torch.Tensor:
    """Three corners about the camera's axis, some behind the camera."""
    points = np.random.default_rng(seed).normal(size=(3, 3)) * [1, 1, 1.5] + [0, 0, 1.5]
    return torch.tensor(points, dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.floats(0, 16), st.floats(0, 12))
def test_weights_and_depth_are_those_of_the_plane(seed, u, v):
    corners = triangle(seed).double()
    seen = see_faces(triangle(seed), torch.tensor([[0, 1, 2]]), K, torch.eye(4, dtype=torch.float64)[None])
    if abs(float(seen.volume)) < 1e-3:
        return
    point = torch.tensor([[u, v]], dtype=torch.float64)
    ray = pinhole_rays(K, point)[0, 0]
    # ray * z = sum of weights * corners, the weights' sum being 1
    scaled = np.linalg.solve(corners.T.numpy(), ray.numpy())
    values = evaluate(seen.edges.reshape(9, 1), point[:, 0], point[:, 1])[:, 0]
    total = float(values.sum())
    if abs(total / float(seen.volume)) < 1e-3:  # nearly parallel
        return
    np.testing.assert_allclose(values / total, scaled / scaled.sum(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(float(seen.volume) / total, 1 / scaled.sum(), rtol=1e-6, atol=1e-6)


def test_the_front_has_positive_volume_and_edges_inside():
    corners = torch.tensor([[-1.0, -1, 2], [-1, 1, 2], [1, 1, 2]])  # as `DepthMesh` turns them
    seen = see_faces(corners, torch.tensor([[0, 1, 2], [0, 2, 1]]), K, torch.eye(4, dtype=torch.float64)[None])
    assert seen.volume[0] > 0 > seen.volume[1]
    u, v = torch.tensor([5.0], dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)
    assert (evaluate(seen.edges[..., :1].reshape(9, 1), u, v) > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.floats(-5, 21), st.floats(-5, 17))
def test_neighbours_leave_no_gap(seed, u, v):
    """The function of a common edge has opposite signs, or is zero in both."""
    points = torch.tensor(np.random.default_rng(seed).normal((0, 0, 3), 1.0, (4, 3)), dtype=torch.float32)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    seen = see_faces(points, faces, K, torch.eye(4, dtype=torch.float64)[None])
    both = torch.tensor([[u], [v]], dtype=torch.float64).expand(2, 2)
    values = evaluate(seen.edges.reshape(9, 2), both[0], both[1])
    assert float(values[1, 0]) == -float(values[2, 1])


@pytest.mark.parametrize("shading", ["centre", "sample"])
def test_shading_is_a_mean_of_plane_colours(shading):
    """One triangle, two of four samples on it: half the coverage, colours of the centre or of the samples."""
    corners = torch.tensor([[-4.0, -4, 2], [-4, 4, 2], [4, 4, 2]])
    colours = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 1.0]])
    faces = torch.tensor([[0, 1, 2]])
    seen = see_faces(corners, faces, K, torch.eye(4, dtype=torch.float64)[None])
    offsets = torch.tensor([[-0.25, 0.0], [0.25, 0.25], [0, 0], [0, 0]], dtype=torch.float64)
    visible = torch.tensor([0, 0, -1, -1]).reshape(1, 4, 1)
    rgb, coverage, depth = shade(seen, faces, colours, visible, offsets, 1, shading)
    places = offsets[:2] if shading == "sample" else torch.zeros(2, 2, dtype=torch.float64)
    points = pinhole_rays(K, 0.5 + places)[0] * 2
    weights = [np.linalg.solve(corners.T.double().numpy(), point) for point in points.numpy()]
    expected = np.mean([w @ colours.numpy() for w in weights], axis=0) / 2
    np.testing.assert_allclose(rgb[0, 0], expected, atol=1e-6)
    assert float(coverage) == 0.5
    assert float(depth) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("shading", ["centre", "sample"])
def test_triangles_seen_by_several_samples_are_joined_without_a_trace(shading):
    """Every sample shaded by itself, then averaged: spec megascenes 3.3, the slow way."""
    mesh, intrinsics = relief(20, 26, 8)
    Ks = torch.from_numpy(np.stack([intrinsics, intrinsics * [[1.3], [1.3], [1]]]))
    poses = torch.from_numpy(np.stack([random_pose(np.random.default_rng(k), 0.5) for k in range(2)]))
    vertices, faces, colours = (torch.from_numpy(x) for x in (mesh.vertices, mesh.faces, mesh.colours))
    seen, offsets = see_faces(vertices, faces, Ks, poses), sample_offsets(4)
    visible = rasterise(seen, 2, offsets, 24, 30, 1e-3, 1e9)
    rgb, coverage, depth = shade(seen, faces, colours, visible, offsets, 30, shading)
    alone = [
        shade(seen, faces, colours, visible[:, s : s + 1], offsets[s : s + 1], 30, shading) for s in range(4)
    ]  # fmt: skip
    slow_rgb, slow_coverage = (torch.stack([each[k] for each in alone]).mean(dim=0) for k in range(2))
    inverse = sum(torch.where(each[2] > 0, 1 / each[2].double(), 0.0) for each in alone)
    torch.testing.assert_close(rgb, slow_rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(coverage, slow_coverage)
    slow_depth = torch.where(slow_coverage > 0, 4 * slow_coverage / inverse, 0.0).float()
    torch.testing.assert_close(depth, slow_depth, atol=1e-6, rtol=1e-5)
    assert 0 < (coverage == 1).float().mean() < 1
