"""Photos of every stored kind become 8-bit RGB; broken ones are refused; writes are atomic."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core_ns.atomic import atomic_path, write_bytes, write_json, write_text
from core_ns.errors import DataError
from core_ns.images import area_downscale, image_size, read_image, write_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF"])
def test_lossless_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, RGB)
    rgb, alpha = read_image(path)
    np.testing.assert_array_equal(rgb, RGB)
    assert alpha is None
    assert rgb.flags.writeable
    assert image_size(path) == (7, 5)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".WebP"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 24, 3), (200, 100, 50), dtype=np.uint8)
    write_image(tmp_path / f"a{suffix}", flat)
    rgb, alpha = read_image(tmp_path / f"a{suffix}")
    assert np.abs(rgb.astype(int) - flat).max() <= 4
    assert alpha is None
    assert image_size(tmp_path / f"a{suffix}") == (24, 16)


def test_grey_is_repeated(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GREY)
    rgb, alpha = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, np.repeat(GREY[..., None], 3, axis=-1))
    assert alpha is None


def test_bilevel_palette_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[0][..., 0], np.where(GREY > 127, 255, 0))
    palette = Image.fromarray(RGB // 128 * 255).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png")[0], np.asarray(palette.convert("RGB")))
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = read_image(tmp_path / "cmyk.jpg")[0]
    assert red[..., 0].min() > 240
    assert red[..., 1:].max() < 15


def test_alpha_is_separate_and_colours_stay_unmultiplied(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    write_image(tmp_path / "a.png", np.dstack([RGB, alpha]))
    rgb, read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, RGB)
    np.testing.assert_array_equal(read, alpha)
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    rgb, read = read_image(tmp_path / "la.png")
    np.testing.assert_array_equal(rgb[..., 2], GREY)
    np.testing.assert_array_equal(read, alpha)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32896, 65406, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}")[0][..., 1], expected)


def sixteen_bit_rgb_png(rgb: np.ndarray) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    head = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(sixteen_bit_rgb_png(RGB.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], RGB)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (7, 5)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], RGB)


def test_large_photos_pass_without_a_warning(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("L", (8192, 5460)).save(tmp_path / "survey.png", compress_level=1)
    rgb, _ = read_image(tmp_path / "survey.png")
    assert rgb.shape == (5460, 8192, 3)
    Image.new("1", (20000, 12000)).save(tmp_path / "panorama.png")  # 240 MP: beyond Pillow's own limit
    assert image_size(tmp_path / "panorama.png") == (20000, 12000)
    assert limit == Image.MAX_IMAGE_PIXELS


def declared(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def damaged() -> dict[str, tuple[str, bytes]]:
    whole = sixteen_bit_rgb_png(RNG.integers(0, 65535, (50, 50, 3)))
    return {
        "bomb": ("a.png", declared(100_000, 100_000)),
        "empty": ("a.jpg", b""),
        "text": ("a.jpg", b"hello"),
        "cut head": ("a.png", whole[:20]),
        "cut pixels": ("a.png", whole[: len(whole) // 2]),
        "gif called png": ("a.png", b"GIF89a" + b"\x01\0\x01\0\0\0\0;" * 3),
        "postscript called png": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    }


@pytest.mark.parametrize("case", damaged().values(), ids=damaged().keys())
def test_damaged_images_give_one_complete_error(tmp_path: Path, case: tuple[str, bytes]) -> None:
    path = tmp_path / case[0]
    path.write_bytes(case[1])
    with pytest.raises(DataError) as caught:
        read_image(path)
    error = caught.value
    assert error.file == str(path)
    assert all((error.place, error.problem, error.remedy))


def test_float_and_wide_integer_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(tmp_path / "i.tif")
    for name, message in (("f.tif", "floating-point"), ("i.tif", "beyond 16 bit")):
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name)


def test_missing_image(tmp_path: Path) -> None:
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(DataError, match="is not a file"):
            image_size(path)


def slow_area(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Every target pixel as an explicit sum over overlapping source pixels."""
    result = np.zeros((height, width, image.shape[2]))
    sy, sx = image.shape[0] / height, image.shape[1] / width
    for row in range(height):
        for column in range(width):
            for y in range(int(row * sy), min(int(np.ceil((row + 1) * sy)), image.shape[0])):
                for x in range(int(column * sx), min(int(np.ceil((column + 1) * sx)), image.shape[1])):
                    overlap_y = min(y + 1, (row + 1) * sy) - max(y, row * sy)
                    overlap_x = min(x + 1, (column + 1) * sx) - max(x, column * sx)
                    result[row, column] += overlap_y * overlap_x * image[y, x]
    return result / (sy * sx)


@pytest.mark.parametrize("size", [(6, 5), (4, 4), (5, 7), (1, 1), (12, 10)])
def test_area_downscale_matches_the_definition(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
    shrunk = area_downscale(image, *size)
    assert shrunk.shape == (size[1], size[0], 3)
    assert np.abs(shrunk - slow_area(image, *size)).max() <= 0.51


def test_area_downscale_does_not_enlarge() -> None:
    for size in ((13, 10), (12, 11), (0, 5)):
        with pytest.raises(ValueError, match="cannot shrink"):
            area_downscale(np.zeros((10, 12, 3), np.uint8), *size)


def test_write_image_refuses_other_arrays(tmp_path: Path) -> None:
    for array in (RGB.astype(np.float32), RGB[..., :2], RGB[None]):
        with pytest.raises(ValueError, match="expected uint8"):
            write_image(tmp_path / "a.png", array)
    with pytest.raises(ValueError, match="cannot write"):
        write_image(tmp_path / "a.exe", RGB)
    assert not list(tmp_path.iterdir())


def test_atomic_writes_leave_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def fail() -> None:
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == path.suffix
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"old\r\n"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_bytes() == b"new"


def test_json_keeps_doubles_and_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    import json

    value = {"scale": 0.1 + 0.2, "name": "Schloß", "list": [1e-300, 1e300]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_jpegs_for_thumbnails(tmp_path: Path) -> None:
    """A half, quarter or eighth as long as enough pixels are left; other formats and small photos come whole."""
    picture = np.random.default_rng(0).integers(0, 256, (61, 103, 3), dtype=np.uint8)
    write_image(tmp_path / "a.jpg", picture)
    write_image(tmp_path / "a.png", picture)
    sizes = {8: (8, 13), 9: (16, 26), 16: (16, 26), 17: (31, 52), 31: (31, 52), 32: (61, 103), 500: (61, 103)}
    for at_least, (height, width) in sizes.items():
        assert read_image(tmp_path / "a.jpg", at_least)[0].shape == (height, width, 3)
        assert read_image(tmp_path / "a.png", at_least)[0].shape == (61, 103, 3)
    for side in range(1, 40):
        write_image(tmp_path / "b.jpg", picture[:side, :23])
        for at_least in range(1, 24):
            shape = read_image(tmp_path / "b.jpg", at_least)[0].shape
            assert shape[:2] in [(-(-side // share), -(-23 // share)) for share in (1, 2, 4, 8)]
            assert min(shape[:2]) >= min(at_least, side, 23)
