"""The bounded cache of decoded photos: bytes, order, threads, errors, and a reader that is interrupted anywhere."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r4dv_ns.frame_cache import FrameCache


def blocks(size: int = 100, capacity: int = 1000, workers: int = 2) -> FrameCache[int, np.ndarray]:
    """Values of ``size`` bytes that tell their key."""
    return FrameCache(lambda key: np.full(size, key % 251, np.uint8), lambda value: value.nbytes, capacity, workers)


def test_a_value_is_loaded_once():
    cache = blocks()
    first = cache.get(7)
    assert cache.get(7) is first
    cache.settle()
    assert (cache.statistics.loads, cache.statistics.hits) == (1, 1)
    cache.close()


@given(
    keys=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    sizes=st.lists(st.integers(0, 40), min_size=13, max_size=13),
    capacity=st.integers(0, 100),
)
def test_the_cache_equals_a_plain_least_recently_used_list(keys, sizes, capacity):
    # The oracle: an ordered list of keys, walked step by step.
    held: OrderedDict[int, int] = OrderedDict()
    loads = 0
    cache = FrameCache(lambda key: key, lambda key: sizes[key], capacity, workers=1)
    try:
        for key in keys:
            assert cache.get(key) == key
            if key in held:
                held.move_to_end(key)
            else:
                loads += 1
                if sizes[key] <= capacity:
                    while sum(held.values()) + sizes[key] > capacity:
                        held.popitem(last=False)
                    held[key] = sizes[key]
            cache.settle()
            assert list(cache._desk.values) == list(held)
            cache.settle()
            assert cache.statistics.bytes_held == sum(held.values()) <= capacity
        assert cache.statistics.loads == loads
        assert cache.statistics.bytes_peak <= capacity
    finally:
        cache.close()


def test_a_value_larger_than_the_cache_is_handed_out_and_not_kept():
    cache = blocks(size=2000, capacity=1000)
    assert cache.get(3).nbytes == 2000
    assert len(cache) == 0
    assert cache.statistics.bytes_held == 0
    cache.close()


def test_prefetched_values_are_not_loaded_again():
    cache = blocks()
    cache.prefetch(range(5))
    cache.settle()
    assert all(cache.get(key)[0] == key for key in range(5))
    assert cache.statistics.loads == 5
    cache.close()


def test_what_is_asked_for_overtakes_what_is_only_prefetched():
    order: list[int] = []
    gate = threading.Event()

    def load(key: int) -> int:
        gate.wait(10)
        order.append(key)
        return key

    cache = FrameCache(load, lambda value: 1, 100, workers=1)
    cache.prefetch([0, 1, 2, 3])
    threading.Timer(0.05, gate.set).start()
    assert cache.get(3) == 3
    cache.settle()
    assert order.index(3) <= 1, "at most the value that was being loaded comes first"
    assert sorted(order) == [0, 1, 2, 3]
    cache.close()


def test_two_readers_of_one_key_share_one_load():
    gate = threading.Event()

    def load(key: int) -> object:
        gate.wait(10)
        return object()

    cache = FrameCache(load, lambda value: 1, 100, workers=4)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(cache.get(1))) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 6
    assert len(set(map(id, seen))) == 1
    assert cache.statistics.loads == 1
    cache.close()


def test_an_error_reaches_the_reader_and_is_not_remembered():
    broken = {1}

    def load(key: int) -> int:
        if key in broken:
            raise OSError(f"photo {key}")
        return key

    cache = FrameCache(load, lambda value: 1, 100, workers=2)
    cache.prefetch([1, 2])
    cache.settle()
    with pytest.raises(OSError, match="photo 1"):
        cache.get(1)
    broken.clear()
    assert cache.get(1) == 1
    assert cache.get(2) == 2
    cache.close()


def test_threads_that_read_and_prefetch_at_once_see_right_values():
    cache = blocks(size=64, capacity=640, workers=4)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for key in rng.integers(0, 60, 150).tolist():
            cache.prefetch(rng.integers(0, 60, 2).tolist())
            if not (cache.get(key) == key % 251).all():
                wrong.append(key)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
    assert cache.statistics.bytes_peak <= 640
    held = sum(size for _, size in cache._desk.values.values())
    assert held == cache.statistics.bytes_held
    cache.close()


class Interrupt(Exception):
    """What nerfstudio's viewer raises."""


