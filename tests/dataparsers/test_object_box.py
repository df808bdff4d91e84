"""The cube for any dataparser, and the background behind an object (spec diver 4.2, 4.3)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from object_scenes import disc, small_object

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV
from core_ns.images import write_image
from dataparsers.blender_parser import ObjectBlenderDataParserConfig, write_blender
from dataparsers.nsvf_parser import NsvfDataParserConfig
from dataparsers.object_box import (
    background_color,
    background_warning,
    cubic_box,
    detect_background,
    focus,
    outputs_background,
)
from dataparsers.object_scene import orbit_poses

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def camera_set(c2w_opencv: np.ndarray, field_of_view: float = 0.7, size: int = 16, height: int = 16):
    from nerfstudio.cameras.cameras import Cameras

    focal = 0.5 * size / math.tan(field_of_view / 2)
    poses = torch.from_numpy((c2w_opencv @ OPENGL_FROM_OPENCV)[:, :3]).float()
    many = torch.full((len(poses),), size)
    return Cameras(
        poses,
        many * focal / size,
        many * focal / size,
        many / 2,
        height * many / (2 * size),
        width=many,
        height=many * 0 + height,
    )


def outputs_of(cameras, aabb, **fields):
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
    from nerfstudio.data.scene_box import SceneBox

    fields.setdefault("image_filenames", [])
    return DataparserOutputs(cameras=cameras, scene_box=SceneBox(aabb=torch.tensor(aabb)), **fields)


def orbit(radius: float, centre=(0.0, 0.0, 0.0), count: int = 12) -> np.ndarray:
    poses = orbit_poses(count, 0.0)
    poses[:, :3, 3] = poses[:, :3, 3] * radius / 4 + np.array(centre)
    return poses


def photos(folder: Path, pictures: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        write_image(path, picture)
    return paths


def test_cameras_outside_keep_the_scene_box_as_a_cube() -> None:
    found = cubic_box(outputs_of(camera_set(orbit(5)), [[-1.0, -2.0, -1.0], [1.0, 2.0, 2.0]]))
    assert found == ((0.0, 0.0, 0.5), 4.0, "scene_box", ())


def test_box_around_the_cameras_shrinks_to_what_they_look_at() -> None:
    centre = (0.1, -0.05, 0.2)
    cameras = camera_set(orbit(0.8, centre))
    found = cubic_box(outputs_of(cameras, [[-1.0] * 3, [1.0] * 3]))
    assert found.source == "cameras"
    assert found.center == pytest.approx(centre, abs=1e-5)
    assert found.side == pytest.approx(2 * 0.8 * math.tan(0.35), rel=1e-5)
    assert found.warnings == ()
    plain = cubic_box(outputs_of(cameras, [[-1.0] * 3, [1.0] * 3]), fit="scene_box")
    assert plain[:3] == ((0.0, 0.0, 0.0), 2.0, "scene_box")


def test_wide_and_tall_photos_count_by_their_longer_side() -> None:
    for width, height in ((16, 8), (16, 32)):
        cameras = camera_set(orbit(0.5), 0.7, width, height)
        found = cubic_box(outputs_of(cameras, [[-1.0] * 3, [1.0] * 3]))
        assert found.side == pytest.approx(2 * 0.5 * math.tan(0.35) * max(1, height / width), rel=1e-5)


def test_an_object_that_one_photo_shows_whole_is_in_the_cube() -> None:
    """Random balls: if any camera sees the ball whole, every point of it is inside the cube."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        distance = rng.uniform(0.4, 0.8, 10)
        poses = orbit(4, count=10)
        poses[:, :3, 3] *= distance[:, None] / 4
        field = rng.uniform(0.4, 1.0)
        radius = rng.uniform(0.05, 0.3)
        found = cubic_box(outputs_of(camera_set(poses, field), [[-1.0] * 3, [1.0] * 3]))
        if radius <= distance.max() * math.sin(field / 2):
            assert radius <= found.side / 2 + 1e-6


