"""``video-clips``: what nerfstudio gets, several collections at once, and the command line's values."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clip_folders import re10k, user_folder, write_pictures, write_video

from core_ns.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nerfstudio's imports warn about their own age
    from nerfstudio.data.datasets.base_dataset import InputDataset

    from dataparsers.clips_parser import VideoClipsDataParserConfig, video_clips

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def test_outputs(tmp_path: Path) -> None:
    root = user_folder(tmp_path / "set")
    parser = VideoClipsDataParserConfig(data=root, gallery_frames=8).setup()
    train, test = (parser.get_dataparser_outputs(split=split) for split in ("train", "test"))
    assert len(train.image_filenames) == 3 * 8
    assert len(test.image_filenames) == 8
    val = parser.get_dataparser_outputs(split="val")
    assert val.image_filenames == test.image_filenames
    for outputs in (train, test):
        cameras = outputs.cameras
        assert len(set(outputs.image_filenames)) == len(outputs.image_filenames) == len(cameras)
        assert {(int(w), int(h)) for w, h in zip(cameras.width, cameras.height, strict=True)} == {(256, 256)}
        assert torch.equal(cameras.cx, torch.full_like(cameras.cx, 128.0)), "ns-render takes 2 cx for the width"
        metadata = cameras[3:4].metadata
        assert {name: tuple(value.shape) for name, value in metadata.items()} == {
            "clip_id": (1, 1), "frame_pos": (1, 1),
        }  # fmt: skip
        box = outputs.scene_box.aabb
        centres = cameras.camera_to_worlds[..., 3]
        assert bool(((centres > box[0]) & (centres < box[1])).all())
    gallery = parser.gallery()
    for row in range(len(train.cameras)):
        clip = gallery[int(train.cameras.metadata["clip_id"][row])]
        place = int(train.cameras.metadata["frame_pos"][row])
        np.testing.assert_allclose(train.cameras.camera_to_worlds[row].numpy(), clip.cameras[place, :3], atol=1e-6)
        assert train.image_filenames[row] == root / clip.id / f"{clip.frames[place]:06d}.png"
    assert len(InputDataset(train)) == 24


def test_one_file_is_data_enough(tmp_path: Path) -> None:
    write_video(tmp_path / "walk.mp4", 40)
    outputs = VideoClipsDataParserConfig(data=tmp_path / "walk.mp4").setup().get_dataparser_outputs(split="test")
    assert outputs.image_filenames[0] == tmp_path / "walk~end" / "000000.png"
    assert len(outputs.image_filenames) >= 2


def test_several_collections(tmp_path: Path) -> None:
    re10k(tmp_path / "estates")
    for name in ("a", "b"):
        write_pictures(tmp_path / "mine" / name)
    config = VideoClipsDataParserConfig(data=tmp_path, mix=("re10k:estates:3:40:200", "folder:mine"))
    parser = config.setup()
    assert [entry.weight for entry, _ in parser.catalogues()] == [3, None]
    ids = [clip.id for clip in parser.split("train") + parser.split("test")]
    assert {"0-re10k/aaa", "0-re10k/ccc"} <= set(ids)
    assert {id for id in ids if id.startswith("1-folder/")} == {"1-folder/a", "1-folder/b"}
    assert [len(clips) for clips in parser.by_collection("train")] == [2, 1]
    shown = parser.get_dataparser_outputs(split="train")
    assert shown.image_filenames[0].relative_to(tmp_path).parts[0] in ("0-re10k", "1-folder")


def test_options_that_cannot_be(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a")
    file = tmp_path / "x.json"
    file.write_text("{}")
    bad = {
        "gallery": {"gallery_frames": 1},
        "one file for several": {"mix": ("folder:a", "folder:a"), "splits": file},
        "one index of several": {"mix": ("folder:a", "folder:a"), "index": file},
        "names no layout": {"mix": ("a",)},
    }
    for message, options in bad.items():
        with pytest.raises(DataError, match=message):
            VideoClipsDataParserConfig(data=tmp_path, **options).setup().get_dataparser_outputs(split="train")


def test_the_config_survives_a_runs_file() -> None:
    config = VideoClipsDataParserConfig(data=Path("x"), max_fps=12.0, mix=("folder:a",))
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)  # as nerfstudio reads config.yml
    assert again == config
    assert video_clips.config.dataset == "auto"
