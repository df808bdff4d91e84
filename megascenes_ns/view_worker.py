"""Long work that a browser's moving camera can interrupt (spec megascenes 8.3, interruption).

nerfstudio's viewer interrupts a render by raising from a line-trace hook, at any line of the thread that renders. Here
the work runs on a thread of its own, which is not traced: no slowdown, nothing half-done. The traced thread only waits.
It touches no lock: an exception at the end of a ``with`` statement, which is a line too, would leave one held for ever.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

POLL = 0.02
"""Seconds between two looks at the work; an exception in the waiting thread is told to the work at once."""
FIRST_POLL = 0.001
"""Of the first looks, which get rarer: most references and warps are there already."""


class Abandoned(Exception):
    """A job was cancelled before its turn came; seen by nobody."""


class Job:
    """One piece of work.

    Attributes:
        cancelled: asks the work to end at its next step.
        ended: it is through, however.
        result: what the work returned.
        error: what it raised.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], Any], turn: threading.Lock) -> None:
        self.cancelled = self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._work, self._turn = work, turn

    def run(self) -> None:
        """Wait for the turn, do the work; never raises. On the job's own thread."""
        try:
            with self._turn:
                if self.cancelled:
                    raise Abandoned
                self.result = self._work(lambda: self.cancelled)
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True


class ViewWorker:
    """Runs one job at a time for any number of asking threads."""

    def __init__(self, poll: float = POLL) -> None:
        self.poll = poll
        self._last: Job | None = None
        self._turn = threading.Lock()

    def run(self, work: Callable[[Callable[[], bool]], Result]) -> Result:
        """Do ``work`` on another thread and wait for it.

        An earlier job that was cancelled ends first (within one of its steps): networks are shared.

        Args:
            work: gets a function that says whether to stop, to be asked at every step; it raises then. torch's gradient
                mode is a thread's own: gradients are on in its thread unless it turns them off.

        Returns:
            What ``work`` returned.

        Raises:
            BaseException: whatever ``work`` raised, or what interrupted the waiting; the job has been told to stop.
        """
        job, pause = Job(work, self._turn), FIRST_POLL
        try:
            _thread.start_new_thread(job.run, ())
            self._last = job
            while not job.ended:
                time.sleep(pause)
                pause = min(2 * pause, self.poll)
        except BaseException:
            job.cancelled = True
            raise
        if job.error is not None:
            raise job.error
        return job.result

    def idle(self, timeout: float = 60.0) -> bool:
        """Wait for the last job to end; False if it has not."""
        deadline = time.monotonic() + timeout
        while self._last is not None and not self._last.ended:
            if time.monotonic() > deadline:
                return False
            time.sleep(FIRST_POLL)
        return True
