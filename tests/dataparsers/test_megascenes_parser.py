"""Pairs and photos as nerfstudio gets them: the canonical world, splits, names, refusals (spec megascenes 8.1, 8.2)."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from planar_pairs import CATEGORY, DISTANCE, FOCAL, HEIGHT, WIDTH, camera, write_pairs

from core_ns.errors import DataError
from dataparsers.megascenes_splits import convert_splits
from megascenes_ns.canonical import c2w_ns_from_rel
from megascenes_ns.pose_vector import relative_pose
from megascenes_ns.prepare import fitted_size

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nerfstudio's imports warn about their own age
    from dataparsers.megascenes_parser import MegaScenesPairs, MegaScenesPairsConfig, canonical_cameras, resized

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "wall", pairs=6, held_out=3)


def parser(data: Path, **options) -> MegaScenesPairs:
    return MegaScenesPairsConfig(data=data, **options).setup()


def w2c(index: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = camera(index)
    return matrix


def test_cameras_are_the_poses_that_the_networks_are_told(data):
    outputs = parser(data).get_dataparser_outputs("train")
    pairs = parser(data).pairs()
    for index in range(6):
        pair = pairs.train[index]
        rel = relative_pose(w2c(2 * index), w2c(2 * index + 1), pair.scale)
        expected = c2w_ns_from_rel(rel)[:3]
        np.testing.assert_allclose(outputs.cameras.camera_to_worlds[index].numpy(), expected, atol=1e-6)
    assert outputs.cameras.metadata["pair_idx"].flatten().tolist() == list(range(6))
    assert outputs.dataparser_scale == 1.0
    assert np.array_equal(outputs.dataparser_transform.numpy(), np.eye(4)[:3])


def test_the_vectorised_frame_is_the_one_of_the_method():
    random = np.random.default_rng(0)
    ref, tgt = np.stack([w2c(index) for index in range(5)]), np.stack([w2c(index + 9) for index in range(5)])
    scale = random.uniform(0.5, 3, 5)
    scale[3] = 0.0
    expected = c2w_ns_from_rel(relative_pose(ref, tgt, scale))
    np.testing.assert_allclose(canonical_cameras(ref, tgt, scale), expected, rtol=1e-12, atol=1e-12)


def test_sizes_are_those_of_the_prepared_photos():
    sizes = np.random.default_rng(1).integers(1, 5000, (300, 2))
    ours = resized(sizes, 256)
    assert [tuple(each) for each in ours] == [fitted_size(int(w), int(h), 256) for w, h in sizes]


def test_intrinsics_follow_the_resize(data):
    outputs = parser(data).get_dataparser_outputs("train")
    assert (int(outputs.cameras.width[0]), int(outputs.cameras.height[0])) == (256, 192)
    assert float(outputs.cameras.fx[0]) == pytest.approx(FOCAL * 256 / WIDTH)
    assert float(outputs.cameras.cy[0]) == pytest.approx(HEIGHT / 2 * 192 / HEIGHT)


def test_a_point_of_the_wall_projects_to_the_right_pixel(data):
    """nerfstudio's rays through a target's camera meet the wall where its pixels were painted."""
    pairs = parser(data)
    cameras = pairs.get_dataparser_outputs("train").cameras
    scale = pairs.pairs().train[2].scale
    bundle = cameras.generate_rays(camera_indices=2, keep_shape=True)
    origin, direction = bundle.origins[50, 60].double().numpy(), bundle.directions[50, 60].double().numpy()
    # Canonical world -> reference's OpenCV camera -> world of the reconstruction.
    turn = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    ref = np.linalg.inv(w2c(4))
    start = ref[:3, :3] @ (turn @ origin * scale) + ref[:3, 3]
    ray = ref[:3, :3] @ (turn @ direction)
    hit = start + ray * (DISTANCE - start[2]) / ray[2]
    seen = w2c(5) @ np.append(hit, 1.0)
    pixel = FOCAL * seen[:2] / seen[2] + np.array([WIDTH, HEIGHT]) / 2
    np.testing.assert_allclose(pixel, [60.5 * WIDTH / 256, 50.5 * WIDTH / 256], atol=1e-3)


def test_names_are_unique_and_sort_by_pair(data):
    names = [path.name for path in parser(data).get_dataparser_outputs("test").image_filenames]
    assert names == ["0000006__013.png", "0000007__015.png", "0000008__017.png"]


def test_validation_is_the_beginning_of_the_test_list(data):
    opened = parser(data, num_val=2)
    assert opened.pairs().rows("val").tolist() == [6, 7]
    assert opened.pairs().rows("test").tolist() == [8]
    short = parser(data)
    assert short.pairs().rows("val").tolist() == short.pairs().rows("test").tolist() == [6, 7, 8]


def test_some_of_the_pairs_are_shown(data):
    opened = parser(data, shown_pairs=3)
    assert opened.shown("train").tolist() == [0, 2, 5]
    assert len(parser(data, shown_pairs=0).shown("train")) == 6
    assert len(parser(data, max_pairs=2).pairs().train) == 2


def test_without_a_test_list_some_pairs_are_held_out(tmp_path):
    data = write_pairs(tmp_path / "wall", pairs=6, held_out=0)
    pairs = parser(data).pairs()
    assert (len(pairs.train), len(pairs.test)) == (4, 2)
    trained = {pair.tgt_path for pair in pairs.train}
    assert not trained & {pair.tgt_path for pair in pairs.test}


def test_missing_photos_take_their_pairs_with_them(tmp_path):
    data = write_pairs(tmp_path / "wall", pairs=4)
    (data / "images" / CATEGORY / "commons" / "Front" / "0" / "pictures" / "003.png").unlink()
    pairs = parser(data).pairs()
    assert len(pairs.train) == 3
    assert [each.row for each in pairs.missing["train"]] == [1]
    assert any("1 pairs of train left out" in line for line in pairs.describe())
    with pytest.raises(DataError, match="lacks photos of 1 of 4"):
        parser(data, strict=True).pairs()
    with pytest.raises(DataError, match="is no folder"):
        parser(data, images=data / "nowhere").pairs()


def test_pairs_without_a_scale_are_left_out(tmp_path):
    data = write_pairs(tmp_path / "wall", pairs=3)
    rows = []
    for index in range(4):
        name = f"/x/main/images/{CATEGORY}/commons/Front/0/pictures/{index:03d}.png"
        intrinsics = ["SIMPLE_PINHOLE", WIDTH, HEIGHT, 70, 40, 30]
        lens = {"extrinsics": [1.0, 0, 0, 0, 0, 0, 0.1 * index], "intrinsics": intrinsics}
        rows.append([name, name, lens, lens] + ([1.5] if index else []))
    (tmp_path / "trainsplit.pkl").write_bytes(pickle.dumps(rows))
    convert_splits([tmp_path / "trainsplit.pkl"], data)
    pairs = parser(data).pairs()
    assert len(pairs.train) == 3
    assert pairs.unscaled == 1


def test_scenes_are_chosen_by_pattern(data):
    assert len(parser(data, scene_filter="Nothing*,Painted_*").pairs().train) == 6
    with pytest.raises(DataError, match="none that are asked for"):
        parser(data, scene_filter="Paris*").pairs()


def test_a_photo_alone_is_one_camera_at_the_origin(data):
    photo = next((data / "images").rglob("*.png"))
    opened = parser(photo)
    train, test = opened.get_dataparser_outputs("train"), opened.get_dataparser_outputs("test")
    assert (len(train.cameras), len(test.cameras)) == (1, 2)
    np.testing.assert_allclose(train.cameras.camera_to_worlds[0].numpy(), c2w_ns_from_rel(np.eye(4))[:3], atol=1e-7)
    across = np.degrees(2 * np.arctan(0.5 * float(train.cameras.width[0]) / float(train.cameras.fx[0])))
    assert across == pytest.approx(55.0, abs=1e-3)
    opened.photo_camera = (WIDTH, HEIGHT, FOCAL)
    assert float(opened.get_dataparser_outputs("train").cameras.fx[0]) == pytest.approx(FOCAL * 256 / WIDTH)


def test_other_things_are_refused_with_what_to_do(data, tmp_path):
    pickled = tmp_path / "trainsplit.pkl"
    pickled.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DataError, match=r"ns-megascenes convert-splits .*trainsplit.pkl"):
        parser(pickled).get_dataparser_outputs("train")
    with pytest.raises(DataError, match="is not there"):
        parser(tmp_path / "nothing").get_dataparser_outputs("train")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor a photo"):
        parser(tmp_path / "notes.txt").get_dataparser_outputs("train")
    (tmp_path / "fake.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match="cannot be read as an image"):
        parser(tmp_path / "fake.jpg").get_dataparser_outputs("train")
    with pytest.raises(DataError, match=r"convert-splits trainsplit\.pkl"):
        parser(tmp_path).get_dataparser_outputs("train")
    for options in ({"num_val": 1}, {"shown_pairs": -1}, {"max_pairs": 0}):
        with pytest.raises(DataError, match=next(iter(options)).replace("_", "-")):
            parser(data, **options).pairs()


def test_a_damaged_table_is_named(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "train" / "views.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"views\.npy"):
        parser(copy).pairs()