def test_a_reader_interrupted_at_any_line_blocks_nobody():
    # nerfstudio's viewer traces the thread that renders and raises at a line of its choice, inside our code.
    def interrupted(cache: FrameCache[int, np.ndarray], key: int, line: int) -> bool:
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            if event == "line":
                count += 1
                if count == line:
                    raise Interrupt
            return trace

        try:
            sys.settrace(trace)
            try:
                cache.get(key)
                cache.prefetch([key + 1])
                cache.get(key)
            finally:
                sys.settrace(None)
        except Interrupt:
            return True
        return False

    previous = sys.gettrace()
    done = False
    line = 0
    try:
        while not done:
            line += 1
            cache = blocks(size=10, capacity=25, workers=1)
            raised: list[bool] = []
            reader = threading.Thread(target=lambda c=cache, n=line, out=raised: out.append(interrupted(c, 5, n)))
            reader.start()
            reader.join(20)
            assert raised, f"the reader hangs at line event {line}"
            done = not raised[0]
            values: list[int] = []
            others = threading.Thread(
                target=lambda c=cache, out=values: out.extend(int(c.get(k)[0]) for k in (5, 6, 7))
            )
            others.start()
            others.join(20)
            assert values == [5, 6, 7], f"after an interrupt at line event {line} others wait for ever"
            cache.settle()
            assert cache.statistics.bytes_held == sum(size for _, size in cache._desk.values.values()) <= 25
            cache.close()
    finally:
        sys.settrace(previous)
    assert line > 12, "the trace saw the cache's own lines"


def test_closing_releases_those_who_wait():
    gate = threading.Event()

    def load(key: int) -> int:
        gate.wait(10)
        return key

    cache = FrameCache(load, lambda value: 1, 100, workers=1)
    cache.prefetch([0])
    ended: list[str] = []

    def read(key: int) -> None:
        try:
            cache.get(key)
        except RuntimeError as error:
            ended.append(str(error))

    readers = [threading.Thread(target=read, args=(key,)) for key in (0, 1, 1)]
    for reader in readers:
        reader.start()
    time.sleep(0.05)
    cache.close()
    for reader in readers:
        reader.join(10)
    gate.set()
    assert ended == ["the cache of decoded photos is closed"] * 3
    with pytest.raises(RuntimeError, match="closed"):
        cache.get(2)
    cache.close()


def test_a_forgotten_cache_ends_its_threads():
    cache = blocks(workers=3)
    cache.prefetch(range(6))
    cache.settle()
    threads = cache._desk.threads
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    for thread in threads:
        thread.join(10)
    assert gone() is None
    assert not any(thread.is_alive() for thread in threads)


def test_a_process_that_forgets_its_cache_ends(tmp_path):
    # Decoders are in C: a thread inside one while the interpreter is taken down aborts the process.
    script = tmp_path / "forgets.py"
    script.write_text(
        "import time\n"
        "from r4dv_ns.frame_cache import FrameCache\n"
        "cache = FrameCache(lambda key: time.sleep(0.05) or key, lambda value: 1, 100, workers=3)\n"
        "cache.prefetch(range(1000))\n"
        "print(cache.get(5), flush=True)\n"
    )
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "5", "")
    assert time.monotonic() - start < 15, "what was only prefetched is not waited for"


@pytest.mark.parametrize(("capacity", "workers"), [(-1, 1), (10, 0)])
def test_impossible_settings_are_refused(capacity, workers):
    with pytest.raises(ValueError, match="capacity >= 0 and workers >= 1"):
        FrameCache(lambda key: key, lambda value: 1, capacity, workers)
