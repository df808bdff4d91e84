"""The stages of one run, on a generated object of 16 views (acceptance 5, 8, 10; issue 3, resume)."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diver_runs import (
    NOISE,
    bundle,
    checkpoint,
    largest_difference,
    make_model,
    model_state,
    psnr,
    resumed,
    run_config,
    train,
    write_object,
)

from core_ns.errors import DataError
from core_ns.images import write_image
from diver_ns import stages
from diver_ns.compositing import blending_weights
from diver_ns.occupancy import kept_vertices, upsample
from diver_ns.stages import Stage, StagePlan, rate

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]

STEPS = (91, 60, 200)
LAST = sum(STEPS) - 1
SAVED = 30


# ------------------------------------------------------------------ arithmetic


def test_the_plan_of_a_run_with_the_configured_length():
    plan = StagePlan.of((3, 2, 5), 10)
    assert plan == StagePlan(3, 2, 5)
    assert plan.total == 10
    assert [plan.stage(step).name[0] for step in range(12)] == list("CCCIIEEEEEEE")
    assert [plan.progress(step) for step in (0, 1, 3, 4, 5, 9)] == pytest.approx([0, 1 / 3, 0, 0.5, 0, 0.8])


@pytest.mark.parametrize(("total", "expected"), [(20, (6, 4, 10)), (5, (2, 1, 2)), (3, (1, 1, 1)), (4, (1, 1, 2))])
def test_another_length_rescales_the_stages(total, expected):
    assert StagePlan.of((3, 2, 5), total) == StagePlan(*expected)


def test_every_rescaled_plan_has_three_stages():
    for steps in ((1, 1, 1), (1, 1, 1000), (1000, 1, 1), (1, 1000, 1), (20000, 40000, 40000)):
        for total in range(3, 60):
            plan = StagePlan.of(steps, total)
            assert plan.total == total
            assert min(plan.coarse, plan.implicit, plan.explicit) >= 1


@pytest.mark.parametrize(("steps", "total"), [((0, 2, 5), 7), ((3, 0, 5), 8), ((3, 2, -1), 4), ((3, 2, 5), 2)])
def test_a_plan_without_a_stage_is_refused(steps, total):
    with pytest.raises(DataError, match="at least one step"):
        StagePlan.of(steps, total)


@pytest.mark.parametrize(
    ("stage", "first", "total", "expected"),
    [
        (Stage.COARSE, 1, 10, (3, 2, 5)),  # resumed inside the coarse stage
        (Stage.COARSE, 3, 10, (3, 2, 5)),  # saved at its end: the change comes at the next step
        (Stage.IMPLICIT, 4, 10, (3, 2, 5)),
        (Stage.EXPLICIT, 7, 10, (3, 2, 5)),
        (Stage.PRUNED, 10, 14, (3, 2, 9)),  # trained on
        (Stage.EXPLICIT, 7, 9, (3, 2, 4)),  # a shorter end
        (Stage.COARSE, 1, 4, (3, 2, 5)),  # ends before the explicit stage: the plan stays
        (Stage.PRUNED, 1, 11, (1, 0, 10)),  # imported weights are beyond the plan
        (Stage.EXPLICIT, 1, 11, (1, 0, 10)),
        (Stage.IMPLICIT, 1, 15, (1, 4, 10)),
    ],
)
def test_the_plan_of_a_run_that_goes_on(stage, first, total, expected):
    plan = StagePlan(3, 2, 5).going_on(stage, first, total)
    assert plan == StagePlan(*expected)
    assert plan.stage(first) >= min(stage, Stage.EXPLICIT), "never behind the model"


def test_learning_rates_follow_the_spec():
    plan = StagePlan(10, 20, 30)
    assert [rate(5e-4, plan, step, 1.0) for step in (0, 9, 10, 29, 30, 59)] == [1e-3] * 2 + [5e-4] * 4
    falling = [rate(1.0, plan, step, 0.1) for step in range(60)]
    assert falling[0] == 2.0
    assert falling[10] == falling[30] == 1.0, "each stage begins at its full rate"
    assert falling[45] == pytest.approx(0.55), "half way down the cosine"
    assert all(one > other for step, (one, other) in enumerate(pairwise(falling)) if step + 1 not in (10, 30))
    assert 0.1 < falling[59] < 0.11


# ------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return write_object(tmp_path_factory.mktemp("scene") / "object")


@pytest.fixture(scope="module")
def config(scene, tmp_path_factory) -> Any:
    made = run_config(scene, tmp_path_factory.mktemp("outputs"), STEPS)
    made.steps_per_save = SAVED
    return made


@pytest.fixture(scope="module")
def run(config) -> Any:
    """The finished trainer of the whole run."""
    return train(config)


@pytest.fixture
def saved(run):
    """The model in the state of a saved step (or of a state dict), on the real data; restored afterwards."""
    model = run.pipeline.model
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def put(state: int | dict[str, torch.Tensor]) -> Any:
        model.load_state_dict(model_state(checkpoint(run.base_dir, state)) if isinstance(state, int) else state)
        return model

    yield put
    model.load_state_dict(before)


def photos(run: Any, model: Any, views: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos and exact renders [views, H, W, 3]."""
    model.exact = True
    dataset = run.pipeline.datamanager.train_dataset
    renders = [model.get_outputs_for_camera(dataset.cameras[view : view + 1])["rgb"] for view in views]
    model.exact = False
    return torch.stack([dataset.get_data(view)["image"] for view in views]), torch.stack(renders)


