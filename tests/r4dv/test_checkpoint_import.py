"""Models of the original become runs: exact numbers, the original's axes and cameras, refusals (acceptance A22)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import capture_runs  # noqa: F401  (silences nerfstudio's imports first)
import numpy as np
import pytest
import torch
from capture_runs import NOISE
from released_checkpoints import Original, Tensors, make_state, save_npz, save_pt

from core_ns.errors import DataError
from core_ns.frames import transform_points
from core_ns.runs import load_run
from dataparsers.easymocap_options import SequenceOptions
from dataparsers.easymocap_sequence import open_sequence
from dataparsers.point_ply import read_ply
from r4dv_ns import checkpoint_import
from r4dv_ns.appearance import Source, sample_sources
from r4dv_ns.checkpoint_import import Constants, import_released, original_times
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.hull_run import ensure_hulls
from r4dv_ns.points import spatial_order
from r4dv_ns.released_config import r4dv_released

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
PIPELINE = "r4dv_ns.pipeline.R4DVPipelineConfig"


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """nerfstudio looks methods up by name."""
    from nerfstudio.configs.method_configs import all_methods

    monkeypatch.setitem(all_methods, "r4dv-released", r4dv_released.config)


@pytest.fixture(scope="module")
def clouds(recording, tmp_path_factory) -> list[torch.Tensor]:
    """Points on the subject, files' world."""
    folder = tmp_path_factory.mktemp("points")
    meta = ensure_hulls(open_sequence(recording), folder, HullOptions(points=150, workers=1), progress=False)
    return [torch.from_numpy(read_ply(meta.points(frame)).xyz).float() for frame in range(4)]


