"""Caches made by one or two processes, killed and resumed: always the same files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from depth_scenes import digests, key_of, make_scene

from core_ns.errors import DataError
from core_ns.file_lock import held
from dataparsers.megascenes_table import Pair
from megascenes_ns.depth_cache import DepthCache
from megascenes_ns.depth_command import Precompute, parse_shard
from megascenes_ns.depth_sources import FileDepth, PlaneDepth
from megascenes_ns.precompute import FAILED, LOCK, estimate, make_plan, precompute, readable, references
from megascenes_ns.precompute_steps import DepthStep, PairPhotos, WarpStep, pair_of, pairs_of

CHILD = Path(__file__).with_name("precompute_child.py")


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("wall"), photos=4, targets=3)


def steps_of(scene, source=None, canvas=96, rows=None):
    table = scene.table if rows is None else scene.table.select(rows)
    depth = DepthStep(PairPhotos(table, scene.images, canvas=canvas), source or FileDepth(scene.depths))
    return [depth, WarpStep(depth)]


@pytest.fixture(scope="module")
def whole(wall, tmp_path_factory):
    """The files of a run that nobody disturbed."""
    cache = tmp_path_factory.mktemp("whole")
    summary = precompute(steps_of(wall), cache)
    return cache, summary


# ---------------------------------------------------------------------- what is made


def test_everything_is_made_once(wall, whole):
    cache, summary = whole
    assert {name: (count.made, count.there) for name, count in summary.counts.items()} == {
        "depth": (4, 0), "warp": (12, 0),
    }  # fmt: skip
    assert summary.pairs == 12
    files = digests(cache)
    assert len(files) == 4 + 12 + 2
    assert sum(count.bytes for count in summary.counts.values()) == sum(
        (cache / name).stat().st_size for name in files if not name.endswith(".json")
    )
    again = precompute(steps_of(wall), cache)
    assert {name: (count.made, count.there) for name, count in again.counts.items()} == {
        "depth": (0, 4), "warp": (0, 12),
    }  # fmt: skip
    assert digests(cache) == files


def test_the_depth_is_that_of_the_source(wall, whole):
    cache = DepthCache.open(whole[0])
    for row in (0, 5, 11):
        pair = pair_of(wall.table, row)
        found = cache.read(pair.ref_path, pair.scale)
        assert found is not None
        raw = np.load(
            wall.depths / key_of(row // 3).replace("0/pictures", "aligned_depth_maps").replace(".png", ".npy")
        )
        np.testing.assert_allclose(found.values * pair.scale, raw, rtol=6e-4)


@pytest.mark.slow
def test_two_processes_make_the_same_files(wall, whole, tmp_path):
    summary = precompute(steps_of(wall), tmp_path, processes=2)
    assert digests(tmp_path) == digests(whole[0])
    assert (summary.counts["warp"].made, summary.failures) == (12, [])


def test_steps_one_by_one_and_warps_alone_make_the_same_files(wall, whole, tmp_path):
    depth, warp = steps_of(wall)
    for step in (depth, warp):
        precompute([step], tmp_path / "by step")
    assert digests(tmp_path / "by step") == digests(whole[0])
    precompute([warp], tmp_path / "warps")  # what warps are made of is stored, too
    assert digests(tmp_path / "warps") == digests(whole[0])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_together_are_the_whole(wall, whole, tmp_path, count):
    for part in range(count):
        precompute(steps_of(wall), tmp_path, shard=(part, count))
    assert digests(tmp_path) == digests(whole[0])
    rows = sorted(row for part in range(count) for group in references(wall.table, (part, count)) for row in group)
    assert rows == list(range(12))


def test_only_what_is_missing_is_made(wall, whole, tmp_path):
    precompute(steps_of(wall, rows=[0, 1, 5]), tmp_path)
    summary = precompute(steps_of(wall), tmp_path)
    assert (summary.counts["depth"].there, summary.counts["warp"].there) == (2, 3)
    assert digests(tmp_path) == digests(whole[0])


def test_many_pairs_at_once_are_those_one_by_one(wall):
    rows = [11, 0, 5]
    for row, pair in zip(rows, pairs_of(wall.table, rows), strict=True):
        single = wall.table[row]
        assert isinstance(single, Pair)
        for name in Pair.__dataclass_fields__:
            left, right = getattr(pair, name), getattr(single, name)
            assert type(left) is type(right)
            np.testing.assert_array_equal(left, right)
    assert pairs_of(wall.table, []) == []


def test_an_empty_table(wall, tmp_path):
    assert precompute(steps_of(wall, rows=[]), tmp_path).pairs == 0
    assert estimate(steps_of(wall, rows=[]), tmp_path).bytes == 0


# ---------------------------------------------------------------------- what cannot be made


def spoil(scene, number):
    """Truncate a photo."""
    file = next(scene.images.rglob(f"photo_{number}.png"))
    file.write_bytes(file.read_bytes()[:200])


def test_failures_are_listed_and_made_later(tmp_path):
    scene = make_scene(tmp_path, photos=4, targets=2)
    photo = next(scene.images.rglob("photo_2.png")).read_bytes()
    spoil(scene, 2)
    next(scene.depths.rglob("photo 3.npy")).unlink()
    cache = tmp_path / "cache"
    summary = precompute(steps_of(scene), cache)
    assert {name: (count.made, count.failed) for name, count in summary.counts.items()} == {
        "depth": (2, 2), "warp": (4, 4),
    }  # fmt: skip
    text = (cache / FAILED).read_text()
    assert len(text.splitlines()) == 6
    assert "photo 2.png" in text
    assert "has no depth" in text
    next(scene.images.rglob("photo_2.png")).write_bytes(photo)
    later = precompute(steps_of(scene), cache)
    assert (later.counts["depth"].made, later.counts["depth"].failed) == (1, 1)
    assert len((cache / FAILED).read_text().splitlines()) == 3
    np.save(next(scene.depths.rglob("photo 2.npy")).with_name("photo 3.npy"), np.ones((64, 96)))
    precompute(steps_of(scene), cache)
    assert not (cache / FAILED).exists()


def test_strict_stops_at_the_first(tmp_path):
    scene = make_scene(tmp_path, photos=3, targets=1)
    spoil(scene, 0)
    with pytest.raises(DataError, match="--strict"):
        precompute(steps_of(scene), tmp_path / "cache", strict=True)


def test_a_photo_of_another_aspect_is_refused(tmp_path):
    from core_ns.images import write_image

    scene = make_scene(tmp_path, photos=2, targets=1)
    write_image(next(scene.images.rglob("photo_0.png")), np.zeros((64, 64, 3), np.uint8))
    summary = precompute(steps_of(scene), tmp_path / "cache")
    assert "another aspect" in summary.failures[0].problem


def test_a_photo_of_another_size_is_fine(tmp_path):
    """Copies that were shrunk already: the list's cameras are for the full size."""
    from core_ns.images import write_image

    scene = make_scene(tmp_path, photos=2, targets=1)
    pixels, K = PairPhotos(scene.table, scene.images).photo(*_listed(scene, 0))
    write_image(next(scene.images.rglob("photo_0.png")), np.ascontiguousarray(pixels[::2, ::2]))
    half, K_half = PairPhotos(scene.table, scene.images).photo(*_listed(scene, 0))
    assert half.shape == (32, 48, 3)
    np.testing.assert_allclose(K_half[:2], K[:2] / 2)


