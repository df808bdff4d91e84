"""Camera paths: the original's numbers, symmetry, aim, and the way through nerfstudio's JSON and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warp_scenes import random_pose

from core_ns.errors import DataError
from megascenes_ns import paths
from megascenes_ns.canonical import rel_from_c2w_ns
from megascenes_ns.path_file import CameraPath, path_content, read_path, write_path


@pytest.fixture(scope="module")
def originals(shared_fixtures) -> dict[str, np.ndarray]:
    content = json.loads((shared_fixtures / "megascenes" / "data" / "paths.json").read_text(encoding="utf-8"))
    return {name: np.array(content[name]) for name in ("orbit", "spiral")}


def test_the_original_paths_to_the_number(originals):
    np.testing.assert_allclose(paths.orbit_legacy(), originals["orbit"], atol=1e-12)
    np.testing.assert_allclose(paths.spiral(), originals["spiral"], atol=1e-12)


def test_the_checks_of_the_spec():
    """Spec megascenes 7: centres of frames 0 and 18, frame 9 is the reference."""
    legacy = paths.orbit_legacy()
    assert len(legacy) == 19
    np.testing.assert_allclose(legacy[0, :3, 3], (-0.685, 0, 0.859), atol=6e-4)
    np.testing.assert_allclose(legacy[18, :3, 3], (1.097, 0, 0.050), atol=6e-4)
    np.testing.assert_allclose(legacy[9], np.eye(4), atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.floats(1, 120), st.floats(0.2, 20), st.floats(-80, 80))
def test_the_orbit_looks_at_its_pivot_from_one_distance(frames, degrees, pivot, tilt):
    c2w = paths.orbit(frames, degrees, pivot, tilt)
    towards = np.array([0, 0, pivot]) - c2w[:, :3, 3]
    np.testing.assert_allclose(towards, pivot * c2w[:, :3, 2], atol=1e-9 * pivot)
    np.testing.assert_allclose(np.linalg.det(c2w[:, :3, :3]), 1.0)
    mirror = np.diag([-1.0, 1, 1])
    np.testing.assert_allclose(c2w[::-1, :3, 3], c2w[:, :3, 3] @ mirror, atol=1e-9 * pivot)
    np.testing.assert_allclose(c2w[:, 1, 0], 0.0, atol=1e-12)  # the picture's rows stay level
    if tilt > 1:
        assert (c2w[:, 1, 3] < 0).all()  # above: y is down


def test_the_default_orbit_is_as_wide_as_the_original_and_symmetric():
    ours, legacy = paths.orbit(), paths.orbit_legacy()
    np.testing.assert_allclose(ours[9], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(ours[:, :3, :3], legacy[:, :3, :3], atol=1e-12)
    span = np.ptp(ours[:, 0, 3]), np.ptp(legacy[:, 0, 3])
    assert 1.0 < span[0] / span[1] < 1.2


def test_spiral_and_dolly_do_not_turn():
    for c2w in (paths.spiral(7, 0.3, 2), paths.dolly(7, -0.4)):
        np.testing.assert_array_equal(c2w[:, :3, :3], np.broadcast_to(np.eye(3), (7, 3, 3)))
    dolly = paths.dolly(21, 0.6)
    np.testing.assert_allclose(dolly[[0, 10, 20], 2, 3], [0, 0.3, 0.6])
    assert (np.diff(dolly[:, 2, 3]) > 0).all()
    assert (dolly[:, :2, 3] == 0).all()


def test_a_dolly_zoom_keeps_the_pivots_size():
    c2w = paths.dolly(9, 1.5)
    fov = paths.dolly_zoom_fov(c2w, 50.0, 2.2)
    shown = (2.2 - c2w[:, 2, 3]) * np.tan(np.radians(fov) / 2)
    np.testing.assert_allclose(shown, 2.2 * np.tan(np.radians(25.0)))
    assert fov[0] == pytest.approx(50.0)
    with pytest.raises(ValueError, match="reaches"):
        paths.dolly_zoom_fov(paths.dolly(3, 2.2), 50.0, 2.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: paths.orbit(1), lambda: paths.orbit(5, 0.0), lambda: paths.orbit(5, 27, -1.0),
        lambda: paths.orbit(5, 27, np.nan), lambda: paths.orbit(5, 27, 2, 90), lambda: paths.spiral(1),
        lambda: paths.spiral(5, 0.0), lambda: paths.spiral(5, 1, np.inf), lambda: paths.dolly(5, 0.0),
        lambda: paths.dolly(1, 1.0), lambda: paths.dolly(5, np.nan),
    ],
)  # fmt: skip
def test_no_path(make):
    with pytest.raises(ValueError, match=r"^no "):
        make()


# ---------------------------------------------------------------------- nerfstudio's JSON


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["orbit", "orbit_legacy", "spiral", "dolly"])
def test_nerfstudio_reads_the_same_poses(name, tmp_path):
    """Spec megascenes 11.5: through ``get_path_from_json`` and back."""
    from nerfstudio.cameras.camera_paths import get_path_from_json

    c2w = getattr(paths, name)()
    path = CameraPath(c2w, np.full(len(c2w), 42.0), 256, 171, 10.0)
    write_path(tmp_path / "path.json", path)
    content = json.loads((tmp_path / "path.json").read_text())
    cameras = get_path_from_json(content)
    np.testing.assert_allclose(rel_from_c2w_ns(cameras.camera_to_worlds.double().numpy()), c2w, atol=1e-6)
    np.testing.assert_allclose(cameras.fx[:, 0], path.K[:, 0, 0], rtol=1e-6)
    assert content["seconds"] == pytest.approx(len(c2w) / 10)
    assert len(content["camera_path"]) == len(c2w)
    assert 0 < len(content["keyframes"]) <= 25


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000), st.integers(1, 4000), st.integers(1, 4000), st.floats(0.1, 240))
def test_a_written_path_is_read_back(tmp_path_factory, count, seed, width, height, fps):
    rng = np.random.default_rng(seed)
    c2w = np.stack([random_pose(rng, 3.0) for _ in range(count)])
    path = CameraPath(c2w, rng.uniform(5, 170, count), width, height, fps, bool(seed % 2))
    file = tmp_path_factory.mktemp("path") / "path.json"
    write_path(file, path)
    found = read_path(file)
    np.testing.assert_allclose(found.c2w_opencv, c2w, atol=1e-9)
    np.testing.assert_array_equal(found.fov, path.fov)
    assert (found.width, found.height, found.closed) == (width, height, path.closed)
    assert found.fps == pytest.approx(fps)


BROKEN = {
    "no json": lambda _: "{",
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
    "long number": lambda _: '{"render_width": ' + "9" * 5000 + "}",
    "fisheye": lambda c: json.dumps(c | {"camera_type": "fisheye"}),
    "type number": lambda c: json.dumps(c | {"camera_type": 3}),
    "no width": lambda c: json.dumps({k: v for k, v in c.items() if k != "render_width"}),
    "half a pixel": lambda c: json.dumps(c | {"render_height": 3.5}),
    "huge": lambda c: json.dumps(c | {"render_height": 1e9}),
    "true": lambda c: json.dumps(c | {"render_height": True}),
    "no cameras": lambda c: json.dumps(c | {"camera_path": []}),
    "cameras no list": lambda c: json.dumps(c | {"camera_path": {}}),
    "camera no object": lambda c: json.dumps(c | {"camera_path": [3]}),
    "no pose": lambda c: json.dumps(c | {"camera_path": [{"fov": 50}]}),
    "short pose": lambda c: json.dumps(c | {"camera_path": [{"fov": 50, "camera_to_world": [1, 2]}]}),
    "words": lambda c: json.dumps(c | {"camera_path": [{"fov": 50, "camera_to_world": ["a"] * 16}]}),
    "flat": lambda c: json.dumps(c | {"camera_path": [{"fov": 50, "camera_to_world": [0] * 16}]}),
    "nan": lambda c: json.dumps(c | {"camera_path": [{"fov": 50, "camera_to_world": [float("nan")] * 16}]}),
    "no fov": lambda c: json.dumps(c | {"camera_path": [{k: v for k, v in c["camera_path"][0].items() if k != "fov"}]}),
    "wide": lambda c: json.dumps(c | {"camera_path": [c["camera_path"][0] | {"fov": 200}]}),
    "no time": lambda c: json.dumps(c | {"seconds": 0}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_path_is_one_clear_error(case, tmp_path):
    file = tmp_path / "path.json"
    file.write_text(BROKEN[case](path_content(CameraPath(paths.spiral(3), np.full(3, 50.0), 64, 48))))
    with pytest.raises(DataError) as caught:
        read_path(file)
    assert str(file) in str(caught.value)
    with pytest.raises(DataError):
        read_path(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "path",
    [
        CameraPath(paths.spiral(3), np.full(2, 50.0), 64, 48),
        CameraPath(paths.spiral(3), np.full(3, 180.0), 64, 48),
        CameraPath(paths.spiral(3) * np.nan, np.full(3, 50.0), 64, 48),
        CameraPath(paths.spiral(3), np.full(3, 50.0), 0, 48),
        CameraPath(paths.spiral(3), np.full(3, 50.0), 64, 48, 0.0),
        CameraPath(np.zeros((0, 4, 4)), np.zeros(0), 64, 48),
    ],
)
def test_no_film(path):
    with pytest.raises(ValueError, match=r"path|film"):
        path_content(path)
