"""The trainer: whole checkpoints or none, resume from what is whole, strict loading, schedules, printed commands."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from xscale_models import NOISE, open_trainer, ring_of_cameras, short_run, sphere_mesh, write_mvsnet_scene

import core_ns.trainer as trainer_module
from core_ns.errors import DataError
from core_ns.trainer import ZooTrainer, next_commands, read_checkpoint, valid_checkpoint, without_options

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

SMALL = {"levels": 2, "log2_table": 8, "finest_resolution": 32}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball in six plain photos."""
    import numpy as np

    intrinsics = np.array([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (24, 32, 3), dtype=np.uint8) for _ in range(6)]
    folder = tmp_path_factory.mktemp("data") / "ball"
    return write_mvsnet_scene(folder, ring_of_cameras(6, 3.0), intrinsics, pictures, sphere_mesh(1.0, 2), (1, 4))


def prepared(scene: Path, tmp_path: Path, steps: int = 4, **options: Any) -> Any:
    config = short_run(scene, tmp_path, steps, rays=64, **SMALL)
    for name, value in options.items():
        setattr(config, name, value)
    config.save_config()
    return config


@pytest.fixture(scope="module")
def trained(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after four steps; its checkpoint is step 3."""
    trainer = open_trainer(prepared(scene, tmp_path_factory.mktemp("runs")))
    trainer.train()
    return trainer


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- saving


def test_a_checkpoint_loads_without_pickle_and_holds_all_that_resume_needs(trained: ZooTrainer) -> None:
    assert checkpoints(trained.checkpoint_dir) == ["step-000000003.ckpt"]
    state = read_checkpoint(trained.checkpoint_dir / "step-000000003.ckpt")
    assert set(state) == {"step", "pipeline", "optimizers", "schedulers", "scalers"}
    assert state["step"] == 3
    assert set(state["optimizers"]) == {"hash", "head", "background"} == set(state["schedulers"])
    assert all(not key.startswith("_model.module.") for key in state["pipeline"])


class Full(OSError):
    """What a full disk raises."""


def test_a_failed_save_leaves_the_old_checkpoint_and_no_fragment(trained: ZooTrainer, monkeypatch) -> None:
    before = (trained.checkpoint_dir / "step-000000003.ckpt").read_bytes()

    def torn(state: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise Full("No space left on device")

    monkeypatch.setattr(trainer_module.torch, "save", torn)
    files = sorted(path.name for path in trained.base_dir.iterdir())
    for step in (3, 9):
        with pytest.raises(Full):
            trained.save_checkpoint(step)
    assert checkpoints(trained.checkpoint_dir) == ["step-000000003.ckpt"]
    assert (trained.checkpoint_dir / "step-000000003.ckpt").read_bytes() == before
    assert sorted(path.name for path in trained.base_dir.iterdir()) == files


def test_the_old_checkpoint_goes_only_after_the_new_one_is_in_place(trained: ZooTrainer, monkeypatch) -> None:
    seen: list[list[str]] = []
    replace = trainer_module.os.replace

    def watched(source: Any, target: Any) -> None:
        seen.append(checkpoints(trained.checkpoint_dir))
        assert read_checkpoint(Path(source))["step"] == 8, "complete before it gets its name"
        replace(source, target)

    monkeypatch.setattr(trainer_module.os, "replace", watched)
    trained.save_checkpoint(8)
    assert seen == [["step-000000003.ckpt"]]
    assert checkpoints(trained.checkpoint_dir) == ["step-000000008.ckpt"]
    monkeypatch.undo()
    trained.save_checkpoint(3)
    trained.config.save_only_latest_checkpoint = False
    trained.save_checkpoint(4)
    trained.config.save_only_latest_checkpoint = True
    assert checkpoints(trained.checkpoint_dir) == ["step-000000003.ckpt", "step-000000004.ckpt"]
    (trained.checkpoint_dir / "step-000000004.ckpt").unlink()


# ---------------------------------------------------------------------------------------------------------- loading


def write_steps(folder: Path, *steps: int) -> None:
    folder.mkdir(parents=True)
    for step in steps:
        torch.save({"step": step, "pipeline": {}, "optimizers": {}}, folder / f"step-{step:09d}.ckpt")


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pickle"])
def test_the_newest_whole_checkpoint_is_taken_and_damaged_ones_put_aside(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "nerfstudio_models"
    write_steps(folder, 5, 100, 30)
    newest = folder / "step-000000100.ckpt"
    if damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:300])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "foreign":
        torch.save({"weights": torch.ones(2)}, newest)
    else:
        torch.save({"step": 100, "pipeline": Path("/"), "optimizers": {}}, newest)  # no plain value: refused unread
    state, path = valid_checkpoint(folder)
    assert state["step"] == 30
    assert path.name == "step-000000030.ckpt"
    assert checkpoints(folder) == ["step-000000005.ckpt", "step-000000030.ckpt"], (
        "ns-eval takes the highest step unseen"
    )
    assert (tmp_path / "torn-step-000000100.ckpt").is_file()


def test_a_step_can_be_chosen_and_no_other_stands_in(tmp_path: Path) -> None:
    folder = tmp_path / "nerfstudio_models"
    write_steps(folder, 5, 30)
    assert valid_checkpoint(folder, 5)[0]["step"] == 5
    with pytest.raises(DataError, match="no checkpoint that loads"):
        valid_checkpoint(folder, 6)
    (folder / "step-000000030.ckpt").write_bytes(b"torn")
    (folder / "step-000000005.ckpt").write_bytes(b"torn")
    with pytest.raises(DataError, match="2 damaged"):
        valid_checkpoint(folder)
    with pytest.raises(DataError, match=r"none"):
        valid_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_another_process_put_aside_is_no_error(tmp_path: Path, monkeypatch) -> None:
    """All ranks of a resumed run look at the same folder; the first to find the torn file moves it."""
    folder = tmp_path / "nerfstudio_models"
    write_steps(folder, 5, 30)
    (folder / "step-000000030.ckpt").write_bytes(b"torn")
    read = trainer_module.read_checkpoint

    def slow_reader(path: Path) -> Any:
        try:
            return read(path)
        finally:
            if path.name == "step-000000030.ckpt":
                path.unlink(missing_ok=True)  # the other rank was faster

    monkeypatch.setattr(trainer_module, "read_checkpoint", slow_reader)
    assert valid_checkpoint(folder)[0]["step"] == 5


def test_loading_is_strict(trained: ZooTrainer) -> None:
    state = trained.pipeline.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    key = next(name for name in state if "grid.tables.0" in name)
    for broken in (
        {name: value for name, value in state.items() if name != key},
        state | {"_model.field.intruder": torch.zeros(1)},
        state | {key: torch.zeros(3, 2)},
    ):
        with pytest.raises(DataError, match="does not fit this model"):
            trained.pipeline.load_pipeline(broken, 3)
    trained.pipeline.load_pipeline({name.replace("_model.", "_model.module."): v for name, v in state.items()}, 3)
    assert all(torch.equal(value, before[name]) for name, value in trained.pipeline.state_dict().items())


def test_resume_restores_step_weights_optimisers_and_schedule(trained: ZooTrainer, scene: Path, tmp_path: Path) -> None:
    first = read_checkpoint(trained.checkpoint_dir / "step-000000003.ckpt")
    config = prepared(scene, tmp_path, steps=6, load_dir=trained.checkpoint_dir)
    resumed = open_trainer(config)
    assert resumed._start_step == 4
    for name, value in resumed.pipeline.state_dict().items():
        assert torch.equal(value, first["pipeline"][name]), name
    for name, optimizer in resumed.optimizers.optimizers.items():
        stored = first["optimizers"][name]["state"]
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(stored[index][key]))
    resumed.train()
    assert checkpoints(resumed.checkpoint_dir) == ["step-000000009.ckpt"]


# -------------------------------------------------------------------------------------------------------- schedules


def test_the_rate_ends_at_its_final_share_with_the_last_step(trained: ZooTrainer, scene: Path, tmp_path: Path) -> None:
    """Spec xscale 3.7: cosine to 1/30; over the steps of this run, and when resumed over all steps to the new end."""
    for trainer, steps in ((trained, 4), (None, 7)):
        if trainer is None:
            trainer = open_trainer(prepared(scene, tmp_path, steps=3, load_dir=trained.checkpoint_dir))
            trainer.train()
        for name, group in trainer.optimizers.optimizers.items():
            start = trainer.config.optimizers[name]["optimizer"].lr
            assert trainer.config.optimizers[name]["scheduler"].max_steps == steps
            assert group.param_groups[0]["lr"] == pytest.approx(start / 30, rel=1e-6), name


# ------------------------------------------------------------------------------------------------------------- stopping


def test_a_signal_saves_after_the_running_step_and_the_printed_line_goes_on(scene: Path, tmp_path: Path, monkeypatch):
    trainer = open_trainer(prepared(scene, tmp_path, steps=1000))
    printed: list[str] = []
    monkeypatch.setattr(trainer_module.CONSOLE, "print", lambda *parts, **_: printed.append(" ".join(map(str, parts))))
    step_once = trainer_module.Trainer.train_iteration

    def interrupted(self: Any, step: int) -> Any:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step_once(self, step)

    monkeypatch.setattr(trainer_module.Trainer, "train_iteration", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before, "the caller's handlers are back"
    assert checkpoints(trainer.checkpoint_dir) == ["step-000000002.ckpt"], "the step that was running is kept"
    words = shlex.split(next(line for line in printed if line.startswith("Resume:")))
    assert words[words.index("--max-num-iterations") + 1] == "997"
    assert words[words.index("--load-dir") + 1] == str(trainer.checkpoint_dir)


# ------------------------------------------------------------------------------------------------------------- commands


def test_without_options_drops_names_with_their_values() -> None:
    line = "--a 1 --load-dir /x/y --b=2 --load_dir=/z --max-num-iterations 5 --c --load-directory keep"
    kept = without_options(line.split(), {"--load-dir", "--max-num-iterations"})
    assert kept == ["--a", "1", "--b=2", "--c", "--load-directory", "keep"]
    assert without_options([], {"--a"}) == []
    assert without_options(["--a"], {"--a"}) == []


def test_the_printed_commands_can_be_pasted(scene: Path, tmp_path: Path) -> None:
    config = short_run(scene, tmp_path / "with space", 100)
    folder = config.get_base_dir()
    argv = ["ns-train", "xscale-nvs-tiny", "--data", "my scene", "--load_dir", "old", "--max-num-iterations=100",
            "--vis", "tensorboard", "mvsnet-data", "--up", "keep"]  # fmt: skip
    lines = next_commands(config, argv, done=40, total=100, checkpoints=config.get_checkpoint_dir())
    assert [line.split(":")[0] for line in lines] == ["Resume", "View", "Evaluate", "Render"]
    words = shlex.split(lines[0].partition(":")[2])
    assert words == ["ns-train", "xscale-nvs-tiny", "--load-dir", str(config.get_checkpoint_dir()),
                     "--max-num-iterations", "60", "--data", "my scene", "--vis", "tensorboard",
                     "mvsnet-data", "--up", "keep"]  # fmt: skip
    for line in lines[1:]:
        words = shlex.split(line.partition(":")[2])
        assert words[words.index("--load-config") + 1] == str(folder / "config.yml")
    done = next_commands(config, argv, done=100, total=100, checkpoints=config.get_checkpoint_dir())[0]
    assert shlex.split(done)[:2] == ["Train", "on:"]
    assert "--max-num-iterations 100" in done
    foreign = next_commands(config, ["pytest", "-q"], done=1, total=100, checkpoints=config.get_checkpoint_dir())[0]
    assert shlex.split(foreign)[-2:] == ["--data", str(scene)]


def test_bad_data_leaves_no_run_folder(scene: Path, tmp_path: Path) -> None:
    config = short_run(tmp_path / "absent", tmp_path / "outputs", 4)
    with pytest.raises(SystemExit, match="DataError"):
        config.save_config()
    assert not (tmp_path / "outputs").exists()


# ---------------------------------------------------------------------------------------------------------- stopping


def test_a_data_error_in_a_step_ends_the_run_with_its_sentence(scene: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = open_trainer(prepared(scene, tmp_path))

    def broken(step: int) -> Any:
        raise DataError("photo.png", "row 3", "cannot be read.", "Restore it.")

    monkeypatch.setattr(trainer.pipeline.datamanager, "next_train", broken)
    with pytest.raises(SystemExit, match=r"DataError: .*photo.png.*Restore it"):
        trainer.train()
