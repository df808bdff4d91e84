"""``ns-xfactor transfer|probe|similarity`` as real processes, on a trained run (spec xfactor 12, check 17)."""

from __future__ import annotations

import json

import av
import pytest
from commands import run

from core_ns.images import image_size

pytestmark = pytest.mark.slow


def test_a_motion_is_carried_over_probed_and_scored(trained, rooms, work):
    config = trained / "config.yml"
    said = run(
        "ns-xfactor", "transfer", "--load-config", config, "--from", "path00_a", "--onto", "path02_b",
        "--out", work / "film.mp4", "--save-latents", work / "motion.npz", cwd=work,
    )  # fmt: skip
    assert "12 frames of 520x256, 10 a second" in said
    with av.open(str(work / "film.mp4")) as film:
        assert len(list(film.decode(video=0))) == 12
    assert image_size(work / "film.png")[0] == 6 * 264 + 8

    probed = run("ns-xfactor", "probe", "--load-config", config, "--steps", "30", "--references", "2", cwd=work)
    assert "Fitted to 6 clips; scored on 2 clips held out" in probed
    assert (trained / "probe.safetensors").is_file(), "where the viewer looks for it"
    run(
        "ns-xfactor", "similarity", "--load-config", config, "--a", "path00_a", "--b", "path02_a", "--transfer",
        "--oracle", "probe", "--out", work / "scores.json", cwd=work,
    )  # fmt: skip
    scores = json.loads((work / "scores.json").read_text())
    assert scores["transfer"]
    assert 0 <= scores["scores"]["SE3_Auc_30"] <= 1


def test_without_the_clips(trained, rooms, work):
    """The frames that the run keeps stand in."""
    away = rooms.with_name("moved")
    rooms.rename(away)
    try:
        said = run(
            "ns-xfactor", "transfer", "--load-config", trained / "config.yml", "--from", "path00_a",
            "--onto", "path02_b", "--out", work / "kept.mp4", "--no-stills", cwd=work,
        )  # fmt: skip
        assert "frames of 520x256" in said
    finally:
        away.rename(rooms)


def test_the_same_path_in_two_rooms(rooms, work):
    said = run(
        "ns-xfactor", "similarity", "--a", rooms / "path00_a", "--b", rooms / "path00_b", "--oracle", "poses", cwd=work
    )
    assert said.splitlines()[6].split() == ["AUC", "both", "1.000", "1.000", "1.000", "1.000"]


def test_bad_input_is_one_line(rooms, work):
    for words in (
        ["similarity", "--a", rooms / "path00_a", "--b", rooms / "path09_b", "--oracle", "poses"],
        ["transfer", "--weights", rooms / "truth.json", "--from", "x", "--onto", "y", "--out", work / "z.mp4"],
        ["probe", "--load-config", rooms / "splits.json"],
    ):
        said = run("ns-xfactor", *words, cwd=work, status=2)
        assert said.startswith("DataError: ")
        assert len(said.strip().splitlines()) == 1, said
    assert not (work / "z.mp4").exists()
