"""Recordings whose photos lie in clips: cameras, pixels and masks are those of the photos that were encoded."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject, write_any
from easymocap_scene import ring, shift

from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, write_cameras
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.picture_record import Record
from dataparsers.video_names import ClipName
from dataparsers.video_read import close_decoders
from dataparsers.video_write import write_clip

with warnings.catch_warnings():  # viser's websockets and nerfstudio warn at import
    warnings.simplefilter("ignore")
    from dataparsers.easymocap_parser import EasyMocapDataParserConfig

FULL, CANVAS, CROP = (191, 145), (96, 72), (10, 4, 64, 64)
FRAMES = 3
NAMES = ("cam_0", "cam_1_N2")


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()


def cameras(**changes) -> dict[str, CameraModel]:
    made = dict(zip(NAMES, ring(2, size=FULL).values(), strict=True))
    return {name: replace(camera, name=name, **changes) for name, camera in made.items()}


def pictures(view: int, whole: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cut-out photos (or whole ones) and masks of a camera on the canvas."""
    photos, masks = [], []
    for frame in range(FRAMES):
        photo, mask = subject(CANVAS, frame + view)
        photos.append(photo if whole else np.where(mask[..., None] > 0, photo, 0).astype(np.uint8))
        masks.append(mask)
    return photos, masks


def write_clips(root: Path, masks: bool = True, whole: bool = False) -> None:
    x, y, width, height = (0, 0, *CANVAS) if whole else CROP
    part = (slice(y, y + height), slice(x, x + width))
    for view, name in enumerate(NAMES):
        clip = f"{ClipName(name, FRAMES, x, y, *CANVAS, *FULL)}.mp4"
        own, own_masks = pictures(view, whole)
        write_clip(root / "videos_libx265" / clip, [each[part] for each in own], (width, height), crf=10)
        if masks:
            grey = [np.repeat(each[part][..., None], 3, axis=2) for each in own_masks]
            write_clip(root / "videos_masks_libx265" / clip, grey, (width, height), crf=10)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_cameras(root, cameras())
    write_clips(root)
    return root


@pytest.fixture
def own(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "own"))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a > 127) & (b > 127)).sum() / ((a > 127) | (b > 127)).sum())


def test_a_recording_of_clips(recorded: Path, capsys) -> None:
    sequence = open_sequence(recorded)
    said = " ".join(capsys.readouterr().out.split())
    assert "has no images/: using videos_libx265/" in said
    assert "has no masks/: using videos_masks_libx265/" in said
    assert (sequence.images_dir, sequence.masks_dir) == ("videos_libx265", "videos_masks_libx265")
    assert sequence.names == list(NAMES)
    assert sequence.frames == ["000000", "000001", "000002"]
    for number, view in enumerate(sequence.views):
        assert (view.width, view.height, view.stored_size) == (*CANVAS, CANVAS)
        K = cameras()[view.name].K
        np.testing.assert_allclose(view.K[0], K[0] * CANVAS[0] / FULL[0])
        np.testing.assert_allclose(view.K[1], K[1] * CANVAS[1] / FULL[1])
        photos, masks = pictures(number)
        for frame in range(FRAMES):
            photo = sequence.decode(number, frame)
            assert photo.mask is not None
            assert iou(photo.mask, masks[frame]) > 0.98
            inside = masks[frame] > 0
            inside[[*range(4), *range(68, 72)]] = False  # the crop's border
            assert np.abs(photo.image[inside].astype(int) - photos[frame][inside]).mean() < 8
            np.testing.assert_array_equal(sequence.views[number].decode_mask(frame), photo.mask)
            np.testing.assert_array_equal(sequence.views[number].decode(frame, False).image, photo.image)
            assert not photo.image[:4].any()
            assert not photo.mask[:, 74:].any()
    path = sequence.image_path(1, 2)
    assert path == recorded / "videos_libx265" / "cam_1_N2" / "000002.png"
    for twin in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        np.testing.assert_array_equal(twin.decode(0, 1).image, sequence.decode(0, 1).image)


def test_masks_are_what_is_not_black(own: Path, capsys) -> None:
    shutil.rmtree(own / "videos_masks_libx265")
    found = open_sequence(own)
    assert "masks are what is brighter than 12" in " ".join(capsys.readouterr().out.split())
    asked = open_sequence(own, SequenceOptions(masks_dir="threshold", mask_threshold=30))
    assert not open_sequence(own, SequenceOptions(masks_dir="none")).has_masks
    for sequence in (found, asked):
        assert sequence.masks_dir == "videos_libx265"
        photo, truth = sequence.decode(1, 1), pictures(1)[1][1]
        truth[:4], truth[68:], truth[:, :10], truth[:, 74:] = 0, 0, 0, 0
        assert photo.mask is not None
        assert iou(photo.mask, truth) > 0.95, "96 pixels across"
    for wrong in (-1, 765):
        with pytest.raises(DataError, match="--mask-threshold"):
            open_sequence(own, SequenceOptions(mask_threshold=wrong))


