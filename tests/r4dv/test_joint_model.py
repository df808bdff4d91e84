"""Subject and background together (acceptance A25, A16): stages, freezing, what hides what, resuming."""

from __future__ import annotations

import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE, open_trainer, train
from joint_runs import branch_values, joint_config
from nerfstudio.cameras.cameras import Cameras
from PIL import Image

from r4dv_ns.joint_stages import Freeze, Stage

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]

STEPS = (4, 3, 4)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The juggler in the room: 7 cameras (one is held out), 3 frames, 56x70, clean plates; hulls and points made."""
    from dataparsers.moving_scene import make_moving_scene

    folder = tmp_path_factory.mktemp("recorded") / "room"
    make_moving_scene(folder, 7, 3, (56, 70), background="room", supersample=1)
    joint_config(folder, folder.parent / "nothing", STEPS).pipeline.check_data()
    return folder


def recorded(config: Any) -> tuple[Any, dict[str, list]]:
    """A finished trainer, and the parameters of (subject, room) before each stage and at the end."""
    trainer = open_trainer(config)
    model, seen = trainer.pipeline.model, {}
    enter = model._enter

    def remembered(stage: Stage, step: int) -> None:
        seen[stage.name] = [branch_values(model, False), branch_values(model, True)]
        enter(stage, step)

    model._enter = remembered
    trainer.config.viewer.quit_on_train_completion = True
    trainer.train()
    seen["end"] = [branch_values(model, False), branch_values(model, True)]
    return trainer, seen


@pytest.fixture(scope="module")
def run(room, tmp_path_factory) -> Any:
    """A run through all three stages with a background that is frozen in the last, and what its parameters were."""
    frozen = Freeze(points=True, residual=True, geometry=True, colours=True)
    config = joint_config(room, tmp_path_factory.mktemp("outputs"), STEPS, freeze_background=frozen)
    return recorded(config)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the parameters that are bitwise equal."""
    return [name for name in one if torch.equal(one[name], other[name])]


def camera(run: Any, index: int = 0) -> Cameras:
    """A held-out camera without metadata."""
    chosen = run.pipeline.datamanager.eval_dataset.cameras[index : index + 1]
    fields = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "times")
    return Cameras(**{name: getattr(chosen, name) for name in fields})


# ------------------------------------------------------------------ stages


def test_each_stage_moves_its_own_branch_and_leaves_the_other_bitwise_the_same(run):
    """A25."""
    _, seen = run
    (subject_a, room_a), (subject_b, room_b), (subject_c, room_c) = (seen[stage.name] for stage in Stage)
    assert len(same(subject_a, subject_b)) == len(subject_a), "A: the subject stays"
    assert "room.points.points.0" not in same(room_a, room_b)
    assert len(same(room_a, room_b)) < len(room_a) / 3, "A: the background learns"
    assert len(same(room_b, room_c)) == len(room_b), "B: the background stays"
    assert len(same(subject_b, subject_c)) < len(subject_b) / 2, "B: the subject learns"


def test_a_frozen_background_is_bitwise_the_same_after_both_learned_together(run):
    """A25."""
    trainer, seen = run
    (subject, room), (subject_after, room_after) = seen["JOINT"], seen["end"]
    assert len(same(room, room_after)) == len(room)
    assert "points.points.0" not in same(subject, subject_after) or "points.points.1" not in same(
        subject, subject_after
    )
    assert trainer.pipeline.model.stage is Stage.JOINT
    assert all(math.isfinite(value) for value in trainer.losses.values())
    assert trainer.pipeline.model.stage_shown.value == Stage.JOINT.title


@pytest.mark.parametrize(
    ("freeze", "stays"),
    [
        (Freeze(points=True), ("points.",)),
        (Freeze(geometry=True), ("geometry.", "planes.")),
        (Freeze(colours=True), ("feature_net.", "blend.", "sh.")),
        (Freeze(residual=True), ("motion.",)),
    ],
)
def test_parts_of_the_subject_are_frozen_one_by_one(room, tmp_path, freeze, stays):
    config = joint_config(room, tmp_path, (0, 0, 3), freeze_foreground=freeze)
    config.pipeline.datamanager.frame_block = 3
    _, seen = recorded(config)
    subject, after = seen["JOINT"][0], seen["end"][0]
    kept = set(same(subject, after))
    assert {name for name in subject if name.startswith(stays)} <= kept
    moved = {name.split(".")[0] for name in subject if name not in kept}
    frozen = {start.rstrip(".") for start in stays}
    assert moved | frozen >= {"points", "geometry", "planes", "feature_net", "blend", "sh", "motion"}
    assert len(same(seen["JOINT"][1], seen["end"][1])) < len(seen["end"][1]) / 3


def test_rates_follow_the_stage(run):
    trainer, _ = run
    planes = trainer.optimizers.optimizers["bg_planes"].param_groups[0]["lr"]
    assert planes == pytest.approx(5e-3 * trainer.pipeline.model.plan.factor(sum(STEPS) - 1, 0.3))
    points = trainer.optimizers.config["bg_points"]["optimizer"].lr
    assert points == pytest.approx(5e-4 * trainer.pipeline.model.scale), "scaled with the box"


