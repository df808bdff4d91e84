"""Masks by difference to a clean plate: the subject is found, its shadow and the camera's noise are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject
from prepared_scenes import NAMES, SIZE, empty_scene, iou, make_photos
from scipy import ndimage

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from r4dv_ns.clip_extract import extract_masks
from r4dv_ns.mattes import PlateDifference, plate_mask, plates_of


def noisy(picture: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=sigma, size=picture.shape)
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.0, 2.0, 5.0])
def test_the_subject_is_found_under_noise(sigma: float) -> None:
    worst = 1.0
    for frame in range(4):
        photo, mask = subject((320, 240), frame)
        found = plate_mask(noisy(photo, sigma, frame), noisy(empty_scene((320, 240)), sigma / 3, 9))
        worst = min(worst, iou(found, mask))
    assert worst > {0.0: 0.97, 2.0: 0.96, 5.0: 0.93}[sigma]


def test_an_empty_scene_has_no_subject() -> None:
    plate = empty_scene((320, 240))
    for sigma in (0.0, 3.0, 8.0):
        assert not plate_mask(noisy(plate, sigma, 1), plate).any()
    dark = np.zeros((60, 80, 3), np.uint8)
    assert not plate_mask(noisy(dark, 2.0, 3), dark).any()


def test_shadows_and_exposure_are_no_subject() -> None:
    plate = empty_scene((320, 240)).astype(float)
    photo, mask = subject((320, 240), 1)
    light = np.ones(mask.shape)
    light[200:230, 40:280] = 0.65
    light = ndimage.gaussian_filter(light, 3)[..., None]
    shaded = np.where(mask[..., None] > 0, photo, plate * light)
    darker = np.clip(shaded * (0.85, 0.9, 0.88) + 0.5, 0, 255).astype(np.uint8)
    found = plate_mask(noisy(darker, 1.0, 0), plate.astype(np.uint8))
    assert iou(found, mask) > 0.95
    assert (found[204:226, 50:120] > 0).mean() < 0.01


def test_grey_on_grey_and_light_in_the_dark() -> None:
    plate = np.full((80, 120, 3), 160, np.uint8)
    plate[:, 60:] = 3
    photo = plate.copy()
    photo[20:60, 10:40] = 60  # much darker than a shadow
    photo[20:60, 45:55] = 220  # lighter
    photo[20:60, 80:110] = (30, 32, 30)  # on black
    expected = np.where(np.abs(photo.astype(int) - plate).max(axis=2) > 0, 255, 0)
    assert iou(plate_mask(photo, plate), expected) > 0.93


def test_a_threshold_of_ones_own() -> None:
    photo, mask = subject((320, 240), 0)
    plate = empty_scene((320, 240))
    assert iou(plate_mask(photo, plate, 15.0), mask) > 0.95
    assert plate_mask(photo, plate, 200.0).sum() == 0


def test_masks_of_a_recording(tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    for name, size in (("a_1", SIZE), ("b", (480, 360))):  # a plate of twice the size is shrunk
        write_image(scene / "bkgd" / f"{name}.png", empty_scene(size))
    folder = extract_masks(scene, PlateDifference(scene / "bkgd"), source_dir="images", mask_dir="found")
    for name in NAMES:
        for frame in range(4):
            found, mask = (
                read_image(scene / kind / name / f"{frame:06d}.png")[0][..., 0] for kind in ("found", "masks")
            )
            assert iou(found, mask) > 0.93
    assert folder == scene / "found"


def test_plates_that_cannot_serve(tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    plates = PlateDifference(scene / "bkgd")
    with pytest.raises(DataError, match=r"camera a_1.*has no clean plate"):
        extract_masks(scene, plates, source_dir="images", mask_dir="found")
    for name in NAMES:
        write_image(scene / "bkgd" / f"{name}.jpg", np.zeros((90, 90, 3), np.uint8))
    with pytest.raises(DataError, match="is 90x90, the camera's photos 240x180"):
        extract_masks(scene, plates, source_dir="images", mask_dir="found")
    with pytest.raises(DataError, match="--threshold"):
        extract_masks(scene, PlateDifference(scene / "bkgd", 0.0), source_dir="images", mask_dir="found")
    assert not (scene / "found").exists()
    assert plates_of(scene / "bkgd", ["b"]) == {"b": scene / "bkgd" / "b.jpg"}
