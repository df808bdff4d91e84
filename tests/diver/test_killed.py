"""``kill -9`` in each stage of a real ``ns-train`` loses nothing (issue 3, accept 5)."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import run, start
from diver_runs import SMALL, checkpoint, largest_difference, model_state, write_object

from diver_ns.stages import Stage

pytestmark = pytest.mark.slow

STEPS = (80, 60, 80)
TOTAL = sum(STEPS)
SAVED = 8
FIRST = {Stage.COARSE: 0, Stage.IMPLICIT: STEPS[0], Stage.EXPLICIT: STEPS[0] + STEPS[1]}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_object(folder / "object")
    return folder


def options(work: Path, name: str) -> list[str]:
    """What a user types after the number of steps."""
    model = [word for option, value in SMALL.items()
             for word in (f"--pipeline.model.{option.replace('_', '-')}", str(value))]  # fmt: skip
    return [
        "--data", str(work / "object"), "--output-dir", str(work / "outputs"), "--timestamp", name,
        "--machine.device-type", "cpu", "--vis", "tensorboard", "--steps-per-save", str(SAVED),
        "--steps-per-eval-batch", "100000", "--logging.local-writer.enable", "False",
        "--pipeline.model.stage-steps", *map(str, STEPS), *model,
    ]  # fmt: skip


def newest(folder: Path) -> int:
    """Step of the newest checkpoint of a run, -1 without one."""
    return max((int(path.stem[5:]) for path in (folder / "nerfstudio_models").glob("step-*.ckpt")), default=-1)


def kill_after(process: subprocess.Popen, folder: Path, step: int) -> str:
    """``kill -9`` as soon as a checkpoint of this step or a later one lies there."""
    deadline = time.monotonic() + 300
    while newest(folder) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert running, output[-3000:]
    return output


def test_killed_in_each_stage_a_run_ends_with_the_weights_of_an_undisturbed_one(work, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two runs at once, each with the same number of threads
    undisturbed = start("ns-train", "diver-tiny", "--max-num-iterations", str(TOTAL), *options(work, "whole"), cwd=work)
    folders = {name: work / "outputs" / "object" / "diver-tiny" / name for name in ("whole", "killed")}
    folder = folders["killed"]
    words = ["ns-train", "diver-tiny", "--max-num-iterations", str(TOTAL), *options(work, "killed")]
    for stage, first in FIRST.items():
        output = kill_after(start(*words, cwd=work), folder, first + SAVED)
        step = newest(folder)
        assert int(model_state(checkpoint(folder, step))["stage_code"]) == stage, f"killed too late, at {step}"
        assert "Training Finished" not in output
        # The form in which a stopped run prints it (core_ns.trainer.next_commands).
        words = ["ns-train", "diver-tiny", "--load-dir", str(folder / "nerfstudio_models"), "--max-num-iterations",
                 str(TOTAL - 1 - step), *options(work, "killed")]  # fmt: skip
    output = run(*words, cwd=work)
    whole, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, whole[-3000:]
    mine, theirs = (checkpoint(folders[name], TOTAL - 1) for name in ("killed", "whole"))
    difference = largest_difference(model_state(mine), model_state(theirs))
    print(f"killed three times: final weights differ by {difference}")
    assert difference <= 1e-6
    assert int(model_state(mine)["stage_code"]) == Stage.PRUNED
    assert torch.equal(model_state(mine)["plan_steps"], torch.tensor(STEPS))
    assert re.findall(r"Pruned: .+", output) == re.findall(r"Pruned: .+", whole)
    printed = next(line for line in output.splitlines() if line.startswith("Train on:"))
    printed_words = shlex.split(printed.removeprefix("Train on:"))
    assert printed_words[:5] == [*words[:4], "--max-num-iterations"]
    assert printed_words[6:] == options(work, "killed")
