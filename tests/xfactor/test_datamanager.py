"""The data manager: batches by seed, step and process, and a gallery that outlives the clips."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clip_folders import re10k, write_pictures, write_video
from clip_managers import NOISE, manager_config, open_manager
from clip_scenes import number_of

from core_ns.errors import DataError
from dataparsers.clips_frames import read_squares
from dataparsers.demo_clips import make_demo_clips

pytestmark = pytest.mark.filterwarnings(NOISE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Six generated clips: two train pairs (one of them also as video) and a held-out pair."""
    root = tmp_path_factory.mktemp("data") / "rooms"
    make_demo_clips(root, kind="room", clips=6, frames=24, size=32)
    return root


@pytest.fixture
def opened(clips: Path, tmp_path: Path):
    """Opens managers, and ends their threads after the test."""
    managers = []

    def make(data: Path = clips, run_dir: Path | None = tmp_path / "run", **options: Any) -> Any:
        managers.append(open_manager(data, run_dir, **options))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def batches(manager: Any, steps: range) -> list[Any]:
    return [manager.next_train(step)[0] for step in steps]


def equal(one: Any, two: Any) -> bool:
    same = torch.equal(one.frames, two.frames) and torch.equal(one.frame_ind, two.frame_ind)
    return same and (one.ids, one.update, one.micro) == (two.ids, two.update, two.micro)


def test_batches_show_what_they_say(opened) -> None:
    manager = opened(micro_batch=4)
    assert manager.micro_steps == 2
    for step in range(4):
        batch, extra = manager.next_train(step)
        assert extra == {}
        assert (batch.update, batch.micro) == divmod(step, 2)
        assert batch.frames.shape == (4, 2, 16, 16, 3)
        assert batch.frames.dtype == torch.uint8
        _, _, draws = manager.draws(step)
        for row, draw in enumerate(draws):
            assert batch.ids[row] == draw.sequence.id
            assert draw.sequence.id in {clip.id for clip in manager.dataparser.split("train")}
            np.testing.assert_array_equal(batch.frames[row].numpy(), read_squares(draw.sequence, draw.frames, 16))
    assert manager.get_train_rays_per_batch() == 4 * 2 * 16 * 16


def test_micro_steps_share_the_batch(opened, tmp_path: Path) -> None:
    """Check 11's data: k micro batches are the big batch."""
    whole = batches(opened(), range(3))
    parts = batches(opened(run_dir=tmp_path / "other", micro_batch=2, workers=1, prefetch=0, cache_bytes=0), range(12))
    for update, batch in enumerate(whole):
        four = parts[4 * update : 4 * update + 4]
        assert torch.equal(torch.cat([part.frames for part in four]), batch.frames)
        assert torch.equal(torch.cat([part.frame_ind for part in four]), batch.frame_ind)
        assert [part.micro for part in four] == [0, 1, 2, 3]
        assert sum((part.ids for part in four), ()) == batch.ids


def test_a_resumed_run_goes_on(opened, tmp_path: Path) -> None:
    """Check 13: bit-equal, whatever was loaded before; other seeds, other batches."""
    whole = batches(opened(), range(8))
    again = opened(run_dir=tmp_path / "again", workers=3, prefetch=4)
    assert all(equal(again.next_train(step)[0], whole[step]) for step in (5, 6, 7))
    other = opened(run_dir=tmp_path / "other", seed=10)
    assert not any(equal(other.next_train(step)[0], whole[step]) for step in range(3))


def test_windows_grow(opened) -> None:
    manager = opened(begin=3.0, end=20.0, warmup_updates=10)
    reach = [0, 0]
    for step in range(60):
        for draw in manager.draws(step)[2]:
            late = step >= 10
            reach[late] = max(reach[late], abs(draw.relative[-1]))
            assert abs(draw.relative[-1]) + 1 <= 3 + min(step, 10) / 10 * 17
    assert reach[1] >= 16


def test_two_processes_see_different_samples_of_one_batch(opened, monkeypatch, tmp_path: Path) -> None:
    """Check 13: disjoint ranks; together they see what one process sees."""
    from nerfstudio.utils import comms

    whole = opened().draws(3)[2]
    seen = []
    monkeypatch.setattr(comms, "is_dist_avail_and_initialized", lambda: True)
    monkeypatch.setattr(comms, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comms, "get_rank", lambda rank=rank: rank)
        manager = opened(run_dir=tmp_path / f"rank{rank}")
        assert manager.micro_steps == 1
        assert manager.next_train(3)[0].frames.shape[0] == 4
        seen.append(manager.draws(3)[2])
        assert (tmp_path / f"rank{rank}" / "scene").exists() == (rank == 0), "the first process writes the gallery"
    assert not set(seen[0]) & set(seen[1])
    assert [*seen[0], *seen[1]] == whole


def test_held_out_batches(opened) -> None:
    manager = opened()
    batch, _ = manager.next_eval(5)
    assert set(batch.ids) == {clip.id for clip in manager.dataparser.split("test")} == {"path02_a", "path02_b"}
    assert equal(manager.next_eval(5)[0], batch)
    assert not equal(manager.next_eval(6)[0], batch)
    assert manager.eval_batch(0, 3).frames.shape == (3, 2, 16, 16, 3)