def box_of(clouds: list[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat(clouds)
    return torch.stack([joined.amin(dim=0) - 0.05, joined.amax(dim=0) + 0.05])


def half(state: Tensors) -> Tensors:
    """What is left of it in a file of 16-bit floats."""
    return {name: value.half().float() if value.is_floating_point() else value for name, value in state.items()}


def opened(config: Path) -> tuple[Any, Any]:
    return load_run(config, PIPELINE)


# ------------------------------------------------------------------ A22


def test_a_charged_file_is_imported_exactly_and_seen_as_the_original_saw_it(recording, clouds, tmp_path, capsys):
    """A22: positions, networks and (by the published rule) planes."""
    state = make_state(clouds, box_of(clouds), 8)
    file = save_npz(tmp_path / "latest.npz", state)
    config = import_released(file, recording, tmp_path / "out")
    said = capsys.readouterr().out
    assert "4 frames of 150 points, epoch 1599, a charge" in said
    assert "published rule" in said
    state = half(state)
    pipeline, model = opened(config)
    stored = torch.load(config.parent / "nerfstudio_models" / "step-000000000.ckpt", weights_only=True)["pipeline"]
    for index in range(4):
        cloud = state[f"sampler.pcds.{index}"]
        assert torch.equal(stored[f"_model.points.points.{index}"], cloud[spatial_order(cloud)])
    pairs = {"geo_regressor.mlp.linears": ("geometry.mlp", ("0", "2", "4")),
             "ibr_regressor.rgb_mlp.mlp.linears": ("blend", ("hidden", "out")),
             "ibr_regressor.sh_mlp.mlp.linears": ("sh", ("hidden", "out"))}  # fmt: skip
    for theirs, (ours, layers) in pairs.items():
        for index, layer in enumerate(layers):
            for kind in ("weight", "bias"):
                assert torch.equal(stored[f"_model.{ours}.{layer}.{kind}"], state[f"sampler.{theirs}.{index}.{kind}"])
    assert torch.equal(stored["_model.bounds"], state["sampler.xyz_embedder.bounds"])
    original, sequence = Original(state), pipeline.datamanager.sequence
    for frame in (0, 2, 3):
        found = model.state(frame, sequence.times[frame])
        xyz = original.points(frame, frame / 3)
        order = spatial_order(xyz.float())
        feature = original.features("xyz_embedder", xyz[order], frame / 3, 2, "cat")
        radius, alpha = original.geometry(feature)
        np.testing.assert_allclose(found.features.detach().numpy(), feature.numpy(), atol=2e-5)
        np.testing.assert_allclose(found.radius.detach().numpy(), radius.numpy(), rtol=1e-4)
        np.testing.assert_allclose(found.alpha.detach().numpy(), alpha.numpy(), rtol=1e-4)
        np.testing.assert_allclose(found.coefficients.detach().numpy(), original.harmonics(feature).numpy(), atol=1e-4)
    image = torch.rand(3, 48, 36, generator=torch.Generator().manual_seed(3))
    K = torch.tensor([[40.0, 0, 18], [0, 40, 24], [0, 0, 1]])
    w2c = torch.eye(4)
    w2c[2, 3] = 3.0
    with torch.no_grad():
        found = model.state(1, sequence.times[1])
        features = model.feature_net(image)
        # At the right and lower edge ours takes what follows to be nothing, so that padding changes nothing (4.4).
        inner = (slice(None), slice(0, -5), slice(0, -5))
        np.testing.assert_allclose(features[inner].numpy(), original.feature_map(image)[inner].numpy(), atol=2e-4)
        g, _ = sample_sources([Source(image, K, w2c, None, 0)], [features], found.xyz)
        sampled = original.sample(image, K, w2c, found.xyz.double())
        np.testing.assert_allclose(g[0].numpy(), sampled.numpy(), atol=2e-4)
        logit = original.logit(found.features.double(), sampled)
        np.testing.assert_allclose(model.blend.logits(found.features, g)[0].numpy(), logit.numpy(), atol=1e-3)
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    picture = model.get_outputs_for_camera(camera)
    assert bool(picture["rgb"].isfinite().all())
    assert picture["accumulation"].max() > 1e-3


def test_a_training_checkpoint_keeps_its_motion_and_trains_on(recording, clouds, tmp_path):
    """The residual is in world units; ``ns-train --load-dir`` goes on from it, without carving."""
    state = make_state(clouds, box_of(clouds), 8, levels=4, aggregate="sum", motion=True)
    config = import_released(save_pt(tmp_path / "latest.pt", state), recording, tmp_path / "out")
    pipeline, model = opened(config)
    original = Original(state)
    xyz = original.points(2, 2 / 3)
    order = spatial_order(state["sampler.pcds.2"])
    time = pipeline.datamanager.sequence.times[2]
    np.testing.assert_allclose(model.state(2, time).xyz.detach().numpy(), xyz[order].numpy(), atol=1e-5)
    assert model.config.aggregate == "sum"
    assert model.config.plane_levels == 4

    import yaml

    again = yaml.load(config.read_text(), Loader=yaml.Loader)  # as nerfstudio's tools do
    again.load_dir, again.timestamp, again.max_num_iterations = config.parent / "nerfstudio_models", "more", 2
    again.machine.device_type, again.vis = "cpu", "tensorboard"
    again.steps_per_eval_image = again.steps_per_save = again.logging.steps_per_log = 10**6
    trainer = again.setup(local_rank=0, world_size=1)
    trainer.setup()
    np.testing.assert_allclose(
        trainer.pipeline.model.state(2, time).xyz.detach().numpy(), xyz[order].numpy(), atol=1e-5
    )
    before = trainer.pipeline.model.planes.spatial[0].detach().clone()
    loss = trainer.train_iteration(trainer._start_step)[0]
    assert bool(torch.isfinite(loss))
    assert not torch.equal(before, trainer.pipeline.model.planes.spatial[0])


@pytest.mark.parametrize("kind", ["joint", "legacy", "dense"])
def test_other_files_of_the_original(recording, clouds, tmp_path, capsys, kind):
    box = box_of(clouds)
    if kind == "joint":
        state = make_state(clouds, box, 8, prefix="sampler.fg_sampler.")
        state |= make_state(clouds[:1], box, 8, prefix="sampler.bg_sampler.", seed=1)
        prefix = "sampler.fg_sampler."
    else:
        state, prefix = make_state(clouds, box, 8, legacy=kind == "legacy", dense=kind == "dense"), "sampler."
    state[f"{prefix}rgbws.0"] = torch.zeros(3)
    state["module.sampler.unheard"] = torch.zeros(3)
    config = import_released(save_npz(tmp_path / "latest.npz", state, half=False), recording, tmp_path / "out")
    said = capsys.readouterr().out
    assert ("only the subject" in said) == (kind == "joint")
    assert "Left out: 1 tensors of no known use (sampler.unheard)" in said
    pipeline, model = opened(config)
    cloud = state[f"{prefix}pcds.3"]
    assert torch.equal(model.points(3), cloud[spatial_order(cloud)])
    if kind == "dense":
        assert "published rule" not in said
        for level in range(2):
            theirs = state[f"{prefix}spatial_embedding.{level}".replace("sampler.", "sampler.xyz_embedder.")]
            assert torch.equal(model.planes.spatial[level], theirs.permute(0, 2, 3, 1))
    assert bool(model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[0:1])["rgb"].isfinite().all())


def test_points_in_the_originals_aligned_axes_are_recognised(recording, clouds, tmp_path, capsys):
    aligned = open_sequence(recording, SequenceOptions(orientation="aligned"))
    assert not np.allclose(aligned.transform, np.eye(4), atol=0.1)
    turned = [torch.from_numpy(transform_points(cloud.numpy(), aligned.transform)).float() for cloud in clouds]
    file = save_npz(tmp_path / "latest.npz", make_state(turned, box_of(turned), 8), half=False)
    config = import_released(file, recording, tmp_path / "out")
    assert "aligned 9" in capsys.readouterr().out
    pipeline, model = opened(config)
    assert pipeline.datamanager.sequence.options.orientation == "aligned"
    np.testing.assert_allclose(pipeline.datamanager.sequence.transform, aligned.transform)
    assert torch.equal(model.points(0), turned[0][spatial_order(turned[0])])
    points = read_ply(config.parent / "points" / "surfs" / "000000.ply").xyz
    np.testing.assert_allclose(points, clouds[0].numpy(), atol=1e-5)
    assert model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[0:1])["accumulation"].max() > 1e-3
    with pytest.raises(DataError, match=r"puts \d+ % of its points onto the subject"):
        import_released(file, recording, tmp_path / "wrong", alignment="none")
    assert not (tmp_path / "wrong").exists()


