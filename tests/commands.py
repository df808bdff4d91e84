"""Running the ``ns-*`` console scripts as a user does: real processes, from another folder, no GPU needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def environment(home: Path) -> dict[str, str]:
    """The environment of a fresh user: this interpreter's scripts first, an empty torch cache, no network proxies."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NERFSTUDIO"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', '')}"
    env["TORCH_HOME"] = str(home / "torch")
    env["COLUMNS"] = "200"
    return env


def start(*command: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a console script of this environment; its output is piped."""
    words = [str(BIN / str(command[0])), *(str(word) for word in command[1:])]
    return subprocess.Popen(
        words, cwd=cwd, env=environment(cwd), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(*command: str | Path, cwd: Path, status: int = 0, timeout: float = 600) -> str:
    """Run a console script to its end and return what it printed; the exit status must be ``status``."""
    process = start(*command, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{command[0]} did not end in {timeout} s:\n{output[-3000:]}") from None
    assert process.returncode == status, f"{command[0]} ended with {process.returncode}:\n{output[-3000:]}"
    return output