def _listed(scene, row):
    pair = pair_of(scene.table, row)
    return pair.ref_path, pair.ref_K, pair.ref_size


# ---------------------------------------------------------------------- refused before anything is written


def test_a_cache_of_another_kind_is_left_alone(wall, whole):
    before = digests(whole[0])
    for steps in (steps_of(wall, PlaneDepth()), steps_of(wall, canvas=64)):
        with pytest.raises(DataError, match="other settings"):
            precompute(steps, whole[0])
        with pytest.raises(DataError, match="other settings"):
            estimate(steps, whole[0])
    assert digests(whole[0]) == before


def test_one_process_fills_a_cache_at_a_time(wall, tmp_path):
    with held(tmp_path / LOCK) as alone:
        assert alone
        with pytest.raises(DataError, match="another process"):
            precompute(steps_of(wall), tmp_path)
    assert not digests(tmp_path)


def test_no_room(wall, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    from megascenes_ns import precompute as module

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module, "ROOM_CHECK", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000, 0, 1000))
    with pytest.raises(DataError, match="are free"):
        precompute(steps_of(wall), tmp_path)
    assert not digests(tmp_path)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "a/b", "1/2/3", "1.5/2"])
def test_shards_that_are_none(text):
    with pytest.raises(DataError, match="--shard"):
        parse_shard(text)


# ---------------------------------------------------------------------- estimates


