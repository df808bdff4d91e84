"""The report: silhouettes of voxels, the page, the pictures."""

from __future__ import annotations

import html.parser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hull_scenes import ball_mask, intrinsics, look_at, write_balls

from core_ns.images import read_image
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.point_ply import read_ply
from r4dv_ns.hull_report import hull_silhouette, iou, spread, write_report
from r4dv_ns.hull_run import HullOptions, ensure_hulls


def test_silhouette_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.6, 0.6, (200, 3))
    K, w2c = intrinsics(40.0, 50, 40), look_at(np.array([1.0, 0.3, 0.4]))
    K[1, 1], voxel = 45.0, 0.05
    expected = np.zeros((40, 50), bool)
    for point in points:
        x, y, z = w2c[:3, :3] @ point + w2c[:3, 3]
        if z <= 1e-4:
            continue
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        du, dv = 0.5 * voxel * K[0, 0] / z, 0.5 * voxel * K[1, 1] / z
        for row in range(40):
            for column in range(50):
                if u - du <= column + 0.5 < u + du and v - dv <= row + 0.5 < v + dv:
                    expected[row, column] = True
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(hull_silhouette(points, voxel, K, w2c, 40, 50), expected)
    assert not hull_silhouette(np.zeros((0, 3)), voxel, K, w2c, 40, 50).any()


def test_silhouette_of_a_ball() -> None:
    """Voxels of a ball, drawn, are the ball's own mask."""
    axis = np.arange(-0.3, 0.3, 0.01) + 0.005
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    points = points[np.linalg.norm(points, axis=1) < 0.3]
    K, w2c = intrinsics(300.0, 200, 160), look_at(np.array([1.5, -1.0, 1.0]))
    drawn = hull_silhouette(points, 0.01, K, w2c, 160, 200)
    assert iou(drawn, ball_mask(K, w2c, 200, 160, np.zeros(3), 0.3) > 0) > 0.97


def test_overlap() -> None:
    a, b = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, b, np.array([[1, 1, 0, 1]], bool)) == pytest.approx(1 / 2)
    assert iou(a & b & ~a, b & ~b) == 1.0


def test_spread() -> None:
    assert spread([3, 4, 5, 6, 7], 3) == [3, 5, 7]
    assert spread([3], 4) == [3]
    assert spread([3, 4], 1) == [3]


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.rows += tag == "tr"
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])


@pytest.mark.parametrize("with_masks", [True, False])
def test_page_and_pictures(tmp_path: Path, with_masks: bool) -> None:
    scene = write_balls(tmp_path / "a <b> & c", np.zeros((6, 3)) + np.linspace(0, 0.2, 6)[:, None])
    sequence = open_sequence(scene, SequenceOptions(eval_views=("none",)))
    meta = ensure_hulls(sequence, tmp_path / "out", HullOptions(voxel=0.03, points=100), progress=False)
    meta.frames[1]["flags"] = ["odd <i>"]
    if not with_masks:
        sequence = replace(sequence, views=[replace(view, mask_files=None) for view in sequence.views], masks_dir="")
    overlap = write_report(sequence, meta, tmp_path / "report", frames=2, views=3)
    assert list(overlap) == ["000000", "000001", "000005"]
    assert all((value is not None and value > 0.8) if with_masks else value is None for value in overlap.values())
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<b>" not in text
    assert "odd &lt;i&gt;" in text
    tags = Tags()
    tags.feed(text)
    assert tags.rows == 7
    assert tags.pictures == [f"hull_{stem}.png" for stem in overlap]
    for picture in tags.pictures:
        pixels = read_image(tmp_path / "report" / picture)[0]
        assert pixels.shape == (98, 3 * 98, 3)
        assert (pixels == [0, 255, 0]).all(-1).sum() > 100  # the outlines
    assert len(read_ply(meta.points(0)).xyz) == 100
