"""Pictures out of clips and masks out of pictures: right, complete, resumable, never mixed (acceptance A24)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject, write_any
from prepared_scenes import NAMES, SIZE, contents, iou, make_photos, make_raw

from core_ns.errors import DataError
from core_ns.images import image_size, read_image, write_image
from dataparsers.picture_record import read_record
from dataparsers.video_read import close_decoders, open_clip
from r4dv_ns import clip_extract
from r4dv_ns.clip_encode import EncodeOptions, encode
from r4dv_ns.clip_extract import extract_images, extract_masks
from r4dv_ns.mattes import Brightness, FirstChannel


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_decoders()


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """A recording of clips alone, encoded at half size."""
    made = make_photos(tmp_path_factory.mktemp("made"))
    root = tmp_path_factory.mktemp("encoded")
    encode(made, options=EncodeOptions(crf=10))
    for folder in ("videos_libx265", "videos_masks_libx265"):
        (made / folder).rename(root / folder)
    return root


@pytest.fixture
def own(encoded: Path, tmp_path: Path) -> Path:
    for folder in encoded.iterdir():
        (tmp_path / "own" / folder.name).mkdir(parents=True)
        for file in folder.glob("*.mp4"):
            os.link(file, tmp_path / "own" / folder.name / file.name)
    return tmp_path / "own"


def clip_of(root: Path, name: str, folder: str = "videos_libx265"):
    return open_clip(next((root / folder).glob(f"{name}_N*.mp4")))


def test_encoded_clips_become_pictures_of_the_canvas(own: Path) -> None:
    folder = extract_images(own)
    assert folder == own / "images_libx265"
    for name in NAMES:
        clip = clip_of(own, name)
        assert sorted(path.name for path in (folder / name).iterdir()) == [f"{n:06d}.png" for n in range(4)]
        for frame in range(4):
            np.testing.assert_array_equal(read_image(folder / name / f"{frame:06d}.png")[0], clip.read(frame))
    record = read_record(folder)
    assert record is not None
    assert record.sizes == {name: [120, 90, *SIZE] for name in NAMES}
    assert record.done == sorted(NAMES)


def test_full_size_as_the_original(own: Path) -> None:
    folder = extract_images(own, full_size=True, suffix="jpg")
    masks = extract_masks(own, Brightness(), full_size=True)
    assert image_size(folder / "b" / "000003.jpg") == image_size(masks / "b" / "000003.png") == SIZE
    record = read_record(folder)
    assert record is not None
    assert record.sizes == {}
    truth = subject(SIZE, 3 + 1)[1]
    assert iou(read_image(masks / "b" / "000003.png")[0][..., 0], truth) > 0.95


def test_raw_videos_become_images(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "elsewhere")
    root = tmp_path / "new" / "scene"
    folder = extract_images(root, video_dir=str(raw), frames=(1, None, 2), workers=1)
    assert folder == root / "images"
    for view, name in enumerate(NAMES):
        assert sorted(path.name for path in (folder / name).iterdir()) == ["000001.jpg", "000003.jpg"]
        photo = read_image(folder / name / "000003.jpg")[0]
        assert np.abs(photo.astype(int) - subject(SIZE, 3 + view)[0]).mean() < 4
    record = read_record(folder)
    assert record is not None
    assert record.sizes == {}


def test_uneven_videos_give_what_they_have(tmp_path: Path, capsys) -> None:
    raw = make_raw(tmp_path / "videos")
    write_any(raw / "b.mp4", [subject(SIZE, 0)[0]] * 2)
    folder = extract_images(tmp_path, video_dir="videos")
    assert [len(list((folder / name).iterdir())) for name in NAMES] == [4, 2]
    assert "2 photos of camera b, but 4 of camera a_1" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(DataError, match=r"camera b.*has none of the frames"):
        extract_images(tmp_path, video_dir="videos", image_dir="late", frames=(3, None, 1))


def test_masks_of_every_kind_of_source(own: Path, tmp_path: Path) -> None:
    bright = extract_masks(own, Brightness())
    grey = extract_masks(own, FirstChannel(), source_dir="videos_masks_libx265", mask_dir="masks")
    assert bright == own / "masks_libx265"
    black = tmp_path / "black"
    for view, name in enumerate(NAMES):
        for frame in range(4):
            truth = subject((120, 90), frame + view)[1]
            assert iou(read_image(bright / name / f"{frame:06d}.png")[0][..., 0], truth) > 0.95
            found = read_image(grey / name / f"{frame:06d}.png")[0][..., 0]
            np.testing.assert_array_equal(found, clip_of(own, name, "videos_masks_libx265").read(frame)[..., 0])
            photo, mask = subject(SIZE, frame + view)
            write_image(
                black / "images" / name / f"{frame:06d}.png", np.where(mask[..., None], photo, 0).astype(np.uint8)
            )
    photos = extract_masks(black, Brightness(), source_dir="images")
    assert photos == black / "masks"
    assert iou(read_image(photos / "b" / "000002.png")[0][..., 0], subject(SIZE, 3)[1]) > 0.99


def test_what_is_missing_is_written_and_nothing_else(own: Path, monkeypatch) -> None:
    folder = extract_images(own)
    whole = contents(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    (folder / "b" / "000002.png").unlink()
    (folder / "b" / ".tmp-0123456789ab-000002.png").write_bytes(b"half")
    written = []
    monkeypatch.setattr(
        clip_extract, "write_image", lambda file, picture: written.append(file) or write_image(file, picture)
    )
    extract_images(own)
    assert [file.name for file in written] == ["000002.png"]
    assert contents(folder) == whole
    extract_images(own)
    assert len(written) == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path.name != "000002.png")


@pytest.mark.parametrize("workers", [1, 3])
def test_interrupted_anywhere_it_ends_the_same(workers: int, own: Path, monkeypatch) -> None:
    calm = contents(extract_images(own, image_dir="calm"))
    for stop in (0, 1, 3, 5, 7):
        count = [0]

        def failing(file: Path, picture: np.ndarray, stop=stop, count=count) -> None:
            if count[0] == stop:
                raise KeyboardInterrupt
            count[0] += 1
            write_image(file, picture)

        monkeypatch.setattr(clip_extract, "write_image", failing)
        with pytest.raises(KeyboardInterrupt):
            extract_images(own, image_dir=f"run{stop}", workers=workers)
        monkeypatch.setattr(clip_extract, "write_image", write_image)
        assert contents(extract_images(own, image_dir=f"run{stop}", workers=workers)) == calm


def test_other_work_is_not_mixed_in(own: Path) -> None:
    folder = extract_images(own)
    before = contents(folder)
    for change in ({"full_size": True}, {"frames": (0, 2, 1)}, {"suffix": "jpg"}):
        with pytest.raises(DataError, match="differ"):
            extract_images(own, **change)
    with pytest.raises(DataError, match="differ"):
        extract_masks(own, Brightness(), mask_dir="images_libx265")
    clip = next((own / "videos_libx265").glob("b_*"))
    os.utime(clip, ns=(9, 9))
    with pytest.raises(DataError, match="sources differ"):
        extract_images(own)
    assert contents(folder) == before


def test_refused_before_anything_is_written(own: Path, tmp_path: Path) -> None:
    before = contents(own)
    with pytest.raises(DataError, match="is not there"):
        extract_images(own, video_dir="absent")
    with pytest.raises(DataError, match="is not a folder"):
        extract_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="names 7"):
        extract_images(own, frames=(7,))
    with pytest.raises(DataError, match="--threshold"):
        extract_masks(own, Brightness(765))
    (own / "photos" / "a").mkdir(parents=True)
    write_image(own / "photos" / "a" / "000000.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="holds no clips"):
        extract_images(own, video_dir="photos")
    (own / "photos" / "a" / "000000.png").unlink()
    (own / "photos" / "a").rmdir()
    (own / "photos").rmdir()
    next((own / "videos_libx265").glob("b_*")).write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        extract_images(own)
    after = contents(own)
    assert after.keys() == before.keys()


def test_a_clip_that_breaks_off_ends_with_its_name(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "videos", frames=12)
    write_any(raw / "b.mp4", [subject(SIZE, n)[0] for n in range(12)], g="3")
    file = raw / "b.mp4"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"b\.mp4"):
        extract_images(tmp_path, video_dir="videos")
    whole = [read_image(path)[0] for path in sorted((tmp_path / "images" / "b").glob("*.jpg"))]
    assert len(whole) < 12
    assert not list(tmp_path.rglob(".tmp-*"))
    assert "b" not in json.loads((tmp_path / "images" / "ns-r4dv.json").read_text())["done"]


def start_extracting(root: Path) -> subprocess.Popen:
    code = "from pathlib import Path; import sys; from r4dv_ns.clip_extract import *; extract_images(Path(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(root)], stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_pictures(tmp_path: Path) -> None:
    """A24: kill -9 while extracting, earlier and later; then the files of an undisturbed run."""
    make_raw(tmp_path / "videos", frames=24, names=("a", "b", "c"), size=(640, 480))
    calm = contents(extract_images(tmp_path, video_dir="videos", image_dir="calm"))
    (tmp_path / "videos").rename(tmp_path / "videos_libx265")
    kills = 0
    for _ in range(6):
        process = start_extracting(tmp_path)
        while process.poll() is None:
            if len(list(tmp_path.glob("images/*/0*.jpg"))) >= 1 + 20 * kills and kills < 3:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        if process.wait(120) == 0:
            break
    else:
        pytest.fail("it never ended")
    assert kills == 3
    assert contents(tmp_path / "images") == calm
