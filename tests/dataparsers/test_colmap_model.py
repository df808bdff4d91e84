"""COLMAP models: both file forms, pycolmap as the judge, id gaps (spec xscale A6), and damaged files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from dataparsers.colmap_model import (
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    calibration_of,
    depth_range,
    find_model,
    read_model,
    write_binary,
)
from dataparsers.colmap_text import write_text
from dataparsers.undistort import project_distorted

WRITERS = {"bin": write_binary, "txt": write_text}
PARAMS = {
    "SIMPLE_PINHOLE": (210.0, 101.0, 74.0),
    "PINHOLE": (210.0, 220.0, 101.0, 74.0),
    "SIMPLE_RADIAL": (210.0, 101.0, 74.0, -0.1),
    "RADIAL": (210.0, 101.0, 74.0, -0.1, 0.03),
    "OPENCV": (210.0, 220.0, 101.0, 74.0, -0.1, 0.03, 0.004, -0.002),
    "FULL_OPENCV": (210.0, 220.0, 101.0, 74.0, -0.1, 0.03, 0.004, -0.002, 0.01, 0.0, 0.0, 0.0),
}


def make_model(folder: Path, models: tuple[str, ...] = ("PINHOLE", "OPENCV", "SIMPLE_RADIAL")) -> ColmapModel:
    """Cameras around a cloud of 40 points; ids with gaps and out of order; key points are exact projections."""
    rng = np.random.default_rng(7)
    camera_ids, image_ids = [9, 2, 30], [12, 3, 700, 4]
    cameras = {i: ColmapCamera(i, m, 200, 150, PARAMS[m]) for i, m in zip(camera_ids, models, strict=False)}
    point_ids = rng.permutation(np.arange(5, 5 + 3 * 40, 3)).astype(np.int64)
    xyz = rng.uniform(-1, 1, (40, 3))
    images: dict[int, ColmapImage] = {}
    tracks: list[list[tuple[int, int]]] = [[] for _ in point_ids]
    for n, image_id in enumerate(image_ids):
        camera_id = camera_ids[n % len(cameras)]
        rotation = Rotation.random(random_state=n)
        x, y, z, w = rotation.as_quat()
        bare = ColmapImage(
            image_id,
            (w, x, y, z),
            (*rng.uniform(-0.3, 0.3, 2), 5.0 + n),
            camera_id,
            f"strip {n}/view {n}.JPG",
            np.zeros((0, 2)),
            np.zeros(0, np.int64),
        )
        pixels, _ = project_distorted(xyz, calibration_of(cameras[camera_id], "x"), bare.w2c)
        seen = rng.permutation(40)[:25]
        keypoints = np.concatenate([[[1.5, 2.5]], pixels[seen]])  # one key point without a 3D point
        images[image_id] = replace(bare, keypoints=keypoints, point_ids=np.concatenate([[-1], point_ids[seen]]))
        for index, point in enumerate(seen):
            tracks[point].append((image_id, index + 1))
    points = ColmapPoints(
        point_ids,
        xyz,
        rng.integers(0, 256, (40, 3)).astype(np.uint8),
        rng.uniform(0, 1, 40),
        tuple(np.array(track, np.int64).reshape(-1, 2) for track in tracks),
    )
    return ColmapModel(folder, cameras, images, points)


def assert_same(found: ColmapModel, expected: ColmapModel) -> None:
    assert found.cameras == expected.cameras
    assert found.images.keys() == expected.images.keys()
    for key, image in expected.images.items():
        other = found.images[key]
        assert (other.quaternion, other.translation, other.camera_id, other.name) == (
            image.quaternion,
            image.translation,
            image.camera_id,
            image.name,
        )
        np.testing.assert_array_equal(other.keypoints, image.keypoints)
        np.testing.assert_array_equal(other.point_ids, image.point_ids)
    for name in ("ids", "xyz", "rgb", "errors"):
        np.testing.assert_array_equal(getattr(found.points, name), getattr(expected.points, name))
    for track, other in zip(found.points.tracks, expected.points.tracks, strict=True):
        np.testing.assert_array_equal(track, other)


@pytest.mark.parametrize("form", WRITERS)
def test_round_trip_is_exact(tmp_path: Path, form: str) -> None:
    model = make_model(tmp_path)
    WRITERS[form](model, tmp_path)
    assert_same(read_model(tmp_path), model)


@pytest.mark.parametrize("form", WRITERS)
def test_key_points_are_reproduced_in_spite_of_id_gaps(tmp_path: Path, form: str) -> None:
    WRITERS[form](make_model(tmp_path), tmp_path)
    model = read_model(tmp_path)
    row = {int(point): i for i, point in enumerate(model.points.ids)}
    for image in model.images.values():
        calibration = calibration_of(model.cameras[image.camera_id], tmp_path)
        has_point = image.point_ids >= 0
        xyz = model.points.xyz[[row[int(point)] for point in image.point_ids[has_point]]]
        pixels, _ = project_distorted(xyz, calibration, image.w2c)
        np.testing.assert_allclose(pixels, image.keypoints[has_point], rtol=0, atol=1e-6)


def test_pose_agrees_with_scipy_for_any_length_of_quaternion(tmp_path: Path) -> None:
    image = make_model(tmp_path).images[700]
    w, x, y, z = image.quaternion
    np.testing.assert_allclose(image.w2c[:3, :3], Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-14)
    longer = replace(image, quaternion=(3 * w, 3 * x, 3 * y, 3 * z))
    np.testing.assert_allclose(longer.w2c, image.w2c, atol=1e-14)


def test_pycolmap_reads_what_we_write(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = make_model(tmp_path)
    # pycolmap's own text reader ends a name at the first blank.
    model = replace(model, images={i: replace(m, name=m.name.replace(" ", "-")) for i, m in model.images.items()})
    for form, writer in WRITERS.items():
        folder = tmp_path / form
        folder.mkdir()
        writer(model, folder)
        judge = pycolmap.Reconstruction(str(folder))
        assert set(judge.images) == set(model.images)
        for key, image in judge.images.items():
            ours = model.images[key]
            assert image.name == ours.name
            np.testing.assert_allclose(image.cam_from_world().matrix(), ours.w2c[:3], atol=1e-12)
            calibration = calibration_of(model.cameras[ours.camera_id], folder)
            pixels, _ = project_distorted(model.points.xyz, calibration, ours.w2c)
            camera_points = model.points.xyz @ ours.w2c[:3, :3].T + ours.w2c[:3, 3]
            theirs = judge.cameras[image.camera_id].img_from_cam(camera_points)
            np.testing.assert_allclose(theirs, pixels, atol=1e-9)
        for i, point in enumerate(model.points.ids):
            np.testing.assert_array_equal(judge.points3D[int(point)].xyz, model.points.xyz[i])
            assert len(judge.points3D[int(point)].track.elements) == len(model.points.tracks[i])


def test_we_read_what_pycolmap_writes(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = make_model(tmp_path)
    write_binary(model, tmp_path)
    judge = pycolmap.Reconstruction(str(tmp_path))
    for form in WRITERS:
        folder = tmp_path / form
        folder.mkdir()
        getattr(judge, "write_binary" if form == "bin" else "write_text")(str(folder))
        found = read_model(folder)
        assert found.cameras == model.cameras
        assert set(found.images) == set(model.images)
        for key, image in found.images.items():
            np.testing.assert_allclose(image.w2c, model.images[key].w2c, atol=1e-12)
            np.testing.assert_allclose(image.keypoints, model.images[key].keypoints, atol=1e-9)
            np.testing.assert_array_equal(image.point_ids, model.images[key].point_ids)
        order, wanted = np.argsort(found.points.ids), np.argsort(model.points.ids)
        np.testing.assert_allclose(found.points.xyz[order], model.points.xyz[wanted], atol=1e-12)
        np.testing.assert_array_equal(found.points.rgb[order], model.points.rgb[wanted])


def test_camera_model_table_agrees_with_pycolmap() -> None:
    pycolmap = pytest.importorskip("pycolmap")
    checked = 0
    for name, (number, count) in CAMERA_MODELS.items():
        if name in pycolmap.CameraModelId.__members__:
            identity = pycolmap.CameraModelId.__members__[name]
            camera = pycolmap.Camera.create_from_model_id(1, identity, 100.0, 10, 10)
            assert (int(identity), len(camera.params)) == (number, count), name
            checked += 1
    assert checked >= 11


@pytest.mark.parametrize("name", PARAMS)
def test_every_representable_model_agrees_with_pycolmap(name: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    camera = ColmapCamera(1, name, 200, 150, PARAMS[name])
    judge = pycolmap.Camera(model=name, width=200, height=150, params=list(PARAMS[name]))
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 4], (50, 3))
    pixels, _ = project_distorted(points, calibration_of(camera, "x"), np.eye(4))
    np.testing.assert_allclose(pixels, judge.img_from_cam(points), atol=1e-9)


@pytest.mark.parametrize("name", [*sorted(set(CAMERA_MODELS) - set(PARAMS)), "FULL_OPENCV"])
def test_other_models_are_refused_with_a_remedy(name: str) -> None:
    camera = ColmapCamera(4, name, 200, 150, (100.0,) * CAMERA_MODELS[name][1])
    with pytest.raises(DataError, match=rf"camera 4.*{name}.*image_undistorter"):
        calibration_of(camera, "cameras.bin")


def test_focal_length_must_be_positive() -> None:
    with pytest.raises(DataError, match="not positive"):
        calibration_of(ColmapCamera(4, "PINHOLE", 200, 150, (100.0, -1.0, 3.0, 3.0)), "cameras.bin")


def test_depth_range_is_the_quantiles_of_the_visible_points(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    image = model.images[3]
    depths = [
        float((image.w2c @ [*model.points.xyz[i], 1.0])[2])
        for i, point in enumerate(model.points.ids)
        if point in image.point_ids
    ]
    assert len(depths) == 25
    assert depth_range(image, model.points) == pytest.approx(tuple(np.quantile(depths, [0.01, 0.99])))
    assert depth_range(image, model.points, 0.0, 1.0) == pytest.approx((min(depths), max(depths)))
    # Points behind the camera, unknown ids and too few points give no range.
    assert depth_range(replace(image, translation=(0.0, 0.0, -50.0)), model.points) is None
    assert depth_range(replace(image, point_ids=np.array([10**9, -1])), model.points) is None
    assert depth_range(replace(image, point_ids=image.point_ids[:2]), model.points) is None


def test_model_folder_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "sparse" / "0"
    inner.mkdir(parents=True)
    with pytest.raises(DataError, match=r"neither cameras\.bin"):
        find_model(tmp_path)
    write_text(make_model(inner), inner)
    assert find_model(tmp_path) == inner
    # Binary wins, and a missing points file is no error.
    changed = make_model(inner)
    changed = replace(changed, cameras={i: replace(c, width=999) for i, c in changed.cameras.items()})
    write_binary(changed, inner)
    (inner / "points3D.bin").unlink()
    model = read_model(tmp_path)
    assert {camera.width for camera in model.cameras.values()} == {999}
    assert len(model.points.ids) == 0


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    write_binary(make_model(tmp_path), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in sorted({*range(200), *range(200, len(whole), 97), len(whole) - 1} & set(range(len(whole)))):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"byte \d+.*truncated") as caught:
            read_model(tmp_path)
        assert caught.value.file.endswith(name)
        assert int(caught.value.place.split()[1]) <= length
    (tmp_path / name).write_bytes(whole + b"x")
    with pytest.raises(DataError, match=f"byte {len(whole)}.*1 bytes follow"):
        read_model(tmp_path)


def test_damaged_binary_values(tmp_path: Path) -> None:
    write_binary(make_model(tmp_path), tmp_path)
    file = tmp_path / "cameras.bin"
    whole = file.read_bytes()
    file.write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
    with pytest.raises(DataError, match=r"byte 8.*truncated"):
        read_model(tmp_path)
    file.write_bytes(whole[:12] + struct.pack("<i", 77) + whole[16:])
    with pytest.raises(DataError, match=r"byte 8.*unknown model 77"):
        read_model(tmp_path)
    file.write_bytes(whole)
    images = tmp_path / "images.bin"
    data = images.read_bytes()
    images.write_bytes(data.replace(b"strip", b"str\xffp", 1))
    with pytest.raises(DataError, match="not UTF-8"):
        read_model(tmp_path)
    count_at = data.index(b".JPG\0") + 5
    images.write_bytes(data[:count_at] + struct.pack("<Q", 1 << 60) + data[count_at + 8 :])
    with pytest.raises(DataError, match=f"byte {count_at + 8}.*truncated: the key points"):
        read_model(tmp_path)


CHANGES = {
    "camera missing": (lambda m: m.cameras.pop(9), r"image 12 .*camera 9 is not"),
    "pose nan": (lambda m: m.images.update({3: replace(m.images[3], translation=(0, np.nan, 0))}), "not finite"),
    "no rotation": (lambda m: m.images.update({3: replace(m.images[3], quaternion=(0, 0, 0, 0))}), "zero"),
    "params": (lambda m: m.cameras.update({9: replace(m.cameras[9], params=(1, 2, 3, np.inf))}), "camera 9.*finite"),
    "size": (lambda m: m.cameras.update({9: replace(m.cameras[9], width=0)}), "camera 9.*0x150"),
    "double image": (lambda m: m.images.update({1: m.images[3]}), "image id occurs twice"),
    "double camera": (lambda m: m.cameras.update({1: m.cameras[9]}), "camera id occurs twice"),
    "point": (lambda m: m.points.xyz.__setitem__((3, 1), np.nan), "points3D.*not finite"),
    "double point": (lambda m: m.points.ids.__setitem__(3, m.points.ids[4]), "point id occurs twice"),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_inconsistent_models(tmp_path: Path, form: str, change: str) -> None:
    model = make_model(tmp_path)
    CHANGES[change][0](model)
    WRITERS[form](model, tmp_path)
    with pytest.raises(DataError, match=CHANGES[change][1]):
        read_model(tmp_path)


TEXT = {
    "short camera": ("cameras.txt", "1 PINHOLE 200", "line 1.*id, model"),
    "unknown": ("cameras.txt", "# c\n1 MAGIC 200 150 1", "line 2.*'MAGIC' is unknown"),
    "params": ("cameras.txt", "1 PINHOLE 200 150 1 2 3", "line 1.*4 parameters, 3 found"),
    "word": ("cameras.txt", "1 PINHOLE 200 150 1 2 3 x", "line 1.*'x'"),
    "short image": ("images.txt", "1 1 0 0 0 0 0 0 9", "line 1.*an image needs"),
    "bad image": ("images.txt", "1 1 0 0 z 0 0 0 9 n.jpg\n", "line 1.*'z'"),
    "key points": ("images.txt", "1 1 0 0 0 0 0 0 9 n.jpg\n1 2", "line 2.*three numbers"),
    "key point": ("images.txt", "1 1 0 0 0 0 0 0 9 n.jpg\n1 2 3.5", "line 2.*3.5"),
    "short point": ("points3D.txt", "1 0 0 0 1 2 3", "line 1.*a point needs"),
    "colour": ("points3D.txt", "1 0 0 0 1 2 300 0.1", "line 1.*not 8 bit"),
    "id": ("points3D.txt", "a 0 0 0 1 2 3 0.1", "line 1.*'a'"),
}


@pytest.mark.parametrize("name", TEXT)
def test_damaged_text_names_the_line(tmp_path: Path, name: str) -> None:
    file, text, message = TEXT[name]
    write_text(make_model(tmp_path), tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_model(tmp_path)
    assert caught.value.file.endswith(file)


def test_text_with_crlf_comments_blank_lines_and_no_key_points(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_bytes(b"# note\r\n\r\n1 PINHOLE 200 150 100 100 100 75\r\n")
    (tmp_path / "images.txt").write_bytes(
        b"# note\r\n5 1 0 0 0 0 0 0 1 a b.jpg\r\n\r\n7 1 0 0 0 0 0 2 1 c.jpg\r\n10 20 -1 30 40 8\r\n"
    )
    model = read_model(tmp_path)
    assert [image.name for image in model.images.values()] == ["a b.jpg", "c.jpg"]
    assert len(model.images[5].keypoints) == 0
    assert model.images[7].point_ids.tolist() == [-1, 8]
