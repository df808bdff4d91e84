"""Points that the background starts from: where they lie, that they are made once, bad input as one error."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from core_ns.errors import DataError
from dataparsers.easymocap_plates import Plates, find_plates
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_room import _BOXES, HALF, HEIGHT
from dataparsers.moving_scene import make_moving_scene
from dataparsers.point_ply import PointCloud, read_ply, write_ply
from r4dv_ns.background_photos import swept_points
from r4dv_ns.background_points import POINTS, RECORD, BackgroundOptions, ensure_background, fitting, frusta_points
from r4dv_ns.background_stills import pieced_plate
from r4dv_ns.joint_sources import widened


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("background") / "room"
    make_moving_scene(folder, 12, 3, (96, 120), background="room", supersample=1)
    return folder


@pytest.fixture
def sequence(room):
    opened = open_sequence(room, SequenceOptions(eval_views=("none",)))
    opened.bounds = np.asarray(json.loads((room / "truth.json").read_text())["bounds"])
    return opened


def off_the_surfaces(points):
    """Distance to the nearest wall, floor, ceiling or piece of furniture, metres."""
    off = np.abs(np.concatenate([points[:, :2] - HALF, points[:, :2] + HALF, points[:, 2:], points[:, 2:] - HEIGHT], 1))
    nearest = off.min(axis=1)
    for low, high in _BOXES.double().numpy():
        outside = np.maximum(np.maximum(low - points, points - high), 0)
        nearest = np.minimum(nearest, np.linalg.norm(outside, axis=1))
    return nearest


def test_random_points_lie_in_the_frusta_outside_the_box_evenly_in_inverse_depth(sequence):
    options = BackgroundOptions(points=6000, start="frusta", nearest=1.0, farthest=8.0)
    cloud = frusta_points(sequence, options)
    assert cloud.xyz.shape == (6000, 3)
    assert ((cloud.xyz < sequence.bounds[0]) | (cloud.xyz > sequence.bounds[1])).any(axis=1).all()
    seen = np.zeros(6000, int)
    for view in sequence.views:
        camera = cloud.xyz @ view.w2c(0)[:3, :3].T + view.w2c(0)[:3, 3]
        pixel = (camera @ view.K.T)[:, :2] / camera[:, 2:]
        seen += (camera[:, 2] > 0.999) & (camera[:, 2] < 8.001) & ((pixel >= 0) & (pixel < (96, 120))).all(axis=1)
    assert seen.min() >= 1
    first = cloud.xyz[:500] @ sequence.views[0].w2c(0)[:3, :3].T + sequence.views[0].w2c(0)[:3, 3]
    inverse = np.sort(1 / first[:, 2])
    expected = np.linspace(1 / 8, 1, 500)
    assert np.abs(inverse - expected).max() < 0.12, "but for what fell into the box"
    np.testing.assert_array_equal(cloud.xyz, frusta_points(sequence, options).xyz)
    other = frusta_points(sequence, BackgroundOptions(points=6000, start="frusta", nearest=1.0, farthest=8.0, seed=1))
    assert not np.array_equal(cloud.xyz, other.xyz)


def holes(sequence, points, reach=6):
    """Share of all photos' pixels without a point within some pixels."""
    empty = []
    for view in sequence.views:
        camera = points @ view.w2c(0)[:3, :3].T + view.w2c(0)[:3, 3]
        column, row = np.floor((camera @ view.K.T)[:, :2] / camera[:, 2:]).astype(int).T
        seen = (camera[:, 2] > 0) & (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height)
        hit = np.zeros((view.height, view.width), np.uint8)
        hit[row[seen], column[seen]] = 255
        empty.append(~widened(hit, reach))
    return np.mean(empty)


@pytest.mark.parametrize("with_plates", [True, False])
def test_photos_show_where_the_background_is(sequence, with_plates):
    """Against the true surfaces of the room; at random half of the points are off by more than a metre."""
    plates = find_plates(sequence) if with_plates else Plates(sequence, {})
    cloud = swept_points(sequence, BackgroundOptions(points=4000), plates)
    off = off_the_surfaces(np.asarray(cloud.xyz, np.float64))
    print(f"{len(cloud.xyz)} points, off by {np.quantile(off, [0.5, 0.8, 0.9]).round(3)} m (half, 80 %, 90 %)")
    assert 3500 < len(cloud.xyz) <= 4000
    assert np.median(off) < 0.06
    assert np.quantile(off, 0.8) < 0.3, "also walls that only one camera sees"
    inside = np.linalg.norm(cloud.xyz - sequence.bounds.mean(axis=0), axis=1) < 2.8
    assert np.median(off[inside]) < 0.12
    floating = inside & (off > 0.3) & (cloud.xyz[:, 2] > 0)
    print(f"inside the ring of cameras {np.median(off[inside]):.3f} m; {floating.sum()} points float there")
    assert floating.sum() < 0.03 * len(off), "hardly anything hangs before the cameras"
    assert holes(sequence, cloud.xyz) < 0.05
    random = frusta_points(sequence, BackgroundOptions(points=4000, start="frusta"))
    assert np.median(off_the_surfaces(random.xyz)) > 2 * np.median(off)
    assert np.ptp(cloud.rgb.astype(int), axis=0).min() > 80, "coloured by the photos"