def test_declared_box_wins_even_with_cameras_inside() -> None:
    metadata = {"object_box": {"center": [1.0, 2.0, 3.0], "side": 2.8}}
    found = cubic_box(outputs_of(camera_set(orbit(0.5)), [[-1.0] * 3, [1.0] * 3], metadata=metadata))
    assert found[:3] == ((1.0, 2.0, 3.0), 2.8, "declared")


def test_parallel_cameras_have_no_focus_and_keep_the_scene_box() -> None:
    poses = np.broadcast_to(np.eye(4), (5, 4, 4)).copy()
    poses[:, 0, 3] = np.linspace(-0.5, 0.5, 5)
    cameras = camera_set(poses)
    assert focus(cameras) is None
    assert cubic_box(outputs_of(cameras, [[-1.0] * 3, [1.0] * 3])).source == "scene_box"


def test_focus_is_the_point_nearest_to_all_axes() -> None:
    rng = np.random.default_rng(1)
    poses = orbit(3, (0.3, 0.2, -0.1), count=9)
    poses[:, :3, 3] += rng.normal(scale=0.1, size=(9, 3))
    found = focus(camera_set(poses))
    assert found is not None

    def cost(point: np.ndarray) -> float:
        offset = point - poses[:, :3, 3]
        along = (offset * poses[:, :3, 2]).sum(axis=1, keepdims=True) * poses[:, :3, 2]
        return float(((offset - along) ** 2).sum())

    best = found[0].numpy()
    for step in np.vstack([np.eye(3), -np.eye(3)]) * 1e-2:
        assert cost(best) < cost(best + step)


def outward(count: int = 12) -> np.ndarray:
    poses = orbit(0.3, count=count)
    poses[:, :3, [0, 2]] *= -1  # turned round: looking away from the middle
    return poses


def test_outward_captures_without_alpha_are_warned_about(tmp_path: Path) -> None:
    opaque = photos(tmp_path, [np.full((8, 8, 3), 90, np.uint8)] * 2)
    found = cubic_box(outputs_of(camera_set(outward()), [[-1.0] * 3, [1.0] * 3], image_filenames=opaque))
    assert found.source == "scene_box"
    assert len(found.warnings) == 1
    assert "100% of the cameras" in found.warnings[0]
    assert "unbounded" in found.warnings[0]


def test_alpha_masks_or_absent_photos_silence_the_warning(tmp_path: Path) -> None:
    clear = photos(tmp_path, [disc(8, 100)] * 2)
    box = [[-1.0] * 3, [1.0] * 3]
    cameras = camera_set(outward())
    assert cubic_box(outputs_of(cameras, box, image_filenames=clear)).warnings == ()
    opaque = photos(tmp_path / "o", [disc(8, 100)[..., :3]] * 2)
    assert cubic_box(outputs_of(cameras, box, image_filenames=opaque)).warnings != ()
    assert cubic_box(outputs_of(cameras, box, image_filenames=opaque, mask_filenames=opaque)).warnings == ()
    gone = [tmp_path / "gone.png"]
    assert cubic_box(outputs_of(cameras, box, image_filenames=gone)).warnings == ()
    assert cubic_box(outputs_of(camera_set(orbit(4)), box, image_filenames=opaque)).warnings == ()


@pytest.mark.parametrize("aabb", [[[0.0] * 3, [0.0] * 3], [[1.0] * 3, [-1.0] * 3], [[-math.inf] * 3, [1.0] * 3]])
def test_unusable_scene_boxes_are_refused(aabb) -> None:
    with pytest.raises(DataError, match="empty or not finite"):
        cubic_box(outputs_of(camera_set(orbit(4)), aabb))


