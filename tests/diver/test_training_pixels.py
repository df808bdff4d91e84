"""Training pixels of a voxel model: batches by stage, their background and box, and what a run folder keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from posed_photos import BLACK, NOISE, SIZES, WHITE, BlenderDataParserConfig, make_scene, ring

from core_ns.errors import DataError
from dataparsers.blender_parser import ObjectBlenderDataParserConfig
from dataparsers.snapshot_parser import SnapshotParserConfig
from diver_ns.datamanager import DiverDataManager, DiverDataManagerConfig
from diver_ns.grid import Grid
from diver_ns.pixel_choice import PixelMasks, meets_cube, seeded

pytestmark = pytest.mark.filterwarnings(NOISE)


def open_manager(scene: Path, mode: str = "val", device: str = "cpu", **options: Any) -> Any:
    config = DiverDataManagerConfig(dataparser=SnapshotParserConfig(data=scene), data=scene)
    for name, value in ({"train_num_rays_per_batch": 400, "jobs": 2} | options).items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config.setup(device=device, test_mode=mode)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scene(tmp_path_factory.mktemp("scene"))


def truth(manager: Any, view: int, background: torch.Tensor) -> torch.Tensor:
    """A photo over a background, decoded here."""
    pixels = torch.from_numpy(np.array(Image.open(manager.train_dataset.image_filenames[view]))).double() / 255
    if pixels.shape[-1] == 3:
        return pixels
    return pixels[..., :3] * pixels[..., 3:] + background.double() * (1 - pixels[..., 3:])


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("background", ["white", "black"])
def test_batches_hold_the_pixels_and_rays_they_name(scene: Path, background: str) -> None:
    manager = open_manager(scene, background=background)
    colour = WHITE if background == "white" else BLACK
    assert torch.equal(manager.background, colour)
    bundle, batch = manager.next_train(0)
    views, rows, columns = batch["indices"].unbind(-1)
    assert bundle.origins.shape == bundle.directions.shape == batch["image"].shape == (400, 3)
    assert bundle.camera_indices.shape == (400, 1)
    assert torch.equal(bundle.camera_indices[:, 0], views)
    assert bundle.nears is None
    assert bundle.fars is None
    assert set(views.tolist()) == {0, 1, 2, 3}
    expected = torch.stack([truth(manager, int(v), colour)[r, c] for v, r, c in batch["indices"]])
    torch.testing.assert_close(batch["image"].double(), expected, atol=1e-6, rtol=0)
    cameras = manager.train_dataset.cameras
    rays = cameras.generate_rays(views[:, None], coords=torch.stack([rows, columns], dim=-1) + 0.5)
    torch.testing.assert_close(bundle.origins, rays.origins)
    torch.testing.assert_close(bundle.directions, rays.directions, atol=1e-6, rtol=0)


def test_a_reduced_stage_serves_averaged_photos_and_then_full_ones(scene: Path) -> None:
    manager = open_manager(scene)
    manager.set_stage(reduced=True, rays=250)
    assert manager.get_train_rays_per_batch() == 250
    bundle, batch = manager.next_train(3)
    assert batch["image"].shape == (250, 3)
    for (view, row, column), image, direction in zip(
        batch["indices"].tolist(), batch["image"], bundle.directions, strict=True
    ):
        width, height = manager.view_size(view, reduced=True)
        assert (width, height) == (SIZES[view][0] // 4, SIZES[view][1] // 4)
        box = truth(manager, view, WHITE)[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        torch.testing.assert_close(image.double(), box.mean(dim=(0, 1)), atol=1e-6, rtol=0)
        torch.testing.assert_close(direction, manager.view_rays(view, reduced=True)[1][row * width + column])
    manager.set_stage(reduced=False, rays=100)
    _, batch = manager.next_train(4)
    view, row, column = batch["indices"][0].tolist()
    torch.testing.assert_close(batch["image"][0].double(), truth(manager, view, WHITE)[row, column], atol=1e-6, rtol=0)


def test_whole_views_list_the_rays_row_by_row(scene: Path) -> None:
    manager = open_manager(scene)
    origins, directions = manager.view_rays(2, reduced=False)
    expected = manager.train_dataset.cameras.generate_rays(2, keep_shape=True)
    torch.testing.assert_close(origins, expected.origins.reshape(-1, 3))
    torch.testing.assert_close(directions, expected.directions.reshape(-1, 3), atol=1e-6, rtol=0)
    assert origins.shape == directions.shape == (21 * 18, 3)


def test_batches_depend_on_seed_step_rank_and_stage_alone(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run draws what an uninterrupted one would have drawn."""
    masks = PixelMasks.of(torch.rand(w * h, generator=seeded(8)) < 0.4 for w, h in SIZES[:4])

    def batches(steps: range, **options: Any) -> list[torch.Tensor]:
        manager = open_manager(scene, **options)
        found = []
        for step in steps:
            if step == 0:
                manager.set_stage(reduced=True, rays=64)
            if step == 5 or (step == steps.start and step > 5):
                manager.set_stage(reduced=False, rays=128, masks=masks)
            torch.rand(3)  # the global generator is somewhere else each time
            found.append(manager.next_train(step)[1]["indices"])
        return found

    whole = batches(range(10))
    resumed = batches(range(7, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], resumed, strict=True))
    assert len({batch.numpy().tobytes() for batch in whole}) == 10
    assert not torch.equal(batches(range(7, 8), seed=10)[0], whole[7])
    manager = open_manager(scene)
    manager.set_stage(reduced=False, rays=64)
    assert not torch.equal(manager.next_train(0)[1]["indices"][:, 0], whole[0][:, 0]), "another stage"
    monkeypatch.setattr("diver_ns.datamanager.comms.get_rank", lambda: 1)
    assert not torch.equal(batches(range(7, 8))[0], whole[7]), "another process"


