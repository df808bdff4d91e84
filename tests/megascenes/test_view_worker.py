"""The cancellable worker (spec megascenes 8.3, interruption; check 12)."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

from megascenes_ns import view_worker
from megascenes_ns.view_worker import ViewWorker


class Moved(Exception):
    """What nerfstudio's viewer raises when the camera moves."""


class Stopped(Exception):
    """What a sampler raises when it is cancelled."""


def steps(cancelled: Any, count: int, taken: list[int], pause: float = 0.02) -> str:
    """A sampler: ``count`` steps, asked before each whether to go on."""
    for step in range(count):
        if cancelled():
            raise Stopped
        time.sleep(pause)
        taken.append(step)
    return "finished"


def test_the_result_comes_back_and_errors_too():
    worker, taken = ViewWorker(), []
    assert worker.run(lambda cancelled: steps(cancelled, 3, taken)) == "finished"
    assert taken == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda _: 1 / 0)
    assert worker.run(lambda _: threading.get_ident()) != threading.get_ident(), "on another thread"


def raising_after(seconds: float) -> Any:
    """A trace hook that raises at the first line after so many seconds, as nerfstudio's ``check_interrupt``."""
    deadline = time.monotonic() + seconds
    fired: list[bool] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and not fired and time.monotonic() > deadline:
            fired.append(True)
            raise Moved
        return trace

    return trace


def test_an_exception_in_the_waiting_thread_cancels_within_a_step():
    worker, taken = ViewWorker(), []
    before = sys.gettrace()
    sys.settrace(raising_after(0.1))
    try:
        with pytest.raises(Moved):
            worker.run(lambda cancelled: steps(cancelled, 500, taken))
    finally:
        sys.settrace(before)
    seen = len(taken)
    assert worker.idle(5)
    assert 2 <= seen < 20
    assert len(taken) <= seen + 1, "at most the step that was under way"
    assert worker.run(lambda _: 7) == 7


@pytest.mark.parametrize("line", range(1, 25))
def test_interrupted_at_any_line_the_worker_works_on(line: int):
    worker, taken, left = ViewWorker(poll=0.002), [], [line]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and frame.f_code.co_filename in (view_worker.__file__, threading.__file__):
            left[0] -= 1
            if left[0] == 0:
                raise Moved
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = worker.run(lambda cancelled: steps(cancelled, 4, taken, 0.005))
    except Moved:
        result = None
    finally:
        sys.settrace(before)
    assert result in (None, "finished")
    assert worker.idle(5)
    assert worker.run(lambda _: "next") == "next"


def test_jobs_of_two_threads_take_turns():
    worker, active, most = ViewWorker(poll=0.002), [0], [0]

    def work(_: Any) -> None:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.01)
        active[0] -= 1

    threads = [threading.Thread(target=lambda: worker.run(work)) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most[0] == 1


def test_the_worker_is_not_traced():
    worker, seen = ViewWorker(), []

    def trace(frame: Any, event: str, _: Any) -> Any:
        seen.append(frame.f_code.co_name)
        return trace

    def inside(_: Any) -> None:
        sum(range(10))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        worker.run(inside)
    finally:
        sys.settrace(before)
    assert "run" in seen
    assert "inside" not in seen
