"""``ns-r4dv charge mobile``: what it writes and says."""

from __future__ import annotations

import capture_runs  # noqa: F401  (silences nerfstudio's imports first)
import pytest
from charge_folders import make_charge

from core_ns.console import run_command
from r4dv_ns.charge_manifest import read_manifest
from r4dv_ns.mobile_command import Mobile


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(Mobile, "mobile", "", [str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_a_folder_beside_the_charge_and_what_to_type_next(tmp_path, capsys):
    make_charge(tmp_path / "toy", frames=3, n=50)
    assert run(tmp_path / "toy", "--degree", 1, "--frame-sample", 0, 2, 1) == 0
    shown = capsys.readouterr().out
    made = tmp_path / "toy_mb"
    assert f"{made}: 2 frames, 0.0 MB" in shown
    assert f"{made / 'splats'}: a PLY of Gaussian splats per frame" in shown
    assert f"ns-viewer --load-config {made / 'config.yml'}" in shown
    manifest = read_manifest(made)
    assert (manifest.sh_degree, manifest.frames) == (1, ["000000", "000001"])
    assert sorted(path.name for path in (made / "splats").iterdir()) == ["000000.ply", "000001.ply"]


def test_options_reach_the_export_and_bad_input_is_one_line(tmp_path, capsys):
    make_charge(tmp_path / "toy", frames=1)
    assert run(tmp_path / "toy", "--out", tmp_path / "m", "--no-ply", "--pack", "--ridge", 0.2, "--viewpoints", 7) == 0
    manifest = read_manifest(tmp_path / "m")
    assert manifest.packed
    assert manifest.settings["mobile"] == {"degree": 2, "ridge": 0.2, "viewpoints": 7}
    assert not (tmp_path / "m" / "splats").exists()
    capsys.readouterr()
    assert run(tmp_path / "m", "--out", tmp_path / "n") == 2
    assert run(tmp_path / "toy", "--out", tmp_path / "m") == 2
    assert run(tmp_path / "nothing") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("DataError: ") for line in lines)
    assert run("--help") == 0
