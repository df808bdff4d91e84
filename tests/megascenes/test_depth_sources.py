"""Depth from files, dense workspaces and walls: names, sizes, units, and what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from depth_scenes import (
    FOCAL,
    HEIGHT,
    WIDTH,
    K,
    camera,
    key_of,
    make_scene,
    texture,
    wall_depth,
    wall_model,
    write_model,
)
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from megascenes_ns.depth import q20
from megascenes_ns.depth_dense import DenseDepth, read_depth_map, write_depth_map
from megascenes_ns.depth_sources import FileDepth, PlaneDepth, candidates, checked_map, open_source, read_npy, safe_key

IMAGE = texture(0)


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("wall"))


# ---------------------------------------------------------------------- names


def test_the_names_of_the_original(shared_fixtures):
    rows = json.loads((shared_fixtures / "megascenes/data/pairs_expected.json").read_text())
    from dataparsers.megascenes_paths import relative_path
    from dataparsers.megascenes_pickle import read_rows

    listed = read_rows(shared_fixtures / "megascenes/data/pairs_protocol2.pkl")
    for row, pair in zip(rows, listed, strict=True):
        assert row["depth_name_original"] in candidates(relative_path(pair[0]))


def test_real_aligned_depth_is_found_and_in_units_of_the_scale(shared_data):
    from core_ns.images import read_image
    from dataparsers.megascenes_paths import relative_path
    from dataparsers.megascenes_pickle import read_rows

    root = shared_data / "megascenes_pairs"
    source = open_source(str(root / "depth"))
    for row in read_rows(root / "splits" / "trainsplit.pkl"):
        key = relative_path(row[0])
        image, _ = read_image(root / "images" / key)
        found = source.depth(image, np.eye(3), key, size=(192, 256), scale=row[4])
        stored = np.load(root / "depth" / candidates(key)[2])
        assert found.values.shape == (192, 256)
        assert found.q20 == row[4]
        assert q20(found.values) == pytest.approx(1.0, abs=0.02)  # the unit is the quantile of the large map
        assert found.valid.mean() == pytest.approx((stored > 0).mean(), abs=0.01)
        nearest = stored[(np.arange(192) * 532 // 192)[:, None], np.arange(256) * 708 // 256]
        ratio = found.values[found.valid & (nearest > 0)] * row[4] / nearest[found.valid & (nearest > 0)]
        assert np.median(np.abs(ratio - 1)) < 0.01


@pytest.mark.parametrize("key", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "a\0.jpg", "", "C:/x.jpg", "a//b.jpg"])
def test_keys_never_leave_the_folder(tmp_path, key):
    (tmp_path.parent / "x.npy").unlink(missing_ok=True)
    with pytest.raises(DataError, match="path of a photo"):
        FileDepth(tmp_path).file_of(key)


@given(st.text(max_size=30))
def test_no_key_leaves_the_folder(tmp_path_factory, key):
    root = tmp_path_factory.getbasetemp()
    try:
        safe = safe_key(key)
    except DataError:
        return
    assert (root / safe).is_relative_to(root)
    assert ".." not in safe.parts


def test_names_in_a_folder(tmp_path):
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    for name in ("a.jpg.npy", "sub/b.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, depth)
    source = FileDepth(tmp_path)
    assert source.file_of("a.jpg").name == "a.jpg.npy"
    assert source.file_of("sub/b.png").name == "b.npy"
    with pytest.raises(DataError, match="looked for"):
        source.depth(IMAGE, K, "b.png")  # another folder's photo of the same name is not this one


# ---------------------------------------------------------------------- files


def test_units_of_files(wall):
    source = open_source(str(wall.depths))
    exact = wall_depth(wall.cameras[1])
    by_scale = source.depth(IMAGE, K, key_of(1), scale=wall.scales[1])
    np.testing.assert_allclose(by_scale.values, exact / wall.scales[1], rtol=1e-6)
    own = source.depth(IMAGE, K, key_of(1))
    assert own.q20 == pytest.approx(np.quantile(exact, 0.2), rel=1e-6)
    np.testing.assert_allclose(own.values, exact / own.q20, rtol=1e-6)
    small = source.depth(IMAGE, K, key_of(1), size=(32, 48))
    assert small.values.shape == (32, 48)
    assert small.values.dtype == np.float32


def test_files_of_disparity(tmp_path):
    exact = wall_depth(camera(0))
    np.save(tmp_path / "photo.npy", 3.0 / exact)
    found = FileDepth(tmp_path / "photo.npy", disparity=True).depth(IMAGE, K, "photo.png", scale=9.0)
    np.testing.assert_allclose(found.values, exact / np.quantile(exact, 0.2), rtol=1e-6)
    assert found.q20 == 9.0
    assert not FileDepth(tmp_path / "photo.npy", disparity=True).depth(IMAGE, K, "photo.png").unit_known


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def bad_files():
    good = np.ones((HEIGHT, WIDTH), np.float32)
    yield "pickle", lambda file: file.write_bytes(pickle.dumps(_Trap()))
    yield "objects", lambda file: np.save(file, np.array([{}]), allow_pickle=True)
    yield "text", lambda file: file.write_text("1 2 3")
    yield "empty", lambda file: file.write_bytes(b"")
    yield "truncated", lambda file: (np.save(file, good), file.write_bytes(file.read_bytes()[:-9]))
    yield "archive", lambda file: (np.savez(file.with_suffix(""), good), file.with_suffix(".npz").replace(file))
    yield "complex", lambda file: np.save(file, good.astype(complex))
    yield "three", lambda file: np.save(file, np.ones((HEIGHT, WIDTH, 3)))
    yield "one", lambda file: np.save(file, np.ones(9))
    yield "none", lambda file: np.save(file, np.ones((0, 9)))
    yield "aspect", lambda file: np.save(file, np.ones((WIDTH, HEIGHT)))
    yield "cropped", lambda file: np.save(file, np.ones((HEIGHT, HEIGHT)))
    yield "hole", lambda file: np.save(file, good * 0)
    yield "nan", lambda file: np.save(file, good * np.nan)


@pytest.mark.parametrize(("name", "write"), list(bad_files()))
def test_bad_files_are_one_data_error(tmp_path, name, write):
    file = tmp_path / "photo.npy"
    write(file)
    with pytest.raises(DataError) as caught:
        FileDepth(file).depth(IMAGE, K, "photo.png")
    assert str(file) in str(caught.value)


def test_channels_of_one_are_pictures_too(tmp_path):
    for shape in ((HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH)):
        assert checked_map(np.ones(shape, np.float16), tmp_path, (HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH)
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.uint16))
    assert checked_map(read_npy(tmp_path / "a.npy"), tmp_path, (200, 301)).dtype == np.float64


# ---------------------------------------------------------------------- walls and options


def test_planes():
    one = PlaneDepth().depth(IMAGE, K, "x", scale=3.0)
    assert (one.values == 1.0).all()
    assert (one.q20, one.unit_known) == (3.0, True)
    far = open_source("plane:6").depth(IMAGE, K, "x", scale=3.0, size=(4, 6))
    assert far.values.shape == (4, 6)
    assert (far.values == 2.0).all()
    assert not open_source("plane").depth(IMAGE, K, "x").unit_known


@pytest.mark.parametrize("text", ["plane:", "plane:0", "plane:-1", "plane:x", "plane:inf", "plane:nan"])
def test_planes_that_are_none(text):
    if text == "plane:":
        assert isinstance(open_source(text), PlaneDepth)
    else:
        with pytest.raises(DataError, match="no distance"):
            open_source(text)


def test_options_that_do_not_go_together(wall, tmp_path):
    with pytest.raises(DataError, match="is not there"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no disparity"):
        open_source("plane", model=tmp_path)
    source = open_source(str(wall.depths), model=tmp_path)
    with pytest.raises(DataError, match="--disparity"):
        source.depth(IMAGE, K, key_of(0))


def test_settings_are_json(wall):
    for text in ("plane", "plane:2", str(wall.depths)):
        assert json.loads(json.dumps(open_source(text).settings()))["source"]


# ---------------------------------------------------------------------- COLMAP's dense maps


def test_depth_maps_round_trip(tmp_path):
    depth = np.random.default_rng(0).uniform(0, 5, (7, 11)).astype(np.float32)
    write_depth_map(tmp_path / "a.geometric.bin", depth)
    np.testing.assert_array_equal(read_depth_map(tmp_path / "a.geometric.bin"), depth)
    assert (tmp_path / "a.geometric.bin").read_bytes().startswith(b"11&7&1&")


def test_a_workspace_brings_maps_to_the_photos_own_camera(tmp_path):
    """The dense camera is wider and larger than the photo's: looking up through both K is exact on a plane."""
    maps = tmp_path / "stereo" / "depth_maps" / "Pärt A" / "0" / "pictures"
    maps.mkdir(parents=True)
    w2c = camera(1)
    dense = np.array([[60.0, 0, 70.0], [0, 64.0, 50.0], [0, 0, 1.0]])
    write_depth_map(maps / "photo 1.png.geometric.bin", wall_depth(w2c, dense, 140, 100))
    exact = wall_depth(w2c)
    plain = DenseDepth(tmp_path)
    with pytest.raises(DataError, match="another aspect"):
        plain.depth(IMAGE, K, key_of(1))
    model = wall_model([camera(0), camera(1)])
    from dataclasses import replace

    lens = replace(model.cameras[1], width=280, height=200, params=(120.0, 128.0, 140.0, 100.0))
    images = {n: replace(each, name=each.name.removeprefix("commons/")) for n, each in model.images.items()}
    write_model(tmp_path / "sparse", replace(model, cameras={1: lens}, images=images))
    source = open_source(str(tmp_path))
    assert isinstance(source, DenseDepth)
    found = source.depth(IMAGE, K, key_of(1), scale=2.0)
    np.testing.assert_allclose(found.values, exact / 2.0, rtol=1e-5)
    half = source.depth(IMAGE, K, key_of(1), size=(HEIGHT // 2, WIDTH // 2), scale=2.0)
    exact_half = wall_depth(w2c, K * [[0.5], [0.5], [1]], WIDTH // 2, HEIGHT // 2)
    np.testing.assert_allclose(half.values, exact_half / 2.0, rtol=1e-5)
    wide = np.array([[FOCAL / 4, 0, WIDTH / 2], [0, FOCAL / 4, HEIGHT / 2], [0, 0, 1]])
    seen = source.depth(IMAGE, wide, key_of(1), scale=2.0)
    assert 0 < seen.valid.mean() < 0.5  # the photo sees more than the map: holes
    with pytest.raises(DataError, match="geometric"):
        source.depth(IMAGE, K, key_of(2))


def test_geometric_maps_come_before_photometric_ones(tmp_path):
    maps = tmp_path / "stereo" / "depth_maps"
    maps.mkdir(parents=True)
    write_depth_map(maps / "a.png.photometric.bin", np.full((HEIGHT, WIDTH), 3.0))
    assert DenseDepth(tmp_path).depth(IMAGE, K, "x/a.png").q20 == 3.0
    write_depth_map(maps / "a.png.geometric.bin", np.full((HEIGHT, WIDTH), 4.0))
    assert DenseDepth(tmp_path).depth(IMAGE, K, "x/a.png").q20 == 4.0
    assert open_source(str(maps / "a.png.photometric.bin")).depth(IMAGE, K, "any.png").q20 == 3.0


@pytest.mark.parametrize(
    "data",
    [
        b"", b"96&64&", b"96&64&3&" + b"\0" * 4 * 96 * 64 * 3, b"96&64&1&" + b"\0" * 100, b"a&b&1&", b"0&0&1&",
        b"999999&999999&1&", b"96&64&1&" + b"\0" * (4 * 96 * 64 + 1), b"96&64&1&" + b"\0" * 4 * 96 * 64,
    ],
)  # fmt: skip
def test_bad_depth_maps_are_one_data_error(tmp_path, data):
    file = tmp_path / "a.geometric.bin"
    file.write_bytes(data)
    with pytest.raises(DataError):
        DenseDepth(file).depth(IMAGE, K, "a.png")
