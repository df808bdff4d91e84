"""Decoded photos in bounded memory: least recently used ones make room, worker threads decode ahead.

What a key holds depends on the key alone, so neither the number of workers nor their timing can change what a reader
sees (spec r4dv 8.3). Sizes are counted in bytes, not in photos: 4K and thumbnail rigs need no different settings.

One thread, the desk, owns all tables; readers send it messages and wait for the answer. They hold no lock and run
none of the standard library's Python code meanwhile, because nerfstudio's viewer raises exceptions at any line of the
thread that renders: a lock that stayed locked there, or a value half registered, would stop the training.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Answers = SimpleQueue  # of (value, None) or (None, error)

PATIENCE = 1.0
"""Seconds between a waiting reader's looks at whether the cache was closed."""


@dataclass
class CacheStatistics:
    """Counts since the cache was made; ``bytes_held`` and ``bytes_peak`` do not count values being loaded."""

    loads: int = 0
    hits: int = 0
    evictions: int = 0
    bytes_held: int = 0
    bytes_peak: int = 0


class FrameCache(Generic[K, V]):
    """Values by key, at most ``capacity`` bytes of them; `get` waits for a value, `prefetch` does not."""

    def __init__(self, load: Callable[[K], V], size: Callable[[V], int], capacity: int, workers: int = 2) -> None:
        """Make an empty cache.

        Args:
            load: makes the value of a key; called on several threads, at most once at a time per key.
            size: bytes that a value takes.
            capacity: bytes; a value larger than this is handed out but not kept. 0 keeps nothing.
            workers: threads that load.

        Raises:
            ValueError: capacity below 0, or no worker.
        """
        if capacity < 0 or workers < 1:
            raise ValueError(f"a cache needs capacity >= 0 and workers >= 1, got {capacity} and {workers}")
        self.capacity = capacity
        self._desk: _Desk[K, V] = _Desk(load, size, capacity, workers)
        self._finalizer = weakref.finalize(self, self._desk.close)
        self._finalizer.atexit = False  # _end_all waits for the threads as well

    @property
    def statistics(self) -> CacheStatistics:
        """Live counts; exact after `settle`."""
        return self._desk.statistics

    def get(self, key: K) -> V:
        """The value, from memory or loaded ahead of everything that was only prefetched.

        Raises:
            RuntimeError: the cache is closed.
            Whatever ``load`` raised; the next call tries again.
        """
        desk = self._desk
        known = desk.values.get(key)
        if known is not None and not desk.closed:
            desk.inbox.put(partial(desk.touch, key))
            return known[0]
        return desk.answer(partial(desk.ask, key))

    def prefetch(self, keys: Iterable[K]) -> None:
        """Load these in the background, in this order; errors appear when the key is asked for."""
        self._desk.inbox.put(partial(self._desk.order, list(dict.fromkeys(keys))))

    def settle(self) -> None:
        """Wait until nothing is waiting to be loaded, nor being loaded."""
        self._desk.answer(self._desk.when_idle)

    def close(self) -> None:
        """Stop the threads and drop all values; readers that still wait, and later ones, get ``RuntimeError``."""
        self._finalizer()

    def __len__(self) -> int:
        return len(self._desk.values)

    def __contains__(self, key: object) -> bool:
        return key in self._desk.values


