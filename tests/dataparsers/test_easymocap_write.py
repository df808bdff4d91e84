"""COLMAP models and transforms.json as EasyMocap sequences: cameras, frames, masks, and nothing on bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv
from core_ns.images import image_size, read_image, write_image
from dataparsers import easymocap_write
from dataparsers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, no_points, write_binary
from dataparsers.easymocap import CameraModel, find_calibration
from dataparsers.easymocap_sequence import open_sequence
from dataparsers.easymocap_write import (
    ALPHA,
    Shot,
    colmap_to_easymocap,
    fit_photo,
    transforms_to_easymocap,
    write_sequence,
)
from dataparsers.transforms_json import read_transforms_json
from dataparsers.undistort import project_distorted

SIZE = (24, 16)
LENSES = {
    "PINHOLE": (30.0, 31.0, 11.0, 8.5),
    "OPENCV": (30.0, 31.0, 11.0, 8.5, -0.1, 0.03, 0.004, -0.002),
    "OPENCV_FISHEYE": (30.0, 31.0, 11.0, 8.5, -0.1, 0.03, 0.004, -0.002),
    "SIMPLE_RADIAL_FISHEYE": (30.0, 11.0, 8.5, -0.1),
    "RADIAL_FISHEYE": (30.0, 11.0, 8.5, -0.1, 0.03),
}


def pose(seed: int) -> np.ndarray:
    """World to camera, five units before the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(np.random.default_rng(seed).normal(size=4)).as_matrix()
    matrix[:3, 3] = (0.1 * seed, -0.2, 5.0)
    return matrix


