"""Metashape xml: the format's own numbers (fixtures), synthetic projects (spec xscale A5), and damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from core_ns.frames import project
from dataparsers.metashape import ImageFolder, Similarity, read_metashape
from dataparsers.undistort import project_distorted

TERMS = {"k1": -0.06, "k2": 0.02, "k3": -0.003, "k4": 0.0007, "p1": 0.002, "p2": -0.0013}


def numbers(array: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in np.asarray(array).ravel())


def transform_xml(s: Similarity) -> str:
    return (
        f"<transform><rotation locked='true'>{numbers(s.rotation)}</rotation>"
        f"<translation>{numbers(s.translation)}</translation><scale>{s.scale!r}</scale></transform>"
    )


SENSOR = (
    "<sensor id='0' label='A' type='frame'><resolution width='640' height='480'/>"
    "<calibration class='initial' type='frame'><resolution width='640' height='480'/><f>9</f><cx>99</cx></calibration>"
    "<calibration class='adjusted' type='frame'><resolution width='640' height='480'/><f>500.5</f><cy>7.25</cy>"
    "<b1>1.5</b1><b2>-0.9</b2>" + "".join(f"<{k}>{v}</{k}>" for k, v in TERMS.items()) + "</calibration></sensor>"
)
POSE = "<transform>1 0 0 0 0 1 0 0 0 0 1 -5 0 0 0 1</transform>"
CAMERA = f"<camera id='0' sensor_id='0' label='a.jpg'>{POSE}</camera>"


def document(cameras: str = CAMERA, sensors: str = SENSOR, rest: str = "", chunk: str = "label='c'") -> str:
    return f"<document><chunk {chunk}><sensors>{sensors}</sensors><cameras>{cameras}</cameras>{rest}</chunk></document>"


def metashape_pixels(points_local: np.ndarray, c2l: np.ndarray) -> np.ndarray:
    """The projection as Metashape's manual writes it, in Metashape's own parameters."""
    camera = (points_local - c2l[:3, 3]) @ c2l[:3, :3]
    x, y = camera[:, 0] / camera[:, 2], camera[:, 1] / camera[:, 2]
    k1, k2, k3, k4, p1, p2 = TERMS.values()
    r = np.hypot(x, y)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8
    xd = x * radial + p1 * (r**2 + 2 * x**2) + 2 * p2 * x * y
    yd = y * radial + p2 * (r**2 + 2 * y**2) + 2 * p1 * x * y
    f, b1, b2, cx, cy = 500.5, 1.5, -0.9, 0.0, 7.25
    return np.stack([640 / 2 + cx + xd * f + xd * b1 + yd * b2, 480 / 2 + cy + yd * f], axis=-1)


def pose(rng: np.random.Generator) -> np.ndarray:
    """A camera-to-local matrix that looks at the origin's neighbourhood from about 5 units away."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    matrix[:3, 3] = -5.0 * matrix[:3, 2] + rng.normal(0, 0.1, 3)
    return matrix


def test_known_points_project_in_both_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    poses = [pose(rng) for _ in range(4)]
    rotations = Rotation.random(2, random_state=5).as_matrix()
    component = Similarity(rotations[0], np.array([512345.5, 4100200.25, -33.0]), 3.7)
    chunk = Similarity(rotations[1], np.array([1.0, -2.0, 30.0]), 0.25)
    entries = []
    for i, matrix in enumerate(poses):
        member = "component_id='1'" if i < 3 else ""
        attributes = f"id='{i}' sensor_id='0' label='v{i}' {member}"
        entries.append(f"<camera {attributes}><transform>{numbers(matrix)}</transform></camera>")
    cameras = (
        f"{entries[0]}<group id='0' label='g'>{entries[1]}<group id='1'>{entries[2]}</group></group>{entries[3]}"
        "<camera id='9' sensor_id='0' label='lost'/>"
    )
    rest = f"<components><component id='1' label='x'>{transform_xml(component)}</component></components>"
    path = tmp_path / "cams.xml"
    path.write_text(document(cameras, rest=rest + transform_xml(chunk)))
    scene = read_metashape(path)
    assert [camera.label for camera in scene.cameras] == ["v0", "v1", "v2", "v3"]
    assert scene.components == {"1", None}
    assert scene.skipped == (("lost", "not aligned"),)
    local = rng.uniform(-2.0, 2.0, (60, 3))
    for i, camera in enumerate(scene.cameras):
        similarity = component if i < 3 else chunk
        world = similarity.scale * local @ similarity.rotation.T + similarity.translation
        expected = metashape_pixels(local, poses[i])
        assert camera.w2c_world is not None
        for points, w2c, scale in ((local, camera.w2c_local, 1.0), (world, camera.w2c_world, similarity.scale)):
            found, depth = project_distorted(points, camera.calibration, w2c)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 if scale > 1 else 1e-8)
            np.testing.assert_allclose(depth, scale * ((local - poses[i][:3, 3]) @ poses[i][:3, 2]), rtol=1e-6)
            np.testing.assert_allclose(w2c[:3, :3] @ w2c[:3, :3].T, np.eye(3), atol=1e-9)
            # The tolerance is sharp enough to notice each of the traps of the format.
            for trap in ({"p1": TERMS["p1"], "p2": TERMS["p2"]}, {"skew": 0.0}, {"fx": 500.5}, {"k4": 0.0}):
                wrong = replace(camera.calibration, **trap)
                assert np.abs(project_distorted(points, wrong, w2c)[0] - expected).max() > 2e-3


