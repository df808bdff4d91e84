"""Clips as we write them: equal bytes for equal pictures, whole or absent, crops that hold everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clip_scenes import number_of, numbered
from hypothesis import given
from hypothesis import strategies as st

from dataparsers.video_read import open_clip
from dataparsers.video_write import SMALLEST, crop_of, even_canvas, write_clip


@pytest.mark.parametrize("count", [1, 2, 3, 13])
def test_any_number_of_pictures(count: int, tmp_path: Path) -> None:
    """x265 gives no decoding times to a clip of one or two pictures unless it may not reorder them."""
    for name in ("a", "b"):
        assert write_clip(tmp_path / f"{name}.mp4", map(numbered, range(count)), (64, 64)) == count
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    clip = open_clip(tmp_path / "a.mp4")
    assert [number_of(clip.read(number)) for number in range(clip.name.frames)] == list(range(count))


def test_smaller_sizes_for_larger_numbers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    sizes = []
    for crf in (5, 25, 45):
        write_clip(tmp_path / "a.mp4", noise, (64, 64), crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield from map(numbered, range(5))
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_clip(tmp_path / "a.mp4", broken(), (64, 64))
    for size, pictures in (((64, 64), []), ((65, 64), []), ((62, 64), []), ((64, 64), [numbered(0, (32, 32))] * 4)):
        with pytest.raises(ValueError):
            write_clip(tmp_path / "a.mp4", pictures, size)
    assert not list(tmp_path.iterdir())


@given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), ratio=st.floats(0.01, 1))
def test_canvases_are_even_and_near_the_ratio(size: tuple[int, int], ratio: float) -> None:
    for side, full in zip(even_canvas(size, ratio), size, strict=True):
        assert side % 2 == 0
        assert side >= SMALLEST
        assert abs(side - full * ratio) <= 1 or side == SMALLEST


@given(
    half=st.tuples(st.integers(32, 70), st.integers(32, 70)),
    spots=st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), max_size=4),
)
def test_crops_hold_what_is_shown(half: tuple[int, int], spots: list[tuple[float, float]]) -> None:
    width, height = 2 * half[0], 2 * half[1]
    shown = np.zeros((height, width), bool)
    for u, v in spots:
        shown[int(v * height), int(u * width)] = True
    x, y, w, h = crop_of(shown)
    assert shown[y : y + h, x : x + w].sum() == shown.sum()
    assert x >= 0 <= y
    assert x + w <= width
    assert y + h <= height
    assert [side % 2 for side in (x, y, w, h)] == [0] * 4
    if spots:
        used = np.flatnonzero(shown.any(axis=0))
        assert w <= max(SMALLEST, used[-1] - used[0] + 3)
