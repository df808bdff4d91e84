"""Camera paths as nerfstudio's JSON and EasyMocap's yml: through the readers of both worlds and back."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.frames import transform_cameras, w2c_opencv_from_c2w_opengl
from dataparsers.easymocap import read_cameras
from r4dv_ns.path_file import (
    CameraPath,
    focal_of,
    fov_of,
    path_content,
    read_path,
    read_path_yml,
    write_path,
    write_path_yml,
)

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    from nerfstudio.cameras.camera_paths import get_path_from_json

IN_PLACE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VIEWER_KEYS = {
    "default_fov", "default_time", "default_transition_sec", "keyframes", "camera_type", "render_height",
    "render_width", "fps", "seconds", "is_cycle", "smoothness_value", "camera_path",
}  # fmt: skip
"""What nerfstudio 1.1.5's viewer writes where the data have times."""


def random_path(count: int = 5, seed: int = 0, reach: float = 3.0, **other) -> CameraPath:
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    c2w[:, :3, 3] = reach * rng.normal(size=(count, 3))
    return CameraPath(c2w, rng.uniform(1, 170, count), rng.uniform(0, 1, count), **{"width": 64, "height": 48, **other})


def rigid(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = np.random.default_rng(seed).normal(size=3)
    return matrix


def assert_same(found: CameraPath, path: CameraPath) -> None:
    np.testing.assert_allclose(found.c2w, path.c2w, atol=1e-10 * max(1.0, np.abs(path.c2w).max()))
    np.testing.assert_array_equal(found.fov, path.fov)
    np.testing.assert_array_equal(found.times, path.times)
    assert (found.width, found.height, found.closed) == (path.width, path.height, path.closed)
    assert found.fps == pytest.approx(path.fps)


path_arguments = st.fixed_dictionaries({
    "count": st.integers(1, 40), "seed": st.integers(0, 999), "reach": st.floats(1e-3, 1e5),
    "width": st.integers(1, 5000), "height": st.integers(1, 5000), "fps": st.floats(0.01, 500), "closed": st.booleans(),
})  # fmt: skip


@IN_PLACE
@given(path_arguments, st.integers(0, 99))
def test_json_there_and_back(tmp_path, arguments, seed):
    path, transform = random_path(**arguments), rigid(seed)
    write_path(tmp_path / "path.json", path, transform)
    assert_same(read_path(tmp_path / "path.json", transform), path)
    content = json.loads((tmp_path / "path.json").read_text())
    assert set(content) == VIEWER_KEYS
    assert all(set(each) == {"camera_to_world", "fov", "aspect", "render_time"} for each in content["camera_path"])
    assert content["seconds"] * content["fps"] == pytest.approx(len(path))
    assert 1 <= len(content["keyframes"]) <= 25


@IN_PLACE
@given(path_arguments)
def test_yml_there_and_back(tmp_path, arguments):
    path = random_path(**arguments)
    write_path_yml(tmp_path / "path", path)
    found = read_path_yml(tmp_path / "path")
    np.testing.assert_allclose(found.c2w, path.c2w, atol=1e-9 * max(1.0, np.abs(path.c2w).max()))
    np.testing.assert_allclose(found.focal * (path.width, path.height), path.focal[:, None] * [1, 1], rtol=1e-12)
    np.testing.assert_array_equal(found.times, path.times)
    assert found.size == (path.width, path.height)
    assert found.plain


@IN_PLACE
@given(path_arguments, st.integers(0, 99))
def test_nerfstudio_reads_the_same_cameras(tmp_path, arguments, seed):
    """Round trip JSON -> nerfstudio's Cameras, float32: poses, focal lengths, size, times."""
    path, transform = random_path(**arguments), rigid(seed)
    content = json.loads(json.dumps(path_content(path, transform)))
    cameras = get_path_from_json(content)
    meant = transform_cameras(path.c2w, transform[:3])[:, :3].astype(np.float32)
    np.testing.assert_array_equal(cameras.camera_to_worlds.numpy(), meant)
    for focal in (cameras.fx, cameras.fy):
        np.testing.assert_allclose(focal[:, 0].numpy(), path.focal, rtol=1e-6)
    assert cameras.times is not None
    np.testing.assert_array_equal(cameras.times.numpy().ravel(), path.times.astype(np.float32))
    assert {int(side) for side in cameras.width.ravel()} == {path.width}
    assert {int(side) for side in cameras.height.ravel()} == {path.height}
    np.testing.assert_allclose(cameras.cx.numpy(), path.width / 2)


def test_the_viewer_s_render_tab_gets_keyframes_of_the_path():
    path = random_path(100, fps=25.0)
    content = path_content(path, np.eye(4))
    rows = np.linspace(0, 99, 25).round().astype(int)
    for keyframe, row in zip(content["keyframes"], rows, strict=True):
        np.testing.assert_array_equal(np.reshape(keyframe["matrix"], (4, 4)), path.c2w[row])
        assert keyframe["fov"] == path.fov[row]
        assert keyframe["render_time"] == path.times[row]
        assert keyframe["override_time_enabled"]
    assert content["default_transition_sec"] * 24 == pytest.approx(4.0)
    assert content["fps"] == 25
    assert isinstance(content["fps"], int)


def test_the_yml_is_a_calibration_in_the_files_world(tmp_path):
    path = random_path(3)
    write_path_yml(tmp_path / "cameras", path)
    cameras = read_cameras(tmp_path / "cameras" / "intri.yml", tmp_path / "cameras" / "extri.yml")
    assert list(cameras) == ["000000", "000001", "000002"]
    for camera, w2c, focal in zip(cameras.values(), w2c_opencv_from_c2w_opengl(path.c2w), path.focal, strict=True):
        np.testing.assert_allclose(camera.w2c, w2c, atol=1e-12)
        np.testing.assert_allclose(camera.K, [[focal, 0, 32], [0, focal, 24], [0, 0, 1]])
        assert (camera.width, camera.height) == (64, 48)


def test_a_path_that_stands_still_at_the_beginning_keeps_its_times(tmp_path):
    """t_ is 0 by default: it must be written nevertheless."""
    still = random_path(3)
    still = CameraPath(still.c2w, still.fov, np.zeros(3), 64, 48)
    write_path_yml(tmp_path, still)
    np.testing.assert_array_equal(read_path_yml(tmp_path).times, np.zeros(3))
    text = (tmp_path / "extri.yml").read_text()
    (tmp_path / "extri.yml").write_text("".join(line for line in text.splitlines(True) if not line.startswith("t_")))
    assert read_path_yml(tmp_path).times is None


def test_other_calibrations_as_paths(tmp_path):
    write_path_yml(tmp_path, random_path(2))
    text = (tmp_path / "intri.yml").read_text()
    assert read_path_yml(tmp_path).plain

    def replaced(old: str, new: str):
        assert old in text
        (tmp_path / "intri.yml").write_text(text.replace(old, new))
        return read_path_yml(tmp_path)

    assert replaced("W_000001: 64.", "W_000001: 66").size is None
    unsized = replaced("H_000001: 48.\n", "")  # the principal point tells
    assert unsized.size is None
    assert unsized.plain
    np.testing.assert_allclose(unsized.focal[1] * (64, 48), random_path(2).focal[1])
    assert not replaced("W_000001: 64.", "W_000001: 70").plain


def test_fields_of_view():
    assert fov_of(np.array([24.0]), 48) == pytest.approx(90)
    np.testing.assert_allclose(fov_of(focal_of(np.array([1e-2, 20.0, 179.0]), 7), 7), [1e-2, 20, 179])


@pytest.mark.parametrize("change", [
    {"times": np.array([0.0, 2.0])}, {"fov": np.array([0.0, 3.0])}, {"fov": np.array([1.0])},
    {"c2w": np.full((2, 4, 4), np.nan)}, {"c2w": np.zeros((0, 4, 4)), "fov": np.zeros(0), "times": np.zeros(0)},
])  # fmt: skip
def test_no_path_is_made_of_what_is_none(change):
    good = {"c2w": np.tile(np.eye(4), (2, 1, 1)), "fov": np.array([40.0, 50.0]), "times": np.zeros(2)}
    with pytest.raises(ValueError, match=r"path|outside"):
        CameraPath(**{**good, **change}, width=4, height=4)


# ---------------------------------------------------------------------- what others wrote


def test_viewer_paths_without_times_and_with_nested_matrices(tmp_path):
    content = path_content(random_path(3), np.eye(4))
    for each in content["camera_path"]:
        each["camera_to_world"] = np.reshape(each["camera_to_world"], (4, 4)).tolist()
        del each["render_time"]
    del content["is_cycle"], content["camera_type"]
    write_json(tmp_path / "path.json", content)
    found = read_path(tmp_path / "path.json")
    np.testing.assert_array_equal(found.times, np.zeros(3))
    np.testing.assert_allclose(found.c2w, random_path(3).c2w, atol=1e-12)


def test_times_that_the_viewer_s_splines_carry_beyond_the_ends(tmp_path):
    content = path_content(random_path(3), np.eye(4))
    content["camera_path"][0]["render_time"] = -0.03
    content["camera_path"][2]["render_time"] = 1.04
    write_json(tmp_path / "path.json", content)
    times = read_path(tmp_path / "path.json").times
    np.testing.assert_array_equal(times, [0, random_path(3).times[1], 1])


def edits():
    """(what is changed, where the error points)."""
    return [
        (lambda c: c.update(camera_type="equirectangular"), "camera_type"),
        (lambda c: c.update(camera_type=3), "camera_type"),
        (lambda c: c.pop("render_height"), "render_height"),
        (lambda c: c.update(render_width=0), "render_width"),
        (lambda c: c.update(render_width=10.5), "render_width"),
        (lambda c: c.update(render_width=True), "render_width"),
        (lambda c: c.pop("camera_path"), "camera_path"),
        (lambda c: c.update(camera_path=[]), "camera_path"),
        (lambda c: c.update(camera_path={"a": 1}), "camera_path"),
        (lambda c: c.update(camera_path=[1]), "camera 0"),
        (lambda c: c.update(seconds=-1), "seconds"),
        (lambda c: c["camera_path"][1].pop("camera_to_world"), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=[1.0] * 15), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=["x"] * 16), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=[[1.0], [1.0, 2.0]]), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=[0.0] * 16), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=[float("nan")] * 16), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][1].update(camera_to_world=[10**400] * 16), "camera 1, camera_to_world"),
        (lambda c: c["camera_path"][2].pop("fov"), "camera 2, fov"),
        (lambda c: c["camera_path"][2].update(fov=180), "camera 2, fov"),
        (lambda c: c["camera_path"][2].update(fov="wide"), "camera 2, fov"),
        (lambda c: c["camera_path"][0].update(render_time=2.5), "camera 0, render_time"),
        (lambda c: c["camera_path"][0].update(render_time=float("nan")), "camera 0, render_time"),
    ]