def test_a_plate_is_pieced_together_from_moments(sequence, room):
    image, shown = pieced_plate(sequence, 3)
    plate = find_plates(sequence).get(3)
    assert 0.5 < shown.mean() < 1, "the subject hides the same place at all three moments"
    difference = np.abs(image.astype(int) - plate)[shown].mean(axis=-1)
    assert np.median(difference) < 6
    assert (difference > 40).mean() < 0.03, "shadows and edges"


def test_points_are_made_once_and_again_when_something_changed(sequence, room, tmp_path, capsys):
    plates = find_plates(sequence)
    options = BackgroundOptions(points=500, depths=16)
    first = ensure_background(sequence, tmp_path, options, plates)
    stamp = (tmp_path / POINTS).stat().st_mtime_ns
    again = ensure_background(sequence, tmp_path, options, plates)
    np.testing.assert_array_equal(first.xyz, again.xyz)
    assert (tmp_path / POINTS).stat().st_mtime_ns == stamp
    time.sleep(0.01)
    ensure_background(sequence, tmp_path, BackgroundOptions(points=500, start="frusta"), plates)
    assert (tmp_path / POINTS).stat().st_mtime_ns != stamp
    assert json.loads((tmp_path / RECORD).read_text())["how"] == "frusta"
    assert "Looking for the background" in capsys.readouterr().out
    assert not (room / POINTS).exists(), "only the folder that was named is written to"


def test_points_that_someone_put_there_are_used_and_thinned(sequence, room, tmp_path):
    given = np.random.default_rng(0).normal(size=(300, 3)) + 5
    write_ply(tmp_path / POINTS, given)
    used = ensure_background(sequence, tmp_path, BackgroundOptions(points=100), find_plates(sequence))
    assert used.xyz.shape == (100, 3)
    assert set(map(tuple, used.xyz.astype(np.float32))) <= set(map(tuple, given.astype(np.float32)))
    assert not (tmp_path / RECORD).exists()
    (tmp_path / POINTS).write_bytes(b"ply\nnonsense")
    with pytest.raises(DataError, match=r"000000\.ply"):
        ensure_background(sequence, tmp_path, BackgroundOptions(), find_plates(sequence))


def test_a_cloud_loses_what_lies_in_the_box(sequence):
    inside = sequence.bounds.mean(axis=0)
    cloud = PointCloud(np.array([inside, [3.0, 3.0, 1.0]]))
    assert fitting(cloud, BackgroundOptions(), "here", sequence.bounds).xyz.tolist() == [[3.0, 3.0, 1.0]]
    assert len(fitting(cloud, BackgroundOptions(), "here").xyz) == 2
    with pytest.raises(DataError, match=r"here.*outside the subject's box"):
        fitting(PointCloud(inside[None]), BackgroundOptions(), "here", sequence.bounds)


@pytest.mark.parametrize(
    "options",
    [
        {"points": 0},
        {"depths": 1},
        {"seed": -1},
        {"nearest": -1.0},
        {"farthest": float("nan")},
        {"nearest": 2.0, "farthest": 1.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(DataError, match=next(iter(options))):
        BackgroundOptions(**options).check()


def test_a_damaged_record_is_named(sequence, tmp_path):
    write_ply(tmp_path / POINTS, np.zeros((3, 3)))
    (tmp_path / RECORD).parent.mkdir()
    (tmp_path / RECORD).write_text("[1")
    with pytest.raises(DataError, match=r"background\.json"):
        ensure_background(sequence, tmp_path, BackgroundOptions(points=10), find_plates(sequence))
    shutil.rmtree(tmp_path)


def test_what_was_written_is_what_is_given(sequence, tmp_path):
    cloud = ensure_background(sequence, tmp_path, BackgroundOptions(points=50, start="frusta"), find_plates(sequence))
    stored = read_ply(tmp_path / POINTS)
    np.testing.assert_array_equal(cloud.xyz, stored.xyz.astype(np.float64))
    np.testing.assert_array_equal(cloud.rgb, stored.rgb)
