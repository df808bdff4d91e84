"""A file that one process at a time holds; the system lets go of it when the process ends, kill -9 included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Try to hold a lock file for the length of the block, without waiting.

    Args:
        file: made if need be, its folder included, and left in place.

    Yields:
        False if another process, or another block of this one, holds it. Where the system or the disk has no locks
        (flock) everyone gets True.

    Raises:
        OSError: the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as handle:
        yield _locked(handle.fileno())


def _locked(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return True
    return True
