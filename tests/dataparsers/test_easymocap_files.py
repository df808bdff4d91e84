"""Folders and files of a recording: what it falls back to, odd masks, and damaged photos and masks, refused by name."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from easymocap_scene import HEIGHT, WIDTH, draw, make_sequence, ring
from PIL import Image

from core_ns.errors import DataError
from dataparsers.easymocap import write_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Four cameras, three PNG frames, masks; to be damaged."""
    return make_sequence(tmp_path / "own", ring(4), suffix=".png")


def test_folders_and_suffixes_it_falls_back_to_are_said(own: Path, capsys) -> None:
    (own / "masks").rename(own / "bgmtv2")
    sequence = open_sequence(own)
    said = " ".join(capsys.readouterr().out.split())
    assert sequence.masks_dir == "bgmtv2"
    assert "using bgmtv2/" in said
    assert "photos are .png" in said
    shutil.rmtree(own / "bgmtv2")
    sequence = open_sequence(own)
    assert not sequence.has_masks
    assert sequence.mask_path(0, 0) is None
    assert sequence.decode(0, 0).mask is None
    assert "has no masks/" in " ".join(capsys.readouterr().out.split())
    (own / "images" / "extra").mkdir()
    (own / "images" / "00" / "000003.png").write_bytes((own / "images" / "00" / "000002.png").read_bytes())
    open_sequence(own, SequenceOptions(frame_sample=(0, 3, 1)))
    said = " ".join(capsys.readouterr().out.split())
    assert "3 photos of camera 01, but 4 of camera 00" in said
    assert "no chosen camera: extra" in said


def test_no_masks_on_request(own: Path) -> None:
    assert not open_sequence(own, SequenceOptions(masks_dir="none")).has_masks


def test_suffixes_in_order_of_preference(own: Path) -> None:
    image = Image.fromarray(draw((WIDTH, HEIGHT), 0, 0)[0])
    image.save(own / "images" / "00" / "000001.JPG", format="JPEG")
    image.save(own / "images" / "00" / "000001.webp")
    (own / "images" / "00" / ".hidden.jpg").touch()
    (own / "images" / "00" / "notes.txt").touch()
    sequence = open_sequence(own)
    assert [sequence.image_path(0, frame).name for frame in range(3)] == ["000000.png", "000001.JPG", "000002.png"]


def test_frames_by_number(tmp_path: Path, capsys) -> None:
    root = make_sequence(tmp_path, ring(2), frames=11, masks=False)
    for name in ("00", "01"):
        for frame in range(11):
            (root / "images" / name / f"{frame:06d}.jpg").rename(root / "images" / name / f"{frame + 1}.jpg")
    assert open_sequence(root).frames == [str(frame) for frame in range(1, 12)]
    assert "by number" in capsys.readouterr().out


def test_soft_and_odd_masks(own: Path) -> None:
    soft = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    Image.fromarray(soft).save(own / "masks" / "00" / "000000.png")
    cut_out = np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), soft])
    Image.fromarray(cut_out).save(own / "masks" / "00" / "000001.png")
    Image.fromarray(soft > 127).save(own / "masks" / "00" / "000002.png")  # 1 bit
    sequence = open_sequence(own)
    np.testing.assert_array_equal(sequence.decode(0, 0).mask, soft)
    np.testing.assert_array_equal(sequence.decode(0, 1).mask, soft)
    np.testing.assert_array_equal(sequence.decode(0, 2).mask, np.where(soft > 127, 255, 0))
    filled = open_sequence(own, SequenceOptions(fill_outside_mask=True)).decode(0, 0)
    expected = sequence.decode(0, 0).image * (soft[..., None] / 255)
    assert np.abs(filled.image - expected).max() <= 0.5 + 1e-9


