"""Branches from the checkpoints of other runs, and stages that are then left out."""

from __future__ import annotations

import pytest
import torch
from capture_runs import NOISE, open_trainer, run_config, train
from joint_runs import branch_values, joint_config

from core_ns.errors import DataError
from r4dv_ns.branch_checkpoint import stored_branch
from r4dv_ns.joint_stages import REST, Stage, StagePlan

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("recorded") / "room"
    make_moving_scene(folder, 7, 2, (48, 60), background="room", supersample=1)
    return folder


@pytest.fixture(scope="module")
def together(room, tmp_path_factory):
    """A short run of all three stages."""
    return train(joint_config(room, tmp_path_factory.mktemp("outputs"), (2, 2, 1)))


def newest(trainer):
    return max(trainer.checkpoint_dir.glob("*.ckpt"))


def opened(room, tmp_path, name="opened", **options):
    """A trainer with its stages planned; what was asked for has been loaded."""
    config = joint_config(room, tmp_path, (0, 2, 2), name, **options)
    config._settle_steps(2)
    return open_trainer(config)


def test_both_branches_come_from_a_whole_scenes_run(room, together, tmp_path):
    file = newest(together)
    trainer = opened(room, tmp_path, foreground_checkpoint=file, background_checkpoint=file)
    model = trainer.pipeline.model
    assert model.plan == StagePlan(0, 0, 4), "the steps that were asked for all go to the last stage"
    assert model.stage is Stage.JOINT
    for behind in (False, True):
        own, theirs = (branch_values(each, behind) for each in (model, together.pipeline.model))
        for name, value in theirs.items():
            if not name.startswith("camera"):
                assert torch.equal(own[name], value), name
    assert torch.equal(model.room.bounds, together.pipeline.model.room.bounds)


def test_the_subject_comes_from_a_run_of_r4dv(room, tmp_path):
    config = run_config(room, tmp_path / "plain", 2)
    config.pipeline.datamanager.hull.points, config.pipeline.datamanager.hull.voxel = 600, 0.04
    config.pipeline.datamanager.dataparser.max_side = 256
    plain = train(config)
    trainer = opened(room, tmp_path, foreground_checkpoint=newest(plain))
    own, theirs = (branch_values(each, False) for each in (trainer.pipeline.model, plain.pipeline.model))
    for name, value in theirs.items():
        if not name.startswith("camera"):
            assert torch.equal(own[name], value), name


def test_what_does_not_fit_is_refused(room, together, tmp_path):
    plain = train(run_config(room, tmp_path / "plain", 1, static=True))
    for options, words in (
        ({"background_checkpoint": newest(plain)}, "does not hold this branch"),
        ({"foreground_checkpoint": newest(plain)}, "does not hold this branch"),
        ({"foreground_checkpoint": tmp_path / "absent.ckpt"}, "does not load"),
        ({"foreground_checkpoint": newest(together), "plane_levels": 1}, "does not hold|does not fit"),
        ({"foreground_checkpoint": newest(together), "plane_base": 16}, "does not fit"),
    ):
        with pytest.raises(SystemExit, match=words):
            opened(room, tmp_path, **options)


def test_a_checkpoint_without_the_branch_is_refused_before_a_run_begins(room, tmp_path):
    plain = train(run_config(room, tmp_path / "plain", 1))
    config = joint_config(room, tmp_path / "outputs", (1, 1, 1), background_checkpoint=newest(plain))
    with pytest.raises(SystemExit, match=r"DataError.*background-checkpoint"):
        config.save_config()
    assert not (tmp_path / "outputs").exists()
    config = joint_config(room, tmp_path / "outputs", (1, 1, 1))
    config.max_num_iterations = 2
    with pytest.raises(SystemExit, match=r"DataError.*stage-steps"):
        config.save_config()
    with pytest.raises(DataError, match="does not load"):
        stored_branch(tmp_path / "absent.ckpt", True)


def test_open_numbers_of_steps_are_settled(room, tmp_path):
    config = joint_config(room, tmp_path, (100, REST, 500))
    config.max_num_iterations = 0
    config._settle_steps(20)
    assert config.pipeline.model.stage_steps == (100, 30_000, 500)
    assert config.max_num_iterations == 30_600
    config = joint_config(room, tmp_path, (100, REST, 500), foreground_checkpoint=tmp_path)
    config.max_num_iterations = 0
    config._settle_steps(20)
    assert (config.pipeline.model.stage_steps, config.max_num_iterations) == ((100, 0, 500), 600)
    config = joint_config(room, tmp_path, (100, REST, 500))
    config.full_schedule, config.max_num_iterations = True, 0
    config._settle_steps(20)
    assert config.pipeline.model.stage_steps[1] == 800_000
