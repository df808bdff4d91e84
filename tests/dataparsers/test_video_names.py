"""Names of clips: every geometry survives, whatever the camera is called, and odd names are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.easymocap import CameraModel, is_name
from dataparsers.video_names import ClipName, camera_of, fit_canvas, holds_clips, list_clips, parse_clip_name

SIDES = st.integers(1, 9000)
LETTERS = "_NxyWHF0129a."


@st.composite
def clip_names(draw) -> ClipName:
    camera = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(is_name))
    width, height = draw(SIDES), draw(SIDES)
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return ClipName(camera, draw(st.integers(1, 10**6)), x, y, width, height, draw(SIDES), draw(SIDES))


@given(name=clip_names(), suffix=st.sampled_from([".mp4", ".MP4", ".mkv"]))
def test_every_name_comes_back(name: ClipName, suffix: str) -> None:
    assert parse_clip_name(Path("folder") / f"{name}{suffix}") == name
    nested = replace(name, camera=f"{name}")  # a camera that is called like a clip
    assert parse_clip_name(Path(f"{nested}{suffix}")) == nested


@given(stem=st.text(LETTERS, max_size=40) | st.text(max_size=20).filter(lambda text: "/" not in text))
def test_any_text_is_a_name_or_refused(stem: str) -> None:
    file = Path("folder") / f"{stem}.mp4"
    try:
        found = parse_clip_name(file)
    except DataError:
        return
    assert found is None or file.stem.startswith(found.camera)


def test_the_originals_form() -> None:
    found = parse_clip_name(Path("Camera_B1_left_N150_x312_y40_W1024_H1224_FW2048_FH2448.mp4"))
    assert found == ClipName("Camera_B1_left", 150, 312, 40, 1024, 1224, 2048, 2448)
    assert (found.canvas, found.full) == ((1024, 1224), (2048, 2448))
    assert parse_clip_name(Path("cam_01.mp4")) is None
    assert camera_of(Path("cam_01.mp4")) == "cam_01"
    assert parse_clip_name(Path("_FW.mp4")) is None


BAD = {
    "00_N3_x0_y0_W64_H48_FW64_FHx.mp4": "a field is missing or no number",
    "00_N3_x-2_y0_W64_H48_FW64_FH48.mp4": "a field is missing or no number",
    "00_N3_x0_W64_H48_FW64_FH48.mp4": "a field is missing or no number",
    "00_N3_x0_y0_W64_H48_FW12345678901_FH48.mp4": "too large",
    "00_N0_x0_y0_W64_H48_FW64_FH48.mp4": "gives 0 frames",
    "00_N3_x0_y0_W0_H48_FW64_FH48.mp4": "sizes",
    "00_N3_x0_y0_W64_H48_FW640000_FH48.mp4": "sizes",
    "00_N3_x0_y0_W60000_H60000_FW64_FH48.mp4": "sizes",
    "00_N3_x64_y0_W64_H48_FW64_FH48.mp4": "outside of its canvas",
    "a:b_N3_x0_y0_W64_H48_FW64_FH48.mp4": "cannot be the name of a camera",
    "a b'.mp4": "cannot be the name of a camera",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=BAD[name]):
        parse_clip_name(Path(name))


def test_clips_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("b_N3_x0_y0_W64_H48_FW64_FH48.mp4", "a_1.MOV", ".hidden.mp4", "notes.txt", "ns-r4dv.json"):
        (tmp_path / "clips" / name).touch()
    assert [(camera, file.name[:3]) for camera, file in list_clips(tmp_path / "clips").items()] == [
        ("a_1", "a_1"),
        ("b", "b_N"),
    ]
    assert holds_clips(tmp_path / "clips")
    assert not holds_clips(tmp_path)
    assert not holds_clips(tmp_path / "absent")
    (tmp_path / "clips" / "b.mkv").touch()
    with pytest.raises(DataError, match="and so is b"):
        list_clips(tmp_path / "clips")
    (tmp_path / "clips" / "00").mkdir()
    assert not holds_clips(tmp_path / "clips"), "folders of photos go first"


def test_the_calibration_follows_each_axis() -> None:
    matrix = np.array([[700.0, 3.0, 320.5], [0, 710, 241.5], [0, 0, 1]])
    model = CameraModel("c", matrix, width=641, height=483)
    fitted = fit_canvas(model, (320, 242), (641, 483), Path("clip"))
    rays = np.array([[0.1, -0.2, 1.0], [-0.3, 0.25, 1.0]]).T
    np.testing.assert_allclose((fitted.K @ rays)[0], (matrix @ rays)[0] * 320 / 641)
    np.testing.assert_allclose((fitted.K @ rays)[1], (matrix @ rays)[1] * 242 / 483)
    assert (fitted.width, fitted.height) == (320, 242)
    assert fit_canvas(replace(model, width=None, height=None), (320, 242), (641, 483), Path("c")).width == 320
    # The corner of the first pixel is (0, 0) once 0.5 is added; it must be after shrinking as well.
    shifted = fit_canvas(model, (320, 242), (641, 483), Path("clip"), centre_shift=0.5)
    np.testing.assert_allclose(shifted.K[0, 2] + 0.5, (matrix[0, 2] + 0.5) * 320 / 641)
    np.testing.assert_allclose(shifted.K[1, 2] + 0.5, (matrix[1, 2] + 0.5) * 242 / 483)
    canvas = replace(model, width=320, height=242)
    assert fit_canvas(canvas, (320, 242), (641, 483), Path("clip")) is canvas
    with pytest.raises(DataError, match="the calibration is of 640x483"):
        fit_canvas(replace(model, width=640), (320, 242), (641, 483), Path("clip"))
