"""The generated sequence: what its files say is what was rendered, and its truths are true."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from core_ns.errors import DataError
from core_ns.frames import project
from dataparsers.easymocap import read_cameras
from dataparsers.moving_figure import Ball, Juggler, bent_sphere, capsule, cone, ellipsoid, rotation
from dataparsers.moving_scene import (
    build_moving_scene,
    image_centroid,
    make_moving_scene,
)
from dataparsers.undistort import project_distorted


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving") / "toy"
    return folder, make_moving_scene(folder, cameras=4, frames=3, size=(72, 90), seed=3, supersample=2)


def test_folder_holds_what_the_cameras_name(sequence):
    folder, scene = sequence
    cameras = read_cameras(folder / "intri.yml", folder / "extri.yml")
    assert list(cameras) == list(scene.cameras) == ["00", "01", "02", "03"]
    for name, camera in cameras.items():
        np.testing.assert_array_equal(camera.K, scene.cameras[name].K)
        np.testing.assert_allclose(camera.w2c, scene.cameras[name].w2c, atol=1e-14)
        for kind, suffix, mode in (("images", "jpg", "RGB"), ("masks", "png", "L")):
            files = sorted(path.name for path in (folder / kind / name).iterdir())
            assert files == [f"{frame:06d}.{suffix}" for frame in range(3)]
            with Image.open(folder / kind / name / files[-1]) as image:
                assert (image.size, image.mode) == ((72, 90), mode)
    assert {path.name for path in folder.iterdir()} == {"images", "masks", "intri.yml", "extri.yml", "truth.json"}


def test_files_are_the_renders(sequence):
    folder, scene = sequence
    picture = scene.render(scene.cameras["02"].lens, scene.cameras["02"].w2c, 1, 2)
    mask = np.asarray(Image.open(folder / "masks" / "02" / "000001.png"))
    assert np.abs(mask / 255 - picture.coverage.numpy()).max() <= 0.5 / 255 + 1e-6
    photo = np.asarray(Image.open(folder / "images" / "02" / "000001.jpg")) / 255
    assert np.sqrt(np.mean((photo - picture.rgb.numpy()) ** 2)) < 0.04
    assert 0.03 < (mask > 127).mean() < 0.6


def test_truth_json(sequence):
    folder, scene = sequence
    truth = json.loads((folder / "truth.json").read_text())
    assert len(truth["frames"]) == 3
    np.testing.assert_array_equal(truth["frames"][2]["centroid"], scene.centroid(2))
    np.testing.assert_array_equal(truth["bounds"], scene.bounds())


@pytest.mark.parametrize("subject", [Juggler(), Ball()], ids=["juggler", "ball"])
def test_subject_stays_in_every_picture_and_above_the_floor(subject):
    name = type(subject).__name__.lower()
    scene = build_moving_scene(cameras=12, frames=60, size=(96, 120), subject=name)
    for frame in range(0, 60, 3):
        points = scene.vertices(frame)
        assert points[:, 2].min() > -1e-9
        for camera in scene.cameras.values():
            pixels, depth = project(points, camera.K, camera.w2c)
            assert depth.min() > 1
            assert (pixels > 1).all()
            assert (pixels < np.array([95, 119])).all()


def test_ball_centroid_is_its_centre_and_the_mask_lies_there():
    """Perspective moves the middle of a sphere's outline off its centre's projection by about (r / z)^2 of the
    distance to the principal point: 1 % of it here."""
    scene = build_moving_scene(cameras=5, frames=6, size=(96, 96), subject="ball")
    path = []
    for frame in range(6):
        centre = scene.centroid(frame)
        points = scene.vertices(frame)
        np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), Ball.radius, atol=1e-12)
        path.append(centre)
        camera = scene.cameras[f"0{frame % 5}"]
        coverage = scene.render(camera.lens, camera.w2c, frame, 2).coverage.numpy()
        pixels, _ = project(centre[None], camera.K, camera.w2c)
        assert np.abs(image_centroid(coverage) - pixels[0]).max() < 0.35
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).min() > 0.05


def test_juggler_centroid_is_the_mean_of_its_parts_volumes():
    """Against random points inside the parts' own meshes (even-odd rule by the torch caster is exact enough here)."""
    from core_ns.raycast import TorchCaster

    part = bent_sphere("cone", cone(0.2, 0.5), lambda points, noise: (points, 0.0), 6)
    assert part.volume == pytest.approx(np.pi * 0.2**2 * 0.5 / 3, rel=0.06)
    caster = TorchCaster(torch.from_numpy(part.vertices), torch.from_numpy(part.faces), torch.device("cpu"))
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform([-0.2, -0.2, 0.0], [0.2, 0.2, 0.5], (6000, 3))).float()
    up, down = (torch.tensor([0.0, 0.0, sign]).expand_as(points) for sign in (1.0, -1.0))
    inside = (caster.cast(points, up).hit & caster.cast(points, down).hit).numpy()
    np.testing.assert_allclose(points.numpy()[inside].mean(axis=0), part.centroid, atol=8e-3)

    subject = Juggler()
    pose = subject.pose(0.3)
    weights = np.array([part.volume for part in subject.parts])
    assert (weights > 0).all()
    means = [part.vertices.mean(axis=0) @ pose[part.name][:3, :3].T + pose[part.name][:3, 3] for part in subject.parts]
    assert np.linalg.norm(weights @ np.stack(means) / weights.sum() - subject.centroid(0.3)) < 0.02


