"""Options and cameras to a path: where it runs, what is seen, and when."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from easymocap_scene import ring
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from path_recordings import OPTIONS, TARGET, gaze, record
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from dataparsers.easymocap import write_cameras
from r4dv_ns import paths
from r4dv_ns.path_file import path_content, write_path, write_path_yml
from r4dv_ns.path_make import make_path
from r4dv_ns.path_options import PathOptions
from r4dv_ns.path_rig import open_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return open_rig(None, record(tmp_path_factory.mktemp("recorded") / "toy"), OPTIONS)


def made(rig, **options):
    return make_path(rig, PathOptions(**{"size": (64, 48), "n": 24, **options}), say=print)


def test_the_orbit_goes_round_the_training_cameras(rig):
    path = made(rig, type="orbit", n=8)
    angles = np.degrees(np.arctan2(*(path.c2w[:, :2, 3] - TARGET[:2]).T[::-1])) % 360
    np.testing.assert_allclose((angles + 1) % 360 - 1, np.arange(8) * 45, atol=1e-3)
    np.testing.assert_allclose(path.c2w[[0, 3]], rig.c2w[[0, 2]], atol=1e-6)  # level, though a camera is held out
    assert path.closed
    back = made(rig, type="orbit", n=8, turns=-0.5, phase=90, height=1.0, radius=4.0)
    angles = np.degrees(np.arctan2(*(back.c2w[:, :2, 3] - TARGET[:2]).T[::-1])) % 360
    np.testing.assert_allclose(angles, (90 - np.arange(8) * 22.5) % 360, atol=1e-3)
    np.testing.assert_allclose(back.c2w[:, 2, 3] - TARGET[2], 0.75 + 1.0, atol=1e-3)
    assert not back.closed


def test_the_spiral_is_in_front_of_a_camera_where_they_surround(rig, capsys):
    path = made(rig, type="spiral")
    assert "in front of camera 00 (--around CAM)" in capsys.readouterr().out
    directions = paths.unit(path.c2w[:, :3, 3] - TARGET)
    first = paths.unit(rig.c2w[0, :3, 3] - TARGET)
    assert np.degrees(np.arccos(directions @ first)).max() < 60
    other = made(rig, type="spiral", around="04")
    assert (paths.unit(other.c2w[:, :3, 3] - TARGET) @ first < 0).all()
    assert capsys.readouterr().out == ""
    front = made(rig, type="spiral", views=("07", "00", "01"), original=True)
    assert gaze(front.c2w, TARGET).max() < 1e-6


def test_cubic_follows_the_named_cameras(rig):
    names = ("05", "00", "07", "03")
    rows = [rig.names.index(name) for name in names]
    through = made(rig, type="cubic", views=names, spline="interpolating", n=10)
    np.testing.assert_allclose(through.c2w[::3], rig.c2w[rows], atol=1e-9)
    near = made(rig, type="cubic", views=names, n=10)
    assert np.linalg.norm(near.c2w[3, :3, 3] - rig.c2w[rows[1], :3, 3]) > 0.1
    closed = made(rig, type="cubic", views=names, spline="interpolating", n=8, loop=True)
    np.testing.assert_allclose(closed.c2w[::2], rig.c2w[rows], atol=1e-9)
    swung = made(rig, type="linear", views=names, n=12, swing=True)
    np.testing.assert_allclose(swung.c2w[[0, 6]], rig.c2w[[rows[0], rows[-1]]], atol=1e-9)
    np.testing.assert_allclose(swung.c2w[1:], swung.c2w[:0:-1], atol=1e-9)


def test_azimuth_order_does_not_depend_on_names(rig):
    shuffled = rig.rows([0, 4, 2, 6, 1, 5, 3])
    path = made(shuffled, type="linear", order="azimuth", n=7)
    np.testing.assert_allclose(path.c2w, rig.c2w, atol=1e-9)


def test_a_path_through_the_subject_is_told(rig, capsys):
    opposite = rig.rows([0, 3, 1, 4, 2])
    made(opposite, type="linear")
    assert "--order azimuth goes round it" in capsys.readouterr().out
    made(opposite, type="linear", order="azimuth")
    assert capsys.readouterr().out == ""
    made(opposite.rows([0, 1]), type="linear", order="azimuth")
    assert "more cameras with --views" in capsys.readouterr().out


def test_even_pace_and_smoothing(rig):
    names = ("00", "01", "04", "05")
    steps = np.linalg.norm(np.diff(made(rig, type="cubic", views=names, pace="even").c2w[:, :3, 3], axis=0), axis=1)
    assert steps.std() < 0.05 * steps.mean()
    rough = made(rig, type="linear", views=names, n=60)
    smooth = made(rig, type="linear", views=names, n=60, smoothing=0.1)
    bends = [np.abs(np.diff(path.c2w[:, :3, 3], 2, axis=0)).max() for path in (rough, smooth)]
    assert bends[1] < 0.3 * bends[0]


# ---------------------------------------------------------------------- what is seen, and when


def test_pictures_show_what_the_photos_show(rig):
    def focal(**options) -> float:
        path = made(rig, **options)
        assert np.ptp(path.focal) < 1e-9
        return float(path.focal[0])

    # Photos: 48x36, fx 50, fy 51.
    assert focal(size=(48, 36)) == pytest.approx(50)
    assert focal(size=(200, 36)) == pytest.approx(51)  # wider: the height decides
    assert focal(size=(96, 720)) == pytest.approx(100)  # narrower: the width
    assert focal(size=(48, 36), focal_ratio=0.65) == pytest.approx(32.5)
    assert made(rig, fov=90.0).fov.tolist() == [90.0] * 24


def test_focal_lengths_follow_the_cameras(rig):
    zoomed = replace(rig, focal=rig.focal * np.arange(1, 8)[:, None])
    path = made(zoomed, type="linear", views=("00", "01"), n=3, size=(48, 36))
    np.testing.assert_allclose(path.focal, [50, 2 / (1 / 50 + 1 / 100), 100])
    median = made(zoomed, type="orbit", size=(48, 36))
    np.testing.assert_allclose(median.focal, 200)


def test_times(rig):
    np.testing.assert_allclose(made(rig, n=5).times, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(made(rig, n=9, time=(0.0, 1.0, 0.0)).times[[0, 4, 8]], [0, 1, 0])
    assert set(made(rig, time=(0.5,)).times) == {0.5}
    played = made(rig, n=10, fps=60, play_fps=30)
    np.testing.assert_allclose(played.times, np.repeat([0, 1 / 3, 2 / 3, 1, 0], 2))
    part = made(rig, n=4, fps=30, play_fps=30, time=(1.0, 0.5))
    np.testing.assert_allclose(part.times, [1, 2 / 3, 1, 2 / 3])
    assert made(rig, n=10, fps=24).fps == 24
    defaults = make_path(rig, PathOptions())
    assert (len(defaults), defaults.width, defaults.height, defaults.fps) == (300, 1920, 1080, 60)


def test_a_file_s_times_and_number_of_pictures(rig, tmp_path):
    source = made(rig, type="orbit", n=6, time=(0.0, 1.0, 0.0), fps=24)
    write_path_yml(tmp_path / "yml", source)
    write_path(tmp_path / "path.json", source, rig.transform)

    def again(file: Path, **options):
        return make_path(rig, PathOptions(type="yml", file=file, **options))

    for file in (tmp_path / "yml", tmp_path / "path.json"):
        same = again(file)
        np.testing.assert_allclose(same.c2w, source.c2w, atol=1e-9)
        np.testing.assert_allclose(same.times, source.times)
        assert (same.width, same.height) == (64, 48)
        np.testing.assert_allclose(again(file, time=(1.0, 0.0)).times, np.linspace(1, 0, 6))
        # The JSON knows that the orbit leads back to its beginning, the yml does not.
        finer = again(file, n=12 if file.suffix else 11, spline="interpolating")
        np.testing.assert_allclose(finer.c2w[::2], source.c2w, atol=1e-9)
        np.testing.assert_allclose(finer.times[::2], source.times)
        assert finer.closed == bool(file.suffix)
    assert again(tmp_path / "path.json").fps == pytest.approx(24)
    assert again(tmp_path / "path.json", fps=30).fps == 30


def test_time_does_not_run_back_within_the_part_that_closes_a_loop(rig, tmp_path):
    """Played once over a closed path, the recording begins again; forwards and backwards it goes on evenly."""
    once, to_and_fro = [0, 0.2, 0.4, 0.6, 0.8, 1], [0, 0.4, 0.8, 1, 0.6, 0.2]
    for times, last in ((once, [0.9, 1.0, 1.0]), (to_and_fro, [0.4, 0.2, 0.1])):
        source = replace(made(rig, type="orbit", n=6), times=np.array(times))
        write_path(tmp_path / "path.json", source, rig.transform)
        path = make_path(rig, PathOptions(type="yml", file=tmp_path / "path.json", n=12))
        assert path.closed
        np.testing.assert_allclose(path.times[-3:], last, atol=1e-9)
    steps = np.linalg.norm(np.diff(path.c2w[:, :3, 3], axis=0, append=path.c2w[:1, :3, 3]), axis=1)
    assert steps.max() < 1.2 * steps.min(), "all the way round"
    there = make_path(rig, PathOptions(type="yml", file=tmp_path / "path.json", n=12, swing=True))
    np.testing.assert_allclose(there.times[1:], there.times[:0:-1], atol=1e-9)


def test_the_ratio_multiplies_a_radius_that_is_given(rig):
    for kind in ("orbit", "sector"):
        near, far = (made(rig, type=kind, radius=2.0, radius_ratio=ratio) for ratio in (1.0, 2.0))
        for path, distance in ((near, 2.0), (far, 4.0)):
            np.testing.assert_allclose(np.linalg.norm(path.c2w[:, :3, 3] - TARGET, axis=1), distance, rtol=1e-3)


def test_calibrations_with_lenses_are_followed_and_said(rig, tmp_path, capsys):
    cameras = {name: replace(camera, D=np.array([0.1, 0, 0, 0, 0])) for name, camera in ring(5).items()}
    write_cameras(tmp_path, cameras)
    path = make_path(rig, PathOptions(type="yml", file=tmp_path))
    assert "lenses and off-centre" in capsys.readouterr().out
    assert len(path) == 5
    np.testing.assert_allclose(path.times, np.linspace(0, 1, 5))  # no camera has a time


places = st.tuples(*[st.floats(-3, 3)] * 3)
any_options = st.fixed_dictionaries(
    {"type": st.sampled_from(["orbit", "spiral", "cubic", "linear", "sector"]), "n": st.integers(1, 40)},
    optional={
        "time": st.lists(st.floats(0, 1), min_size=1, max_size=5).map(tuple),
        "play_fps": st.floats(0.001, 1000), "fps": st.floats(0.001, 1000),
        "size": st.tuples(st.integers(1, 16384), st.integers(1, 16384)),
        "focal_ratio": st.floats(0.01, 100), "fov": st.floats(0.1, 175), "loop": st.booleans(), "swing": st.booleans(),
        "views": st.lists(st.sampled_from(["00", "01", "03", "04", "05", "06", "07"]), min_size=1).map(tuple),
        "order": st.sampled_from(["name", "azimuth"]), "pace": st.sampled_from(["keys", "even"]),
        "spline": st.sampled_from(["bspline", "interpolating", "linear"]), "smoothing": st.floats(0, 1),
        "attention": places, "up": places, "radius": st.floats(0.01, 100), "height": st.floats(-5, 5),
        "radius_ratio": st.floats(0.1, 10), "turns": st.floats(-5, 5), "phase": st.floats(-720, 720),
        "around": st.sampled_from(["00", "05"]), "percentile": st.floats(0, 100), "rate": st.floats(-3, 3),
        "xyz_offset": places, "focal_offset": st.floats(-2, 5), "original": st.booleans(),
    },
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_options)
def test_any_options_give_a_path_or_one_error(rig, options):
    try:
        path = made(rig, **options)
    except DataError:
        return
    assert len(path) == options["n"]
    product = path.c2w[:, :3, :3] @ path.c2w[:, :3, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(product, np.tile(np.eye(3), (len(path), 1, 1)), atol=1e-9)
    content = json.loads(json.dumps(path_content(path, rig.transform), allow_nan=False))
    assert len(content["camera_path"]) == options["n"]
    if "play_fps" not in options:
        assert path.times[0] == options.get("time", (0.0,))[0]


def test_rotations_of_a_long_path_stay_rotations(rig):
    path = made(rig, type="cubic", n=1000, loop=True, smoothing=0.05)
    found = Rotation.from_matrix(path.c2w[:, :3, :3])
    steps = (found[:-1].inv() * found[1:]).magnitude()  # type: ignore[index]
    assert steps.max() < 3 * np.median(steps)


def test_hulls_tell_the_middle_where_axes_are_parallel(rig, capsys):
    parallel = replace(rig, c2w=np.concatenate([np.tile(rig.c2w[:1, :, :3], (7, 1, 1)), rig.c2w[..., 3:]], axis=2))
    with pytest.raises(DataError, match="parallel"):
        made(parallel)
    path = made(replace(parallel, middle=TARGET), type="sector")
    assert "the middle of the bounds is looked at: 0.2 -0.1 1." in capsys.readouterr().out
    assert gaze(path.c2w, TARGET).max() < 1e-9
    given = made(parallel, attention=(0.2, -0.1, 1.0), type="sector")
    np.testing.assert_allclose(given.c2w, path.c2w)
