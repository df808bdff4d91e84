"""``ns-r4dv process encode``: geometry, masks, resumption after being killed (acceptance A24)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from easymocap_scene import ring
from prepared_scenes import NAMES, SIZE, contents, iou, make_photos, make_raw
from scipy import ndimage

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from dataparsers.easymocap import CameraModel, write_cameras
from dataparsers.easymocap_lens import resized
from dataparsers.easymocap_sequence import SequenceOptions, open_sequence
from dataparsers.video_names import parse_clip_name
from dataparsers.video_read import close_decoders, open_clip
from r4dv_ns.clip_encode import EncodeOptions, encode


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "scene")


def stored(root: Path, name: str, frame: int, kind: str) -> np.ndarray:
    picture = read_image(root / kind / name / f"{frame:06d}.png")[0]
    return picture if kind == "images" else picture[..., 0]


def test_names_and_pixels_tell_the_same_place(scene: Path) -> None:
    """A24: the crop is the box of the masks over all frames, and lies where the name says."""
    clips = encode(scene, options=EncodeOptions(crf=8), workers=2)
    assert [clip.parent.name for clip in clips] == ["videos_libx265"] * 2 + ["videos_masks_libx265"] * 2
    width, height = 120, 90
    for name, file, mask_file in zip(NAMES, clips[:2], clips[2:], strict=True):
        found = parse_clip_name(file)
        assert found is not None
        assert (found.camera, found.frames, found.canvas, found.full) == (name, 4, (width, height), SIZE)
        masks = [resized(stored(scene, name, frame, "masks"), width, height) for frame in range(4)]
        used = np.stack(masks).max(axis=0) >= 25.5
        rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
        clip, mask_clip = open_clip(file), open_clip(mask_file)
        right, bottom = found.x + clip.size[0], found.y + clip.size[1]
        for low, high, first, last in ((found.x, right, *columns[[0, -1]]), (found.y, bottom, *rows[[0, -1]])):
            assert low <= first
            assert high > last
            assert high - low == 64 or (low >= first - 1 and high <= last + 3)
        assert mask_clip.name == found
        for frame in range(4):
            photo = resized(stored(scene, name, frame, "images"), width, height).astype(int)
            picture, inside = clip.read(frame).astype(int), masks[frame] >= 200
            error = np.abs(picture - photo)[inside].mean()
            for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
                assert error < 0.9 * np.abs(np.roll(picture, step, axis) - photo)[inside].mean(), "of a pixel's shift"
            assert picture[masks[frame] == 0].mean() < 3
            assert iou(mask_clip.read(frame)[..., 0], masks[frame]) > 0.99


def test_the_same_photos_give_the_same_bytes(scene: Path) -> None:
    first, second = EncodeOptions(), EncodeOptions()
    one = [clip.read_bytes() for clip in encode(scene, video_dir="one", mask_video_dir="m1", options=first)]
    two = [clip.read_bytes() for clip in encode(scene, video_dir="two", mask_video_dir="m2", options=second, workers=1)]
    assert one == two


def test_finished_cameras_stay_and_changed_photos_are_refused(scene: Path) -> None:
    clips = encode(scene)
    before = {clip: (clip.stat().st_mtime_ns, clip.read_bytes()) for clip in clips}
    clips[0].unlink()
    assert encode(scene) == clips
    for clip in clips[1:]:
        assert clip.stat().st_mtime_ns == before[clip][0], "not written again"
    assert {clip: clip.read_bytes() for clip in clips} == {clip: data for clip, (_, data) in before.items()}
    for change in (EncodeOptions(crf=20), EncodeOptions(ratio=1.0)):
        with pytest.raises(DataError, match="settings differ"):
            encode(scene, options=change)
    os.utime(scene / "images" / "b" / "000001.png", ns=(7, 7))
    with pytest.raises(DataError, match="sources differ"):
        encode(scene)


def test_the_encoded_recording_opens_as_the_original(tmp_path: Path) -> None:
    """A24 end to end: cameras project to the same place of the scene, masks agree to IoU 0.98."""
    cameras = dict(zip(NAMES, ring(2, size=(640, 480)).values(), strict=True))
    cameras = {
        name: CameraModel(name, each.K, width=640, height=480, R=each.R, T=each.T) for name, each in cameras.items()
    }
    scene = make_photos(tmp_path / "scene", size=(640, 480))
    write_cameras(scene, cameras)
    encode(scene)
    shutil.rmtree(scene / "images")
    shutil.rmtree(scene / "masks")
    truth = make_photos(tmp_path / "truth", size=(640, 480))
    write_cameras(truth, cameras)
    original, half = open_sequence(truth, SequenceOptions(ratio=(0.5,))), open_sequence(scene)
    worst = {"videos_masks_libx265": 1.0, "threshold": 1.0}
    for masks_dir in worst:
        half = open_sequence(scene, SequenceOptions(masks_dir=masks_dir))
        for view in range(2):
            np.testing.assert_allclose(half.camera(view, 0)[0], original.camera(view, 0)[0], rtol=1e-12)
            for frame in range(4):
                found, expected = half.decode(view, frame).mask, original.decode(view, frame).mask
                assert found is not None
                assert expected is not None
                worst[masks_dir] = min(worst[masks_dir], iou(found, expected))
    assert worst["videos_masks_libx265"] >= 0.985
    assert worst["threshold"] >= 0.98


def test_a_real_recording(shared_data: Path, tmp_path: Path) -> None:
    """Four cameras with bent lenses: 25 times smaller, half as large, and the same pictures behind the same cameras."""
    real, scene = shared_data / "balance_easymocap", tmp_path / "scene"
    scene.mkdir()
    for name in ("images", "masks", "intri.yml", "extri.yml"):
        (scene / name).symlink_to(real / name)
    clips = encode(scene, frames=(0, None, 5))
    photos = sum(path.stat().st_size for path in real.glob("images/*/0000[01][05].jpg"))
    assert sum(clip.stat().st_size for clip in clips) < photos / 15
    half = SequenceOptions(ratio=(0.5,), frame_sample=(0, None, 5))
    original = open_sequence(real, half)
    for link in ("images", "masks"):
        (scene / link).unlink()
    encoded = open_sequence(scene)
    overlaps, errors = [], []
    for view in range(4):
        np.testing.assert_allclose(encoded.views[view].K, original.views[view].K, rtol=1e-9)
        for frame in range(4):
            photo, clip = original.decode(view, frame), encoded.decode(view, frame)
            assert photo.mask is not None
            assert clip.mask is not None
            overlaps.append(iou(photo.mask, clip.mask))
            inside = ndimage.binary_erosion(photo.mask > 127, iterations=2)
            errors.append(np.square(photo.image[inside].astype(float) - clip.image[inside]).mean())
    assert min(overlaps) > 0.975
    assert np.mean(overlaps) > 0.985
    assert 10 * np.log10(255**2 / np.mean(errors)) > 30


def test_whole_photos_without_masks(scene: Path) -> None:
    shutil.rmtree(scene / "masks")
    clips = encode(scene, mask_dir="none", frames=(1, None, 2), options=EncodeOptions(whole=True, ratio=1.0, crf=8))
    assert [clip.name for clip in clips] == [f"{name}_N2_x0_y0_W240_H180_FW240_FH180.mp4" for name in NAMES]
    error = np.abs(open_clip(clips[1]).read(1).astype(int) - stored(scene, "b", 3, "images"))
    assert error.mean() < 3


def test_colour_of_every_pixel(scene: Path) -> None:
    options = {"ratio": 1.0, "crf": 6}
    half = encode(scene, video_dir="half", mask_video_dir="none", options=EncodeOptions(**options))
    full = encode(scene, video_dir="full", mask_video_dir="none", options=EncodeOptions(full_colour=True, **options))
    photo, mask = stored(scene, "b", 2, "images"), stored(scene, "b", 2, "masks") > 0
    errors = [np.square(open_clip(clips[1]).read(2).astype(float) - photo)[mask].mean() for clips in (half, full)]
    assert errors[1] < 0.7 * errors[0]
    assert full[1].stat().st_size > half[1].stat().st_size


def test_from_raw_videos(tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    make_raw(tmp_path / "videos")
    shutil.rmtree(scene / "images")
    clips = encode(scene, image_dir="videos")
    assert parse_clip_name(clips[0]).full == SIZE  # type: ignore[union-attr]


def test_a_subject_nobody_sees(scene: Path) -> None:
    for frame in range(4):
        write_image(scene / "masks" / "b" / f"{frame:06d}.png", np.zeros((SIZE[1], SIZE[0]), np.uint8))
    clip = open_clip(encode(scene)[1])
    assert clip.size == (64, 64)
    assert clip.read(0).max() < 5


BAD = {
    "ratio": (lambda scene: {"options": EncodeOptions(ratio=0)}, "--ratio"),
    "crf": (lambda scene: {"options": EncodeOptions(crf=52)}, "--crf"),
    "fps": (lambda scene: {"options": EncodeOptions(fps=0)}, "--fps"),
    "key": (lambda scene: {"options": EncodeOptions(key_every=0)}, "--key-every"),
    "threshold": (lambda scene: {"options": EncodeOptions(threshold=0)}, "--threshold"),
    "nothing to cut by": (lambda scene: {"mask_dir": "none"}, "nothing to cut"),
    "no masks": (lambda scene: {"mask_dir": "absent"}, "cannot be cut out"),
    "no photos": (lambda scene: {"image_dir": "absent"}, "is not there"),
    "no frames": (lambda scene: {"frames": (9, None, 1)}, "chooses nothing"),
    "a mask is missing": (lambda scene: (scene / "masks" / "b" / "000002.png").unlink() or {}, "no mask of frame"),
    "a photo is missing": (lambda scene: (scene / "images" / "b" / "000002.png").unlink() or {}, "no photo of frame"),
    "somebody's clips of masks": (
        lambda scene: write_image(scene / "videos_masks_libx265" / "x.png", np.zeros((9, 9), np.uint8)) or {},
        "did not write"),
    "poses of other frames": (
        lambda scene: (scene / "cameras" / "b").mkdir(parents=True) or {"frames": (1, None, 1)}, "camera b.*moves"),
    "masks of another size": (
        lambda scene: write_image(scene / "masks" / "b" / "000000.png", np.zeros((9, 9), np.uint8)) or {}, "is 9x9"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_before_anything_is_written(case: str, scene: Path) -> None:
    change, message = BAD[case]
    options = change(scene)
    before = contents(scene)
    with pytest.raises(DataError, match=message):
        encode(scene, **options)
    assert contents(scene) == before


def test_a_later_photo_of_another_size_ends_it(scene: Path) -> None:
    write_image(scene / "images" / "b" / "000003.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="is 9x9 pixels, its camera's first photo 240x180"):
        encode(scene, workers=1)
    assert not list((scene / "videos_libx265").glob("b_*"))
    assert not list(scene.rglob(".tmp-*"))


def start_encoding(scene: Path) -> subprocess.Popen:
    code = "from pathlib import Path; import sys; from r4dv_ns.clip_encode import *; "
    code += "encode(Path(sys.argv[1]), workers=1, options=EncodeOptions(ratio=1.0))"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(scene)], stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_clips(tmp_path: Path) -> None:
    """A24, issue acceptance 5: kill -9 while encoding, again and again; then the files of an undisturbed run."""
    names = tuple(f"cam{number}" for number in range(3))
    calm = make_photos(tmp_path / "calm", frames=8, names=names, size=(640, 480))
    scene = Path(shutil.copytree(calm, tmp_path / "scene"))  # times of change are copied too
    assert start_encoding(calm).wait(120) == 0
    kills, seen = 0, set()
    for _ in range(8):
        process = start_encoding(scene)
        wanted = 0.5 + 1.5 * kills
        while process.poll() is None:
            # At a moment that comes later from run to run, the first time beside a half-written clip.
            half = list(scene.glob("videos*/**/.tmp-*.mp4"))
            done = list(scene.glob("videos*/cam*_N8_*.mp4"))
            if len(done) + (0.5 if half else 0) >= wanted and (half or kills):
                seen.add((len(done), bool(half)))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        if process.wait(120) == 0:
            break
    else:
        pytest.fail("it never ended")
    assert kills >= 3
    assert any(half for _, half in seen), "half-written clips were left"
    assert contents(scene / "videos_libx265") == contents(calm / "videos_libx265")
    assert contents(scene / "videos_masks_libx265") == contents(calm / "videos_masks_libx265")
