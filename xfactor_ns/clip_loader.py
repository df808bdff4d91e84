"""Samples decoded ahead by threads; the square frames decoded last stay in memory, up to a number of bytes.

Threads, not processes: decoding (PyAV, Pillow) and resizing run outside Python's lock, and nothing is copied between
processes. What a batch holds depends on its draws alone, never on the threads or on what memory still holds.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from jaxtyping import UInt8

from dataparsers.clips_frames import ResizeMode, read_squares
from dataparsers.clips_sequence import Sequence
from dataparsers.clips_windows import Draw
from dataparsers.video_read import hold_decoders
from xfactor_ns.batches import ClipBatch

Array = np.ndarray

PATIENCE = 10.0
"""Seconds to wait for a thread that is to end."""
DECODERS_PER_THREAD = 8
"""Videos kept open: of a few clips they are soon wanted again, of many nearly never."""


@dataclass
class LoaderStatistics:
    """Counts since the store was made."""

    decoded: int = 0
    """Frames."""
    hits: int = 0
    """Frames that were still in memory."""
    bytes_held: int = 0
    bytes_peak: int = 0


class FrameStore:
    """Square frames of clips; those asked for longest ago are dropped first. Thread-safe."""

    def __init__(self, size: int, mode: ResizeMode, capacity: int) -> None:
        """An empty store of frames of ``size`` pixels a side, up to ``capacity`` bytes."""
        self.size, self.capacity = size, capacity
        self.mode: ResizeMode = mode
        self.statistics = LoaderStatistics()
        self._frames: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, sequence: Sequence, indices: tuple[int, ...]) -> UInt8[Array, "n s s 3"]:
        """Frames of a clip, in the order given.

        Raises:
            DataError: one does not decode; see `read_frame`.
        """
        keys = [(str(sequence.source), sequence.stored(index)) for index in indices]
        with self._lock:
            known = {key: self._frames[key] for key in keys if key in self._frames}
            for key in known:
                self._frames.move_to_end(key)
            self.statistics.hits += len(known)
        missing = [place for place, key in enumerate(keys) if key not in known]
        out = np.empty((len(keys), self.size, self.size, 3), np.uint8)
        fresh = read_squares(sequence, (indices[place] for place in missing), self.size, self.mode)
        for row, place in enumerate(missing):
            out[place] = fresh[row]
        for place, key in enumerate(keys):
            if key in known:
                out[place] = known[key]
        self._keep({keys[place]: fresh[row] for row, place in enumerate(missing)})
        return out

    def _keep(self, fresh: dict[tuple[str, int], Array]) -> None:
        with self._lock:
            held = self.statistics
            held.decoded += len(fresh)
            for key, frame in fresh.items():
                if key in self._frames or frame.nbytes > self.capacity:
                    continue
                while held.bytes_held + frame.nbytes > self.capacity:
                    held.bytes_held -= self._frames.popitem(last=False)[1].nbytes
                self._frames[key] = frame.copy()  # a row would keep its whole sample alive
                held.bytes_held += frame.nbytes
                held.bytes_peak = max(held.bytes_peak, held.bytes_held)


class ClipLoader:
    """Batches by training step; the next ones are decoded meanwhile."""

    def __init__(
        self, plan: Callable[[int], tuple[int, int, list[Draw]]], store: FrameStore, *, workers: int, prefetch: int
    ) -> None:
        """Start the threads.

        Args:
            plan: step -> (update, micro step, its samples).
            store: where frames come from.
            workers: threads that decode.
            prefetch: steps to decode ahead of the one asked for.
        """
        self.plan, self.store, self.prefetch = plan, store, prefetch
        hold_decoders(DECODERS_PER_THREAD * workers)
        self._threads = _Threads(workers)
        self._ahead: dict[int, tuple[int, int, list[Draw], list[Future[Array]]]] = {}
        self._finalizer = weakref.finalize(self, self._threads.close)  # also when the process ends

    def batch(self, step: int, device: torch.device | str = "cpu") -> ClipBatch:
        """The batch of a step, on a device.

        Raises:
            DataError: one of its frames does not decode.
        """
        wanted = range(step, step + self.prefetch + 1)
        for other in [each for each in self._ahead if each not in wanted]:
            for future in self._ahead.pop(other)[3]:
                future.cancel()
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = self._order(each)
        update, micro, draws, futures = self._ahead.pop(step)
        frames = torch.from_numpy(np.stack([future.result() for future in futures]))
        return ClipBatch(frames, relative_numbers(draws), tuple(draw.sequence.id for draw in draws), update, micro).to(
            device
        )

    def _order(self, step: int) -> tuple[int, int, list[Draw], list[Future[Array]]]:
        update, micro, draws = self.plan(step)
        jobs = [partial(self.store.read, draw.sequence, draw.frames) for draw in draws]
        return update, micro, draws, [self._threads.submit(job) for job in jobs]

    def close(self) -> None:
        """End the threads, after the sample that each is decoding."""
        self._finalizer()


class _Threads:
    """Workers that forget what is queued when they are closed; the standard library's finish it before a process ends,
    seconds of decoding for nobody."""

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Array], Future[Array]] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._all = [
            threading.Thread(target=_work, args=(self._queue, self._closed), name="xfactor-frames", daemon=True)
            for _ in range(count)
        ]
        for thread in self._all:
            thread.start()

    def submit(self, job: Callable[[], Array]) -> Future[Array]:
        if self._closed.is_set():
            raise RuntimeError("the loader is closed")
        future: Future[Array] = Future()
        self._queue.put((job, future))
        return future

    def close(self) -> None:
        self._closed.set()
        for _ in self._all:
            self._queue.put(None)
        for thread in self._all:  # none may be inside a decoder while the interpreter is taken down
            thread.join(timeout=PATIENCE)


def _work(queue: SimpleQueue[tuple[Callable[[], Array], Future[Array]] | None], closed: threading.Event) -> None:
    while (item := queue.get()) is not None and not closed.is_set():
        job, future = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
        del item, job, future  # they hold a sample


def relative_numbers(draws: list[Draw]) -> torch.Tensor:
    """Frame numbers counted from each sample's first, int64 [B, n]."""
    return torch.tensor([draw.relative for draw in draws], dtype=torch.int64)
