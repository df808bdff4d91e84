"""The whole model on generated recordings (acceptance A12, A16, A17, A18; spec r4dv 4, 8.4)."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE, held_out, run_config, train
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from PIL import Image

from core_ns.errors import DataError
from dataparsers.moving_scene import build_moving_scene, image_centroid

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory) -> Any:
    """A finished trainer of the juggler after 120 steps."""
    return train(run_config(recording, tmp_path_factory.mktemp("outputs"), 120))


@pytest.fixture
def model(run) -> Any:
    """Its model, drawing as the tools draw."""
    run.pipeline.eval()
    yield run.pipeline.model
    run.pipeline.model.config.time_mode, run.pipeline.model.config.background = "nearest", 0.0
    run.pipeline.model.config.occlusion = True
    run.pipeline.model._cache._values.clear()


def camera(run: Any, index: int = 0, **changes: Any) -> Cameras:
    """A held-out camera without the metadata that a viewer's cameras do not have."""
    chosen = run.pipeline.datamanager.eval_dataset.cameras[index : index + 1]
    fields = {name: getattr(chosen, name) for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height")}
    return Cameras(**(fields | {"times": chosen.times} | changes))


# ------------------------------------------------------------------ learning


def test_training_lowers_the_loss_and_every_number_stays_finite(run):
    first, last = list(run.quality.values())[:20], list(run.quality.values())[-20:]
    assert np.mean(last) > np.mean(first) + 2
    assert all(math.isfinite(value) for value in run.losses.values())
    assert all(bool(parameter.isfinite().all()) for parameter in run.pipeline.model.parameters())
    assert held_out(run) > 15


def test_a_static_scene_is_learned_in_150_steps(ball, tmp_path):
    """A17."""
    config = run_config(ball, tmp_path, 150, static=True, aggregate="cat")
    config.pipeline.datamanager.dataparser.frame_sample = (0, 1, 1)
    trainer = train(config)
    quality, masked = list(trainer.whole.values()), list(trainer.quality.values())
    last, last_masked = np.mean(quality[-10:]), np.mean(masked[-10:])
    print(
        f"A17: training PSNR {last:.2f} dB, inside the mask {last_masked:.2f}, held out {held_out(trainer, 'psnr'):.2f}"
    )
    assert last > 22
    assert last_masked > 18
    assert last > np.mean(quality[:10]) + 2
    assert not len(trainer.pipeline.model.planes.temporal), "no planes along time"


@pytest.mark.slow
def test_a_moving_ball_is_followed(ball, tmp_path):
    """A18: the rendered centroid follows the truth within a pixel in a held-out view."""
    trainer = train(run_config(ball, tmp_path, 600))
    quality, masked = held_out(trainer, "psnr"), held_out(trainer)
    scene = build_moving_scene(cameras=10, frames=6, size=(64, 64), subject="ball", background="black")
    model, sequence = trainer.pipeline.model, trainer.pipeline.datamanager.sequence
    view = sequence.eval_views[0]
    off = []
    for frame in range(6):
        w2c = sequence.views[view].w2c(frame)
        lens = scene.cameras[sequence.views[view].name].lens
        truth = image_centroid(scene.render(lens, w2c, frame, 2).coverage.numpy())
        drawn = camera(trainer, times=torch.tensor([[sequence.times[frame]]]))
        seen = image_centroid(model.get_outputs_for_camera(drawn)["accumulation"][..., 0].numpy())
        off.append(float(np.linalg.norm(seen - truth)))
    print(
        f"A18: held-out PSNR {quality:.2f} dB, inside the mask {masked:.2f}; centroid off by {max(off):.2f} px at most"
    )
    assert quality > 20
    assert masked > 17
    assert max(off) < 1


def test_the_rate_of_positions_follows_the_size_of_the_scene(run):
    """Rates are for a box of 2 m diagonal; the configuration keeps what the user gave."""
    model = run.pipeline.model
    diagonal = float((model.bounds[1] - model.bounds[0]).norm())
    given = run.config.optimizers["points"]["optimizer"].lr
    assert given == 5e-4
    group = run.optimizers.optimizers["points"].param_groups[0]
    assert group["initial_lr"] == pytest.approx(given * diagonal / 2, rel=1e-5)
    assert run.optimizers.optimizers["planes"].param_groups[0]["initial_lr"] == 5e-3


# ------------------------------------------------------------------ no leak


def test_changing_a_held_out_photo_changes_nothing_in_its_picture(recording, run, tmp_path):
    """A16: bitwise equal, with another photo and another mask in the place of the held-out ones."""
    run.pipeline.eval()
    model, manager = run.pipeline.model, run.pipeline.datamanager
    before = model.get_outputs_for_camera(camera(run))["rgb"]
    copied = tmp_path / "copied"
    shutil.copytree(recording, copied)
    for view in manager.sequence.eval_views:
        name = manager.sequence.views[view].name
        for file in (copied / "images" / name).iterdir():
            Image.fromarray(np.full((96, 72, 3), 255, np.uint8)).save(file)
        for file in (copied / "masks" / name).iterdir():
            Image.fromarray(np.full((96, 72), 255, np.uint8)).save(file)
    other = train(run_config(copied, tmp_path / "outputs", 3))
    same = train(run_config(recording, tmp_path / "outputs", 3, name="same"))
    for trainer in (other, same):
        trainer.pipeline.eval()
    a, b = (trainer.pipeline.model.get_outputs_for_camera(camera(run))["rgb"] for trainer in (other, same))
    assert torch.equal(a, b), "hull, training and sources"
    assert not torch.equal(a, before)
    with pytest.raises(ValueError, match="held-out view"):
        manager.source_bank.get(0, manager.sequence.eval_views)


# ------------------------------------------------------------------ time


def test_time_chooses_the_nearest_frame_and_no_time_the_first(run, model):
    times = model.sequence.times
    pictures = [model.get_outputs_for_camera(camera(run, times=torch.tensor([[time]])))["rgb"] for time in times]
    for one, other in pairwise(pictures):
        assert (one - other).abs().mean() > 1e-3, "the juggler moves"
    without = camera(run, times=None)
    assert torch.equal(model.get_outputs_for_camera(without)["rgb"], pictures[0])
    close = camera(run, times=torch.tensor([[times[2] + 0.1]]))
    assert torch.equal(model.get_outputs_for_camera(close)["rgb"], pictures[2])


def test_blending_frames_mixes_the_two_pictures(run, model):
    times = model.sequence.times
    one, other = (model.get_outputs_for_camera(camera(run, times=torch.tensor([[t]])))["rgb"] for t in times[1:3])
    model.config.time_mode = "blend"
    middle = camera(run, times=torch.tensor([[(times[1] + times[2]) / 2]]))
    torch.testing.assert_close(model.get_outputs_for_camera(middle)["rgb"], (one + other) / 2, atol=1e-5, rtol=0)
    exact = model.get_outputs_for_camera(camera(run, times=torch.tensor([[times[1]]])))["rgb"]
    torch.testing.assert_close(exact, one, atol=1e-5, rtol=0)


# ------------------------------------------------------------------ pictures


def test_outputs_are_maps_that_the_tools_take(run, model):
    outputs = model.get_outputs_for_camera(camera(run))
    for name, channels in {
        "rgb": 3,
        "accumulation": 1,
        "depth": 1,
        "rgb_ibr": 3,
        "sh_residual": 1,
        "layers": 1,
    }.items():
        assert outputs[name].shape == (96, 72, channels), name
        assert outputs[name].dtype == torch.float32
        assert bool(outputs[name].isfinite().all())
    assert set(outputs) == {"rgb", "accumulation", "depth", "rgb_ibr", "sh_residual", "layers"}
    for size in ((2, 2), (5, 3)):
        small = camera(run, width=torch.tensor([[size[0]]]), height=torch.tensor([[size[1]]]))
        assert model.get_outputs_for_camera(small)["rgb"].shape == (size[1], size[0], 3)


def test_depth_is_the_distance_to_the_subject(run, model):
    """The cameras stand 2.9 m from what they look at; the subject is less than 1 m deep."""
    outputs = model.get_outputs_for_camera(camera(run))
    seen = outputs["accumulation"][..., 0] > 0.9
    depth = outputs["depth"][..., 0]
    assert seen.any()
    assert 2.0 < float(depth[seen].min()) < float(depth[seen].max()) < 3.8
    nothing = outputs["accumulation"][..., 0] == 0
    assert nothing.any()
    assert (depth[nothing] == depth.max()).all(), "far away where nothing is"


def test_a_crop_box_cuts_points_and_shows_the_background_behind(run, model):
    whole = model.get_outputs_for_camera(camera(run))
    middle = model.bounds.mean(dim=0)
    box = OrientedBox.from_params(tuple(middle.tolist()), (0.0, 0.0, 0.0), (10.0, 10.0, 0.4))
    colour = torch.tensor([0.2, 0.4, 0.6])
    with background_color_override_context(colour):
        cut = model.get_outputs_for_camera(camera(run), obb_box=box)
    assert 0.05 < float(cut["accumulation"].sum() / whole["accumulation"].sum()) < 0.7
    empty = cut["accumulation"][..., 0] == 0
    assert torch.allclose(cut["rgb"][empty], colour.expand(int(empty.sum()), 3))


def test_rays_give_the_picture_of_their_camera(run, model):
    """``ns-export tsdf`` asks with rays."""
    asked = camera(run)
    outputs = model.get_outputs_for_camera_ray_bundle(asked.generate_rays(camera_indices=0, keep_shape=True))
    torch.testing.assert_close(outputs["rgb"], model.get_outputs_for_camera(asked)["rgb"], atol=2e-2, rtol=0)


def test_other_kinds_of_cameras_are_refused_in_one_line(run, model):
    with pytest.raises(DataError, match="perspective"):
        model.get_outputs_for_camera(camera(run, camera_type=CameraType.EQUIRECTANGULAR))


def test_in_a_browser_another_kind_of_camera_does_not_end_the_rendering(run, model, monkeypatch):
    """nerfstudio's render thread has no exception handler."""
    plain = model.get_outputs_for_camera(camera(run, times=None))["rgb"]
    monkeypatch.setattr(model.controls, "in_browser", lambda: True)
    shown = model.get_outputs_for_camera(camera(run, times=None, camera_type=CameraType.FISHEYE))["rgb"]
    assert torch.equal(shown, plain)


@pytest.mark.parametrize("changed", ["sh", "photo network", "points"])
def test_what_was_computed_for_other_weights_is_not_shown(run, model, changed):
    """Caches of features and colours follow every change of the weights, in place or not."""
    before = model.get_outputs_for_camera(camera(run))["rgb"]
    parameter = {"sh": model.sh.out.bias, "photo network": model.feature_net.smooth.weight,
                 "points": model.points.points[0]}[changed]  # fmt: skip
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        try:
            assert not torch.equal(model.get_outputs_for_camera(camera(run))["rgb"], before)
        finally:
            parameter.copy_(kept)
    assert torch.equal(model.get_outputs_for_camera(camera(run))["rgb"], before)


def test_cached_photo_features_are_those_of_a_fresh_look(run, model):
    photos = model._photos(0, model.sources.views[:2])
    fresh = [model.feature_net(photo.image, photo.valid).detach() for photo in photos]
    for _ in range(2):
        cached = model._maps(0, photos, False)
        assert all(torch.equal(one, other) and not one.requires_grad for one, other in zip(cached, fresh, strict=True))
    other_frame = model._maps(1, model._photos(1, model.sources.views[:2]), False)
    assert not any(torch.equal(one, other) for one, other in zip(cached, other_frame, strict=True))
    model.train()
    assert all(one.requires_grad for one in model._maps(0, photos, True))
    model.eval()


def test_training_takes_the_surface_of_the_last_steps(model):
    """Found with the first step after a checkpoint, kept for a while, then found anew; no gradient."""
    views, model._occlusion_period = model.sources.views[:2], 10
    photos, state = model._photos(0, views), model.state(0, 0.0)
    behind = replace(state, radius=state.radius / 4)  # a thinner surface: other points count as hidden
    kept = model.step
    try:
        model.step = 21
        first = model.hidden_in_training(0, photos, state)
        assert torch.equal(first, torch.stack([model._hidden(photo, state) for photo in photos]))
        assert 0 < (first > 0).float().mean() < 0.9
        assert not first.requires_grad
        model.step = 30
        front = model._front(photos[0], state)
        assert torch.equal(model.hidden_in_training(0, photos, behind)[0], model._hidden(photos[0], behind, front))
        model.step = 31
        fresh = model._hidden(photos[0], behind)
        assert torch.equal(model.hidden_in_training(0, photos, behind)[0], fresh)
        assert not torch.equal(fresh, model._hidden(photos[0], behind, front))
        model.config.occlusion = False
        assert model.hidden_in_training(0, photos, state) is None
    finally:
        model.step = kept


@pytest.mark.parametrize(("saved", "period"), [(500, 100), (250, 50), (70, 70), (7, 7)])
def test_a_surface_for_training_never_outlasts_a_checkpoint(model, saved, period):
    model._occlusion_period = model.config.occlusion_every
    trainer = SimpleNamespace(config=SimpleNamespace(steps_per_save=saved))
    model.get_training_callbacks(SimpleNamespace(trainer=trainer))
    assert model._occlusion_period == period


def test_hidden_photos_count_less_where_asked(run, model):
    model.config.occlusion = False
    before = model.get_outputs_for_camera(camera(run))["rgb"]
    model.config.occlusion = True
    model._cache._values.clear()
    after = model.get_outputs_for_camera(camera(run))["rgb"]
    assert not torch.equal(before, after)
    assert (before - after).abs().mean() < 0.05


def test_the_metric_of_the_original_flatters(run, model):
    outputs, batch = model.get_outputs_for_camera(camera(run)), run.pipeline.datamanager.eval_dataset.get_data(0)
    model.config.upstream_ssim = True
    metrics, _ = model.get_image_metrics_and_images(outputs, batch)
    model.config.upstream_ssim = False
    assert metrics["ssim"] < metrics["ssim_upstream"] <= 1
    assert "ssim_upstream" not in model.get_image_metrics_and_images(outputs, batch)[0]


# ------------------------------------------------------------------ checkpoints and cameras


def test_a_checkpoint_brings_its_own_points(run, tmp_path):
    """A model that was made without hulls takes everything from the checkpoint."""
    state = {name: value.clone() for name, value in run.pipeline.model.state_dict().items()}
    config = run.config.pipeline.model
    kept = run.pipeline.model
    fresh = config.setup(
        scene_box=kept.scene_box, num_train_data=1, metadata={"sequence": kept.sequence}, device="cpu", grad_scaler=None
    )
    assert len(fresh.points.points[0]) == 1
    fresh.load_state_dict(state)
    fresh.sources = kept.sources
    fresh.eval(), kept.eval()
    asked = camera(run, 1)
    assert torch.equal(fresh.get_outputs_for_camera(asked)["rgb"], kept.get_outputs_for_camera(asked)["rgb"])


def test_points_are_resown_where_the_error_is(recording, tmp_path):
    config = run_config(recording, tmp_path, 12, prune_every=5)
    from capture_runs import open_trainer

    trainer = open_trainer(config)
    model = trainer.pipeline.model
    with torch.no_grad():
        model.geometry.mlp[-1].weight[1] *= 0
        model.geometry.biases[1] = -6.0  # all opacities are below 0.02
    before = [points.detach().clone() for points in model.points.points]
    trainer.config.viewer.quit_on_train_completion = True
    trainer.train()
    moved = [
        int(((points - old).norm(dim=1) > 0.05).sum()) for points, old in zip(model.points.points, before, strict=True)
    ]
    assert max(moved) > 500
    assert all(points.shape == old.shape for points, old in zip(model.points.points, before, strict=True))


def test_camera_refinement_gets_a_gradient_for_the_target_only(recording, tmp_path):
    from capture_runs import open_trainer

    config = run_config(recording, tmp_path, 2)
    config.pipeline.model.camera_refinement.mode = "SO3xR3"
    trainer = open_trainer(config)
    model, manager = trainer.pipeline.model, trainer.pipeline.datamanager
    asked, batch = manager.next_train(0)
    model.train()
    loss = sum(model.get_loss_dict(model.get_outputs(asked), batch).values())
    loss.backward()
    gradient = model.camera_refinement.adjustment.grad.abs().sum(dim=1)
    view = int(asked.metadata["view_idx"])
    assert gradient[view] > 0
    assert float(gradient.sum() - gradient[view]) == 0


def test_without_masks_a_run_refuses_with_the_way_out(recording, tmp_path):
    copied = tmp_path / "bare"
    shutil.copytree(recording, copied)
    shutil.rmtree(copied / "masks")
    with pytest.raises(SystemExit, match="mask") as ended:
        run_config(copied, tmp_path / "outputs", 3).save_config()
    assert str(ended.value.code).startswith("DataError: ")
    assert not (tmp_path / "outputs").exists()


def test_the_number_of_steps_follows_from_the_frames(recording, tmp_path, capsys):
    from r4dv_ns.config import FEWEST_STEPS, FULL_SCHEDULE

    for full, steps in ((False, FEWEST_STEPS), (True, FULL_SCHEDULE)):
        config = run_config(recording, tmp_path / "outputs", 0)
        config.full_schedule, config.dry_run = full, True
        with pytest.raises(SystemExit) as ended:
            config.save_config()
        assert ended.value.code == 0
        assert config.max_num_iterations == steps
        printed = capsys.readouterr().out
        assert f"{steps} steps" in printed
        assert "memory:" in printed
    assert not (tmp_path / "outputs").exists(), "a dry run writes nothing"
