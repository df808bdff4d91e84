"""A28: cameras that are off by a degree and a centimetre are found again from photos, through the real renderer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core_ns.demo_scenes import look_at
from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, find_calibration, write_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.moving_figure import Ball
from dataparsers.moving_scene import MovingScene, build_moving_scene
from dataparsers.moving_studio import LIGHT
from r4dv_ns.camera_export import change, gauge, refined_calibration, write_calibration
from r4dv_ns.camera_refinement import CameraRefinement, CameraRefinementConfig
from r4dv_ns.peel import peel

VIEWS, SIZE, POINTS, STEPS = 10, 64, 12000, 600
DISTANCE, FOCAL = 0.45, 32.2
"""So near, and with so wide a field of view, that turning and moving a camera look different."""
TURN, SHIFT = math.radians(1.0), 0.01
SHELL = Ball.radius - 0.0025
"""Discs of nearer points cover those beside them, which makes a sphere of discs look larger than that of their
centres."""


def true_cameras(centre: np.ndarray) -> list[CameraModel]:
    """On two rings round the ball."""
    cameras = []
    for number in range(VIEWS):
        azimuth, height = 2 * np.pi * number / VIEWS, (0.1, 0.6)[number % 2]
        flat = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.cos(height)
        w2c = look_at(centre + DISTANCE * np.array([*flat, np.sin(height)]), centre)
        intrinsics = np.array([[FOCAL, 0.0, SIZE / 2], [0.0, FOCAL, SIZE / 2], [0.0, 0.0, 1.0]])
        cameras.append(CameraModel(f"{number:02d}", intrinsics, np.zeros(5), None, SIZE, SIZE, w2c[:3, :3], w2c[:3, 3]))
    return cameras


def disturbed(camera: CameraModel, rng: np.random.Generator) -> CameraModel:
    """Turned by 1 degree about its centre and moved by 1 cm, in random directions."""
    axis, step = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    rotation = camera.R @ Rotation.from_rotvec(TURN * axis).as_matrix()
    return replace(camera, R=rotation, T=-rotation @ (camera.centre + SHIFT * step))


def textured_points(scene: MovingScene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points evenly spread over the ball (golden spiral), their normals, and their colours as seen along them."""
    number = np.arange(POINTS) + 0.5
    height, angle = 1 - 2 * number / POINTS, number * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - height**2)
    normals = torch.from_numpy(np.column_stack([flat * np.cos(angle), flat * np.sin(angle), height])).float()
    centre = torch.from_numpy(scene.centroid(0)).float()
    lamp = LIGHT.expand(POINTS, 3).contiguous()
    colours, hit = scene.posed(0).shade(centre + normals, -normals, lamp, "black")
    assert hit.all()
    return centre + SHELL * normals, normals, colours


def errors(found: list[CameraModel], truth: list[CameraModel]) -> tuple[float, float]:
    """Mean angle (degrees) and mean distance of the centres (m), after the common motion is taken out."""
    back = np.linalg.inv(gauge(np.stack([each.w2c for each in found]), np.stack([each.w2c for each in truth])))
    moved = [each.w2c @ back for each in found]
    found = [replace(each, R=w2c[:3, :3], T=w2c[:3, 3]) for each, w2c in zip(found, moved, strict=True)]
    changes = [change(a.name, a, b) for a, b in zip(truth, found, strict=True)]
    return float(np.mean([each.degrees for each in changes])), float(np.mean([each.distance for each in changes]))


@pytest.mark.slow
def test_a_degree_and_a_centimetre_are_recovered_and_exported(tmp_path):
    scene = build_moving_scene(cameras=1, frames=1, size=(SIZE, SIZE), subject="ball", background="black")
    truth, posed, rng = true_cameras(scene.centroid(0)), scene.posed(0), np.random.default_rng(0)
    pictures = [scene.render(camera.lens, camera.w2c, 0, 3, posed) for camera in truth]
    given = {camera.name: disturbed(camera, rng) for camera in truth}
    write_cameras(tmp_path, given)
    for name, picture in zip(given, pictures, strict=True):
        for kind, values in (("images", picture.rgb), ("masks", picture.coverage)):
            write_image(tmp_path / kind / name / "000000.png", (values * 255).round().to(torch.uint8).numpy())

    sequence = open_sequence(tmp_path, SequenceOptions(eval_views=("none",)))
    poses = [torch.from_numpy(sequence.camera(view, 0)[1]).float() for view in range(VIEWS)]
    photos = [sequence.decode(view, 0) for view in range(VIEWS)]
    points, normals, colours = textured_points(scene)
    refinement = CameraRefinement(CameraRefinementConfig(mode="SO3xR3"), VIEWS)
    optimiser = torch.optim.Adam(refinement.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.02 ** (1 / STEPS))
    radius = torch.full((POINTS,), Ball.radius * math.sqrt(4 * math.pi / POINTS))
    losses = []
    for view in np.concatenate([rng.permutation(VIEWS) for _ in range(STEPS // VIEWS)]).tolist():
        w2c = refinement(poses[view], view)
        front = ((sequence.views[view].centre(0) - points.numpy()) * normals.numpy()).sum(axis=1) > 0
        seen = points[front] @ w2c[:3, :3].T + w2c[:3, 3]
        shown = peel(
            seen, radius[front], torch.full((len(seen),), 0.95), colours[front], fx=FOCAL, fy=FOCAL, cx=SIZE / 2,
            cy=SIZE / 2, height=SIZE, width=SIZE, layers=8, backend="torch",
        )  # fmt: skip
        inside = torch.from_numpy(photos[view].mask == 255)[..., None]
        difference = (shown.color - torch.from_numpy(photos[view].image) / 255) * inside
        loss = 0.5 * difference.square().mean() + 0.01 * refinement.penalty(torch.tensor([view]))
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert np.mean(losses[-VIEWS:]) < 0.6 * np.mean(losses[:VIEWS])

    calibration, _ = refined_calibration(sequence, refinement)
    write_calibration(tmp_path / "optimized", calibration)
    _, exported = find_calibration(tmp_path)
    degrees, metres = errors(list(given.values()), truth)
    degrees_after, metres_after = errors([exported[name] for name in given], truth)
    print(f"turn {degrees:.3f} -> {degrees_after:.3f} degrees, shift {metres:.4f} -> {metres_after:.4f} m")
    assert degrees_after < 0.5 * math.degrees(TURN)
    assert metres_after < 0.5 * min(metres, SHIFT)
    drift = gauge(np.stack([exported[name].w2c for name in given]), np.stack([given[name].w2c for name in given]))
    np.testing.assert_allclose(drift, np.eye(4), atol=1e-9)
