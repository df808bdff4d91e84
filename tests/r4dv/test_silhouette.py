"""Look-ups of points and blocks against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hull_scenes import intrinsics, look_at, random_view, sees
from hypothesis import given, settings
from hypothesis import strategies as st

from r4dv_ns.silhouette import sat, sat_sum, silhouette


def test_summed_area_table() -> None:
    flags = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    table = sat(flags)
    x0, x1, y0, y1 = (torch.tensor([value]) for value in (1, 4, 2, 7))
    assert int(sat_sum(table, x0, x1, y0, y1)) == int(flags[2:7, 1:4].sum())
    assert int(sat_sum(table, x0, x0, y0, y1)) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_points_follow_the_definition(seed: int) -> None:
    mask, K, w2c, valid = random_view(seed)
    rng = np.random.default_rng(seed + 7)
    at = rng.uniform(-2, 22, size=(60, 3))
    low, voxel = np.array([-0.5, -0.5, -0.5]), 0.05
    view = silhouette(mask, K, w2c, valid).placed(low, voxel, 1e-4)
    seen, hit = view.points(torch.tensor(at, dtype=torch.float32))
    for i in range(len(at)):
        at32 = at[i].astype(np.float32).astype(float)
        inside, value = sees(K, w2c, mask, low + at32 * voxel, valid=valid)
        if abs(value - 0.5) < 1e-3:
            continue  # float32 may fall on either side
        moved = [sees(K, w2c, mask, low + (at32 + step) * voxel, valid=valid)[0] for step in np.eye(3) * 1e-3]
        moved += [sees(K, w2c, mask, low + (at32 - step) * voxel, valid=valid)[0] for step in np.eye(3) * 1e-3]
        if any(other != inside for other in moved):
            continue  # on the border of the photo or of its valid part
        assert bool(seen[i]) == inside
        assert bool(hit[i]) == (inside and value > 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.5, 4.0]))
def test_blocks_are_never_wrong(seed: int, half: float) -> None:
    mask, K, w2c, valid = random_view(seed)
    view = silhouette(mask, K, w2c, valid).placed(np.array([-0.5, -0.5, -0.5]), 0.05, 1e-4)
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(200, 3, generator=generator) * 24 - 2
    inside = (torch.rand(200, 40, 3, generator=generator) * 2 - 1) * half
    inside[:, :8] = torch.cartesian_prod(*[torch.tensor([-half, half])] * 3)
    unseen, seen, hit, never = view.blocks(centre, half)
    point_seen, point_hit = (flags.view(200, 40) for flags in view.points((centre[:, None] + inside).reshape(-1, 3)))
    assert not (unseen & seen).any()
    assert not (hit & ~seen).any()
    assert not point_seen[unseen].any()
    assert point_seen[seen].all()
    assert not point_hit[never].any()
    assert point_hit[hit].all()


def test_blocks_are_often_certain() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 255
    view = silhouette(mask, intrinsics(200.0, 200, 200), look_at(np.array([3.0, 0, 0]))).placed(-np.ones(3), 0.02, 1e-4)
    unseen, _, hit, never = view.blocks(torch.cartesian_prod(*[torch.arange(100.0)] * 3) + 0.5, 0.5)
    assert float((never | hit).float().mean()) > 0.9
    assert not unseen.any()
    assert float(hit.float().mean()) > 0.1


@pytest.mark.parametrize(
    ("mask", "valid"),
    [
        (np.zeros((4, 4), np.float32), None),
        (np.zeros((4, 4, 3), np.uint8), None),
        (np.zeros((0, 4), np.uint8), None),
        (np.zeros((4, 4), np.uint8), np.ones((4, 5), bool)),
        (np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)),
    ],
)
def test_shapes_that_do_not_fit(mask: np.ndarray, valid: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        silhouette(mask, np.eye(3), np.eye(4), valid)