def test_fixture_values(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "xscale" / "metashape"
    expected = json.loads((folder / "expected.json").read_text())
    scene = read_metashape(folder / "cams.xml")
    assert dict(scene.skipped) == expected["correct_skipped"]
    assert [camera.label for camera in scene.cameras] == list(expected["correct"])
    for camera in scene.cameras:
        want = expected["correct"][camera.label]
        names = {"p1": "p1_opencv", "p2": "p2_opencv"}
        for name in ("width", "height", "fx", "fy", "cx", "cy", "skew", "k1", "k2", "k3", "k4", "p1", "p2"):
            assert getattr(camera.calibration, name) == pytest.approx(
                want["intrinsics"][names.get(name, name)], abs=1e-9
            ), name
        np.testing.assert_allclose(camera.w2c_local, want["w2c_chunk_local"], rtol=0, atol=1e-9)
        assert camera.w2c_world is not None
        np.testing.assert_allclose(camera.w2c_world, want["w2c_world"], rtol=0, atol=1e-9)


def test_fixture_without_principal_point(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "xscale" / "metashape"
    full, without = read_metashape(folder / "cams.xml"), read_metashape(folder / "cams_without_cx.xml")
    for camera, other in zip(full.cameras, without.cameras, strict=True):
        wanted = camera.calibration
        if camera.label in ("IMG_0003", "IMG_0006"):
            wanted = replace(wanted, cx=30.0, cy=20.0)
        assert other.calibration == wanted
        np.testing.assert_array_equal(other.w2c_local, camera.w2c_local)


def test_initial_calibration_is_used_when_it_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "cams.xml"
    path.write_text(document(sensors=SENSOR.replace("class='adjusted'", "class='other'")))
    calibration = read_metashape(path).cameras[0].calibration
    assert (calibration.fx, calibration.cx, calibration.cy) == (9.0, 419.0, 240.0)
    assert read_metashape(path).cameras[0].w2c_world is None


def test_scaled_pose_keeps_its_centre(tmp_path: Path) -> None:
    path = tmp_path / "cams.xml"
    scaled = "<transform>2 0 0 3 0 2 0 4 0 0 2 5 0 0 0 1</transform>"
    path.write_text(document(CAMERA.replace(POSE, scaled)))
    w2c = read_metashape(path).cameras[0].w2c_local
    np.testing.assert_allclose(w2c, [[1, 0, 0, -3], [0, 1, 0, -4], [0, 0, 1, -5], [0, 0, 0, 1]], atol=1e-12)


def test_other_sensor_types_are_skipped_with_the_reason(tmp_path: Path) -> None:
    fisheye = SENSOR.replace("id='0'", "id='1'").replace("type='frame'", "type='fisheye'")
    second = CAMERA.replace("id='0' sensor_id='0' label='a.jpg'", "id='1' sensor_id='1' label='b'")
    rig = "<camera id='2' master_id='0' sensor_id='0' label='c'/>"
    path = tmp_path / "cams.xml"
    path.write_text(document(CAMERA + second + rig, SENSOR + fisheye))
    scene = read_metashape(path)
    assert [camera.label for camera in scene.cameras] == ["a.jpg"]
    assert dict(scene.skipped)["b"] == "sensor 1 is of type fisheye, only frame is supported"
    assert "rig camera" in dict(scene.skipped)["c"]
    path.write_text(document(second, fisheye))
    with pytest.raises(DataError, match=r"no usable camera.*type fisheye"):
        read_metashape(path)


def test_chunks_by_label_and_enabled_state(tmp_path: Path) -> None:
    path = tmp_path / "cams.xml"
    inner = [document(CAMERA.replace("a.jpg", name), chunk=f"label='{name}'")[10:-11] for name in ("one", "two")]
    path.write_text(f"<document>{inner[0]}{inner[1]}</document>")
    with pytest.raises(DataError, match=r"\['one', 'two'\]"):
        read_metashape(path)
    assert read_metashape(path, chunk="two").cameras[0].label == "two"
    disabled = inner[0].replace("<chunk", "<chunk enabled='0'")
    path.write_text(f"<document>{disabled}{inner[1]}</document>")
    assert read_metashape(path).cameras[0].label == "two"


NESTED = "<!ENTITY a 'ha'>" + "".join(f"<!ENTITY a{i} '&a;&a;'>" for i in range(9))
BROKEN = {
    "malformed": ("<document><chunk>", r"line 1.*malformed XML"),
    "empty": ("", "malformed XML"),
    "entities": (f"<!DOCTYPE d [{NESTED}]>{document()}", "DOCTYPE d.*refused"),
    "external": (f"<!DOCTYPE d SYSTEM 'file:///etc/hostname'>{document()}", "DOCTYPE d.*refused"),
    "no chunk": ("<html/>", "<html>.*not a camera export"),
    "no cameras": ("<document><chunk><sensors/></chunk></document>", "no <cameras>"),
    "no sensor": (document(CAMERA.replace("sensor_id='0'", "sensor_id='5'")), r"camera 'a.jpg'.*sensor '5'"),
    "no sensor id": (document(CAMERA.replace("sensor_id='0'", "")), r"camera 'a.jpg'.*sensor 'None'"),
    "double sensor": (document(sensors=SENSOR + SENSOR), "sensor 0.*twice"),
    "double camera": (document(CAMERA + CAMERA), "camera id 0 occurs twice"),
    "15 numbers": (document(CAMERA.replace("-5 0 0 0 1", "-5 0 0 0")), r"camera 'a.jpg' transform.*16 numbers.*15"),
    "nan": (document(CAMERA.replace("-5", "nan")), r"transform.*'nan' is not a finite"),
    "huge": (document(CAMERA.replace("-5", "1e999")), "'1e999' is not a finite"),
    "underscore": (document(CAMERA.replace("-5", "1_0")), "'1_0' is not a finite"),
    "comma": (document(sensors=SENSOR.replace("500.5", "500,5")), r"sensor 0 calibration <f>.*'500,5'"),
    "mirrored": (document(CAMERA.replace("0 0 1 -5", "0 0 -1 -5")), r"camera 'a.jpg' transform.*mirrors"),
    "singular": (document(CAMERA.replace("0 0 1 -5", "0 0 0 -5")), r"camera 'a.jpg' transform.*[Ss]ingular"),
    "sheared": (document(CAMERA.replace("1 0 0 0 0 1", "1 0.2 0 0 0 1")), "not orthonormal"),
    "no f": (document(sensors=SENSOR.replace("f>", "g>")), "focal length <f> is missing"),
    "negative f": (document(sensors=SENSOR.replace("500.5", "-500.5")), "not positive"),
    "empty f": (document(sensors=SENSOR.replace("500.5", "")), "<f>.*1 number expected, 0 found"),
    "p3": (document(sensors=SENSOR.replace("<b1>", "<p3>0.1</p3><b1>")), "<p3>.*cannot be represented"),
    "no resolution": (document(sensors=SENSOR.replace("resolution", "size")), "no <resolution>"),
    "odd resolution": (document(sensors=SENSOR.replace("640", "640.5")), "not a size"),
    "no calibration": (document(sensors="<sensor id='0'/>"), "sensor 0.*no <calibration>"),
    "all off": (document(CAMERA.replace("label", "enabled='false' label")), "no usable camera among 1: disabled"),
    "8 numbers": (
        document(rest="<transform><rotation>1 0 0 0 1 0 0 0</rotation></transform>"),
        "<rotation>.*9 numbers",
    ),
    "scale 0": (document(rest="<transform><scale>0</scale></transform>"), "chunk transform <scale>.*not positive"),
    "big rotation": (document(rest="<transform><rotation>2 0 0 0 2 0 0 0 2</rotation></transform>"), "determinant"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_the_element(tmp_path: Path, name: str) -> None:
    text, message = BROKEN[name]
    path = tmp_path / "cams.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_metashape(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy


def test_doctype_is_refused_in_every_encoding(tmp_path: Path) -> None:
    path = tmp_path / "cams.xml"
    path.write_bytes(
        f"<?xml version='1.0' encoding='UTF-16'?><!DOCTYPE d [<!ENTITY a 'b'>]>{document()}".encode("utf-16")
    )
    with pytest.raises(DataError, match="DOCTYPE"):
        read_metashape(path)
    path.write_bytes(f"<?xml version='1.0' encoding='UTF-16'?>{document()}".encode("utf-16"))
    assert len(read_metashape(path).cameras) == 1


def test_missing_file_and_deep_groups(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_metashape(tmp_path / "none.xml")
    path = tmp_path / "cams.xml"
    path.write_text(document("<group>" * 3000 + CAMERA + "</group>" * 3000))
    assert len(read_metashape(path).cameras) == 1


def test_labels_find_photos(tmp_path: Path) -> None:
    for name in ("IMG_1.JPG", "img_2.jpeg", "DJI.0003.jpg", "sub/deep.PNG", "x/same.jpg", "y/same.jpg", "same2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x/same2.jpg").touch()
    (tmp_path / "notes.txt").touch()
    folder = ImageFolder(tmp_path)
    found = {
        label: folder.find(label)
        for label in (
            "img_1",
            "IMG_1.jpg",
            "IMG_1.tif",
            "IMG_2",
            "DJI.0003",
            "deep",
            "sub/deep",
            "x/same",
            "x\\same.JPG",
        )
    }
    assert {label: path and path.relative_to(tmp_path).as_posix() for label, path in found.items()} == {
        "img_1": "IMG_1.JPG",
        "IMG_1.jpg": "IMG_1.JPG",
        "IMG_1.tif": "IMG_1.JPG",
        "IMG_2": "img_2.jpeg",
        "DJI.0003": "DJI.0003.jpg",
        "deep": "sub/deep.PNG",
        "sub/deep": "sub/deep.PNG",
        "x/same": "x/same.jpg",
        "x\\same.JPG": "x/same.jpg",
    }
    assert folder.find("same2") == tmp_path / "same2.jpg"
    assert folder.find("DJI") is None
    assert folder.find("notes") is None
    with pytest.raises(DataError, match=r"photo of 'same'.*x/same.jpg, y/same.jpg"):
        folder.find("same")
    with pytest.raises(DataError, match="not a folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "z").mkdir()
    with pytest.raises(DataError, match="holds no"):
        ImageFolder(tmp_path / "z")


def test_upstream_faults_are_not_reproduced(shared_fixtures: Path) -> None:
    """The original's files use the first calibration; ours must differ from them exactly where that matters."""
    from dataparsers.mvsnet import read_cam

    folder = shared_fixtures / "xscale" / "metashape"
    cameras = {camera.label: camera for camera in read_metashape(folder / "cams.xml").cameras}
    written = {path.name.removesuffix("_cam.txt"): path for path in (folder / "upstream_cams_1").glob("*_cam.txt")}
    assert set(cameras) - set(written) == {"IMG_0006"}  # in a group
    assert set(written) - set(cameras) == {"IMG_0005"}  # disabled
    for label in set(cameras) & set(written):
        upstream, ours = read_cam(written[label]), cameras[label]
        np.testing.assert_allclose(upstream.w2c, ours.w2c_local, atol=1e-9)  # this part it does right
        points = ours.w2c_local[:3, :3].T @ (np.array([0.1, -0.1, 1.0]) - ours.w2c_local[:3, 3])
        theirs = project(points[None], upstream.intrinsics, upstream.w2c)[0]
        correct = project_distorted(points[None], ours.calibration, ours.w2c_local)[0]
        gap = float(np.abs(theirs - correct).max())
        assert gap > 1.0 if label != "IMG_0003" else gap < 1e-5
