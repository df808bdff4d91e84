"""Frames of clips by number: right whatever the codec, the order and the thread; damaged clips refused in one line."""

from __future__ import annotations

import pickle
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from clip_scenes import number_of, numbered, write_any
from PIL import Image

from core_ns.errors import DataError
from dataparsers import video_read
from dataparsers.video_read import Clip, close_decoders, open_clip
from dataparsers.video_write import write_clip

FRAMES = 40
QUIET = "log-level=none:frame-threads=1:pools=none"
CODECS = {
    "open_groups.mp4": ("libx265", {"x265_params": f"{QUIET}:keyint=9:min-keyint=9:open-gop=1:bframes=4"}),
    "one_group.mp4": ("libx265", {"x265_params": QUIET}),
    "h264.mov": ("libx264", {"g": "7", "bf": "3"}),
    "h264.mkv": ("libx264", {"g": "250"}),
    "h264.avi": ("libx264", {"g": "12", "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"g": "16"}),
    "jpeg.AVI": ("mjpeg", {}),
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()


def ffmpeg(*words: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)]
    subprocess.run(command, check=True)


def numbers(clip: Clip, order: list[int]) -> list[int]:
    return [number_of(clip.read(number)) for number in order]


@pytest.mark.parametrize("name", CODECS)
def test_any_frame_in_any_order(name: str, tmp_path: Path) -> None:
    codec, options = CODECS[name]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    file = write_any(tmp_path / name, map(numbered, range(FRAMES)), codec, pix_fmt, **options)
    clip = open_clip(file)
    assert clip.name.frames == FRAMES
    assert (clip.size, clip.name.canvas, clip.name.full) == ((64, 64), (64, 64), (64, 64))
    order = np.random.default_rng(3).permutation(FRAMES).tolist()
    assert numbers(clip, order) == order
    assert numbers(clip, list(range(FRAMES))) == list(range(FRAMES))
    there = [clip.read(number) for number in order]
    close_decoders()
    with av.open(str(file)) as container:
        one_pass = [video_read._converted(frame) for frame in container.decode(video=0)]
    for number, picture in zip(order, there, strict=True):
        np.testing.assert_array_equal(picture, one_pass[number])
        np.testing.assert_array_equal(clip.read(number), picture)


def test_without_time_stamps_frames_are_counted(tmp_path: Path, monkeypatch) -> None:
    file = write_any(tmp_path / "a.mp4", map(numbered, range(FRAMES)), g="7")
    clip = open_clip(file)
    monkeypatch.setattr(video_read, "_read_index", lambda file: video_read._Index(FRAMES, None, []))
    close_decoders()
    order = [5, 6, 30, 2, 39, 0, 1]
    assert numbers(clip, order) == order


def test_jumps_that_land_too_late_are_made_up_for(tmp_path: Path, monkeypatch) -> None:
    file = write_any(tmp_path / "a.mp4", map(numbered, range(FRAMES)), g="7")
    index = video_read._read_index(file)
    late = [(number, index.stamps[-1]) for number, _ in index.keys]
    monkeypatch.setattr(video_read, "_read_index", lambda file: index._replace(keys=late))
    order = [5, 30, 2, 39, 0, 1, 20]
    assert numbers(open_clip(file), order) == order


def test_parts_that_players_skip_are_no_frames(tmp_path: Path) -> None:
    """Cut without decoding: the file keeps pictures from the last key frame on, an edit list hides them."""
    write_any(tmp_path / "a.mp4", map(numbered, range(FRAMES)), g="9")
    ffmpeg("-ss", "0.5", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "cut.mp4")
    clip = open_clip(tmp_path / "cut.mp4")
    first = number_of(clip.read(0))
    assert 9 < first < 16
    assert numbers(clip, list(range(clip.name.frames)))[::-1] == list(range(first, FRAMES))[::-1]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_videos_stand_upright(degrees: int, tmp_path: Path) -> None:
    write_any(tmp_path / "flat.mp4", [numbered(0b1101)] * 3)
    turned, shown = tmp_path / "turned.mp4", tmp_path / "shown.png"
    ffmpeg("-display_rotation", degrees, "-i", tmp_path / "flat.mp4", "-c", "copy", turned)
    ffmpeg("-i", turned, "-frames:v", 1, shown)
    expected = np.asarray(Image.open(shown).convert("RGB")).astype(int)
    clip = open_clip(turned)
    assert clip.size == expected.shape[1::-1]
    assert np.abs(clip.read(1).astype(int) - expected).max() <= 4


def test_crops_lie_on_a_black_canvas(tmp_path: Path) -> None:
    pictures = [numbered(number, (64, 64)) for number in range(3)]
    name = "cam_1_N3_x10_y6_W90_H69_FW180_FH139"
    write_clip(tmp_path / f"{name}.mp4", pictures, (64, 64))
    clip = open_clip(tmp_path / f"{name}.mp4")
    assert (str(clip.name), clip.name.camera, clip.size) == (name, "cam_1", (64, 64))
    picture = clip.read(2)
    assert picture.shape == (69, 90, 3)
    # 64 rows from row 6 on are one more than the canvas has: encoders of the original pad odd crops.
    np.testing.assert_array_equal(picture[6:, 10:74], clip.read_crop(2)[:63])
    picture[6:, 10:74] = 0
    assert not picture.any()
    assert pickle.loads(pickle.dumps(clip)) == clip


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "size"),
    [("yuv420p10le", "libx265", (64, 64)), ("yuvj420p", "libx264", (64, 48)), ("yuv422p", "libx264", (64, 48)),
     ("yuv444p", "libx264", (71, 53))],
)  # fmt: skip
def test_kinds_of_pixels(pix_fmt: str, codec: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Ten bits, full range, half and full colour, odd sides: all come out as the same picture."""
    options = {"x265_params": QUIET} if codec == "libx265" else {}
    clip = open_clip(write_any(tmp_path / "a.mp4", [numbered(5, size)] * 4, codec, pix_fmt, crf="5", **options))
    assert clip.size == size
    error = np.abs(clip.read(2).astype(int) - numbered(5, size))
    assert error.mean() < 3
    assert np.abs(clip.read_brightness(2).astype(int) - numbered(5, size)[..., 0]).mean() < 3


def test_colours_come_back(tmp_path: Path) -> None:
    u, v = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64))
    picture = np.stack([u, v, 255 - u], axis=-1).round().astype(np.uint8)
    for full_colour, most in ((False, 2.0), (True, 1.5)):
        write_clip(tmp_path / "c.mp4", [picture], (96, 64), crf=4, full_colour=full_colour)
        error = np.abs(open_clip(tmp_path / "c.mp4").read(0).astype(int) - picture)
        assert error.mean() < most
        assert error.max() <= 12
    grey = np.repeat(u.round().astype(np.uint8)[..., None], 3, axis=2)
    write_clip(tmp_path / "g.mp4", [grey], (96, 64), crf=4)
    clip = open_clip(tmp_path / "g.mp4")
    assert np.abs(clip.read(0).astype(int) - grey).max() <= 4
    assert np.abs(clip.read_brightness(0).astype(int) - grey[..., 0]).max() <= 4


def test_threads_share_decoders_and_memory_is_bounded(tmp_path: Path, monkeypatch) -> None:
    clips = [
        open_clip(write_any(tmp_path / f"{k}.mp4", [numbered((n + 5 * k) % 256) for n in range(FRAMES)], g="8"))
        for k in range(4)
    ]
    pool = video_read._Pool(limit=int(2.5 * 12 * 1.5 * 64 * 64))
    monkeypatch.setattr(video_read, "_pool", pool)
    wanted = [(k, n) for n in np.random.default_rng(0).permutation(FRAMES).tolist() for k in range(4)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda item: number_of(clips[item[0]].read(item[1])), wanted))
    assert found == [(n + 5 * k) % 256 for k, n in wanted]
    assert len(pool._idle) == 2, "the others were closed"
    pool.close()
    assert not pool._idle


def test_reading_on_decodes_every_picture_once(tmp_path: Path, monkeypatch) -> None:
    clip = open_clip(write_any(tmp_path / "a.mp4", map(numbered, range(FRAMES)), g="250", x264_params="scenecut=0"))
    assert clip.longest_group == FRAMES
    seeks: list[int] = []
    original = video_read._Decoder._forward

    def counted(self, stamp):
        seeks.append(self.at)
        return original(self, stamp)

    monkeypatch.setattr(video_read._Decoder, "_forward", counted)
    assert numbers(clip, list(range(FRAMES))) == list(range(FRAMES))
    assert seeks == [*range(-1, FRAMES - 1)], "one step each, no jump"
    del seeks[:]
    for number in (FRAMES - 1, FRAMES - 1, FRAMES - 1):
        assert number_of(clip.read(number)) == number_of(np.repeat(clip.read_brightness(number)[..., None], 3, 2))
    assert not seeks, "the last picture is still there, for its mask"
    assert numbers(clip, list(range(3, FRAMES, 5))) == list(range(3, FRAMES, 5))


def test_longest_group_of_what_we_write(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", map(numbered, range(30)), (64, 64), key_every=12)
    assert open_clip(tmp_path / "a.mp4").longest_group == 12


def playlist(file: Path) -> None:
    file.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")


def sound(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def truncated(file: Path) -> None:
    write_any(file, map(numbered, range(20)))
    file.write_bytes(file.read_bytes()[:200])


MALFORMED = {
    "empty": (lambda file: file.touch(), "cannot be read as mov video"),
    "text": (lambda file: file.write_text("not a video"), "cannot be read as mov video"),
    "playlist": (playlist, "cannot be read as mov video"),
    "matroska in mp4's clothes": (lambda file: write_matroska(file), "cannot be read as mov video"),
    "truncated": (truncated, "holds no video that can be decoded"),
    "sound alone": (sound, "holds no video"),
    "a folder": (lambda file: file.mkdir(), "is not a file"),
}


def write_matroska(file: Path) -> None:
    write_any(file.with_suffix(".mkv"), map(numbered, range(3))).rename(file)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    make, message = MALFORMED[case]
    make(tmp_path / "00.mp4")
    with pytest.raises(DataError, match=message):
        open_clip(tmp_path / "00.mp4")


def test_names_that_lie_are_refused(tmp_path: Path) -> None:
    file = write_any(tmp_path / "a.mp4", map(numbered, range(3)))
    cases = {
        "a_N4_x0_y0_W64_H64_FW64_FH64": "says 4 frames, the file holds 3",
        "a_N3_x2_y0_W64_H64_FW64_FH64": "puts pictures of 64x64 at",
        "a_N3_x0_y0_W64_H62_FW64_FH64": "puts pictures of 64x64 at",
    }
    for name, message in cases.items():
        file = file.rename(tmp_path / f"{name}.mp4")
        with pytest.raises(DataError, match=message):
            open_clip(file)
    with pytest.raises(DataError, match="is no clip's"):
        open_clip(file.rename(tmp_path / "a.ts"))


def test_clips_that_change_are_noticed(tmp_path: Path) -> None:
    file = write_any(tmp_path / "a.mp4", map(numbered, range(30)), g="5")
    clip = open_clip(file)
    for wrong in (30, -1):
        with pytest.raises(DataError, match="is not there; the clip holds 30"):
            clip.read(wrong)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    damaged = 0
    for number in range(30):
        try:
            damaged += number_of(clip.read(number)) != number
        except DataError:
            break
    else:
        pytest.fail("the last third cannot be there")
    assert not damaged
    write_any(file, [numbered(7, (32, 32))] * 3)
    with pytest.raises(DataError, match="is 32x32 pixels, the first one 64x64"):
        clip.read(1)
    file.unlink()
    with pytest.raises(DataError, match="is not a file"):
        clip.read(1)


def test_damaged_pictures_are_not_passed_on(tmp_path: Path) -> None:
    """Any byte may be wrong: a frame is then as it was, refused, or (where no checksum tells) of other colours."""
    file = write_any(tmp_path / "a.mp4", map(numbered, range(12)), g="4")
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(25):
        broken = bytearray(whole)
        for place in rng.integers(48, len(broken), 12):
            broken[place] = rng.integers(256)
        file.write_bytes(bytes(broken))
        try:
            clip = open_clip(file)
            for number in range(clip.name.frames):
                assert clip.read(number).dtype == np.uint8
        except DataError:
            refused += 1
    assert refused > 5


def test_few_decoders_where_clips_are_many(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video_read, "_pool", video_read._Pool(limit=1 << 30))
    monkeypatch.setattr(video_read, "INDEX_STAMPS", 25)
    clips = [
        open_clip(write_any(tmp_path / f"{k} x.mp4", map(numbered, range(10)), g="5"), plain=True) for k in range(6)
    ]
    assert [clip.fps for clip in clips] == [25.0] * 6
    video_read.hold_decoders(2)
    for number in (3, 8):
        assert [number_of(clip.read(number)) for clip in clips] == [number] * 6
        assert len(video_read._pool._idle) == 2
        assert len(video_read._pool._indices) == 2, "times of twenty frames"
    video_read._pool.close()