def test_three_stages_run_and_the_last_is_better_than_the_first(run, saved):
    assert list(run.losses) == list(range(LAST + 1))
    assert all(math.isfinite(loss) for loss in run.losses.values())
    quality = []
    for step, stage in ((90, Stage.COARSE), (150, Stage.IMPLICIT), (LAST, Stage.PRUNED)):
        model = saved(step)
        assert model.stage == stage
        quality.append(psnr(*photos(run, model, range(0, 16, 4))))
    print(f"PSNR of training views after each stage: {[round(value, 2) for value in quality]}")
    assert quality[2] > quality[0]
    assert quality[2] > quality[1]
    assert quality[2] > 16


def test_the_final_checkpoint_is_pruned(run):
    state = model_state(checkpoint(run.base_dir, LAST))
    assert int(state["stage_code"]) == Stage.PRUNED
    model = run.pipeline.model
    assert len(model.mask) == 32, "a mask of the fine grid"
    assert torch.equal(state["vertex_ids"], kept_vertices(model.mask)), "exactly the corners of the kept voxels"
    assert state["voxels"].shape == (len(state["vertex_ids"]), 32)
    assert all(value.numel() == 0 for name, value in state.items() if name.startswith("implicit."))


def test_parameters_stay_the_same_objects(config, run):
    groups = run.pipeline.model.get_param_groups()
    for name, parameters in groups.items():
        held = run.optimizers.optimizers[name].param_groups[0]["params"]
        assert [id(parameter) for parameter in held] == [id(parameter) for parameter in parameters], name


def test_optimisers_forget_at_every_change_and_rates_are_the_stages(run):
    count, first, second = run.adam_steps, STEPS[0], STEPS[0] + STEPS[1]
    assert count[first - 1] == {"decoder": first, "implicit": 0, "voxels": first}
    assert count[first] == {"decoder": 1, "implicit": 1, "voxels": 0}
    assert count[second - 1] == {"decoder": STEPS[1], "implicit": STEPS[1], "voxels": 0}
    assert count[second] == {"decoder": 1, "implicit": 0, "voxels": 1}
    assert count[LAST]["voxels"] == STEPS[2]
    state = checkpoint(run.base_dir, LAST)["optimizers"]
    assert all(not optimizer["state"] for optimizer in state.values()), "moments of vertices that are gone"
    plan = StagePlan(*STEPS)
    for step, rates in run.rates.items():
        assert rates["voxels"] == rate(5e-3, plan, step, 0.1)
        assert rates["decoder"] == rates["implicit"] == rate(2e-3, plan, step, 0.1)


def test_the_stage_is_shown_in_viewer_and_log(run):
    assert run.shown[0] == "coarse, 8^3, 729 vertices"
    assert run.shown[STEPS[0]].startswith("implicit, 32^3, ")
    assert run.shown[LAST].startswith("explicit, 32^3, ")
    assert run.pipeline.model.stage_text.value.startswith("pruned, 32^3, ")
    lines = [line for line in run.log.splitlines() if line.strip()]
    found = [next(number for number, line in enumerate(lines) if line.startswith(text))
             for text in ("Stages: coarse 91 steps, implicit 60, explicit 200", "Coarse stage done: ", "Training on ",
                          "Implicit stage done: ", "Pruned: ")]  # fmt: skip
    assert found == sorted(found)


