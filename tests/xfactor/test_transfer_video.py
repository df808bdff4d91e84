"""Films and sheets."""

from __future__ import annotations

import av
import numpy as np
import pytest

from xfactor_ns.transfer_video import GAP, enlarged, evenly, sheet, side_by_side, write_film


def noise(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


def test_small_pictures_grow_by_whole_factors():
    frames = noise(2, 32, 40)
    large = enlarged(frames)
    assert large.shape == (2, 256, 320, 3)
    assert (large[:, ::8, ::8] == frames).all()
    assert (large[:, 7::8, 7::8] == frames).all()
    assert enlarged(noise(1, 300, 300)).shape == (1, 300, 300, 3)


def test_panels_stand_side_by_side():
    a, b = noise(3, 16, 16), noise(3, 16, 16)
    row = side_by_side([a, b])
    assert row.shape == (3, 16, 32 + GAP, 3)
    assert (row[:, :, :16] == a).all()
    assert (row[:, :, -16:] == b).all()
    assert (row[:, :, 16:-16] == 255).all()
    assert side_by_side([noise(1, 15, 15)]).shape == (1, 16, 16, 3), "films have even sides"


def test_a_film_that_any_player_shows(tmp_path):
    """H.264, 4:2:0, and the pictures come back nearly as they were."""
    ramps = np.linspace(0, 200, 256).astype(np.uint8)[None, None, :, None].repeat(5, 0).repeat(256, 1).repeat(3, 3)
    ramps = ramps + (10 * np.arange(5, dtype=np.uint8))[:, None, None, None]
    size = write_film(tmp_path / "film.mp4", [ramps, ramps[::-1]], 12.5)
    assert size == (2 * 256 + GAP, 256)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    assert len(frames) == 5
    for k, frame in enumerate(frames):
        assert np.abs(frame[:, :256] - ramps[k]).mean() < 3
        assert np.abs(frame[:, -256:] - ramps[4 - k]).mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4"]


def test_one_frame_is_a_film(tmp_path):
    write_film(tmp_path / "one.mp4", [noise(1, 64, 64)], 10)
    with av.open(str(tmp_path / "one.mp4")) as container:
        assert len(list(container.decode(video=0))) == 1


def test_indices_are_evenly_spread():
    assert evenly(60, 6) == [0, 12, 24, 35, 47, 59]
    assert evenly(3, 6) == [0, 1, 2]
    assert evenly(1, 6) == [0]


def test_a_sheet_has_a_row_for_each_label():
    rows = [("one", noise(3, 256, 256)), ("two", 255 - noise(2, 256, 256))]
    page = sheet(rows)
    assert page.shape[1] == 3 * (256 + GAP) + GAP
    found = [
        (top, left)
        for top in range(page.shape[0] - 255)
        for left in (GAP, 256 + 2 * GAP)
        if (page[top, left : left + 8] == rows[1][1][int(left > GAP), 0, :8]).all()
    ]
    assert len(found) == 2
    assert found[0][0] == found[1][0] > 256
    assert (page[: GAP + 2] == 255).all()
    with pytest.raises(ValueError, match="dimension"):
        side_by_side([noise(2, 8, 8), noise(3, 8, 8)])