def test_several_context_frames(opened) -> None:
    manager = opened(frames_per_sample=6, bump=True)
    batch = manager.next_train(0)[0]
    assert batch.frames.shape == (8, 6, 16, 16, 3)
    for row in batch.frame_ind.tolist():
        assert row[0] == 0
        assert row in (sorted(set(row)), sorted(set(row), reverse=True))


# ---------------------------------------------------------------------- the gallery


def test_the_gallery_is_what_the_clips_show(opened, clips: Path) -> None:
    manager = opened(parser_gallery_frames=5)
    assert [(clip.id, clip.split) for clip in manager.gallery] == [
        ("path00_a", "train"), ("path00_b", "train"), ("path01_a", "train"), ("path01_b", "train"),
        ("path02_a", "test"), ("path02_b", "test"),
    ]  # fmt: skip
    for clip in manager.gallery:
        expected = read_squares(manager.sequences[clip.id], clip.frames, 16)
        np.testing.assert_array_equal(manager.clip(clip.number), expected)
        np.testing.assert_array_equal(manager.clip(clip.id), expected)
        np.testing.assert_allclose(manager.clip_cameras(clip.id), clip.cameras[:, :3])
        with pytest.raises(ValueError, match="read-only"):
            manager.clip(clip.number)[0] = 0
    assert (len(manager.train_dataset), len(manager.eval_dataset)) == (20, 10)
    item = manager.eval_dataset[7]
    assert (item["clip_id"], item["frame_pos"], item["image_idx"]) == (5, 2, 7)
    np.testing.assert_array_equal((item["image"] * 255).round().byte().numpy(), manager.clip(5)[2])
    assert manager.eval_dataset.get_data(7, "uint8")["image"].dtype == torch.uint8
    camera, batch = manager.next_eval_image(7)
    assert camera.metadata["clip_id"].tolist() == [[5]]
    assert (int(camera.width), batch["image"].shape) == (16, (16, 16, 3))
    assert len(manager.fixed_indices_eval_dataloader) == 10
    with pytest.raises(DataError, match=r"clip 9.*is not there"):
        manager.clip(9)
    assert manager.get_datapath() == manager.config.run_dir, "camera paths do not go to the clips"


@pytest.mark.parametrize("mode", ["test", "inference", "val"])
def test_a_run_outlives_its_clips(mode: str, opened, clips: Path, tmp_path: Path, monkeypatch) -> None:
    """ns-viewer, ns-eval and ns-render open a run whose clips are gone (``val``: ns-render dataset --split val)."""
    data = tmp_path / "moving"
    data.symlink_to(clips)
    first = opened(data, parser_gallery_frames=4)
    pictures = [first.clip(clip.number) for clip in first.gallery]
    stored = sorted(path.name for path in (tmp_path / "run" / "scene").rglob("*") if path.is_file())
    assert stored == ["000.png", "001.png", "002.png", "003.png", "004.png", "005.png", "snapshot.json"]
    data.unlink()
    again = (
        opened(data, test_mode=mode, parser_gallery_frames=4)
        if mode != "val"
        else unprepared(data, tmp_path, monkeypatch)
    )
    for clip, other, expected in zip(first.gallery, again.gallery, pictures, strict=True):
        assert (clip.id, clip.frames, clip.split) == (other.id, other.frames, other.split)
        np.testing.assert_array_equal(again.clip(clip.number), expected)
    for name in ("train_dataset", "eval_dataset"):
        mine, theirs = (getattr(manager, name) for manager in (first, again))
        assert mine.image_filenames == theirs.image_filenames
        assert torch.equal(mine.cameras.camera_to_worlds, theirs.cameras.camera_to_worlds)
        assert torch.equal(mine.cameras.fx, theirs.cameras.fx)
        assert torch.equal(mine.cameras.metadata["frame_pos"], theirs.cameras.metadata["frame_pos"])
    assert again.sequences == {}


def unprepared(data: Path, tmp_path: Path, monkeypatch) -> Any:
    """As `ns-render dataset` opens a manager: without set-up."""
    from xfactor_ns.datamanager import ClipDataManager

    monkeypatch.setattr(ClipDataManager, "setup_train", lambda self: None)
    return open_manager(data, tmp_path / "run", parser_gallery_frames=4)


def test_other_data_are_not_mistaken_for_the_runs(opened, tmp_path: Path) -> None:
    """``ns-render dataset --data`` shows another folder."""
    opened()
    for name in ("a", "b"):
        write_pictures(tmp_path / "others" / name)
    other = opened(tmp_path / "others", test_mode="test")
    assert {clip.id for clip in other.gallery} == {"a", "b"}
    assert other.snapshot is None


