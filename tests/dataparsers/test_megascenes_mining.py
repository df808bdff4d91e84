"""Pairs from a COLMAP model: counts by brute force, hours, scales, models that give none (spec megascenes 2.3)."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core_ns.errors import DataError
from dataparsers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_binary
from dataparsers.megascenes_mining import mine_pairs, mine_splits, photo_time, shared_points
from dataparsers.megascenes_paths import Resolver
from dataparsers.megascenes_table import PairTable

COUNT = 300


@pytest.fixture
def model(tmp_path) -> ColmapModel:
    """Six images along a line that see overlapping runs of 300 points; images 1 and 6 share nothing."""
    rng = np.random.default_rng(4)
    cameras = {
        1: ColmapCamera(1, "SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, 0.02)),
        7: ColmapCamera(7, "PINHOLE", 800, 600, (700.0, 710.0, 400.0, 300.0)),
    }
    ids = rng.permutation(np.arange(10, 10 + 2 * COUNT, 2)).astype(np.int64)
    xyz = rng.uniform((-5, -1, 2), (5, 1, 9), (COUNT, 3))
    images = {}
    for k in range(6):
        seen = ids[45 * k : 45 * k + 100]
        twice = np.r_[seen, seen[:3], [-1, -1]]  # a point may have two key points; some have no point
        images[10 - k] = ColmapImage(
            10 - k, (2.0, 0.0, 0.2 * k, 0.0), (0.1 * k, 0.0, 0.5), (1, 7)[k % 2], f"photo {k}.jpg",
            np.zeros((len(twice), 2)), twice,
        )  # fmt: skip
    points = ColmapPoints(ids, xyz, np.zeros((COUNT, 3), np.uint8), np.zeros(COUNT), ((),) * COUNT)
    return ColmapModel(tmp_path / "sparse", cameras, images, points)


def store(model: ColmapModel) -> Path:
    """Write the model where it says it lies."""
    model.folder.mkdir(parents=True, exist_ok=True)
    points = replace(model.points, tracks=tuple(np.zeros((0, 2), np.int64) for _ in model.points.ids))
    write_binary(replace(model, points=points), model.folder)
    return model.folder


def test_shared_points_by_brute_force(model):
    images = list(model.images.values())
    sets = [set(image.point_ids[image.point_ids >= 0].tolist()) for image in images]
    expected = {(i, j): len(sets[i] & sets[j]) for i, j in combinations(range(6), 2) if sets[i] & sets[j]}
    assert shared_points(images) == expected
    assert expected[0, 1] == 55
    assert (0, 5) not in expected
    assert shared_points([replace(image, point_ids=np.zeros(0, np.int64)) for image in images]) == {}


def names(table: PairTable) -> set[tuple[str, str]]:
    return {(pair.ref_path[6], pair.tgt_path[6]) for pair in table}


def test_pairs_of_neighbours_in_both_directions(model, tmp_path):
    mined = mine_splits(store(model), tmp_path / "out")
    table = mined.tables["train"]
    assert names(table) == {(str(i), str(j)) for i in range(6) for j in range(6) if abs(i - j) == 1}
    assert [pair.index for pair in table] == list(range(10))
    for pair in table:
        image = next(each for each in model.images.values() if each.name == pair.ref_path)
        np.testing.assert_allclose(pair.ref_w2c, image.w2c, atol=1e-12)
        seen = np.isin(model.points.ids, image.point_ids)
        depth = (model.points.xyz[seen] @ image.w2c[2, :3]) + image.w2c[2, 3]
        assert pair.scale == pytest.approx(np.quantile(depth[depth > 0], 0.2))
    assert table[0].ref_K[0].tolist() == [500.0, 0.0, 320.0]
    assert table[0].tgt_K[1].tolist() == [0.0, 710.0, 300.0]
    assert (table[0].ref_size, table[0].tgt_size) == ((640, 480), (800, 600))
    both = mine_splits(model.folder, tmp_path / "out", min_shared=10).tables["train"]
    assert names(both) == {(str(i), str(j)) for i in range(6) for j in range(6) if 1 <= abs(i - j) <= 2}


def write_photo(file: Path, taken: str | None) -> None:
    """A photo of four pixels; its EXIF has a time of capture if one is given."""
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[0x9003] = taken
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(file, exif=exif)


def test_the_rule_of_hours(model, tmp_path):
    times = ["2020:05:01 10:00:00", "2020:05:01 12:59:59", "2020:05:01 16:00:00", None, "0000:00:00 00:00:00"]
    for k, taken in enumerate(times):
        write_photo(tmp_path / f"photos/photo {k}.jpg", taken)
    mined = mine_splits(store(model), tmp_path / "out", images=tmp_path / "photos")
    assert names(mined.tables["train"]) == {
        ("0", "1"),
        ("1", "0"),
        *((a, b) for a, b in ["23", "32", "34", "43", "45", "54"]),
    }
    assert mined.untimed == 3
    assert photo_time(tmp_path / "photos/photo 1.jpg") - photo_time(tmp_path / "photos/photo 0.jpg") == 3 * 3600 - 1
    more = mine_splits(model.folder, tmp_path / "out", images=tmp_path / "photos", max_hours=4)
    assert len(more.tables["train"]) == 10


def test_held_out_images_are_in_no_training_pair(model, tmp_path):
    tables = mine_splits(store(model), tmp_path / "out", test_every=3, prefix="mine/").tables
    assert sorted(tables) == ["test", "train"]
    assert all({pair.ref_path[-5], pair.tgt_path[-5]} & {"0", "3"} for pair in tables["test"])
    assert not any({pair.ref_path[-5], pair.tgt_path[-5]} & {"0", "3"} for pair in tables["train"])
    assert len(tables["test"]) + len(tables["train"]) == 10
    pair = tables["test"][0]
    assert pair.ref_path.startswith("mine/photo")
    write_photo(tmp_path / "root" / pair.ref_path, None)
    assert Resolver(tmp_path / "root").find(pair.ref_path) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, cameras={**m.cameras, 1: ColmapCamera(1, "OPENCV", 8, 6, (1.0,) * 8)}), "model OPENCV"),
        (lambda m: replace(m, cameras={**m.cameras, 1: ColmapCamera(1, "PINHOLE", 8, 6, (-1.0,) * 4)}), "focal length"),
        (lambda m: replace(m, images={5: replace(m.images[5], name="../x.jpg")}), "'..' part"),
        (lambda m: replace(m, images={5: m.images[5]}), "no two of 1 images"),
        (lambda m: replace(m, points=replace(m.points, xyz=m.points.xyz * (0.1, 1, -1))), "no two of 6 images"),
    ],
    ids=["camera model", "mirror", "name", "alone", "behind"],
)
def test_models_without_usable_pairs(model, change, words):
    with pytest.raises(DataError, match=words):
        mine_pairs(change(model))


def test_nothing_is_written_for_a_bad_model(model, tmp_path):
    with pytest.raises(DataError, match="no two"):
        mine_splits(store(model), tmp_path / "out", min_shared=99)
    with pytest.raises(DataError, match="is no folder"):
        mine_splits(model.folder, tmp_path / "out", images=tmp_path / "absent")
    assert not (tmp_path / "out").exists()


def test_photos_without_a_time(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    write_photo(tmp_path / "y.jpg", "yesterday")
    assert [photo_time(tmp_path / name) for name in ("x.jpg", "y.jpg", "absent.jpg")] == [None, None, None]
