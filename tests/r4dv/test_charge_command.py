"""``ns-r4dv charge``: what is printed, and that bad input is one line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import pytest
import tyro
import yaml
from capture_runs import NOISE
from charge_folders import make_charge

from core_ns.console import run_command
from r4dv_ns import charge_bake, charge_command
from r4dv_ns.charge_command import Charge, commands
from r4dv_ns.charge_options import BakeOptions

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@dataclass
class Other:
    """Another command."""

    def main(self) -> int:
        """Nothing."""
        return 0


Command = Union[Annotated[Charge, tyro.conf.subcommand("charge")], Annotated[Other, tyro.conf.subcommand("other")]]


def run(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Status, output and errors."""
    with pytest.raises(SystemExit) as caught:
        run_command(Command, "ns-r4dv", "", ["charge", *map(str, arguments)])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_info(tmp_path, capsys):
    make_charge(tmp_path, frames=4, n=1000, s=3, static=100, views=5)
    shutil.rmtree(tmp_path / "frames")  # the manifest alone is read
    status, output, _ = run(capsys, "info", tmp_path)
    assert status == 0
    for text in (
        "4, 000000 to 000003", "1000 to 1000 a frame, 100 of them background", "3 of 3 stored photos",
        "4 trained on, 1 held", "src_rgb       |u1         0.009      0.0",
    ):  # fmt: skip
        assert text in output


def test_verify(tmp_path, capsys):
    make_charge(tmp_path)
    status, output, _ = run(capsys, "verify", tmp_path)
    assert status == 0
    assert "21 files of 3 frames are whole" in output
    file = tmp_path / "frames" / "000001" / "sh.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, _, errors = run(capsys, "verify", tmp_path)
    assert status == 2
    assert len(errors.strip().splitlines()) == 1
    assert "000001/sh.npy" in errors
    assert run(capsys, "verify", tmp_path, "--frame-sample", "0", "1", "1")[0] == 0


def test_open_after_a_move(tmp_path, capsys):
    before, after = tmp_path / "before", tmp_path / "moved here"
    make_charge(before)
    assert run(capsys, "open", before)[0] == 0
    before.rename(after)
    status, output, _ = run(capsys, "open", after)
    assert status == 0
    assert f"ns-viewer --load-config '{after}/config.yml'" in output
    text = (after / "config.yml").read_text()
    assert "moved here" in text
    assert "before" not in text
    assert yaml.compose(text, Loader=yaml.SafeLoader) is not None
    assert (after / "nerfstudio_models" / "step-000000000.ckpt").is_file()
    (after / "frames" / "000002" / "src_id.npy").unlink()
    status, _, errors = run(capsys, "open", after)
    assert status == 2
    assert "000002/src_id.npy: is missing" in errors


@pytest.mark.parametrize("command", ["info", "verify", "open"])
def test_no_charge_is_one_line(tmp_path, capsys, command):
    for folder in (tmp_path / "absent", tmp_path):
        status, _, errors = run(capsys, command, folder)
        assert status == 2
        assert len(errors.strip().splitlines()) == 1


def test_bake_hands_its_options_on(tmp_path, capsys, monkeypatch):
    asked: dict[str, Any] = {}

    def fake(load_config: Path, out: Path, **options: Any) -> Any:
        asked.update(options, load_config=load_config, out=out)
        return make_charge(tmp_path / "made", frames=2, n=1000)[0]

    monkeypatch.setattr(charge_bake, "bake", fake)
    config = tmp_path / "run" / "config.yml"
    status, output, _ = run(
        capsys, "bake", "--load-config", config, "--max-sources", 16, "--sh-degree", 2, "--xyz", "u16",
        "--no-visibility", "--pack", "--frame-sample", 0, 30, 5, "--no-eval-photos", "--layers", 9,
    )  # fmt: skip
    assert status == 0
    assert asked == {
        "load_config": config, "out": tmp_path / "run" / "charged", "progress": True, "max_sources": 16, "sh_degree": 2,
        "xyz": "u16", "colours": "u8", "visibility": False, "pack": True, "frame_sample": (0, 30, 5),
        "eval_photos": False, "layers": 9,
    }  # fmt: skip
    assert "2 frames, 0.3 MB (0.13 MB a frame)" in output
    assert str(commands(tmp_path / "run" / "charged")[0]) in output
    assert set(asked) - {"load_config", "out", "progress"} == set(vars(BakeOptions()))


def test_bake_without_a_run(tmp_path, capsys):
    status, _, errors = run(capsys, "bake", "--load-config", tmp_path / "config.yml")
    assert status == 2
    assert "is not a file" in errors
    assert not (tmp_path / "charged").exists()


def test_the_module_imports_nothing_heavy():
    """``ns-r4dv --help`` must not wait for torch."""
    import subprocess
    import sys

    code = "import sys, r4dv_ns.charge_command; assert 'torch' not in sys.modules, sorted(sys.modules)[:5]"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert charge_command.__doc__
