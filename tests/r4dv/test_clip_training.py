"""Training from videos alone: hulls, batches and losses of the clips are those of the photos they were made of."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from capture_runs import NOISE, run_config, train
from frame_managers import open_manager, same, stream

from dataparsers.easymocap_sequence import open_sequence
from dataparsers.video_read import close_decoders, decoder_bytes
from r4dv_ns.clip_encode import EncodeOptions, encode
from r4dv_ns.preflight import estimate

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def clips(recording: Path, tmp_path_factory) -> Path:
    """The juggler as two folders of clips and its calibration."""
    made = Path(shutil.copytree(recording, tmp_path_factory.mktemp("made") / "juggler"))
    root = tmp_path_factory.mktemp("shared")
    encode(made, options=EncodeOptions(ratio=1.0, crf=12, key_every=2))
    for name in ("videos_libx265", "videos_masks_libx265", "intri.yml", "extri.yml"):
        (made / name).rename(root / name)
    yield root
    close_decoders()


def test_batches_do_not_depend_on_threads_nor_on_what_was_read_before(clips: Path, tmp_path: Path) -> None:
    steps = range(12)
    one = stream(open_manager(clips, workers=1, points_dir=tmp_path), steps)
    close_decoders()
    four = stream(open_manager(clips, workers=4, points_dir=tmp_path), steps)
    later = open_manager(clips, workers=2, points_dir=tmp_path)
    later.next_train(40)
    assert same(one, four)
    assert same(one, stream(later, steps))


def test_hulls_and_pictures_are_those_of_the_photos(clips: Path, recording: Path, tmp_path: Path) -> None:
    from_clips = open_manager(clips, points_dir=tmp_path / "a")
    from_photos = open_manager(recording, points_dir=tmp_path / "b")
    assert from_clips.hulls is not None
    assert from_photos.hulls is not None
    np.testing.assert_allclose(from_clips.hulls.bounds, from_photos.hulls.bounds, atol=2 * from_photos.hulls.voxel)
    for frame, other in zip(from_clips.hulls.frames, from_photos.hulls.frames, strict=True):
        assert frame["count"] == pytest.approx(other["count"], rel=0.1)
    photo, clip = open_sequence(recording).decode(2, 1), open_sequence(clips).decode(2, 1)
    assert photo.mask is not None
    inside = photo.mask > 200
    assert np.abs(photo.image[inside].astype(int) - clip.image[inside]).mean() < 8
    for manager in (from_clips, from_photos):
        manager.close()


def test_the_dry_run_counts_open_decoders(clips: Path) -> None:
    needs = {need.what: need.size for need in estimate(open_sequence(clips)).needs}
    assert needs["open decoders of 14 clips"] == sum(
        decoder_bytes(*each.size)
        for view in open_sequence(clips).views[:3] + open_sequence(clips).views[4:]
        for each in (view.clip, view.mask_clip.clip)
    ), "of the seven training cameras"


@pytest.mark.slow
def test_training_learns_from_clips(clips: Path, tmp_path: Path) -> None:
    config = run_config(clips, tmp_path, 60)
    config.pipeline.datamanager.points_dir = tmp_path / "points"
    run = train(config)
    first, last = list(run.quality.values())[:10], list(run.quality.values())[-10:]
    assert np.mean(last) > np.mean(first) + 1
    assert all(math.isfinite(value) for value in run.losses.values())
    names = [run.pipeline.image_name(row) for row in range(2)]
    assert all(name.endswith(".png") for name in names), names