@pytest.mark.parametrize("bend", [ellipsoid(1, 2, 3), capsule(0.3, 1.0), capsule(0.3, -1.0), cone(0.5, 1.0)])
def test_parts_are_closed_and_face_out(bend):
    part = bent_sphere("part", bend, lambda points, noise: (points, 0.0), 8)
    edges = np.sort(part.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    assert part.volume > 0
    middle = part.vertices.mean(axis=0)
    assert (np.einsum("ij,ij->i", part.normals, part.vertices - middle) > -1e-3).mean() > 0.99


def test_rotation_is_right_handed():
    np.testing.assert_allclose(rotation(2, 90)[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(rotation(0, 90)[:3, :3] @ [0, 1, 0], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(rotation(1, 90)[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-15)


def test_distorted_pictures_follow_the_lens_model():
    """The ball's outline through a strong lens lies where OpenCV's model puts the ball."""
    scene = build_moving_scene(cameras=2, frames=1, size=(96, 96), subject="ball", distorted=True)
    camera = scene.cameras["01"]
    assert np.abs(camera.D[:2]).min() > 0
    strong = replace(camera.lens, k1=-0.4, cx=30.0)
    coverage = scene.render(strong, camera.w2c, 0, 2).coverage.numpy()
    points = scene.vertices(0)
    pixels, _ = project_distorted(points, strong, camera.w2c)
    rows, columns = np.nonzero(coverage > 0)
    assert abs(pixels[:, 0].min() - columns.min()) < 1.1
    assert abs(pixels[:, 0].max() - columns.max() - 1) < 1.1
    assert abs(pixels[:, 1].min() - rows.min()) < 1.1
    assert abs(pixels[:, 1].max() - rows.max() - 1) < 1.1


def test_pictures_are_reproducible_and_seeds_differ():
    scenes = [build_moving_scene(cameras=1, frames=1, size=(24, 24), seed=seed) for seed in (0, 0, 1)]
    camera = scenes[0].cameras["00"]
    first, again, other = (scene.render(camera.lens, camera.w2c, 0, 1).rgb for scene in scenes)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not np.array_equal(scenes[0].cameras["00"].K, scenes[2].cameras["00"].K)


def test_black_background_is_black_where_nothing_is():
    scene = build_moving_scene(cameras=1, frames=1, size=(24, 24), background="black")
    camera = scene.cameras["00"]
    picture = scene.render(camera.lens, camera.w2c, 0, 2)
    assert float(picture.rgb[picture.coverage == 0].max()) == 0
    assert float(picture.rgb[picture.coverage == 1].mean()) > 0.1


def test_image_size_does_not_depend_on_blocks(monkeypatch):
    scene = build_moving_scene(cameras=1, frames=1, size=(20, 24))
    camera = scene.cameras["00"]
    whole = scene.render(camera.lens, camera.w2c, 0, 2)
    monkeypatch.setattr("dataparsers.moving_scene.BLOCK", 200)
    parts = scene.render(camera.lens, camera.w2c, 0, 2)
    assert torch.equal(whole.coverage, parts.coverage)
    assert float((whole.rgb - parts.rgb).abs().max()) < 1e-5


def test_bad_options_write_nothing(tmp_path):
    for options in ({"cameras": 0}, {"frames": 0}, {"frames": 61}, {"size": (4, 90)}, {"supersample": 0}):
        with pytest.raises(ValueError):
            make_moving_scene(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        make_moving_scene(tmp_path / "full", cameras=1, frames=1, size=(8, 8))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]


def test_a_failing_render_leaves_nothing(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr("dataparsers.moving_scene.write_image", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        make_moving_scene(tmp_path / "out", cameras=2, frames=1, size=(16, 16), supersample=1)
    assert list(tmp_path.iterdir()) == []


def test_centroid_of_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="no weight"):
        image_centroid(np.zeros((3, 4)))
    assert image_centroid(np.eye(3)[:2]).tolist() == [1.0, 1.0]
