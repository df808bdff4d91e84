"""Cropped source photos: geometry against the full photo, the leak guard, and the moved world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frame_sequences import BOX, write_ball

from core_ns.errors import DataError
from dataparsers.easymocap_sequence import Photo, Sequence, SequenceOptions, open_sequence
from r4dv_ns.sources import Crop, SourceBank, crop_cache, crop_rectangle

BOUNDS = np.array(BOX) * 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ball(tmp_path_factory.mktemp("sources") / "ball")


@pytest.fixture(scope="module")
def bent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ball(tmp_path_factory.mktemp("sources") / "bent", distortion=0.15)


def make_bank(sequence: Sequence, *, bounds: np.ndarray | None = BOUNDS, pad: int = 4, workers: int = 2) -> SourceBank:
    cache = crop_cache(sequence, bounds, capacity=10**7, workers=workers, pad=pad)
    return SourceBank(sequence, cache, bounds, pad=pad)


@pytest.fixture
def bank(folder: Path):
    made = make_bank(open_sequence(folder))
    yield made
    made.cache.close()


def test_a_source_is_the_photo_cut_out_with_its_camera_moved(bank: SourceBank):
    sequence, frame = bank.sequence, 2
    for view, source in zip(bank.views, bank.get(frame, bank.views), strict=True):
        full = sequence.decode(view, frame).image
        x, y, width, height = crop_rectangle(sequence, view, frame, BOUNDS, 4)
        assert 0 < width < full.shape[1]
        expected = torch.from_numpy(full[y : y + height, x : x + width].copy()).permute(2, 0, 1).float() / 255
        assert torch.equal(source.image, expected)
        assert source.view == view
        assert source.valid is None
        K, w2c = sequence.camera(view, frame)
        # A world point falls on the same photo pixel through either camera.
        point = np.array([0.1, -0.05, 0.2, 1.0])
        whole, cut = K @ (w2c @ point)[:3], source.K.double().numpy() @ (source.w2c.double().numpy() @ point)[:3]
        np.testing.assert_allclose(whole[:2] / whole[2] - (x, y), cut[:2] / cut[2], atol=1e-4)


def test_every_corner_of_the_bounds_lies_in_the_crop(bank: SourceBank):
    corners = np.stack(np.meshgrid(*BOUNDS.T, indexing="ij"), axis=-1).reshape(8, 3)
    for view in bank.views:
        K, w2c = bank.camera(1, view)
        pixels = (corners @ w2c[:3, :3].T + w2c[:3, 3]) @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        _, _, width, height = bank.rectangle(1, view)
        assert (pixels >= 0).all()
        assert (pixels <= (width, height)).all()


def test_centres_are_in_the_order_of_the_views(bank: SourceBank):
    centres = bank.centres(3)
    expected = [bank.sequence.views[view].centre(3) for view in bank.views]
    np.testing.assert_allclose(centres, expected, atol=1e-12)


def test_held_out_views_cannot_be_had(bank: SourceBank):
    held_out = bank.sequence.eval_views[0]
    train = bank.views[0]
    assert held_out not in bank.views
    for ask in (
        lambda: bank.get(0, [train, held_out]),
        lambda: bank.crop(0, held_out),
        lambda: bank.prefetch([(0, held_out)]),
        lambda: bank.rectangle(0, held_out),
        lambda: bank.camera(0, held_out),
        lambda: bank.crop_bytes(0, held_out),
    ):
        with pytest.raises(ValueError, match="held-out view"):
            ask()
    assert bank.cache.statistics.loads == 0, "nothing is decoded for a request that is refused"
    with pytest.raises(ValueError, match="not a view of the sequence"):
        bank.get(0, [99])


def test_the_world_is_nerfstudios(folder: Path):
    sequence = open_sequence(folder, SequenceOptions(orientation="up"))
    bank = make_bank(sequence)
    point = np.array([0.1, 0.2, -0.1, 1.0])
    for view, source in zip(bank.views, bank.get(0, bank.views), strict=True):
        _, w2c = sequence.camera(view, 0)
        moved = sequence.transform @ point
        np.testing.assert_allclose(source.w2c.double().numpy() @ moved, w2c @ point, atol=1e-5)
    centres = np.stack([sequence.views[view].centre(0) for view in bank.views])
    expected = centres @ sequence.transform[:3, :3].T + sequence.transform[:3, 3]
    np.testing.assert_allclose(bank.centres(0), expected, atol=1e-9)
    bank.cache.close()


def test_borders_without_picture_are_marked(bent_folder: Path):
    sequence = open_sequence(bent_folder, SequenceOptions(undistort="same"))
    whole = make_bank(sequence, bounds=None)
    source = whole.get(0, whole.views[:1])[0]
    view = sequence.views[whole.views[0]]
    valid = view.valid(0)
    assert valid is not None
    assert (~valid).any(), "this lens must leave a border"
    assert source.valid is not None
    np.testing.assert_array_equal(source.valid.numpy(), valid)
    # A crop that holds no border needs no marks.
    middle = make_bank(sequence, bounds=np.array(BOX) * 0.1, pad=0)
    assert middle.get(0, middle.views[:1])[0].valid is None
    assert whole.crop(0, whole.views[0]).nbytes == whole.crop_bytes(0, whole.views[0])
    for each in (whole, middle):
        each.cache.close()


def test_crops_own_their_pixels(bank: SourceBank):
    crop = bank.crop(0, bank.views[0])
    assert crop.mask is not None
    for part in (crop.image, crop.mask):
        assert part.base is None, "a view would keep the whole photo alive"
    assert crop.nbytes == bank.cache.statistics.bytes_held == bank.crop_bytes(0, bank.views[0])


def test_prefetching_stops_at_what_fits(folder: Path):
    sequence = open_sequence(folder)
    bank = make_bank(sequence)
    room = sum(bank.crop_bytes(0, view) for view in bank.views[:3])
    bank.cache.capacity = room
    bank.prefetch((0, view) for view in [*bank.views[:3], *bank.views[:3], *bank.views[3:]])
    for view in bank.views[:3]:
        bank.crop(0, view)
    assert bank.cache.statistics.loads == 3
    assert bank.cache.statistics.evictions == 0
    bank.cache.close()


def test_a_photo_that_is_damaged_later_is_named(tmp_path: Path):
    folder = write_ball(tmp_path / "ball", views=3, frames=2)
    bank = make_bank(open_sequence(folder))
    file = bank.sequence.image_path(1, 1)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match="000001"):
        bank.get(1, [1])
    bank.get(0, [1])
    bank.cache.close()


def test_cutting_around_the_mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[8:11, 12:19] = 255
    mask[0, 0] = 128  # not above 128: background
    image = np.arange(20 * 30 * 3, dtype=np.uint64).astype(np.uint8).reshape(20, 30, 3)
    crop = Crop(image, mask, np.ones((20, 30), bool), 100, 50, (640, 480))
    cut = crop.around_mask(2)
    assert cut.rectangle == (110, 56, 11, 7)
    np.testing.assert_array_equal(cut.image, image[6:13, 10:21])
    assert cut.valid is not None
    assert cut.valid.shape == (7, 11)
    assert crop.around_mask(100).rectangle == crop.rectangle
    empty = Crop(image, np.zeros_like(mask), None, 3, 4, (640, 480))
    assert empty.around_mask(5) is empty
    bare = Crop.whole(Photo(image, None, None))
    assert bare.around_mask(5) is bare
    assert bare.full_size == (30, 20)
