"""The gallery shows no frame farther from the middle one than poses are learnt (spec xfactor 8.2, 2.2)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clip_folders import write_pictures, write_poses
from hypothesis import given
from hypothesis import strategies as st

from dataparsers.clips import catalogue
from dataparsers.clips_gallery import GalleryClip, make_gallery
from dataparsers.clips_sequence import Sequence


def sequence(frames: int) -> Sequence:
    return Sequence("walk", frames, (32, 32), None, Path("walk"), "natural")


@given(st.integers(2, 400), st.integers(2, 20), st.floats(2, 90))
def test_shown_frames_lie_within_a_window_of_the_middle_one(frames, most, window):
    (clip,) = make_gallery([sequence(frames)], [], most, {"walk": window})
    (whole,) = make_gallery([sequence(frames)], [], most)
    assert clip.window == window
    assert 2 <= len(clip.frames) <= most
    assert list(clip.frames) == sorted(set(clip.frames))
    assert max(abs(frame - frames // 2) for frame in clip.frames) < window
    assert max(abs(frame - frames // 2) for frame in whole.frames) >= frames // 2 - 1, "all of it, if nothing is known"
    if window > frames:
        assert clip.frames == whole.frames
    reach = min(int(np.ceil(window)) - 1, (frames - 1) // 2)
    assert clip.frames[0] <= frames // 2 - reach
    assert clip.frames[-1] >= frames // 2 + reach


def test_the_window_is_kept_with_the_clip():
    (clip,) = make_gallery([sequence(30)], [], 4, {"walk": 10.5})
    assert GalleryClip.from_json(json.loads(json.dumps(clip.to_json()))).window == 10.5


@pytest.mark.parametrize("window", [3.0, 6.0, 100.0])
def test_of_posed_clips_those_frames_count_that_have_poses(tmp_path, window):
    write_pictures(tmp_path / "a", 40, (16, 16))
    posed = list(range(10, 30, 2))
    write_poses(tmp_path / "a" / "transforms.json", [f"{number:03d}.png" for number in posed], (16, 16))
    (walk, *_) = catalogue(tmp_path / "a").split("train")
    (clip,) = make_gallery([walk], [], 16, {walk.id: window})
    assert list(clip.frames) == [frame for frame in posed if abs(frame - 20) < window]
    assert clip.poses is not None
    assert len(clip.poses) == len(clip.frames)
