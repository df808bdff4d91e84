"""What the processes of test_work_pool.py run: spawned processes can only import it from a module of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from core_ns.errors import DataError


def opener():
    """Squares; the words ``data``, ``os``, ``bug`` and ``die`` do what they say."""

    def work(job):
        if job == "data":
            raise DataError("file", "place", "problem.", "Remedy.")
        if job == "os":
            raise OSError(28, "No space left on device")
        if job == "bug":
            return 1 / 0
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "threads":
            return os.environ["OMP_NUM_THREADS"]
        if job == "pid":
            return os.getpid()
        return job * job

    return work


def broken_opener():
    """Cannot start."""
    raise DataError("weights", "", "are not there.", "Fetch them.")


if __name__ == "__main__":
    from megascenes_ns.work_pool import run_jobs

    mode, note, pids = sys.argv[1], Path(sys.argv[2]), []
    for result in run_jobs(["pid", "pid"] * 2, opener, 2):
        pids.append(result)
        if len(pids) == 2:
            note.write_text(" ".join(map(str, pids)))
            if mode == "early":
                break
            time.sleep(600)  # the processes wait meanwhile
