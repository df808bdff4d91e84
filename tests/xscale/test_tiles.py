"""The tile store: contents, keys, kills, damage, disk."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_views import SIZES, assembled, content_hashes, distance, make_views, quiet
from PIL import Image

from core_ns.errors import DataError
from xscale_ns import tile_format, tiles
from xscale_ns.tile_format import TILE, StoredView, ViewSource, read_manifest
from xscale_ns.tiles import TileStore

Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_store_holds_the_decoded_photos(tmp_path, jobs):
    views = make_views(tmp_path, masked=(2, 3))
    store = TileStore.build(tmp_path / "s", views, hits=distance, mesh_hash="m", jobs=jobs, progress=quiet)
    for index, view in enumerate(views):
        photo = np.asarray(Image.open(view.image))
        rgb, t, valid = assembled(store, index)
        h, w = photo.shape[:2]
        np.testing.assert_array_equal(rgb[:h, :w], photo)
        assert not rgb[h:].any()
        assert not rgb[:, w:].any()
        y, x = np.mgrid[:h, :w]
        centres = torch.from_numpy(np.stack([x, y], -1).reshape(-1, 2)).float() + 0.5
        np.testing.assert_array_equal(t[:h, :w], distance(index, centres).numpy().reshape(h, w))
        assert np.isposinf(t[h:]).all()
        assert np.isposinf(t[:, w:]).all()
        expected = np.ones((h, w), bool) if view.mask is None else np.asarray(Image.open(view.mask)) > 0
        np.testing.assert_array_equal(valid[:h, :w], expected)
        assert valid.sum() == expected.sum() == store.views[index].valid
        # Anyone's numpy reads the files too.
        mapped = np.load(tmp_path / "s" / store.views[index].file("rgb"), mmap_mode="r")
        assert mapped.shape == (*store.views[index].grid, TILE, TILE, 3)
        np.testing.assert_array_equal(mapped[0, 0], store.read_tile(index, 0, 0).rgb)
    store.close()
    assert TileStore.verify(tmp_path / "s", views, "m") == []
    assert TileStore.verify(tmp_path / "s") == []


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), block=st.integers(1, 5000))
def test_any_size_and_block_of_rays(tmp_path_factory, width, height, block):
    folder = tmp_path_factory.mktemp("any")
    views = make_views(folder, [(width, height)], suffix=".jpg")
    before, tile_format.MAX_RAYS = tile_format.MAX_RAYS, block
    try:
        store = TileStore.build(folder / "s", views, hits=distance, progress=quiet)
    finally:
        tile_format.MAX_RAYS = before
    rgb, t, valid = assembled(store, 0)
    store.close()
    np.testing.assert_array_equal(rgb[:height, :width], np.asarray(Image.open(views[0].image)))
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    expected = np.where(np.arange(width) % 5 == 0, np.inf, y[:, None] * 30 + x / 7)
    np.testing.assert_allclose(t[:height, :width], expected, rtol=1e-6)
    assert valid.sum() == width * height


def test_an_rgba_photo_is_its_own_mask(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 70, 4), dtype=np.uint8)
    pixels[..., 3] = np.arange(70) % 2 * 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = [ViewSource("a", tmp_path / "a.png", 70, 70, {}, tmp_path / "a.png")]
    store = TileStore.build(tmp_path / "s", views, progress=quiet)
    np.testing.assert_array_equal(assembled(store, 0)[2][:70, :70], pixels[..., 3] > 0)


def test_open_files_stay_bounded(tmp_path):
    store = TileStore.build(tmp_path / "s", make_views(tmp_path), progress=quiet)
    store = TileStore(store.folder, store.views, open_files=2)
    for _ in range(2):
        for index in range(len(SIZES)):
            store.read_tile(index, 0, 0)
            assert len(store._files) <= 2
    store.close()
    assert store.read_tile(0, 0, 0).valid.sum() == 1
    store.close()


@pytest.mark.skipif(tiles.fcntl is None, reason="no file locks here")
def test_a_second_build_waits_and_finds_the_work_done(tmp_path):
    """As when every process of a distributed training builds the same folder."""
    views, lines = make_views(tmp_path), []
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: TileStore.build(tmp_path / "s", views, progress=lines.append), range(3)))
    assert sum("views to write" not in line for line in lines) == len(views)
    assert all(store.views == stores[0].views for store in stores)
    assert TileStore.verify(tmp_path / "s", views) == []


def test_a_finished_store_is_not_touched(tmp_path):
    views, folder, lines = make_views(tmp_path), tmp_path / "s", []
    TileStore.build(folder, views, progress=quiet)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    store = TileStore.build(folder, views[::-1], progress=lines.append)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [view.name for view in store.views] == [view.name for view in views[::-1]]
    assert lines[0].startswith(f"tiles: 0 of {len(views)} views to write")


@pytest.mark.parametrize("change", ["camera", "photo", "size on disk", "mask", "mesh", "absent file"])
def test_a_change_redoes_only_its_view(tmp_path, change):
    views, folder = make_views(tmp_path, masked=(1,)), tmp_path / "s"
    TileStore.build(folder, views, hits=distance, mesh_hash="m", progress=quiet)
    entry = read_manifest(folder)[views[3].name]
    mesh, affected = "m", {views[3].name}
    if change == "camera":
        views[3] = replace(views[3], camera=views[3].camera | {"fx": 1.0})
    elif change == "photo":
        Image.new("RGB", (200, 130), (9, 8, 7)).save(views[3].image)
    elif change == "size on disk":
        with open(folder / entry.file("t"), "ab") as file:
            file.write(b"x")
    elif change == "mask":
        views[1], affected = replace(views[1], mask=None), {views[1].name}
    elif change == "mesh":
        mesh, affected = "another", {view.name for view in views}
    else:
        (folder / entry.file("rgb")).unlink()
    kinds = {"size on disk": {"damaged"}, "absent file": {"missing"}}.get(change, {"stale"})
    found = TileStore.verify(folder, views, mesh)
    assert {problem.view for problem in found} == affected
    assert {problem.kind for problem in found} == kinds
    lines: list[str] = []
    store = TileStore.build(folder, views, hits=distance, mesh_hash=mesh, progress=lines.append)
    assert {line.split()[-1] for line in lines[1:]} == affected
    if change == "photo":
        assert (assembled(store, 3)[0][:130, :200] == (9, 8, 7)).all()
    if change == "mask":
        assert not (folder / store.views[1].file("mask")).exists()
        assert store.views[1].valid == 64 * 64
    store.close()
    assert TileStore.verify(folder, views, mesh) == []


def test_a_changed_photo_is_found_without_the_views(tmp_path):
    views = make_views(tmp_path)
    TileStore.build(tmp_path / "s", views, progress=quiet)
    os.utime(views[0].image, ns=(1, 1))
    views[1].image.unlink()
    found = TileStore.verify(tmp_path / "s")
    assert [(problem.view, problem.kind) for problem in found] == [(v.name, "stale") for v in views[:2]]


def test_without_distances_the_mesh_does_not_matter(tmp_path):
    views, lines = make_views(tmp_path), []
    TileStore.build(tmp_path / "s", views, mesh_hash="m", progress=quiet)
    TileStore.build(tmp_path / "s", views, mesh_hash="another", progress=lines.append)
    assert len(lines) == 1


def test_a_flipped_bit_is_found_and_rebuilt(tmp_path):
    views, folder = make_views(tmp_path), tmp_path / "s"
    store = TileStore.build(folder, views, progress=quiet)
    good, path = content_hashes(folder), folder / store.views[3].file("rgb")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert [(p.view, p.kind) for p in TileStore.verify(folder, views)] == [(views[3].name, "damaged")]
    lines: list[str] = []
    TileStore.build(folder, views, progress=lines.append, recheck=True)
    assert len(lines) == 2
    assert content_hashes(folder) == good


def test_a_truncated_or_foreign_tile_file_is_reported_when_read(tmp_path):
    store = TileStore.build(tmp_path / "s", make_views(tmp_path, [(200, 130)]), progress=quiet)
    path = store.folder / store.views[0].file("rgb")
    os.truncate(path, path.stat().st_size - 1)
    store.read_tile(0, 0, 0)
    with pytest.raises(DataError, match=r"ends early.*verify"):
        store.read_tile(0, 2, 3)
    store.close()
    path.write_bytes(b"\x93NUMPY nothing else")
    with pytest.raises(DataError, match="not the tile file"):
        store.read_tile(0, 0, 0)
    path.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        store.read_tile(0, 0, 0)
    with pytest.raises(IndexError):
        store.read_tile(0, 0, 4)


def test_too_little_disk_writes_nothing(tmp_path):
    views, folder, asked = make_views(tmp_path, [(200, 130)], masked=(0,)), tmp_path / "deep" / "s", []

    def usage(free: int):
        return lambda path: asked.append(path) or Usage(free)

    needed = int(1.02 * ((64 * 64 * 12) * (3 + 4 + 1 / 8) + 3 * 128))
    with pytest.raises(DataError, match="GB are free"):
        TileStore.build(folder, views, hits=distance, progress=quiet, disk_usage=usage(needed - 1))
    assert not (tmp_path / "deep").exists()
    assert asked == [tmp_path]
    TileStore.build(folder, views, hits=distance, progress=quiet, disk_usage=usage(needed))


def test_the_estimate_is_that_of_the_specification():
    view = StoredView("v", 8192, 5460, ("rgb", "t"), {})
    assert 1.02 * (view.bytes("rgb") + view.bytes("t")) == pytest.approx(8192 * 5460 * 7 * 1.02, rel=0.01)


def test_bad_sources_write_nothing(tmp_path):
    good, small = make_views(tmp_path, [(20, 10), (20, 10)]), tmp_path / "small.png"
    Image.new("L", (9, 9)).save(small)
    cases = {
        "camera says 21x10": [good[0], replace(good[1], width=21)],
        "same name": [good[0], replace(good[1], name=good[0].name)],
        "cannot be read": [good[0], replace(good[1], image=tmp_path / "absent.png")],
        "not a finite number": [good[0], replace(good[1], camera={"fx": float("nan")})],
        "camera says 20x10": [good[0], replace(good[1], mask=small)],
    }
    for text, views in cases.items():
        with pytest.raises(DataError, match=text):
            TileStore.build(tmp_path / "s", views, progress=quiet)
        assert not (tmp_path / "s").exists()


def test_a_photo_that_does_not_decode_keeps_what_is_finished(tmp_path):
    views = make_views(tmp_path, [(90, 90), (90, 90)])
    views[1].image.write_bytes(views[1].image.read_bytes()[:3000])
    with pytest.raises(DataError, match=views[1].name):
        TileStore.build(tmp_path / "s", views, jobs=1, progress=quiet)
    assert [entry.sha256 is not None for entry in read_manifest(tmp_path / "s").values()] == [True, False]
    assert not list((tmp_path / "s").glob(".tmp-*"))
    for wrong in (lambda view, xy: torch.zeros(3), lambda view, xy: torch.full((len(xy),), torch.nan)):
        with pytest.raises(ValueError, match="callback returned"):
            TileStore.build(tmp_path / "t", views[:1], hits=wrong, progress=quiet)


def malformed(manifest: dict) -> dict[str, str]:
    """Texts that are not a manifest, by what is wrong with them."""

    def edited(**changes) -> str:
        view = manifest["views"][0] | changes
        return json.dumps(manifest | {"views": [view]})

    return {
        "empty": "",
        "half": json.dumps(manifest)[:100],
        "list": "[1]",
        "deep": "[" * 100_000,
        "version": json.dumps(manifest | {"version": 99}),
        "twice": json.dumps(manifest | {"views": manifest["views"] * 2}),
        "size": edited(width=-3),
        "type": edited(width="7"),
        "part": edited(files={"../../etc": {"sha256": "0" * 64}}),
        "hash": edited(files={"rgb": {"sha256": "../x"}}),
        "key": edited(key={}),
        "count": edited(valid=10**9),
    }


@pytest.mark.parametrize("kind", list(malformed({"views": [{}]})))
def test_a_malformed_manifest_is_refused_and_left_alone(tmp_path, kind):
    views, folder = make_views(tmp_path, [(20, 10)]), tmp_path / "s"
    TileStore.build(folder, views, progress=quiet)
    manifest = folder / "manifest.json"
    manifest.write_text(malformed(json.loads(manifest.read_text()))[kind])
    before = content_hashes(folder)
    for attempt in (
        lambda: TileStore.open(folder),
        lambda: TileStore.build(folder, views, progress=quiet),
        lambda: TileStore.verify(folder),
        lambda: TileStore.clean(folder),
    ):
        with pytest.raises(DataError, match=r"manifest\.json"):
            attempt()
    assert content_hashes(folder) == before
    manifest.unlink()
    TileStore.build(folder, views, progress=quiet)
    assert TileStore.verify(folder, views) == []


def test_clean_removes_its_own_files_only(tmp_path):
    views, folder = make_views(tmp_path, masked=(0,)), tmp_path / "s"
    store = TileStore.build(folder, views, hits=distance, progress=quiet)
    name = store.views[0].file("rgb")
    for ours in (f".tmp-0123456789ab-{name}", ".tmp-0123456789ab-manifest.json"):
        (folder / ours).write_bytes(b"left by a kill")
    foreign = ["notes.txt", "x.tmp", "other-01234567.rgb.npy", ".tmp-0123456789ab-mine.npy", f".tmp-short-{name}"]
    for theirs in foreign:
        (folder / theirs).write_bytes(b"not ours")
    TileStore.clean(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(foreign)
    for theirs in foreign:
        (folder / theirs).unlink()
    TileStore.build(folder, views, progress=quiet)
    TileStore.clean(folder)
    assert not folder.exists()


def test_names_with_slashes_stay_inside_the_folder(tmp_path):
    view = make_views(tmp_path, [(20, 10)])[0]
    views = [replace(view, name=name) for name in ("../a/b.png", "..?a?b.png", "ä" * 300)]
    store = TileStore.build(tmp_path / "s", views, progress=quiet)
    assert len({store.views[i].file("rgb") for i in range(3)}) == 3
    assert all((tmp_path / "s" / stored.file("rgb")).parent == tmp_path / "s" for stored in store.views)
    assert TileStore.open(tmp_path / "s", ["ä" * 300]).views[0].name == "ä" * 300