def test_each_branch_warms_its_own_photo_network(run):
    model = run[0].pipeline.model
    kept, learning = model.step, []
    for step in range(sum(STEPS)):
        model.step = step
        learning.append(model.learning_photos)
    model.step = kept
    warm = [True, True, True]
    assert learning == [*warm, False, *warm, False, True, False, True], "3 steps of each stage, then every other step"


def test_a_resumed_run_goes_on_inside_its_stage_and_ends_the_same(room, tmp_path):
    straight = train(joint_config(room, tmp_path, STEPS, "straight"))
    first = joint_config(room, tmp_path, STEPS, "first")
    trainer = open_trainer(first)
    once = trainer.train_iteration

    def interrupted(step: int) -> Any:
        output = once(step)
        trainer.stop_training = trainer.stop_training or step == 5
        return output

    trainer.train_iteration = interrupted
    trainer.config.viewer.quit_on_train_completion = True
    trainer.train()
    second = joint_config(room, tmp_path, STEPS, "second")
    second.load_dir, second.max_num_iterations = trainer.checkpoint_dir, sum(STEPS) - 6
    resumed = train(second)
    assert sorted(resumed.losses) == [6, 7, 8, 9, 10]
    assert resumed.pipeline.model.plan == straight.pipeline.model.plan
    for step in resumed.losses:
        assert resumed.losses[step] == pytest.approx(straight.losses[step], rel=1e-4), step
    state = straight.pipeline.model.state_dict()
    for name, value in resumed.pipeline.model.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=1e-5, rtol=1e-4)


def test_nothing_left_to_learn_is_said(room, tmp_path):
    everything = Freeze(points=True, residual=True, geometry=True, colours=True)
    config = joint_config(room, tmp_path, (0, 0, 2), freeze_foreground=everything, freeze_background=everything)
    with pytest.raises(SystemExit, match="nothing to learn"):
        train(config)


# ------------------------------------------------------------------ what hides what


def wall(run: Any, asked: Cameras, depth: float) -> torch.Tensor:
    """Points of a plane across the view of a camera, as many as the background has."""
    model = run.pipeline.model
    count = len(model.room.points.points[0])
    side = math.ceil(math.sqrt(count))
    across = (torch.arange(side) / (side - 1) - 0.5) * 2.4 * depth
    x, y = torch.meshgrid(across, across, indexing="ij")
    local = torch.stack([x.flatten(), y.flatten(), torch.full((side * side,), -depth)], dim=1)[:count]
    c2w = asked.camera_to_worlds[0]
    return local @ c2w[:, :3].T + c2w[:, 3]


@pytest.fixture
def solid(run):
    """The model with opaque points of both branches; restored afterwards."""
    trainer, _ = run
    trainer.pipeline.eval()
    model = trainer.pipeline.model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for branch, radius in ((model, 0.04), (model.room, 0.12)):
            branch.geometry.mlp[-1].weight.zero_()
            branch.geometry.limits.copy_(torch.tensor([radius, radius * 1.0001]))
            branch.geometry.biases[1] = 12.0
        model.room.bounds.copy_(torch.tensor([[-50.0] * 3, [50.0] * 3]))
    layers = model.controls.default
    model.controls.default = type(layers)(None)
    yield trainer
    model.controls.default = layers
    model.load_state_dict(state)


@pytest.mark.parametrize("place", ["behind", "in front"])
def test_the_nearer_of_subject_and_background_is_seen(solid, place):
    """A25: exact compositing of both, against each drawn alone."""
    model, asked = solid.pipeline.model, camera(solid)
    with torch.no_grad():
        model.room.points.points[0].copy_(wall(solid, asked, 4.5 if place == "behind" else 1.0))
    drawn = model.get_outputs_for_camera(asked)
    subject = model.shown(model.drawing(asked), 0, 0.0, model.controls.look()).state.parts[0]
    from r4dv_ns.drawing import draw

    alone = draw(
        model.drawing(asked), subject.xyz, subject.radius, subject.alpha, subject.xyz[:, :1], model.controls.default,
        model.config,
    ).accumulation  # fmt: skip
    covered, empty = alone > 0.9999, alone == 0
    assert 40 < int(covered.sum()) < 2000
    front = "fg_only" if place == "behind" else "bg_only"
    assert float((drawn["rgb"] - drawn[front])[covered].abs().max()) < 2e-3
    assert float((drawn["rgb"] - drawn["bg_only"])[empty].abs().max()) < 1e-6
    assert float((drawn["fg_only"] - drawn["bg_only"])[covered].abs().mean()) > 0.02, "they can be told apart"
    depth = drawn["depth"][..., 0]
    assert (depth[covered] < 4.4).all() if place == "behind" else (depth[covered] < 2).all()
    # The mask loss sees the subject's share alone.
    model.train()
    step, model.step = model.step, 10**6
    metadata = {"view_idx": torch.tensor([[0]]), "frame_idx": torch.tensor([[0]]), "sources": torch.tensor([[0, 1, 2]])}
    asked.metadata = metadata
    learned = model.get_outputs(asked)
    model.step = step
    model.eval()
    share = learned["subject"][..., 0].detach()
    if place == "behind":
        torch.testing.assert_close(share[covered], alone[covered], atol=1e-3, rtol=0)
    else:
        assert float(share[covered].max()) < 0.02
    assert float(share[empty].abs().max()) == 0


