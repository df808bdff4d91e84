"""Training batches and nerfstudio's contracts: what a step gets, where it may not come from, that nothing is held."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from frame_managers import CountedDecodes, open_manager, same, stream
from frame_sequences import BOX, NOISE, write_ball
from nerfstudio.utils import comms

from core_ns.errors import DataError
from core_ns.frames import w2c_opencv_from_c2w_opengl

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven views of five frames, its hulls made."""
    folder = write_ball(tmp_path_factory.mktemp("data") / "ball")
    open_manager(folder).close()
    return folder


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> CountedDecodes:
    return CountedDecodes(monkeypatch)


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("orientation", ["none", "up"])
def test_a_batch_is_a_cut_out_photo_with_the_camera_that_took_it(ball: Path, orientation: str):
    manager = open_manager(ball, parser={"orientation": orientation}, crop_pad=3)
    sequence = manager.sequence
    for step in range(6):
        camera, batch = manager.next_train(step)
        frame, view = batch["frame_idx"], batch["view_idx"]
        x, y, width, height = batch["crop_xywh"]
        photo = sequence.decode(view, frame)
        assert batch["full_size"] == (72, 56)
        assert width < 72
        assert camera.shape == (1,)
        assert (int(camera.width), int(camera.height)) == (width, height)
        window = (slice(y, y + height), slice(x, x + width))
        np.testing.assert_array_equal(batch["image"].numpy(), photo.image[window].astype(np.float32) / 255)
        assert photo.mask is not None
        np.testing.assert_array_equal(batch["mask"].numpy()[..., 0], photo.mask[window].astype(np.float32) / 255)
        assert batch["valid"].dtype == torch.bool
        assert batch["valid"].shape == (height, width, 1)
        assert batch["valid"].all()
        # All foreground lies in the crop: the hulls' box holds the ball.
        assert batch["mask"].sum() == (photo.mask / 255).sum()
        assert camera.metadata is not None
        assert camera.metadata["view_idx"].tolist() == [[view]]
        assert camera.metadata["frame_idx"].tolist() == [[frame]]
        assert camera.metadata["sources"].tolist() == [batch["sources"]]
        assert camera.times is not None
        assert float(camera.times) == pytest.approx(sequence.times[frame])
        index = batch["image_idx"]
        assert manager.train_dataset.image_filenames[index] == sequence.image_path(view, frame)
        # The target's own camera, seen as a source, is the same camera.
        source = manager.source_bank.get(frame, [view])[0]
        w2c = w2c_opencv_from_c2w_opengl(camera.camera_to_worlds[0].double().numpy())
        np.testing.assert_allclose(w2c[:3], source.w2c.numpy()[:3], atol=2e-6)
        np.testing.assert_allclose(camera.get_intrinsics_matrices()[0].numpy(), source.K.numpy(), atol=1e-5)
        assert torch.equal(source.image, batch["image"].permute(2, 0, 1))
    manager.close()


def test_sources_are_near_training_views_and_seldom_the_target(ball: Path):
    manager = open_manager(ball, sources=3)
    draws = [manager.draw(step) for step in range(600)]
    views = manager.sequence.train_views
    for draw in draws:
        assert len(set(draw.sources)) == 3
        assert set(draw.sources) <= set(views)
        centres = manager.source_bank.centres(draw.frame)
        distances = np.linalg.norm(centres - centres[views.index(draw.view)], axis=1)
        allowed = {views[row] for row in np.argsort(distances, kind="stable")[:5]}
        assert set(draw.sources) <= allowed
    own = np.mean([draw.view in draw.sources for draw in draws])
    assert 0.03 < own < 0.15, "kept in the pool of 4 with probability 0.1, then 3 of 4 are taken"
    manager.close()


def test_batches_depend_on_seed_step_and_rank_alone(ball: Path, monkeypatch):
    first = stream(open_manager(ball), range(20))
    assert same(first, stream(open_manager(ball), range(20)))
    assert same(first[13:], stream(open_manager(ball), range(13, 20))), "a resumed run"
    assert same(first, stream(open_manager(ball, workers=4, cache_gb=0.0), range(20))), "threads and cache"
    assert not same(first, stream(open_manager(ball, seed=10), range(20)))
    manager = open_manager(ball)
    jumped = [manager.next_train(step)[1]["image"] for step in (19, 3, 19)]
    assert torch.equal(jumped[0], first[19]["image"])
    assert torch.equal(jumped[1], first[3]["image"])
    manager.close()
    monkeypatch.setattr(comms, "get_rank", lambda: 1)
    monkeypatch.setattr(comms, "get_world_size", lambda: 2)
    ranked = open_manager(ball)
    assert [ranked.draw(step) for step in range(20)] != [manager.draw(step) for step in range(20)]
    ranked.close()


def test_every_training_photo_is_met(ball: Path):
    manager = open_manager(ball)
    steps = len(manager.train_dataset) * manager.config.frame_block
    met = {manager.next_train(step)[1]["image_idx"] for step in range(steps)}
    assert met == set(range(len(manager.train_dataset)))
    manager.close()