def test_a_stages_masks_are_honoured(scene: Path) -> None:
    manager = open_manager(scene)
    masks = [torch.zeros(height, width, dtype=torch.bool) for width, height in SIZES[:4]]
    masks[1][5, 7] = masks[2][17, 20] = masks[2][0, 0] = True
    manager.set_stage(reduced=False, rays=600, masks=PixelMasks.of(masks))
    assert manager.masks.kept == 3
    assert set(map(tuple, manager.next_train(0)[1]["indices"].tolist())) == {(1, 5, 7), (2, 17, 20), (2, 0, 0)}
    with pytest.raises(ValueError, match="masks of other photos"):
        manager.set_stage(reduced=True, rays=600, masks=PixelMasks.of(masks))
    with pytest.raises(DataError, match="leave no training pixel"):
        manager.set_stage(reduced=False, rays=6, masks=PixelMasks.of(torch.zeros_like(mask) for mask in masks))


@pytest.mark.parametrize("reduced", [False, True])
def test_the_scenes_mask_files_are_honoured(tmp_path: Path, reduced: bool) -> None:
    manager = open_manager(make_scene(tmp_path, masks=True))
    manager.set_stage(reduced=reduced, rays=3000)
    views, rows, columns = manager.next_train(0)[1]["indices"].unbind(-1)
    scale = 4 if reduced else 1
    assert ((rows * scale >= views) & (rows * scale + scale - 1 < views + 9)).all()
    assert ((columns * scale >= 3) & (columns * scale + scale - 1 < 15)).all()
    found = len({tuple(index) for index in torch.stack([views, rows, columns], dim=-1).tolist()})
    assert found == manager.masks.kept, "3000 draws find every one of them"
    if not reduced:
        assert found == sum(min(9, height - view) * 12 for view, (_, height) in enumerate(SIZES[:4]))
        half = PixelMasks.of(torch.arange(w * h) % 2 == 0 for w, h in SIZES[:4])
        manager.set_stage(reduced=False, rays=10, masks=half)
        assert manager.masks.kept == found // 2
    view, rows, columns = manager.next_eval(0)[1]["indices"].unbind(-1)
    assert ((rows >= view + 4) & (rows < view + 13) & (columns >= 3) & (columns < 15)).all()


