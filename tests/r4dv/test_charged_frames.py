"""Frames of a charge in memory: bounded, loaded ahead the way the recording plays, never wrong (spec r4dv 5.2)."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
import torch
from charge_folders import make_charge

from core_ns.errors import DataError
from r4dv_ns.charge_store import ChargedStore
from r4dv_ns.charged_frames import ChargedFrames, ChargedPoints, PlayDirection, points_of

AMPLE = 1 << 24


@pytest.fixture
def opened(tmp_path):
    """Makes frames of a charge; ends their threads afterwards."""
    made = []

    def open_frames(capacity: int = AMPLE, frames: int = 8, **options) -> ChargedFrames:
        folder = tmp_path / f"charge_{len(made)}"
        make_charge(folder, frames, **options.pop("charge", {}))
        made.append(ChargedFrames(ChargedStore(folder), capacity, **options))
        return made[-1]

    yield open_frames
    for frames in made:
        frames.close()


def both(points: ChargedPoints) -> list[int]:
    return [1, 0]


def held(frames: ChargedFrames) -> set[int]:
    """Frames in memory once nothing is being loaded."""
    frames.cache.settle()
    return {
        frame for frame in range(len(frames.store)) for sources in (None, (1, 0)) if (frame, sources) in frames.cache
    }


@pytest.mark.parametrize("charge", [{}, {"u16": True}, {"pack": True}, {"static": 9}, {"static": 9, "pack": True}])
def test_points_are_those_of_the_file(opened, charge):
    frames = opened(charge=charge)
    points, colour = frames.get(3, both)
    frame = frames.store.frame(3)
    np.testing.assert_array_equal(points.xyz.t().numpy(), frame.positions())
    np.testing.assert_array_equal(points.coefficients.permute(2, 1, 0).numpy(), frame.sh)
    np.testing.assert_array_equal(points.radius.numpy(), frame.radius.astype(np.float32))
    assert all(part.is_contiguous() for part in (points.xyz, points.coefficients))
    assert (points.branch is None) == ("static" not in charge)
    assert colour is not None
    assert colour.shape == (3, 50)
    assert points.views == (0, 1, 2)
    np.testing.assert_allclose(points.centres, frames.store.manifest.centres(3, [0, 1, 2]))


def test_without_stored_photos_there_is_no_blended_colour(opened):
    frames = opened(charge={"s": 0})
    points, colour = frames.get(0, both)
    assert colour is None
    assert points.centres is None


def test_frames_are_loaded_ahead_in_the_direction_of_play(opened):
    frames = opened(ahead=2, frames=12)
    frames.get(3, both)
    assert held(frames) == {3}, "nothing plays yet"
    frames.get(4, both)
    assert held(frames) == {3, 4, 5, 6}
    frames.get(3, both)
    assert held(frames) == {1, 2, 3, 4, 5, 6}
    for frame in (2, 1, 0):
        frames.get(frame, both)
        frames.cache.settle()
    assert held(frames) == {11, 10, *range(7)}, "recordings repeat"
    assert frames.cache.statistics.loads == 2 * 9, "each frame once: points, and colours"


def test_a_camera_that_moves_at_one_moment_loads_nothing_ahead(opened):
    frames = opened(ahead=3)
    for sources in ([0], [1], [2], [0, 1]):
        frames.get(0, lambda points, sources=sources: sources)
    assert held(frames) == {0}
    assert frames.cache.statistics.loads == 5


@pytest.mark.parametrize(
    ("visited", "expected"),
    [
        ([0], []),
        ([0, 1], [2, 3, 4]),
        ([0, 1, 2, 2, 2], [3, 4, 5]),
        ([0, 2, 4], [6, 8, 10]),
        ([0, 2, 4, 3], [2, 1, 0]),
        ([98, 99], [0, 1, 2]),
        ([98, 99, 0], [1, 2, 3]),
        ([1, 0], [99, 98, 97]),
        ([5, 6, 50], [51, 52, 53]),
        ([5, 4, 50], [49, 48, 47]),
        ([0, 50], [51, 52, 53]),
    ],
)
def test_what_comes_next(visited, expected):
    direction = PlayDirection(100)
    for frame in visited:
        direction.note(frame)
    assert direction.next(3) == expected


def test_few_frames_have_few_next_ones():
    for count in (1, 2, 3):
        direction = PlayDirection(count)
        for frame in range(count):
            direction.note(frame)
        following = direction.next(5)
        assert len(following) == count - 1
        assert len(set(following) | {count - 1}) == count


def test_memory_is_bounded_and_what_is_loaded_ahead_does_not_push_out_what_is_drawn(opened):
    size = 50 * (4 * (3 + 2) + 2 * 48) + 4 * 50 * 3
    frames = opened(capacity=3 * size, frames=20, ahead=8)
    for frame in range(20):
        frames.get(frame, both)
        frames.cache.settle()
        assert (frame, None) in frames.cache
    assert frames.cache.statistics.bytes_peak <= 3 * size
    assert frames.cache.statistics.loads <= 2 * 21, "each frame once"
    small = opened(capacity=0)
    assert torch.equal(small.get(5, both)[0].xyz, points_of(small.store.frame(5)).xyz), "nothing fits: still drawn"


def test_a_packed_frame_is_unpacked_once_for_all_its_sources(opened, monkeypatch):
    frames = opened(charge={"pack": True}, ahead=0)
    opens, frame_of = [], frames.store.frame
    monkeypatch.setattr(frames.store, "frame", lambda index: (opens.append(index), frame_of(index))[1])
    for sources in ([0], [1], [2]):
        frames.get(4, lambda points, sources=sources: sources)
    assert opens == [4]


def test_one_thread_loads_and_ends(opened):
    before = set(threading.enumerate())
    frames = opened(ahead=3)
    for frame in range(8):
        frames.get(frame, both)
    started = set(threading.enumerate()) - before
    assert len(started) == 2, "one that loads, one that keeps the tables"
    frames.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_a_frame_that_is_gone_is_one_error_and_the_others_still_play(opened):
    frames = opened(ahead=0)
    shutil.rmtree(frames.store.folder / "frames" / "000002")
    with pytest.raises(DataError, match="000002"):
        frames.get(2, both)
    frames.get(3, both)


def test_a_held_out_view_is_never_a_source(tmp_path, opened):
    """Whoever wrote the file: the last of five views is held out, a sixth does not exist."""
    for view in (4, 5):
        frames = opened(ahead=0)
        np.save(frames.store.folder / "frames" / "000001" / "src_id.npy", np.array([0, 1, view], np.uint16))
        with pytest.raises(DataError, match=f"view {view}, which is no training view"):
            frames.get(1, both)