def test_a_crop_around_the_mask(ball: Path):
    manager = open_manager(ball, crop_to_mask=True, crop_pad=1)
    camera, batch = manager.next_train(0)
    rows, columns = (batch["mask"][..., 0] > 0.5).nonzero(as_tuple=True)
    height, width = batch["image"].shape[:2]
    assert (int(rows.min()), int(columns.min())) == (1, 1)
    assert (int(rows.max()), int(columns.max())) == (height - 2, width - 2)
    assert (int(camera.height), int(camera.width)) == (height, width)
    whole = manager.sequence.views[batch["view_idx"]].K
    x, y, *_ = batch["crop_xywh"]
    assert float(camera.cx) == pytest.approx(whole[0, 2] - x, abs=1e-4)
    assert float(camera.cy) == pytest.approx(whole[1, 2] - y, abs=1e-4)
    manager.close()


def test_whole_photos_on_request(ball: Path):
    manager = open_manager(ball, crop_to_bounds=False)
    camera, batch = manager.next_train(0)
    assert batch["crop_xywh"] == (0, 0, 72, 56)
    assert manager.source_bank.get(0, manager.source_bank.views[:1])[0].image.shape == (3, 56, 72)
    assert manager.get_train_rays_per_batch() == 72 * 56 == int(camera.width * camera.height)
    manager.close()


@pytest.mark.parametrize(("views", "frames"), [(1, 1), (2, 1), (1, 3)])
def test_the_smallest_rigs(tmp_path: Path, views: int, frames: int):
    folder = write_ball(tmp_path / "small", views=views, frames=frames)
    manager = open_manager(folder, "test", {"bounds": BOX})
    assert len(manager.eval_dataset) == views * frames, "without a held-out view the training views are looked at"
    for step in range(6):
        camera, batch = manager.next_train(step)
        assert batch["sources"], "the only photo may be its own source"
        assert len(manager.source_bank.get(batch["frame_idx"], batch["sources"])) == min(views, len(batch["sources"]))
        assert 0.0 <= float(camera.times[0, 0]) <= 1.0
    manager.close()


def test_a_real_recording_with_lenses(shared_data: Path):
    manager = open_manager(
        shared_data / "balance_easymocap", "test", {"frame_sample": (0, 6, 1), "eval_views": ("02",), "ratio": (0.5,)}
    )
    names = manager.sequence.names
    bordered = 0
    for step in range(12):
        camera, batch = manager.next_train(step)
        assert names[batch["view_idx"]] != "02"
        assert batch["image"].shape[:2] == batch["mask"].shape[:2] == (int(camera.height), int(camera.width))
        assert 0.02 < float(batch["mask"].mean()) < 0.9
        bordered += not bool(batch["valid"].all())
        assert not batch["image"][~batch["valid"][..., 0]].any(), "black where the lens shows nothing"
    _, batch = manager.next_eval_image(0)
    assert names[batch["view_idx"]] == "02"
    assert batch["full_size"] == (204, 360)
    assert bordered
    manager.close()


# ---------------------------------------------------------------------- nerfstudio's contracts


def test_no_tool_decodes_a_split(ball: Path, decodes: CountedDecodes):
    for mode in ("val", "test", "inference"):
        manager = open_manager(ball, mode)
        assert decodes.count == 0, mode
        assert len(manager.cached_train) == len(manager.train_dataset) == 6 * 5
        assert len(manager.cached_eval) == len(manager.eval_dataset) == 5
        assert len(manager.fixed_indices_eval_dataloader) == 5
        assert manager.get_train_rays_per_batch() > 0
        # The viewer looks at every attribute when it starts.
        for name in dir(manager):
            if not name.startswith("_"):
                getattr(manager, name)
        assert decodes.count == 0, mode
        manager.cached_eval[0]
        next(iter(manager.fixed_indices_eval_dataloader))
        manager.eval_dataloader.get_camera(image_idx=0)
        manager.next_eval(0)
        manager.next_eval_image(0)
        assert decodes.count == 5, mode
        decodes.count = 0
        manager.close()


def test_evaluation_photos_are_whole_and_held_out(ball: Path):
    manager = open_manager(ball, "test")
    sequence = manager.sequence
    seen = []
    for camera, batch in manager.fixed_indices_eval_dataloader:
        view, frame = batch["view_idx"], batch["frame_idx"]
        seen.append((frame, view))
        assert view in sequence.eval_views
        photo = sequence.decode(view, frame)
        np.testing.assert_array_equal(batch["image"].numpy(), photo.image.astype(np.float32) / 255)
        assert batch["crop_xywh"] == (0, 0, 72, 56)
        assert camera.metadata["view_idx"].tolist() == [[view]]
        assert camera.metadata["frame_idx"].tolist() == [[frame]]
        assert float(camera.times) == pytest.approx(sequence.times[frame])
    assert seen == [(frame, view) for frame in sequence.eval_frames for view in sequence.eval_views]
    _, again = next(iter(manager.fixed_indices_eval_dataloader))
    assert again["frame_idx"] == seen[0][0]
    first = [manager.next_eval_image(step)[1]["frame_idx"] for step in range(12)]
    assert first == [manager.next_eval_image(step)[1]["frame_idx"] for step in range(12)]
    assert len(set(first)) > 1
    manager.close()