def test_ranges_that_the_parser_names_reach_the_rays(tmp_path: Path) -> None:
    manager = open_manager(make_scene(tmp_path, metadata={"near": 2, "far": 6.5}))
    bundle, _ = manager.next_train(0)
    assert bundle.nears.shape == bundle.fars.shape == (400, 1)
    assert bundle.nears.unique().tolist() == [2.0]
    assert bundle.fars.unique().tolist() == [6.5]


def test_evaluation_sees_the_same_background(scene: Path) -> None:
    manager = open_manager(scene, mode="test", background="black", eval_num_rays_per_batch=200)
    assert manager.photos is None, "tools load no photos"
    for index, (camera, batch) in enumerate(manager.fixed_indices_eval_dataloader):
        pixels = np.array(Image.open(manager.eval_dataset.image_filenames[index])) / 255.0
        np.testing.assert_allclose(batch["image"].numpy(), pixels[..., :3] * pixels[..., 3:], atol=1e-6)
        assert camera.shape == (1,)
    bundle, batch = manager.next_eval(4)
    view, row, column = batch["indices"][0].tolist()
    torch.testing.assert_close(batch["image"][0], manager.eval_dataset[view]["image"][row, column])
    rays = manager.eval_dataset.cameras.generate_rays(view, coords=torch.tensor([[row + 0.5, column + 0.5]]))
    torch.testing.assert_close(bundle.directions[0], rays.directions[0], atol=1e-6, rtol=0)
    assert manager.eval_dataset.get_data(0, "uint8")["image"].dtype == torch.uint8
    assert manager.eval_dataset.metadata["background"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("metadata", "option", "expected"),
    [
        ({"background": "black"}, "auto", [0.0] * 3),
        ({"background": "black"}, "white", [1.0] * 3),
        ({"background": [0.25, 0.5, 1]}, "auto", [0.25, 0.5, 1.0]),
        ({}, "auto", [1.0] * 3),
    ],
)
def test_the_background_comes_from_option_metadata_or_photos(
    tmp_path: Path, metadata: dict[str, Any], option: str, expected: list[float]
) -> None:
    manager = open_manager(make_scene(tmp_path, metadata=metadata), mode="inference", background=option)
    assert manager.background.tolist() == expected
    assert manager.train_dataset.metadata["background"] == expected
    assert manager.train_dataset.metadata["grid_side"] == pytest.approx(2.8)
    assert manager.train_dataset.metadata["grid_center"] == pytest.approx([0.0, 0.0, 0.0])


def test_a_background_that_is_no_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no colour"):
        open_manager(make_scene(tmp_path, metadata={"background": [1, 2]}), mode="inference")


def test_photos_can_be_shrunk(tmp_path: Path) -> None:
    manager = open_manager(make_scene(tmp_path, masks=True), camera_res_scale_factor=0.5)
    assert manager.view_size(2, reduced=False) == (10, 9)
    assert manager.photos.channels == 3
    _, batch = manager.next_train(0)
    view, row, column = batch["indices"][0].tolist()
    if view != 2:
        box = truth(manager, view, WHITE)[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(0, 1))
        torch.testing.assert_close(batch["image"][0].double(), box, atol=1.5 / 255, rtol=0)
    data = manager.eval_dataset[0]
    assert data["image"].shape == (8, 12, 3)
    assert data["mask"].shape == (8, 12, 1)


