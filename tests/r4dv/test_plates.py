"""Clean plates: means of what is free of the subject, made up where nothing is; their links."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject
from hypothesis import given
from hypothesis import strategies as st
from prepared_scenes import NAMES, SIZE, contents, empty_scene, make_photos, make_raw
from scipy import ndimage

from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from r4dv_ns import plates as plates_module
from r4dv_ns.plates import PlateSum, link_backgrounds, make_plates, spread


def slow_plate(
    photos: list[np.ndarray], masks: list[np.ndarray], widths: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel: the mean over the photos whose subject is farther than the first width, else the second."""
    height, width = masks[0].shape
    plate, seen = np.full((height, width, 3), np.nan), np.zeros((height, width), bool)
    far = [
        ndimage.distance_transform_edt(mask <= 127) if (mask > 127).any() else np.full(mask.shape, 1e9)
        for mask in masks
    ]
    for row in range(height):
        for column in range(width):
            for reach in widths:
                values = [photo[row, column] for photo, d in zip(photos, far, strict=True) if d[row, column] > reach]
                if values:
                    plate[row, column], seen[row, column] = np.mean(values, axis=0), True
                    break
    return plate, seen


def clean_plate(
    photos: list[np.ndarray], masks: list[np.ndarray], widths: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    total = PlateSum(widths)
    for photo, mask in zip(photos, masks, strict=True):
        total.add(photo, mask)
    return total.result()


def test_against_the_slow_twin() -> None:
    rng = np.random.default_rng(2)
    photos = [rng.integers(0, 256, (24, 30, 3), np.uint8) for _ in range(4)]
    masks = [subject((30, 24), 2 * frame)[1] for frame in range(3)] + [np.zeros((24, 30), np.uint8)]
    for used, widths in ((3, (3, 1)), (3, (0, 0)), (4, (5, 2)), (1, (4, 1))):
        expected, seen = slow_plate(photos[4 - used :], masks[4 - used :], widths)
        plate, found = clean_plate(photos[4 - used :], masks[4 - used :], widths)
        # cv2's distances are a few percent off: compare where that cannot matter.
        assert (found != seen).mean() < 0.01
        both = found & seen
        assert (np.abs(plate[both] - expected[both]).max(axis=1) > 0.51).mean() < 0.02


def test_the_plate_is_the_empty_scene() -> None:
    """A subject that walks away from where it was; its shadow (a darker ring) stays out by the first width."""
    size, empty = (320, 240), empty_scene((320, 240)).astype(float)
    photos, masks = [], []
    for frame in (-4, 0, 4, 8):
        photo, mask = subject(size, frame)
        shadow = ndimage.binary_dilation(mask > 0, iterations=6)[..., None]
        photos.append(np.where(mask[..., None] > 0, photo, np.where(shadow, empty * 0.7, empty)).astype(np.uint8))
        masks.append(mask)
    plate, seen = clean_plate(photos, masks, (12, 3))
    assert seen.mean() > 0.97
    error = np.abs(plate - empty)
    assert error[seen].mean() < 1.5
    assert np.abs(plate - empty)[~seen].mean() < 25 or seen.all(), "made up, but of the colours around"


@given(
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    share=st.floats(0.02, 1.0),
    seed=st.integers(0, 99),
)
def test_spread_colours_stay_within_the_known_ones(size: tuple[int, int], share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    colours = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    known = rng.uniform(size=size) < share
    known.flat[rng.integers(known.size)] = True
    filled = spread(colours, known)
    np.testing.assert_array_equal(filled[known], colours[known])
    assert filled.min() >= colours[known].min() - 1e-3
    assert filled.max() <= colours[known].max() + 1e-3


def test_a_recordings_plates(tmp_path: Path) -> None:
    scene = make_photos(tmp_path, frames=8)
    unseen = make_plates(scene, workers=2)
    assert list(unseen) == list(NAMES)
    for name in NAMES:
        plate = read_image(scene / "bkgd" / f"{name}.jpg")[0].astype(float)
        assert plate.shape == (SIZE[1], SIZE[0], 3)
        holes = scene / "bkgd" / "unseen" / f"{name}.png"
        made_up = read_image(holes)[0][..., 0] > 127 if holes.is_file() else np.zeros(plate.shape[:2], bool)
        assert made_up.mean() == pytest.approx(unseen[name])
        assert 0 < unseen[name] < 0.3, "a wide body does not walk far in eight frames"
        assert np.abs(plate - empty_scene())[~made_up].mean() < 3
    assert make_plates(scene) == pytest.approx(unseen)


def test_of_raw_videos(tmp_path: Path) -> None:
    scene = make_photos(tmp_path, frames=4)
    make_raw(scene / "videos")
    make_plates(scene, image_dir="videos", plate_dir="p")
    assert sorted(path.name for path in (scene / "p").glob("*.jpg")) == ["a_1.jpg", "b.jpg"]


def test_a_camera_that_sees_nothing_but_the_subject(tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    for frame in range(4):
        write_image(scene / "masks" / "b" / f"{frame:06d}.png", np.full((SIZE[1], SIZE[0]), 255, np.uint8))
    assert make_plates(scene)["b"] == 1.0
    assert not read_image(scene / "bkgd" / "b.jpg")[0].any()


def test_interrupted_it_ends_the_same(tmp_path: Path, monkeypatch) -> None:
    scene = make_photos(tmp_path)
    make_plates(scene, plate_dir="calm")
    calm = contents(scene / "calm")
    for stop in range(4):
        count = [0]

        def failing(file: Path, picture: np.ndarray, stop=stop, count=count) -> None:
            if count[0] == stop:
                raise KeyboardInterrupt
            count[0] += 1
            write_image(file, picture)

        monkeypatch.setattr(plates_module, "write_image", failing)
        with pytest.raises(KeyboardInterrupt):
            make_plates(scene, plate_dir=f"run{stop}", workers=1)
        monkeypatch.setattr(plates_module, "write_image", write_image)
        make_plates(scene, plate_dir=f"run{stop}", workers=1)
        assert contents(scene / f"run{stop}") == calm
    with pytest.raises(DataError, match="settings differ"):
        make_plates(scene, plate_dir="calm", dilations=(0.1, 0.02))


BAD = {
    "no masks": (lambda scene: {"mask_dir": "absent"}, "masks.*is not there"),
    "no photos": (lambda scene: {"image_dir": "absent"}, "is not there"),
    "widths": (lambda scene: {"dilations": (0.01, 0.1)}, "--dilate"),
    "a moving camera": (lambda scene: (scene / "cameras" / "b").mkdir(parents=True) or {}, "camera b.*moves"),
    "a missing mask": (lambda scene: (scene / "masks" / "b" / "000001.png").unlink() or {}, "no mask of frame"),
    "somebody's plates": (lambda scene: write_image(scene / "bkgd" / "b.jpg", empty_scene()) or {}, "did not write"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    change, message = BAD[case]
    options = change(scene)
    before = contents(scene)
    with pytest.raises(DataError, match=message):
        make_plates(scene, **options)
    assert contents(scene) == before


def test_masks_of_another_size_end_it(tmp_path: Path) -> None:
    scene = make_photos(tmp_path)
    write_image(scene / "masks" / "b" / "000002.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match="is 9x9 pixels"):
        make_plates(scene)
    assert not (scene / "bkgd" / "b.jpg").exists()


def test_links(tmp_path: Path, monkeypatch) -> None:
    for name in NAMES:
        write_image(tmp_path / "bkgd" / f"{name}.jpg", empty_scene())
    (tmp_path / "bkgd" / "ns-r4dv.json").write_text("{}")
    links = link_backgrounds(tmp_path)
    assert [str(link.relative_to(tmp_path)) for link in links] == [f"bkgd/images/{name}/000000.jpg" for name in NAMES]
    assert all(link.is_symlink() and not os.path.isabs(os.readlink(link)) for link in links)
    np.testing.assert_array_equal(read_image(links[1])[0], read_image(tmp_path / "bkgd" / "b.jpg")[0])
    assert link_backgrounds(tmp_path) == links
    (tmp_path / "bkgd").rename(tmp_path / "moved")
    assert read_image(tmp_path / "moved" / "images" / "b" / "000000.jpg")[0].shape == (SIZE[1], SIZE[0], 3)

    def refuse(*words) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    copies = link_backgrounds(tmp_path, plate_dir="moved", out_dir="copies")
    assert not any(copy.is_symlink() for copy in copies)
    assert link_backgrounds(tmp_path, plate_dir="moved", out_dir="copies") == copies
    write_image(copies[0], np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="holds another picture"):
        link_backgrounds(tmp_path, plate_dir="moved", out_dir="copies")


def test_links_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        link_backgrounds(tmp_path)
    (tmp_path / "bkgd").mkdir()
    with pytest.raises(DataError, match=r"holds no CAM\.jpg"):
        link_backgrounds(tmp_path)
    write_image(tmp_path / "bkgd" / "a.jpg", empty_scene())
    write_image(tmp_path / "bkgd" / "a.png", empty_scene())
    with pytest.raises(DataError, match=r"has a\.jpg too"):
        link_backgrounds(tmp_path)
    (tmp_path / "bkgd" / "a.png").unlink()
    (tmp_path / "bkgd" / "images" / "a").mkdir(parents=True)
    os.symlink("../../gone.jpg", tmp_path / "bkgd" / "images" / "a" / "000000.jpg")
    with pytest.raises(DataError, match="holds another picture"):
        link_backgrounds(tmp_path)