def test_clips_of_whole_photos_hold_no_masks(tmp_path: Path, capsys) -> None:
    write_cameras(tmp_path, cameras())
    write_clips(tmp_path, masks=False, whole=True)
    assert not open_sequence(tmp_path).has_masks
    assert "has no masks/: no visual hull" in " ".join(capsys.readouterr().out.split())


def test_plain_videos_need_no_extraction(tmp_path: Path, capsys) -> None:
    """Raw CAM.mp4 beside a folder of masks."""
    write_cameras(tmp_path, cameras(width=None, height=None))
    for view, name in enumerate(NAMES):
        photos, masks = pictures(view, whole=True)
        write_any(tmp_path / "videos" / f"{name}.mp4", photos, g="2")
        for frame, mask in enumerate(masks):
            write_image(tmp_path / "masks" / name / f"{frame:06d}.png", mask)
    sequence = open_sequence(tmp_path)
    assert sequence.images_dir == "videos"
    np.testing.assert_allclose(sequence.views[0].K, cameras()["cam_0"].K)
    np.testing.assert_array_equal(sequence.decode(1, 2).mask, pictures(1)[1][2])
    assert "only every" not in capsys.readouterr().out
    for name in NAMES:
        write_any(tmp_path / "videos" / f"{name}.mp4", pictures(0, True)[0] * 20, g="60", x264_params="scenecut=0")
    with pytest.raises(DataError, match="no mask of frame 000003"):
        open_sequence(tmp_path)
    open_sequence(tmp_path, SequenceOptions(frame_sample=(0, 3, 1)))
    assert "only every 60th frame decodes by itself" in " ".join(capsys.readouterr().out.split())


def test_selection_ratio_and_lens(own: Path) -> None:
    bent = cameras(D=np.array([-0.1, 0.02, 0.001, 0, 0]))
    write_cameras(own, bent)
    options = SequenceOptions(frame_sample=(1, None, 1), ratio=(0.5,), view_sample=(1,), fill_outside_mask=True)
    sequence = open_sequence(own, options)
    assert (sequence.frames, sequence.names) == (["000001", "000002"], [NAMES[1]])
    photo = sequence.decode(0, 1)
    assert photo.image.shape == (36, 48, 3)
    assert photo.valid is not None
    whole = open_sequence(own, SequenceOptions(undistort="none"))
    pixels, _ = bent[NAMES[1]].project(np.array([[0.3, 0.1, 0.8]]))
    scaled, _ = whole.views[1].model(2).project(np.array([[0.3, 0.1, 0.8]]))
    np.testing.assert_allclose(scaled, pixels * np.divide(CANVAS, FULL))


def test_the_principal_points_shift_is_of_the_photos_pixels(recorded: Path) -> None:
    plain = open_sequence(recorded, SequenceOptions(masks_dir="none"))
    exact = open_sequence(recorded, SequenceOptions(masks_dir="none", pixel_centre_shift=0.5))
    moved = exact.views[0].K[:2, 2] - plain.views[0].K[:2, 2]
    np.testing.assert_allclose(moved, 0.5 * np.divide(CANVAS, FULL))


