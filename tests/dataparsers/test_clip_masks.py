"""Masks out of clips: specks go, the subject stays, grey masks are kept as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject
from scipy import ndimage

from dataparsers.clip_masks import ClipMasks, brightness_mask, without_specks
from dataparsers.video_read import open_clip
from dataparsers.video_write import write_clip


def slow_specks(mask: np.ndarray, speck: float) -> np.ndarray:
    """The same by scipy, spot by spot."""
    inside = ndimage.binary_opening(np.pad(mask > 0, 1, mode="edge"), np.ones((3, 3)))[1:-1, 1:-1]
    labels, count = ndimage.label(inside, np.ones((3, 3)))
    for label in range(1, count + 1):
        if (labels == label).sum() <= speck * mask.size:
            inside[labels == label] = False
    labels, count = ndimage.label(~inside)
    for label in range(1, count + 1):
        if (labels == label).sum() <= speck * mask.size:
            inside[labels == label] = True
    return np.where(inside, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_specks_against_the_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 1.5)
    mask = np.where(smooth > 0.05, 255, 0).astype(np.uint8)
    mask[:2], mask[-2:], mask[:, :2], mask[:, -2:] = 0, 0, 0, 0
    for speck in (1e-4, 5e-3, 2e-2):
        np.testing.assert_array_equal(without_specks(mask, speck), slow_specks(mask, speck))
    assert not without_specks(np.zeros((9, 9), np.uint8)).any()
    assert without_specks(np.full((9, 9), 255, np.uint8)).all()


def test_light_that_codecs_leave_in_black_does_not_count() -> None:
    photo, mask = subject((120, 90), 0)
    photo[mask == 0] = np.random.default_rng(1).integers(0, 4, (int((mask == 0).sum()), 3))  # at most 9 together
    photo[5, 5] = 200  # a speck
    np.testing.assert_array_equal(brightness_mask(photo) > 0, without_specks(mask) > 0)
    assert (brightness_mask(photo, 3) > 0).mean() > (mask > 0).mean() + 0.03, "a lower threshold sees some"
    grey = np.full((40, 40), 4, np.uint8)
    grey[10:30, 10:30] = 5
    np.testing.assert_array_equal(brightness_mask(grey) > 0, grey == 5)


def test_masks_of_clips(tmp_path: Path) -> None:
    """A24: masks after encoding, IoU 0.98 or better, by brightness and from a clip of masks."""
    size, frames = (320, 240), 4
    pairs = [subject(size, frame) for frame in range(frames)]
    cut = [np.where(mask[..., None] > 0, photo, 0).astype(np.uint8) for photo, mask in pairs]
    write_clip(tmp_path / "photos.mp4", cut, size)
    write_clip(tmp_path / "masks.mp4", [np.repeat(mask[..., None], 3, 2) for _, mask in pairs], size, crf=18)
    bright = ClipMasks(open_clip(tmp_path / "photos.mp4"), 12)
    grey = ClipMasks(open_clip(tmp_path / "masks.mp4"), None)
    worst = {"bright": 1.0, "grey": 1.0}
    for frame, (_, mask) in enumerate(pairs):
        for name, source in (("bright", bright), ("grey", grey)):
            found, truth = source.read(frame) > 127, mask > 127
            worst[name] = min(worst[name], float((found & truth).sum() / (found | truth).sum()))
    assert worst["bright"] >= 0.98
    assert worst["grey"] >= 0.995
