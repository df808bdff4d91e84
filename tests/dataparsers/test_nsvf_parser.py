"""The nsvf-data parser: cameras, normalization, splits, background, on made-up and real scenes (spec diver 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from object_scenes import BBOX, files_of, small_object

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV, project, w2c_opencv_from_c2w_opengl
from core_ns.images import read_image, write_image
from dataparsers import nsvf_parser
from dataparsers.blender_parser import ObjectBlenderDataParserConfig
from dataparsers.nsvf import write_nsvf
from dataparsers.nsvf_parser import NsvfDataParserConfig, nsvf_data

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_nsvf(tmp_path / "scene", small_object(train=6, test=2))
    return tmp_path / "scene"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(nsvf_parser.CONSOLE, "print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    return lines


def outputs(folder: Path, split: str = "train", **options):
    return NsvfDataParserConfig(data=folder, **options).setup().get_dataparser_outputs(split)


def k_of(cameras, index: int) -> np.ndarray:
    fx, fy, cx, cy = (float(getattr(cameras, name)[index]) for name in ("fx", "fy", "cx", "cy"))
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def test_normalization_reaches_cameras_boxes_and_metadata(scene: Path) -> None:
    part = outputs(scene)
    middle, half = BBOX.mean(axis=0), 1.0
    np.testing.assert_allclose(part.dataparser_transform.numpy(), np.c_[np.eye(3), -middle])
    assert part.dataparser_scale == 1 / half
    np.testing.assert_allclose(part.scene_box.aabb.numpy(), [[-1.4] * 3, [1.4] * 3], rtol=1e-6)
    np.testing.assert_allclose(part.metadata["nsvf_bbox"], (BBOX - middle) / half)
    assert np.abs(part.metadata["nsvf_bbox"]).max() == 1.0
    assert part.metadata["object_box"] == {"center": [0.0, 0.0, 0.0], "side": 2.8}
    assert part.metadata["background"] == "white"
    assert part.alpha_color.tolist() == [1, 1, 1]
    for index, picture in enumerate(small_object(train=6, test=2).pictures[:6]):
        wanted = picture.c2w @ OPENGL_FROM_OPENCV
        pose = part.cameras.camera_to_worlds[index].numpy()
        np.testing.assert_allclose(pose[:, :3], wanted[:3, :3], atol=1e-6)
        np.testing.assert_allclose(pose[:, 3], (wanted[:3, 3] - middle) / half, atol=1e-6)
    back = part.transform_poses_to_original_space(part.cameras.camera_to_worlds, "opencv")
    np.testing.assert_allclose(back[2].numpy(), small_object().pictures[2].c2w[:3], atol=1e-5)
    assert part.cameras.width.flatten().tolist() == [16] * 6
    assert part.cameras.height.dtype == torch.int64


def test_legacy_scale_changes_the_scale_alone(tmp_path: Path) -> None:
    made = small_object()
    tall = type(made)(made.pictures, made.intrinsics, np.array([[-1.0, -1, -2], [1, 2, 0]]))
    write_nsvf(tmp_path / "scene", tall)
    right, legacy = outputs(tmp_path / "scene"), outputs(tmp_path / "scene", legacy_scale=True)
    assert right.dataparser_scale == pytest.approx(1 / 1.5)
    assert legacy.dataparser_scale == pytest.approx(1 / 2.0)  # ymax - zmin = 4
    torch.testing.assert_close(right.dataparser_transform, legacy.dataparser_transform)
    torch.testing.assert_close(
        right.cameras.camera_to_worlds[..., 3] * 1.5, legacy.cameras.camera_to_worlds[..., 3] * 2.0
    )


def test_splits_by_prefix(tmp_path: Path) -> None:
    write_nsvf(tmp_path / "three", small_object(train=4, val=2, test=3))
    parser = NsvfDataParserConfig(data=tmp_path / "three").setup()
    names = {split: parser.get_dataparser_outputs(split).metadata["split_names"] for split in ("train", "val", "test")}
    assert [len(part) for part in names.values()] == [4, 2, 3]
    assert {name[0] for name in names["test"]} == {"2"}
    write_nsvf(tmp_path / "two", small_object(train=4, test=2))
    two = tmp_path / "two"
    assert outputs(two, "val").image_filenames == outputs(two, "test").image_filenames
    from_train = outputs(two, "val", val_from_train=3).metadata["split_names"]
    assert from_train == ["0_0000", "0_0003"]
    # A scene with its own val split keeps it.
    assert outputs(tmp_path / "three", "val", val_from_train=3).metadata["split_names"] == names["val"]


def test_unprefixed_names_hold_out_every_eighth(scene: Path) -> None:
    for path in [*scene.glob("rgb/*"), *scene.glob("pose/*")]:
        path.rename(path.with_name("v" + path.name))
    assert outputs(scene, "test").metadata["split_names"] == ["v0_0000"]
    assert len(outputs(scene, eval_interval=3).image_filenames) == 5


@pytest.mark.parametrize("colour", ["white", "black"])
def test_background_of_opaque_photos_is_found(tmp_path: Path, colour) -> None:
    write_nsvf(tmp_path / "scene", small_object(), background=colour)
    part = outputs(tmp_path / "scene", "test")
    assert part.metadata["background"] == colour
    assert part.metadata["has_alpha"] is False
    assert part.alpha_color.tolist() == [1.0 if colour == "white" else 0.0] * 3
    other = "black" if colour == "white" else "white"
    assert outputs(tmp_path / "scene", background=other).metadata["background"] == other


def test_photos_of_another_resolution_get_their_own_intrinsics(scene: Path) -> None:
    path = scene / "rgb/0_0001.png"
    write_image(path, np.zeros((8, 8, 4), np.uint8))
    part = outputs(scene)
    assert part.cameras.width.flatten().tolist() == [16, 8, 16, 16, 16, 16]
    np.testing.assert_allclose(k_of(part.cameras, 1)[:2], k_of(part.cameras, 0)[:2] / 2)


def test_stated_background_needs_no_pixels(scene: Path) -> None:
    for path in (scene / "rgb").iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw[: raw.index(b"IDAT") + 4])
    assert len(outputs(scene, background="black").image_filenames) == 6
    with pytest.raises(DataError, match="does not decode"):
        outputs(scene)


def test_what_is_left_out_or_odd_is_said_once(scene: Path, printed: list[str]) -> None:
    (scene / "pose/0_0001.txt").unlink()
    (scene / "rgb/1_0007.png").unlink()
    (scene / "intrinsics.txt").write_text("22.4 1 8 0\n0 22.4 8 0\n0 0 1 0\n0 0 0 1\n")
    parser = NsvfDataParserConfig(data=scene).setup()
    for split in ("train", "test"):
        parser.get_dataparser_outputs(split)
    assert sum("without a pose left out: 0_0001" in line for line in printed) == 1
    assert sum("without a photo left out: 1_0007" in line for line in printed) == 1
    assert sum("skew" in line for line in printed) == 1
    assert sum("Only one view is held out" in line for line in printed) == 1


def test_a_busy_background_is_warned_about(scene: Path, printed: list[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    for path in (scene / "rgb").iterdir():
        write_image(path, noise)
    outputs(scene)
    assert any("not plain" in line for line in printed)


def _broken(*edits: Callable[[Path], object]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for edit in edits:
            edit(folder)

    return run


def _text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _each(pattern: str, act: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [act(path) for path in sorted(folder.glob(pattern))]


def _opengl(path: Path) -> None:
    np.savetxt(path, np.loadtxt(path) @ OPENGL_FROM_OPENCV)


def _inverted(path: Path) -> None:
    np.savetxt(path, np.linalg.inv(np.loadtxt(path)))


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no rgb": (lambda f: (f / "rgb").rename(f / "images"), "'rgb'"),
    "no pose": (lambda f: (f / "pose").rename(f / "poses"), "'pose'"),
    "no intrinsics": (lambda f: (f / "intrinsics.txt").unlink(), "is not a file"),
    "no bbox": (lambda f: (f / "bbox.txt").unlink(), "is not a file"),
    "intrinsics a folder": (
        lambda f: ((f / "intrinsics.txt").unlink(), (f / "intrinsics.txt").mkdir()),
        "is not a file",
    ),
    "no photos": (_each("rgb/*", Path.unlink), "0 photos"),
    "no pose files": (_each("pose/*", Path.unlink), "0 poses"),
    "names do not match": (_each("rgb/*", lambda p: p.rename(p.with_name(f"x{p.name}"))), "0 pair"),
    "two photos of one name": (
        lambda f: (f / "rgb/0_0001.jpg").write_bytes((f / "rgb/0_0001.png").read_bytes()),
        "same name",
    ),
    "photo is text": (_text("rgb/0_0001.png", "hello"), "cannot be read as an image"),
    "photo is empty": (_text("rgb/0_0001.png", ""), "cannot be read as an image"),
    "photo is cut": (
        lambda f: (f / "rgb/0_0000.png").write_bytes((f / "rgb/0_0000.png").read_bytes()[:60]),
        "does not decode",
    ),
    "photo is a crop": (lambda f: write_image(f / "rgb/0_0001.png", np.zeros((16, 11, 3), np.uint8)), "does not fit"),
    "pose empty": (_text("pose/0_0001.txt", ""), "is empty"),
    "pose 3x3": (_text("pose/0_0001.txt", "1 0 0\n0 1 0\n0 0 1\n"), "9 numbers"),
    "pose with a word": (_text("pose/0_0001.txt", "1 0 0 x\n0 1 0 0\n0 0 1 0\n0 0 0 1"), "'x' is not"),
    "pose nan": (_text("pose/0_0001.txt", "1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1"), "'nan' is not"),
    "pose mirrored": (_text("pose/0_0001.txt", "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1"), "mirrors"),
    "pose singular": (_text("pose/0_0001.txt", "0 0 0 0\n0 0 0 0\n0 0 0 0\n0 0 0 1"), "singular"),
    "pose sheared": (_text("pose/0_0001.txt", "1 .5 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1"), "not orthonormal"),
    "pose binary": (_text("pose/0_0001.txt", b"\x00\x01\x02"), "binary"),
    "pose latin-1": (_text("pose/0_0001.txt", b"1 0 0 \xe9"), "not UTF-8"),
    "pose huge": (_text("pose/0_0001.txt", "1 " * 600_000), "larger than"),
    "poses in OpenGL axes": (_each("pose/*", _opengl), "8 of 8 cameras"),
    "poses inverted": (_each("pose/*", _inverted), "do not look at the middle"),
    "intrinsics empty": (_text("intrinsics.txt", "\n"), "is empty"),
    "intrinsics ragged": (_text("intrinsics.txt", "22 0 8\n0 22\n"), "neither form"),
    "intrinsics fx fy cx cy": (_text("intrinsics.txt", "22 22 8 8\n"), "fx fy cx cy"),
    "intrinsics negative": (_text("intrinsics.txt", "-22 0 8\n0 22 8\n0 0 1\n"), "must be positive"),
    "intrinsics of another camera": (_text("intrinsics.txt", "22 0 80\n0 22 8\n0 0 1\n"), "principal point"),
    "intrinsics of another shape": (_text("intrinsics.txt", "22 8 8 0\n0 0 0\n0\n1\n16 24\n"), "of another shape"),
    "bbox short": (_text("bbox.txt", "0 0 0 1 1"), "5 numbers"),
    "bbox inside out": (_text("bbox.txt", "1 1 1 0 0 0 0.1"), "not below"),
    "bbox infinite": (_text("bbox.txt", "0 0 0 1 1 inf"), "'inf' is not"),
    "bbox voxel size": (_text("bbox.txt", "-1 -1 -1 1 1 1 -0.1"), "not positive"),
    "mixed prefixes": (
        lambda f: [
            (f / name).rename(f / name.replace("0_0001", "cover")) for name in ("rgb/0_0001.png", "pose/0_0001.txt")
        ],
        "have no prefix",
    ),
    "one pair": (
        _broken(_each("rgb/0_*", Path.unlink), _each("rgb/1_0007*", Path.unlink)),
        "1 pair",
    ),
    "nothing to train on": (_each("rgb/0_*", Path.unlink), "nothing to train on"),
}


@pytest.mark.parametrize(("edit", "piece"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_scenes_are_one_error_and_nothing_is_written(scene: Path, printed, edit, piece: str) -> None:
    edit(scene)
    before = files_of(scene.parent)
    with pytest.raises(DataError) as caught:
        outputs(scene)
    assert piece in str(caught.value)
    assert caught.value.file
    assert caught.value.place
    assert caught.value.remedy
    assert files_of(scene.parent) == before


@pytest.mark.parametrize(
    "options",
    [{"grid_side": 0.0}, {"grid_side": float("nan")}, {"intrinsics_size": (0, 5)}, {"val_from_train": -1}],
)
def test_unusable_options_are_refused(scene: Path, options) -> None:
    with pytest.raises(DataError):
        outputs(scene, **options)
    with pytest.raises(DataError):
        outputs(scene / "nowhere")


def test_registered_default_is_usable() -> None:
    assert isinstance(nsvf_data.config, NsvfDataParserConfig)
    assert nsvf_data.description
    assert nsvf_data.config.grid_side == 2.8


@pytest.mark.parametrize("name", ["lego_nsvf", "temple_nsvf"])
def test_real_box_centre_is_in_every_photo_on_the_object(shared_data: Path, name: str) -> None:
    """Acceptance check 11: the OpenCV to OpenGL flip, seen through nerfstudio's own cameras."""
    parser = NsvfDataParserConfig(data=shared_data / name).setup()
    for split in ("train", "test"):
        part = parser.get_dataparser_outputs(split)
        for index, path in enumerate(part.image_filenames):
            w2c = w2c_opencv_from_c2w_opengl(part.cameras.camera_to_worlds[index].double().numpy())
            corners = np.stack(np.meshgrid(*np.array(part.metadata["nsvf_bbox"]).T), axis=-1).reshape(-1, 3)
            pixels, depth = project(np.concatenate([np.zeros((1, 3)), corners]), k_of(part.cameras, index), w2c)
            size = [int(part.cameras.width[index]), int(part.cameras.height[index])]
            assert (depth > 0).all()
            assert (pixels[0] > 0).all()
            assert (pixels[0] < size).all()
            # What is not background is inside the projected box (drawn tightly round the object in these data).
            rgb, alpha = read_image(path)
            shown = alpha > 128 if alpha is not None else rgb.min(axis=-1) < 200
            rows, columns = np.nonzero(shown)
            margin = 0.02 * max(size)
            low, high = pixels[1:].min(axis=0) - margin, pixels[1:].max(axis=0) + margin
            share = ((columns > low[0]) & (columns < high[0]) & (rows > low[1]) & (rows < high[1])).mean()
            assert share > 0.97, path.name


