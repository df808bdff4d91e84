"""The gallery's cameras: poses up to what nobody can know, film strips, clips that do not lie on one another."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clip_folders import write_pictures, write_poses
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, homogeneous
from dataparsers.clips import catalogue
from dataparsers.clips_gallery import GalleryClip, choose_clips, make_gallery, relative_poses
from dataparsers.clips_sequence import Sequence


def cameras(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w2c = np.tile(np.eye(4), (count, 1, 1))
    w2c[:, :3, :3] = Rotation.random(count, rng=seed).as_matrix()
    w2c[:, :3, 3] = rng.normal(size=(count, 3))
    return w2c


def test_relative_poses_are_the_specs() -> None:
    """c2w = T_cw⁻¹ diag(1, -1, -1, 1) with T_cw relative to the reference, median |t| = 1 (spec 8.2)."""
    w2c = cameras(7)
    relative = relative_poses(c2w_opengl_from_w2c_opencv(w2c), 3)
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    for number in range(7):
        t_cw = w2c[number] @ np.linalg.inv(w2c[3])
        expected = flip @ np.linalg.inv(t_cw) @ flip  # the reference's own axes are OpenGL's as well
        np.testing.assert_allclose(relative[number, :3, :3], expected[:3, :3], atol=1e-12)
        if number != 3:
            direction = expected[:3, 3] / np.linalg.norm(expected[:3, 3])
            length = np.linalg.norm(relative[number, :3, 3])
            np.testing.assert_allclose(relative[number, :3, 3] / length, direction, atol=1e-12)
    lengths = np.linalg.norm(np.delete(relative[:, :3, 3], 3, axis=0), axis=1)
    assert np.median(lengths) == pytest.approx(1.0)
    np.testing.assert_allclose(relative[3], np.eye(4), atol=1e-12)


def test_world_and_scale_do_not_matter() -> None:
    c2w = c2w_opengl_from_w2c_opencv(cameras(6))
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = Rotation.random(rng=5).as_matrix(), [3.0, -1.0, 2.0]
    moved = world @ c2w
    moved[:, :3, 3] *= 7.5
    np.testing.assert_allclose(relative_poses(moved, 2), relative_poses(c2w, 2), atol=1e-9)


def test_cameras_that_stand_still() -> None:
    c2w = np.tile(np.eye(4), (5, 1, 1))
    np.testing.assert_array_equal(relative_poses(c2w, 2), c2w)
    c2w[4, 0, 3] = 8.0
    assert relative_poses(c2w, 2)[4, 0, 3] == 1.0, "only one moves: it sets the scale"


def clip(id: str, frames: int = 40) -> Sequence:
    return Sequence(id, frames, (64, 64), None, Path(id), "natural")


def test_film_strips() -> None:
    gallery = make_gallery([clip("a"), clip("b", 5)], [clip("c")], 16)
    assert [(each.number, each.id, each.split, len(each.frames)) for each in gallery] == [
        (0, "a", "train", 16), (1, "b", "train", 5), (2, "c", "test", 16),
    ]  # fmt: skip
    first = gallery[0]
    assert (first.frames[0], first.frames[-1], first.reference) == (0, 39, 8)
    assert first.poses is None
    np.testing.assert_allclose(np.diff(first.cameras[:, 0, 3]), 0.2)
    np.testing.assert_allclose(first.cameras[8, :3, 3], [0.0, 0.0, 0.0])
    np.testing.assert_allclose(first.cameras[:, :3, :3] @ [0, 0, -1.0], np.tile([0.0, 1.0, 0.0], (16, 1)))
    heights = [set(each.cameras[:, 2, 3].round(9).tolist()) for each in gallery]
    assert heights == [{0.0}, {-0.4}, {-0.8}]
    assert first.focal == pytest.approx(0.5 / np.tan(np.pi / 6)), "60 degrees"


def test_posed_clips(shared_data: Path, tmp_path: Path) -> None:
    """The fox keeps its shape: relative poses of shown frames equal those of its file, up to scale."""
    found = catalogue(shared_data / "xfactor_clips")
    gallery = make_gallery(found.split("train"), found.split("test"), 16)
    fox = next(each for each in gallery if each.id == "fox")
    stored = json.loads((shared_data / "xfactor_clips" / "fox_transforms.json").read_text())
    truth = np.array([frame["transform_matrix"] for frame in stored["frames"]])[list(fox.frames)]
    a, b = fox.cameras, truth
    ratio = []
    for i in range(len(a)):
        for j in range(i):
            mine, theirs = np.linalg.inv(a[j]) @ a[i], np.linalg.inv(b[j]) @ b[i]
            np.testing.assert_allclose(mine[:3, :3], theirs[:3, :3], atol=1e-5)
            ratio.append(np.linalg.norm(mine[:3, 3]) / np.linalg.norm(theirs[:3, 3]))
    assert np.ptp(ratio) < 1e-5 * np.mean(ratio)
    assert fox.focal == pytest.approx(326.05 / 256, rel=1e-3)
    spans = sorted((each.cameras[:, 2, 3].max(), each.cameras[:, 2, 3].min()) for each in gallery)[::-1]
    assert all(below[0] < above[1] for above, below in pairwise(spans)), "no clip covers another"


def test_frames_without_poses_are_not_shown(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 30)
    write_poses(tmp_path / "a" / "transforms.json", [f"{number:03d}.png" for number in range(0, 30, 2)])
    sequence = catalogue(tmp_path / "a").split("train")[0]
    shown = make_gallery([sequence], [], 5)[0]
    assert all(frame % 2 == 0 for frame in shown.frames)
    assert shown.poses is not None
    write_poses(tmp_path / "a" / "transforms.json", ["004.png"])
    assert make_gallery([sequence], [], 5)[0].poses is None, "one pose is no path"


def test_clips_of_both_splits_are_chosen() -> None:
    train, test = [clip(f"a{k}") for k in range(100)], [clip(f"b{k}") for k in range(100)]
    for most in (2, 3, 8, 64, 250):
        chosen = choose_clips(train, test, most)
        assert len(chosen[0]) >= 1
        assert len(chosen[1]) >= 1
        assert len(chosen[0]) + len(chosen[1]) == min(most, 200)
    assert [len(each) for each in choose_clips(train, test, 64)] == [48, 16]
    assert [len(each) for each in choose_clips(train[:3], test[:1], 64)] == [3, 1]
    assert [len(each) for each in choose_clips(train, test[:1], 64)] == [63, 1]


def test_clips_survive_json() -> None:
    w2c = cameras(3)
    poses = homogeneous(relative_poses(c2w_opengl_from_w2c_opencv(w2c), 1))
    one = GalleryClip(4, "a/b", "test", (0, 3, 9), c2w_opengl_from_w2c_opencv(w2c), poses, 0.9)
    again = GalleryClip.from_json(json.loads(json.dumps(one.to_json())))
    assert (again.number, again.id, again.split, again.frames, again.focal) == (4, "a/b", "test", (0, 3, 9), 0.9)
    np.testing.assert_array_equal(again.cameras, one.cameras)
    np.testing.assert_array_equal(again.poses, poses)
    for change in ({"frames": []}, {"split": "val"}, {"cameras": [[1]]}, {"focal": "x"}, {"frames": None}):
        with pytest.raises(DataError, match="is no clip of a gallery"):
            GalleryClip.from_json({**one.to_json(), **change})
