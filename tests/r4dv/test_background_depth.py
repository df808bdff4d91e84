"""Depth maps of an analytic room: back-projection, confirmation by other cameras, outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core_ns.demo_scenes import look_at
from dataparsers.moving_room import strike
from r4dv_ns.background_depth import DepthView, confirmations, contradictions, evenly, lonely, neighbours, outside


def camera(angle: float, size: tuple[int, int] = (48, 36)) -> DepthView:
    """A view of the furnished room with its true depths."""
    eye = np.array([2.4 * np.cos(angle), 2.4 * np.sin(angle), 1.5])
    w2c = look_at(eye, np.array([-1.0, 0.2, 0.8]))
    K = np.array([[40.0, 0.0, 24.5], [0.0, 41.0, 17.0], [0.0, 0.0, 1.0]])
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(K).T
    world = torch.from_numpy((rays.reshape(-1, 3) @ w2c[:3, :3]).astype(np.float32))
    struck = strike(torch.from_numpy(eye.astype(np.float32)).expand(len(world), 3), world)
    # The direction's third camera coordinate is 1, so t is the depth along the axis.
    return DepthView(
        K, w2c, struck.t.double().numpy().reshape(size[1], size[0]), np.zeros((size[1], size[0], 3), np.uint8)
    )


@pytest.fixture(scope="module")
def views():
    return [camera(angle) for angle in (0.0, 0.12, 0.24, 0.36, 0.48)]


def test_points_lie_on_the_surfaces_and_come_back_to_their_pixels(views):
    view = views[1]
    rows, columns = np.nonzero(view.known)
    points = view.points(rows, columns)
    origin = torch.from_numpy(view.centre.astype(np.float32)).expand(len(points), 3)
    towards = torch.from_numpy((points - view.centre).astype(np.float32))
    np.testing.assert_allclose(strike(origin, towards).t, 1.0, atol=1e-4)
    back_rows, back_columns, depth, seen = view.look_up(points)
    assert seen.all()
    np.testing.assert_array_equal((back_rows, back_columns), (rows, columns))
    np.testing.assert_allclose(depth, view.depth[rows, columns], rtol=1e-9)


def test_true_depths_are_confirmed_and_wrong_ones_are_not(views):
    votes = confirmations(views, 2, neighbours(views, 2, 4))
    assert (votes > 0).mean() > 0.9
    spoiled = views[2].depth.copy()
    wrong = np.random.default_rng(0).random(spoiled.shape) < 0.2
    spoiled[wrong] *= 0.7
    changed = [*views[:2], DepthView(views[2].K, views[2].w2c, spoiled, views[2].rgb), *views[3:]]
    votes = confirmations(changed, 2, neighbours(changed, 2, 4))
    assert (votes[wrong] > 0).mean() < 0.05
    assert (votes[~wrong] > 0).mean() > 0.9


def test_confirmation_against_a_loop_over_pixels(views):
    votes = confirmations(views, 0, [3])
    own, other = views[0], views[3]
    for row, column in np.random.default_rng(1).integers(0, (36, 48), (40, 2)):
        point = own.points(np.array([row]), np.array([column]))[0]
        at = other.K @ (other.w2c[:3, :3] @ point + other.w2c[:3, 3])
        u, v = at[:2] / at[2]
        expected = 0
        if at[2] > 0 and 0 <= u < 48 and 0 <= v < 36:
            found = other.points(np.array([int(v)]), np.array([int(u)]))[0]
            back = own.K @ (own.w2c[:3, :3] @ found + own.w2c[:3, 3])
            error = np.square(back[:2] / back[2] - (column + 0.5, row + 0.5)).sum()
            expected = int(error < 2 and abs(back[2] - own.depth[row, column]) < 0.05 * own.depth[row, column])
        assert votes[row, column] == expected


def test_points_behind_a_camera_are_seen_by_none(views):
    behind = views[0].centre - 2 * views[0].w2c[2, :3]
    assert not views[0].look_up(behind[None])[3].any()


def test_unknown_depths_give_no_points_and_no_votes(views):
    depth = views[0].depth.copy()
    depth[:10] = 0
    depth[10] = np.nan
    hollow = DepthView(views[0].K, views[0].w2c, depth, views[0].rgb)
    assert not hollow.known[:11].any()
    assert confirmations([hollow, views[1]], 0, [1])[:11].sum() == 0


def test_neighbours_stand_nearest(views):
    assert neighbours(views, 0, 3) == [1, 2, 3]
    assert set(neighbours(views, 2, 2)) == {1, 3}


def test_free_space_contradicts_what_floats_in_it(views):
    points = views[2].points(*np.nonzero(views[2].known))
    assert (contradictions(views, points) == 0).mean() > 0.9
    floating = views[2].centre + 0.5 * (points - views[2].centre)
    assert contradictions(views[2:3], floating).min() == 1
    assert contradictions(views, views[2].centre + 1.5 * (points - views[2].centre)).max() == 0, "behind is not against"


def test_points_are_chosen_evenly_and_the_first_of_a_cell():
    rng = np.random.default_rng(0)
    dense, sparse = rng.random((5000, 2)), rng.random((400, 2)) + np.array([1, 0])
    cloud = np.concatenate([np.column_stack([part, np.zeros(len(part))]) for part in (dense, sparse)])
    rows = evenly(cloud, 200, np.array([1.0, 0.5, 0.0]), 10.0)
    assert 190 < len(rows) <= 200
    assert len(set(rows)) == len(rows)
    assert 80 < (rows < 5000).sum() < 120, "half of the area, half of the points"
    assert np.array_equal(evenly(np.repeat(cloud[:50], 2, axis=0), 60, np.zeros(3), 10.0) % 2, np.zeros(50))
    np.testing.assert_array_equal(evenly(cloud[:30], 30, np.zeros(3), 1.0), np.arange(30))
    shells = np.concatenate([size * cloud[:500] for size in (1, 100)]) + np.ones(3)
    far = evenly(shells, 300, np.zeros(3), 5.0)
    assert (far >= 500).sum() > 30, "cells grow with the distance"


def test_what_is_far_from_everything_is_lonely():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(2000, 3)) * (1, 1, 0.05)
    alone = np.array([[0.0, 0.0, 3.0], [0.5, 0.2, -2.0]])
    found = lonely(np.concatenate([cloud, alone]))
    assert found[-2:].all()
    assert found[:-2].mean() < 0.02
    assert not lonely(cloud[:4]).any()
    assert outside(np.array([[0.0, 0, 0], [2.0, 0, 0]]), np.array([[-1.0] * 3, [1.0] * 3])).tolist() == [False, True]
