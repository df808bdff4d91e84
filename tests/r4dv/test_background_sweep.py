"""Depths from photos of an analytic corner of two painted walls: the true plane costs least, walls go on unseen."""

from __future__ import annotations

import numpy as np
import pytest

from core_ns.demo_scenes import look_at
from r4dv_ns.background_stills import Still
from r4dv_ns.background_sweep import (
    UNSEEN,
    agreed_only,
    depths_needed,
    found_depths,
    in_camera,
    matching_costs,
    scene_planes,
    swept,
)

WALLS = np.array([[0.0, 1.0, 0.0, 4.0], [1.0, 0.0, 0.0, 3.0]])
"""Where y = 4 and where x = 3."""
SIZE = (56, 44)
RANGE = (1.0, 12.0)


def paint(points: np.ndarray) -> np.ndarray:
    """Colours of the walls, 0 to 255."""
    rng = np.random.default_rng(5)
    waves = rng.normal(size=(24, 3)) * 6
    phases, tints = rng.random(24) * 6.3, rng.normal(size=(24, 3))
    return (128 + 9 * np.sin(points @ waves.T + phases) @ tints).clip(0, 255)


def shot(eye, target) -> tuple[Still, np.ndarray]:
    """A camera's picture and its true depths."""
    w2c = look_at(np.asarray(eye, float), np.asarray(target, float))
    K = np.array([[52.0, 0.0, 28.3], [0.0, 53.0, 21.6], [0.0, 0.0, 1.0]])
    blank = Still(np.zeros((SIZE[1], SIZE[0], 3), np.float32), np.ones((SIZE[1], SIZE[0]), bool), K, w2c)
    inverse = (blank.rays() @ in_camera(WALLS, blank).T).max(axis=2)  # the first wall that is hit
    world = (blank.rays() / inverse[..., None] - w2c[:3, 3]) @ w2c[:3, :3]
    return Still(paint(world).astype(np.float32), blank.valid, K, w2c), 1 / inverse


@pytest.fixture(scope="module")
def scene() -> tuple[list[Still], list[np.ndarray]]:
    """Six cameras side by side that see the corner, and one that sees alone how the first wall goes on to the left."""
    shots = [shot((0.35 * step - 1, -0.5 + 0.1 * step, 0.2), (1.4, 3.5, 0.2)) for step in range(6)]
    shots.append(shot((-1.4, -0.5, 0.2), (-2.2, 4.0, 0.2)))
    return [still for still, _ in shots], [depth for _, depth in shots]


def test_the_true_plane_costs_least(scene):
    stills, _ = scene
    own, others = stills[2], stills[1:2] + stills[3:5]
    moved = WALLS + np.array([[0, 0, 0, 0.3], [0, 0, 0, 0.3]])
    turned = np.array([[0.2, 0.98, 0.0, 4.0], [0.98, 0.2, 0.0, 3.0]])
    costs = matching_costs(own, others, in_camera(np.concatenate([WALLS, moved, turned]), own))
    first = (own.rays() @ in_camera(WALLS, own).T).argmax(axis=2)
    inner = np.s_[4:-4, 4:-4]
    chosen = costs.argmin(axis=2)
    assert (chosen == first)[inner].mean() > 0.9
    true = np.take_along_axis(costs, first[..., None], axis=2)[..., 0]
    assert np.median(true[inner]) < 0.7 * np.median(costs[..., 2:].min(axis=2)[inner])


def test_what_no_neighbour_sees_costs_the_same_everywhere(scene):
    stills, _ = scene
    own = stills[0]
    turned_away = shot((0.0, 0.0, 0.0), (0.0, -5.0, 0.0))[0]
    for others in ([], [turned_away]):
        assert (matching_costs(own, others, in_camera(WALLS, own)) == np.float32(UNSEEN)).all()
    through = in_camera(np.array([[0.0, 1.0, 0.0, float(own.with_depth(np.zeros((1, 1))).centre[1])]]), own)
    assert through.tolist() == [[0.0] * 3], "a plane through the camera is none"


def test_depths_are_swept_in_steps_of_a_pixel(scene):
    stills, depths = scene
    needed = depths_needed(stills, 2, RANGE)
    assert 16 <= needed <= 60
    view, costs = swept(stills, 2, RANGE, needed)
    wrong = np.abs(view.depth - depths[2]) / depths[2]
    assert np.median(wrong) < 0.03
    assert costs.shape == view.depth.shape
    sure = agreed_only([swept(stills, number, RANGE, needed)[0] for number in range(6)], 2)
    assert sure.known.mean() > 0.5
    assert np.median(wrong[sure.known]) <= np.median(wrong)


def test_a_wall_goes_on_where_one_camera_sees_it_alone(scene):
    stills, depths = scene
    ranges = [RANGE] * len(stills)
    views, _ = found_depths(stills, ranges)
    wrong = [np.abs(view.depth - depth) / depth for view, depth in zip(views, depths, strict=True)]
    assert np.median(np.concatenate([each.ravel() for each in wrong[:6]])) < 0.01
    assert np.quantile(np.concatenate([each.ravel() for each in wrong[:6]]), 0.9) < 0.05
    alone = wrong[6][:, : SIZE[0] // 2]
    print(f"seen by one camera alone: off by {np.quantile(alone, [0.5, 0.9]).round(4)} of the distance")
    assert np.median(alone) < 0.02
    pairs = [swept(stills, number, RANGE, 48)[0] for number in range(6)]
    planes = scene_planes([agreed_only(pairs, number) for number in range(6)])
    for place in ((0.0, 4.0, 0.2), (1.5, 4.0, 0.0), (3.0, 3.0, 0.2)):
        assert np.abs(planes[:, :3] @ place - planes[:, 3]).min() < 0.1


def test_what_is_not_shown_has_no_depth(scene):
    stills, depths = scene
    hidden = stills[1].valid.copy()
    hidden[10:20] = False
    changed = [*stills[:1], Still(stills[1].image, hidden, stills[1].K, stills[1].w2c), *stills[2:]]
    views, beyond = found_depths(changed, [RANGE] * len(stills), depths=32, margin=5)
    assert not views[1].known[10:20].any()
    assert views[1].known[25:].all()
    behind = beyond[1].depth[15:25, 5:-5]
    assert (behind > 0).mean() > 0.9, "but behind what hides it the wall goes on"
    wrong = np.abs(behind - depths[1][10:20]) / depths[1][10:20]
    assert np.median(wrong) < 0.02


def test_walls_go_on_around_the_pictures(scene):
    stills, _ = scene
    margin = 6
    views, beyond = found_depths(stills, [RANGE] * len(stills), margin=margin)
    around, inner = beyond[2], beyond[2].depth[margin:-margin, margin:-margin]
    assert around.depth.shape == (SIZE[1] + 2 * margin, SIZE[0] + 2 * margin)
    assert not inner.any(), "what the picture shows is in the other list"
    assert views[2].known.all()
    true = 1 / (stills[2].with_margin(margin).rays() @ in_camera(WALLS, stills[2]).T).max(axis=2)
    wrong = (np.abs(around.depth - true) / true)[around.known]
    assert around.known.mean() > 0.3
    assert np.median(wrong) < 0.03