def test_real_backgrounds(shared_data: Path) -> None:
    lego, temple = outputs(shared_data / "lego_nsvf"), outputs(shared_data / "temple_nsvf")
    assert (lego.metadata["background"], lego.metadata["has_alpha"]) == ("white", True)
    assert (temple.metadata["background"], temple.metadata["has_alpha"]) == ("white", False)


def test_real_lego_gives_the_same_rays_from_both_layouts(shared_data: Path) -> None:
    nsvf = NsvfDataParserConfig(data=shared_data / "lego_nsvf").setup()
    blender = ObjectBlenderDataParserConfig(data=shared_data / "lego_blender").setup()
    of_blender = {}
    for split in ("train", "val", "test"):
        part = blender.get_dataparser_outputs(split)
        for index, path in enumerate(part.image_filenames):
            of_blender[path.parent.name, int(path.stem[2:])] = (part.cameras, index, path)
    compared = 0
    for split, folder in (("train", "train"), ("test", "val")):
        part = nsvf.get_dataparser_outputs(split)
        middle = -part.dataparser_transform[:, 3]
        for index, path in enumerate(part.image_filenames):
            found = of_blender.get((folder, int(path.stem[2:])))
            if found is None:
                continue
            compared += 1
            mine = part.cameras.generate_rays(camera_indices=index, keep_shape=True)
            theirs = found[0].generate_rays(camera_indices=found[1], keep_shape=True)
            assert mine.origins.shape == theirs.origins.shape == (200, 200, 3)
            torch.testing.assert_close(mine.origins / part.dataparser_scale + middle, theirs.origins, atol=2e-6, rtol=0)
            torch.testing.assert_close(mine.directions, theirs.directions, atol=1e-6, rtol=0)
            if compared % 8 == 1:
                for one, other in zip(read_image(path), read_image(found[2]), strict=True):
                    assert one is not None
                    assert other is not None
                    assert np.abs(one.astype(int) - other).mean() < 2
    assert compared >= 30
