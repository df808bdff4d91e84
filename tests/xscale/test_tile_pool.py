"""The pixel pools: right pixels, uniform draws, turnover, threads, memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_views import distance, make_views, quiet
from PIL import Image

from core_ns.errors import DataError
from xscale_ns.tile_pool import DecodePool, RamPixels, TilePool, permuted
from xscale_ns.tiles import TileStore

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(300, 200), (1, 1), (64, 70), (129, 65), (40, 500)]
MASKED = (2, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def valid_pixels(view) -> np.ndarray:
    if view.mask is None:
        return np.ones((view.height, view.width), dtype=bool)
    return np.asarray(Image.open(view.mask)) > 0


def open_pool(kind: str, folder: Path, views, *, slots: int = 10**6, **options):
    """A pool over ``views``; ``slots`` beyond their number makes it resident."""
    if kind == "ram":
        return RamPixels(views, hits=distance)
    if kind == "decode":
        return DecodePool(views, slots, **options)
    store = TileStore.build(folder / "s", views, hits=distance, mesh_hash="m", progress=quiet)
    return TilePool(store, slots, **options)


def counts(pool, views, draws: int, batch: int, seed: int = 0) -> list[np.ndarray]:
    """How often each pixel of each view was drawn."""
    sizes = np.array([view.width * view.height for view in views])
    start, width = np.cumsum(sizes) - sizes, np.array([view.width for view in views])
    found, source = np.zeros(sizes.sum(), dtype=np.int64), generator(seed)
    for _ in range(draws):
        view, xy, _, _ = (column if column is None else column.numpy() for column in pool.draw(batch, source))
        found += np.bincount(start[view] + xy[:, 1] * width[view] + xy[:, 0], minlength=len(found))
    return [part.reshape(view.height, view.width) for part, view in zip(np.split(found, start[1:]), views, strict=True)]


KINDS = [("ram", 0), ("tiles", 10**6), ("tiles", 7), ("decode", 16), ("decode", 2)]


@pytest.mark.parametrize(("kind", "slots"), KINDS)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("masked", [(), MASKED])
def test_draws_are_the_photos_pixels(tmp_path, kind, slots, background, masked):
    views = make_views(tmp_path, SIZES, masked)
    photos = [np.asarray(Image.open(view.image)) for view in views]
    with Closing(open_pool(kind, tmp_path, views, slots=slots, background=background)) as pool:
        for _ in range(10):
            view, xy, rgb, t = pool.draw(2000, generator())
            assert (view.dtype, xy.dtype, rgb.dtype) == (torch.int64, torch.int32, torch.uint8)
            assert (view.shape, xy.shape, rgb.shape) == ((2000,), (2000, 2), (2000, 3))
            for index, photo in enumerate(photos):
                mine, (x, y) = view == index, xy[view == index].numpy().T
                np.testing.assert_array_equal(rgb[mine].numpy(), photo[y, x])
                assert valid_pixels(views[index])[y, x].all()
                if t is not None:
                    torch.testing.assert_close(t[mine], distance(index, xy[mine] + 0.5), rtol=0, atol=0)
            assert (t is None) == (kind == "decode")


class Closing:
    def __init__(self, pool):
        self.pool = pool

    def __enter__(self):
        return self.pool

    def __exit__(self, *_):
        self.pool.close()


@pytest.mark.parametrize(("kind", "slots"), [("ram", 0), ("tiles", 10**6), ("decode", 16)])
def test_resident_draws_are_uniform(tmp_path, kind, slots):
    """Draws are independent here, so Pearson's statistic over all valid pixels follows chi square (5 sigma)."""
    views = make_views(tmp_path, SIZES, MASKED)
    with Closing(open_pool(kind, tmp_path, views, slots=slots)) as pool:
        found = counts(pool, views, 8, 100_000)
    valid = np.concatenate([valid_pixels(view).ravel() for view in views])
    drawn = np.concatenate([image.ravel() for image in found])
    assert drawn.sum() == 800_000
    assert not drawn[~valid].any()
    cells, expected = int(valid.sum()), 800_000 / valid.sum()
    statistic = ((drawn[valid] - expected) ** 2 / expected).sum()
    assert abs(statistic - (cells - 1)) < 5 * np.sqrt(2 * (cells - 1))


