"""Photos for subject and background: cut-outs, whole photos without the subject, plates; batches by stage."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from frame_sequences import NOISE, QUICK, ring

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from dataparsers.easymocap import write_cameras
from r4dv_ns.background_points import BackgroundOptions
from r4dv_ns.joint_sources import widened
from r4dv_ns.joint_stages import StagePlan

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    from dataparsers.easymocap_parser import EasyMocapDataParserConfig
    from r4dv_ns.joint_data import JointDataManagerConfig

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]
PLATE = 40


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """Seven views of three frames with plates of one grey; photos tell their frame, masks are soft-edged."""
    from frame_sequences import ball_centre, picture

    folder = tmp_path_factory.mktemp("joint") / "ball"
    folder.mkdir()
    cameras = ring(7, 72, 56)
    write_cameras(folder, cameras)
    for view, (name, camera) in enumerate(cameras.items()):
        write_image(folder / "bkgd" / f"{name}.png", np.full((56, 72, 3), PLATE + view, np.uint8))
        for frame in range(3):
            photo, mask = picture(camera, ball_centre(frame, 3), view, frame)
            write_image(folder / "images" / name / f"{frame:06d}.png", photo)
            write_image(folder / "masks" / name / f"{frame:06d}.png", mask)
    return folder


def open_manager(folder, mode="val", **options):
    background = BackgroundOptions(points=200, start="frusta")
    parser = EasyMocapDataParserConfig(data=folder)
    config = JointDataManagerConfig(
        data=folder,
        dataparser=parser,
        hull=copy.copy(QUICK),
        cache_gb=0.01,
        background=background,
        crop_pad=3,
        sources=3,
    )
    for name, value in options.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config.setup(device="cpu", test_mode=mode)


@pytest.fixture
def manager(ball):
    opened = open_manager(ball)
    yield opened
    opened.close()


def test_widening_against_a_loop():
    mask = np.zeros((12, 15), np.uint8)
    mask[5, 7], mask[0, 14], mask[9, 2] = 255, 26, 25
    expected = np.zeros((12, 15), bool)
    for row, column in ((5, 7), (0, 14)):
        expected[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = True
    np.testing.assert_array_equal(widened(mask, 2), expected)
    np.testing.assert_array_equal(widened(mask, 0), mask > 25)


def test_the_subjects_photos_are_cut_and_black_around_it(manager):
    bank, sequence = manager.source_bank, manager.sequence
    view = bank.views[2]
    source, whole = bank.get(1, [view])[0], sequence.decode(view, 1)
    x, y, width, height = bank.subject_rectangle(1, view)
    assert width < 72
    expected = (
        whole.image[y : y + height, x : x + width] / 255 * (whole.mask[y : y + height, x : x + width, None] / 255)
    )
    np.testing.assert_allclose(source.image.permute(1, 2, 0), expected, atol=1e-6)
    K, w2c = sequence.camera(view, 1)
    np.testing.assert_allclose(source.K.numpy(), K - [[0, 0, x], [0, 0, y], [0, 0, 0]], atol=1e-4)
    np.testing.assert_allclose(source.w2c.numpy(), w2c, atol=1e-5)
    assert source.view == view


def test_the_backgrounds_photos_have_the_plate_where_the_subject_is(manager):
    bank, sequence = manager.source_bank, manager.sequence
    view = bank.views[3]
    source, whole = bank.room(2, [view])[0], sequence.decode(view, 2)
    hidden = widened(whole.mask, bank.pixels(view))
    shown = source.image.permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(shown[hidden], PLATE + view, atol=1e-3)
    np.testing.assert_allclose(shown[~hidden], whole.image[~hidden], atol=1e-3)
    assert source.valid is None
    K, _ = sequence.camera(view, 2)
    np.testing.assert_allclose(source.K.numpy(), K, atol=1e-4)
    plate = bank.plate_sources([view])[0]
    np.testing.assert_allclose(plate.image * 255, PLATE + view, atol=1e-3)


def test_without_plates_the_place_of_the_subject_shows_nothing(ball):
    manager = open_manager(ball, plates="none", dilation=4)
    bank = manager.source_bank
    assert not bank.still
    view = bank.views[0]
    source, whole = bank.room(0, [view])[0], manager.sequence.decode(view, 0)
    np.testing.assert_array_equal(source.valid.numpy(), ~widened(whole.mask, 4))
    with pytest.raises(KeyError):
        bank.plate(view)
    manager.close()


def test_batches_follow_the_stage(manager):
    manager.plan = StagePlan(6, 6, 6)
    for step in range(18):
        camera, batch = manager.next_train(step)
        view, frame = batch["view_idx"], batch["frame_idx"]
        photo = manager.sequence.decode(view, frame)
        if step < 6:
            np.testing.assert_allclose(batch["image"] * 255, PLATE + view, atol=1e-3)
            assert bool(batch["room"].all())
            assert bool((batch["mask"] == 1).all())
        elif step < 12:
            assert batch["image"].shape[1] < 72
            assert batch["crop_xywh"] == manager.source_bank.subject_rectangle(frame, view)
        else:
            np.testing.assert_allclose(batch["image"], photo.image / 255, atol=1e-6)
            np.testing.assert_allclose(batch["mask"][..., 0], photo.mask / 255, atol=1e-6)
        assert ("room" in batch) == (step < 6)
        assert (int(camera.width), int(camera.height)) == batch["image"].shape[1::-1]
        assert camera.metadata["sources"].tolist() == [batch["sources"]]


def test_plates_need_no_photo_decoded(manager):
    manager.plan = StagePlan(10, 0, 0)
    before = manager.source_bank.cache.statistics.loads
    for step in range(10):
        manager.next_train(step)
    manager.source_bank.cache.settle()
    assert manager.source_bank.cache.statistics.loads == before


def test_without_plates_photos_teach_outside_the_masks(ball):
    manager = open_manager(ball, plates="none")
    manager.plan = StagePlan(5, 0, 0)
    _, batch = manager.next_train(0)
    mask = (255 * batch["mask"][..., 0]).byte().numpy()
    expected = ~widened(mask, manager.source_bank.pixels(batch["view_idx"]))
    np.testing.assert_array_equal(batch["room"][..., 0].numpy(), expected)
    photo = manager.sequence.decode(batch["view_idx"], batch["frame_idx"])
    np.testing.assert_allclose(batch["image"] * 255, photo.image, atol=1e-3)
    manager.close()


def test_a_training_run_brings_the_points_of_the_background(manager, ball):
    points = manager.train_dataset.metadata["room_points"]
    assert points.shape == (200, 3)
    assert points.dtype == torch.float32
    tool = open_manager(ball, mode="test")
    assert "room_points" not in tool.train_dataset.metadata
    tool.close()


def test_some_plates_are_as_good_as_none_for_the_first_stage(ball, tmp_path, capsys):
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(ball, copied)
    sequence_views = open_manager(copied)
    name = sequence_views.sequence.names[sequence_views.source_bank.views[0]]
    sequence_views.close()
    (copied / "bkgd" / f"{name}.png").unlink()
    capsys.readouterr()
    manager = open_manager(copied)
    assert "Clean plates: 5 of 6" in capsys.readouterr().out
    assert not manager.source_bank.still
    manager.close()
    shutil.rmtree(copied / "bkgd" / "boost")
    read_image(copied / "images" / name / "000000.png")


def test_neither_plates_nor_masks_is_refused(ball, tmp_path):
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(ball, copied)
    shutil.rmtree(copied / "masks")
    shutil.rmtree(copied / "bkgd")
    with pytest.raises(DataError, match=r"masks|bkgd"):
        open_manager(copied)
