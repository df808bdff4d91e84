"""What training may never do: see a held-out pixel (A16, the data half), or take more memory with more frames (A23)."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from frame_managers import CountedDecodes, open_manager, same, stream
from frame_sequences import BOX, NOISE, write_ball, write_long

from core_ns.images import read_image, write_image
from r4dv_ns.datamanager import R4DVDataManager

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven views of five frames, its hulls made."""
    folder = write_ball(tmp_path_factory.mktemp("data") / "ball")
    open_manager(folder).close()
    return folder


def test_pixels_of_held_out_views_reach_nothing_in_training(ball: Path, tmp_path: Path):
    twin = shutil.copytree(ball, tmp_path / "twin", ignore=shutil.ignore_patterns("r4dv", "vhulls", "surfs"))
    manager = open_manager(ball)
    held_out = [manager.sequence.views[view].name for view in manager.sequence.eval_views]
    assert held_out
    assert not set(manager.sequence.eval_views) & set(manager.sequence.train_views)
    manager.close()
    noise = np.random.default_rng(1)
    for name in held_out:
        for file in (twin / "images" / name).iterdir():
            write_image(file, noise.integers(0, 256, read_image(file)[0].shape, dtype=np.uint8))
        for file in (twin / "masks" / name).iterdir():
            write_image(file, noise.integers(0, 2, read_image(file)[0].shape[:2], dtype=np.uint8) * 255)
    other = open_manager(twin)
    assert other.hulls is not None
    np.testing.assert_array_equal(other.hulls.bounds, manager.hulls.bounds if manager.hulls else None)
    for frame in range(len(other.sequence.frames)):
        mine, theirs = other.hulls.points(frame).read_bytes(), (ball / "surfs" / f"{frame:06d}.ply").read_bytes()
        assert mine == theirs
    assert same(stream(open_manager(ball), range(40)), stream(other, range(40)))


def test_held_out_photos_are_not_even_opened_in_training(ball: Path, tmp_path: Path):
    twin = shutil.copytree(ball, tmp_path / "twin")
    manager = open_manager(twin)
    for view in manager.sequence.eval_views:
        shutil.rmtree(twin / "images" / manager.sequence.views[view].name)
    for step in range(40):
        _, batch = manager.next_train(step)
        manager.source_bank.get(batch["frame_idx"], batch["sources"])
    manager.close()


STEPS, VIEWS, FRAMES, SIZE = 200, 6, 400, (320, 240)
CACHE = 64_000_000


@pytest.fixture(scope="module")
def long_sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long(tmp_path_factory.mktemp("long") / "ball", VIEWS, FRAMES, SIZE)


def walk(folder: Path, steps: int, **options: Any) -> tuple[list[tuple], int, R4DVDataManager]:
    """Take batches and sources as a model would: (what each step saw, growth of resident memory, manager)."""
    parser = {"bounds": BOX, "check_every_header": False}
    manager = open_manager(folder, "test", parser, cache_gb=CACHE / 1e9, **options)
    process, seen = psutil.Process(), []
    gc.collect()
    before, most = process.memory_info().rss, 0
    for step in range(steps):
        _, batch = manager.next_train(step)
        sources = manager.source_bank.get(batch["frame_idx"], batch["sources"])
        sums = tuple(float(source.image.sum()) for source in sources)
        seen.append((batch["image_idx"], batch["sources"], float(batch["image"].sum()), sums))
        most = max(most, process.memory_info().rss - before)
    return seen, most, manager


@pytest.mark.parametrize("block", [1, 4])
def test_memory_and_decodes_are_bounded(long_sequence: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    decodes = CountedDecodes(monkeypatch)
    options = {"crop_to_bounds": False, "frame_block": block, "sources": 4}
    seen, growth, manager = walk(long_sequence, STEPS, **options)
    decoded = VIEWS * FRAMES * SIZE[0] * SIZE[1] * 4
    assert decoded > CACHE + 150_000_000, "holding everything would show"
    assert growth <= CACHE + 150_000_000
    assert manager.source_bank.cache.statistics.bytes_peak <= CACHE
    assert decodes.count <= (4 + 1) * STEPS
    manager.close()
    if block == 4:
        assert decodes.count <= VIEWS * (STEPS // block + 2), "a frame's photos are decoded once while it lasts"
        again, _, manager = walk(long_sequence, 60, workers=1, **options)
        manager.close()
        more, _, manager = walk(long_sequence, 60, workers=4, **options)
        manager.close()
        assert seen[:60] == again == more
