"""Everything that can be wrong with clips: one DataError each that names the file, before anything is written."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from clip_folders import write_picture, write_pictures, write_poses, write_video
from clip_scenes import numbered, write_any
from PIL import Image

from core_ns.errors import DataError
from dataparsers.clips import Catalogue, catalogue
from dataparsers.clips_frames import read_frame
from dataparsers.clips_poses import clip_poses
from dataparsers.clips_sequence import forget_pictures
from dataparsers.video_read import close_decoders


@pytest.fixture(autouse=True)
def _closed():
    forget_pictures()
    yield
    close_decoders()
    forget_pictures()


def sound(root: Path) -> None:
    with av.open(str(root / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def header_only(root: Path) -> None:
    file = write_video(root / "a.mp4")
    file.write_bytes(file.read_bytes()[:300])


def disguised(root: Path) -> None:
    write_any(root / "a.mkv", [numbered(k) for k in range(12)])
    (root / "a.mkv").rename(root / "a.mp4")


def playlist(root: Path) -> None:
    (root / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")


def huge(root: Path) -> None:
    write_pictures(root / "a")
    name = root / "a" / "000.png"
    data = bytearray(name.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    name.write_bytes(bytes(data))


def two_of_a_name(root: Path) -> None:
    write_video(root / "a.mp4")
    write_pictures(root / "a")


def in_folder(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        write_pictures(root / "a")
        change(root / "a" / "005.png")

    return make


def with_splits(content: str, *clips: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for clip in clips:
            write_pictures(root / clip)
        (root / "splits.json").write_text(content)

    return make


def with_index(root: Path) -> None:
    write_pictures(root / "a")
    (root / "clips_index.json").write_text("{}")


NO_VIDEO, NO_IMAGE = "cannot be read as mov video", "cannot be read as an image"
FOUND = {
    "an empty video": (lambda root: (root / "a.mp4").touch(), "a.mp4", NO_VIDEO),
    "a text": (lambda root: (root / "a.mp4").write_text("no video"), "a.mp4", NO_VIDEO),
    "a playlist": (playlist, "a.mp4", NO_VIDEO),
    "another container": (disguised, "a.mp4", NO_VIDEO),
    "sound alone": (sound, "a.mp4", "holds no video"),
    "a header alone": (header_only, "a.mp4", "holds no video|does not decode"),
    "a short video": (lambda root: write_video(root / "a.mp4", 5), "", "no clip of 10 frames"),
    "few pictures": (lambda root: write_pictures(root / "a", 9), "", "no clip of 10 frames"),
    "an empty picture": (in_folder(lambda file: file.write_bytes(b"")), "005.png", NO_IMAGE),
    "a text as picture": (in_folder(lambda file: file.write_text("x")), "005.png", NO_IMAGE),
    "sizes that differ": (in_folder(lambda file: write_picture(file, 5, (24, 32))), "a", "24x32 pixels, 000"),
    "a huge picture": (huge, "000.png", "limit is 500 MP"),
    "a folder as picture": (in_folder(lambda file: (file.unlink(), file.mkdir())), "", ""),
    "two clips of a name": (two_of_a_name, "a", "is clip 'a', and so is"),
    "nothing": (lambda root: (root / "notes.txt").touch(), "", "holds no video and no folder of pictures"),
    "splits of other clips": (with_splits('{"train": ["b"]}', "a"), "splits.json", "is not among the clips"),
    "splits that leave nothing": (
        with_splits('{"train": ["a", "b"], "test": []}', "a", "b"), "splits.json", "more that is held out",
    ),
    "a broken index": (with_index, "clips_index.json", "is no index of clips"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_found_when_the_clips_are_looked_at(kind: str, tmp_path: Path) -> None:
    make, file, message = FOUND[kind]
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if kind == "a folder as picture":
        assert catalogue(tmp_path).sequences[0].frames == 11, "folders are no pictures, whatever their name"
        return
    with pytest.raises(DataError, match=message) as caught:
        catalogue(tmp_path)
    assert Path(caught.value.file) == tmp_path / file or Path(caught.value.file).name == file
    assert caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is neither a folder nor a video"):
        catalogue(tmp_path / "absent")


def cut_off(root: Path) -> None:
    """The frames' times are known, the last pictures are gone."""
    file = write_any(root / "a.mp4", [numbered(k, (64, 64)) for k in range(40)], g="5")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * 0.6)])


