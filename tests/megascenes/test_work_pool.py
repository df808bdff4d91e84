"""Processes that do jobs: all results, errors as they were, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pool_jobs import broken_opener, opener

from core_ns.errors import DataError
from megascenes_ns.work_pool import run_jobs

SCRIPT = Path(__file__).with_name("pool_jobs.py")


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_done_once(processes):
    assert sorted(run_jobs(range(40), opener, processes)) == [number**2 for number in range(40)]
    assert list(run_jobs([], opener, processes)) == []
    assert not multiprocessing.active_children()


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (found,) = run_jobs(["threads"], opener, 2)
    assert found == str(max(1, (os.cpu_count() or 1) // 2))
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_come_as_they_were(processes):
    with pytest.raises(DataError, match="Remedy"):
        list(run_jobs([1, "data", 3], opener, processes))
    with pytest.raises(OSError, match="No space"):
        list(run_jobs([1, "os", 3], opener, processes))
    with pytest.raises(DataError, match="are not there"):
        list(run_jobs([1], broken_opener, processes))
    with pytest.raises(ZeroDivisionError if processes == 1 else RuntimeError, match="division by zero"):
        list(run_jobs(["bug"], opener, processes))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_of():
    with pytest.raises(DataError, match=r"ended from outside \(status -9\)"):
        list(run_jobs([1, 2, "die", 4], opener, 2))
    assert not multiprocessing.active_children()


def run_script(mode, note):
    return subprocess.Popen([sys.executable, str(SCRIPT), mode, str(note)], stderr=subprocess.DEVNULL)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_idle_processes_end_with_a_killed_parent(tmp_path):
    """They wait for jobs when their parent is killed: the end of their pipe ends them."""
    note = tmp_path / "pids"
    parent = run_script("idle", note)
    wait_until(lambda: note.exists() and len(note.read_text().split()) == 2)
    workers = [each.pid for each in psutil.Process(parent.pid).children(recursive=True)]
    assert {int(word) for word in note.read_text().split()} <= set(workers)
    parent.kill()
    parent.wait(timeout=30)
    for pid in workers:
        wait_until(lambda pid=pid: gone(pid))


def test_leaving_early_ends_the_processes(tmp_path):
    note = tmp_path / "pids"
    parent = run_script("early", note)
    assert parent.wait(timeout=30) == 0
    for word in note.read_text().split():
        wait_until(lambda pid=int(word): gone(pid))
