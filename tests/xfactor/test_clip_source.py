"""Clips as the commands name them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers.clips_index import take_inventory
from dataparsers.demo_clips import make_demo_clips
from dataparsers.video_write import write_clip
from xfactor_ns.clip_source import ReadClip, Span, find_clip, place_of, read_clip, stored_clip
from xfactor_ns.pose_similarity import pose_similarity


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """``videos/walk.mp4``, ``pictures/*.png``, ``room/path00_{a,b}``."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [np.full((64, 96, 3), 10 * k, np.uint8) for k in range(12)]
    write_clip(folder / "videos" / "walk.mp4", frames, (96, 64), fps=30, crf=1)
    for k, frame in enumerate(frames):
        write_image(folder / "pictures" / f"{k}.png", frame)
    make_demo_clips(folder / "room", kind="room", clips=2, frames=5, size=32)
    return folder


def levels(clip: ReadClip) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in clip.frames]


def test_a_video(clips):
    clip = read_clip(str(clips / "videos" / "walk.mp4"), 32, "antialias", Span(2, 4, 3))
    assert (clip.id, clip.numbers, clip.fps) == ("walk", [2, 5, 8, 11], 10)
    assert levels(clip) == [2, 5, 8, 11]
    assert clip.frames.shape == (4, 32, 32, 3)
    assert clip.w2c is None
    assert levels(read_clip(str(clips / "videos" / "walk"), 32, "reference", Span(0, 1))) == [0], "by its id"
    assert find_clip(str(clips / "videos")).id == "walk", "the only one there"


def test_a_folder_of_pictures(clips):
    clip = read_clip(str(clips / "pictures"), None, "antialias", Span(0, 0, 5))
    assert levels(clip) == [0, 5, 10], "in the order of their numbers"
    assert clip.frames.shape == (3, 64, 96, 3)
    assert clip.fps is None


def test_poses_come_along(clips):
    whole = read_clip(str(clips / "room" / "path00_a"), 16, "antialias", poses=True)
    images = read_clip(str(clips / "room" / "path00_a" / "images"), 16, "antialias", poses=True)
    other = read_clip(str(clips / "room" / "path00_b"), 16, "antialias", poses=True)
    assert pose_similarity(whole.w2c, other.w2c)["SE3_Auc_3"] == 1
    assert images.w2c == pytest.approx(whole.w2c)
    assert read_clip(str(clips / "room" / "path00_a"), 16, "antialias").w2c is None, "unless nobody asks"


def test_poses_beside_the_folder(shared_data):
    clip = read_clip(str(shared_data / "xfactor_clips" / "fox"), 32, "antialias", Span(3, 2), poses=True)
    assert np.isfinite(clip.w2c).all()
    assert clip.w2c.shape == (2, 4, 4)


def test_a_clip_of_the_run(clips):
    known = {clip.id: clip for clip in take_inventory(clips / "room").clips}
    assert find_clip("path00_b", known) is known["path00_b"]
    assert find_clip(str(clips / "pictures"), known).id == "pictures", "paths still work"
    with pytest.raises(DataError, match="path00_a, path00_b"):
        find_clip("path07", known)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("", "is no clip"), ("nothing/here", "is no clip"), ("room", "holds 2 clips"), ("room/x", "no clip")],
)
def test_what_is_no_clip(clips, monkeypatch, name, problem):
    monkeypatch.chdir(clips)
    with pytest.raises(DataError, match=problem):
        find_clip(name)


def test_a_picture_is_no_clip(clips):
    with pytest.raises(DataError):
        find_clip(str(clips / "pictures" / "3.png"))


def test_spans_that_are_not_there(clips):
    with pytest.raises(DataError, match="has 12 frames"):
        read_clip(str(clips / "pictures"), 32, "antialias", Span(12))
    for span in (Span(-1), Span(0, -1), Span(0, 1, 0)):
        with pytest.raises(DataError, match="start, frames, stride"):
            read_clip(str(clips / "pictures"), 32, "antialias", span)


def test_frames_by_their_number_in_the_clip(clips):
    clip = read_clip(str(clips / "pictures"), 16, "antialias", Span(1, 5, 2))
    assert (clip.numbers, place_of(clip, None, "--x"), place_of(clip, 7, "--x")) == ([1, 3, 5, 7, 9], 2, 3)
    with pytest.raises(DataError, match=r"--x.*4 is not among the frames read, 1 to 9 in steps of 2"):
        place_of(clip, 4, "--x")


def test_what_a_run_keeps_stands_in_for_clips_that_are_gone(clips):
    shown = SimpleNamespace(frames=(0, 4, 8), poses=np.tile(np.eye(4), (3, 1, 1)))
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    pictures.setflags(write=False)
    manager = SimpleNamespace(gallery_clip=lambda id: shown, clip=lambda id: pictures)
    stored = {"old": lambda: stored_clip(manager, "old")}
    clip = read_clip("old", 16, "antialias", known={}, stored=stored)
    assert (clip.numbers, clip.id) == ([0, 4, 8], "old")
    assert clip.w2c.shape == (3, 4, 4)
    with pytest.raises(DataError, match="kept at 16 pixels only"):
        read_clip("old", 32, "antialias", known={}, stored=stored)
    with pytest.raises(DataError, match="is no clip"):
        read_clip("older", 16, "antialias", known={}, stored=stored)