def damaged(root: Path) -> None:
    file = write_any(
        root / "a.mp4",
        [np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8) for k in range(40)],
        g="5",
    )
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    data[half : half + 20_000] = b"\xff" * 20_000
    file.write_bytes(bytes(data))


def torn_picture(root: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (root / "a").mkdir(exist_ok=True)
        Image.fromarray(noise).save(root / "a" / f"{number:02d}.jpg")
    torn = root / "a" / "11.jpg"
    torn.write_bytes(torn.read_bytes()[:1000])


def floats(root: Path) -> None:
    for number in range(12):
        (root / "a").mkdir(exist_ok=True)
        Image.fromarray(np.ones((8, 8), np.float32)).save(root / "a" / f"{number:02d}.tif")


READ = {
    "a video that was cut off": (cut_off, "does not decode"),
    "a damaged video": (damaged, "does not decode|is not there"),
    "a torn picture": (torn_picture, "does not decode"),
    "floating-point pictures": (floats, "floating-point"),
}


@pytest.mark.parametrize("kind", READ)
def test_found_when_frames_are_read(kind: str, tmp_path: Path) -> None:
    make, message = READ[kind]
    make(tmp_path)

    def read_all(found: Catalogue) -> None:
        for sequence in found.sequences:
            for index in range(sequence.frames):
                read_frame(sequence, index)

    with pytest.raises(DataError, match=message) as caught:
        read_all(catalogue(tmp_path))
    assert tmp_path in Path(caught.value.file).parents


def test_a_picture_that_changed_its_size(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a")
    sequence = catalogue(tmp_path).sequences[0]
    write_picture(tmp_path / "a" / "000.png", 0, (16, 16))
    with pytest.raises(DataError, match="is 16x16 pixels, the clip's frames are 32x24"):
        read_frame(sequence, 0)


EYE = np.eye(4).tolist()
POSES = {
    "not json": ("{", "is not JSON"),
    "no frames": ("{}", "frames"),
    "no lens": (json.dumps({"frames": [{"file_path": "000.png", "transform_matrix": EYE}]}), "camera_angle_x"),
    "no matrix": (json.dumps({"fl_x": 9, "frames": [{"file_path": "000.png"}]}), "transform_matrix"),
    "no path": (json.dumps({"fl_x": 9, "frames": [{"file_path": 7, "transform_matrix": EYE}]}), "missing or no path"),
    "a long path": (
        json.dumps({"fl_x": 9, "frames": [{"file_path": "x" * 999, "transform_matrix": EYE}]}), "cannot be opened",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", POSES)
def test_bad_poses(kind: str, tmp_path: Path) -> None:
    content, message = POSES[kind]
    write_pictures(tmp_path / "a")
    (tmp_path / "a" / "transforms.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        clip_poses(catalogue(tmp_path).sequences[0])
    assert "Clips need no poses" in caught.value.remedy


def test_poses_of_some_frames(tmp_path: Path) -> None:
    """COLMAP leaves photos out, users delete some: what is known counts."""
    write_pictures(tmp_path / "a")
    poses = write_poses(tmp_path / "a" / "transforms.json", [f"elsewhere/{k:03d}.png" for k in range(3, 15)])
    known = clip_poses(catalogue(tmp_path).sequences[0])
    assert known is not None
    assert known.known.tolist() == [False] * 3 + [True] * 9
    np.testing.assert_allclose(known.c2w[3:], poses[:9], atol=1e-12)
    assert known.focal == pytest.approx(64 / 24)
    write_poses(tmp_path / "a" / "transforms.json", ["other.png"])
    assert clip_poses(catalogue(tmp_path).sequences[0]) is None


OPTIONS = {
    "stride": ({"stride": 0}, "stride"),
    "rate": ({"max_fps": 0.0}, "max-fps"),
    "long stride": ({"stride": 3}, "no clip of 10 frames"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_bad_options(kind: str, tmp_path: Path) -> None:
    options, message = OPTIONS[kind]
    write_pictures(tmp_path / "a")
    with pytest.raises(DataError, match=message):
        catalogue(tmp_path, **options)
