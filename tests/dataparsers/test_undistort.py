"""The lens model against OpenCV and nerfstudio, its inverse, and undistorted pictures against an analytic pattern."""

from __future__ import annotations

import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from dataparsers.undistort import (
    Calibration,
    distort,
    monotone_radius,
    normalised_from_pixels,
    pinhole_target,
    pixels_from_normalised,
    project_distorted,
    undistort,
    undistort_image,
    undistort_where_possible,
)

BARREL = Calibration(
    240, 180, 200.0, 190.0, 123.0, 86.0, skew=0.8, k1=-0.12, k2=0.03, k3=-0.004, k4=0.002, p1=0.003, p2=-0.002
)
PINCUSHION = replace(BARREL, k1=0.15, k2=0.02, skew=-0.5, p1=-0.002, p2=0.004)


def pattern(xy: np.ndarray) -> np.ndarray:
    """Smooth grey pattern on the image plane Z = 1; wavelength about 20 pixels of the cameras above."""
    return 128.0 + 50.0 * np.sin(60.0 * xy[:, 0] + 3.0 * xy[:, 1]) + 50.0 * np.cos(55.0 * xy[:, 1] - 7.0 * xy[:, 0])


def pixel_centres(width: int, height: int) -> np.ndarray:
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([u.ravel(), v.ravel()], axis=-1)


def test_lens_model_agrees_with_opencv() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.6, 0.6, (500, 2))
    lens = replace(BARREL, k4=0.0, skew=0.0)  # OpenCV has no r^8 term and no skew
    expected, _ = cv2.projectPoints(
        np.concatenate([points, np.ones((500, 1))], axis=-1),
        np.zeros(3),
        np.zeros(3),
        lens.intrinsics,
        np.array([lens.k1, lens.k2, lens.p1, lens.p2, lens.k3]),
    )
    np.testing.assert_allclose(pixels_from_normalised(points, lens), expected[:, 0], rtol=0, atol=1e-9)
    swapped = replace(lens, p1=lens.p2, p2=lens.p1)
    assert np.abs(pixels_from_normalised(points, swapped) - expected[:, 0]).max() > 0.1


def test_lens_terms_mean_the_same_in_nerfstudio() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nerfstudio's imports warn about their own age
        from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort

    rng = np.random.default_rng(1)
    points = rng.uniform(-0.5, 0.5, (300, 2))
    distorted = torch.from_numpy(distort(points, BARREL))
    parameters = torch.from_numpy(BARREL.distortion).expand(300, 6)
    found = radial_and_tangential_undistort(distorted, parameters)
    np.testing.assert_allclose(found.numpy(), points, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "lens", [BARREL, PINCUSHION, replace(BARREL, k1=-0.3, k2=0.1)], ids=["barrel", "pin", "strong"]
)
def test_round_trip_of_points(lens: Calibration) -> None:
    pixels = np.random.default_rng(2).uniform([0, 0], [lens.width, lens.height], (2000, 2))
    ideal = normalised_from_pixels(pixels, lens)
    np.testing.assert_allclose(pixels_from_normalised(ideal, lens), pixels, rtol=0, atol=1e-9)
    np.testing.assert_allclose(undistort(distort(ideal, lens), lens), ideal, rtol=0, atol=1e-9)
    assert np.abs(distort(ideal, lens) - ideal).max() > 1e-2  # the lenses do something


def test_points_beyond_the_fold_are_refused() -> None:
    lens = Calibration(100, 100, 50.0, 50.0, 50.0, 50.0, k1=-0.4)
    limit = monotone_radius(lens)
    assert limit == pytest.approx(np.sqrt(1 / 1.2))
    reachable = limit * (1 - 0.4 * limit**2)
    xy, is_solved = undistort_where_possible(np.array([[0.999 * reachable, 0.0], [1.01 * reachable, 0.0]]), lens)
    assert is_solved.tolist() == [True, False]
    assert 0.9 * limit < xy[0, 0] < limit
    with pytest.raises(ValueError, match="folds back"):
        undistort(np.array([[1.01 * reachable, 0.0]]), lens)
    with pytest.raises(ValueError, match="folds back"):
        pinhole_target(lens)


