"""Trajectories: batches, cache, best of several, films (spec megascenes 7, 8.3)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from small_views import NOISE, camera_at, moved_pose, small_reference, small_viewing, tiny_networks

from megascenes_ns.path_file import CameraPath
from megascenes_ns.paths import orbit
from megascenes_ns.render_path import PathWriter, draw_path, for_film, grid, photo_lens, views_of_path, write_gif

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def nets():
    return tiny_networks()


def small_path(frames: int = 5) -> CameraPath:
    fov, width, height = photo_lens(small_reference())
    return CameraPath(orbit(frames), np.full(frames, fov), width, height)


def test_views_stand_where_the_path_says():
    path = small_path(3)
    views = views_of_path(small_reference(), path)
    for view, pose in zip(views, path.c2w_opencv, strict=True):
        np.testing.assert_allclose(view.rel, pose, atol=1e-4)
        np.testing.assert_allclose(view.K, small_reference().prepared.K, rtol=1e-6)
        assert view.size == (64, 48)
    elsewhere = replace(small_reference(), pose=moved_pose(3.0, 1.0, 2.0), unit=2.5)
    for view, pose in zip(views_of_path(elsewhere, path, scale=0.5), path.c2w_opencv, strict=True):
        np.testing.assert_allclose(view.rel[:3, 3], pose[:3, 3] / 2, atol=1e-4)


def test_a_batched_path_is_what_the_viewer_draws_one_by_one(nets, monkeypatch):
    viewing, path = small_viewing(), small_path(5)
    views = views_of_path(small_reference(), path)
    frames = list(draw_path(viewing, nets, views, viewing.settings(), 0, batch=3))
    assert [frame.index for frame in frames] == list(range(5))
    alone = small_viewing()
    for frame, pose in zip(frames, path.c2w_opencv, strict=True):
        camera = camera_at(pose, 64, 48, float(path.K[0, 0, 0]))
        found = (alone.outputs(nets, camera)["rgb"].numpy() * 255).round()
        assert np.abs(found - frame.picture).max() <= 1
        assert frame.best == 0

    def none(*_: Any) -> Any:
        raise AssertionError("all are in the cache")

    monkeypatch.setattr(viewing.drawer, "pictures", none)
    again = list(draw_path(viewing, nets, views, viewing.settings(), 0, batch=2))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(frames, again, strict=True))
    camera = camera_at(path.c2w_opencv[2], 64, 48, float(path.K[2, 0, 0]))
    np.testing.assert_allclose(viewing.outputs(nets, camera)["rgb"] * 255, frames[2].picture, atol=0.01)


@pytest.mark.parametrize("batch", [1, 5])
def test_several_samples_and_the_nearest(nets, batch: int):
    viewing = small_viewing()
    views = views_of_path(small_reference(), small_path(3))
    seen: list[tuple[int, int]] = []
    frames = list(
        draw_path(viewing, nets, views, viewing.settings(), 5, samples=4, batch=batch,
                  progress=lambda done, total: seen.append((done, total)))
    )  # fmt: skip
    assert seen[-1] == (12, 12)
    for frame in frames:
        assert frame.samples.shape == (4, 48, 64, 3)
        weight = frame.warp.coverage[..., None].astype(np.float64)
        target = frame.warp.rgb / np.maximum(weight, 1e-9)
        errors = [float((weight * (sample / 255 - target) ** 2).sum()) for sample in frame.samples]
        assert frame.best == int(np.argmin(errors))
        assert len({sample.tobytes() for sample in frame.samples}) == 4


def test_files(nets, tmp_path: Path):
    viewing, path = small_viewing(), small_path(4)
    writer = PathWriter(tmp_path, small_reference(), path.fps)
    for frame in draw_path(viewing, nets, views_of_path(small_reference(), path), viewing.settings(), 0, samples=2):
        writer.add(frame)
    files = writer.finish({"seed": 0})
    assert all(file.is_file() for file in files)
    for name, width in (("view", 128), ("beside", 2 * (2 * 64 + 4))):
        with av.open(str(tmp_path / f"{name}.mp4")) as film:
            shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert len(shown) == 4
        assert shown[0].shape == (96, width, 3)
    first = np.asarray(Image.open(tmp_path / "frames" / "0000.png").convert("RGB"))
    with av.open(str(tmp_path / "view.mp4")) as film:
        picture = next(film.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(picture.astype(int) - for_film(first)).mean() < 12
    with Image.open(tmp_path / "beside.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 4
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
    content = json.loads((tmp_path / "frames.json").read_text())
    assert [row["frame"] for row in content["frames"]] == [0, 1, 2, 3]
    assert all(0.3 < row["confidence"] <= 1 for row in content["frames"])
    for name in (
        "reference.png",
        "reference_padded.png",
        "mesh.ply",
        "warped/0003.png",
        "per_view_generations/0001.png",
    ):
        assert (tmp_path / name).is_file(), name


def test_pictures_for_films_and_sheets(tmp_path: Path):
    odd = np.arange(33 * 51 * 3, dtype=np.uint8).reshape(33, 51, 3)
    assert for_film(odd).shape == (66, 102, 3)
    assert for_film(np.zeros((171, 256, 3), np.uint8)).shape == (172, 256, 3)
    assert grid(np.zeros((5, 4, 6, 3), np.uint8)).shape == (8, 18, 3)
    write_gif(tmp_path / "a.gif", [odd, odd[::-1].copy()], 24)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["duration"] == 40
