"""The estimate of memory and disk against what is really taken, and its warnings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from frame_sequences import BOX, write_ball

from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from r4dv_ns import preflight
from r4dv_ns.feature_net import FeatureNet
from r4dv_ns.peel import peel
from r4dv_ns.preflight import crop_pixels, estimate, shown
from r4dv_ns.sources import SourceBank, crop_cache

BOUNDS = np.array(BOX) * 0.6


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory):
    return open_sequence(write_ball(tmp_path_factory.mktemp("preflight") / "ball"))


def needed(result: preflight.Preflight, words: str) -> int:
    return next(need.size for need in result.needs if words in need.what)


def test_the_cache_takes_what_was_announced(sequence):
    bank = SourceBank(sequence, crop_cache(sequence, BOUNDS, capacity=10**8), BOUNDS)
    for frame in range(len(sequence.frames)):
        bank.get(frame, bank.views)
    result = estimate(sequence, bounds=BOUNDS)
    assert needed(result, "photos kept") == pytest.approx(bank.cache.statistics.bytes_held, rel=1e-6)
    bank.cache.close()
    assert needed(estimate(sequence, bounds=BOUNDS, cache_bytes=1000), "photos kept") == 1000


def test_all_photos_are_counted(sequence):
    photos = sum(
        part.nbytes
        for view in sequence.train_views
        for frame in range(len(sequence.frames))
        for part in (sequence.decode(view, frame).image, sequence.decode(view, frame).mask)
    )
    assert estimate(sequence).avoided == photos


def test_points_and_their_moments(sequence):
    # The spec's arithmetic: 262144 points with Adam take 9.4 MB a frame.
    size = needed(estimate(sequence, points=262144), "points of all frames")
    assert size / len(sequence.frames) == pytest.approx(9.44e6, rel=1e-3)


def kept_for_backward(run: Callable[[], object]) -> int:
    """Bytes that autograd holds after a forward pass."""
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(held.values())


def test_the_measured_constants_still_hold():
    photo = torch.rand(3, 90, 120)
    held = kept_for_backward(lambda: FeatureNet()(photo, None))
    assert held / (90 * 120) == pytest.approx(preflight.CNN_BYTES, rel=0.3)
    count = 15000
    points = (torch.rand(count, 3) * torch.tensor([1.2, 0.9, 0.4]) - torch.tensor([0.6, 0.45, -1.0])).requires_grad_()
    given = [torch.full((count,), value, requires_grad=True) for value in (0.02, 0.9)]
    colour = torch.rand(count, 3, requires_grad=True)
    shape = {"fx": 150.0, "fy": 150.0, "cx": 80.0, "cy": 60.0, "height": 120, "width": 160}
    drawn = []
    held = kept_for_backward(lambda: drawn.append(peel(points, *given, colour, layers=15, backend="torch", **shape)))
    assert held / int(drawn[0].fragments.sum()) == pytest.approx(preflight.FRAGMENT_BYTES, rel=0.3)


def test_crops_are_averaged_over_frames(sequence):
    sizes = [
        np.prod(sequence.extent(view, frame, BOUNDS, 4)[2:])
        for view in sequence.train_views
        for frame in range(len(sequence.frames))
    ]
    assert crop_pixels(sequence, BOUNDS, 4) == (pytest.approx(np.mean(sizes)), max(sizes))
    assert crop_pixels(sequence, None) == (72 * 56, 72 * 56)


def test_what_does_not_fit_is_said(sequence, monkeypatch: pytest.MonkeyPatch):
    assert estimate(sequence, points=1000).warnings == ()
    monkeypatch.setattr(preflight, "_free_disk", lambda folder: 10**6)
    text = str(estimate(sequence, points=10**6, cache_bytes=1000))
    assert "! disk:" in text
    assert "1 MB free" in text
    assert "less than the photos of two steps" in text
    assert "--frame-sample" not in text
    huge = str(estimate(sequence, points=10**11))
    assert "! memory:" in huge
    assert "--frame-sample" in huge


def test_distorted_cameras_need_tables(tmp_path: Path):
    folder = write_ball(tmp_path / "bent", views=3, frames=1, distortion=0.1)
    result = estimate(open_sequence(folder, SequenceOptions(eval_views=("none",))))
    assert needed(result, "undistortion tables of 3 cameras") == 3 * 72 * 56 * 7


def test_the_folder_need_not_exist_yet(sequence, tmp_path: Path):
    assert estimate(sequence, folder=tmp_path / "a" / "b").free["disk"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (12_345_678, "12.3 MB"), (4e12, "4 TB")]
)
def test_sizes_for_people(size: float, text: str):
    assert shown(size) == text
