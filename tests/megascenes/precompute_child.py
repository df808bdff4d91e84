"""``ns-megascenes precompute`` as a process of its own, for tests that kill it."""

from __future__ import annotations

import sys

import tyro

if __name__ == "__main__":
    from core_ns.console import run_command
    from megascenes_ns.depth_command import Precompute

    run_command(tyro.conf.AvoidSubcommands[Precompute], "precompute", "Precompute.", sys.argv[1:])