def test_a_dry_run_writes_nothing_and_is_about_right(wall, whole, tmp_path):
    cache = tmp_path / "cache"
    found = estimate(steps_of(wall), cache)
    assert not cache.exists()
    made = sum(count.bytes for count in whole[1].counts.values())
    assert found.bytes == pytest.approx(made, rel=0.3)
    assert found.missing == {"depth": 4, "warp": 12}
    assert found.seconds > 0
    before = digests(whole[0])
    assert estimate(steps_of(wall), whole[0]).missing == {"depth": 0, "warp": 0}
    assert digests(whole[0]) == before


def test_sizes_for_people():
    sizes = [readable(size) for size in (0, 999, 1000, 2.5e6, 3e9, 4e12, 5e16)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB", "50000.0 TB"]


# ---------------------------------------------------------------------- other things to make


@dataclass(frozen=True)
class SizeStep:
    """A stranger's step: the area of each photo, in a text file, whoever it is the reference or the target of."""

    photos: PairPhotos
    name: str = "sizes"

    def check(self, cache: Path) -> None:
        pass

    def begin(self, cache: Path) -> None:
        (cache / "sizes").mkdir(exist_ok=True)

    def open(self, cache: Path) -> Any:
        from precompute_plug import SizeMaker

        return SizeMaker(self.photos, cache)


def test_a_thing_that_several_references_need_is_made_once(wall, tmp_path):
    step = SizeStep(PairPhotos(wall.table, wall.images))
    plan = make_plan([step], tmp_path)
    assert plan.missing == {"sizes": 4}
    summary = precompute([step], tmp_path)
    assert (summary.counts["sizes"].made, summary.counts["sizes"].bytes) == (4, 4 * 4)
    assert {file.read_text() for file in (tmp_path / "sizes").glob("*.txt")} == {str(96 * 64)}


# ---------------------------------------------------------------------- the command, killed


def command(scene, cache, *options):
    return [
        sys.executable, str(CHILD), str(scene.root / "pairs"), "--images", str(scene.images), "--cache", str(cache),
        "--depth", str(scene.depths), "--canvas", "96", *options,
    ]  # fmt: skip


def files_in(cache):
    return sum(not file.name.startswith(".tmp-") for pattern in ("*.npz", "*.webp") for file in cache.rglob(pattern))


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_files(wall, whole, tmp_path):
    """kill -9 of the command once it has written some files; its processes end, too; the same work goes on."""
    after, words = 5, command(wall, tmp_path, "--processes", "2")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while files_in(tmp_path) < after and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    found = files_in(tmp_path)
    assert found >= after
    left = tmp_path / "warp" / "00" / ".tmp-0123-left.webp"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    again = precompute(steps_of(wall), tmp_path)
    assert sum(count.there for count in again.counts.values()) == found
    assert sum(count.made for count in again.counts.values()) == 16 - found
    assert digests(tmp_path) == digests(whole[0])


def test_the_command_says_what_it_did(wall, tmp_path, capsys):
    def run(**options):
        usual = {"images": wall.images, "depth": str(wall.depths), "cache": tmp_path, "canvas": 96}
        chosen = Precompute(wall.root / "pairs", **{**usual, **options})
        return chosen.main(), capsys.readouterr().out

    status, text = run(dry_run=True)
    assert (status, "to make: 4 of depth, 12 of warp" in text) == (0, True)
    assert not digests(tmp_path)
    status, text = run()
    assert (status, "train: warp: 12 made, 0 were there, 0 failed" in text) == (0, True)
    status, text = run(splits=["train"])
    assert "depth: 0 made, 4 were there" in text
    with pytest.raises(DataError, match="There are train"):
        run(splits=["dev"])
    (wall.root / "pairs" / "depth").symlink_to(wall.depths)
    status, text = run(depth="", cache=tmp_path / "usual")
    assert "4 made" in text
    (wall.root / "pairs" / "depth").unlink()
    for options in (
        {"what": "depth,warps"},
        {"what": ""},
        {"what": "latents"},
        {"processes": 0},
        {"shard": "2/2"},
        {"depth": ""},
    ):
        with pytest.raises(DataError):
            run(**options)


def test_the_command_fails_where_something_failed(tmp_path, capsys):
    scene = make_scene(tmp_path, photos=2, targets=1)
    spoil(scene, 0)
    chosen = Precompute(tmp_path / "pairs" / "train", images=scene.images, depth=str(scene.depths), what="depth")
    assert chosen.main() == 1
    assert FAILED in capsys.readouterr().out
    assert (tmp_path / "pairs" / "cache" / "depth").is_dir()
    one = Precompute(tmp_path / "pairs", images=scene.images, depth=str(next(scene.depths.rglob("*.npy"))))
    with pytest.raises(DataError, match="one photo"):
        one.main()
    assert os.listdir(scene.images)
