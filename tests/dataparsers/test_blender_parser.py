"""NeRF-synthetic scenes: nerfstudio's cameras; our own box, paths, background and errors (spec diver 4.1)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from object_scenes import files_of, small_object

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV
from core_ns.images import read_image, write_image
from dataparsers import blender_parser
from dataparsers.blender_parser import (
    ObjectBlenderDataParserConfig,
    blender_object_data,
    read_transforms,
    write_blender,
)
from dataparsers.object_scene import ObjectScene

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_blender(tmp_path / "scene", small_object(train=4, val=2, test=2))
    return tmp_path / "scene"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(blender_parser.CONSOLE, "print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    return lines


def outputs(folder: Path, split: str = "train", **options):
    return ObjectBlenderDataParserConfig(data=folder, **options).setup().get_dataparser_outputs(split)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_lego_cameras_equal_nerfstudios(shared_data: Path, split: str) -> None:
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    folder = shared_data / "lego_blender"
    stock = BlenderDataParserConfig(data=folder).setup().get_dataparser_outputs(split)
    ours = outputs(folder, split)
    assert ours.image_filenames == stock.image_filenames
    assert len(ours.image_filenames) == {"train": 100, "val": 10, "test": 25}[split]
    torch.testing.assert_close(ours.cameras.camera_to_worlds, stock.cameras.camera_to_worlds, atol=0, rtol=0)
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        torch.testing.assert_close(getattr(ours.cameras, name), getattr(stock.cameras, name), check_dtype=False)
    mine, theirs = (part.cameras.generate_rays(camera_indices=3, keep_shape=True) for part in (ours, stock))
    torch.testing.assert_close(mine.origins, theirs.origins, atol=0, rtol=0)
    torch.testing.assert_close(mine.directions, theirs.directions)
    assert stock.scene_box.aabb.abs().max() == 1.5  # what ours exists for
    np.testing.assert_allclose(ours.scene_box.aabb.numpy(), [[-1.4] * 3, [1.4] * 3], rtol=1e-6)
    assert ours.metadata["object_box"] == {"center": [0.0, 0.0, 0.0], "side": 2.8}
    assert (ours.metadata["background"], ours.metadata["has_alpha"]) == ("white", True)
    assert ours.alpha_color.tolist() == [1, 1, 1]


def test_a_written_scene_reads_back_exactly(scene: Path) -> None:
    made = small_object(train=4, val=2, test=2)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        views = read_transforms(scene / f"transforms_{split}.json")
        assert len(views) == count
        for view, picture in zip(views, [p for p in made.pictures if p.split == split], strict=True):
            np.testing.assert_allclose(view.c2w, picture.c2w @ OPENGL_FROM_OPENCV, atol=1e-15)
            np.testing.assert_allclose(view.lens, [22.4, 22.4, 8, 8])
            rgb, alpha = read_image(view.image)
            assert alpha is not None
            np.testing.assert_array_equal(np.dstack([rgb, alpha]), picture.rgba)


def test_writer_refuses_other_cameras_and_full_folders(tmp_path: Path) -> None:
    made = small_object()
    for row, column in ((0, 0), (0, 2), (0, 1)):
        k = made.intrinsics.copy()
        k[row, column] += 1
        with pytest.raises(ValueError, match="principal point"):
            write_blender(tmp_path / "scene", ObjectScene(made.pictures, k, made.bbox))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError):
        write_blender(tmp_path, made)
    assert files_of(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("style", ["./train/r_0", "train/r_0.png", "../scene/train/r_0", "train/./r_0"])
def test_paths_are_taken_as_written(scene: Path, style: str) -> None:
    edit(scene / "transforms_train.json", lambda meta: meta["frames"][0].update(file_path=style))
    assert outputs(scene).image_filenames[0].resolve() == (scene / "train/r_0.png").resolve()


def test_other_suffixes_and_dots_in_names(scene: Path) -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    write_image(scene / "train/view_0.5.jpg", rgb)
    edit(scene / "transforms_train.json", lambda meta: meta["frames"][0].update(file_path="train/view_0.5"))
    assert outputs(scene).image_filenames[0].name == "view_0.5.jpg"


def test_val_and_test_stand_in_for_each_other(scene: Path, printed: list[str]) -> None:
    (scene / "transforms_val.json").unlink()
    assert outputs(scene, "val").image_filenames == outputs(scene, "test").image_filenames
    assert "transforms_test.json is used for val too" in printed[0]
    (scene / "transforms_test.json").unlink()
    with pytest.raises(DataError, match=r"transforms_val\.json"):
        outputs(scene, "val")


def test_scale_factor_moves_cameras_and_nothing_else(scene: Path) -> None:
    plain, scaled = outputs(scene), outputs(scene, scale_factor=0.5)
    torch.testing.assert_close(scaled.cameras.camera_to_worlds[..., 3] * 2, plain.cameras.camera_to_worlds[..., 3])
    torch.testing.assert_close(scaled.scene_box.aabb, plain.scene_box.aabb)
    assert scaled.dataparser_scale == 0.5


def test_background_options(scene: Path) -> None:
    assert outputs(scene, background="black").metadata["background"] == "black"
    assert outputs(scene, alpha_color="black").alpha_color.tolist() == [0, 0, 0]
    kept = outputs(scene, alpha_color=None)
    assert kept.alpha_color is None
    assert kept.metadata["background"] == "white"
    for path in scene.glob("*/r_*.png"):
        write_image(path, np.zeros((16, 16, 3), np.uint8))
    found = outputs(scene, "val")
    assert (found.metadata["background"], found.metadata["has_alpha"]) == ("black", False)


def test_busy_background_is_warned_about(scene: Path, printed: list[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    for path in scene.glob("*/r_*.png"):
        write_image(path, noise)
    parser = ObjectBlenderDataParserConfig(data=scene).setup()
    for split in ("train", "test"):
        parser.get_dataparser_outputs(split)
    assert sum("not plain" in line for line in printed) == 1


def test_lens_of_exporters_that_write_one(scene: Path) -> None:
    file = scene / "transforms_train.json"
    edit(file, lambda meta: meta.update(fl_x=60.0, fl_y=62.0, cx=15.0, cy=17.0, w=32, h=32, k1=0.0))
    assert read_transforms(file)[0].lens == (30.0, 31.0, 7.5, 8.5)
    edit(file, lambda meta: [meta.pop(key) for key in ("fl_y", "cx", "cy", "w", "h", "camera_angle_x")])
    assert read_transforms(file)[0].lens == (60.0, 60.0, 8.0, 8.0)


def test_scaled_blender_cameras_become_rigid(scene: Path) -> None:
    file = scene / "transforms_train.json"
    before = read_transforms(file)[1].c2w

    def scale(meta):
        matrix = np.array(meta["frames"][1]["transform_matrix"])
        matrix[:3, :3] *= 2.5
        meta["frames"][1]["transform_matrix"] = matrix.tolist()

    edit(file, scale)
    np.testing.assert_allclose(read_transforms(file)[1].c2w, before, atol=1e-12)


def test_point_cloud_of_the_stock_parser_still_works(scene: Path) -> None:
    pytest.importorskip("open3d")
    (scene / "points.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n0 1 2 255 0 0\n1 1 1 0 255 0\n"
    )
    part = outputs(scene, ply_path=Path("points.ply"), scale_factor=2.0)
    assert part.metadata["points3D_xyz"].tolist() == [[0, 2, 4], [2, 2, 2]]
    assert part.metadata["background"] == "white"


def _frame(**values) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta["frames"][1].update(values)


def _matrix(row: int, column: int, value) -> Callable[[dict[str, Any]], object]:
    def change(meta):
        meta["frames"][1]["transform_matrix"][row][column] = value

    return change


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no frames": (lambda meta: meta.pop("frames"), "frames"),
    "frames empty": (lambda meta: meta.update(frames=[]), "missing, empty"),
    "frames an object": (lambda meta: meta.update(frames={"a": 1}), "not a list"),
    "frame a string": (lambda meta: meta["frames"].append("r_5"), "is a str"),
    "frame null": (lambda meta: meta["frames"].append(None), "NoneType"),
    "no file_path": (lambda meta: meta["frames"][1].pop("file_path"), "file_path"),
    "file_path a number": (_frame(file_path=7), "file_path"),
    "file_path empty": (_frame(file_path=" "), "file_path"),
    "file_path a folder": (_frame(file_path="train"), "no picture 'train'"),
    "file_path the root": (_frame(file_path="/"), "no picture"),
    "file_path with NUL": (_frame(file_path="train/r\0"), "file_path"),
    "file_path endless": (_frame(file_path="r" * 5000), "picture"),
    "file_path a lone surrogate": (_frame(file_path="\ud800"), "no picture"),
    "picture absent": (_frame(file_path="./train/r_77"), "no picture './train/r_77'"),
    "no matrix": (lambda meta: meta["frames"][1].pop("transform_matrix"), "no transform_matrix"),
    "matrix null": (_frame(transform_matrix=None), "transform_matrix"),
    "matrix 3x3": (_frame(transform_matrix=np.eye(3).tolist()), "(3, 3)"),
    "matrix ragged": (_frame(transform_matrix=[[1, 0, 0, 0], [0, 1]]), "transform_matrix"),
    "matrix of words": (_frame(transform_matrix=[["a"] * 4] * 4), "transform_matrix"),
    "matrix of objects": (_frame(transform_matrix=[[{}] * 4] * 4), "transform_matrix"),
    "matrix with null": (_matrix(0, 3, None), "NaN"),
    "matrix with NaN": (_matrix(0, 3, math.nan), "NaN"),
    "matrix with infinity": (_matrix(0, 3, math.inf), "infinity"),
    "matrix with a huge integer": (_matrix(0, 3, 10**400), "transform_matrix"),
    "matrix mirrored": (_frame(transform_matrix=np.diag([-1.0, 1, 1, 1]).tolist()), "mirrors"),
    "matrix singular": (_frame(transform_matrix=np.diag([0.0, 1, 1, 1]).tolist()), "singular"),
    "matrix stretched": (_frame(transform_matrix=np.diag([2.0, 1, 1, 1]).tolist()), "not orthonormal"),
    "matrix projective": (_matrix(3, 0, 0.5), "last row"),
    "no angle": (lambda meta: meta.pop("camera_angle_x"), "camera_angle_x"),
    "angle a word": (lambda meta: meta.update(camera_angle_x="0.69"), "camera_angle_x"),
    "angle true": (lambda meta: meta.update(camera_angle_x=True), "camera_angle_x"),
    "angle zero": (lambda meta: meta.update(camera_angle_x=0), "camera_angle_x"),
    "angle in degrees": (lambda meta: meta.update(camera_angle_x=39.6), "camera_angle_x"),
    "angle NaN": (lambda meta: meta.update(camera_angle_x=math.nan), "camera_angle_x"),
    "distorted": (lambda meta: meta.update(k1=0.1), "nerfstudio-data"),
    "focal negative": (lambda meta: meta.update(fl_x=-3.0), "fl_x"),
    "centre outside": (lambda meta: meta.update(fl_x=30.0, cx=90.0), "cx"),
    "size of another shape": (lambda meta: meta.update(fl_x=30.0, w=32, h=18), "of another shape"),
}
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is not JSON"),
    "cut off": (b'{"camera_angle_x": 0.69, "frames": [', "is not JSON"),
    "a list": (b"[]", "is a list"),
    "a number": (b"3", "is a int"),
    "latin-1": (b'{"a": "\xe9"}', "not UTF-8"),
    "binary": (bytes(range(256)), "not"),
    "nested": (b"[" * 100_000, "is not"),
    "endless number": (b'{"camera_angle_x": ' + b"1" * 10_000 + b"}", "is not usable"),
}


def refused(scene: Path, piece: str) -> None:
    before = files_of(scene.parent)
    with pytest.raises(DataError) as caught:
        outputs(scene)
    assert piece in str(caught.value)
    assert caught.value.file
    assert caught.value.place
    assert caught.value.remedy
    assert files_of(scene.parent) == before


@pytest.mark.parametrize(("change", "piece"), CHANGES.values(), ids=CHANGES.keys())
def test_malformed_cameras_are_one_error_and_nothing_is_written(scene: Path, change, piece: str) -> None:
    edit(scene / "transforms_train.json", change)
    refused(scene, piece)


@pytest.mark.parametrize(("content", "piece"), CONTENTS.values(), ids=CONTENTS.keys())
def test_malformed_json_is_one_error_and_nothing_is_written(scene: Path, content: bytes, piece: str) -> None:
    (scene / "transforms_train.json").write_bytes(content)
    refused(scene, piece)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_malformed_pictures_are_one_error_and_nothing_is_written(scene: Path, content: bytes) -> None:
    (scene / "train/r_1.png").write_bytes(content)
    refused(scene, "cannot be read as an image")


def test_absent_scene_or_split(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        outputs(tmp_path / "nowhere")
    (scene / "transforms_train.json").unlink()
    refused(scene, "is not a file")


@pytest.mark.parametrize(
    "options",
    [{"alpha_color": "red"}, {"grid_side": -1.0}, {"grid_side": math.inf}, {"scale_factor": 0.0}],
)
def test_unusable_options_are_refused(scene: Path, options) -> None:
    with pytest.raises(DataError):
        outputs(scene, **options)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["camera_angle_x", "frames", "file_path", "transform_matrix", "fl_x"]), inner),
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(value=json_values)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value) -> None:
    file = tmp_path_factory.getbasetemp() / "transforms_any.json"
    file.write_text(json.dumps(value))
    with pytest.raises(DataError):
        read_transforms(file)


def test_registered_default_is_usable() -> None:
    assert isinstance(blender_object_data.config, ObjectBlenderDataParserConfig)
    assert blender_object_data.description
    assert blender_object_data.config.grid_side == 2.8
