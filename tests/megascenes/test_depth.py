"""Depth in units of its quantile; resizing against planes and against a pixel-by-pixel twin."""

from __future__ import annotations

import json

import numpy as np
import pytest
from depth_scenes import K, camera, wall_depth
from hypothesis import given, settings
from hypothesis import strategies as st

from megascenes_ns.depth import (
    Depth,
    depth_from_disparity,
    in_units,
    pose_unit,
    q20,
    resample_depth,
    resize_depth,
    usable_scale,
)


def test_the_quantile_of_a_full_map_is_the_scale_of_the_real_lists(shared_data):
    """data/megascenes_pairs: scale = 0.2 quantile of depth[::8, ::8], zeros left out."""
    from dataparsers.megascenes_paths import original_depth_name
    from dataparsers.megascenes_pickle import read_rows

    root, checked = shared_data / "megascenes_pairs", 0
    for split in ("trainsplit", "testsplit"):
        for row in read_rows(root / "splits" / f"{split}.pkl"):
            found = q20(np.load(root / "depth" / original_depth_name(row[0])), step=8)
            assert found == pytest.approx(row[4], rel=1e-6)
            checked += 1
    assert checked == 6


def test_the_fixture_of_the_original_has_our_quantile(shared_fixtures):
    """fixtures/megascenes: depth = 1/max(disparity, 1e-3), / q20, clip 0..100."""
    stored = np.load(shared_fixtures / "megascenes" / "data" / "warp.npz", allow_pickle=False)
    depth = in_units(depth_from_disparity(stored["disparity"]), "fixture")
    assert depth is not None
    assert depth.q20 == pytest.approx(float(stored["q20"]), rel=1e-6)
    expected = np.load(shared_fixtures / "megascenes" / "data" / "warp_depth.npy", allow_pickle=False)
    np.testing.assert_allclose(depth.values, expected, rtol=2e-6)
    assert depth.values.dtype == np.float32


def test_holes_far_and_broken_values():
    depth = np.array([[1.0, 2.0, 0.0, -3.0], [np.nan, np.inf, 1e9, 1.0]])
    found = in_units(depth, "test", scale=0.5)
    assert found is not None
    np.testing.assert_array_equal(found.values, [[2.0, 4.0, 0.0, 0.0], [0.0, 100.0, 100.0, 2.0]])
    np.testing.assert_array_equal(found.valid, depth > 0)
    assert (found.q20, found.unit_known) == (0.5, True)
    assert in_units(np.zeros((2, 2)), "test", scale=1.0) is None
    assert in_units(np.full((2, 2), np.nan), "test") is None
    assert q20(np.full((2, 2), np.inf)) is None


def test_which_unit_counts():
    depth = np.full((4, 4), 3.0)
    own = in_units(depth, "own")
    assert own is not None
    assert own.values.max() == pytest.approx(1.0)
    assert (own.q20, own.unit_known) == (3.0, True)
    relative = in_units(depth, "relative", scale=7.0, relative=True)
    assert relative is not None  # the scale says what one unit is, and the map's own quantile what it is divided by
    assert relative.values.max() == pytest.approx(1.0)
    assert (relative.q20, relative.unit_known) == (7.0, True)
    unknown = in_units(depth, "relative", relative=True)
    assert unknown is not None
    assert not unknown.unit_known
    assert [pose_unit(each, None) for each in (own, relative, unknown)] == [3.0, 7.0, None]
    assert [pose_unit(each, 2.0) for each in (own, unknown)] == [2.0, 2.0]


@pytest.mark.parametrize("scale", [None, 0.0, 1e-7, -1.0, float("nan"), float("inf")])
def test_scales_that_say_nothing(scale):
    assert usable_scale(scale) is None
    found = in_units(np.full((2, 2), 4.0), "test", scale=scale)
    assert found is not None
    assert found.q20 == 4.0


def test_resizing_a_plane_is_exact():
    """1/z of a plane is linear in the pixel: shrinking and enlarging by odd factors changes nothing inside."""
    w2c = camera(2)
    large = wall_depth(w2c, K * [[5], [5], [1]], 480, 320)
    for height, width in ((64, 96), (45, 67), (401, 480)):
        scaled = K * [[width / 96], [height / 64], [1]]
        exact = wall_depth(w2c, scaled, width, height)
        found = resize_depth(large, height, width)
        inner = (slice(2, -2), slice(2, -2))
        np.testing.assert_allclose(found[inner], exact[inner], rtol=1e-12)


def slow_resample(depth, rows, columns):
    """The same, pixel by pixel."""
    height, width = depth.shape
    out = np.zeros((len(rows), len(columns)))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
                continue
            y0, x0 = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
            a, b = int(np.floor(y0)), int(np.floor(x0))
            near = depth[a + (y0 - a >= 0.5), b + (x0 - b >= 0.5)]
            if not near > 0:
                continue
            total = weights = 0.0
            for p, wp in ((a, 1 - (y0 - a)), (a + 1, y0 - a)):
                for q, wq in ((b, 1 - (x0 - b)), (b + 1, x0 - b)):
                    if wp * wq > 0 and depth[p, q] > 0:
                        total += wp * wq / depth[p, q]
                        weights += wp * wq
            out[i, j] = weights / total if total > 0 else np.inf
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 9)] * 4))
def test_resampling_equals_the_slow_twin(seed, shape):
    random = np.random.default_rng(seed)
    depth = random.uniform(0.1, 10.0, shape[:2])
    depth[random.random(shape[:2]) < 0.3] = random.choice([0.0, -1.0, np.nan])
    rows, columns = random.uniform(-2, shape[0] + 1, shape[2]), random.uniform(-2, shape[1] + 1, shape[3])
    np.testing.assert_allclose(resample_depth(depth, rows, columns), slow_resample(depth, rows, columns), rtol=1e-9)


def test_holes_stay_where_they_are():
    depth = np.full((40, 60), 5.0)
    depth[10:20, 20:40] = 0.0
    small = resize_depth(depth, 20, 30)
    np.testing.assert_array_equal(small[5:10, 10:20], 0.0)
    assert (small > 0).sum() == 20 * 30 - 5 * 10
    np.testing.assert_allclose(small[small > 0], 5.0, rtol=1e-12)  # nothing bleeds from the hole
    same = resize_depth(np.where(depth > 0, depth, np.nan), 40, 60)
    np.testing.assert_array_equal(same, depth)


def test_sky_at_infinity_is_far_and_no_hole():
    depth = np.full((8, 8), np.inf)
    depth[4:] = 2.0
    small = resize_depth(depth, 4, 4)
    assert np.isinf(small[:2]).all()
    np.testing.assert_allclose(small[2:], 2.0)


def test_alignment_as_json():
    from megascenes_ns.depth import Alignment

    plain = Alignment(float("nan"), 1.0, 3, 5, "because").as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["slope"] is None
    assert Depth(np.zeros((1, 1), np.float32), 1.0, "x").alignment is None
