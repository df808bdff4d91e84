"""Depth on disk: what comes back, what is never mixed, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from depth_scenes import path_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.errors import DataError
from megascenes_ns.depth import Alignment, Depth
from megascenes_ns.depth_cache import DepthCache, read_depth, write_depth

ALIGNMENT = Alignment(0.5, -0.25, 40, 60)


def some_depth(seed=0, alignment=ALIGNMENT):
    values = np.random.default_rng(seed).uniform(0, 100, (12, 16)).astype(np.float32)
    return Depth(values, 3.25, "test é", alignment, False)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.booleans())
def test_round_trip(tmp_path_factory, seed, unit, known):
    file = tmp_path_factory.mktemp("cache") / "a.npz"
    depth = Depth(some_depth(seed).values, unit, "x", None if seed % 2 else ALIGNMENT, known)
    write_depth(file, depth)
    found = read_depth(file)
    np.testing.assert_allclose(found.values, depth.values, rtol=2**-11, atol=1e-7)
    assert (found.q20, found.source, found.unit_known, found.alignment) == (unit, "x", known, depth.alignment)
    write_depth(file, found)
    np.testing.assert_array_equal(read_depth(file).values, found.values)


def test_rejected_alignments_are_kept(tmp_path):
    write_depth(tmp_path / "a.npz", some_depth(alignment=Alignment(float("nan"), float("nan"), 0, 3, "only 3 points")))
    found = read_depth(tmp_path / "a.npz").alignment
    assert found is not None
    assert np.isnan(found.slope)
    assert found.rejected == "only 3 points"


def test_equal_depth_is_an_equal_file(tmp_path):
    for name in ("a", "b"):
        write_depth(tmp_path / f"{name}.npz", some_depth())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_cache_finds_what_it_stored_and_nothing_else(tmp_path):
    cache = DepthCache(tmp_path, {"source": "x", "canvas": 256})
    assert cache.read(path_of(1), 2.0) is None
    cache.begin()
    stored = cache.write(path_of(1), 2.0, some_depth())
    found = DepthCache.open(tmp_path).read("elsewhere/main/images" + path_of(1).partition("main/images")[2], 2.0)
    assert found is not None
    np.testing.assert_array_equal(found.values, stored.values)
    assert cache.file(path_of(1), 2.0).parent == tmp_path / "depth"
    assert len(cache.file(path_of(1), 2.0).stem) == 40
    for other in (cache.read(path_of(2), 2.0), cache.read(path_of(1), 2.5), cache.read(path_of(1), None)):
        assert other is None
    assert DepthCache(tmp_path, {"source": "y", "canvas": 256}).read(path_of(1), 2.0) is None
    assert cache.file(path_of(1), None) == cache.file(path_of(1), float("nan")) == cache.file(path_of(1), 0.0)


def test_depth_of_two_kinds_is_never_mixed(tmp_path):
    DepthCache(tmp_path, {"source": "x"}).begin()
    DepthCache(tmp_path, {"source": "x"}).begin()
    with pytest.raises(DataError, match="other settings"):
        DepthCache(tmp_path, {"source": "y"}).begin()
    assert DepthCache.open(tmp_path).settings == {"source": "x"}


def test_no_cache_yet(tmp_path):
    with pytest.raises(DataError, match="precompute"):
        DepthCache.open(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", '{"source": 1}', '{"format": 99}'])
def test_damaged_settings(tmp_path, text):
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "settings.json").write_text(text)
    with pytest.raises(DataError):
        DepthCache.open(tmp_path)
    with pytest.raises(DataError):
        DepthCache(tmp_path, {}).begin()


def damaged(file, name):
    write_depth(file, some_depth())
    with np.load(file) as stored:
        arrays = dict(stored)
    about = json.loads(arrays["about"].tobytes())
    if name == "half":
        file.write_bytes(file.read_bytes()[:150])
        return
    if name == "flipped":
        data = bytearray(file.read_bytes())
        data[100] ^= 255
        file.write_bytes(bytes(data))
        return
    if name == "text":
        file.write_text("no")
        return
    if name == "float32":
        arrays["depth"] = arrays["depth"].astype(np.float32)
    elif name == "nan":
        arrays["depth"][0, 0] = np.nan
    elif name == "negative":
        arrays["depth"][0, 0] = -1
    elif name == "flat":
        arrays["depth"] = arrays["depth"].ravel()
    elif name == "absent":
        del arrays["about"]
    elif name == "unit":
        about["q20"] = -1.0
    elif name == "alignment":
        about["alignment"] = {"slope": 1}
    if "about" in arrays:
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(file, **arrays)


NAMES = ["half", "flipped", "text", "float32", "nan", "negative", "flat", "absent", "unit", "alignment"]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_one_data_error(tmp_path, name):
    file = tmp_path / "a.npz"
    damaged(file, name)
    with pytest.raises(DataError, match="damaged"):
        read_depth(file)
