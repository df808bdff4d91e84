"""Caches for training, made once: resumable, by many processes, with a size estimate (spec megascenes 12).

The pairs of one reference are one job, so that its photo is decoded and its surface built once. What is there is left
alone; what cannot be made is listed in ``failed_pairs.txt`` and made at the next call. Files are whole or absent, and
what is in them does not depend on who made them: after kill -9 the same command ends with the same files.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core_ns.atomic import write_text
from core_ns.errors import DataError
from core_ns.file_lock import held
from dataparsers.megascenes_paths import relative_path
from dataparsers.megascenes_table import PairTable
from megascenes_ns.precompute_steps import Step, Thing
from megascenes_ns.work_pool import run_jobs

Array = np.ndarray

FAILED = "failed_pairs.txt"
LOCK = "precompute.lock"
SAMPLES, THINGS = 4, 3
"""Jobs that an estimate does, into a temporary folder, and things of each step of them."""
ROOM_CHECK = 200
"""Missing things from which on the room is estimated before anything is made."""


@dataclass
class Count:
    """How many things of one step."""

    there: int = 0
    """Found in the cache."""
    made: int = 0
    failed: int = 0
    bytes: int = 0
    """Of what was made."""
    seconds: float = 0.0
    """That making took, all processes added."""

    def add(self, other: Count) -> None:
        """Add another count to this one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Failure:
    """A thing that could not be made."""

    step: str
    pair: str
    """Both photos, relative to the folder of all photos."""
    problem: str


@dataclass
class Summary:
    """What a call did."""

    pairs: int
    counts: dict[str, Count]
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For the console."""
        found = [
            f"{name}: {count.made} made, {count.there} were there, {count.failed} failed, {readable(count.bytes)}"
            for name, count in self.counts.items()
        ]
        made = sum(count.made for count in self.counts.values())
        rate = f", {made / self.seconds:.1f} files a second" if made and self.seconds > 0 else ""
        return [*found, f"{self.pairs} pairs in {self.seconds:.1f} s{rate}"]


@dataclass(frozen=True)
class Estimate:
    """What a call would do."""

    there: int
    missing: dict[str, int]
    bytes: int
    """Of everything that is missing."""
    seconds: float
    """For everything that is missing, on one process."""
    free: int
    """Bytes on the cache's disk."""

    def lines(self, processes: int = 1) -> list[str]:
        """For the console."""
        todo = ", ".join(f"{count} of {name}" for name, count in self.missing.items())
        return [
            f"there: {self.there}; to make: {todo}",
            f"about {readable(self.bytes)} (free: {readable(self.free)})",
            f"about {self.seconds / processes:.0f} s on {processes} process{'es' if processes > 1 else ''}",
        ]


Job = tuple[tuple[str, tuple[Thing, ...]], ...]
"""What to make for one reference: for each step its things."""


@dataclass(frozen=True)
class _Done:
    """What one job did."""

    counts: dict[str, Count]
    failures: list[Failure]


@dataclass(frozen=True)
class _Opener:
    """Sent to each process."""

    steps: tuple[Step, ...]
    cache: Path

    def __call__(self) -> Callable[[Job], _Done]:
        makers = {step.name: step.open(self.cache) for step in self.steps}
        tables = {step.name: step.photos.table for step in self.steps}

        def work(job: Job) -> _Done:
            counts, failures = {name: Count() for name, _ in job}, []
            for name, things in job:
                for thing in things:
                    start = time.perf_counter()
                    try:
                        counts[name].bytes += makers[name].make(thing)
                        counts[name].made += 1
                    except DataError as error:
                        counts[name].failed += 1
                        pair = " -> ".join(relative_path(path) for path in tables[name].paths(thing.row))
                        failures.append(Failure(name, pair, str(error)))
                    counts[name].seconds += time.perf_counter() - start
            return _Done(counts, failures)

        return work


