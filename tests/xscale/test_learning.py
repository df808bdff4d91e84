"""What training reaches (spec xscale 9: A9, A10, A19, A20): a textured quad, a ball under a sky, a far plane."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xscale_models import NOISE, Cameras, open_trainer, ring_of_cameras, short_run, sphere_mesh, write_mvsnet_scene

from core_ns.demo_scenes import build_demo_scene, look_at, make_demo_scene
from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras
from core_ns.metrics import image_metrics

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in NOISE)]


def trained(config: Any) -> Any:
    """The trainer after its run, seeded as ``ns-train`` does."""
    config.save_config()
    torch.manual_seed(42)
    trainer = open_trainer(config)
    trainer.train()
    trainer.pipeline.eval()
    return trainer


def scores(trainer: Any, split: str) -> list[dict[str, float]]:
    """Metrics of every view of ``train`` or ``eval``."""
    dataset = getattr(trainer.pipeline.datamanager, f"{split}_dataset")
    dataset.serve_thumbnails = False  # the photos themselves, not what the viewer's frustums show
    found = []
    for view in range(len(dataset)):
        outputs = trainer.pipeline.model.get_outputs_for_camera(dataset.cameras[view : view + 1])
        found.append(
            image_metrics(outputs["rgb"], dataset.get_data(view)["image"], outputs["accumulation"][..., 0] > 0.5)
        )
    return found


def mean(found: list[dict[str, float]], key: str) -> float:
    return float(np.mean([scored[key] for scored in found]))


# ------------------------------------------------------------------------------------------------------ a quad


@pytest.fixture(scope="module")
def quad_run(tmp_path_factory) -> tuple[Any, Any]:
    """A9's run on a textured square, and the scene that renders its truth."""
    folder = tmp_path_factory.mktemp("quad")
    options: dict[str, Any] = {"variant": "quad", "views": 4, "test_views": 0, "width": 64, "height": 64}
    # Point samples: pixels averaged over the silhouette have no colour on the surface to learn.
    make_demo_scene(folder / "quad", supersample=1, mesh_faces=2, **options)
    config = short_run(folder / "quad", folder / "runs", 600, rays=4096)
    config.pipeline.datamanager.dataparser.eval_mode = "all"
    return trained(config), build_demo_scene(mesh_faces=2, **options)


def test_a9_four_small_photos_of_a_quad_are_learnt_by_heart(quad_run) -> None:
    trainer, _ = quad_run
    found = scores(trainer, "train")
    assert len(found) == 4
    assert min(scored["coverage"] for scored in found) > 0.1
    assert mean(found, "psnr_masked") >= 40


def test_a20_sub_samples_approach_the_area_mean_of_a_far_plane(quad_run) -> None:
    """From far away many texels fall into a pixel: the mean of four rays comes nearer to the truth than one ray."""
    trainer, scene = quad_run
    model, parsed = trainer.pipeline.model, trainer.pipeline.datamanager.train_dataparser_outputs
    size, focal = 48, 60.0
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    # In the photos a pixel covers distance / focal of the quad: five times as much here.
    nearest = min(np.linalg.norm(pose[:3, :3].T @ pose[:3, 3]) for pose in scene.poses)
    distance = 5.0 * focal / scene.intrinsics[0, 0] * nearest
    eye = distance * np.array([0.05, -0.08, 1.0])
    pose = look_at(eye, np.zeros(3))
    truth = scene.render(pose, intrinsics, size, size, supersample=16)
    inside = truth.coverage == 1
    assert inside.sum() > 40
    c2w = transform_cameras(
        c2w_opengl_from_w2c_opencv(pose)[None], parsed.dataparser_transform.double().numpy(), parsed.dataparser_scale
    )[:, :3]
    lens = [torch.tensor([[value]]) for value in (focal, focal, size / 2, size / 2)]
    camera = Cameras(torch.from_numpy(c2w).float(), *lens, torch.tensor([[size]]), torch.tensor([[size]]))
    decibels = {}
    for samples in (1, 4):
        model.config.eval_sub_samples = samples
        error = (model.get_outputs_for_camera(camera)["rgb"] - truth.rgb)[inside]
        decibels[samples] = -10 * math.log10(float(error.square().mean()))
    model.config.eval_sub_samples = 1
    assert decibels[4] >= decibels[1] + 1.0, decibels


# ------------------------------------------------------------------------------------------------------ a ball


def ball_colour(normals: np.ndarray) -> np.ndarray:
    """Display colour of the unit ball's surface: waves from 4 to 24 radians per radius, saturated to hard edges."""
    rng = np.random.default_rng(3)
    waves = rng.normal(size=(10, 3))
    waves *= (np.geomspace(4, 24, 10) / np.linalg.norm(waves, axis=1))[:, None]
    phases, tints = rng.uniform(0, 2 * np.pi, 10), rng.uniform(-1, 1, (10, 3))
    return 0.5 + 0.4 * np.tanh(np.sin(normals @ waves.T + phases) @ tints)


def sky_colour(directions: np.ndarray) -> np.ndarray:
    """A gradient around the scene."""
    return 0.5 + 0.4 * directions * np.array([0.9, -0.6, 1.0])


def ball_photo(pose: np.ndarray, focal: float, width: int, height: int, supersample: int = 4) -> np.ndarray:
    """The unit ball under the sky, each pixel the mean of its sub-pixels; analytic, uint8."""
    y, x = (np.mgrid[: height * supersample, : width * supersample] + 0.5) / supersample
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], axis=-1)
    rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)) @ pose[:3, :3]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    along = rays @ eye
    root = along**2 - (eye @ eye - 1.0)
    hit = root > 0
    points = eye + (-along - np.sqrt(np.where(hit, root, 0)))[..., None] * rays
    rgb = np.where(hit[..., None], ball_colour(points), sky_colour(rays))
    rgb = rgb.reshape(height, supersample, width, supersample, 3).mean(axis=(1, 3))
    return np.round(255 * rgb).astype(np.uint8)


@pytest.fixture(scope="module")
def ball_run(tmp_path_factory) -> Any:
    """A10's run: 41 photos of 160x120 train, 7 are held out."""
    folder = tmp_path_factory.mktemp("ball")
    poses = ring_of_cameras(48, 3.0)
    photos = [ball_photo(pose, 150.0, 160, 120) for pose in poses]
    intrinsics = np.array([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]])
    scene: Path = write_mvsnet_scene(
        folder / "ball", poses, intrinsics, photos, sphere_mesh(1.0, 5), test=tuple(range(3, 48, 7))
    )
    return trained(short_run(scene, folder / "runs", 400, rays=4096))


def test_a10_held_out_views_of_a_ball(ball_run) -> None:
    found = scores(ball_run, "eval")
    assert len(found) == 7
    assert len(ball_run.pipeline.datamanager.train_dataset) == 41
    assert mean(found, "psnr_masked") >= 24


def test_a19_full_frame_masked_and_missed_pixels_add_up(ball_run) -> None:
    for scored in scores(ball_run, "eval"):
        assert scored["psnr_misses"] >= 25, "the sky was not learnt"
        hits, misses = (10 ** (-scored[key] / 10) for key in ("psnr_masked", "psnr_misses"))
        share = scored["coverage"]
        assert -10 * math.log10(share * hits + (1 - share) * misses) == pytest.approx(scored["psnr"], abs=1e-4)