def test_camera_corrections_are_the_originals(recording, clouds, tmp_path):
    generator = torch.Generator().manual_seed(2)
    cameras = 0.02 * torch.randn(1, 8, 6, generator=generator)
    state = make_state(clouds, box_of(clouds), 8, cameras=cameras)
    config = import_released(save_npz(tmp_path / "a.npz", state, half=False), recording, tmp_path / "out")
    pipeline, model = opened(config)
    sequence = pipeline.datamanager.sequence
    for view in range(8):
        w2c = torch.from_numpy(sequence.views[view].w2c(0))
        x, y, z = cameras[0, view, 3:].double()
        zero = torch.zeros(())
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
        step = torch.eye(4, dtype=torch.float64)
        step[:3, :3], step[:3, 3] = torch.linalg.matrix_exp(cross), cameras[0, view, :3].double()
        corrected = model.camera_refinement(w2c, view)
        np.testing.assert_allclose(corrected.detach().numpy(), (step @ w2c).numpy(), atol=1e-6)
    state["camera.pose_resd"] = cameras[:, :5]
    with pytest.raises(DataError, match=r"corrects 5 cameras.*--view-sample"):
        import_released(save_npz(tmp_path / "b.npz", state), recording, tmp_path / "no")
    state["camera.pose_resd"] = torch.cat([cameras, 2 * cameras])
    with pytest.raises(DataError, match="differs between frames"):
        import_released(save_npz(tmp_path / "c.npz", state), recording, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_times_are_those_of_the_original(recording):
    """It divides by the end of the range, which a step may not reach (spec r4dv 10.1, B7)."""
    for sample, expected in (
        ((0, None, 1), [0, 1 / 3, 2 / 3, 1]), ((0, 4, 2), [0, 2 / 3]), ((1, None, 2), [0, 1]), ((0, 2), [0, 1]),
        ((2, 3, 1), [0]),
    ):  # fmt: skip
        options = SequenceOptions(frame_sample=sample)
        assert original_times(open_sequence(recording, options), options) == pytest.approx(expected)


# ------------------------------------------------------------------ refusals and commands


def test_a_recording_that_does_not_fit_is_refused_and_nothing_written(recording, clouds, tmp_path):
    box, out = box_of(clouds), tmp_path / "out"
    file = save_npz(tmp_path / "three.npz", make_state(clouds[:3], box, 8))
    with pytest.raises(DataError, match=r"has 3 frames, the recording 4.*--frame-sample 0 3 1"):
        import_released(file, recording, out)
    far = [cloud + 50 for cloud in clouds]
    with pytest.raises(DataError, match=r"puts 0 % of its points"):
        import_released(save_npz(tmp_path / "far.npz", make_state(far, box_of(far), 8)), recording, out)
    with pytest.raises(DataError, match="radius-min"):
        import_released(file, recording, out, constants=Constants(radius_min=0.2))
    with pytest.raises(DataError, match="not a folder"):
        import_released(file, tmp_path / "nowhere", out)
    with pytest.raises(DataError, match=r"--orientation.*--alignment"):  # which would have been passed over
        import_released(file, recording, out, options=SequenceOptions(orientation="up"))
    assert not out.exists()


def test_a_part_of_the_frames_and_a_step_can_be_imported(recording, clouds, tmp_path):
    state = make_state([clouds[0], clouds[2]], box_of(clouds), 8)
    options = SequenceOptions(frame_sample=(0, 4, 2), eval_views=("none",), ratio=(0.5,))
    config = import_released(
        save_npz(tmp_path / "a.npz", state, half=False), recording, tmp_path / "out", options=options
    )
    pipeline, model = opened(config)
    original = Original(state)
    xyz = state["sampler.pcds.1"][spatial_order(state["sampler.pcds.1"])]
    feature = original.features("xyz_embedder", xyz, 2 / 3, 2, "cat")
    found = model.state(1, 1.0)
    np.testing.assert_allclose(found.features.detach().numpy(), feature.numpy(), atol=2e-5)
    assert len(pipeline.datamanager.sequence.train_views) == 8


def test_a_recording_without_masks_will_do(recording, clouds, tmp_path, capsys):
    """To look at a model no masks are needed, nor to train on: the points are there."""
    file = save_npz(tmp_path / "a.npz", make_state(clouds, box_of(clouds), 8))
    config = import_released(file, recording, tmp_path / "out", options=SequenceOptions(masks_dir="none"))
    assert "none 100 %" in capsys.readouterr().out
    pipeline, _ = opened(config)
    assert not pipeline.datamanager.sequence.has_masks
    pipeline.config.check_data()


def test_the_printed_command_names_what_differs_from_the_defaults(recording, clouds, tmp_path, capsys):
    state = make_state(clouds[:2], box_of(clouds), 8, levels=2)
    config = import_released(
        save_npz(tmp_path / "a.npz", state), recording, tmp_path / "out",
        options=SequenceOptions(frame_sample=(0, 2, 1)), constants=Constants(sh_limit=1.0),
    )  # fmt: skip
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Train on:"))
    run = config.parent
    assert f"ns-train r4dv-released --data {recording} --load-dir {run}/nerfstudio_models" in line
    assert f"--pipeline.datamanager.points-dir {run}/points" in line
    for option in ("--pipeline.model.sh-limit 1.0", "--pipeline.model.aggregate cat", "--pipeline.model.motion False",
                   "easymocap-data --frame-sample 0 2 1", "--fill-outside-mask True", "--cameras plain"):  # fmt: skip
        assert option in line
    assert "load_dir: null" in config.read_text()
    assert checkpoint_import.BELONG == 0.5