def references(table: PairTable, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, ...]]:
    """Rows of the table, those of one reference together, in the order of the references' first rows.

    Args:
        shard: (i, n): the i-th of n parts, for n machines with one cache; references are never split between parts.
    """
    if not len(table):
        return []
    photos = table.path_numbers()[:, 0]
    order = np.argsort(photos, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(photos[order])) + 1)
    groups.sort(key=lambda group: int(group[0]))
    return [tuple(group.tolist()) for group in groups[shard[0] :: shard[1]]]


@dataclass(frozen=True)
class Plan:
    """What there is to do."""

    jobs: list[Job]
    pairs: int
    there: dict[str, int]
    """Things of each step that are in the cache."""

    @property
    def missing(self) -> dict[str, int]:
        """Things of each step that are not."""
        found = dict.fromkeys(self.there, 0)
        for job in self.jobs:
            for name, things in job:
                found[name] += len(things)
        return found


def make_plan(steps: Sequence[Step], cache: Path, shard: tuple[int, int] = (0, 1)) -> Plan:
    """Look what is in the cache. A thing that several references need is in the first one's job alone.

    Args: as of `precompute`.

    Raises:
        DataError: the cache is of another kind, or ``shard`` is none.
        ValueError: no steps, or for different pairs.
    """
    table = _table_of(steps)
    _refuse(steps, cache, shard)
    makers, seen = {step.name: step.open(cache) for step in steps}, set[Path]()
    there, jobs, groups = dict.fromkeys(makers, 0), list[Job](), references(table, shard)
    for rows in groups:
        job = []
        for name, maker in makers.items():
            things = {file: thing for file, thing in maker.things(rows).items() if file not in seen}
            seen.update(things)
            left = tuple(thing for file, thing in things.items() if not file.is_file())
            there[name] += len(things) - len(left)
            if left:
                job.append((name, left))
        if job:
            jobs.append(tuple(job))
    return Plan(jobs, sum(map(len, groups)), there)


def precompute(
    steps: Sequence[Step],
    cache: Path,
    *,
    processes: int = 1,
    shard: tuple[int, int] = (0, 1),
    strict: bool = False,
    progress: bool = False,
) -> Summary:
    """Make what is missing.

    Args:
        steps: what to make, in this order for each reference; all for the same pairs.
        cache: folder; made if need be.
        processes: fresh ones; 1: in this one.
        shard: see `plan_jobs`.
        strict: stop at the first thing that cannot be made.
        progress: show a bar on stderr.

    Raises:
        DataError: the cache is of another kind or another process fills it, too little room, a process was killed, or
            (``strict``) a thing cannot be made. What is made stays.
    """
    cache, start = Path(cache), time.perf_counter()
    _refuse(steps, cache, shard)
    suffix = "" if shard[1] == 1 else f".{shard[0]}-{shard[1]}"
    with held(cache / f"{LOCK}{suffix}") as alone:
        if not alone:
            problem = "is being filled by another process."
            raise DataError(cache, LOCK, problem, "Wait for that one, or share the work out with --shard.")
        if shard[1] == 1:  # others may be writing otherwise
            _sweep(cache)
        plan = make_plan(steps, cache, shard)
        if sum(plan.missing.values()) >= ROOM_CHECK:
            _check_room(_measured(steps, cache, plan, SAMPLES))
        for step in steps:
            step.begin(cache)
        summary = Summary(plan.pairs, {name: Count(count) for name, count in plan.there.items()})
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns = (*columns, TextColumn("{task.fields[size]}"))
        opener = _Opener(tuple(steps), cache)
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("Files", total=sum(plan.missing.values()), size="")
            for done in run_jobs(plan.jobs, opener, min(processes, max(len(plan.jobs), 1))):
                for name, count in done.counts.items():
                    summary.counts[name].add(count)
                summary.failures += done.failures
                size = readable(sum(count.bytes for count in summary.counts.values()))
                bar.update(task, advance=sum(each.made + each.failed for each in done.counts.values()), size=size)
                if strict and done.failures:
                    first = done.failures[0]
                    raise DataError(first.pair, first.step, first.problem, "Correct it, or leave out --strict.")
        _report(cache / f"{FAILED}{suffix}", summary.failures)
    summary.seconds = time.perf_counter() - start
    return summary