# ------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("start", "until"),
    [
        (60, 120),  # inside the coarse stage, over its end
        (90, 95),  # at the end of the coarse stage
        (120, 180),  # inside the implicit stage, over its end
        (150, 155),  # at the end of the implicit stage
        (330, LAST),  # inside the explicit stage, over the final pruning
    ],
)
def test_resume_inside_each_stage_changes_nothing(config, run, start, until):
    again = train(resumed(config, run.checkpoint_dir, start, LAST - start), None if until == LAST else until)
    assert list(again.losses) == list(range(start + 1, until + 1))
    off = max(abs(again.losses[step] - run.losses[step]) for step in again.losses)
    assert off <= 1e-6, f"losses differ by {off}"
    assert all(again.rates[step] == run.rates[step] for step in again.rates)
    assert all(again.adam_steps[step] == run.adam_steps[step] for step in again.adam_steps)
    if until % SAVED == 0 or until == LAST:
        mine, theirs = (checkpoint(folder.base_dir, until) for folder in (again, run))
        difference = largest_difference(model_state(mine), model_state(theirs))
        print(f"resumed at {start}: weights at {until} differ by {difference}, losses by {off}")
        assert difference <= 1e-6


def test_training_on_stretches_the_explicit_stage(config, run):
    again = train(resumed(config, run.checkpoint_dir, LAST, 8))
    model = again.pipeline.model
    assert model.plan == StagePlan(STEPS[0], STEPS[1], STEPS[2] + 8)
    assert model.stage == Stage.PRUNED
    assert 0 < len(model.vertex_ids) <= len(run.pipeline.model.vertex_ids)
    assert again.rates[LAST + 1]["voxels"] == rate(5e-3, model.plan, LAST + 1, 0.1)
    before = [run.losses[step] for step in range(LAST - 20, LAST)]
    assert max(again.losses.values()) < 2 * sum(before) / len(before), "no jump"


def test_a_run_that_ends_before_the_explicit_stage_can_go_on(config, run):
    short = train(resumed(config, run.checkpoint_dir, 60, 5))
    assert short.pipeline.model.stage == Stage.COARSE
    assert short.pipeline.model.plan == StagePlan(*STEPS)
    assert "ends in its coarse stage" in short.log
    again = train(resumed(config, short.checkpoint_dir, 65, LAST - 65), until=70)
    assert [again.losses[step] for step in range(66, 71)] == [run.losses[step] for step in range(66, 71)]


@pytest.mark.parametrize(("step", "begins"), [(120, Stage.IMPLICIT), (LAST, Stage.PRUNED)])
def test_imported_weights_train_on_in_their_own_stage(config, run, tmp_path, step, begins):
    """An import is saved as step 0, with the preset's plan."""
    state = checkpoint(run.base_dir, step)
    state["step"] = 0
    state["pipeline"]["_model.plan_steps"] = torch.tensor([20000, 40000, 40000])
    state["optimizers"] = {
        name: {"state": {}, "param_groups": group["param_groups"]} for name, group in state["optimizers"].items()
    }
    folder = tmp_path / "nerfstudio_models"
    folder.mkdir()
    torch.save(state, folder / "step-000000000.ckpt")
    again = train(resumed(config, folder, 0, 6))
    assert again.shown[1].startswith(begins.name.lower())
    assert again.pipeline.model.stage == Stage.PRUNED
    assert again.pipeline.model.plan.total == 7
    assert again.rates[1]["decoder"] <= 2e-3, "not the doubled rate of a coarse stage"
    assert max(again.losses.values()) < 0.1


# ------------------------------------------------------------------ pruning


