"""Disparity aligned to a reconstruction's points: exact on a wall, and what falls back to the split's scale."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from depth_scenes import HEIGHT, WIDTH, K, camera, key_of, texture, wall_depth, wall_model, write_model

from core_ns.errors import DataError
from dataparsers.colmap_model import no_points
from megascenes_ns.depth_sources import FileDepth, open_source
from megascenes_ns.depth_sparse import AlignedDepth

IMAGE = texture(0)
CAMERAS = [camera(0), camera(1), camera(2)]


class WallDisparity:
    """What a perfect network would say: 1/z, scaled and shifted."""

    name = "wall"

    def __init__(self, slope=4.0, offset=-0.1):
        self.slope, self.offset = slope, offset

    def settings(self):
        return {"source": "wall"}

    def disparity(self, image, key, size):
        number = int(key.split()[-1].removesuffix(".png"))
        scaled = K * [[size[1] / WIDTH], [size[0] / HEIGHT], [1]]
        return (1 / wall_depth(CAMERAS[number], scaled, size[1], size[0]) - self.offset) / self.slope


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "sparse" / "0", wall_model(CAMERAS))


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT * 2, WIDTH * 2)])
def test_a_wall_comes_back_exactly(model, size):
    source = AlignedDepth(WallDisparity(), model.parents[1])
    found = source.depth(IMAGE, K, key_of(1), size=size, scale=1.5, w2c=CAMERAS[1])
    scaled = K * [[size[1] / WIDTH], [size[0] / HEIGHT], [1]]
    np.testing.assert_allclose(found.values * 1.5, wall_depth(CAMERAS[1], scaled, size[1], size[0]), rtol=1e-5)
    assert found.alignment is not None
    assert (found.alignment.rejected, found.q20, found.unit_known) == ("", 1.5, True)
    assert found.alignment.slope == pytest.approx(4.0, rel=1e-5)
    assert found.alignment.inliers == found.alignment.points > 100
    own = source.depth(IMAGE, K, key_of(1), w2c=CAMERAS[1])
    assert own.q20 == pytest.approx(np.quantile(wall_depth(CAMERAS[1]), 0.2), rel=1e-5)


def test_points_and_their_depth_are_those_of_the_photo(model):
    sparse = AlignedDepth(WallDisparity(), model).sparse_depth(key_of(2))
    assert not isinstance(sparse, str)
    at = sparse.places * [WIDTH, HEIGHT]
    rays = np.column_stack([at, np.ones(len(at))]) @ np.linalg.inv(K).T
    from depth_scenes import NORMAL, OFFSET

    normal = CAMERAS[2][:3, :3] @ NORMAL
    exact = (OFFSET + normal @ CAMERAS[2][:3, 3]) / (rays @ normal)
    np.testing.assert_allclose(sparse.depth, exact, rtol=1e-9)


def rejected(model, key=None, w2c=None, disparity=None):
    source = AlignedDepth(disparity or WallDisparity(), model)
    found = source.depth(IMAGE, K, key or key_of(1), scale=2.5, w2c=w2c)
    assert found.alignment is not None
    assert found.alignment.rejected
    # The network's own quantile stands for the split's scale, so depth and pose still agree.
    assert (found.q20, found.unit_known) == (2.5, True)
    assert np.quantile(found.values, 0.2) == pytest.approx(1.0, abs=1e-5)
    return found.alignment.rejected


def test_what_falls_back_to_the_splits_scale(model, tmp_path):
    assert "in no model" in rejected(model, key_of(1).replace("photo 1", "other 1"))
    turned = CAMERAS[1].copy()
    turned[0, 3] += 0.5
    assert "pose" in rejected(model, w2c=turned)
    assert "slope" in rejected(model, disparity=WallDisparity(slope=-4.0, offset=1.0))
    few = wall_model(CAMERAS, points=20)
    assert "points" in rejected(write_model(tmp_path / "few", few))
    empty = replace(few, points=no_points())
    assert "sees no points" in rejected(write_model(tmp_path / "empty", empty))


def test_unknown_units_are_said_to_be_so(model):
    found = AlignedDepth(WallDisparity(), model).depth(IMAGE, K, key_of(1).replace("photo 1", "other 1"))
    assert not found.unit_known


def test_points_behind_the_camera_do_not_count(tmp_path):
    model = wall_model(CAMERAS)
    turned = replace(model.points, xyz=model.points.xyz * [1, 1, -1])
    assert "sees no points" in rejected(write_model(tmp_path / "behind", replace(model, points=turned)))


def test_released_trees_by_number_and_by_category(tmp_path):
    """Of several reconstructions that with the pair's own pose; released names have underscores."""
    tree = tmp_path / "reconstruct" / "000" / "042" / "sparses"
    far = wall_model([np.array(each) for each in CAMERAS])
    moved = {n: replace(each, translation=(9.0, 9.0, 9.0)) for n, each in far.images.items()}
    write_model(tree / "0", replace(far, images=moved))
    plain = {n: replace(each, name=each.name.replace(" ", "_")) for n, each in far.images.items()}
    write_model(tree / "1", replace(far, images=plain))
    for root in (tmp_path, tmp_path / "reconstruct"):
        source = AlignedDepth(WallDisparity(), root, categories={"Wall": "000/042"})
        found = source.depth(IMAGE, K, key_of(1), scale=1.0, w2c=CAMERAS[1])
        assert found.alignment is not None
        assert found.alignment.rejected == ""
        by_number = source.depth(IMAGE, K, key_of(1).replace("Wall", "images/000/042"), scale=1.0, w2c=CAMERAS[1])
        np.testing.assert_array_equal(by_number.values, found.values)
    with pytest.raises(DataError, match="cameras"):
        AlignedDepth(WallDisparity(), tmp_path).depth(IMAGE, K, key_of(1))  # no categories: no scene


