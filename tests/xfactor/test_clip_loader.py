"""The loader: batches depend on their step alone, memory is bounded, errors arrive where the frame is wanted."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folders import write_pictures, write_video

from core_ns.errors import DataError
from dataparsers.clips import catalogue
from dataparsers.clips_frames import read_squares
from dataparsers.clips_windows import PlanSet, SamplePlan
from dataparsers.video_read import close_decoders
from xfactor_ns.batches import ClipBatch
from xfactor_ns.clip_loader import ClipLoader, FrameStore


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> SamplePlan:
    root = tmp_path_factory.mktemp("clips")
    write_pictures(root / "a", 30)
    write_pictures(root / "b", 20, (24, 32))
    write_video(root / "c.mp4", 40)
    sequences = catalogue(root).sequences
    return SamplePlan([PlanSet(sequences, [(5, 20)] * len(sequences))], 2, seed=1, warmup=10)


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()


def make_loader(plan: SamplePlan, workers: int = 2, prefetch: int = 2, capacity: int = 1 << 20) -> ClipLoader:
    def samples(step: int):
        return step, 0, plan.batch(step, 0, size=6, micros=1)

    return ClipLoader(samples, FrameStore(16, "antialias", capacity), workers=workers, prefetch=prefetch)


def test_batches_do_not_depend_on_how_they_were_loaded(plan: SamplePlan) -> None:
    expected = []
    for step in range(6):
        draws = plan.batch(step, 0, size=6, micros=1)
        expected.append(np.stack([read_squares(draw.sequence, draw.frames, 16) for draw in draws]))
    for workers, prefetch, capacity in ((1, 0, 0), (1, 3, 3000), (4, 2, 1 << 20), (3, 0, 800)):
        loader = make_loader(plan, workers, prefetch, capacity)
        for step in (0, 1, 2, 3, 4, 5, 2, 5, 0):  # a resumed training jumps
            batch = loader.batch(step)
            np.testing.assert_array_equal(batch.frames.numpy(), expected[step])
            assert (batch.update, batch.micro, len(batch)) == (step, 0, 6)
            draws = plan.batch(step, 0, size=6, micros=1)
            assert batch.ids == tuple(draw.sequence.id for draw in draws)
            assert batch.frame_ind.tolist() == [[frame - draw.frames[0] for frame in draw.frames] for draw in draws]
            assert batch.frame_ind.dtype == torch.int64
        loader.close()


def test_memory_is_bounded(plan: SamplePlan) -> None:
    frame = 16 * 16 * 3
    loader = make_loader(plan, capacity=5 * frame + 10)
    for step in range(30):
        loader.batch(step)
    held = loader.store.statistics
    assert held.bytes_held <= held.bytes_peak <= 5 * frame
    assert held.decoded > 100
    loader.close()
    keeping = make_loader(plan)
    for step in range(60):
        keeping.batch(step)
    assert keeping.store.statistics.decoded < 100 + 40, "90 frames, and those that two threads read at once"
    assert keeping.store.statistics.hits > 500
    keeping.close()


def test_frames_kept_are_not_those_handed_out(plan: SamplePlan) -> None:
    store = FrameStore(16, "reference", 1 << 20)
    sequence = plan.sets[0].sequences[0]
    first = store.read(sequence, (3, 4))
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(store.read(sequence, (4, 3)), expected[::-1])


def test_a_frame_that_does_not_decode(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 12)
    sequences = catalogue(tmp_path / "a").split("train")
    plan = SamplePlan([PlanSet(sequences, [(12, 12)])], 2)
    for number in range(12):
        (tmp_path / "a" / f"{number:03d}.png").write_bytes(b"gone")
    loader = make_loader(plan)
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be read as an image"):
            loader.batch(0)
    loader.close()


def test_threads_end_with_the_loader(plan: SamplePlan) -> None:
    def running() -> int:
        return sum(thread.name.startswith("xfactor-frames") for thread in threading.enumerate())

    gc.collect()
    deadline = time.monotonic() + 10
    while (before := running()) and time.monotonic() < deadline:
        time.sleep(0.02)  # of the tests before
    loader = make_loader(plan, workers=3)
    loader.batch(0)
    assert running() > before
    del loader
    gc.collect()
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running() == before


def test_what_nobody_wants_is_not_decoded(plan: SamplePlan) -> None:
    """A training that ends does not finish what was planned ahead."""
    loader = make_loader(plan, workers=1, prefetch=40, capacity=0)
    loader.batch(0)
    loader.close()
    decoded = loader.store.statistics.decoded
    assert decoded < 41 * 12
    time.sleep(0.1)
    assert loader.store.statistics.decoded == decoded, "the thread has ended"
    with pytest.raises(RuntimeError, match="the loader is closed"):
        loader.batch(41)


def test_batches_move() -> None:
    batch = ClipBatch(
        torch.zeros(2, 2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64), ("a", "b"), 3, 1
    )
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert moved.device == moved.frame_ind.device == torch.device("meta")
    assert (moved.ids, moved.update, moved.micro, len(moved)) == (("a", "b"), 3, 1, 2)
