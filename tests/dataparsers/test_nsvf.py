"""NSVF files: what is accepted, what is refused, and that nothing is lost in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_scenes import BBOX, files_of, small_object

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV
from core_ns.images import read_image
from dataparsers.nsvf import (
    Intrinsics,
    fit_intrinsics,
    normalization,
    pair_files,
    parse_bbox,
    parse_intrinsics,
    parse_pose,
    read_views,
    rigid_c2w,
    split_names,
    write_nsvf,
)
from dataparsers.object_scene import ObjectScene, demo_object, new_folder

K = np.array([[700.0, 0.5, 360], [0, 710, 270], [0, 0, 1]])
K4 = "700 0.5 360 0\n0 710 270 0\n0 0 1 0\n0 0 0 1\n"
K3 = "700 0.5 360\n0 710 270\n0 0 1\n"
SHORT = "1111.5 400 300 0.\n0. 0. 0.\n0.\n1.\n600 800\n"
POSE = "0 0 1 -4\n1 0 0 0.5\n0 1 0 2\n0 0 0 1\n"
BOX = "-1 -2 -3 4 5 6 0.1\n"


@pytest.mark.parametrize(
    "text",
    [
        K4,
        K3,
        "700 0.5 360 0\n0 710 270 0\n0 0 1 0\n",
        K4.replace("0 0 0 1", "0 0 0 0"),
        K4.replace("\n", " "),
        K3.replace("\n", " "),
        K4.replace("\n", "\r\n"),
        K4.replace(" ", "\t"),
        "\ufeff" + K4,
        "# K\n\n" + K4.replace("\n", "  # row\n\n"),
        K3.replace("700", "7.0e+02").replace("0.5", ".5"),
    ],
)
def test_every_matrix_form_reads_the_same_intrinsics(text: str) -> None:
    read = parse_intrinsics(text, "intrinsics.txt")
    np.testing.assert_array_equal(read.matrix, K)
    assert read.size is None


@pytest.mark.parametrize("lines", [1, 2, 3, 4, 5])
def test_short_form_may_end_early_and_swaps_height_and_width(lines: int) -> None:
    read = parse_intrinsics("\n".join(SHORT.split("\n")[:lines]), "intrinsics.txt")
    np.testing.assert_array_equal(read.matrix, [[1111.5, 0, 400], [0, 1111.5, 300], [0, 0, 1]])
    assert read.size == ((800, 600) if lines == 5 else None)


BAD_INTRINSICS = {
    "empty": ("", "is empty"),
    "comments only": ("# 1 2 3\n", "is empty"),
    "prose": ("focal length\n", "'focal' is not"),
    "word": (K3.replace("360", "wide"), "'wide' is not"),
    "nan": (K3.replace("360", "nan"), "'nan' is not"),
    "infinity": (K3.replace("360", "inf"), "'inf' is not"),
    "overflow": (K3.replace("360", "1e999"), "'1e999' is not"),
    "decimal comma": (K3.replace("0.5", "0,5"), "'0,5' is not"),
    "underscore": (K3.replace("700", "7_00"), "'7_00' is not"),
    "ragged": ("700 0 360\n0 710\n0 0 1\n", "neither form"),
    "two rows": ("700 0 360\n0 710 270\n", "neither form"),
    "five rows": (K4 + "0 0 0 1\n", "neither form"),
    "one number": ("700\n", "neither form"),
    "twelve numbers in a line": (" ".join("1" * 12), "neither form"),
    "last row": (K3.replace("0 0 1", "0 0 2"), "row 3"),
    "fourth column": (K4.replace("0.5 360 0", "0.5 360 7"), "column 4"),
    "fourth row": (K4.replace("0 0 0 1", "0 0 3 1"), "row 4"),
    "negative focal": (K3.replace("700", "-700"), "must be positive"),
    "zero focal": (K3.replace("710", "0"), "must be positive"),
    "transposed": ("700 0 0\n0.5 710 0\n360 270 1\n", "row 3"),
    "lower triangle": (K3.replace("0 710", "3 710"), "row 2"),
    "short: fx fy cx cy": ("1111 1112 400 300\n", "may be 'fx fy cx cy'"),
    "short: negative focal": (SHORT.replace("1111.5", "-1111.5"), "must be positive"),
    "short: zero focal": (SHORT.replace("1111.5", "0"), "must be positive"),
    "short: barycentre": (SHORT.replace("0. 0. 0.", "0. 0."), "2 numbers where 3"),
    "short: size missing a side": (SHORT.replace("600 800", "600"), "1 numbers where 2"),
    "short: fractional size": (SHORT.replace("600 800", "600.5 800"), "no height and width"),
    "short: zero size": (SHORT.replace("600 800", "0 800"), "no height and width"),
    "short: absurd size": (SHORT.replace("600 800", "600 1e9"), "no height and width"),
    "short: too long": (SHORT + "1\n1\n", "one line too many"),
}


@pytest.mark.parametrize(("text", "piece"), BAD_INTRINSICS.values(), ids=BAD_INTRINSICS.keys())
def test_malformed_intrinsics_are_refused_with_the_place(text: str, piece: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_intrinsics(text, "intrinsics.txt")
    assert piece in str(caught.value)
    assert caught.value.file == "intrinsics.txt"
    assert caught.value.place
    assert caught.value.remedy


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-3, 1e6)


@given(positive, positive, finite, finite, finite, st.sampled_from([3, 4]), st.sampled_from([" ", "\t", "  "]))
def test_matrices_survive_text_exactly(fx, fy, skew, cx, cy, side, gap) -> None:
    matrix = np.eye(side)
    matrix[0, :3], matrix[1, 1:3] = (fx, skew, cx), (fy, cy)
    text = "\n".join(gap.join(f"{value:.17g}" for value in row) for row in matrix)
    read = parse_intrinsics(text, "f")
    np.testing.assert_array_equal(read.matrix, matrix[:3, :3])
    one_line = parse_intrinsics(text.replace("\n", " "), "f")
    np.testing.assert_array_equal(one_line.matrix, matrix[:3, :3])


@given(positive, finite, finite, st.integers(1, 10**6), st.integers(1, 10**6))
def test_short_forms_survive_text_exactly(focal, cx, cy, height, width) -> None:
    read = parse_intrinsics(f"{focal:.17g} {cx:.17g} {cy:.17g} 0.\n0 0 0\n0\n1\n{height} {width}\n", "f")
    np.testing.assert_array_equal(read.matrix, [[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    assert read.size == (width, height)


words = st.one_of(finite.map(repr), st.sampled_from(["0", "1", "0.", "nan", "inf", "#", "x", "1e", "--1", "٣", "1_0"]))
layouts = st.lists(st.lists(words, max_size=5).map(" ".join), max_size=7).map("\n".join)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=80), layouts))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_intrinsics, parse_pose, parse_bbox):
        try:
            read = parse(text, "f")
        except DataError:
            continue
        assert np.isfinite(read.matrix if isinstance(read, Intrinsics) else read).all()


def test_intrinsics_follow_the_photo_size() -> None:
    short = parse_intrinsics(SHORT, "f")
    np.testing.assert_array_equal(fit_intrinsics(short, (800, 600), "f"), short.matrix)
    half = fit_intrinsics(short, (400, 300), "f")
    np.testing.assert_array_equal(half, [[555.75, 0, 200], [0, 555.75, 150], [0, 0, 1]])
    rounded = fit_intrinsics(short, (267, 200), "f")  # a third of the size, rounded to whole pixels
    np.testing.assert_allclose(rounded[:2, 2], [267 / 2, 100])
    matrix = Intrinsics(K, None)
    np.testing.assert_array_equal(fit_intrinsics(matrix, (700, 560), "f"), K)
    for factor in (0.125, 0.25, 0.5, 2, 4, 8):
        size = round(700 * factor), round(560 * factor)
        np.testing.assert_array_equal(fit_intrinsics(matrix, size, "f")[:2], K[:2] * factor)
    np.testing.assert_array_equal(fit_intrinsics(matrix, (350, 280), "f", native=(700, 560))[:2], K[:2] / 2)
    np.testing.assert_array_equal(fit_intrinsics(short, (800, 600), "f", native=(1600, 1200))[:2], short.matrix[:2] / 2)


@pytest.mark.parametrize(
    ("intrinsics", "size", "native"),
    [
        (Intrinsics(K, (800, 600)), (800, 500), None),  # cropped
        (Intrinsics(K, None), (64, 48), None),  # about 1/11
        (Intrinsics(K, None), (700, 270), None),  # one axis only
        (Intrinsics(K * [[1], [1], [1]] - [[0, 0, 400], [0, 0, 0], [0, 0, 0]], None), (700, 560), None),
        (Intrinsics(K, None), (700, 560), (700, 300)),
        (Intrinsics(K, (300, 200)), (300, 200), None),  # centre outside
    ],
)
def test_intrinsics_of_other_pictures_are_refused(intrinsics, size, native) -> None:
    with pytest.raises(DataError, match="intrinsics-size"):
        fit_intrinsics(intrinsics, size, "f", native)


def test_pose_is_camera_to_world_and_kept_to_the_bit() -> None:
    for text in (POSE, POSE.replace("0 0 0 1\n", ""), POSE.replace("\n", " "), POSE.replace(" ", "\n")):
        np.testing.assert_array_equal(
            parse_pose(text, "f"), [[0, 0, 1, -4], [1, 0, 0, 0.5], [0, 1, 0, 2], [0, 0, 0, 1]]
        )


def test_scaled_and_rounded_rotations_become_rigid_about_the_same_centre() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, (1.5, -2, 0.25)
    for factor in (1.0, 0.01, 3.7):
        bent = pose.copy()
        bent[:3, :3] *= factor
        np.testing.assert_allclose(rigid_c2w(bent), pose, atol=1e-12)
    rounded = pose.copy()
    rounded[:3, :3] = rounded[:3, :3].round(4)
    fixed = rigid_c2w(rounded)
    np.testing.assert_allclose(fixed[:3, :3] @ fixed[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(fixed[:3, 3], pose[:3, 3])


BAD_POSES = {
    "empty": ("", "is empty"),
    "three rows of three": ("1 0 0\n0 1 0\n0 0 1\n", "9 numbers"),
    "number missing": (POSE[:-3], "15 numbers"),
    "number too many": (POSE + "1\n", "17 numbers"),
    "word": (POSE.replace("-4", "far"), "'far' is not"),
    "nan": (POSE.replace("-4", "nan"), "'nan' is not"),
    "last row": (POSE.replace("0 0 0 1", "0 0 1 1"), "last row"),
    "zero": (POSE.replace("1", "0").replace("0 0 0 0\n", "0 0 0 1\n"), "singular"),
    "mirrored": (POSE.replace("1 0 0 0.5", "-1 0 0 0.5"), "mirrors"),
    "sheared": (POSE.replace("0 0 1 -4", "0.3 0 1 -4"), "not orthonormal"),
    "absurd": (POSE.replace("-4", "1e200"), "absurdly large"),
    "transposed": ("0 1 0 0\n0 0 1 0\n1 0 0 0\n-4 0.5 2 1\n", "last row"),
}


@pytest.mark.parametrize(("text", "piece"), BAD_POSES.values(), ids=BAD_POSES.keys())
def test_malformed_poses_are_refused(text: str, piece: str) -> None:
    with pytest.raises(DataError, match=piece) as caught:
        parse_pose(text, "pose.txt")
    assert caught.value.place


def test_bbox_reads_with_and_without_voxel_size() -> None:
    for text in (BOX, "-1 -2 -3 4 5 6\n", "-1 -2 -3\n4 5 6\n0.1"):
        np.testing.assert_array_equal(parse_bbox(text, "f"), [[-1, -2, -3], [4, 5, 6]])


BAD_BOXES = {
    "empty": ("\n", "is empty"),
    "five numbers": ("0 0 0 1 1", "5 numbers"),
    "eight numbers": ("0 0 0 1 1 1 1 1", "8 numbers"),
    "word": ("0 0 0 1 1 one", "'one' is not"),
    "nan": ("0 0 0 1 1 nan", "'nan' is not"),
    "flat": ("0 0 0 1 1 0 0.1", "zmin 0 is not below"),
    "corners exchanged": ("1 1 1 0 0 0 0.1", "xmin 1 is not below"),
    "min max pairs": ("0 5 -1 1 2 3 0.1", "ymin 5 is not below"),
    "voxel size zero": ("0 0 0 1 1 1 0", "voxel size"),
    "absurd": ("0 0 0 1 1 1e300 1", "absurdly large"),
}


@pytest.mark.parametrize(("text", "piece"), BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_malformed_boxes_are_refused(text: str, piece: str) -> None:
    with pytest.raises(DataError, match=piece):
        parse_bbox(text, "bbox.txt")


def test_legacy_scale_takes_the_originals_third_extent() -> None:
    box = np.array([[0.0, -1, -3], [2, 5, 1]])  # extents 2, 6, 4; legacy third 5 - -3 = 8
    middle, half = normalization(box)
    np.testing.assert_array_equal(middle, [1, 2, -1])
    assert half == 3.0
    legacy_middle, legacy = normalization(box, legacy_scale=True)
    np.testing.assert_array_equal(legacy_middle, middle)
    assert legacy == 4.0
    np.testing.assert_array_equal(box, [[0.0, -1, -3], [2, 5, 1]])
    moved = (box - middle) / half
    assert np.abs(moved).max() == 1.0


def test_split_rules() -> None:
    def split(*names: str, interval: int = 8) -> list[list[int]]:
        parts = split_names(names, "scene", interval)
        return [parts["train"], parts["val"], parts["test"]]

    assert split("0_a", "0_b", "1_c") == [[0, 1], [2], [2]]
    assert split("0_a", "1_b", "2_c") == [[0], [1], [2]]
    assert split("0_a", "2_c") == [[0], [1], [1]]
    plain = [f"img{index:02d}" for index in range(17)]
    train, val, test = split(*plain)
    assert test == val == [0, 8, 16]
    assert sorted(train + test) == list(range(17))
    assert split("0_a", "0_b", "0_c", interval=2) == [[1], [0, 2], [0, 2]]
    assert split("3_a", "3_b", "10_c", interval=2)[0] == [1]


@pytest.mark.parametrize(
    ("names", "interval", "piece"),
    [
        (["0_a", "1_b", "cover"], 8, "have no prefix"),
        (["1_a", "1_b"], 8, "nothing to train on"),
        (["1_a", "2_b"], 8, "nothing to train on"),
        (["a", "b"], 1, "holds out every photo"),
        (["0_a", "0_b"], 0, "holds out every photo"),
    ],
)
def test_unusable_splits_are_refused(names: list[str], interval: int, piece: str) -> None:
    with pytest.raises(DataError, match=piece):
        split_names(names, "scene", interval)


@pytest.mark.parametrize("form", ["matrix", "short"])
def test_a_written_scene_reads_back_exactly(tmp_path: Path, form) -> None:
    scene = small_object(train=3, val=1, test=2)
    write_nsvf(tmp_path / "scene", scene, form=form)
    pairs, lone_photos, lone_poses = pair_files(tmp_path / "scene")
    assert lone_photos == lone_poses == []
    views = read_views(pairs, tmp_path / "scene/intrinsics.txt")
    assert [view.name[:2] for view in views] == ["0_"] * 3 + ["1_"] + ["2_"] * 2
    for view, picture in zip(views, scene.pictures, strict=True):
        np.testing.assert_allclose(view.c2w, picture.c2w, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(view.intrinsics, scene.intrinsics)
        assert view.size == (16, 16)
        rgb, alpha = read_image(view.image)
        assert alpha is not None
        np.testing.assert_array_equal(np.dstack([rgb, alpha]), picture.rgba)
    bbox = tmp_path / "scene/bbox.txt"
    np.testing.assert_array_equal(parse_bbox(bbox.read_text(), bbox), BBOX)


def test_without_val_the_test_views_are_ones(tmp_path: Path) -> None:
    write_nsvf(tmp_path / "scene", small_object(train=2, test=2), background="black")
    assert sorted(path.stem[:2] for path in (tmp_path / "scene/rgb").iterdir()) == ["0_", "0_", "1_", "1_"]
    rgb, alpha = read_image(next((tmp_path / "scene/rgb").iterdir()))
    assert alpha is None
    assert rgb[0, 0].max() == 0


def test_writers_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    scene = small_object()
    k = scene.intrinsics.copy()
    k[1, 1] += 1
    with pytest.raises(ValueError, match="one focal length"):
        write_nsvf(tmp_path / "scene", ObjectScene(scene.pictures, k, scene.bbox), form="short")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    for name in ("full", "file"):
        with pytest.raises(DataError):
            write_nsvf(tmp_path / name, scene)

    def stop_half_way() -> None:
        with new_folder(tmp_path / "draft") as draft:
            (draft / "a").write_text("b")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert files_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_demo_object_is_inside_its_box_and_seen_whole() -> None:
    scene = demo_object(train=2, val=1, test=1, size=24, supersample=2, mesh_faces=2000)
    assert [picture.split for picture in scene.pictures] == ["train", "train", "val", "test"]
    assert scene.size == (24, 24)
    assert np.abs(scene.bbox).max() == pytest.approx(1.15)
    np.testing.assert_allclose(scene.bbox.sum(axis=0), 0, atol=1e-6)
    for picture in scene.pictures:
        alpha = picture.rgba[..., 3]
        assert np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]).max() == 0
        assert 0.1 < (alpha > 127).mean() < 0.9
        assert picture.rgba[alpha > 127][:, :3].std() > 10
        # The silhouette is where the box projects: nothing is mirrored or upside down.
        corners = np.stack(np.meshgrid(*scene.bbox.T), axis=-1).reshape(-1, 3)
        camera = (corners - picture.c2w[:3, 3]) @ picture.c2w[:3, :3]
        assert (camera[:, 2] > 1).all()
        pixels = camera @ scene.intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        rows, columns = np.nonzero(alpha > 0)
        assert columns.min() >= np.floor(pixels[:, 0].min()) - 1e-6
        assert columns.max() <= np.ceil(pixels[:, 0].max())
        assert rows.min() >= np.floor(pixels[:, 1].min()) - 1e-6
        assert rows.max() <= np.ceil(pixels[:, 1].max())
    again = demo_object(train=2, val=1, test=1, size=24, supersample=2, mesh_faces=2000)
    np.testing.assert_array_equal(again.pictures[0].rgba, scene.pictures[0].rgba)
    with pytest.raises(ValueError, match="train"):
        demo_object(train=0)


def test_pairs_are_sorted_and_the_lonely_are_named(tmp_path: Path) -> None:
    write_nsvf(tmp_path / "scene", small_object(train=3, test=1))
    (tmp_path / "scene/pose/0_0001.txt").rename(tmp_path / "scene/pose/0_9999.txt")
    (tmp_path / "scene/rgb/.hidden.png").write_bytes(b"")
    (tmp_path / "scene/rgb/notes.md").write_text("")
    pairs, photos, poses = pair_files(tmp_path / "scene")
    assert [name for name, _, _ in pairs] == ["0_0000", "0_0002", "1_0003"]
    assert photos == ["0_0001"]
    assert poses == ["0_9999"]


def test_real_lego_poses_equal_the_blender_ones(shared_data: Path) -> None:
    import json

    pairs, *_ = pair_files(shared_data / "lego_nsvf")
    views = read_views(pairs, shared_data / "lego_nsvf/intrinsics.txt")
    assert len(views) == 50
    assert {view.size for view in views} == {(200, 200)}
    frames = json.loads((shared_data / "lego_blender/transforms_train.json").read_text())["frames"]
    blender = {frame["file_path"].split("_")[-1]: np.array(frame["transform_matrix"]) for frame in frames}
    for view in views:
        if view.name.startswith("0_"):
            wanted = blender[str(int(view.name[2:]))] @ OPENGL_FROM_OPENCV
            np.testing.assert_array_equal(view.c2w, wanted)
    np.testing.assert_allclose(views[0].intrinsics, [[277.7777577984, 0, 100], [0, 277.7777577984, 100], [0, 0, 1]])


def test_real_temple_matrix_is_taken_as_it_is(shared_data: Path) -> None:
    pairs, *_ = pair_files(shared_data / "temple_nsvf")
    views = read_views(pairs, shared_data / "temple_nsvf/intrinsics.txt")
    assert len(views) == 16
    np.testing.assert_array_equal(views[3].intrinsics, [[1520.4, 0, 302.32], [0, 1525.9, 246.87], [0, 0, 1]])