class _Desk(Generic[K, V]):
    """The tables and their thread. Everything below `close` runs on that thread alone."""

    def __init__(self, load: Callable[[K], V], size: Callable[[V], int], capacity: int, workers: int) -> None:
        self.inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.statistics = CacheStatistics()
        self.closed = False
        self._capacity, self._idle, self._workers = capacity, workers, workers
        self._work: SimpleQueue[K | None] = SimpleQueue()
        self._waiting: OrderedDict[K, list[Answers]] = OrderedDict()
        self._running: dict[K, list[Answers]] = {}
        self._settled: list[Answers] = []
        targets = [self._run] + [partial(_load_all, load, size, self._work, self.inbox, self.finish)] * workers
        # Daemons, ended by close: threads of another kind would keep a process alive that forgot to close its cache.
        self.threads = [threading.Thread(target=target, name="r4dv-photos", daemon=True) for target in targets]
        for thread in self.threads:
            thread.start()
        _desks.add(self)

    def answer(self, question: Callable[[Answers], object]) -> V:
        """Put a question to the desk and wait (on the reader's thread)."""
        answers: Answers = SimpleQueue()
        self.inbox.put(partial(question, answers))
        while True:
            try:
                value, error = answers.get(timeout=PATIENCE)
            except Empty:
                if not self.closed:
                    continue
                value, error = None, _closed_error()
            if error is not None:
                raise error
            return cast(V, value)

    def close(self) -> None:
        """End the threads after what they are doing now; does not wait for them."""
        self.closed = True
        self.inbox.put(None)

    def _run(self) -> None:
        while (message := self.inbox.get()) is not None:
            message()
            del message  # it may hold a value
        self.values.clear()
        self.statistics.bytes_held = 0
        for _ in range(self._workers):
            self._work.put(None)
        left = [self._settled, *self._waiting.values(), *self._running.values()]
        for answers in (each for group in left for each in group):
            answers.put((None, _closed_error()))

    def touch(self, key: K) -> None:
        """A reader took the value by itself."""
        self.statistics.hits += 1
        if key in self.values:
            self.values.move_to_end(key)

    def ask(self, key: K, answers: Answers) -> None:
        """A reader waits for this key: it goes first."""
        if key in self.values:
            self.touch(key)
            answers.put((self.values[key][0], None))
        elif key in self._running:
            self._running[key].append(answers)
        else:
            self._waiting.setdefault(key, []).append(answers)
            self._waiting.move_to_end(key, last=False)
            self._start()

    def order(self, keys: list[K]) -> None:
        """These will be asked for soon."""
        for key in keys:
            if key in self.values:
                self.values.move_to_end(key)
            elif key not in self._running:
                self._waiting.setdefault(key, [])
        self._start()

    def when_idle(self, answers: Answers) -> None:
        """Answer when there is nothing to do."""
        self._settled.append(answers)
        self._start()

    def _start(self) -> None:
        while self._idle and self._waiting:
            key, readers = self._waiting.popitem(last=False)
            self._running[key] = readers
            self._idle -= 1
            self.statistics.loads += 1
            self._work.put(key)
        if not self._running:
            for answers in self._settled:
                answers.put((None, None))
            self._settled.clear()

    def finish(self, key: K, value: V | None, size: int, error: BaseException | None) -> None:
        """A worker is done."""
        self._idle += 1
        readers = self._running.pop(key)
        if error is None:
            self._keep(key, cast(V, value), size)
        for answers in readers:
            answers.put((value, error))
        self._start()

    def _keep(self, key: K, value: V, size: int) -> None:
        if size > self._capacity:
            return
        held = self.statistics.bytes_held
        while held + size > self._capacity:
            _, (_, oldest) = self.values.popitem(last=False)
            held -= oldest
            self.statistics.evictions += 1
        self.values[key] = (value, size)
        self.statistics.bytes_held = held + size
        self.statistics.bytes_peak = max(self.statistics.bytes_peak, held + size)


def _load_all(load: Callable, size: Callable, work: SimpleQueue, inbox: SimpleQueue, finish: Callable) -> None:
    """A worker: load keys until there is a None."""
    while (key := work.get()) is not None:
        try:
            value = load(key)
            message = partial(finish, key, value, size(value), None)
        except BaseException as error:
            message = partial(finish, key, None, 0, error)
        inbox.put(message)
        value = message = None  # or each worker would hold a value more than the cache allows


def _closed_error() -> RuntimeError:
    return RuntimeError("the cache of decoded photos is closed")


_desks: weakref.WeakSet[_Desk] = weakref.WeakSet()


def _end_all() -> None:
    """Threads must not be inside a decoder while the interpreter is taken down."""
    for desk in list(_desks):
        desk.close()
    for desk in list(_desks):
        for thread in desk.threads:
            thread.join(timeout=10.0)


atexit.register(_end_all)