@pytest.mark.parametrize("number", range(len(edits())))
def test_bad_json_is_named(tmp_path, number):
    edit, place = edits()[number]
    content = copy.deepcopy(path_content(random_path(3), np.eye(4)))
    edit(content)
    (tmp_path / "path.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_path(tmp_path / "path.json")
    assert place in error.value.place
    assert error.value.file == str(tmp_path / "path.json")
    assert error.value.remedy


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "1" * 5000, '{"camera_path": ' + "1" * 5000 + "}"])
def test_what_is_no_json_object(tmp_path, text):
    (tmp_path / "path.json").write_text(text)
    with pytest.raises(DataError):
        read_path(tmp_path / "path.json")
    with pytest.raises(DataError, match="is not a file"):
        read_path(tmp_path / "other.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@IN_PLACE
@given(
    st.sampled_from(sorted(VIEWER_KEYS)), st.sampled_from(["", "camera_to_world", "fov", "render_time"]), json_values
)
def test_any_value_in_any_place_is_read_or_refused(tmp_path, key, inner, value):
    content = path_content(random_path(3), np.eye(4))
    if inner:
        content["camera_path"][1][inner] = value
    else:
        content[key] = value
    file: Path = tmp_path / "path.json"
    file.write_text(json.dumps(content))
    try:
        assert len(read_path(file)) >= 1
    except DataError as error:
        assert error.file == str(file)  # noqa: PT017


def test_bad_yml_times_are_named(tmp_path):
    write_path_yml(tmp_path, random_path(2))
    text = (tmp_path / "extri.yml").read_text()
    start = text.index("\nt_000001")
    (tmp_path / "extri.yml").write_text(text[:start] + "\nt_000001: 7.0" + text[text.index("\n", start + 1) :])
    with pytest.raises(DataError, match="no time between 0 and 1") as error:
        read_path_yml(tmp_path)
    assert error.value.place == "t_000001"
    with pytest.raises(DataError):
        read_path_yml(tmp_path / "nowhere")
