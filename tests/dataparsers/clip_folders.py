"""Folders of clips for tests: pictures that say their number, a user's folder, and the four published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from clip_scenes import numbered, write_any
from PIL import Image


def write_picture(file: Path, number: int = 0, size: tuple[int, int] = (32, 24)) -> Path:
    """A picture that `clip_scenes.number_of` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbered(number % 256, size)).save(file)
    return file


def write_pictures(
    folder: Path, count: int = 12, size: tuple[int, int] = (32, 24), name: str = "{:03d}.png", first: int = 0
) -> Path:
    """A clip as a folder; picture k says k."""
    for number in range(count):
        write_picture(folder / name.format(first + number), number, size)
    return folder


def write_video(file: Path, count: int = 20, size: tuple[int, int] = (64, 48)) -> Path:
    """A clip as a video of 25 frames per second; frame k says k."""
    return write_any(file, [numbered(number, size) for number in range(count)], g="7")


def write_poses(file: Path, names: list[str], size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """A transforms.json of cameras in a row that look along -z; frame k stands at (k, 0, 2). Returns [n, 4, 4]."""
    poses = np.tile(np.eye(4), (len(names), 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = np.arange(len(names)), 2.0
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]
    file.write_text(json.dumps({"fl_x": 2.0 * size[0], "w": size[0], "h": size[1], "frames": frames}))
    return poses


def user_folder(root: Path) -> Path:
    """Videos and folders of frames, as spec xfactor 2.5 draws it; `room` has poses."""
    write_video(root / "kitchen.mp4")
    write_video(root / "walk" / "tour.MOV", 30)
    write_pictures(root / "garden", 14, name="{}.png", first=5)
    names = [f"images/{number:03d}.png" for number in range(12)]
    write_pictures(root / "room" / "images")
    write_pictures(root / "room" / "images_2", size=(16, 12))
    write_poses(root / "room" / "transforms.json", names)
    (root / "notes.txt").write_text("not a clip")
    return root


def re10k(root: Path) -> Path:
    """Two training sequences, one held out; names are time stamps that do not sort as text."""
    for split, sequence in (("train", "aaa"), ("train", "bbb"), ("test", "ccc")):
        write_pictures(root / split / "images" / sequence, 11, name="{}.png", first=99_995)
    return root


def dl3dv(root: Path) -> Path:
    """Two scenes, one of them of the benchmark, and one without poses, which does not count."""
    for scene in ("s1", "s2", "bare"):
        folder = root / "training_256" / "1K" / scene
        write_pictures(folder / "images_8", 11, name="frame_{}.png", first=1)
        if scene != "bare":
            write_poses(folder / "transforms.json", [f"images/frame_{number}.png" for number in range(1, 12)])
    (root / "test_256" / "benchmark_960p" / "s2").mkdir(parents=True)
    return root


def mvimgnet(root: Path) -> Path:
    """A category of eleven scenes: the first nine are for training. Names of other lengths are no frames."""
    for number in range(11):
        folder = root / "7" / f"{number:08x}" / "images"
        write_pictures(folder, 10, (8, 6), name="{:03d}.jpg", first=1)
        write_picture(folder / "0001.jpg", 9, (8, 6))
    return root


def co3d(root: Path) -> Path:
    """Two scenes of a category, masks beside them, and a category that the paper does not use."""
    for category, scene in (("chair", "1_a"), ("chair", "2_b"), ("chair", "x_c"), ("dragon", "3_d")):
        folder = root / category / scene
        write_pictures(folder / "images", 10, (8, 6), name="frame{:06d}.jpg", first=1)
        write_pictures(folder / "masks", 10, (8, 6), name="frame{:06d}.png", first=1)
    return root


LAYOUTS = {"folder": user_folder, "re10k": re10k, "dl3dv": dl3dv, "mvimgnet": mvimgnet, "co3dv2": co3d}
