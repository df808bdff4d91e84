"""Generated clips: pairs share their path, planes are shifted pictures, rooms obey their cameras."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core_ns.errors import DataError
from dataparsers.clips import catalogue
from dataparsers.clips_frames import read_frame
from dataparsers.clips_poses import clip_poses
from dataparsers.demo_clips import make_demo_clips, plane_pictures, shift_path, smooth_picture
from dataparsers.demo_room import FREE, HALF, HEIGHT, Room, room_path


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(file)) for file in sorted((folder / "images").iterdir())])


def test_planes_are_shifted_pictures(tmp_path: Path) -> None:
    pairs = make_demo_clips(tmp_path / "demo", clips=4, frames=12, size=32, seed=3)
    assert pairs == [("path00_a", "path00_b"), ("path01_a", "path01_b")]
    truth = json.loads((tmp_path / "demo" / "truth.json").read_text())
    for pair in pairs:
        shifts = np.rint(6 * np.array(truth[pair[0][:6]])).astype(int)
        assert shifts.min() == -6
        assert shifts.max() == 6
        for name in pair:
            frames = pictures(tmp_path / "demo" / name)
            assert frames.shape == (12, 32, 32, 3)
            for i in range(12):
                right, down = shifts[i] - shifts[0]
                a = frames[0][max(0, down) : 32 + min(0, down), max(0, right) : 32 + min(0, right)]
                b = frames[i][max(0, -down) : 32 + min(0, -down), max(0, -right) : 32 + min(0, -right)]
                np.testing.assert_array_equal(a, b)
    a, b = (pictures(tmp_path / "demo" / name) for name in pairs[0])
    assert np.abs(a.astype(int) - b).mean() > 20, "another picture"
    found = catalogue(tmp_path / "demo")
    assert [each.id for each in found.split("test")] == list(pairs[1])


def test_the_look_of_check_16() -> None:
    picture = smooth_picture(np.random.default_rng(0), 44) / 255.0
    noise = np.arctanh(np.clip(2 * picture - 1, -0.999, 0.999)) / 0.9
    assert 0.6 < noise.std() < 1.6
    assert np.abs(np.diff(picture, axis=0)).max() < 0.25, "smooth"
    frames = list(plane_pictures(shift_path(30, 0, 0), 64, 0, 0))
    assert {frame.shape for frame in frames} == {(64, 64, 3)}


def test_the_same_numbers_make_the_same_clips(tmp_path: Path) -> None:
    for kind in ("planes", "room"):
        for name in ("one", "two"):
            make_demo_clips(tmp_path / kind / name, kind=kind, clips=2, frames=3, size=16, seed=5)
        one, two = (sorted((tmp_path / kind / name).rglob("*.png")) for name in ("one", "two"))
        assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_rooms_have_true_cameras(tmp_path: Path) -> None:
    make_demo_clips(tmp_path / "demo", kind="room", clips=2, frames=10, size=32)
    first, second = (clip_poses(sequence) for sequence in catalogue(tmp_path / "demo").sequences)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.c2w, second.c2w, atol=1e-9)
    np.testing.assert_allclose(first.c2w, room_path(10, 0, 0), atol=1e-9)
    assert first.focal == pytest.approx(0.5 / np.tan(np.radians(35)))


def test_cameras_stay_where_no_box_stands() -> None:
    for number in range(20):
        path = room_path(30, 1, number)
        assert np.abs(path[:, :2, 3]).max() < FREE
        assert (path[:, 2, 3] > 0.2).all()
        assert (path[:, 2, 3] < HEIGHT).all()
        steps = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1)
        assert steps.max() < 0.35, "smooth"
        np.testing.assert_allclose(
            path[:, :3, :3] @ path[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (30, 1, 1)), atol=1e-9
        )


def test_pixels_follow_the_cameras() -> None:
    """A wall seen from two places: the picture of one is the other's, warped by the plane between."""
    room = Room(2, 0)
    pose = room_path(4, 2, 0)[0]
    up = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    up[:3, :3] = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])  # looks at the ceiling, which has no boxes
    up[:3, 3] = [0.0, 0.0, 1.0]
    size, depth = 64, HEIGHT - 1.0
    focal = 0.5 * size / np.tan(np.radians(Room.FOV / 2))
    moved = up.copy()
    moved[0, 3] = 4 * depth / focal  # four pixels to the right
    assert 4 * depth / focal + depth * np.tan(np.radians(35)) < HALF
    a, b = room.picture(up, size), room.picture(moved, size)
    assert np.abs(a[:, 4:].astype(int) - b[:, :-4]).max() <= 1
    assert room.picture(pose, 16).std() > 5


def test_videos(tmp_path: Path) -> None:
    make_demo_clips(tmp_path / "demo", clips=2, frames=14, size=64, video=True)
    make_demo_clips(tmp_path / "frames", clips=2, frames=14, size=64)
    found = catalogue(tmp_path / "demo")
    assert [(each.id, each.fps, each.frames) for each in found.sequences] == [
        ("path00_a", 10.0, 14),
        ("path00_b", 10.0, 14),
    ]
    frame = read_frame(found.sequence("path00_a"), 5).astype(int)
    assert np.abs(frame - pictures(tmp_path / "frames" / "path00_a")[5]).mean() < 4


BAD = (
    {"clips": 3},
    {"clips": 0},
    {"frames": 1},
    {"size": 4},
    {"seed": -1},
    {"video": True, "size": 32},
    {"video": True, "size": 65},
)


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_numbers(options: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="options"):
        make_demo_clips(tmp_path / "demo", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="is not empty"):
        make_demo_clips(tmp_path / "full", clips=2, frames=2, size=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
