"""``ns-r4dv charge import`` and nerfstudio's commands on what it makes, as real processes (acceptance A22)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import capture_runs  # noqa: F401  (silences nerfstudio's imports first)
import pytest
import torch
from capture_runs import NOISE
from commands import run as process
from released_checkpoints import make_state, save_npz, save_pt

from core_ns.console import run_command
from dataparsers.easymocap_options import SequenceOptions
from dataparsers.easymocap_sequence import open_sequence
from dataparsers.point_ply import read_ply
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.hull_run import ensure_hulls
from r4dv_ns.import_command import Import

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(Import, "import", "", [str(argument) for argument in arguments])
    return int(end.value.code or 0)


def released(recording: Path, folder: Path, frames: int, **options) -> dict[str, torch.Tensor]:
    """A state whose points lie on the subject."""
    sequence = open_sequence(recording, SequenceOptions(frame_sample=(0, frames, 1)))
    meta = ensure_hulls(sequence, folder, HullOptions(points=200, workers=1), progress=False)
    clouds = [torch.from_numpy(read_ply(meta.points(frame)).xyz).float() for frame in range(frames)]
    joined = torch.cat(clouds)
    box = torch.stack([joined.amin(dim=0) - 0.05, joined.amax(dim=0) + 0.05])
    return make_state(clouds, box, 8, **options)


def test_options_reach_the_import_and_bad_input_is_one_line(recording, tmp_path, capsys):
    file = save_npz(tmp_path / "latest.npz", released(recording, tmp_path / "points", 2))
    out = tmp_path / "runs"
    options = ("--frame-sample", 0, 2, 1, "--ratio", 0.5, "--sh-limit", 1.0, "--radius-max", 0.02)
    assert run(file, recording, "--output-dir", out, *options) == 0
    shown = capsys.readouterr().out
    assert "2 frames of 200 points" in shown
    assert "--pipeline.model.sh-limit 1.0" in shown
    assert "easymocap-data --frame-sample 0 2 1 --ratio 0.5" in shown
    config = next(out.rglob("config.yml"))
    saved = torch.load(config.parent / "nerfstudio_models" / "step-000000000.ckpt", weights_only=True)["pipeline"]
    assert saved["_model.geometry.limits"].tolist() == pytest.approx([0.001, 0.02])
    assert run(file, recording, "--output-dir", tmp_path / "no") == 2
    assert run(tmp_path / "nothing.npz", recording, "--output-dir", tmp_path / "no") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("DataError: ") for line in lines] == [True, True]
    assert not (tmp_path / "no").exists()
    assert run("--help") == 0


@pytest.mark.slow
def test_an_imported_model_is_judged_baked_and_trained_on(recording, tmp_path):
    """As a user does it: import, ns-eval, charge bake, the printed ns-train line."""
    file = save_pt(tmp_path / "latest.pt", released(recording, tmp_path / "points", 4, motion=True))
    said = process("ns-r4dv", "charge", "import", file, recording, "--output-dir", tmp_path / "runs", cwd=tmp_path)
    config = next((tmp_path / "runs").rglob("config.yml"))
    process("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert 0 < results["psnr"] < 100
    process("ns-r4dv", "charge", "bake", "--load-config", config, "--out", tmp_path / "charged", cwd=tmp_path)
    assert (tmp_path / "charged" / "manifest.json").is_file()
    line = next(line for line in said.splitlines() if line.startswith("Train on:"))
    words = shlex.split(line.removeprefix("Train on:"))
    data = words.index("easymocap-data")
    extra = ["--max-num-iterations", "3", "--output-dir", str(tmp_path / "more"), "--vis", "tensorboard"]
    shown = process(*words[:data], *extra, *words[data:], cwd=tmp_path)
    assert "Resumed from" in shown
    assert list((tmp_path / "more").rglob("step-000000003.ckpt"))
