"""Generating and scoring a split: the same whatever the number of processes (spec megascenes 7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import environment
from planar_pairs import write_pairs
from tiny_runs import NOISE, run_config, train

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from megascenes_ns.generate import blocks, open_folder
from megascenes_ns.generate_command import GenerateCommand

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
HELD_OUT = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of a run of two steps on eight pairs, with five held out."""
    folder = tmp_path_factory.mktemp("generate")
    data = write_pairs(folder / "pairs", 8, HELD_OUT)
    made: Any = run_config(data, folder / "outputs", 2)
    made.save_config()
    train(made)
    return made.get_base_dir() / "config.yml"


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process generates."""
    out = tmp_path_factory.mktemp("alone") / "results"
    assert GenerateCommand(config, out, batch=2).main() == 0
    return out


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def test_pictures_and_scores(alone: Path):
    files = sorted((alone / "pictures").iterdir())
    assert len(files) == HELD_OUT
    assert files[0].name.startswith("0000008__")
    assert read_image(files[0])[0].shape == (48, 64, 3)
    found = scores(alone)
    assert found["count"] == HELD_OUT
    assert {"psnr", "ssim"} <= found["means"].keys()
    assert any("masked" in name for name in found["means"])
    assert any("copy_warp" in name for name in found["means"])
    assert {"fid", "kid", "lpips"} & found["skipped"].keys(), "no weights on this machine"
    assert [row["seed"] for row in found["pairs"]] == [8 + place for place in range(HELD_OUT)]
    assert found["settings"]["batch"] == 2


def test_an_interrupted_run_goes_on_and_ends_the_same(config: Path, alone: Path, tmp_path: Path):
    out = tmp_path / "again"
    (out / "pictures").mkdir(parents=True)
    (out / "settings.json").write_bytes((alone / "settings.json").read_bytes())
    files = sorted((alone / "pictures").iterdir())
    for place, file in enumerate(files[:3]):
        data = file.read_bytes()
        (out / "pictures" / file.name).write_bytes(data if place != 1 else data[:50])
    before = (out / "pictures" / files[2].name).stat().st_mtime_ns
    assert GenerateCommand(config, out, batch=2).main() == 0
    assert (out / "pictures" / files[2].name).stat().st_mtime_ns != before, "its batch was not complete"
    for file in files:
        np.testing.assert_array_equal(read_image(out / "pictures" / file.name)[0], read_image(file)[0])
    assert scores(out) == scores(alone)


def test_results_of_other_settings_are_refused(config: Path, alone: Path):
    with pytest.raises(DataError, match=r"seed.*differ"):
        GenerateCommand(config, alone, batch=2, seed=9).main()
    with pytest.raises(DataError, match="batch"):
        GenerateCommand(config, alone, batch=4).main()
    mistakes: tuple[dict[str, Any], ...] = (
        {"batch": 0},
        {"max_pairs": 0},
        {"seed": -1},
        {"guidance": -1.0},
        {"steps": 0},
    )
    for wrong in mistakes:
        with pytest.raises(DataError):
            GenerateCommand(config, alone, **wrong).main()


def test_the_folder(tmp_path: Path):
    open_folder(tmp_path / "a", {"seed": 1})
    open_folder(tmp_path / "a", {"seed": 1})
    with pytest.raises(DataError):
        open_folder(tmp_path / "a", {"seed": 1, "steps": 3})
    (tmp_path / "a" / "settings.json").write_text("{")
    with pytest.raises(DataError, match="JSON"):
        open_folder(tmp_path / "a", {"seed": 1})
    write_image(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError):
        open_folder(tmp_path / "b.png", {})
    assert blocks(range(5), 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(config: Path, alone: Path, tmp_path: Path):
    """accelerate launch, as a user types it; without a GPU its --multi_gpu starts processes that speak gloo."""
    accelerate = Path(sys.executable).parent / "accelerate"
    env = environment(tmp_path) | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    out = tmp_path / "both"
    words = ["launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "megascenes_ns.generate"]
    words += ["--load-config", str(config), "--out", str(out), "--batch", "2"]
    done = subprocess.run(
        [str(accelerate), *words],
        cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "process 1 of 2: 3 pictures" in done.stdout
    assert "process 2 of 2: 2 pictures" in done.stdout
    for file in sorted((alone / "pictures").iterdir()):
        ours = read_image(out / "pictures" / file.name)[0].astype(int)
        worst = np.abs(ours - read_image(file)[0]).max()
        # This test's own process may have more threads than those of accelerate, and round another way.
        assert worst <= (0 if os.environ.get("OMP_NUM_THREADS") == "1" else 1), file.name
    theirs, ours = scores(out)["means"], scores(alone)["means"]
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name] == pytest.approx(value, abs=0.02), name