def test_unusable_declared_boxes_are_refused() -> None:
    for center, side in (([0.0] * 3, -1.0), ([0.0] * 2, 1.0), ([math.nan] * 3, 1.0)):
        metadata = {"object_box": {"center": center, "side": side}}
        with pytest.raises(DataError, match="no cube"):
            cubic_box(outputs_of(camera_set(orbit(4)), [[-1.0] * 3, [1.0] * 3], metadata=metadata))


def test_stock_parsers_on_real_and_made_up_scenes(shared_data: Path, tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    stock = BlenderDataParserConfig(data=shared_data / "lego_blender").setup().get_dataparser_outputs("train")
    assert cubic_box(stock) == ((0.0, 0.0, 0.0), 3.0, "scene_box", ())
    assert outputs_background(stock).colour == "white"
    write_blender(tmp_path / "scene", small_object())
    ours = ObjectBlenderDataParserConfig(data=tmp_path / "scene").setup().get_dataparser_outputs("train")
    assert cubic_box(ours)[:3] == ((0.0, 0.0, 0.0), 2.8, "declared")
    for name in ("lego_nsvf", "temple_nsvf"):
        found = cubic_box(NsvfDataParserConfig(data=shared_data / name).setup().get_dataparser_outputs("train"))
        assert found == ((0.0, 0.0, 0.0), 2.8, "declared", ())


def test_a_real_whole_scene_capture_is_noticed(shared_data: Path) -> None:
    photos = sorted((shared_data / "castle_mvsnet/images_4").iterdir())
    found = detect_background(photos)
    assert not found.alpha
    assert "not plain" in (background_warning(found) or "")


@pytest.mark.parametrize(
    ("picture", "colour", "alpha", "plain"),
    [
        (np.full((6, 6, 3), 250, np.uint8), "white", False, 1.0),
        (np.full((6, 6, 3), 5, np.uint8), "black", False, 1.0),
        (np.full((6, 6), 255, np.uint8), "white", False, 1.0),
        (np.full((6, 6, 4), 255, np.uint8), "white", False, 1.0),  # opaque alpha channel
        (np.full((6, 6, 4), (0, 0, 0, 255), np.uint8), "black", False, 1.0),
        (np.zeros((6, 6, 4), np.uint8), "white", True, 1.0),
        (disc(16, 200), "white", True, 1.0),
        (np.full((6, 6, 3), (30, 200, 220), np.uint8), "white", False, 0.0),
    ],
)
def test_background_detection(tmp_path: Path, picture, colour, alpha, plain) -> None:
    assert detect_background(photos(tmp_path, [picture] * 3)) == (colour, alpha, plain)


def test_background_is_the_median_over_photos_and_reads_few(tmp_path: Path) -> None:
    white, black = np.full((6, 6, 3), 255, np.uint8), np.zeros((6, 6, 3), np.uint8)
    paths = photos(tmp_path, [white] * 5 + [black] * 3)
    found = detect_background(paths)
    assert found.colour == "white"
    assert found.plain == pytest.approx(5 / 8)
    assert background_warning(found) is None
    many = paths * 10
    assert detect_background(many).colour == "white"
    (tmp_path / "7.png").write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read"):
        detect_background(paths)


def test_background_choices(tmp_path: Path) -> None:
    paths = photos(tmp_path, [disc(16, 200)])
    assert detect_background(paths, "black") == ("black", True, 1.0)
    with pytest.raises(ValueError, match="not 'grey'"):
        detect_background(paths, "grey")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no photo"):
        detect_background([])
    cameras, box = camera_set(orbit(4)), [[-1.0] * 3, [1.0] * 3]
    for colour in ("white", "black"):
        given = outputs_of(cameras, box, image_filenames=paths, alpha_color=background_color(colour))
        assert outputs_background(given).colour == colour
        declared = outputs_of(cameras, box, metadata={"background": colour, "has_alpha": True})
        assert outputs_background(declared) == (colour, True, 1.0)
    assert outputs_background(given, "white").colour == "white"
