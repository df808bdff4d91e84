"""Masks by a network that the user provides: its interface, its state from frame to frame, and being without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_scenes import NAMES, make_photos

from core_ns.errors import DataError
from core_ns.images import read_image
from r4dv_ns.clip_extract import extract_masks
from r4dv_ns.video_matting import VideoMatting

STAND_IN = '''
import torch

class Counter(torch.nn.Module):
    """The network's interface; alpha counts the frames seen, in steps of ten."""

    def forward(self, src, r1=None, r2=None, r3=None, r4=None, downsample_ratio=1.0):
        assert src.shape == (1, 3, 180, 240) and 0 <= src.min() and src.max() <= 1 and downsample_ratio == 1.0
        seen = torch.ones(1) if r1 is None else r1 + 1
        return src, torch.ones_like(src[:, :1]) * seen * (10 / 255), seen, seen, seen, seen

def mobilenetv3():
    return Counter()
'''


def test_the_state_goes_from_frame_to_frame_of_a_camera(tmp_path: Path) -> None:
    scene = make_photos(tmp_path / "scene")
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "hubconf.py").write_text(STAND_IN)

    def masks() -> Path:
        return extract_masks(scene, VideoMatting(tmp_path / "clone"), source_dir="images", mask_dir="rvm")

    folder = masks()
    for name in NAMES:
        values = [np.unique(read_image(folder / name / f"{n:06d}.png")[0]).tolist() for n in range(4)]
        assert values == [[10], [20], [30], [40]]
    (folder / "b" / "000002.png").unlink()
    masks()
    assert np.unique(read_image(folder / "b" / "000002.png")[0]).tolist() == [30], "all frames were seen again"


def test_without_the_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    scene = make_photos(tmp_path / "scene")

    def masks(matting: VideoMatting) -> None:
        extract_masks(scene, matting, source_dir="images", mask_dir="rvm")

    with pytest.raises(DataError, match=r"--method rvm.*not part of this package.*--rvm-repository.*--download"):
        masks(VideoMatting())
    with pytest.raises(DataError, match=r"holds no hubconf\.py"):
        masks(VideoMatting(tmp_path / "absent"))
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "hubconf.py").write_text("import not_installed")
    with pytest.raises(DataError, match=r"cannot be had .ModuleNotFoundError"):
        masks(VideoMatting(tmp_path / "clone"))

    def refuse(*words, **more):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "load", refuse)
    with pytest.raises(DataError, match=r"cannot be had .OSError: no network here"):
        masks(VideoMatting(download=True))
    assert not (scene / "rvm").exists()