def test_frusta_get_thumbnails_and_renders_get_photos(tmp_path: Path):
    folder = write_ball(tmp_path / "large", views=3, frames=1, size=(320, 240))
    manager = open_manager(folder, "test", parser={"bounds": BOX})
    assert manager.train_dataset[0]["image"].shape == (120, 160, 3)
    assert manager.train_dataset.get_image_float32(0).shape == (240, 320, 3)
    inference = open_manager(folder, "inference", parser={"bounds": BOX})
    assert inference.train_dataset[0]["image"].shape == (240, 320, 3)
    small = manager.train_dataset[0]["image"]
    large = inference.train_dataset[0]["image"].permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(large, size=(120, 160), mode="area")[0].permute(1, 2, 0)
    assert (small - expected).abs().max() < 0.01
    for each in (manager, inference):
        each.close()


def test_the_bounds_are_told_to_everyone(ball: Path):
    manager = open_manager(ball, "val", parser={"orientation": "up"})
    assert manager.hulls is not None
    bounds, transform = manager.hulls.bounds, manager.sequence.transform
    np.testing.assert_array_equal(manager.sequence.bounds, bounds)
    corners = np.stack(np.meshgrid(*bounds.T, indexing="ij"), axis=-1).reshape(8, 3)
    moved = corners @ transform[:3, :3].T + transform[:3, 3]
    for dataset in (manager.train_dataset, manager.eval_dataset):
        aabb = dataset.scene_box.aabb.numpy()
        np.testing.assert_allclose(aabb, [moved.min(axis=0), moved.max(axis=0)], atol=1e-5)
        assert dataset.metadata["sequence"] is manager.sequence
        np.testing.assert_array_equal(dataset.metadata["bounds"], bounds)
    manager.close()


def test_hulls_are_made_once_and_tools_never_make_any(ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    twin = shutil.copytree(ball, tmp_path / "twin")
    times = {file: file.stat().st_mtime_ns for file in twin.rglob("*.ply")}
    assert times
    manager = open_manager(twin, run_dir=tmp_path / "run")
    assert times == {file: file.stat().st_mtime_ns for file in twin.rglob("*.ply")}, "nothing is carved again"
    assert manager.hulls is not None
    bounds = manager.hulls.bounds
    manager.close()
    # With given bounds the search stays the same from run to run, too.
    given = [open_manager(twin, parser={"bounds": BOX}) for _ in range(2)]
    np.testing.assert_array_equal(*[manager.hulls.bounds for manager in given if manager.hulls])
    for each in given:
        each.close()
    for name in ("r4dv", "vhulls", "surfs"):
        shutil.rmtree(twin / name)
    monkeypatch.setattr("r4dv_ns.hull_run.ensure_hulls", lambda *a, **k: pytest.fail("a tool carves"))
    for mode in ("test", "inference"):
        tool = open_manager(twin, mode, run_dir=tmp_path / "run")
        assert tool.hulls is not None
        np.testing.assert_array_equal(tool.hulls.bounds, bounds)
        tool.close()
        bare = open_manager(twin, mode)
        assert bare.hulls is None
        assert bare.sequence.bounds is not None
        bare.next_train(0)
        bare.close()


def test_hulls_go_where_they_are_told(ball: Path, tmp_path: Path):
    twin = shutil.copytree(ball, tmp_path / "twin", ignore=shutil.ignore_patterns("r4dv", "vhulls", "surfs"))
    manager = open_manager(twin, points_dir=tmp_path / "points")
    assert manager.hulls is not None
    assert manager.hulls.points(0) == tmp_path / "points" / "surfs" / "000000.ply"
    assert manager.hulls.points(0).is_file()
    assert not (twin / "surfs").exists()
    manager.close()


def test_without_masks_training_is_refused(ball: Path, tmp_path: Path):
    twin = shutil.copytree(ball, tmp_path / "twin", ignore=shutil.ignore_patterns("r4dv", "vhulls", "surfs", "masks"))
    with pytest.raises(DataError, match="mask"):
        open_manager(twin)
    tool = open_manager(twin, "test")
    _, batch = tool.next_train(0)
    assert bool((batch["mask"] == 1).all())
    tool.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [("sources", 0), ("frame_block", 0), ("workers", 0), ("cache_gb", -1.0), ("keep_target", 1.5), ("seed", -3)],
)
def test_impossible_settings_are_named(ball: Path, option: str, value: float):
    with pytest.raises(DataError, match=option.replace("_", "-")):
        open_manager(ball, **{option: value})


def test_distorted_photos_are_refused(tmp_path: Path):
    folder = write_ball(tmp_path / "bent", views=3, frames=1, distortion=0.1)
    with pytest.raises(DataError, match="undistort same"):
        open_manager(folder, "test", parser={"undistort": "none"})