def test_moving_cameras(own: Path) -> None:
    path = {f"{frame:06d}": shift(cameras()["cam_0"], np.array([0.1 * frame, 0, 0])) for frame in range(FRAMES)}
    write_cameras(own, {"cam_1_N2": cameras()["cam_1_N2"]})
    write_cameras(own / "cameras" / "cam_0", path)
    view = open_sequence(own).views[0]
    assert view.is_moving
    np.testing.assert_allclose(view.centre(2) - view.centre(0), [0.2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(view.intrinsics(2)[0], cameras()["cam_0"].K[0] * CANVAS[0] / FULL[0])


def test_extracted_pictures_scale_the_calibration(tmp_path: Path) -> None:
    write_cameras(tmp_path, cameras())
    for name in NAMES:
        for frame in range(FRAMES):
            write_image(tmp_path / "images_libx265" / name / f"{frame:06d}.png", pictures(0)[0][frame])
    with pytest.raises(DataError, match="is 96x72 pixels, its calibration 191x145"):
        open_sequence(tmp_path)
    Record("images", sizes={name: [*CANVAS, *FULL] for name in NAMES}).write(tmp_path / "images_libx265")
    view = open_sequence(tmp_path).views[1]
    np.testing.assert_allclose(view.K[1], cameras()[NAMES[1]].K[1] * CANVAS[1] / FULL[1])
    Record("images", sizes={name: [*CANVAS, 320, 240] for name in NAMES}).write(tmp_path / "images_libx265")
    with pytest.raises(DataError, match="holds photos of 320x240 pixels, the calibration is of 191x145"):
        open_sequence(tmp_path)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_what_an_interrupted_command_left_is_refused(kind: str, tmp_path: Path) -> None:
    write_cameras(tmp_path, cameras(width=CANVAS[0], height=CANVAS[1]))
    for name in NAMES:
        for folder in ("images", "masks"):
            picture = np.full((CANVAS[1], CANVAS[0]), 255, np.uint8)
            write_image(tmp_path / folder / name / "000000.png", picture)
    Record(kind, sources=dict.fromkeys(NAMES, "x"), done=[NAMES[0]]).write(tmp_path / kind)
    with pytest.raises(DataError, match=f"holds the {kind} of a command that was interrupted: 1 cameras"):
        open_sequence(tmp_path)
    open_sequence(tmp_path, SequenceOptions(view_sample=(0,)))
    Record(kind, sources=dict.fromkeys(NAMES, "x"), done=list(NAMES)).write(tmp_path / kind)
    open_sequence(tmp_path)


def test_stamps_of_masks_tell_frames_and_files_apart(own: Path) -> None:
    views = open_sequence(own).views
    stamps = [views[view].mask_stamp(frame) for view in range(2) for frame in range(FRAMES)]
    assert len({str(stamp) for stamp in stamps}) == 6
    black = open_sequence(own, SequenceOptions(masks_dir="threshold")).views[0].mask_stamp(0)
    assert black not in stamps
    assert views[0].mask_stamp(0) == stamps[0]
    file = next((own / "videos_masks_libx265").glob("cam_0_*"))
    os.utime(file, ns=(5, 5))
    assert views[0].mask_stamp(0) != stamps[0]
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        views[0].mask_stamp(0)
    with pytest.raises(DataError, match="is not a file"):
        views[0].decode(0)


def test_the_parser_serves_them(recorded: Path) -> None:
    outputs = EasyMocapDataParserConfig(data=recorded).setup().get_dataparser_outputs("train")
    assert len(outputs.cameras) == 2 * FRAMES
    assert [path.name for path in outputs.image_filenames[:3]] == ["000000.png", "000000.png", "000001.png"]
    assert outputs.cameras.width.unique().tolist() == [CANVAS[0]]


def swap(root: Path, folder: str, old: str, new: str) -> None:
    for file in (root / folder).glob(f"{old}*"):
        file.rename(file.with_name(file.name.replace(old, new, 1)))


BROKEN = {
    "a camera's clip is missing": (
        lambda root: next((root / "videos_libx265").glob("cam_0_*")).unlink(), "camera cam_0.*has no clip"),
    "two clips of a camera": (
        lambda root: write_any(root / "videos_libx265" / "cam_0.mp4", pictures(0)[0]), "and so is"),
    "a clip of masks is missing": (
        lambda root: next((root / "videos_masks_libx265").glob("cam_0_*")).unlink(), "camera cam_0.*has no clip"),
    "masks of another canvas": (
        lambda root: swap(root, "videos_masks_libx265", "cam_0_N3_x10_y4_W96_H72", "cam_0_N3_x10_y4_W98_H72"),
        "is 98x72 pixels, its camera's photos 96x72"),
    "another photo's calibration": (
        lambda root: write_cameras(root, cameras(width=400)), "the calibration is of 400x145"),
    "damaged": (
        lambda root: next((root / "videos_libx265").glob("cam_0_*")).write_bytes(b"x" * 999), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_refused(case: str, own: Path) -> None:
    damage, message = BROKEN[case]
    damage(own)
    with pytest.raises(DataError, match=message):
        open_sequence(own)


def test_masks_by_brightness_need_clips(own: Path) -> None:
    shutil.rmtree(own / "videos_libx265")
    for name in NAMES:
        write_image(own / "images" / name / "000000.png", np.zeros((FULL[1], FULL[0], 3), np.uint8))
    with pytest.raises(DataError, match="holds no clips"):
        open_sequence(own, SequenceOptions(masks_dir="threshold"))


def test_clips_of_no_chosen_camera_are_named(own: Path, capsys) -> None:
    write_any(own / "videos_libx265" / "spare.mp4", pictures(0)[0])
    open_sequence(own)
    assert "1 clips are of no chosen camera: spare" in " ".join(capsys.readouterr().out.split())