@pytest.mark.parametrize("lens", [BARREL, PINCUSHION], ids=["barrel", "pincushion"])
def test_pinhole_target_is_centred_inside_and_tight(lens: Calibration) -> None:
    target = pinhole_target(lens)
    assert (target.cx, target.cy) == (target.width / 2, target.height / 2)
    assert not target.is_distorted
    assert target.skew == 0.0

    def outside(camera: Calibration) -> float:
        t = np.linspace(0, 1, 400)
        edges = [(t, 0 * t), (t, 0 * t + 1), (0 * t, t), (0 * t + 1, t)]
        border = np.concatenate([np.stack([a * camera.width, b * camera.height], -1) for a, b in edges])
        seen = pixels_from_normalised(normalised_from_pixels(border, camera), lens)
        return float(np.max([-seen.min(), (seen - [lens.width, lens.height]).max()]))

    assert outside(target) <= 1e-6
    for extra in ((2, 0), (0, 2)):
        wider = replace(target, width=target.width + extra[0], height=target.height + extra[1])
        assert outside(replace(wider, cx=wider.width / 2, cy=wider.height / 2)) > 0.0


def test_pinhole_without_distortion_keeps_its_size() -> None:
    lens = Calibration(66, 50, 73.2, 72.5, 33.0, 25.0)
    assert pinhole_target(lens) == lens


@pytest.mark.parametrize("lens", [BARREL, PINCUSHION], ids=["barrel", "pincushion"])
def test_undistorted_picture_shows_the_pattern(lens: Calibration) -> None:
    photo = pattern(normalised_from_pixels(pixel_centres(lens.width, lens.height), lens))
    photo = np.round(photo).astype(np.uint8).reshape(lens.height, lens.width)
    target = pinhole_target(lens)
    found = undistort_image(np.dstack([photo, photo // 2, photo]), lens, target).astype(np.float64)
    expected = pattern(normalised_from_pixels(pixel_centres(target.width, target.height), target))
    expected = expected.reshape(target.height, target.width)
    inner = (slice(2, -2), slice(2, -2))  # the last row may repeat the border
    error = np.abs(found[..., 0] - expected)[inner]
    assert error.mean() < 0.6  # rounding alone gives 0.25
    assert error.max() < 4.0
    np.testing.assert_allclose(found[..., 1], expected / 2, atol=4.0)
    # Controls: half a pixel beside it, and without the tangential terms, the pattern is clearly wrong.
    for wrong in (replace(lens, cx=lens.cx + 0.5), replace(lens, p1=lens.p2, p2=lens.p1)):
        shifted = undistort_image(photo, wrong, target).astype(np.float64)
        assert np.abs(shifted - expected)[inner].mean() > 3 * error.mean()


def test_undistort_image_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="10x12"):
        undistort_image(np.zeros((12, 10, 3), np.uint8), BARREL, pinhole_target(BARREL))


def test_resizing_scales_each_axis_by_its_own_ratio() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(-0.3, 0.3, (50, 2))
    small = BARREL.resized(59, 45)
    expected = pixels_from_normalised(points, BARREL) * [59 / 240, 45 / 180]
    np.testing.assert_allclose(pixels_from_normalised(points, small), expected, rtol=0, atol=1e-12)
    assert BARREL.skew_pixels == pytest.approx(0.8 * 180 / 380)


def test_project_distorted_depth_and_pose() -> None:
    w2c = np.eye(4)
    w2c[:3, 3] = [0.0, 0.0, 4.0]
    pixels, depth = project_distorted(np.array([[0.0, 0.0, 0.0], [0.4, 0.2, 0.0]]), BARREL, w2c)
    np.testing.assert_allclose(depth, [4.0, 4.0])
    np.testing.assert_allclose(pixels[0], [BARREL.cx, BARREL.cy])
    np.testing.assert_allclose(pixels[1], pixels_from_normalised(np.array([[0.1, 0.05]]), BARREL)[0])
