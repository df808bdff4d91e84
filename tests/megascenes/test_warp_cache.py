"""The warp cache: keys, files, the original's names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core_ns.errors import DataError
from dataparsers.megascenes_paths import original_warp_name
from megascenes_ns.warp import Warp, warp_bytes
from megascenes_ns.warp_cache import WarpCache, WarpSettings, pair_key

SETTINGS = WarpSettings.of({"source": "plane", "distance": 2.0})


def some_warp(seed: int = 0, height: int = 20, width: int = 31) -> Warp:
    rng = np.random.default_rng(seed)
    coverage = (rng.integers(0, 5, (height, width)) / 4).astype(np.float32)
    rgb = rng.random((height, width, 3), np.float32) * coverage[..., None]
    return Warp(rgb, coverage, np.ones((height, width), np.float32))


@pytest.mark.parametrize("format", ["webp", "png"])
def test_colours_and_coverage_come_back(tmp_path, format):
    cache, warp = WarpCache(tmp_path / "cache", format), some_warp()
    key = pair_key("a.jpg", "b.jpg", SETTINGS)
    assert key not in cache
    assert cache.get(key) is None
    file = cache.put(key, warp)
    assert file == tmp_path / "cache" / "warp" / key[:2] / f"{key[2:]}.{format}"
    found = cache.get(key)
    assert found is not None
    assert key in cache
    # Nothing under low coverage is tidied away.
    np.testing.assert_array_equal(found.rgb, warp_bytes(warp.rgb))
    np.testing.assert_allclose(found.coverage, warp.coverage, atol=0.5 / 255 + 1e-6)
    assert ((found.coverage == 0) == (warp.coverage == 0)).all()
    assert ((found.coverage == 1) == (warp.coverage == 1)).all()
    # Read by a cache that writes the other format; written again with the same bytes.
    other = WarpCache(tmp_path / "cache", "png" if format == "webp" else "webp").get(key)
    assert other is not None
    np.testing.assert_array_equal(other.rgb, found.rgb)
    before = file.read_bytes()
    cache.put(key, warp)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_key_depends_on_all_that_the_pixels_depend_on():
    geometry = np.array([1.0, 2.0, -0.0, 1e-3])
    base = pair_key("a.jpg", "b.jpg", SETTINGS, geometry)
    assert len(base) == 40
    assert base == pair_key("a.jpg", "b.jpg", SETTINGS, geometry * (1 + 1e-13) + 0.0)
    others = [
        pair_key("b.jpg", "a.jpg", SETTINGS, geometry),
        pair_key("a.jpgb", ".jpg", SETTINGS, geometry),
        pair_key("a.jpg", "b.jpg", SETTINGS),
        pair_key("a.jpg", "b.jpg", SETTINGS, geometry * 1.001),
        *(
            pair_key("a.jpg", "b.jpg", replace(SETTINGS, **change), geometry)
            for change in (
                {"depth": "{}"}, {"canvas": 128}, {"spp": 1}, {"max_angle": 80.0}, {"near": 0.01},
                {"shading": "sample"}, {"version": 2},
            )
        ),
    ]  # fmt: skip
    assert len({base, *others}) == len(others) + 1


def test_the_originals_files_are_read_and_never_written(tmp_path):
    first, second = "C/commons/P/0/pictures/a.jpg", "C/commons/P/0/pictures/b.jpg"
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:, 4:] = (0, 3, 0)
    Image.fromarray(picture).save(tmp_path / original_warp_name(first, second))
    cache = WarpCache(tmp_path / "ours", original=tmp_path)
    found = cache.get_original(first, second)
    assert found is not None
    np.testing.assert_array_equal(found.rgb, picture)
    np.testing.assert_array_equal(found.coverage, np.repeat([[0.0] * 4 + [1.0] * 4], 6, axis=0))
    assert cache.get_original(second, first) is None
    assert cache.get_original("elsewhere/a.jpg", second) is None
    assert WarpCache(tmp_path / "ours").get_original(first, second) is None
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("content", [b"", b"RIFF\x10\0\0\0WEBPVP8L", b"not a picture"])
def test_a_damaged_file_is_named(tmp_path, content):
    cache = WarpCache(tmp_path)
    key = pair_key("a", "b", SETTINGS)
    cache.put(key, some_warp()).write_bytes(content)
    with pytest.raises(DataError, match=r"decode.*Delete it"):
        cache.get(key)


def test_a_picture_without_coverage_is_no_warp(tmp_path):
    cache = WarpCache(tmp_path, "png")
    key = pair_key("a", "b", SETTINGS)
    cache.path(key).parent.mkdir(parents=True)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(cache.path(key))
    with pytest.raises(DataError, match="4 channels"):
        cache.get(key)
    with pytest.raises(ValueError, match="unknown format"):
        WarpCache(tmp_path, "jpg")  # type: ignore[arg-type]
