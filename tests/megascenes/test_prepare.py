"""Resizing and padding against the original's, and intrinsics by projecting points (spec megascenes 2.4)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_ns.frames import project
from megascenes_ns.prepare import crop, fitted_size, pad, paste_offset, prepare, resize_long, resize_pad


def test_the_original_s_pictures(shared_fixtures):
    """Exact with Pillow 13; +-1 for others."""
    stored = np.load(shared_fixtures / "megascenes/data/resize_pad.npz", allow_pickle=False)
    names = [name.removesuffix("_in") for name in stored.files if name.endswith("_in")]
    compared = 0
    for name in names:
        image = stored[f"{name}_in"]
        for canvas in (256, 32):
            key, ours = f"{name}_pad{canvas}", resize_pad(image, canvas)
            assert ours.shape == (canvas, canvas, 3)
            if key in stored.files:
                assert np.abs(ours.astype(int) - stored[key].astype(int)).max() <= 1, key
                compared += 1
        assert resize_long(image).shape[:2] == tuple(stored[f"{name}_unpadded_hw"].ravel()[:2]), name
        np.testing.assert_allclose(256 / max(image.shape[:2]), stored[f"{name}_ratio"])
    assert (len(names), compared) == (4, 5)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from([32, 64, 256]))
def test_sizes(width, height, canvas):
    across, down = fitted_size(width, height, canvas)
    assert max(across, down) == canvas
    assert min(across, down) >= 1
    exact = canvas * min(width, height) / max(width, height)
    assert min(across, down) == canvas or 1 <= min(across, down) <= max(exact, 1) + 1e-9
    assert min(across, down) > exact - 1 - 1e-9
    x, y = paste_offset(across, down, canvas)
    assert min(x, y) == 0
    assert 0 <= canvas - across - 2 * x <= 1
    assert 0 <= canvas - down - 2 * y <= 1


def test_square_pictures_fill_the_canvas():
    """256/n * n rounds below 256 for some n: the long side must not become 255."""
    assert any(int(n * (256 / n)) == 255 for n in range(257, 5000))
    assert all(fitted_size(n, n) == (256, 256) for n in range(1, 5000))


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (100, 37), (256, 256), (1000, 3)])
def test_points_project_to_where_their_pixels_went(size):
    """A dot in the photo and its projection with the new K lie on one another, padded and not."""
    width, height = size
    intrinsics = np.array([[0.9 * width, 0, 0.45 * width], [0, 0.8 * width, 0.55 * height], [0, 0, 1.0]])
    prepared = prepare(np.zeros((height, width, 3), np.uint8), intrinsics)
    points = np.random.default_rng(0).uniform((-1, -1, 2), (1, 1, 4), (50, 3))
    before, _ = project(points, intrinsics, np.eye(4))
    factors = np.array(prepared.size) / size
    after, _ = project(points, prepared.K, np.eye(4))
    np.testing.assert_allclose(after, before * factors, rtol=1e-12, atol=1e-9)
    padded, _ = project(points, prepared.K_padded, np.eye(4))
    np.testing.assert_allclose(padded - after, np.tile(prepared.offset, (50, 1)), atol=1e-9)


def test_a_bright_dot_stays_under_its_ray():
    """A blob two pixels wide in a photo of 512: its centre of mass after resizing, against the new K."""
    image = np.zeros((300, 512, 3), np.uint8)
    image[100:104, 200:204] = 255
    prepared = prepare(image, np.array([[400.0, 0, 256], [0, 400, 150], [0, 0, 1]]))
    weight = prepared.padded[..., 0].astype(float)
    weight[: prepared.offset[1]] = weight[prepared.offset[1] + prepared.size[1] :] = 0
    rows, columns = np.mgrid[:256, :256] + 0.5
    centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    ray = np.linalg.inv([[400.0, 0, 256], [0, 400, 150], [0, 0, 1]]) @ (202, 102, 1)
    np.testing.assert_allclose(centre, (prepared.K_padded @ ray)[:2], atol=0.05)


def test_padding_is_white_and_comes_off():
    image = np.random.default_rng(1).integers(0, 255, (101, 256, 3), dtype=np.uint8)
    square = pad(image)
    np.testing.assert_array_equal(crop(square, 256, 101), image)
    rest = square.copy()
    x, y = paste_offset(256, 101)
    rest[y : y + 101, x : x + 256] = 255
    assert (rest == 255).all()
    np.testing.assert_array_equal(crop(square / 255.0, 256, 101), image / 255.0)
    np.testing.assert_array_equal(resize_long(image), image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((3, 3, 3)), np.zeros((3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8), np.zeros((0, 3, 3), np.uint8)],
    ids=["float", "grey", "alpha", "empty"],
)
def test_other_arrays_are_refused(image):
    for function in (pad, resize_long, resize_pad):
        with pytest.raises(ValueError, match="uint8"):
            function(image)
    with pytest.raises(ValueError, match="does not fit"):
        pad(np.zeros((300, 20, 3), np.uint8))
