"""A lock file is held by one process at a time, and by none once its holder is dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core_ns.file_lock import held

HOLD = (
    "import sys; from pathlib import Path; from core_ns.file_lock import held\n"
    "with held(Path(sys.argv[1])) as alone: print(alone, flush=True); sys.stdin.read()"
)


def holder(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_at_a_time(tmp_path):
    file = tmp_path / "new" / "lock"
    with held(file) as first, held(file) as second:
        assert (first, second) == (True, False)
    with held(file) as again:
        assert again


def test_a_killed_holder_lets_go(tmp_path):
    with holder(tmp_path / "lock") as process:
        assert answer(process) == "True"
        with held(tmp_path / "lock") as alone:
            assert not alone
        process.kill()
        process.wait(timeout=30)
        with held(tmp_path / "lock") as alone:
            assert alone
