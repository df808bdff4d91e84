"""Photos nobody calibrated: EXIF orientation and lens, --fov (spec megascenes 7)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from core_ns.errors import DataError
from megascenes_ns.photo import Lens, describe_photo, exif_of, focal_length, parse_fov, read_photo, upright

FOCAL_35, BLOCK, ORIENTATION = 0xA405, 0x8769, 0x0112


def write(file: Path, orientation: int | None = None, focal_35: object = None) -> Path:
    """A photo of 60 x 40 that no turning leaves as it is, with EXIF data."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    tags = Image.Exif()
    if orientation is not None:
        tags[ORIENTATION] = orientation
    if focal_35 is not None:
        tags.get_ifd(BLOCK)[FOCAL_35] = focal_35
    Image.fromarray(pixels).save(file, exif=tags)
    return file


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_applies_it(tmp_path: Path, orientation: int):
    file = write(tmp_path / "photo.png", orientation)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_photo(file).image, expected)
    np.testing.assert_array_equal(upright(np.asarray(Image.open(file).convert("RGB")), orientation), expected)


def test_the_lens_of_exif_compares_diagonals(tmp_path: Path):
    photo = read_photo(write(tmp_path / "photo.jpg", 6, 28))
    assert photo.image.shape == (60, 40, 3)
    expected = 28 * math.hypot(60, 40) / math.hypot(36, 24)
    np.testing.assert_allclose(photo.K, [[expected, 0, 20], [0, expected, 30], [0, 0, 1]])
    assert "28 mm" in photo.lens
    assert read_photo(tmp_path / "photo.jpg", "60").K[0, 0] == pytest.approx(20 / math.tan(math.radians(30)))


def test_without_exif_55_degrees_across(tmp_path: Path):
    photo = read_photo(write(tmp_path / "photo.png"))
    assert 2 * math.degrees(math.atan(30 / photo.K[0, 0])) == pytest.approx(55)
    assert "assumed" in photo.lens


def test_nonsense_in_exif_is_ignored(tmp_path: Path):
    assert exif_of(write(tmp_path / "photo.jpg", 42, 0)) == (1, None)
    assert exif_of(write(tmp_path / "photo.jpg", 3, 65535)) == (3, None)
    (tmp_path / "text.jpg").write_text("no photo")
    assert exif_of(tmp_path / "text.jpg") == (1, None)
    with pytest.raises(DataError):
        read_photo(tmp_path / "text.jpg")


def test_fields_of_view():
    assert parse_fov("auto") == Lens("auto")
    assert parse_fov("60") == parse_fov("60h") == Lens("horizontal", 60.0)
    assert parse_fov("75.5d") == Lens("diagonal", 75.5)
    assert focal_length(256, 192, parse_fov("legacy80"))[0] == 80
    assert focal_length(192, 512, parse_fov("legacy80"))[0] == 160
    wide, _ = focal_length(300, 400, parse_fov("90d"))
    assert wide == pytest.approx(250)
    for text in ("", "wide", "0", "180", "-5", "60x", "1e2"):
        with pytest.raises(DataError, match="no field of view"):
            parse_fov(text)


def test_description(tmp_path: Path):
    lines = describe_photo(write(tmp_path / "photo.jpg", 8, 50))
    assert any("40x60 (EXIF orientation 8 applied)" in line for line in lines)
    assert any("50 mm" in line for line in lines)
