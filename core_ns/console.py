"""How the packages' own console commands end: with one line where the input is bad."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import tyro

from core_ns.errors import DataError, MissingExtra


def run_command(command: Any, prog: str, description: str, arguments: list[str] | None = None) -> NoReturn:
    """Parse the arguments into one of a union of subcommands, and run its ``main``.

    Args:
        command: union of dataclasses with ``main() -> int``, the exit status.
        prog: name of the command.
        description: first line of its help.
        arguments: default: those of the process.

    Raises:
        SystemExit: always; status 2 after one line on stderr for bad input, or a path that cannot be read or written.
    """
    try:
        chosen = tyro.cli(
            command, prog=prog, description=description, args=sys.argv[1:] if arguments is None else arguments
        )
        status = chosen.main()
    except (DataError, MissingExtra, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 2
    raise SystemExit(status)