def photo(path: Path, value: int, size: tuple[int, int] = SIZE, alpha: bool = False) -> None:
    """One colour; with ``alpha``, a hole in the left half."""
    pixels = np.full((size[1], size[0], 4 if alpha else 3), value, dtype=np.uint8)
    if alpha:
        pixels[..., 3] = 255
        pixels[:, : size[0] // 2, 3] = 0
    write_image(path, pixels)


def colmap(folder: Path, names: list[str], lenses: tuple[str, ...] = ("PINHOLE", "OPENCV")) -> Path:
    """A model whose n-th image, in reversed order of ids, has `pose(n)`; returns its folder."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    cameras = {i + 5: ColmapCamera(i + 5, lens, *SIZE, LENSES[lens]) for i, lens in enumerate(lenses)}
    images = {}
    for number, name in enumerate(names):
        x, y, z, w = Rotation.from_matrix(pose(number)[:3, :3]).as_quat()
        t = pose(number)[:3, 3]
        camera = 5 + number % len(lenses)
        empty = (np.zeros((0, 2)), np.zeros(0, np.int64))
        key = 100 - number
        images[key] = ColmapImage(key, (w, x, y, z), (t[0], t[1], t[2]), camera, name, *empty)
    write_binary(ColmapModel(model, cameras, images, no_points()), model)
    return model


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def named(error: DataError) -> None:
    assert error.file
    assert error.place
    assert error.remedy


def untouched(folder: Path) -> bool:
    """No output folder and no draft of one."""
    return not any(path.name.startswith((".tmp", "out")) for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------ COLMAP


def test_a_photo_is_a_camera(tmp_path: Path) -> None:
    names = ["b 1.png", "a.png", "c.png"]
    for number, name in enumerate(names):
        photo(tmp_path / "photos" / name, 10 * number)
    model = colmap(tmp_path, names, ("PINHOLE", "OPENCV", "OPENCV_FISHEYE"))
    out = colmap_to_easymocap(model.parent.parent, tmp_path / "photos", tmp_path / "new" / "out")
    assert tree(out) == ["extri.yml", *(f"images/{cam}/000000.png" for cam in ("a", "b_1", "c")), "intri.yml"]
    _, cameras = find_calibration(out)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (30, 3))
    for number, name in enumerate(["b_1", "a", "c"]):
        camera = cameras[name]
        assert isinstance(camera, CameraModel)
        np.testing.assert_allclose(camera.w2c, pose(number), rtol=0, atol=1e-12)
        assert (camera.width, camera.height) == SIZE
        rgb, _ = read_image(out / "images" / name / "000000.png")
        assert int(rgb[0, 0, 0]) == 10 * number
        if number < 2:
            wanted, _ = project_distorted(points, camera.lens, pose(number))
            np.testing.assert_allclose(camera.project(points)[0], wanted, rtol=0, atol=1e-9)
    assert isinstance(cameras["a"], CameraModel)
    np.testing.assert_array_equal(cameras["a"].D, [-0.1, 0.03, 0.004, -0.002, 0.0])
    np.testing.assert_array_equal(cameras["c"].fisheye, [-0.1, 0.03, 0.004, -0.002])  # pyright: ignore


@pytest.mark.parametrize("lens", LENSES)
def test_every_lens_projects_as_in_colmap(tmp_path: Path, lens: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    photo(tmp_path / "photos" / "a.png", 0)
    out = colmap_to_easymocap(colmap(tmp_path, ["a.png"], (lens,)), tmp_path / "photos", tmp_path / "out")
    camera = find_calibration(out)[1]["a"]
    assert isinstance(camera, CameraModel)
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    judge = pycolmap.Camera(model=lens, width=SIZE[0], height=SIZE[1], params=list(LENSES[lens]))
    wanted = judge.img_from_cam(points @ pose(0)[:3, :3].T + pose(0)[:3, 3])
    np.testing.assert_allclose(camera.project(points)[0], wanted, rtol=0, atol=1e-8)


def test_a_rig_calibrated_at_one_moment(tmp_path: Path) -> None:
    """All photos in a camera's folder become its frames, with masks found by COLMAP's naming or by stem."""
    for camera in ("left", "right"):
        for frame in (8, 9, 10):
            photo(tmp_path / "all" / "photos" / camera / f"f{frame}.png", frame)
            name = f"f{frame}.png.png" if camera == "left" else f"f{frame}.png"
            write_image(tmp_path / "masks" / camera / name, np.full(SIZE[::-1], 100 + frame, np.uint8))
    model = colmap(tmp_path, ["left/f9.png", "right/f9.png"])
    out = tmp_path / "out"
    colmap_to_easymocap(model, tmp_path / "all" / "photos", out, tmp_path / "masks")
    # Frames are sorted as text: numbers are padded, so that 10 comes after 9.
    frames = [f"{camera}/f{frame:06d}.png" for camera in ("left", "right") for frame in (8, 9, 10)]
    assert tree(out) == sorted(
        ["intri.yml", "extri.yml", *(f"{kind}/{f}" for kind in ("images", "masks") for f in frames)]
    )
    _, cameras = find_calibration(out)
    for number, name in enumerate(("left", "right")):
        camera = cameras[name]
        assert isinstance(camera, CameraModel)
        np.testing.assert_allclose(camera.w2c, pose(number), rtol=0, atol=1e-12)
        assert int(read_image(out / "masks" / name / "f000010.png")[0][0, 0, 0]) == 110
    assert (out / "images" / "left" / "f000008.png").is_symlink()


def test_cameras_that_move(tmp_path: Path) -> None:
    names = [f"{camera}/{frame:06d}.png" for frame in range(2) for camera in ("00", "01")]
    for name in names:
        photo(tmp_path / "images" / name, 0)
    photo(tmp_path / "images" / "00" / "000009.png", 0)  # not registered: it has no pose
    out = colmap_to_easymocap(colmap(tmp_path, names), tmp_path / "images", tmp_path / "out", link="copy")
    assert not (out / "images" / "00" / "000000.png").is_symlink()
    assert not (out / "intri.yml").exists()
    _, cameras = find_calibration(out)
    for number, name in enumerate(names):
        moving = cameras[name[:2]]
        assert isinstance(moving, dict)
        assert list(moving) == ["000000", "000001"]
        np.testing.assert_allclose(moving[name[3:9]].w2c, pose(number), rtol=0, atol=1e-12)


def test_layouts_can_be_chosen(tmp_path: Path) -> None:
    names = ["x/a/1.png", "x/b/1.png", "x/b/2.png"]
    for name in names:
        photo(tmp_path / "images" / name, 0)
    model = colmap(tmp_path, names)
    out = colmap_to_easymocap(model, tmp_path / "images", tmp_path / "out", layout="photos")
    assert list(find_calibration(out)[1]) == ["a_1", "b_1", "b_2"]
    for layout, problem in (
        ("auto", "has no photo of frame 000002"),
        ("rig", "no photo of frame 000002"),
        ("timed", "no times"),
    ):
        with pytest.raises(DataError, match=problem):
            colmap_to_easymocap(model, tmp_path / "images", tmp_path / "out2", layout=layout)  # pyright: ignore
        assert not (tmp_path / "out2").exists()


def test_photos_of_another_resolution(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png", 0, (12, 8))
    photo(tmp_path / "images" / "b.png", 0, (48, 32))
    out = colmap_to_easymocap(colmap(tmp_path, ["a.png", "b.png"]), tmp_path / "images", tmp_path / "out")
    cameras = find_calibration(out)[1]
    for name, scale in (("a", 0.5), ("b", 2.0)):
        camera = cameras[name]
        assert isinstance(camera, CameraModel)
        np.testing.assert_array_equal(camera.K[:2], scale * np.array([[30.0, 0, 11.0], [0, 31.0, 8.5]]))
        assert (camera.width, camera.height) == (24 * scale, 16 * scale)


def test_unknown_sizes_and_rounding() -> None:
    model = CameraModel("", np.array([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]]))
    assert fit_photo(model, (24, 16), "x", "y").K[0, 0] == 30.0
    known = replace(model, width=4093, height=2731)
    fitted = fit_photo(known, (1023, 683), "x", "y")
    np.testing.assert_allclose(fitted.K[:2, 2], [12 * 1023 / 4093, 8 * 683 / 2731], rtol=1e-15)
    with pytest.raises(DataError, match="of another shape"):
        fit_photo(known, (1023, 700), "x", "y")


def test_other_formats_and_transparency(tmp_path: Path) -> None:
    """TIFF is rewritten as PNG; transparency becomes masks, unless nothing is transparent."""
    for name in ("a.tif", "b.png"):
        photo(tmp_path / "images" / name, 50, alpha=True)
    out = colmap_to_easymocap(colmap(tmp_path, ["a.tif", "b.png"]), tmp_path / "images", tmp_path / "out")
    assert [each for each in tree(out) if "yml" not in each] == [
        f"{kind}/{cam}/000000.png" for kind in ("images", "masks") for cam in "ab"
    ]
    mask, _ = read_image(out / "masks" / "a" / "000000.png")
    assert mask[:, :12].max() == 0
    assert mask[:, 12:].min() == 255
    opaque = np.full((16, 24, 4), 255, np.uint8)
    for name in ("a.tif", "b.png"):
        write_image(tmp_path / "images" / name, opaque)
    out = colmap_to_easymocap(tmp_path, tmp_path / "images", tmp_path / "out3")
    assert not (out / "masks").exists()


def test_suffixes_of_any_case_are_read_again(tmp_path: Path) -> None:
    """What is converted opens: readers know some spellings of suffixes only."""
    names = ["a.WEBP", "b.Jpg", "c.PNG"]
    for name in names:
        photo(tmp_path / "images" / name, 90)
    out = colmap_to_easymocap(colmap(tmp_path, names), tmp_path / "images", tmp_path / "out")
    assert open_sequence(out).names == ["a", "b", "c"]


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(easymocap_write.os, "symlink", refuse)
    photo(tmp_path / "images" / "a.png", 7)
    out = colmap_to_easymocap(colmap(tmp_path, ["a.png"]), tmp_path / "images", tmp_path / "out")
    copied = out / "images" / "a" / "000000.png"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (tmp_path / "images" / "a.png").read_bytes()


def break_photo(folder: Path) -> None:
    (folder / "images" / "b" / "1.png").write_bytes(b"no picture")


def crop_photo(folder: Path) -> None:
    for frame in "12":
        photo(folder / "images" / "b" / f"{frame}.png", 0, (24, 12))


def crop_one_frame(folder: Path) -> None:
    photo(folder / "images" / "b" / "2.png", 0, (12, 8))


def rename_frame(folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "b" / "2.png").rename(folder / kind / "b" / "3.png")


def drop_photo(folder: Path) -> None:
    (folder / "images" / "b" / "1.png").unlink()


def double_frame(folder: Path) -> None:
    photo(folder / "images" / "b" / "2.jpg", 0)


def drop_mask(folder: Path) -> None:
    (folder / "masks" / "b" / "2.png").unlink()


def crop_mask(folder: Path) -> None:
    write_image(folder / "masks" / "b" / "2.png", np.zeros((3, 3), np.uint8))


def drop_masks(folder: Path) -> None:
    shutil.rmtree(folder / "masks")


def truncate_model(folder: Path) -> None:
    file = folder / "sparse" / "0" / "images.bin"
    file.write_bytes(file.read_bytes()[:-3])


def fill_output(folder: Path) -> None:
    (folder / "result").mkdir()
    (folder / "result" / "mine.txt").write_text("keep")


def occupy_output(folder: Path) -> None:
    (folder / "result").write_text("keep")


FAULTS: dict[Callable[[Path], None], str] = {
    break_photo: r"1\.png.*cannot be read",
    crop_photo: "of another shape",
    crop_one_frame: r"2\.png.*one size",
    rename_frame: r"camera a.*no photo of frame 000003",
    drop_photo: r"1\.png.*is missing",
    double_frame: "frame 000002, and so is",
    drop_mask: r"2\.png.*Every photo needs a mask",
    crop_mask: r"2\.png.*is 3x3, its photo 24x16",
    drop_masks: "--masks.*not a folder",
    truncate_model: "truncated",
    fill_output: "not empty",
    occupy_output: "is a file",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, fault: Callable[[Path], None]) -> None:
    for camera in "ab":
        for frame in (1, 2):
            photo(tmp_path / "images" / camera / f"{frame}.png", 0)
            write_image(tmp_path / "masks" / camera / f"{frame}.png", np.zeros(SIZE[::-1], np.uint8))
    model = colmap(tmp_path, ["a/1.png", "b/1.png"])
    fault(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=FAULTS[fault]) as caught:
        colmap_to_easymocap(model, tmp_path / "images", tmp_path / "result", tmp_path / "masks")
    assert caught.value.remedy
    assert tree(tmp_path) == before
    assert not any(path.name.startswith(".tmp") for path in tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    """The second photo's pixels are broken, which only decoding its transparency shows."""
    for name in ("a.png", "b.png"):
        photo(tmp_path / "images" / name, 0, (300, 200), alpha=True)
    broken = tmp_path / "images" / "b.png"
    broken.write_bytes(broken.read_bytes()[:120])
    with pytest.raises(DataError, match=r"b\.png"):
        colmap_to_easymocap(colmap(tmp_path, ["a.png", "b.png"]), tmp_path / "images", tmp_path / "out")
    assert untouched(tmp_path)


@pytest.mark.parametrize("lens", ["FULL_OPENCV", "FOV", "THIN_PRISM_FISHEYE"])
def test_lenses_without_terms_are_refused(tmp_path: Path, lens: str) -> None:
    count = {"FULL_OPENCV": 12, "FOV": 5, "THIN_PRISM_FISHEYE": 12}[lens]
    photo(tmp_path / "images" / "a.png", 0)
    model = colmap(tmp_path, ["a.png"])
    cameras = {5: ColmapCamera(5, lens, *SIZE, (30.0, 30.0, 12.0, 8.0, *[0.1] * (count - 4)))}
    empty = (np.zeros((0, 2)), np.zeros(0, np.int64))
    images = {1: ColmapImage(1, (1.0, 0, 0, 0), (0.0, 0, 0), 5, "a.png", *empty)}
    write_binary(ColmapModel(model, cameras, images, no_points()), model)
    with pytest.raises(DataError, match=f"camera 5.*{lens}"):
        colmap_to_easymocap(model, tmp_path / "images", tmp_path / "out")
    assert untouched(tmp_path)


def test_names_that_would_become_one_camera(tmp_path: Path) -> None:
    for layout, names in (("photos", ["a b.png", "a_b.png"]), ("rig", ["a b/1.png", "a_b/1.png"])):
        folder = tmp_path / layout
        for name in names:
            photo(folder / "images" / name, 0)
        with pytest.raises(DataError, match="would both be the camera 'a_b'"):
            colmap_to_easymocap(colmap(folder, names), folder / "images", folder / "out", layout=layout)  # pyright: ignore


# ------------------------------------------------------------------------------------------------ transforms.json


def transforms(folder: Path, frames: list[dict[str, Any]], **extra: Any) -> Path:
    """A json file with an OPENCV lens; frame n has `pose(n)` unless it says otherwise; photos are made."""
    content: dict[str, Any] = {
        "w": 24,
        "h": 16,
        "fl_x": 30.0,
        "fl_y": 31.0,
        "cx": 11.0,
        "cy": 8.5,
        **extra,
        "frames": [],
    }
    for number, frame in enumerate(frames):
        matrix = c2w_opengl_from_w2c_opencv(pose(frame.pop("pose", number))).tolist()
        content["frames"].append({"transform_matrix": matrix, **frame})
        if not (folder / frame["file_path"]).exists():
            photo(folder / frame["file_path"], number)
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder / "transforms.json"


def test_transforms_of_one_moment(tmp_path: Path) -> None:
    photo(tmp_path / "masks" / "b.png", 255)
    photo(tmp_path / "masks" / "a.png", 255)
    frames = [
        {"file_path": "images/b.png", "mask_path": "masks/b.png"},
        {"file_path": "./images/a.png", "mask_path": "masks/a.png", "fl_x": 33.0, "k3": 0.01},
    ]
    file = transforms(tmp_path, frames, k1=-0.1, k2=0.03, p1=0.004, p2=-0.002, camera_model="OPENCV", k4=0)
    out = transforms_to_easymocap(file, tmp_path / "out")
    cameras = find_calibration(out)[1]
    assert list(cameras) == ["a", "b"]
    a, b = cameras["a"], cameras["b"]
    assert isinstance(a, CameraModel)
    assert isinstance(b, CameraModel)
    np.testing.assert_allclose(a.w2c, pose(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(b.w2c, pose(0), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(a.K, [[33, 0, 11], [0, 31, 8.5], [0, 0, 1]])
    np.testing.assert_array_equal(a.D, [-0.1, 0.03, 0.004, -0.002, 0.01])
    np.testing.assert_array_equal(b.D, [-0.1, 0.03, 0.004, -0.002, 0.0])
    assert (out / "masks" / "a" / "000000.png").resolve() == tmp_path / "masks" / "a.png"
    assert tree(transforms_to_easymocap(tmp_path, tmp_path / "out2", layout="photos", link="copy")) == tree(out)


def test_transforms_with_times(tmp_path: Path) -> None:
    """Photos in one folder: those of one pose are one camera, ordered by time; a camera may be listed anywhere."""
    frames = [
        {"file_path": f"images/{camera}-{moment}.png", "time": moment / 2, "pose": camera}
        for moment in (2, 0, 1)
        for camera in (3, 1)
    ]
    out = transforms_to_easymocap(transforms(tmp_path, frames), tmp_path / "out")
    cameras = find_calibration(out)[1]
    assert list(cameras) == ["000", "001"]
    for name, number in (("000", 3), ("001", 1)):
        camera = cameras[name]
        assert isinstance(camera, CameraModel)
        np.testing.assert_allclose(camera.w2c, pose(number), rtol=0, atol=1e-12)
        for moment in range(3):
            link = out / "images" / name / f"{moment:06d}.png"
            assert link.resolve().name == f"{number}-{moment}.png"


def test_one_moving_camera_is_refused(tmp_path: Path) -> None:
    frames = [{"file_path": f"images/{i}.png", "time": i / 3} for i in range(4)]
    file = transforms(tmp_path, frames)
    with pytest.raises(DataError, match=r"has no photo of frame 000001.*One moving camera alone"):
        transforms_to_easymocap(file, tmp_path / "out")
    assert untouched(tmp_path)


def test_nerf_synthetic_files(tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "lego_blender" / "transforms_train.json"
    if not file.is_file():
        pytest.skip("the blender scene is laid out otherwise")
    out = transforms_to_easymocap(file, tmp_path / "out")
    cameras = find_calibration(out)[1]
    frames = read_transforms_json(file)
    assert len(cameras) == len(frames)
    for frame in frames:
        camera = cameras[frame.image.stem]
        assert isinstance(camera, CameraModel)
        np.testing.assert_allclose(camera.w2c, frame.model.w2c, rtol=0, atol=1e-12)
        place = out / "images" / frame.image.stem / f"000000{frame.image.suffix}"
        assert (camera.width, camera.height) == image_size(place)
        assert (out / "masks" / frame.image.stem / "000000.png").is_file()


def test_fisheye_and_angle(tmp_path: Path) -> None:
    file = transforms(
        tmp_path,
        [{"file_path": "a.png"}],
        camera_model="OPENCV_FISHEYE",
        k1=0.1,
        k2=0.2,
        k3=0.3,
        k4=0.4,
        fl_x=None,
        fl_y=None,
        cx=None,
        cy=None,
        w=None,
        camera_angle_x=np.pi / 2,
    )
    model = read_transforms_json(file)[0].model
    np.testing.assert_array_equal(model.fisheye, [0.1, 0.2, 0.3, 0.4])  # pyright: ignore
    np.testing.assert_allclose(model.K, [[12, 0, 12], [0, 12, 8], [0, 0, 1]], rtol=0, atol=1e-12)


GOOD = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
JSON_FAULTS: dict[str, tuple[Any, str, str]] = {
    "not JSON": ("{", "line 1", "is not JSON"),
    "deep": ("[" * 100_000, "content", "usable JSON"),
    "long number": ('{"fl_x": ' + "9" * 5000 + "}", "content", "usable JSON"),
    "a list": ([], "content", "is a list"),
    "no frames": ({"fl_x": 1}, "frames", "missing, empty"),
    "empty frames": ({"fl_x": 1, "frames": []}, "frames", "missing, empty"),
    "a frame of text": ({"fl_x": 1, "frames": ["a"]}, "frames[0]", "is a str"),
    "no path": ({"fl_x": 1, "frames": [{}]}, "frames[0], file_path", "is missing"),
    "path a number": ({"fl_x": 1, "frames": [{**GOOD, "file_path": 3}]}, "frames[0], file_path", "not a path"),
    "no picture": ({"fl_x": 1, "frames": [{**GOOD, "file_path": "b"}]}, "frames[0], file_path", "no file 'b'"),
    "long path": (
        {"fl_x": 1, "frames": [{**GOOD, "file_path": "b" * 9999}]},
        "frames[0], file_path",
        "cannot be opened",
    ),
    "no mask": ({"fl_x": 1, "frames": [{**GOOD, "mask_path": "b"}]}, "frames[0], mask_path", "no file 'b'"),
    "no lens": ({"frames": [GOOD]}, "frames[0], camera_angle_x", "is missing"),
    "lens null": ({"fl_x": None, "frames": [GOOD]}, "frames[0], fl_x", "None, not a number"),
    "lens true": ({"fl_x": True, "frames": [GOOD]}, "frames[0], fl_x", "True, not a number"),
    "lens negative": ({"fl_x": -3, "frames": [GOOD]}, "frames[0], fl_x", "-3, not a number"),
    "lens NaN": ('{"fl_x": NaN, "frames": [' + json.dumps(GOOD) + "]}", "frames[0], fl_x", "nan, not a number"),
    "half a pixel": ({"fl_x": 1, "w": 1.5, "h": 2, "frames": [GOOD]}, "frames[0], w", "1.5, not a number of pixels"),
    "k4": ({"fl_x": 1, "k4": 0.1, "frames": [GOOD]}, "frames[0], k4", "no place"),
    "lens model": ({"fl_x": 1, "camera_model": "FOV", "frames": [GOOD]}, "frames[0], camera_model", "'FOV' is not one"),
    "lens model a list": ({"fl_x": 1, "camera_model": [], "frames": [GOOD]}, "frames[0], camera_model", "is not one"),
    "no pose": ({"fl_x": 1, "frames": [{"file_path": "a.png"}]}, "frames[0], transform_matrix", "is missing"),
    "pose null": (
        {"fl_x": 1, "frames": [{**GOOD, "transform_matrix": None}]},
        "frames[0], transform_matrix",
        "no camera",
    ),
    "pose 2x2": (
        {"fl_x": 1, "frames": [{**GOOD, "transform_matrix": [[1, 0], [0, 1]]}]},
        "frames[0], transform_matrix",
        "(2, 2), not 4x4",
    ),
    "pose mirrored": (
        {"fl_x": 1, "frames": [{**GOOD, "transform_matrix": np.diag([-1, 1, 1, 1]).tolist()}]},
        "frames[0], transform_matrix",
        "mirrors",
    ),
    "time text": ({"fl_x": 1, "frames": [{**GOOD, "time": "now"}]}, "frames[0], time", "now, not a number"),
}


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_malformed_json_gives_one_error_and_no_folder(tmp_path: Path, name: str) -> None:
    content, place, problem = JSON_FAULTS[name]
    photo(tmp_path / "a.png", 0)
    (tmp_path / "transforms.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        transforms_to_easymocap(tmp_path, tmp_path / "out")
    assert caught.value.file == str(tmp_path / "transforms.json")
    assert caught.value.place == place
    assert problem in caught.value.problem
    assert caught.value.remedy.endswith(".")
    assert untouched(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["a.png", "OPENCV", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, "time", "w"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["fl_x", "w", "h", "k1", "camera_model", "cx"]), JSON),
    st.dictionaries(st.sampled_from([*GOOD, "time", "mask_path"]), JSON),
)
def test_any_values_read_or_are_refused(tmp_path_factory: pytest.TempPathFactory, whole: dict, frame: dict) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    if not (folder / "a.png").is_file():
        photo(folder / "a.png", 0)
    content = {"fl_x": 20.0, **whole, "frames": [{**GOOD, **frame}]}
    (folder / "transforms.json").write_text(json.dumps(content))
    try:
        frames = read_transforms_json(folder / "transforms.json")
    except DataError as error:
        named(error)
    else:
        assert np.isfinite(frames[0].model.stand).all()


# ------------------------------------------------------------------------------------------------ write_sequence


def shot(folder: Path, camera: str, frame: str, seed: int, **changes: Any) -> Shot:
    image = folder / f"{camera}-{frame}.png".replace("/", "_")
    if not image.is_file():
        photo(image, seed, alpha=changes.get("mask") == ALPHA)
    w2c = pose(seed)
    matrix = np.array([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]])
    model = CameraModel("", matrix, width=24, height=16, R=w2c[:3, :3], T=w2c[:3, 3])
    return replace(Shot(camera, frame, image, model), **changes)


def test_still_and_moving_cameras_together(tmp_path: Path) -> None:
    shots = [shot(tmp_path, "s", "0", 1), shot(tmp_path, "s", "1", 1), shot(tmp_path, "m", "0", 1)]
    shots.append(shot(tmp_path, "m", "1", 2))
    out = write_sequence(tmp_path / "out", shots, "source")
    cameras = find_calibration(out)[1]
    assert isinstance(cameras["s"], CameraModel)
    assert isinstance(cameras["m"], dict)
    assert (out / "cameras" / "m" / "intri.yml").is_file()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: [], "holds no photo"),
        (lambda folder: [shot(folder, "a/b", "0", 1)], "'a/b' cannot be a camera"),
        (lambda folder: [shot(folder, "a", "..", 1)], "'..' cannot be a camera or frame"),
        (lambda folder: [shot(folder, "a", "0", 1), shot(folder, "b", "1", 1)], "camera a.*no photo of frame 1"),
        (lambda folder: [shot(folder, "a", "0", 1)] * 2, "and so is"),
        (lambda folder: [shot(folder, "a", "0", 1), shot(folder, "b", "0", 1, mask=ALPHA)], "a/0 has no mask"),
        (
            lambda folder: [shot(folder, "a", "0", 1, mask=ALPHA), replace(shot(folder, "b", "0", 1), mask=ALPHA)],
            "no transparency",
        ),
    ],
)
def test_incomplete_sequences_are_refused(tmp_path: Path, make: Callable[[Path], list[Shot]], problem: str) -> None:
    shots = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=problem):
        write_sequence(tmp_path / "out", shots, tmp_path)
    assert tree(tmp_path) == before