def test_colour_matrix(tmp_path: Path, capsys) -> None:
    cameras = ring(2)
    cameras["01"] = replace(cameras["01"], ccm=np.array([[0.0, 1, 0], [0, 0, 0.5], [2, 0, 0]]))
    root = make_sequence(tmp_path, cameras, suffix=".png")
    plain = open_sequence(root)
    assert "ccm" in capsys.readouterr().out
    corrected = open_sequence(root, SequenceOptions(apply_ccm=True))
    np.testing.assert_array_equal(corrected.decode(0, 0).image, plain.decode(0, 0).image)
    red, green, blue = np.moveaxis(plain.decode(1, 0).image.astype(float), -1, 0)
    expected = np.stack([green, np.floor(0.5 * blue + 0.5), np.minimum(2 * red, 255)], axis=-1)
    np.testing.assert_array_equal(corrected.decode(1, 0).image, expected)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def write_png(path: Path, width: int, height: int, pixels: bytes) -> None:
    """A PNG with right checksums, whatever its pixel data are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def break_pixels(path: Path) -> None:
    write_png(path, WIDTH, HEIGHT, b"\x78\x9c" + bytes(range(64)))


def huge(path: Path) -> None:
    write_png(path, 40000, 40000, zlib.compress(bytes(99)))


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone.png")


def resize(path: Path) -> None:
    Image.open(path).resize((WIDTH - 1, HEIGHT)).save(path)


def scale_values(path: Path, factor: float = 1 / 255) -> None:
    for each in path.parent.parent.glob("*/*.png"):
        Image.fromarray((np.asarray(Image.open(each)) * factor).astype(np.uint8)).save(each)


def as_gif(path: Path) -> None:
    Image.open(path).save(path, format="GIF")


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("images", truncate, "does not decode"),
    ("images", break_pixels, "does not decode"),
    ("images", lambda path: path.write_bytes(b""), "cannot be read as an image"),
    ("images", lambda path: path.write_text("not a photo"), "cannot be read as an image"),
    ("images", as_gif, "cannot be read as an image"),
    ("images", huge, "40000x40000"),
    ("images", replaced_by_folder, "is not a file"),
    ("images", dangling, "is not a file"),
    ("images", resize, "camera 01, size.*is 47x36 pixels"),
    ("images", Path.unlink, "camera 01.*no photo of frame 000001; 1 of the 3"),
    ("images", lambda path: shutil.rmtree(path.parent), "camera 01.*no folder of photos"),
    ("images", lambda path: [each.unlink() for each in path.parent.iterdir()], "camera 01.*holds no photo"),
    ("masks", truncate, "does not decode"),
    ("masks", lambda path: path.write_bytes(b""), "cannot be read as an image"),
    ("masks", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(40)), "cannot be read as an image"),
    ("masks", replaced_by_folder, "is not a file"),
    ("masks", resize, "camera 01, size.*is 47x36 pixels"),
    ("masks", Path.unlink, "camera 01.*no mask of frame 000001; 1 of the 3"),
    ("masks", lambda path: shutil.rmtree(path.parent), "camera 01.*no folder of masks"),
    ("masks", scale_values, "holds no foreground: its largest value is 1"),
    ("masks", lambda path: scale_values(path, 19 / 255), "holds no foreground: its largest value is 19"),
    ("masks", lambda path: Image.fromarray(np.ones((HEIGHT, WIDTH), np.float32)).save(path, format="TIFF"), "floating"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_damaged_files_are_named_once(own: Path, number: int) -> None:
    """A file is refused when the sequence is opened or, if only its pixels are bad, when it is decoded."""
    folder, damage, problem = DAMAGES[number]
    damage(own / folder / "01" / "000001.png")
    with pytest.raises(DataError, match=problem) as caught:
        open_sequence(own).decode(1, 1)
    assert folder in caught.value.file
    assert caught.value.remedy
    if problem != "does not decode" and problem != "floating":
        with pytest.raises(DataError):
            open_sequence(own)


def test_size_of_the_calibration(own: Path) -> None:
    write_cameras(own, {name: replace(camera, width=2 * WIDTH) for name, camera in ring(4).items()})
    with pytest.raises(DataError, match=r"camera 00, size.*is 48x36 pixels, its calibration 96x36"):
        open_sequence(own)
    write_cameras(own, {name: replace(camera, width=None, height=None) for name, camera in ring(4).items()})
    assert open_sequence(own).views[0].width == WIDTH, "unknown sizes are those of the photos"


def test_a_photo_that_changes_after_opening(own: Path) -> None:
    sequence = open_sequence(own)
    resize(own / "images" / "02" / "000002.png")
    with pytest.raises(DataError, match="camera 02, size"):
        sequence.decode(2, 2)
    sequence.decode(2, 1)
    (own / "masks" / "02" / "000001.png").unlink()
    with pytest.raises(DataError, match="is not a file"):
        sequence.decode(2, 1)


def test_headers_can_be_left_for_later(own: Path) -> None:
    (own / "images" / "01" / "000001.png").write_bytes(b"")
    sequence = open_sequence(own, SequenceOptions(check_every_header=False))
    with pytest.raises(DataError, match="cannot be read"):
        sequence.decode(1, 1)


def test_other_faults(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        open_sequence(tmp_path / "absent")
    with pytest.raises(DataError, match=r"--masks-dir.*no folder rvm.*images, masks"):
        open_sequence(own, SequenceOptions(masks_dir="rvm"))
    with pytest.raises(DataError, match=r"--images-dir.*no folder photos"):
        open_sequence(own, SequenceOptions(images_dir="photos"))
    folded = {name: replace(camera, D=np.array([-9.0, 0, 0, 0, 0])) for name, camera in ring(4).items()}
    write_cameras(own, folded)
    with pytest.raises(DataError, match=r"camera 00.*cannot be undistorted.*--undistort same"):
        open_sequence(own, SequenceOptions(undistort="optimal"))
    (own / "images").rename(own / "pictures")
    with pytest.raises(DataError, match="holds no folder images"):
        open_sequence(own)
