"""Undistortion and resizing: positions against OpenCV, dots that must land where the delivered camera says (A11)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import cv2
import numpy as np
import pytest

from dataparsers import easymocap_lens
from dataparsers.easymocap_lens import Lens, _make_tables, _TableCache, deliver, filling_target, make_lens, valid_area

SIZE = (151, 113)
MATRIX = np.array([[120.0, 0.0, 77.3], [0.0, 118.0, 54.1], [0.0, 0.0, 1.0]])
NONE = np.zeros(5)
BARREL = np.array([-0.18, 0.05, 0.002, -0.0015, -0.01])
PINCUSHION = np.array([0.12, 0.03, -0.001, 0.002, 0.0])
FISHEYE = np.array([0.04, -0.03, 0.01, -0.002])
HALF = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def centres(width: int, height: int) -> np.ndarray:
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([u.ravel(), v.ravel()], axis=-1)


def projected(points: np.ndarray, matrix: np.ndarray, distortion: np.ndarray, fisheye: np.ndarray | None) -> np.ndarray:
    """cv2's projection of camera-frame points."""
    zero = np.zeros(3)
    if fisheye is None:
        return cv2.projectPoints(points, zero, zero, matrix, distortion)[0][:, 0]
    return cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, fisheye)[0][:, 0]


def dots(pixels: np.ndarray, size: tuple[int, int], sigma: float = 1.6) -> np.ndarray:
    """A photo with a Gaussian spot about each continuous position; pixel (i, j) is sampled at its centre."""
    at = centres(*size)
    distance = ((at[:, None] - pixels[None]) ** 2).sum(-1)
    image = 220.0 * np.exp(-0.5 * distance / sigma**2).sum(axis=1).reshape(size[1], size[0])
    return np.repeat(np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image: np.ndarray, expected: np.ndarray, reach: float) -> np.ndarray:
    """Centre of brightness about a position, continuous pixels."""
    at = centres(image.shape[1], image.shape[0])
    weight = image[..., 0].ravel().astype(float) * (np.linalg.norm(at - expected, axis=1) < reach)
    return (at * weight[:, None]).sum(axis=0) / weight.sum()


@pytest.mark.parametrize(
    ("lens_kind", "undistort"), list(product(["none", "barrel", "pincushion", "fisheye"], ["same", "optimal"]))
)
def test_dots_land_where_the_delivered_camera_says(lens_kind: str, undistort: str) -> None:
    """A11: every ratio, shift and crop; within 0.1 px."""
    distortion = {"barrel": BARREL, "pincushion": PINCUSHION}.get(lens_kind, NONE)
    fisheye = FISHEYE if lens_kind == "fisheye" else None
    grid = np.stack(np.meshgrid([-0.38, 0.0, 0.36], [-0.26, 0.02, 0.24]), axis=-1).reshape(-1, 2)
    points = np.concatenate([grid, np.ones((9, 1))], axis=1) * 2.0
    for ratio, shift in product((1.0, 0.5, 0.37, 1.6), (0.0, 0.5)):
        stored = dots(projected(points, MATRIX, distortion, fisheye) + shift, SIZE)
        lens = make_lens(MATRIX, distortion, fisheye, SIZE, ratio, shift, undistort)  # type: ignore[arg-type]
        image = deliver(stored, lens, "cubic")
        width, height = lens.target.width, lens.target.height
        assert image.shape == (height, width, 3)
        assert (width, height) == tuple(int(side * ratio + 0.5) for side in SIZE)
        x, y = width // 30, height // 40  # a crop moves the principal point
        matrix = lens.target.intrinsics - [[0, 0, x], [0, 0, y], [0, 0, 0]]
        for point in points:
            expected = (matrix @ point)[:2] / point[2]
            found = centroid(image[y:, x:], expected, reach=7.0 * ratio)
            assert np.abs(found - expected).max() < 0.1, (ratio, shift, point)


