"""Options of pictures that cannot be meant are refused in one line, before anything is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core_ns.errors import DataError
from xfactor_ns.view_options import ViewOptions


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"context_frames": -1}, "context-frames"),
        ({"neighbours": 0}, "neighbours"),
        ({"rotation_weight": float("nan")}, "rotation-weight"),
        ({"rotation_weight": -0.1}, "rotation-weight"),
        ({"rotation_weight": float("inf")}, "rotation-weight"),
        ({"batch": 0}, "batch"),
        ({"invert_steps": -1}, "invert-steps"),
        ({"control": "regress"}, "probe"),
        ({"control": "invert"}, "probe"),
    ],
)
def test_refused(options: dict[str, Any], place: str):
    with pytest.raises(DataError) as error:
        ViewOptions(**options).check()
    assert error.value.place == f"pipeline.model.view.{place}"


def test_accepted():
    ViewOptions().check()
    ViewOptions(control="invert", probe=Path("probe.safetensors"), rotation_weight=0.0).check()


def test_the_options_import_nothing_heavy():
    code = "import sys, xfactor_ns.view_options\nassert not {'torch', 'numpy', 'nerfstudio'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
