"""The two errors a user can cause: bad data, and a missing optional package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


class DataError(ValueError):
    """Input that cannot be used.

    Carries the four things a user needs to repair it: the file, the place in it, the problem, and the remedy. Raised
    before anything is written.
    """

    def __init__(self, file: str | Path, place: str, problem: str, remedy: str) -> None:
        self.file, self.place, self.problem, self.remedy = str(file), place, problem, remedy
        where = f"{self.file} ({place})" if place else self.file
        super().__init__(f"{where}: {problem} {remedy}")

    def __reduce__(self):
        return type(self), (self.file, self.place, self.problem, self.remedy)


class MissingExtra(ImportError):
    """An optional package is absent or does not load here; the message names the command that installs it."""


def need(module: str, why: str, how: str) -> ModuleType:
    """Import an optional package or say what needs it and how to get it.

    Args:
        module: importable name.
        why: the feature that needs it, to begin the sentence with.
        how: the install command.

    Raises:
        MissingExtra: also when the package is installed but refuses to load (tinycudann raises ``EnvironmentError``
            without a GPU; a binary built for another torch raises ``OSError``).
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise MissingExtra(f"{why} needs '{module}' ({type(error).__name__}: {error}). Install: {how}") from error


def is_importable(module: str) -> bool:
    """Whether an optional package really loads here (see `need`); never raises."""
    try:
        importlib.import_module(module)
    except Exception:
        return False
    return True