def test_positions_agree_with_opencv() -> None:
    for distortion in (BARREL, PINCUSHION):
        lens = make_lens(MATRIX, distortion, None, SIZE)
        ours, _ = lens.source_pixels(centres(*SIZE))
        # cv2 counts pixels from their centres.
        u, v = cv2.initUndistortRectifyMap(MATRIX - HALF, distortion, None, MATRIX - HALF, SIZE, cv2.CV_32FC1)
        np.testing.assert_allclose(ours - 0.5, np.stack([u.ravel(), v.ravel()], axis=-1), rtol=0, atol=1e-3)
    lens = make_lens(MATRIX, NONE, FISHEYE, SIZE)
    ours, _ = lens.source_pixels(centres(*SIZE))
    u, v = cv2.fisheye.initUndistortRectifyMap(MATRIX - HALF, FISHEYE, np.eye(3), MATRIX - HALF, SIZE, cv2.CV_32FC1)
    np.testing.assert_allclose(ours - 0.5, np.stack([u.ravel(), v.ravel()], axis=-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("distortion", [BARREL, PINCUSHION])
def test_optimal_matrix_fills_the_photo(distortion: np.ndarray) -> None:
    lens = make_lens(MATRIX, distortion, None, SIZE, undistort="optimal")
    valid = valid_area(lens)
    assert valid is not None
    assert valid.mean() > 0.9999
    theirs, _ = cv2.getOptimalNewCameraMatrix(MATRIX - HALF, distortion, SIZE, 0.0, SIZE)
    # cv2 samples the border at 9 points and measures to pixel centres.
    np.testing.assert_allclose(lens.target.intrinsics, theirs + HALF, rtol=0.02, atol=1e-9)
    along = np.linspace(0, 1, 501)
    for axis, end in ((0, 0), (0, 1), (1, 0), (1, 1)):
        border = np.stack([along, along], axis=1)
        border[:, axis] = end
        found = lens.source_pixels(border * SIZE)[0][:, axis] / SIZE[axis]
        inward = (1 - found if end else found) * SIZE[axis]
        assert -0.01 < inward.min() < 0.1, "each border touches the photo's, from inside"


def test_optimal_fisheye_and_lenses_that_cannot_be_inverted() -> None:
    lens = make_lens(MATRIX, NONE, FISHEYE, SIZE, undistort="optimal")
    valid = valid_area(lens)
    assert valid is not None
    assert valid.mean() > 0.9999
    with pytest.raises(ValueError, match="beyond"):
        make_lens(np.diag([20.0, 20.0, 1.0]), NONE, np.zeros(4), SIZE, undistort="optimal")
    with pytest.raises(ValueError, match="folds back"):
        make_lens(MATRIX, np.array([-2.0, 0, 0, 0, 0]), None, SIZE, undistort="optimal")
    with pytest.raises(ValueError, match="nothing is left"):
        filling_target(make_lens(MATRIX * [[1], [9], [1]], BARREL, None, (3, 900)).source, None)


def test_what_the_photo_does_not_show_is_invalid_and_black() -> None:
    lens = make_lens(MATRIX, PINCUSHION, None, SIZE)
    valid = valid_area(lens)
    assert valid is not None
    found, _ = lens.source_pixels(centres(*SIZE))
    inside = ((found >= 0) & (found <= SIZE)).all(axis=1).reshape(valid.shape)
    np.testing.assert_array_equal(valid, inside)
    assert 0.5 < valid.mean() < 1.0
    for kind in ("cubic", "linear"):
        white = deliver(np.full((SIZE[1], SIZE[0]), 255, np.uint8), lens, kind)
        assert (white[valid] == 255).all(), "no darkening at the photo's border"
        assert (white[~valid] == 0).all()


def test_folded_lenses_show_nothing_twice() -> None:
    lens = make_lens(np.array([[60.0, 0, 75], [0, 60.0, 56], [0, 0, 1]]), np.array([-0.3, 0, 0, 0, 0]), None, SIZE)
    _, shown = lens.source_pixels(centres(*SIZE))
    radius = np.linalg.norm((centres(*SIZE) - [75, 56]) / 60.0, axis=1)
    assert not shown[radius > 1.0541].any(), "r (1 - 0.3 r^2) turns at 1 / sqrt(0.9)"
    assert shown[radius < 1.0].all()


def test_no_lens_no_resampling() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    lens = make_lens(MATRIX, NONE, None, SIZE)
    assert lens.is_identity
    assert valid_area(lens) is None
    assert deliver(image, lens, "cubic") is image
    as_stored = make_lens(MATRIX, BARREL, None, SIZE, undistort="none")
    assert as_stored.is_identity
    np.testing.assert_array_equal(deliver(image, as_stored, "cubic"), image)
    assert make_lens(MATRIX, NONE, None, SIZE, undistort="optimal").is_identity


def test_each_axis_is_scaled_by_its_own_rounded_ratio() -> None:
    target = make_lens(MATRIX, NONE, None, SIZE, 0.37).target
    assert (target.width, target.height) == (56, 42)
    np.testing.assert_allclose(target.intrinsics[0], MATRIX[0] * 56 / 151, rtol=1e-15)
    np.testing.assert_allclose(target.intrinsics[1], MATRIX[1] * 42 / 113, rtol=1e-15)


def test_skew_is_removed_with_the_lens() -> None:
    matrix = MATRIX + np.array([[0, 2.5, 0], [0, 0, 0], [0, 0, 0]])
    lens = make_lens(matrix, NONE, None, SIZE)
    assert not lens.is_identity
    assert lens.target.intrinsics[0, 1] == 0
    point = np.array([0.1, 0.3, 1.0])
    image = deliver(dots((matrix @ point)[None, :2], SIZE, 3.0), lens, "cubic")
    expected = (lens.target.intrinsics @ point)[:2]
    assert np.abs(centroid(image, expected, 11) - expected).max() < 0.05


def test_tables_are_bounded_in_bytes_and_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    lenses = [make_lens(MATRIX + i * HALF, BARREL, None, SIZE) for i in range(5)]
    size = sum(array.nbytes for array in _make_tables(lenses[0]))
    cache = _TableCache(2 * size)
    made = []
    monkeypatch.setattr(easymocap_lens, "_make_tables", lambda lens: made.append(lens) or _make_tables(lens))
    for lens in [*lenses, lenses[-1], lenses[-2]]:
        cache.get(lens)
        assert cache.bytes() <= 2 * size
    assert made == lenses
    image = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    alone = [deliver(image, lens, "cubic") for lens in lenses]
    monkeypatch.setattr(easymocap_lens, "_cache", _TableCache(2 * size))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: deliver(image, lenses[i % 5], "cubic"), range(40)))
    for index, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[index % 5])


def test_a_lens_is_a_key() -> None:
    first, second = (make_lens(MATRIX, BARREL, None, SIZE, 0.5) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert isinstance(first, Lens)