def test_a_damaged_gallery(opened, tmp_path: Path) -> None:
    opened()
    strip = tmp_path / "run" / "scene" / "gallery" / "001.png"
    strip.write_bytes((tmp_path / "run" / "scene" / "gallery" / "000.png").read_bytes()[:200])
    again = opened(test_mode="test")
    again.clip(0)
    with pytest.raises(DataError, match="does not decode"):
        again.clip(1)
    small = opened(test_mode="test", image_size=8)
    with pytest.raises(DataError, match="not 16 squares of 8"):
        small.clip(0)
    strip.unlink()
    with pytest.raises(DataError, match="is not a file"):
        opened(test_mode="test").clip(1)
    (tmp_path / "run" / "scene" / "snapshot.json").write_text("{}")
    with pytest.raises(DataError, match="is not a scene snapshot"):
        opened(test_mode="test")


def test_nothing_is_written_beside_the_clips(opened, clips: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in clips.rglob("*")}
    manager = opened()
    manager.next_train(0)
    manager.next_eval(0)
    assert {path: os.stat(path).st_mtime_ns for path in clips.rglob("*")} == before


def test_memory_for_pictures_is_bounded(opened, monkeypatch) -> None:
    from xfactor_ns import gallery

    manager = opened(parser_gallery_frames=4)
    monkeypatch.setattr(gallery, "KEPT_BYTES", 2 * 4 * 16 * 16 * 3)
    for number in (0, 1, 2, 0, 3):
        manager.clip(number)
    assert set(manager.pictures._clips) == {0, 3}


# ---------------------------------------------------------------------- data of several kinds


def test_a_plain_folder(opened, tmp_path: Path, capsys) -> None:
    """Videos and folders of frames of any sizes, and what is printed about them."""
    write_video(tmp_path / "data" / "walk.mp4", 40)
    write_video(tmp_path / "data" / "more" / "tour.mov", 30, (80, 64))
    write_pictures(tmp_path / "data" / "garden", 20)
    write_pictures(tmp_path / "data" / "short", 4)
    manager = opened(tmp_path / "data", end=None, image_size=64)
    shown = capsys.readouterr().out
    assert "Clips: 3 (folder layout, 90 frames), 2 to train, 1 held out (by a hash of the id)" in shown
    assert "Left out as too short: short (4 frames)" in shown
    assert "Windows: up to " in shown
    batch = manager.next_train(0)[0]
    for row, draw in enumerate(manager.draws(0)[2]):
        if draw.sequence.size == (32, 24):
            continue
        expected = read_squares(draw.sequence, draw.frames, 64)
        np.testing.assert_array_equal(batch.frames[row].numpy(), expected)
    assert number_of(read_squares(manager.sequences["garden"], [7], 24)[0]) >= 0


def test_the_real_clips(opened, shared_data: Path) -> None:
    manager = opened(shared_data / "xfactor_clips", image_size=32)
    assert {clip.id for clip in manager.gallery} == {"fox", "room", "target", "transfer"}
    assert manager.next_train(0)[0].frames.float().std() > 20


def test_several_collections(opened, tmp_path: Path) -> None:
    re10k(tmp_path / "estates")
    for name in ("a", "b", "c"):
        write_pictures(tmp_path / "mine" / name)
    manager = opened(tmp_path, mix=["re10k:estates:3:5:9", "folder:mine:1"], end=None)
    ids = [id for step in range(20) for id in manager.next_train(step)[0].ids]
    share = sum(id.startswith("0-re10k/") for id in ids) / len(ids)
    assert share == pytest.approx(0.75, abs=0.05)
    assert {clip.id for clip in manager.gallery} >= {"0-re10k/aaa", "0-re10k/ccc"}
    assert manager.clip("0-re10k/ccc").shape[1:] == (16, 16, 3)


BAD = {
    "image_size": {"image_size": 4},
    "batch-size.*is 0": {"batch_size": 0},
    "cannot be shared out between 1 processes with micro batches of 3": {"micro_batch": 3},
    "micro batches of 16": {"micro_batch": 16},
    "micro-batch.*is 0": {"micro_batch": 0},
    "frames-per-sample.*is 1": {"frames_per_sample": 1},
    "begin.*is 1": {"begin": 1.0},
    "end.*is 0": {"end": 0.5},
    "workers": {"workers": 0},
    "seed": {"seed": -1},
    "picture-fps": {"picture_fps": 0.0},
    "no clip of more than 24 frames": {"frames_per_sample": 24, "end": None},
    "names no layout": {"mix": ["rooms"]},
    "is not a file": {"parser_splits": Path("absent.json")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_options(message: str, clips: Path, tmp_path: Path) -> None:
    config = manager_config(clips, tmp_path / "run", **BAD[message])
    with pytest.raises(DataError, match=message.replace("_", "-")):
        config.check_data()
    assert not (tmp_path / "run").exists()


def test_check_data_counts_training_clips(clips: Path) -> None:
    assert manager_config(clips).check_data() == 4


def test_another_data_parser_is_refused(clips: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nerfstudio.data.dataparsers.minimal_dataparser import MinimalDataParserConfig

    config = manager_config(clips)
    config.dataparser = MinimalDataParserConfig()
    with pytest.raises(DataError, match="gives photos of one scene"):
        config.check_data()


def test_the_config_survives_a_runs_file(clips: Path) -> None:
    config = manager_config(clips, mix=["folder:a:2"])
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)  # as nerfstudio reads config.yml
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    assert again._target is config._target
