"""Jobs shared out to fresh processes that never outlive the one that started them.

Each process has a pipe of its own: when either end dies, kill -9 included, the other sees the end of the pipe. (The
standard pools keep both ends of one shared pipe in every process, so their orphans wait for ever.)
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from core_ns.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
Opener = Callable[[], Callable[[Job], Result]]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STOP = None


def run_jobs(jobs: Iterable[Job], opener: Opener[Job, Result], processes: int = 1) -> Iterator[Result]:
    """Do jobs in any order, each once.

    Args:
        jobs: what can be pickled, never None.
        opener: called once in each process; gives what does one job. Can be pickled.
        processes: 1: in this one.

    Yields:
        Results, as they come.

    Raises:
        DataError: of a job as it was raised there; or a process was killed.
        OSError: of a job, likewise.
        RuntimeError: any other error of a job, with its traceback as text.
    """
    if processes <= 1:
        work = opener()
        for job in jobs:
            yield work(job)
        return
    waiting, context = iter(jobs), multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    workers: dict[Any, Any] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
            process.start()
            theirs.close()  # or the end of the process would not end the pipe
            workers[ours] = process
            _send(ours, process, opener)
        busy = {pipe for pipe, process in workers.items() if _next(pipe, process, waiting)}
        while busy:
            for pipe in multiprocessing.connection.wait(list(busy)):
                yield _receive(pipe, workers[pipe])
                if not _next(pipe, workers[pipe], waiting):
                    busy.discard(pipe)
    finally:
        for pipe, process in workers.items():
            pipe.close()
            # Whoever ended the loop early does not wait for jobs under way; files are whole or absent.
            process.join(timeout=2.0)
            if process.is_alive():
                process.terminate()
                process.join()


def _next(pipe: Any, process: Any, waiting: Iterator[Any]) -> bool:
    """Hand out one more job; whether there was one."""
    for job in waiting:
        _send(pipe, process, job)
        return True
    _send(pipe, process, _STOP)
    return False


def _send(pipe: Any, process: Any, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _killed(process) from error


def _receive(pipe: Any, process: Any) -> Any:
    try:
        kind, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise _killed(process) from error
    if kind == "done":
        return value
    if kind == "error":
        raise value
    raise RuntimeError(f"a process failed:\n{value}")


def _killed(process: Any) -> DataError:
    process.join(timeout=2.0)
    problem = f"was ended from outside (status {process.exitcode}); often there is too little memory."
    remedy = "Give the same command again, with fewer processes: it goes on."
    return DataError("process", str(process.pid), problem, remedy)


def _serve(pipe: Any, threads: int) -> None:
    """What a process does: open once, then job after job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that hands out the jobs
    for name in _THREADS:
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait starve the other processes
    try:
        # The opener comes through the pipe and not as an argument: unpickling it imports torch, which reads the above.
        work = pipe.recv()()
        while (job := pipe.recv()) is not _STOP:
            pipe.send(("done", work(job)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the other end is gone
    except (DataError, OSError) as error:
        _report(pipe, ("error", error))
    except BaseException:
        _report(pipe, ("failed", traceback.format_exc()))


def _report(pipe: Any, message: tuple[str, Any]) -> None:
    try:
        pipe.send(message)
    except OSError:
        return  # nobody is left to be told
