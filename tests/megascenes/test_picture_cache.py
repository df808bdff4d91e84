"""The cache of finished pictures (spec megascenes 8.3)."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megascenes_ns import picture_cache
from megascenes_ns.picture_cache import PictureCache, PictureKey, rounded

KEY = PictureKey("ref", (1.0, 0.0), (80.0,), (6, 4), "unipc", 20, 3.0, "legacy", 0, "4 original none", "weights")


def picture(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def test_the_pictures_used_last_stay():
    cache = PictureCache(2)
    keys = [replace(KEY, seed=seed) for seed in range(3)]
    for seed in (0, 1):
        cache.put(keys[seed], picture(seed))
    assert cache.get(keys[0]) is not None, "used again"
    cache.put(keys[2], picture(2))
    assert [cache.get(key) is not None for key in keys] == [True, False, True]
    assert (cache.hits, cache.misses) == (3, 1)
    found = cache.get(keys[2])
    assert found is not None
    with pytest.raises(ValueError):
        found[:] = 0


@pytest.mark.parametrize("name", [each.name for each in fields(PictureKey)])
def test_every_part_of_the_key_counts(name: str):
    value: Any = getattr(KEY, name)
    other: Any = {str: lambda: value + "x", int: lambda: value + 1, float: lambda: value + 0.5,
                  tuple: lambda: (*value[:-1], value[-1] + 1)}[type(value)]()  # fmt: skip
    changed = replace(KEY, **{name: other})
    assert changed != KEY
    assert changed.digest() != KEY.digest()


def test_another_process_finds_the_folders_pictures(tmp_path: Path):
    PictureCache(1, tmp_path).put(KEY, picture(9))
    fresh = PictureCache(1, tmp_path)
    found = fresh.get(KEY)
    assert found is not None
    np.testing.assert_array_equal(found, picture(9))
    assert fresh.get(replace(KEY, seed=1)) is None


def test_a_damaged_or_foreign_file_is_none(tmp_path: Path):
    cache = PictureCache(1, tmp_path)
    cache.put(KEY, picture(9))
    file = cache.file(KEY)
    file.write_bytes(file.read_bytes()[:40])
    assert PictureCache(1, tmp_path).get(KEY) is None
    assert not file.exists()
    PictureCache(1, tmp_path).put(KEY, picture(8))
    assert PictureCache(1, tmp_path).get(replace(KEY)) is not None


def test_previews_stay_out_of_the_folder(tmp_path: Path):
    cache = PictureCache(1, tmp_path)
    cache.put(KEY, picture(1), store=False)
    assert cache.get(KEY) is not None
    assert not list(tmp_path.rglob("*.png"))


def test_only_pictures_of_the_keys_size():
    with pytest.raises(ValueError):
        PictureCache(1).put(KEY, np.zeros((6, 4, 3), np.uint8))
    with pytest.raises(ValueError):
        PictureCache(0)


def test_near_poses_are_one():
    assert rounded(np.array([-0.00001, 1.00004])) == (0.0, 1.0)
    assert rounded(np.array([1.0002])) != rounded(np.array([1.0]))


class Moved(Exception):
    """What nerfstudio's viewer raises when the camera moves."""


def test_interrupted_at_any_line_the_cache_stays_valid(tmp_path: Path):
    line = 0
    while True:
        line += 1
        cache, left = PictureCache(2, tmp_path / str(line)), [line]

        def trace(frame: Any, event: str, _: Any, left: list[int] = left) -> Any:
            if event == "line" and frame.f_code.co_filename == picture_cache.__file__:
                left[0] -= 1
                if left[0] == 0:
                    raise Moved
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for seed in range(3):
                cache.put(replace(KEY, seed=seed), picture(seed))
            cache.get(KEY)
            finished = True
        except Moved:
            finished = False
        finally:
            sys.settrace(before)
        for seed in range(3):
            found = cache.get(replace(KEY, seed=seed))
            assert found is None or (found == seed).all()
        cache.put(KEY, picture(0))
        assert cache.get(KEY) is not None
        assert len(cache) <= 2
        if finished:
            break
    assert line > 20
