"""Opening recordings: frames, times (A12), held-out views, moving cameras, sizes, damaged files, threads, copies."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from easymocap_scene import HEIGHT, WIDTH, draw, look_at, make_sequence, ring, shift
from PIL import Image

from core_ns.errors import DataError
from core_ns.images import read_image
from dataparsers.easymocap import CameraModel, write_cameras
from dataparsers.easymocap_attention import nearest_point_to_axes
from dataparsers.easymocap_sequence import SequenceOptions, attention_point, box_of_attention, open_sequence


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cameras, seven frames, masks; do not write to it."""
    return make_sequence(tmp_path_factory.mktemp("sequence"), frames=7)


def test_views_frames_and_photos(scene: Path) -> None:
    sequence = open_sequence(scene)
    assert sequence.names == [f"{view:02d}" for view in range(6)]
    assert sequence.frames == [f"{frame:06d}" for frame in range(7)]
    assert sequence.eval_views == [3]
    assert sequence.train_views == [0, 1, 2, 4, 5]
    assert sequence.eval_frames == [0, 2, 3, 4, 6]
    assert (sequence.has_masks, sequence.images_dir, sequence.masks_dir) == (True, "images", "masks")
    assert sequence.bounds is None
    photo, mask = sequence.decode(4, 2), draw((WIDTH, HEIGHT), 4, 2)[1]
    np.testing.assert_array_equal(photo.image, read_image(sequence.image_path(4, 2))[0])
    np.testing.assert_array_equal(photo.mask, mask)
    assert photo.valid is None
    assert sequence.image_path(4, 2) == scene / "images" / "04" / "000002.jpg"
    assert sequence.mask_path(4, 2) == scene / "masks" / "04" / "000002.png"
    view, calibrated = sequence.views[4], ring(6)["04"]
    assert (view.width, view.height, view.name) == (WIDTH, HEIGHT, "04")
    K, w2c = sequence.camera(4, 2)
    np.testing.assert_allclose(K, calibrated.K, rtol=0, atol=1e-12)
    np.testing.assert_allclose(w2c[:3, 3], calibrated.T, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(view.w2c(6), w2c)
    np.testing.assert_allclose(view.centre(0), -calibrated.R.T @ calibrated.T, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- time


def test_times_come_from_positions(scene: Path) -> None:
    def times(*sample: int | None) -> list[float]:
        return open_sequence(scene, SequenceOptions(frame_sample=sample, check_every_header=False)).times

    assert times(0, None, 1) == [i / 6 for i in range(7)]
    assert times(2, 7, 2) == [0.0, 0.5, 1.0]
    assert times(1, 7, 4) == [0.0, 1.0]
    assert times(4) == [0.0]
    assert times(0, 1, 1, 4) == [0.0, 0.25, 1.0], "unevenly chosen frames keep their distance"


# ---------------------------------------------------------------- cameras


def test_moving_cameras(tmp_path: Path) -> None:
    root = make_sequence(tmp_path, ring(4), frames=4, moving=("02", "03"))
    sequence = open_sequence(root, SequenceOptions(frame_sample=(1, None, 2)))
    assert [view.is_moving for view in sequence.views] == [False, False, True, True]
    assert isinstance(sequence.views[0].camera, CameraModel)
    still = ring(4)["02"]
    for index, frame in enumerate((1, 3)):
        expected = shift(still, np.array([0.1 * frame, 0, 0]))
        np.testing.assert_allclose(sequence.camera(2, index)[1], expected.w2c, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            sequence.views[2].centre(index), still.centre + np.array([0.1 * frame, 0, 0]), rtol=0, atol=1e-12
        )
    sequence.bounds = np.array([[0, -0.3, 0.8], [0.4, 0.1, 1.2]])
    assert sequence.depth_range(2, 0) != sequence.depth_range(2, 1)


def test_moving_camera_without_a_pose(tmp_path: Path) -> None:
    root = make_sequence(tmp_path, ring(4), frames=3, moving=("03",))
    write_cameras(root / "cameras" / "03", {"000000": ring(4)["03"], "000002": ring(4)["03"]})
    with pytest.raises(DataError, match=r"moving camera 03.*frame 000001"):
        open_sequence(root)
    assert len(open_sequence(root, SequenceOptions(frame_sample=(0, None, 2))).frames) == 2


def test_moving_camera_that_zooms(tmp_path: Path) -> None:
    root, camera = make_sequence(tmp_path, ring(3), frames=2), ring(3)["01"]
    zoomed = replace(camera, K=camera.K * [[2.0, 1, 1], [1, 2.0, 1], [1, 1, 1]], D=np.array([0.4, 0, 0, 0, 0]))
    write_cameras(root / "cameras" / "01", {"000000": camera, "000001": zoomed})
    sequence = open_sequence(root)
    np.testing.assert_allclose(sequence.camera(1, 0)[0], camera.K, rtol=1e-15)
    np.testing.assert_allclose(sequence.camera(1, 1)[0], zoomed.K, rtol=1e-15)
    Image.new("L", (WIDTH, HEIGHT), 255).save(root / "masks" / "01" / "000001.png")
    photo = sequence.decode(1, 1)
    assert sequence.decode(1, 0).valid is None
    assert photo.valid is not None
    assert not photo.valid.all()
    np.testing.assert_array_equal(photo.mask, np.where(photo.valid, 255, 0))


@pytest.mark.parametrize(("limit", "ratio", "expected"), [(WIDTH // 2, 1.0, 0.5), (10 * WIDTH, 0.75, 0.75)])
def test_the_longer_side_can_be_limited(scene: Path, limit: int, ratio: float, expected: float) -> None:
    """Never scaled up; a smaller ratio goes first."""
    assert WIDTH >= HEIGHT
    options = SequenceOptions(max_side=limit, ratio=(ratio,))
    sequence, plain = open_sequence(scene, options), open_sequence(scene, SequenceOptions(ratio=(expected,)))
    for view, other in zip(sequence.views, plain.views, strict=True):
        assert (view.width, view.height) == (other.width, other.height)
        np.testing.assert_array_equal(view.intrinsics(0), other.intrinsics(0))


def test_a_ratio_for_each_camera(scene: Path) -> None:
    ratios = (0.5, 0.25, 1.0, 0.75, 0.5, 0.3)
    sequence = open_sequence(scene, SequenceOptions(ratio=ratios, view_sample=(1, 5, 1), eval_views=("none",)))
    for view, ratio in zip(sequence.views, ratios[1:5], strict=True):
        width, height = int(WIDTH * ratio + 0.5), int(HEIGHT * ratio + 0.5)
        assert (view.width, view.height) == (width, height)
        np.testing.assert_allclose(view.K[:2], view.cameras[0].K[:2] * [[width / WIDTH], [height / HEIGHT]], rtol=1e-15)
        photo = sequence.decode(sequence.views.index(view), 0)
        assert photo.image.shape == (height, width, 3)
        assert photo.mask is not None
        assert photo.mask.shape == (height, width)
    with pytest.raises(DataError, match=r"--ratio.*has 2 numbers, the calibration 6 cameras"):
        open_sequence(scene, SequenceOptions(ratio=(0.5, 0.25)))


def test_distorted_and_fisheye_cameras(tmp_path: Path) -> None:
    cameras = ring(4)
    cameras["01"] = replace(cameras["01"], D=np.array([-0.2, 0.04, 0.001, -0.002, 0.0]))
    cameras["02"] = replace(cameras["02"], fisheye=np.array([0.03, -0.01, 0.0, 0.0]))
    root = make_sequence(tmp_path, cameras)
    for frame_world in (np.array([0.4, 0.1, 1.3]), np.array([0.0, -0.4, 0.7])):
        for view, camera in enumerate(cameras.values()):
            pixel = camera.project(frame_world[None])[0][0]
            at = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), axis=-1)
            spot = 230 * np.exp(-0.5 * ((at - pixel) ** 2).sum(-1) / 2.0**2)
            Image.fromarray(np.rint(spot).astype(np.uint8)).save(root / "images" / f"{view:02d}" / "000000.png")
            (root / "images" / f"{view:02d}" / "000000.jpg").unlink(missing_ok=True)
        for undistort in ("same", "optimal"):
            sequence = open_sequence(root, SequenceOptions(undistort=undistort))  # type: ignore[arg-type]
            assert [view.lens(0).is_identity for view in sequence.views] == [True, False, False, True]
            for view in range(4):
                photo = sequence.decode(view, 0)
                K, w2c = sequence.camera(view, 0)
                expected = K @ (w2c[:3, :3] @ frame_world + w2c[:3, 3])
                expected = expected[:2] / expected[2]
                weight = photo.image[..., 0].astype(float)
                found = (at * weight[..., None]).sum(axis=(0, 1)) / weight.sum()
                assert np.abs(found - expected).max() < 0.1
                assert (photo.valid is None) == (view in (0, 3))


def test_pixel_centre_shift(scene: Path) -> None:
    plain, exact = (open_sequence(scene, SequenceOptions(pixel_centre_shift=s, ratio=(0.5,))) for s in (0.0, 0.5))
    np.testing.assert_allclose(exact.views[1].K - plain.views[1].K, [[0, 0, 0.25], [0, 0, 0.25], [0, 0, 0]], atol=1e-12)


def test_refined_cameras_are_preferred_and_the_choice_is_said(scene: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "copy"
    shutil.copytree(scene, root)
    refined = {name: shift(camera, np.array([0.0, 0.01, 0.0])) for name, camera in ring(6).items()}
    write_cameras(root / "optimized", refined)
    sequence = open_sequence(root)
    assert sequence.calibration_dir == root / "optimized"
    assert "optimized" in capsys.readouterr().out
    np.testing.assert_allclose(sequence.views[0].centre(0), refined["00"].centre, rtol=0, atol=1e-12)
    plain = open_sequence(root, SequenceOptions(cameras="plain"))
    np.testing.assert_allclose(plain.views[0].centre(0), ring(6)["00"].centre, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- boxes


def test_extent_covers_the_projected_box(scene: Path) -> None:
    sequence = open_sequence(scene)
    bounds = np.array([[0.0, -0.3, 0.8], [0.4, 0.1, 1.2]])
    rng = np.random.default_rng(0)
    inside = rng.uniform(bounds[0], bounds[1], (4000, 3))
    for view in range(6):
        K, w2c = sequence.camera(view, 0)
        seen = inside @ w2c[:3, :3].T + w2c[:3, 3]
        pixels = (seen @ K.T)[:, :2] / seen[:, 2:]
        x, y, width, height = sequence.extent(view, 0, bounds, pad=0)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        assert (low >= (x, y)).all()
        assert (high <= (x + width, y + height)).all()
        assert ((low - (x, y)) < 4).all(), "and is tight"
        assert (((x + width, y + height) - high) < 4).all()
        padded = sequence.extent(view, 0, bounds, pad=3)
        assert padded == (x - 3, y - 3, width + 6, height + 6)
        assert sequence.extent(view, 0, bounds) == (0, 0, WIDTH, HEIGHT)


def test_extent_at_the_border_and_out_of_sight(scene: Path) -> None:
    sequence = open_sequence(scene)
    whole = (0, 0, WIDTH, HEIGHT)
    centre = sequence.views[0].centre(0)
    assert sequence.extent(0, 0, np.stack([centre - 1, centre + 1])) == whole, "a corner behind the camera"
    right, forward = sequence.views[0].w2c(0)[[0, 2], :3]
    ends = np.stack([centre - 0.1 * forward, centre + 2 * forward])
    narrow = np.stack([ends.min(axis=0) - 0.01, ends.max(axis=0) + 0.01])
    assert sequence.extent(0, 0, narrow, pad=0) == whole, "its corners behind the camera project near the middle"
    far_right = np.array([0.2, -0.1, 1.0]) + 40 * right
    assert sequence.extent(0, 0, np.stack([far_right - 0.1, far_right + 0.1])) == whole, "out of sight"
    x, y, width, height = sequence.extent(0, 0, np.array([[0.1, -3.0, 0.9], [0.3, 0.0, 1.1]]), pad=0)
    assert 0 <= x < x + width <= WIDTH
    assert 0 <= y < y + height <= HEIGHT
    assert (x, y, width, height) != whole


def test_where_the_cameras_look(scene: Path) -> None:
    sequence = open_sequence(scene)
    np.testing.assert_allclose(attention_point(sequence), [0.2, -0.1, 1.0], rtol=0, atol=1e-9)
    distance = 3.0 * np.sqrt(1 + 0.25**2)
    expected = np.array([0.2, -0.1, 1.0]) + 0.6 * distance * np.array([[-1.0], [1.0]])
    np.testing.assert_allclose(box_of_attention(sequence), expected, rtol=0, atol=1e-9)


def test_cameras_that_look_at_nothing(tmp_path: Path) -> None:
    parallel = {f"{i}": replace(ring(1)["00"], T=np.array([0.1 * i, 0, 0])) for i in range(3)}
    with pytest.raises(DataError, match=r"parallel.*--bounds"):
        box_of_attention(open_sequence(make_sequence(tmp_path / "parallel", parallel)))
    outward = {}
    for name, camera in ring(6).items():
        rotation, translation = look_at(camera.centre, 2 * camera.centre - np.array([0.2, -0.1, 1.0]))
        outward[name] = replace(camera, R=rotation, T=translation)
    with pytest.raises(DataError, match=r"outward.*--bounds"):
        box_of_attention(open_sequence(make_sequence(tmp_path / "outward", outward)))
    mixed = np.stack([(outward if index < 3 else ring(6))[f"{index:02d}"].w2c for index in range(5)])
    with pytest.raises(ValueError, match="outward"):
        nearest_point_to_axes(mixed)
    np.testing.assert_allclose(nearest_point_to_axes(mixed[1:][::-1][:3]), [0.2, -0.1, 1.0], rtol=0, atol=1e-9)


def test_axes_with_up(scene: Path, tmp_path: Path) -> None:
    transform = open_sequence(scene, SequenceOptions(orientation="up")).transform
    np.testing.assert_allclose(transform[:3, :3], np.eye(3), rtol=0, atol=1e-9, err_msg="z is up already")
    np.testing.assert_allclose(transform[:3, 3], [-0.2, 0.1, -1.0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(open_sequence(scene).transform, np.eye(4))
    turn = cv2.Rodrigues(np.array([1.1, -0.4, 0.7]))[0]
    turned = {name: replace(camera, R=camera.R @ turn.T) for name, camera in ring(6).items()}
    sequence = open_sequence(make_sequence(tmp_path, turned), SequenceOptions(orientation="up"))
    np.testing.assert_allclose(sequence.transform[:3, :3] @ turn @ [0, 0, 1], [0, 0, 1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(sequence.transform), 1.0)
    rolled = {}
    for index, (name, camera) in enumerate(ring(4).items()):
        roll = cv2.Rodrigues(np.array([0, 0, np.pi / 2 * index]))[0]
        rolled[name] = replace(ring(1)["00"], R=roll @ ring(1)["00"].R, T=roll @ camera.T)
    with pytest.raises(DataError, match="no common up"):
        open_sequence(make_sequence(tmp_path / "rolled", rolled), SequenceOptions(orientation="up"))


def test_depth_range(scene: Path, tmp_path: Path) -> None:
    sequence = open_sequence(scene)
    assert (sequence.near, sequence.far) == (1e-4, 1e6)
    sequence.bounds = np.array([[0.0, -0.3, 0.8], [0.4, 0.1, 1.2]])
    near, far = sequence.depth_range(0, 0)
    depths = (np.array([[x, y, z] for x in (0, 0.4) for y in (-0.3, 0.1) for z in (0.8, 1.2)])) @ ring(6)["00"].R[2]
    depths += ring(6)["00"].T[2]
    assert depths.min() - 0.1 < near < depths.min()
    assert depths.max() < far < depths.max() + 0.1
    assert sequence.near <= near < far <= sequence.far
    inside = open_sequence(scene, SequenceOptions(bounds=((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0))))
    assert 0 < inside.near < 0.1
    given_range = open_sequence(scene, SequenceOptions(near=2.0, far=7.0))
    assert given_range.depth_range(1, 0) == (2.0, 7.0)
    cameras = ring(4)
    cameras["01"] = replace(cameras["01"], near=0.5, far=8.25)
    own_range = open_sequence(make_sequence(tmp_path, cameras), SequenceOptions(near=2.0))
    assert own_range.depth_range(1, 0) == (0.5, 8.25)
    assert own_range.depth_range(0, 0) == (2.0, 1e6)
    behind = replace(sequence, bounds=np.array([[9.0, -0.3, 0.8], [9.4, 0.1, 1.2]]))
    near, far = behind.depth_range(0, 0)
    assert 0 < near < far


# ---------------------------------------------------------------- threads and copies


def test_decoding_from_several_threads(tmp_path: Path) -> None:
    cameras = {name: replace(camera, D=np.array([0.1, 0, 0, 0, 0])) for name, camera in ring(4).items()}
    sequence = open_sequence(make_sequence(tmp_path, cameras), SequenceOptions(ratio=(0.6,)))
    pairs = [(view, frame) for view in range(4) for frame in range(3)] * 4
    alone = {pair: sequence.decode(*pair) for pair in pairs}
    with ThreadPoolExecutor(4) as pool:
        for pair, photo in zip(pairs, pool.map(lambda pair: sequence.decode(*pair), pairs), strict=True):
            np.testing.assert_array_equal(photo.image, alone[pair].image)
            np.testing.assert_array_equal(photo.mask, alone[pair].mask)
            np.testing.assert_array_equal(photo.valid, alone[pair].valid)


def test_copies(scene: Path) -> None:
    sequence = open_sequence(scene, SequenceOptions(bounds=((0.0, -0.3, 0.8), (0.4, 0.1, 1.2))))
    sequence.decode(0, 0)
    thawed = pickle.loads(pickle.dumps(sequence))
    assert thawed.frames == sequence.frames
    np.testing.assert_array_equal(thawed.decode(2, 1).image, sequence.decode(2, 1).image)
    twin = copy.deepcopy({"sequence": sequence})["sequence"]
    assert twin.views is sequence.views
    assert twin.bounds is not None
    assert sequence.bounds is not None
    twin.bounds[0] = -7
    assert sequence.bounds[0, 0] == 0.0


# ---------------------------------------------------------------- real recordings


def test_balance_is_undistorted_as_opencv_does(shared_data: Path) -> None:
    """Its lens terms are not zero: positions of points in the delivered photos, and pixels against cv2's."""
    root = shared_data / "balance_easymocap"
    sequence = open_sequence(root)
    assert len(sequence.views) == 4
    assert len(sequence.frames) == 20
    rng = np.random.default_rng(0)
    for view in range(4):
        model = sequence.views[view].model(0)
        K, w2c = sequence.camera(view, 3)
        world = attention_point(sequence) + rng.uniform(-0.5, 0.5, (200, 3))
        seen = world @ w2c[:3, :3].T + w2c[:3, 3]
        distorted = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), model.K, model.D)[0][:, 0]
        assert np.abs(distorted - (seen @ model.K.T)[:, :2] / seen[:, 2:]).max() > 0.1, "the lens does something"
        delivered = (seen @ K.T)[:, :2] / seen[:, 2:]
        came_from, shown = sequence.views[view].lens(3).source_pixels(delivered)
        assert shown.mean() > 0.5
        np.testing.assert_allclose(came_from, distorted, rtol=0, atol=1e-6)
        stored = read_image(sequence.image_path(view, 3))[0]
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        theirs = cv2.undistort(stored, model.K - half, model.D)
        photo = sequence.decode(view, 3)
        assert photo.valid is not None
        interior = cv2.erode(photo.valid.astype(np.uint8), np.ones((5, 5))) > 0
        difference = np.abs(photo.image.astype(float) - theirs)[interior]
        assert difference.mean() < 1.0, "bicubic here, linear there"
        assert (np.abs(stored.astype(float) - theirs)[interior]).mean() > 1.5 * difference.mean()


def test_real_rings(shared_data: Path) -> None:
    wd2 = open_sequence(shared_data / "wd2_easymocap", SequenceOptions(eval_views=("05", "15"), ratio=(0.5,)))
    assert [wd2.names[view] for view in wd2.eval_views] == ["05", "15"]
    assert len(wd2.train_views) == 18
    assert wd2.times == [0.0]
    low, high = box_of_attention(wd2)
    assert (low < [-4.2, -8.2, 17.9]).all()
    assert (high > [4.3, 9.9, 29.5]).all()
    temple = open_sequence(shared_data / "temple_easymocap")
    low, high = box_of_attention(temple)
    assert (low < [-0.0736, 0.0217, -0.0124]).all()
    assert (high > [0.0289, 0.1819, 0.0627]).all()
    photo = temple.decode(3, 0)
    assert photo.mask is not None
    assert 0.02 < (photo.mask > 127).mean() < 0.6