def estimate(
    steps: Sequence[Step], cache: Path, *, shard: tuple[int, int] = (0, 1), samples: int = SAMPLES
) -> Estimate:
    """What `precompute` would do; the cache is only read. A few jobs are done into a temporary folder and measured.

    Raises:
        DataError: as `precompute`; or none of the samples can be made.
    """
    plan = make_plan(steps, Path(cache), shard)
    return _measured(steps, Path(cache), plan, samples)


def _measured(steps: Sequence[Step], cache: Path, plan: Plan, samples: int) -> Estimate:
    """`estimate` of a plan."""
    missing, jobs = plan.missing, plan.jobs
    folder = next(each for each in (cache.absolute(), *cache.absolute().parents) if each.is_dir())
    free, there = shutil.disk_usage(folder).free, sum(plan.there.values())
    if not jobs:
        return Estimate(there, missing, 0, 0.0, free)
    chosen = [jobs[at] for at in np.unique(np.linspace(0, len(jobs) - 1, min(samples, len(jobs))).astype(int))]
    # Every step, also where a thing that another one is made of is there already in the real cache.
    few = [tuple((name, things[:THINGS]) for name, things in job) for job in chosen]
    counts, failures = {step.name: Count() for step in steps}, list[Failure]()
    with tempfile.TemporaryDirectory(prefix="precompute-") as scratch:
        # Reads weights and warms up, which is no part of the work.
        _Opener(tuple(steps), Path(scratch) / "first")()(few[0])
        work = _Opener(tuple(steps), Path(scratch) / "measured")()
        for done in map(work, few):
            failures += done.failures
            for name, count in done.counts.items():
                counts[name].add(count)
    if failures and not any(count.made for count in counts.values()):
        first = failures[0]
        raise DataError(first.pair, first.step, first.problem, "None of the samples could be made.")
    each = {name: max(count.made, 1) for name, count in counts.items()}
    size = sum(missing[name] * count.bytes / each[name] for name, count in counts.items())
    seconds = sum(missing[name] * count.seconds / each[name] for name, count in counts.items())
    return Estimate(there, missing, round(size), seconds, free)


def readable(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _table_of(steps: Sequence[Step]) -> PairTable:
    """The pairs that all steps are for."""
    tables = {id(step.photos.table): step.photos.table for step in steps}
    if len(tables) != 1:
        raise ValueError(f"expected steps for one table of pairs, got {len(steps)} for {len(tables)}")
    return next(iter(tables.values()))


def _refuse(steps: Sequence[Step], cache: Path, shard: tuple[int, int]) -> None:
    """What `precompute` cannot do, before anything is written. Raises DataError."""
    if not 0 <= shard[0] < shard[1]:
        raise DataError("options", "--shard", f"{shard[0]}/{shard[1]} is none.", "Say 0/4, 1/4, 2/4 and 3/4.")
    for step in steps:
        step.check(cache)


def _check_room(expected: Estimate) -> None:
    """Refuse what the disk has no room for. Raises DataError."""
    if expected.bytes > expected.free:
        problem = f"needs about {readable(expected.bytes)}; {readable(expected.free)} are free."
        raise DataError("cache", "room", problem, "Name another folder with --cache, or fewer --what.")


def _sweep(cache: Path) -> None:
    """Remove what killed processes left half-written."""
    for left in cache.rglob(".tmp-*"):
        left.unlink(missing_ok=True)


def _report(file: Path, failures: Sequence[Failure]) -> None:
    """Write what failed, or remove the list of an earlier call."""
    if failures:
        write_text(file, "".join(f"{each.step}\t{each.pair}\t{each.problem}\n" for each in sorted(failures, key=str)))
    else:
        file.unlink(missing_ok=True)
