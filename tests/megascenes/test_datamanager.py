"""The data manager: seeded batches, what the run folder keeps, and references when the data are gone (spec 8.2)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planar_pairs import CATEGORY, write_pairs
from tiny_runs import NOISE, open_trainer, run_config

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from megascenes_ns.canonical import c2w_ns_from_rel
from megascenes_ns.pose_vector import pose_vector

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "wall", pairs=5, held_out=2)


def manager(config: Any, test_mode: str = "val", **options: Any) -> Any:
    config.pipeline.align()
    config.pipeline.datamanager.run_dir = config.get_base_dir()
    return config.pipeline.datamanager.setup(device="cpu", test_mode=test_mode, **options)


@pytest.fixture(scope="module")
def trainer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_trainer(run_config(data, tmp_path_factory.mktemp("out"), 0, "manager"))


def test_a_batch_holds_each_photo_once_and_the_pairs_poses(trainer):
    served = trainer.pipeline.datamanager
    batch = served.batch([0, 3, 0])
    assert batch.numbers == (0, 3, 0)
    assert batch.references[0] == batch.references[2]
    assert len({*batch.photos, *batch.latents}) == 4
    assert all(square.shape == (64, 64, 3) for square in batch.photos.values())
    assert batch.low.shape == (3, 8, 8, 3)
    pair = served.reader.pair(3)
    expected = pose_vector(pair.ref_w2c, pair.tgt_w2c, pair.scale, pair.tgt_K, pair.tgt_size)
    assert np.array_equal(batch.pose[1], expected)


def test_warps_look_like_their_targets(trainer):
    """Exact depth: where the reference sees the wall, its warp is the target's photo, up to resampling."""
    reader = trainer.pipeline.datamanager.reader
    for number in range(5):
        warp, target = reader.warp(number), reader.prepared(number, "tgt").image
        seen = warp.coverage == 1
        assert seen.mean() > 0.5
        error = np.abs(warp.rgb.astype(float) - target)[seen].mean()
        assert error < 8, f"pair {number}: {error}"
        flipped = np.abs(warp.rgb[:, ::-1].astype(float) - target)[seen].mean()
        assert flipped > 3 * error


def test_the_first_camera_of_the_loader_is_the_references(trainer):
    served = trainer.pipeline.datamanager
    camera, batch = served.eval_dataloader.get_camera(0)
    np.testing.assert_allclose(camera.camera_to_worlds[0].numpy(), c2w_ns_from_rel(np.eye(4))[:3], atol=1e-7)
    assert batch["image"].shape == (48, 64, 3)
    other, _ = served.eval_dataloader.get_camera(1)
    assert torch.equal(other.camera_to_worlds[0], served.eval_dataset.cameras.camera_to_worlds[1])
    assert len(served.fixed_indices_eval_dataloader) == 2


def test_tools_see_numbers_and_sizes(trainer):
    served = trainer.pipeline.datamanager
    assert served.get_train_rays_per_batch() == 4 * 64**2 == served.get_eval_rays_per_batch()
    assert served.get_datapath() == served.config.run_dir
    assert [int(each) for each in served.train_dataset.cameras.metadata["pair_idx"]] == [0, 1, 2, 3, 4]
    assert served.eval_dataset[1]["image"].dtype == torch.float32


def test_a_copy_of_another_size_fits_its_camera(data: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    file = copy / "images" / CATEGORY / "commons" / "Front" / "0" / "pictures" / "000.png"
    image, _ = read_image(file)
    from megascenes_ns.prepare import resize_long

    write_image(file, resize_long(image, 73))  # 73 x 54: another rounding of 4:3
    served = manager(run_config(copy, tmp_path, 0, "copy"))
    prepared = served.reader.prepared(0, "ref")
    assert prepared.image.shape == (48, 64, 3)
    assert prepared.K[0, 0] == pytest.approx(70 * 64 / 80, rel=1e-3)
    write_image(file, image[:30])
    with pytest.raises(DataError, match="another aspect"):
        manager(run_config(copy, tmp_path, 0, "crop"))


def test_a_run_is_shown_without_its_data(data: Path, tmp_path: Path):
    copy = tmp_path / "moved"
    shutil.copytree(data, copy)
    config = run_config(copy, tmp_path / "out", 0, "kept")
    before = manager(config)
    first = before.shelf().at(0)
    cameras = before.train_dataset.cameras.camera_to_worlds
    shutil.rmtree(copy)
    after = manager(config, "inference")
    assert after.shelf().at(0).key == first.key
    assert torch.equal(after.train_dataset.cameras.camera_to_worlds, cameras)
    assert after.train_dataset.numbers == before.train_dataset.numbers
    with pytest.raises(DataError, match="data are gone"):
        after.shelf().at(2)
    with pytest.raises(DataError, match="are gone"):
        after.target(2)
    with pytest.raises(DataError, match="is not there"):
        manager(run_config(tmp_path / "nowhere", tmp_path, 0, "never"))


def test_a_missing_photo_is_listed_in_the_run(data: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "images" / CATEGORY / "commons" / "Front" / "0" / "pictures" / "002.png").unlink()
    config = run_config(copy, tmp_path, 0, "missing")
    served = manager(config)
    assert len(served.reader.pairs.train) == 4
    text = (config.get_base_dir() / "missing_pairs.txt").read_text()
    assert "002.png" in text
    assert text.count("\n") == 2


def test_a_missing_depth_is_named_with_its_photo(data: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    next((copy / "depth").rglob("004.npy")).unlink()
    served = manager(run_config(copy, tmp_path, 0, "depth"))
    with pytest.raises(DataError, match=r"004"):
        served.reader.low(2)
    served.reader.low(1)


def test_without_depth_only_the_pose_network_trains(data: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    shutil.rmtree(copy / "depth")
    config = run_config(copy, tmp_path, 0, "pose")
    config.pipeline.align()
    with pytest.raises(DataError, match="nothing says how far"):
        config.pipeline.datamanager.check_data()
    config = run_config(copy, tmp_path, 0, "pose", variant="zeronvs")
    config.pipeline.align()
    assert config.pipeline.datamanager.check_data() is False
    served = manager(config)
    assert served.reader.source.name == "plane"


def test_a_photo_is_a_run_of_one_reference(data: Path, tmp_path: Path):
    photo = next((data / "images").rglob("000.png"))
    config = run_config(photo, tmp_path, 0, "photo", depth="plane")
    served = manager(config)
    assert served.photo == photo
    assert served.shelf().at(0).prepared.image.shape == (48, 64, 3)
    assert np.array_equal(served.target(0), served.shelf().at(0).prepared.image)
    with pytest.raises(DataError, match="nothing to train on"):
        served.next_train(0)
    again = manager(config, "inference")
    assert again.shelf().at(0).key == served.shelf().at(0).key
