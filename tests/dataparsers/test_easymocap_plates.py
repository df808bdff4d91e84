"""Clean plates: found in either layout, undistorted as the photos are, refused when they do not fit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from dataparsers.easymocap_plates import find_plates
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_scene import make_moving_scene


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plates") / "toy"
    make_moving_scene(folder, 3, 2, (40, 50), background="room", distorted=True, supersample=1)
    return folder


@pytest.fixture
def bare(recording, tmp_path):
    """The recording through links, without plates."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in recording.iterdir():
        if path.name != "bkgd":
            (folder / path.name).symlink_to(path)
    return folder


def opened(folder, **options):
    return open_sequence(folder, SequenceOptions(eval_views=("none",), **options))


def test_a_plate_is_delivered_exactly_as_a_photo_of_the_same_pixels(recording, bare):
    """Oracle: the plate in the place of a photo, read by the sequence itself."""
    plates = find_plates(opened(recording, ratio=(0.5,)))
    assert sorted(plates.files) == [0, 1, 2]
    folder = bare / "images"
    folder.unlink()
    for name in ("00", "01", "02"):
        plate = read_image(recording / "bkgd" / f"{name}.jpg")[0]
        for frame in range(2):
            write_image(folder / name / f"{frame:06d}.png", plate)
    sequence = opened(bare, ratio=(0.5,))
    for view in range(3):
        photo = sequence.decode(view, 1)
        np.testing.assert_array_equal(plates.get(view), photo.image)
        np.testing.assert_array_equal(plates.valid(view), photo.valid)
        assert plates.get(view) is plates.get(view), "decoded once"
        assert not plates.get(view).flags.writeable


def test_relinked_plates_and_other_suffixes_are_found(recording, bare):
    plate = read_image(recording / "bkgd" / "01.jpg")[0]
    write_image(bare / "bkgd" / "images" / "01" / "000000.png", plate)
    write_image(bare / "bkgd" / "02.png", plate)
    found = find_plates(opened(bare)).files
    assert {view: file.relative_to(bare / "bkgd").as_posix() for view, file in found.items()} == {
        1: "images/01/000000.png", 2: "02.png",
    }  # fmt: skip


def test_without_plates_there_are_none(bare):
    plates = find_plates(opened(bare))
    assert len(plates) == 0
    assert 0 not in plates
    with pytest.raises(KeyError):
        plates.get(0)


def test_a_larger_plate_is_shrunk_and_another_shape_refused(recording, bare):
    plate = read_image(recording / "bkgd" / "00.jpg")[0]
    write_image(bare / "bkgd" / "00.png", cv2.resize(plate, (80, 100), interpolation=cv2.INTER_NEAREST))
    sequence = opened(bare)
    np.testing.assert_array_equal(find_plates(sequence).get(0), find_plates(opened(recording)).get(0))
    for size in ((80, 80), (20, 25)):
        write_image(bare / "bkgd" / "00.png", cv2.resize(plate, size))
        with pytest.raises(DataError, match=f"camera 00.*{size[0]}x{size[1]}"):
            find_plates(sequence)


def test_what_is_no_image_is_named(bare):
    (bare / "bkgd").mkdir()
    (bare / "bkgd" / "00.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"00\.jpg"):
        find_plates(opened(bare))
