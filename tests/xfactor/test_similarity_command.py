"""``ns-xfactor similarity`` and ``ns-xfactor probe``, in this process."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from small_clips import options, refusal, write_clips, write_weights

from xfactor_ns.open_net import NetOptions
from xfactor_ns.oracle_options import OracleOptions
from xfactor_ns.probe import load_probe
from xfactor_ns.probe_command import ProbeCommand
from xfactor_ns.similarity_command import SimilarityCommand


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity")
    write_clips(folder / "clips", clips=6)
    write_weights(folder / "weights.safetensors")
    shutil.copytree(folder / "clips" / "path00_a" / "images", folder / "bare")
    return folder


@pytest.fixture
def compare(files, tmp_path):
    """Run the command on two clips and give the scores."""

    def run(a: str, b: str, kind: str = "poses", **changes):
        given = {
            "a": str(files / "clips" / a), "b": str(files / "clips" / b), "out": tmp_path / "scores.json",
            "oracle": OracleOptions(oracle=kind),
        }  # fmt: skip
        assert SimilarityCommand(**(given | changes)).main() == 0
        return json.loads((tmp_path / "scores.json").read_text())

    return run


def test_the_same_path_in_two_rooms_is_the_same(compare, capsys):
    found = compare("path00_a", "path00_b")
    assert (found["a"], found["b"], found["oracle"], found["transfer"]) == ("path00_a", "path00_b", "poses", False)
    assert all(found["scores"][f"{name}_3"] == 1 for name in ("Rac", "Tac", "RTA_signed", "SE3_Auc"))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["degrees", "5", "10", "20", "30"]
    assert table[6].split() == ["AUC", "both", "1.000", "1.000", "1.000", "1.000"]
    assert compare("path00_a", "path01_b")["scores"]["SE3_Auc_20"] < 0.5


def test_other_oracles(compare, files):
    assert compare("path00_a", "path00_b", "constant")["scores"]["SE3_Auc_30"] == 0
    noisy = compare("path00_a", "path00_b", "noisy")["scores"]
    assert 0.1 < noisy["SE3_Auc_20"] < 0.95
    still = compare(
        "path00_a", "path00_b", net=options(files / "weights.safetensors"),
        oracle=OracleOptions(oracle="probe", probe=make_probe(files)),
    )["scores"]  # fmt: skip
    assert 0 <= still["SE3_Auc_30"] <= 1


def make_probe(files, **changes):
    out = files / "made.safetensors"
    clips = [str(files / "clips" / f"path{k:02d}_{c}") for k in range(3) for c in "ab"]
    given = {"clips": clips, "out": out, "steps": 20, "references": 2, "net": options(files / "weights.safetensors")}
    assert ProbeCommand(**(given | changes)).main() == 0
    return out


def test_a_probe_is_fitted_and_scored(files, capsys):
    probe, facts = load_probe(make_probe(files), 6)
    assert facts["clips"] == 6
    assert (facts["held_out"], facts["oracle"]) == ("1 clips", "poses")
    assert 0 <= facts["pose"]["SE3_Auc_30"] <= 1
    assert facts["latent_residual"] > 0
    assert probe.std.min() > 0
    said = capsys.readouterr().out
    assert "Fitted to 6 clips; scored on 1 clips held out" in said
    assert "experimental" in said


def test_few_clips_hold_out_frames(files):
    _, facts = load_probe(make_probe(files, clips=[str(files / "clips" / "path00_a")]))
    assert (facts["clips"], facts["held_out"]) == (1, "every fourth frame")
    named = {"clips": [str(files / "clips" / "path00_a")], "test": [str(files / "clips" / "path01_a")]}
    _, facts = load_probe(make_probe(files, **named))
    assert (facts["clips"], facts["held_out"]) == (2, "1 clips")


def test_a_transfer_is_scored(compare, files):
    scores = compare(
        "path00_a", "path00_b", transfer=True, net=options(files / "weights.safetensors"),
        oracle=OracleOptions(oracle="constant"),
    )  # fmt: skip
    assert scores["transfer"]
    assert scores["scores"]["posed"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["similarity", "--a", "x", "--b", "y", "--oracle", "poses", "--seed", "3", "--weights", "w", "--transfer"],
        ["probe", "--clips", "x", "y", "--probe-seed", "1", "--oracle", "colmap", "--seed", "2", "--weights", "w"],
        ["transfer", "--from", "x", "--onto", "y", "--out", "z.mp4", "--load-config", "c", "--batch", "2"],
    ],
)
def test_the_console_takes_the_options(words):
    import tyro

    from xfactor_ns.cli import Command

    chosen = tyro.cli(Command, args=words)
    assert chosen.net.load_config or chosen.net.weights


def test_what_cannot_be_compared(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, bare = str(files / "clips" / "path00_a"), str(files / "bare")
    net = options(files / "weights.safetensors")
    poses, probe = OracleOptions(oracle="poses"), OracleOptions(oracle="probe", probe=tmp_path / "none")
    cases = [
        (SimilarityCommand(a, bare, oracle=poses), "has no poses"),
        (SimilarityCommand(a, a, b_start=3, oracle=poses), "12 and 9 frames"),
        (SimilarityCommand(a, a, frames=1, oracle=poses), "only 1 of 1 frames"),
        (SimilarityCommand(a, a, out=tmp_path / "x.txt", oracle=poses), "no .json file"),
        (SimilarityCommand(a, a, oracle=OracleOptions(oracle="vggt")), "--vggt-weights"),
        (SimilarityCommand(a, a, oracle=OracleOptions(oracle="noisy", noise_rotation=-1)), "--noise"),
        (SimilarityCommand(a, a, transfer=True, oracle=poses), "name one network"),
        (SimilarityCommand(a, a, transfer=True, oracle=poses, net=net), "frames that a network drew"),
        (SimilarityCommand(a, a, oracle=probe), "name one network"),
        (SimilarityCommand(a, a, oracle=probe, net=net), "is not a file"),
        (ProbeCommand(net=net), "--clips"),
        (ProbeCommand([bare], net=net), "are not there"),
        (ProbeCommand([a], net=net, oracle=OracleOptions(oracle="constant")), "teaches nothing"),
        (ProbeCommand([a], net=net, frames=1), "too small"),
        (ProbeCommand([a], net=net, out=tmp_path / "x.pt"), "no .safetensors file"),
        (ProbeCommand([a], net=NetOptions()), "name one network"),
    ]
    for command, words in cases:
        error = refusal(command)
        assert words in str(error), (words, str(error))
        assert error.remedy
    assert list(tmp_path.iterdir()) == []


def test_frames_the_oracle_cannot_place_are_one_error(files, monkeypatch):
    import xfactor_ns.oracle_colmap as colmap

    monkeypatch.setattr(colmap.ColmapPoses, "__call__", lambda self, images: np.full((*images.shape[:2], 4, 4), np.nan))
    a = str(files / "clips" / "path00_a")
    assert "0 of 12 frames" in str(refusal(SimilarityCommand(a, a)))
    command = ProbeCommand([a], net=options(files / "weights.safetensors"), oracle=OracleOptions(oracle="colmap"))
    assert "got no poses" in str(refusal(command))
