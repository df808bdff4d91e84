"""COLMAP as the oracle, on generated clips with known cameras (acceptance 2 of issue 6's scores)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from core_ns.errors import DataError, MissingExtra
from dataparsers.demo_clips import make_demo_clips
from xfactor_ns import oracle_colmap
from xfactor_ns.clip_source import Span, read_clip
from xfactor_ns.oracle_colmap import ColmapPoses
from xfactor_ns.oracles import KnownPoses
from xfactor_ns.pose_similarity import pose_similarity
from xfactor_ns.transfer_similarity import clip_similarity, oracle_frames

RUN = subprocess.run
needs_colmap = pytest.mark.skipif(oracle_colmap.importlib.util.find_spec("pycolmap") is None, reason="no pycolmap")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "room"
    make_demo_clips(folder, kind="room", clips=2, frames=24, size=128)
    return folder


@needs_colmap
@pytest.mark.slow
def test_a_generated_path_is_found(room):
    clip = read_clip(str(room / "path00_a"), None, "antialias", Span(0, 8, 3), poses=True)
    truth = KnownPoses(clip.w2c[None])
    scores = clip_similarity(truth, clip.frames, clip.frames, ColmapPoses())
    print({name: round(scores[name], 3) for name in ("posed", "Rac_5", "Tac_10", "SE3_Auc_30", "ATE_relative")})
    assert scores["posed"] >= 5 / 8
    assert scores["Rac_5"] > 0.95
    assert scores["RTA_signed_20"] > 0.9
    assert scores["ATE_relative"] < 0.2


@needs_colmap
def test_frames_that_cannot_be_placed_have_no_pose():
    images = torch.full((1, 3, 3, 64, 64), 0.5)
    poses = ColmapPoses()(images)
    assert poses.shape == (1, 3, 4, 4)
    assert np.isnan(poses).all()
    with pytest.raises(ValueError, match="only 0 of 3 frames"):
        pose_similarity(poses[0], poses[0])


def test_frames_are_enlarged_for_sift(tmp_path):
    from core_ns.images import image_size

    for side, enlarged in ((64, 256), (128, 512), (300, 600), (512, 512), (700, 700)):
        folder = tmp_path / str(side)
        names = oracle_colmap._write_frames(torch.rand(2, 3, side, side + 10), folder)
        factor = enlarged // side
        assert names == ["000000.png", "000001.png"]
        assert image_size(folder / names[1]) == ((side + 10) * factor, side * factor)


def stand_in(monkeypatch, code: str) -> None:
    """COLMAP's process replaced by a line of Python."""

    def other(command, **options):
        return RUN([sys.executable, "-c", code, command[-1]], **options)

    monkeypatch.setattr(oracle_colmap.subprocess, "run", other)
    monkeypatch.setattr(oracle_colmap, "check_colmap", lambda: None)


def test_a_process_that_breaks_off_is_one_error(monkeypatch):
    images = oracle_frames(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    stand_in(monkeypatch, "import sys; print('Check failed: x', file=sys.stderr); sys.exit(134)")
    with pytest.raises(DataError, match=r"status 134 .Check failed"):
        ColmapPoses()(images)
    stand_in(monkeypatch, "import sys; print('ImportError: no', file=sys.stderr); sys.exit(3)")
    with pytest.raises(MissingExtra, match="pycolmap"):
        ColmapPoses()(images)


def test_poses_come_back_by_file_name(monkeypatch):
    code = (
        "import json, sys; from pathlib import Path; pose = [[1.0 * (i == j) for j in range(4)] for i in range(4)]\n"
        "pose[0][3] = 5.0\n"
        "Path(sys.argv[1], 'poses.json').write_text(json.dumps({'000001.png': pose}))"
    )
    stand_in(monkeypatch, code)
    poses = ColmapPoses()(oracle_frames(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)))[0]
    assert np.isnan(poses[0]).all()
    assert poses[1][0].tolist() == [1, 0, 0, 5]


def test_without_pycolmap(monkeypatch):
    monkeypatch.setattr(oracle_colmap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"nvs-zoo\[colmap\]"):
        ColmapPoses()(torch.zeros(1, 2, 3, 8, 8))