def removed_weight(model: Any, keep: torch.Tensor, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Per ray: the sum of blending weights in voxels that are not kept."""
    segments, features = model.features_along(origins, directions)
    weights = blending_weights(model.decoder.density(features)[0], segments.ray, segments.rays)
    x, y, z = segments.voxel.unbind(1)
    return torch.zeros(segments.rays).index_add(0, segments.ray, weights * ~keep[z, y, x])


@torch.no_grad()
def test_pruning_costs_nothing_that_shows(run, saved):
    """Acceptance 5: the bound for each ray, 40 dB, and a third of the vertices at most."""
    final = model_state(checkpoint(run.base_dir, LAST))
    model = saved(final)
    keep, kept = model.mask.clone(), len(model.vertex_ids)
    manager = run.pipeline.datamanager
    rays = [manager.view_rays(view, reduced=False) for view in range(0, 16, 5)]
    origins, directions = (torch.cat(parts) for parts in zip(*rays, strict=True))
    pruned = model.get_outputs(bundle(origins, directions))["rgb"]
    model = saved(run.last_state)
    active = len(model.vertex_ids)
    whole = model.get_outputs(bundle(origins, directions))["rgb"]
    bound = removed_weight(model, keep, origins, directions)
    assert ((pruned - whole).abs().amax(dim=1) <= bound + 1e-5).all()
    figure = psnr(pruned, whole)
    print(f"pruning: {figure:.1f} dB; vertices {33**3} in the cube, {active} after coarse, {kept} left; "
          f"largest change {float((pruned - whole).abs().max()):.4f}")  # fmt: skip
    assert figure >= 40
    assert 3 * kept <= 33**3, "against the table of the original"
    assert active >= 1.5 * kept, "against the active vertices"


@torch.no_grad()
def test_pruning_what_never_weighs_anything_changes_no_training_ray(run, saved):
    model = saved(run.last_state)
    manager = run.pipeline.datamanager
    origins, directions = manager.view_rays(3, reduced=False)
    whole = model.get_outputs(bundle(origins, directions))["rgb"]
    before = len(model.vertex_ids)
    model.prune(stages.weight_map(model, manager, reduced=False) > 0)
    assert len(model.vertex_ids) < before
    pruned = model.get_outputs(bundle(origins, directions))["rgb"]
    assert (pruned - whole).abs().max() <= 1e-6


@torch.no_grad()
def test_nothing_is_pruned_when_nothing_would_be_left(run, saved, monkeypatch):
    model = saved(run.last_state)
    monkeypatch.setattr(model.config, "threshold", 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages.finish(model, run.pipeline.datamanager, run.optimizers)
    assert largest_difference(before, model.state_dict()) == 0


def test_a_coarse_stage_that_finds_nothing_says_so(run, saved, monkeypatch):
    model = saved(60)
    monkeypatch.setattr(model.config, "threshold", 1.0)
    with pytest.raises(DataError, match="left no voxel occupied"):
        stages.enter_implicit(model, run.pipeline.datamanager)


@torch.no_grad()
def test_pixels_that_mask_files_exclude_keep_no_voxel(run, saved, tmp_path, monkeypatch):
    """Half of each photo is masked out: the maps are those of the other half's rays alone."""
    model, manager = saved(90), run.pipeline.datamanager
    mask = torch.zeros(64, 64, 3, dtype=torch.uint8)
    mask[:, :32] = 255
    write_image(tmp_path / "mask.png", mask.numpy())
    for reduced in (True, False):
        everything = stages.weight_map(model, manager, reduced)
        with monkeypatch.context() as patch:
            outputs = manager.train_dataset._dataparser_outputs
            patch.setattr(outputs, "mask_filenames", [tmp_path / "mask.png"] * 16)
            patch.setattr(manager, "_allowed", None)
            found = stages.weight_map(model, manager, reduced)
        expected = torch.zeros_like(everything)
        side = 16 if reduced else 64
        for view in range(16):
            origins, directions = (part.view(side, side, 3)[:, : side // 2].reshape(-1, 3)
                                   for part in manager.view_rays(view, reduced))  # fmt: skip
            segments, features = model.features_along(origins, directions)
            weights = blending_weights(model.decoder.density(features)[0], segments.ray, segments.rays)
            x, y, z = segments.voxel.numpy().T
            np.maximum.at(expected.numpy(), (z, y, x), weights.numpy())
        assert torch.allclose(found, expected, atol=1e-6)
        assert (found <= everything).all()
        assert (found < everything).any()


@torch.no_grad()
def test_a_stride_looks_at_fewer_rays_but_at_every_column(run, saved):
    model, manager = saved(90), run.pipeline.datamanager
    counted = {stride: sum(len(o) for o, _ in stages.training_rays(manager, False, stride, 1000, "Counting"))
               for stride in (1, 2, 3)}  # fmt: skip
    assert counted[1] == 16 * 64**2
    assert counted[2] == 16 * 32**2
    assert counted[3] < counted[1] / 8
    everything, some = (stages.weight_map(model, manager, False, stride) for stride in (1, 2))
    assert (some <= everything + 1e-6).all()


@torch.no_grad()
def test_chosen_pixels_are_those_whose_rays_cross_occupied_voxels(run, saved):
    model, manager = saved(120), run.pipeline.datamanager
    masks = stages.pixel_masks(model, manager, model.mask)
    cells = model.grid.at(8)
    for view in (0, 7):
        origins, directions = cells.to_grid(*manager.view_rays(view, reduced=False))
        places = origins[:, None] + torch.linspace(2.0, 6.5, 3000)[:, None] * directions[:, None]
        inside = ((places >= 0) & (places < 8)).all(dim=2)
        x, y, z = places.long().clamp(0, 7).unbind(2)
        met = (model.mask[z, y, x] & inside).any(dim=1)
        kept = masks.view(view)
        assert not (met & ~kept).any(), "a dense sampling finds no ray that was left out"
        assert (kept & ~met).float().mean() < 0.01, "and hardly any that only grazes a corner between samples"


# ------------------------------------------------------------------ rendering the trained model, loading


@torch.no_grad()
def test_realtime_renders_what_the_exact_path_renders(run, saved):
    """Acceptance 8: within the weights it skips plus its stop threshold, and 45 dB."""
    model = saved(LAST)
    cameras = run.pipeline.datamanager.eval_dataset.cameras
    fast = model.get_outputs_for_camera(cameras[0:1])
    model.exact = True
    exact = model.get_outputs_for_camera(cameras[0:1])
    model.exact = False
    rays = cameras[0:1].generate_rays(camera_indices=0, keep_shape=True).flatten()
    segments, features = model.features_along(rays.origins, rays.directions)
    raw_sigma, _ = model.decoder.density(features)
    faint = 1 - torch.exp(-torch.relu(raw_sigma)) < model.config.stop
    weights = blending_weights(raw_sigma, segments.ray, segments.rays)
    skipped = torch.zeros(segments.rays).index_add(0, segments.ray, weights * faint).view(64, 64)
    difference = (fast["rgb"] - exact["rgb"]).abs().amax(dim=2)
    figure = psnr(fast["rgb"], exact["rgb"])
    print(f"real-time against exact: {figure:.1f} dB, at most {float(difference.max()):.4f}")
    assert (difference <= skipped + model.config.stop + 1e-5).all()
    assert figure >= 45
    assert fast["hits"].sum() <= exact["hits"].sum()
    assert exact["rgb"].std() > 0.1, "there is something to see"


def test_checkpoints_of_every_stage_load_into_a_model_of_any_other(config, run):
    """In place, with weights_only, in an order that grows and shrinks everything."""
    model = make_model()
    identity = [id(parameter) for parameter in model.parameters()]
    for step in (LAST, 60, 120, 240, 60, LAST, 120, 120, LAST, 240):
        state = model_state(checkpoint(run.base_dir, step))
        model.load_state_dict(state)
        assert largest_difference(dict(model.state_dict()), state) == 0
        assert model.stage == Stage(int(state["stage_code"]))
        assert [id(parameter) for parameter in model.parameters()] == identity
        origins = torch.tensor([[0.1, 0.2, 4.0]])
        assert model.get_outputs(bundle(origins, torch.tensor([[0.0, 0.0, -1.0]])))["rgb"].isfinite().all()


def test_masks_of_the_coarse_stage_hold_what_the_final_ones_hold(run, saved):
    model = saved(LAST)
    fine = model.mask.clone()
    assert not (fine & ~upsample(saved(240).mask, 32)).any()


def test_a_black_background_reaches_the_model(scene, tmp_path):
    made = run_config(scene, tmp_path, (6, 2, 2))
    made.pipeline.datamanager.background = "black"
    trainer = train(made)
    model = trainer.pipeline.model
    assert model.background.tolist() == [0.0, 0.0, 0.0]
    assert trainer.pipeline.datamanager.train_dataset.get_data(0)["image"][0, 0].tolist() == [0.0, 0.0, 0.0]
    up = model.get_outputs(bundle(torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[0.0, 0.0, 1.0]])))
    assert up["rgb"].tolist() == [[0.0, 0.0, 0.0]]
