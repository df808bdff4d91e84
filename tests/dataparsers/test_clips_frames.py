"""Frames and squares: the reference resize against its formula pixel by pixel, videos against pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from clip_folders import write_pictures, write_video
from clip_scenes import number_of, numbered, write_any
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core_ns.errors import DataError
from dataparsers import clips_frames
from dataparsers.clips import catalogue
from dataparsers.clips_frames import read_frame, read_squares, square
from dataparsers.clips_sequence import Sequence, forget_pictures
from dataparsers.video_read import close_decoders


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()
    forget_pictures()


def slow_square(frame: np.ndarray, size: int) -> np.ndarray:
    """Spec 2.3, one value at a time."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    places = [float(place) for place in np.linspace(0, side - 1, size)]
    out = np.zeros((size, size, 3), np.uint8)
    for row, y in enumerate(places):
        for column, x in enumerate(places):
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
            for channel in range(3):
                value = [[float(frame[top + b, left + a, channel]) for a in (x0, x1)] for b in (y0, y1)]
                upper = value[0][0] + (x - x0) * (value[0][1] - value[0][0])
                lower = value[1][0] + (x - x0) * (value[1][1] - value[1][0])
                out[row, column, channel] = int(upper + (y - y0) * (lower - upper))
    return out


@given(height=st.integers(1, 24), width=st.integers(1, 24), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_reference_resize_is_its_formula(height: int, width: int, size: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square(frame, size), slow_square(frame, size))


def test_flat_pictures_stay_flat() -> None:
    """Cutting off would turn 199.99999 into 199."""
    for value in (1, 77, 200, 255):
        flat = np.full((37, 91, 3), value, np.uint8)
        for mode in ("reference", "antialias"):
            assert (square(flat, 23, mode) == value).all()


def test_the_centre_is_cut_out() -> None:
    frame = np.zeros((5, 9, 3), np.uint8)
    frame[:, 2:7] = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
    for mode in ("reference", "antialias"):
        np.testing.assert_array_equal(square(frame, 5, mode), frame[:, 2:7])
    assert square(np.zeros((6, 9, 3), np.uint8), 6).shape == (6, 6, 3)


def test_gratings_alias_in_the_reference_alone() -> None:
    """Spec 2.3: rows of a 1080 pixel picture that alternate keep a spread of 74 of 255, antialiased 1."""
    grating = np.repeat((np.arange(1080) % 2 * 255).astype(np.uint8)[:, None, None], 1080, 1).repeat(3, 2)
    assert 70 < square(grating, 256).std() < 78
    assert square(grating, 256, "antialias").std() < 2


def test_large_jpegs_are_decoded_small(tmp_path: Path) -> None:
    """Antialiased squares hardly differ, and cost less; the reference reads every pixel."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    smooth = Image.fromarray(rng.integers(0, 256, (20, 32, 3), dtype=np.uint8)).resize(
        (1037, 651), Image.Resampling.BICUBIC
    )
    for number in range(10):
        smooth.save(tmp_path / "a" / f"{number}.jpg", quality=92)
    sequence = catalogue(tmp_path / "a").sequences[0]
    for size, expected in ((64, (163, 260)), (163, (326, 519)), (326, (651, 1037))):
        whole = square(read_frame(sequence, 0), size, "antialias").astype(int)
        assert np.abs(read_squares(sequence, [0], size)[0] - whole).mean() < 2.5, "a tenth of a pixel beside"
        assert clips_frames._picture(sequence, 0, 2 * size).shape[:2] == expected
        np.testing.assert_array_equal(
            read_squares(sequence, [0], size, "reference")[0], square(read_frame(sequence, 0), size)
        )


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 10)
    rgb = Image.open(tmp_path / "a" / "003.png")
    rgb.convert("L").save(tmp_path / "a" / "003.png")
    rgb.convert("RGBA").save(tmp_path / "a" / "004.png")
    rgb.convert("P").save(tmp_path / "a" / "005.png")
    sequence = catalogue(tmp_path / "a").sequences[0]
    for index in (3, 4, 5):
        assert number_of(read_frame(sequence, index)) == 3
        assert read_frame(sequence, index).shape == (24, 32, 3)


def test_videos_and_folders_give_the_same(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", 30, (64, 64))
    write_pictures(tmp_path / "folder", 30, (64, 64))
    found = catalogue(tmp_path, stride=2)
    order = np.random.default_rng(0).permutation(15).tolist()
    for id in ("video", "folder"):
        sequence = found.sequence(id)
        assert (sequence.frames, sequence.size) == (15, (64, 64))
        squares = read_squares(sequence, order, 64, "reference")
        assert [number_of(picture) for picture in squares] == [2 * index for index in order]
    video = read_squares(found.sequence("video"), range(15), 32)
    pictures = read_squares(found.sequence("folder"), range(15), 32)
    assert np.abs(video.astype(int) - pictures).mean() < 4


def test_threads_get_what_they_ask_for(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", 40, (64, 64))
    found = catalogue(tmp_path)
    wanted = [(name, int(index)) for index in np.random.default_rng(1).permutation(40) for name in "abc"]
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda item: number_of(read_frame(found.sequence(item[0]), item[1])), wanted))
    assert numbers == [index for _, index in wanted]


def test_videos_of_any_name(tmp_path: Path) -> None:
    """Other readers of clips take places and sizes from names; here they are names."""
    names = ["My holiday (1).mp4", "00_N3_x0_W64.mp4", "b_FW1_FHx.mp4", "Ärger — 🎬.mov"]
    for name in names:
        write_video(tmp_path / name, 12)
    found = catalogue(tmp_path)
    assert {sequence.id for sequence in found.sequences} == {Path(name).stem for name in names}
    for sequence in found.sequences:
        assert number_of(read_frame(sequence, 7)) == 7
        assert sequence.fps == 25.0


def test_frames_that_are_not_there(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a")
    sequence = catalogue(tmp_path / "a").sequences[0]
    for index in (-1, sequence.frames):
        with pytest.raises(DataError, match="is not there"):
            read_frame(sequence, index)
    (tmp_path / "a" / "011.png").unlink()
    (tmp_path / "a" / "010.png").unlink()
    forget_pictures()
    with pytest.raises(DataError, match="fewer than when the clips were found"):
        read_frame(sequence, sequence.frames - 1)


def test_parts_and_thinned_clips() -> None:
    whole = Sequence("a", 100, (4, 4), 30.0, Path("a"), None)
    third = whole.thinned(3)
    assert (third.frames, third.fps, third.stored(33)) == (34, 10.0, 99)
    part = third.part("b", 10, 20)
    assert (part.frames, part.stored(0), part.stored(9)) == (10, 30, 57)
    again = part.thinned(2)
    assert [again.stored(k) for k in range(again.frames)] == [30, 36, 42, 48, 54]


def test_long_clips_are_not_held_in_memory(tmp_path: Path, monkeypatch) -> None:
    """A frame costs the pictures from its key frame on, and no more are kept."""
    from dataparsers import video_read

    file = write_any(tmp_path / "long.mp4", (numbered(k % 256) for k in range(600)), g="10", x264_params="scenecut=0")
    decoded = []
    original = video_read._Decoder._forward

    def counted(self, stamp):
        for frame in self._pictures:
            decoded.append(frame.pts)
            if frame.pts is None or frame.pts >= stamp:
                return frame
        return original(self, stamp)

    monkeypatch.setattr(video_read._Decoder, "_forward", counted)
    sequence = catalogue(file).sequences[0]
    assert number_of(read_frame(sequence, 455)) == 455 % 256
    assert len(decoded) <= 20, "two groups of ten at most"