def test_files_of_a_wrong_size_are_named(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, masks=True)
    Image.new("L", (5, 5), 255).save(tmp_path / "mask_1.png")
    with pytest.raises(DataError, match=r"mask_1\.png \(size\): is 5x5, but its photo is 24x16"):
        open_manager(scene)
    scene = make_scene(tmp_path)
    Image.new("RGB", (7, 5)).save(tmp_path / "3.png")
    with pytest.raises(DataError, match=r"3\.png \(size\): is 7x5, but its camera says 24x16"):
        open_manager(scene)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.png"):
        open_manager(scene)


# ----------------------------------------------------------------------------------------------------------- hit share


def test_the_share_of_rays_that_meet_the_box_is_told(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager = open_manager(scene)
    total = met = 0
    for view in range(4):
        found = meets_cube(*manager.view_rays(view, reduced=False), manager.cube)
        total, met = total + len(found), met + int(found.sum())
    share = manager.hit_share(manager.cube.at(64))
    assert share == pytest.approx(met / total, abs=0.02)
    assert 0.3 < share <= 1.0
    assert manager.hit_share() == share
    assert "of the training rays meet it" in capsys.readouterr().out


def test_a_box_that_no_ray_meets_is_refused_before_training(scene: Path, tmp_path: Path) -> None:
    manager = open_manager(scene, mode="inference")
    with pytest.raises(DataError) as caught:
        manager.hit_share(Grid(64, 1.5, (0.0, 0.0, 30.0)))
    text = str(caught.value)
    for piece in ("only 0.00 %", "side 1.5 around (0, 0, 30)", "4 cameras lie between (", "Give a box that holds"):
        assert piece in text
    assert "OpenCV" not in text
    turned = ring(len(SIZES), distance=8.0)
    turned[:, :, 1:3] *= -1  # OpenCV axes where OpenGL's belong
    wrong = make_scene(tmp_path, poses=turned, half=0.5)
    with pytest.raises(DataError, match="probably in OpenCV axes"):
        open_manager(wrong)


# ------------------------------------------------------------------------------------------------------ the run folder


def blender_scene(folder: Path) -> Path:
    """Four training and two held-out photos in NeRF-synthetic layout."""
    rng = np.random.default_rng(9)
    poses = ring(6)
    for split, views in {"train": range(4), "val": range(4, 6), "test": range(4, 6)}.items():
        (folder / split).mkdir(parents=True)
        frames = []
        for view in views:
            Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(folder / split / f"r_{view}.png")
            matrix = torch.cat([poses[view], torch.tensor([[0.0, 0.0, 0.0, 1.0]])]).tolist()
            frames.append({"file_path": f"./{split}/r_{view}", "transform_matrix": matrix})
        text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


def blender_config(folder: Path, run: Path) -> Any:
    return DiverDataManagerConfig(
        dataparser=BlenderDataParserConfig(data=folder), data=folder, run_dir=run, train_num_rays_per_batch=50
    )


@pytest.mark.parametrize("mode", ["test", "inference", "val"])
def test_a_run_is_viewed_and_rendered_after_its_scene_is_gone(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = blender_scene(tmp_path / "scene"), tmp_path / "run"
    trained = blender_config(folder, run).setup(device="cpu", test_mode="val")
    again = blender_config(folder, run).setup(device="cpu", test_mode="test")
    assert again.snapshot is not None
    assert again.train_dataset.image_filenames == trained.train_dataset.image_filenames
    small = again.train_dataset[1]["image"]
    real = torch.from_numpy(np.array(Image.open(folder / "train" / "r_1.png"))).float() / 255
    assert (small - (real[..., :3] * real[..., 3:] + 1 - real[..., 3:])).abs().mean() < 0.3, "a thumbnail of it"
    shutil.rmtree(folder)
    if mode == "val":
        with pytest.raises(DataError, match="is not a file"):
            blender_config(folder, run).setup(device="cpu", test_mode=mode)
        # ns-render dataset --split val opens the manager like this:
        monkeypatch.setattr(DiverDataManager, "setup_train", lambda self: None)
    tool = blender_config(folder, run).setup(device="cpu", test_mode=mode)
    assert torch.equal(tool.background, trained.background)
    assert tool.cube == trained.cube
    for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height"):
        found, expected = (getattr(manager.train_dataset.cameras, name) for manager in (tool, trained))
        assert torch.equal(found, expected.to(found.dtype)), "the snapshot holds float32"
    assert torch.equal(tool.eval_dataset.cameras.camera_to_worlds, ring(6)[4:])
    if mode == "val":
        return
    assert tool.train_dataset[3]["image"].shape == (20, 20, 3)
    bundle, batch = tool.next_train(0)
    assert "image" not in batch
    assert not torch.equal(tool.next_train(0)[0].directions, bundle.directions), "ns-export asks for step 0 each time"


def test_a_tool_that_is_pointed_at_other_data_reads_them(tmp_path: Path) -> None:
    folder, other, run = (tmp_path / name for name in ("scene", "other", "run"))
    blender_config(blender_scene(folder), run).setup(device="cpu", test_mode="val")
    tool = blender_config(blender_scene(other), run).setup(device="cpu", test_mode="test")
    assert tool.snapshot is None
    assert tool.train_dataset.image_filenames[0].is_relative_to(other)


def test_a_scene_without_test_photos_trains_without_a_snapshot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = blender_scene(tmp_path / "scene"), tmp_path / "run"
    (folder / "transforms_test.json").unlink()
    manager = blender_config(folder, run).setup(device="cpu", test_mode="val")
    assert manager.next_train(0)[1]["image"].shape == (50, 3)
    assert not (run / "scene" / "snapshot.json").exists()
    assert "a split cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("parser", [BlenderDataParserConfig, ObjectBlenderDataParserConfig])
def test_the_real_lego(shared_data: Path, tmp_path: Path, parser: Any) -> None:
    """100 real photos: their pixels, their memory, and a box that most rays meet."""
    config = DiverDataManagerConfig(dataparser=parser(data=shared_data / "lego_blender"), run_dir=tmp_path, jobs=2)
    manager = config.setup(device="cpu", test_mode="val")
    assert manager.photos._pixels.numel() == 100 * 200 * 200 * 4
    assert manager.hit_share(Grid(64, 2.8)) > 0.6
    if parser is ObjectBlenderDataParserConfig:
        assert manager.cube == Grid(1, 2.8)
    manager.set_stage(reduced=True, rays=1024)
    bundle, batch = manager.next_train(0)
    assert bundle.directions.dtype == bundle.origins.dtype == batch["image"].dtype == torch.float32
    assert batch["image"].shape == (1024, 3)
    corner = (batch["indices"][:, 1:] == 0).all(dim=-1)
    assert (batch["image"][corner] == 1).all(), "the corners are background: white"
    assert (tmp_path / "scene" / "snapshot.json").is_file()
    assert len(list((tmp_path / "scene" / "thumbnails").iterdir())) == 100
    tool = config.setup(device="cpu", test_mode="test")
    assert tool.snapshot is not None
    assert (tool.cube, tool.background.tolist()) == (manager.cube, [1.0] * 3)
    assert len(tool.eval_dataset) == 25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_the_same_on_a_gpu(scene: Path) -> None:
    cpu, gpu = open_manager(scene), open_manager(scene, device="cuda", images_on_gpu=True)
    for reduced in (True, False):
        cpu.set_stage(reduced, 100)
        gpu.set_stage(reduced, 100)
        (rays, batch), (rays_gpu, batch_gpu) = cpu.next_train(1), gpu.next_train(1)
        assert rays_gpu.directions.is_cuda
        assert batch_gpu["image"].is_cuda
        assert torch.equal(batch["indices"], batch_gpu["indices"].cpu())
        torch.testing.assert_close(batch["image"], batch_gpu["image"].cpu())
        torch.testing.assert_close(rays.directions, rays_gpu.directions.cpu())