def test_two_photos_of_one_name_are_not_guessed_between(tmp_path):
    model = wall_model(CAMERAS)
    names = {1: "a/photo 1.png", 2: "b/photo 1.png", 3: "c.png"}
    images = {n: replace(each, name=names[n]) for n, each in model.images.items()}
    folder = write_model(tmp_path / "two", replace(model, images=images))
    source = AlignedDepth(WallDisparity(), folder)
    assert source.sparse_depth("photo 1.png") == "the photo is in no model"
    assert not isinstance(source.sparse_depth("b/photo 1.png"), str)


def test_it_travels_without_its_models(model):
    source = AlignedDepth(WallDisparity(), model)
    before = source.depth(IMAGE, K, key_of(1), scale=1.0)
    again = pickle.loads(pickle.dumps(source))
    assert not again._read
    np.testing.assert_array_equal(again.depth(IMAGE, K, key_of(1), scale=1.0).values, before.values)


def test_aligned_files_by_the_option(model, tmp_path):
    np.save(tmp_path / "photo.npy", (1 / wall_depth(CAMERAS[1]) + 0.1) / 4)
    source = open_source(str(tmp_path / "photo.npy"), model=model, disparity=True)
    found = source.depth(IMAGE, K, key_of(1), scale=1.0)
    np.testing.assert_allclose(found.values, wall_depth(CAMERAS[1]), rtol=1e-5)
    assert source.settings()["disparity"]["source"] == "files"


def test_real_depth_as_a_networks_disparity_is_brought_back(shared_data, tmp_path):
    """The castle's depth, scaled, shifted and noisy as disparity, a fifth of the points wrong: back within a percent,
    its quantile that of the list, through the command as a user gives it."""
    from dataparsers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints
    from dataparsers.megascenes_paths import original_depth_name, relative_path
    from dataparsers.megascenes_pickle import read_rows
    from dataparsers.megascenes_splits import convert_splits
    from megascenes_ns.depth import q20
    from megascenes_ns.depth_cache import DepthCache
    from megascenes_ns.depth_command import Precompute

    root, random = shared_data / "megascenes_pairs", np.random.default_rng(0)
    rows = read_rows(root / "splits" / "testsplit.pkl")
    images, clouds = {}, []
    for number, row in enumerate(rows, start=1):
        name = original_depth_name(row[0])
        depth = np.load(root / "depth" / name).astype(np.float64)
        with np.errstate(divide="ignore"):
            disparity = np.where(depth > 0, (1 / depth - 0.02) / 0.3, 0.0)
        file = tmp_path / "disparity" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, disparity * (1 + 0.01 * random.standard_normal(depth.shape)))
        v, u = np.array(np.nonzero(depth))[:, random.choice(np.count_nonzero(depth), 1500, replace=False)]
        z = depth[v, u] * (1 + 0.01 * random.standard_normal(1500))
        z[:300] = random.uniform(1, 40, 300)
        fx, fy, cx, cy = row[2]["intrinsics"][3:]
        camera = np.column_stack([(u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z])
        pose = ColmapImage(number, tuple(row[2]["extrinsics"][:4]), tuple(row[2]["extrinsics"][4:]), number, "", u, v)
        clouds.append((camera - pose.w2c[:3, 3]) @ pose.w2c[:3, :3])
        ids = 1500 * (number - 1) + np.arange(1500)
        images[number] = replace(
            pose, name=relative_path(row[0]), keypoints=np.column_stack([u + 0.5, v + 0.5]), point_ids=ids
        )
    count = 1500 * len(rows)
    tracks = tuple(np.zeros((0, 2), np.int64) for _ in range(count))
    points = ColmapPoints(
        np.arange(count), np.concatenate(clouds), np.zeros((count, 3), np.uint8), np.zeros(count), tracks
    )
    lenses = {
        n: ColmapCamera(n, "PINHOLE", *row[2]["intrinsics"][1:3], tuple(row[2]["intrinsics"][3:]))
        for n, row in enumerate(rows, start=1)
    }
    model = write_model(tmp_path / "model", ColmapModel(tmp_path, lenses, images, points))
    convert_splits([root / "splits" / "testsplit.pkl"], tmp_path / "data", images=root / "images")
    assert Precompute(
        tmp_path / "data", images=root / "images", depth=str(tmp_path / "disparity"), disparity=True, model=model,
        what="depth",
    ).main() == 0  # fmt: skip
    cache = DepthCache.open(tmp_path / "data" / "cache")
    for row in rows:
        found = cache.read(row[0], row[4])
        assert found is not None
        assert found.alignment is not None
        assert found.alignment.rejected == ""
        assert 1150 < found.alignment.inliers < 1350  # of 1200 right ones
        assert found.alignment.slope == pytest.approx(0.3, rel=0.02)
        exact = FileDepth(root / "depth").depth(
            np.zeros((532, 708, 3), np.uint8), np.eye(3), relative_path(row[0]), size=(192, 256), scale=row[4]
        )
        inside = exact.valid & (exact.values < 5)
        assert np.median(np.abs(found.values[inside] / exact.values[inside] - 1)) < 0.01
        assert q20(np.where(exact.valid, found.values, 0)) == pytest.approx(1.0, abs=0.02)
