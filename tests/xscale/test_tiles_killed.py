"""Acceptance check A13: a build killed at chosen moments and resumed ends like one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from photo_views import content_hashes, make_views

from core_ns.errors import DataError
from xscale_ns.tile_format import read_manifest
from xscale_ns.tiles import TileStore

ROOT = Path(__file__).resolve().parents[2]

# Where the killed process ends itself: after the n-th finished view; in the middle of casting (a temporary file is
# open); when the files of a view are in place but the manifest does not know yet.
KILLER = """
import os, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
from pathlib import Path
import xscale_ns.tiles as tiles
import photo_views
where, number, jobs = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
folder = Path(sys.argv[1])
def die(): os.kill(os.getpid(), signal.SIGKILL)
seen = dict(finished=0, casts=0, written=0)
def count(what):
    seen[what] += 1
    if where == what and seen[what] == number: die()
def progress(line):
    if "/" in line and "views to write" not in line: count("finished")
def hits(view, xy):
    count("casts")
    return photo_views.distance(view, xy)
write = tiles.write_view
def written(*args):
    done = write(*args)
    count("written")
    return done
tiles.write_view = written
photos = sorted(folder.glob("*.png"))
views = [photo_views.ViewSource(p.name, p, *photo_views.Image.open(p).size, dict(fx=1.0)) for p in photos]
tiles.TileStore.build(folder / "s", views, hits=hits, mesh_hash="m", jobs=jobs, progress=progress)
"""


def run_build(folder: Path, where: str, number: int, jobs: int) -> int:
    script = KILLER.format(root=str(ROOT), here=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(folder), where, str(number), str(jobs)]
    return subprocess.run(command, timeout=120, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "jobs"),
    [(("finished", 1), ("casts", 2), 1), (("casts", 4), ("written", 1), 1), (("written", 2), ("finished", 1), 2)],
)
def test_killed_twice_then_resumed_equals_uninterrupted(tmp_path, first, second, jobs):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        for view in make_views(folder, [(70, 60), (140, 130), (64, 200), (90, 90)]):
            os.utime(view.image, ns=(10**18, 10**18))
    assert run_build(whole, "never", 0, jobs) == 0
    finished: dict[str, int] = {}
    for where, number in (first, second):
        assert run_build(broken, where, number, jobs) == -signal.SIGKILL
        entries = read_manifest(broken / "s")
        with pytest.raises(DataError, match="is not finished"):
            TileStore.open(broken / "s")
        for entry in entries.values():
            if entry.sha256 is not None:
                for part in entry.parts:
                    stamp = (broken / "s" / entry.file(part)).stat().st_mtime_ns
                    assert finished.setdefault(entry.file(part), stamp) == stamp
    assert finished, "the kills left nothing to keep"
    assert run_build(broken, "never", 0, jobs) == 0
    for name, stamp in finished.items():
        assert (broken / "s" / name).stat().st_mtime_ns == stamp
    assert content_hashes(broken / "s") == content_hashes(whole / "s")