def shares(found, views, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Per tile: share of the draws, and of the valid pixels."""
    drawn, valid = [], []
    for image, view in zip(found, views, strict=True):
        mask = valid_pixels(view)
        for y, x in itertools.product(range(0, view.height, size), range(0, view.width, size)):
            drawn.append(image[y : y + size, x : x + size].sum())
            valid.append(mask[y : y + size, x : x + size].sum())
    used = np.array(valid) > 0
    assert not np.array(drawn)[~used].any()
    return np.array(drawn)[used] / sum(drawn), np.array(valid)[used] / sum(valid)


def test_turnover_is_uniform_over_tiles_of_any_size(tmp_path):
    """A pool of half the tiles, from full ones to a single pixel, each visited about 300 times."""
    views = make_views(tmp_path, [(700, 300), (1, 1), (64, 3), (321, 260), (5, 500)], masked=(3,))
    store = TileStore.build(tmp_path / "s", views, progress=quiet)
    total = sum(view.grid[0] * view.grid[1] for view in store.views)
    with TilePool(store, total // 2, background=False) as pool:
        found = counts(pool, views, 700, 20_000)
        visits = pool._entered / total
    drawn, valid = shares(found, views)
    assert visits > 200
    # Five sigma of a tile's own draws, or what 47 slots of so different sizes may favour the small ones by (1 / slots).
    error = np.maximum(5 / np.sqrt(valid * 700 * 20_000), 0.08)
    assert (np.abs(drawn / valid - 1) < error).all(), (drawn / valid).round(3)
    drawn, valid = shares(found, views, 10**6)
    np.testing.assert_allclose((drawn / valid)[[0, 2, 3, 4]], 1, atol=0.05)


def test_decoded_photos_turn_over_uniformly(tmp_path):
    views = make_views(tmp_path, [(200, 150), (20, 20), (64, 90), (30, 100)], masked=(2,))
    with DecodePool(views, 2, background=False) as pool:
        found = counts(pool, views, 400, 20_000)
    drawn, valid = shares(found, views, 10**6)
    np.testing.assert_allclose(drawn, valid, rtol=0.05, atol=0.002)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 5003])
def test_permuted_is_a_permutation(size):
    first = [permuted(index, size, (7, 0)) for index in range(size)]
    assert sorted(first) == list(range(size))
    if size >= 64:
        other = [permuted(index, size, (8, 0)) for index in range(size)]
        assert np.mean(np.array(first) == other) < 0.1
        # Neighbours scatter: the mean gap of a random permutation is a third of its size.
        assert 0.2 * size < np.abs(np.diff(first)).mean() < 0.47 * size


def test_every_tile_enters_once_per_turn(tmp_path):
    views = make_views(tmp_path, [(640, 320), (200, 100), (1, 1)])
    store = TileStore.build(tmp_path / "s", views, progress=quiet)
    total = sum(view.grid[0] * view.grid[1] for view in store.views)
    with TilePool(store, 8, background=False) as pool:
        entered = [pool._where[slot].copy() for slot in range(8)]
        place = pool._place
        pool._place = lambda slot, item: (entered.append(np.array(item[0])), place(slot, item))  # type: ignore
        while len(entered) < 3 * total:
            pool.draw(3000, generator())
    for turn in range(3):
        assert len({tuple(where) for where in entered[turn * total : (turn + 1) * total]}) == total
    assert [tuple(w) for w in entered[:total]] != [tuple(w) for w in entered[total : 2 * total]]


def test_the_pace_of_replacement(tmp_path):
    """Full tiles: one leaves per quarter of its pixels drawn; the oldest first."""
    store = TileStore.build(tmp_path / "s", make_views(tmp_path, [(640, 640)]), progress=quiet)
    with TilePool(store, 20, background=False) as pool:
        before = pool._where.copy()
        pool.draw(5 * 1024, generator())
        changed = (pool._where != before).any(axis=1)
        assert changed[:5].all()
        assert not changed[5:].any()


def test_empty_tiles_never_enter_and_all_black_masks_are_refused(tmp_path):
    views = make_views(tmp_path, [(640, 640)], masked=(0,))
    mask = np.zeros((640, 640), dtype=np.uint8)
    mask[70:75, 600:] = 255
    Image.fromarray(mask).save(views[0].mask)
    for kind in ("tiles", "ram", "decode"):
        with Closing(open_pool(kind, tmp_path, views, slots=4, background=False)) as pool:
            found = counts(pool, views, 3, 1000)[0]
            assert (found[mask == 0] == 0).all()
            assert (found[mask > 0] > 0).all()
    Image.fromarray(mask * 0).save(views[0].mask)
    for kind in ("tiles", "ram", "decode"):
        with pytest.raises(DataError, match="no pixel to train on"):
            open_pool(kind, tmp_path, views)


def test_draws_repeat_with_the_seed_and_differ_between_ranks_and_steps(tmp_path):
    store = TileStore.build(tmp_path / "s", make_views(tmp_path, SIZES), progress=quiet)

    def order(**names):
        with TilePool(store, 9, background=False, **names) as pool:
            batches = [pool.draw(4000, generator(3)) for _ in range(4)]
            return torch.stack([torch.cat([b.view for b in batches]), torch.cat([b.xy for b in batches])[:, 0].long()])

    assert torch.equal(order(seed=5), order(seed=5))
    # seed + rank + step as one number would make these the same.
    different = [order(seed=5), order(seed=4, rank=1), order(seed=4, step=1), order(rank=5), order(step=5)]
    for a, b in itertools.combinations(different, 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("kind", ["tiles", "decode"])
def test_the_thread_replaces_and_stops(tmp_path, kind):
    views = make_views(tmp_path, SIZES)
    before = threading.active_count()
    pool = open_pool(kind, tmp_path, views, slots=3)
    assert threading.active_count() == before + 1
    seen: set[int] = set()
    end = time.monotonic() + 60
    while not seen >= {0, 2, 3, 4} and time.monotonic() < end:  # not waiting for the single pixel of view 1
        seen |= set(pool.draw(50_000, generator()).view.tolist())
    assert seen >= {0, 2, 3, 4}
    pool.close()
    pool.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.draw(1)


def test_a_resident_pool_has_no_thread_and_reads_nothing_more(tmp_path):
    views, before = make_views(tmp_path, SIZES), threading.active_count()
    pool = open_pool("tiles", tmp_path, views)
    assert threading.active_count() == before
    TileStore.clean(tmp_path / "s")
    found = counts(pool, views, 10, 200_000)
    assert all((image > 0).all() for image in found)
    pool.close()


@pytest.mark.parametrize("background", [False, True])
def test_files_that_vanish_end_the_draws(tmp_path, background):
    views = make_views(tmp_path, [(900, 900)])
    pool = open_pool("tiles", tmp_path, views, slots=3, background=background)
    pool._store.close()
    TileStore.clean(tmp_path / "s")

    def train() -> None:
        for _ in range(600):
            pool.draw(10_000)
            time.sleep(0.05 if background else 0)

    with pytest.raises(DataError, match="cannot be opened"):
        train()
    pool.close()


MEASURE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from xscale_ns.tile_pool import TilePool
from xscale_ns.tiles import TileStore
torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")  # the import's peak would hide a growth: start the mark again
store = TileStore.open(Path(sys.argv[1]), [f"v{{i}}" for i in range(int(sys.argv[2]))])
with TilePool(store, 512) as pool:
    for step in range(300):
        pool.draw(8192)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")
def test_memory_does_not_grow_with_the_views(tmp_path):
    """Peak of 4 and of 32 views of 1024x768 (9.4 and 75 MB of tiles); what torch takes is the same in both."""
    from xscale_ns.tile_format import ViewSource

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    views = [ViewSource(f"v{index}", tmp_path / "p.png", 1024, 768, {}) for index in range(32)]
    TileStore.build(tmp_path / "s", views, progress=quiet)

    def peak(number: int) -> float:
        command = [sys.executable, "-c", MEASURE.format(root=str(ROOT)), str(tmp_path / "s"), str(number)]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout) / 1024

    few, many = peak(4), peak(32)
    # The 28 views more would be 66 MB if they stayed in memory.
    assert many < 1.1 * few
    assert many < few + 15