def test_outputs_are_maps_that_the_tools_take(run):
    trainer, _ = run
    trainer.pipeline.eval()
    outputs = trainer.pipeline.model.get_outputs_for_camera(camera(trainer))
    channels = {"rgb": 3, "accumulation": 1, "depth": 1, "rgb_ibr": 3, "sh_residual": 1, "layers": 1, "fg_only": 3,
                "bg_only": 3}  # fmt: skip
    assert {name: value.shape[-1] for name, value in outputs.items()} == channels
    assert all(value.shape[:2] == (70, 56) and bool(value.isfinite().all()) for value in outputs.values())
    batch = trainer.pipeline.datamanager.eval_dataset.get_data(0)
    metrics, images = trainer.pipeline.model.get_image_metrics_and_images(outputs, batch)
    truth = images["img"][:, :56]
    assert torch.equal(truth, batch["image"]), "the whole photo is judged"
    assert {"psnr", "psnr_masked", "psnr_bbox"} <= set(metrics)


def test_the_state_tells_its_branches(run):
    trainer, _ = run
    trainer.pipeline.eval()
    model = trainer.pipeline.model
    with torch.no_grad():
        state = model.state(1, model.times[1])
        seen = model._sighting(1, state, model.sources.views[0])
    assert state.branch is not None
    assert state.branch.tolist() == [0] * len(model.points.points[1]) + [1] * len(model.room.points.points[0])
    assert len(seen.rgb) == len(seen.logit) == len(state.xyz) == len(state.coefficients)


# ------------------------------------------------------------------ what is learned from


def test_without_plates_only_pixels_outside_the_widened_masks_teach_the_background(room, tmp_path):
    config = joint_config(room, tmp_path, (2, 0, 0))
    config.pipeline.datamanager.plates = "none"
    trainer = open_trainer(config)
    model, manager = trainer.pipeline.model, trainer.pipeline.datamanager
    trainer.callbacks[0].run_callback(0) if hasattr(trainer, "callbacks") else None
    asked, batch = manager.next_train(0)
    assert not manager.still(0)
    assert 0.3 < float(batch["room"].float().mean()) < 1
    mask = batch["mask"] > 0.1
    assert not bool((batch["room"] & mask).any())
    model.train()
    outputs = model.get_outputs(asked)
    outputs["rgb"].retain_grad()
    sum(model.get_loss_dict(outputs, batch).values()).backward()
    gradient = outputs["rgb"].grad.abs().sum(dim=-1, keepdim=True)
    assert float(gradient[~batch["room"]].max()) == 0
    assert float(gradient[batch["room"]].max()) > 0


def test_changing_a_held_out_camera_changes_nothing_in_its_picture(room, run, tmp_path):
    """A16 for whole scenes: its photos, masks and plate."""
    copied = tmp_path / "copied"
    shutil.copytree(room, copied)
    shutil.rmtree(copied / "surfs"), shutil.rmtree(copied / "vhulls"), shutil.rmtree(copied / "r4dv")
    shutil.rmtree(copied / "bkgd" / "boost")
    names = [
        run[0].pipeline.datamanager.sequence.names[view] for view in run[0].pipeline.datamanager.sequence.eval_views
    ]
    for name in names:
        for file in [*(copied / "images" / name).iterdir(), copied / "bkgd" / f"{name}.jpg"]:
            Image.fromarray(np.full((70, 56, 3), 255, np.uint8)).save(file)
        for file in (copied / "masks" / name).iterdir():
            Image.fromarray(np.full((70, 56), 255, np.uint8)).save(file)
    pictures = []
    for recording in (room, copied):
        trainer = train(joint_config(recording, tmp_path / "outputs", (1, 1, 1), recording.name))
        trainer.pipeline.eval()
        pictures.append(trainer.pipeline.model.get_outputs_for_camera(camera(trainer))["rgb"])
    assert torch.equal(*pictures)
    bank = run[0].pipeline.datamanager.source_bank
    view = run[0].pipeline.datamanager.sequence.eval_views[0]
    for leak in (lambda: bank.get(0, [view]), lambda: bank.room(0, [view]), lambda: bank.plate(view)):
        with pytest.raises(ValueError, match="held-out view"):
            leak()


def test_stages_that_cannot_be_are_refused(room, tmp_path):
    config = joint_config(room, tmp_path, (5, 5, 5))
    config.max_num_iterations = 2
    with pytest.raises(SystemExit, match="stage-steps"):
        train(config)
