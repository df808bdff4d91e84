"""MVSNet camera files: what is accepted, what is refused, and that nothing is lost in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, w2c_opencv_from_c2w_opengl
from dataparsers.mvsnet import MvsCamera, format_cam, parse_cam, read_cam, read_view_list, write_cam

E4 = "0 -1 0 1.5\n1 0 0 -2\n0 0 1 3\n0 0 0 1"
E3 = E4.rsplit("\n", 1)[0]
K = "700 0.5 360\n0 710 270\n0 0 1"
GOOD = f"extrinsic\n{E4}\n\nintrinsic\n{K}\n\n1.5 0.01 192 9.25\n"


def pose(rows: str) -> str:
    return f"extrinsic\n{rows}\n\nintrinsic\n{K}\n"


def lens(rows: str, tail: str = "") -> str:
    return f"extrinsic\n{E4}\n\nintrinsic\n{rows}\n\n{tail}"


ACCEPTED = {
    "plain": GOOD,
    "3x4": GOOD.replace(E4, E3),
    "crlf": GOOD.replace("\n", "\r\n"),
    "old mac": GOOD.replace("\n", "\r"),
    "double spaces": GOOD.replace(" ", "  "),
    "tabs": GOOD.replace(" ", "\t"),
    "byte-order mark": "\ufeff" + GOOD,
    "blank lines": GOOD.replace("\n", "\n\n"),
    "no blank lines": GOOD.replace("\n\n", "\n"),
    "one line": GOOD.replace("\n", " "),
    "trailing blanks": GOOD.replace("\n", "  \n"),
    "comments": "# a camera\n" + GOOD.replace("\n", " # 1 2 3 extrinsic\n"),
    "upper case": GOOD.upper(),
    "exponents": GOOD.replace("-2", "-2.0e+00").replace("700", "7E2").replace("0.5", "+.5").replace("3\n", "3.\n"),
    "uniform scale": GOOD.replace(E4, "0 -2 0 3\n2 0 0 -4\n0 0 2 6\n0 0 0 1"),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_every_accepted_layout_reads_the_same_camera(text: str) -> None:
    camera = parse_cam(text, "x_cam.txt")
    np.testing.assert_allclose(camera.w2c, [[0, -1, 0, 1.5], [1, 0, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-12)
    np.testing.assert_array_equal(camera.intrinsics, [[700, 0.5, 360], [0, 710, 270], [0, 0, 1]])
    assert camera.depth == (1.5, 0.01, 192, 9.25)


def test_depth_line_may_be_absent_or_short() -> None:
    assert parse_cam(lens(K), "f").depth is None
    assert parse_cam(lens(K, "425 2.5"), "f").depth == (425, 2.5)
    assert parse_cam(lens(K, "425 2.5 192"), "f").depth == (425, 2.5, 192)


def test_integer_pixel_centres_move_the_principal_point_only() -> None:
    corner, centre = parse_cam(GOOD, "f"), parse_cam(GOOD, "f", pixel_center_offset=0.0)
    shift = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    np.testing.assert_array_equal(centre.intrinsics, corner.intrinsics + shift)
    np.testing.assert_array_equal(centre.w2c, corner.w2c)


def test_scale_keeps_the_camera_centre() -> None:
    rigid = parse_cam(GOOD, "f").w2c
    text = pose("\n".join(" ".join(f"{value * 3.7:.17g}" for value in row) for row in rigid[:3]))
    scaled = parse_cam(text, "f").w2c
    np.testing.assert_allclose(-scaled[:3, :3].T @ scaled[:3, 3], -rigid[:3, :3].T @ rigid[:3, 3], atol=1e-12)


MALFORMED: dict[str, tuple[str | bytes, str]] = {
    # content, a piece of the message that only this defect gives
    "empty": ("", "is empty"),
    "blanks only": (" \n\t\r\n", "is empty"),
    "comments only": ("# extrinsic\n# intrinsic\n", "is empty"),
    "prose": ("hello world\n", "'extrinsic' is missing"),
    "json": ('{"extrinsic": []}', "'extrinsic' is missing"),
    "numbers without words": (f"{E4}\n{K}\n", "'extrinsic' is missing"),
    "extrinsic misspelt": (GOOD.replace("extrinsic", "extrinsics"), "'extrinsic' is missing"),
    "extrinsic with colon": (GOOD.replace("extrinsic", "extrinsic:"), "'extrinsic' is missing"),
    "intrinsic missing": (f"extrinsic\n{E4}\n", "'intrinsic' is missing"),
    "intrinsic misspelt": (GOOD.replace("intrinsic", "intrinsc"), "'intrinsic' is missing"),
    "extrinsic twice": (GOOD + GOOD, "'extrinsic' occurs twice"),
    "intrinsic twice": (GOOD + f"intrinsic\n{K}\n", "'intrinsic' occurs twice"),
    "words exchanged": (f"intrinsic\n{K}\nextrinsic\n{E4}\n", "begins with"),
    "text before": ("camera 0\n" + GOOD, "begins with 'camera'"),
    "no extrinsic numbers": (pose(""), "0 numbers where 12"),
    "extrinsic row missing": (pose("\n".join(E3.split("\n")[:2])), "8 numbers where 12"),
    "extrinsic number missing": (pose(E4[:-2]), "15 numbers where 12"),
    "extrinsic number too many": (pose(E4 + " 7"), "17 numbers where 12"),
    "extrinsic 3x3": (pose("1 0 0\n0 1 0\n0 0 1"), "9 numbers where 12"),
    "no intrinsic numbers": (lens(""), "0 numbers where 9"),
    "intrinsic row missing": (lens("700 0 360\n0 710 270"), "6 numbers where 9"),
    "one number after K": (lens(K, "1.5"), "1 number(s) follow"),
    "five numbers after K": (lens(K, "1 2 3 4 5"), "5 number(s) follow"),
    "3x4 intrinsic": (lens("700 0 360 0\n0 710 270 0\n0 0 1 0"), "last row is"),
    "negative depth": (lens(K, "-1 0.1"), "not positive"),
    "zero interval": (lens(K, "1 0"), "not positive"),
    "NaN depth": (lens(K, "1 nan"), "line 12): 'nan' is not a finite number"),
    "infinite depth": (lens(K, "1 0.1 192 inf"), "'inf' is not a finite number"),
    "depth range reversed": (lens(K, "9 0.1 192 1"), "not beyond depth_min"),
    "word in depth line": (lens(K, "1 0.1 many"), "'many' is not"),
    "NaN pose": (pose(E4.replace("1.5", "nan")), "line 2): 'nan' is not a finite number"),
    "infinite pose": (pose(E4.replace("1.5", "-inf")), "'-inf' is not"),
    "overflowing pose": (pose(E4.replace("1.5", "1e999")), "too large"),
    "absurd rotation": (pose(E4.replace("-1", "-1e200").replace("1 0 0", "1e200 0 0")), "extrinsic, line 2"),
    "absurd translation": (pose(E4.replace("1.5", "1e300").replace("-2", "1e300")), "too large"),
    "decimal comma": (pose(E4.replace("1.5", "1,5")), "'1,5' is not"),
    "comma separated": (pose(E4.replace(" ", ",")), "is not a finite number"),
    "brackets": (pose(f"[{E4}]"), "'[0' is not"),
    "underscore": (pose(E4.replace("1.5", "1_5")), "'1_5' is not"),
    "hexadecimal": (pose(E4.replace("1.5", "0x1p3")), "is not a finite number"),
    "full-width digits": (pose(E4.replace("1.5", "１")), "is not a finite number"),
    "mirrored": (pose(E4.replace("0 0 1 3", "0 0 -1 3")), "mirrors"),
    "singular": (pose(E4.replace("0 0 1 3", "0 0 0 3")), "singular"),
    "all zeros": (pose("0 0 0 0\n" * 3), "singular"),
    "not orthonormal": (pose(E4.replace("1 0 0 -2", "1 0.1 0 -2")), "not orthonormal"),
    "anisotropic scale": (pose(E4.replace("0 0 1 3", "0 0 2 3")), "not orthonormal"),
    "last pose row": (pose(E4[:-1] + "2"), "last row is"),
    "camera-to-world transposed": (pose("0 1 0 0\n-1 0 0 0\n0 0 1 0\n1.5 -2 3 1"), "last row is"),
    "zero focal length": (lens(K.replace("700", "0")), "must be positive"),
    "negative focal length": (lens(K.replace("710", "-710")), "must be positive"),
    "last K row": (lens(K[:-1] + "2"), "last row is"),
    "K transposed": (lens("700 0 0\n0.5 710 0\n360 270 1"), "last row is"),
    "K entry below the diagonal": (lens(K.replace("0 710", "3 710")), "row 2 begins with"),
    "binary": (b"extrinsic\n\x00\x01\x02", "is binary"),
    "UTF-16": (GOOD.encode("utf-16"), "is binary or UTF-16"),
    "Latin-1": (b"# caf\xe9\n" + GOOD.encode(), "not UTF-8"),
    "a photo": (b"\xff\xd8\xff\xe0JFIF" * 20, "not UTF-8"),
    "huge": (GOOD + "# " + "x" * 1_000_000, "larger than"),
}


@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_give_one_complete_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "00000_cam.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = [(item.name, item.stat().st_mtime_ns) for item in tmp_path.iterdir()]
    with pytest.raises(DataError) as caught:
        read_cam(path)
    error = caught.value
    assert error.file == str(path)
    assert all((error.place, error.problem, error.remedy))
    assert message in str(error)
    assert [(item.name, item.stat().st_mtime_ns) for item in tmp_path.iterdir()] == before


def test_there_are_as_many_malformed_cases_as_promised() -> None:
    assert len(MALFORMED) >= 40


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent_cam.txt", tmp_path):
        with pytest.raises(DataError, match="is not a file"):
            read_cam(path)


def test_place_names_the_line() -> None:
    with pytest.raises(DataError) as caught:
        parse_cam("# one\r\n\r\nextrinsic\r\n1 0 0 0\r\n0 1 x 0\r\n", "f")
    # the missing word is found first: fix the structure before the numbers
    assert "intrinsic" in caught.value.problem
    with pytest.raises(DataError) as caught:
        parse_cam("# one\r\n\r\n" + GOOD.replace("-2", "x").replace("\n", "\r\n"), "f")
    assert caught.value.place == "line 5"


# Rotations by quaternion; the translations reach geocentric coordinates.
QUATERNIONS = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1)
SMALL = st.floats(1e-3, 1e5)


def rotation_from(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@st.composite
def cameras(draw: st.DrawFn) -> MvsCamera:
    w2c = np.eye(4)
    w2c[:3, :3] = rotation_from(draw(QUATERNIONS))
    w2c[:3, 3] = draw(arrays(np.float64, 3, elements=st.floats(-1e7, 1e7)))
    intrinsics = np.eye(3)
    intrinsics[0, 0], intrinsics[1, 1] = draw(SMALL), draw(SMALL)
    intrinsics[0, 1:] = draw(st.floats(-10, 10)), draw(st.floats(-1e4, 1e5))
    intrinsics[1, 2] = draw(st.floats(-1e4, 1e5))
    depth = draw(st.none() | st.tuples(SMALL, SMALL) | st.tuples(SMALL, SMALL, st.just(192.0)))
    return MvsCamera(w2c, intrinsics, depth)


def assert_same(first: MvsCamera, second: MvsCamera) -> None:
    np.testing.assert_allclose(first.w2c, second.w2c, rtol=0, atol=1e-9)
    np.testing.assert_allclose(first.intrinsics, second.intrinsics, rtol=0, atol=1e-9)
    assert first.depth == second.depth


@given(cameras())
@settings(max_examples=150, deadline=None)
def test_format_then_parse_is_the_identity(camera: MvsCamera) -> None:
    assert_same(parse_cam(format_cam(camera), "f"), camera)


@given(cameras(), st.data())
@settings(max_examples=80, deadline=None)
def test_blanks_comments_and_line_ends_do_not_matter(camera: MvsCamera, data: st.DataObject) -> None:
    blanks = st.text(" \t", min_size=1, max_size=4)
    ends = st.sampled_from(["\n", "\r\n", " \r\n", "\n\n", " # 1e9 intrinsic\n", "#\r\n"])
    text = ""
    for line in format_cam(camera).split("\n"):
        words = line.split()
        text += data.draw(st.text(" \t", max_size=3)) + "".join(word + data.draw(blanks) for word in words)
        text += data.draw(ends)
    assert_same(parse_cam(text, "f"), camera)


@given(st.text(max_size=300) | st.text("extrinsic0123456789.-+eE \n#nainf", max_size=300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_text_raises_nothing_but_data_errors(text: str) -> None:
    with pytest.raises(DataError):
        parse_cam(text, "f")


@given(st.lists(st.floats(), min_size=12, max_size=16), st.lists(st.floats(), min_size=9, max_size=13))
@settings(max_examples=200, deadline=None)
def test_arbitrary_numbers_give_a_finite_camera_or_a_data_error(pose_: list[float], lens_: list[float]) -> None:
    text = "extrinsic " + " ".join(map(repr, pose_)) + " intrinsic " + " ".join(map(repr, lens_))
    try:
        camera = parse_cam(text, "f")
    except DataError:
        return
    assert np.isfinite(camera.w2c).all()
    np.testing.assert_allclose(camera.w2c[:3, :3] @ camera.w2c[:3, :3].T, np.eye(3), atol=1e-3)


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
@settings(max_examples=200, deadline=None)
def test_one_changed_character_is_read_or_refused(position: int, character: str) -> None:
    text = GOOD[:position] + character + GOOD[position + 1 :]
    try:
        camera = parse_cam(text, "f")
    except DataError:
        return
    assert np.isfinite(camera.w2c).all()
    assert np.isfinite(camera.intrinsics).all()


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_data_errors(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("cams") / "a_cam.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError):
        read_cam(path)


def real_cams(shared_data: Path, shared_fixtures: Path) -> list[Path]:
    folders = (shared_data / "castle_mvsnet" / "cams_4", shared_fixtures / "xscale" / "cameras")
    return sorted(path for folder in folders for path in folder.glob("*_cam.txt"))


def test_a4_txt_to_opengl_to_txt(shared_data: Path, shared_fixtures: Path, tmp_path: Path) -> None:
    paths = real_cams(shared_data, shared_fixtures)
    assert len(paths) == 15
    for path in paths:
        camera = read_cam(path)
        back = w2c_opencv_from_c2w_opengl(c2w_opengl_from_w2c_opencv(camera.w2c))
        write_cam(tmp_path / path.name, MvsCamera(back, camera.intrinsics, camera.depth))
        assert_same(read_cam(tmp_path / path.name), camera)


def test_a4_txt_to_transforms_json_to_txt(shared_data: Path, shared_fixtures: Path, tmp_path: Path) -> None:
    for path in real_cams(shared_data, shared_fixtures):
        camera = read_cam(path)
        k = camera.intrinsics
        frame = {"transform_matrix": c2w_opengl_from_w2c_opencv(camera.w2c).tolist()}
        frame |= {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
        (tmp_path / "transforms.json").write_text(json.dumps({"frames": [frame]}))
        read = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
        intrinsics = np.array([[read["fl_x"], 0, read["cx"]], [0, read["fl_y"], read["cy"]], [0, 0, 1]])
        w2c = w2c_opencv_from_c2w_opengl(np.array(read["transform_matrix"]))
        write_cam(tmp_path / path.name, MvsCamera(w2c, intrinsics, camera.depth))
        assert_same(read_cam(tmp_path / path.name), camera)


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"):
        write_cam(tmp_path / "a_cam.txt", MvsCamera(np.full((4, 4), np.nan), np.eye(3)))
    assert not list(tmp_path.iterdir())


NAMES = ["00000", "00001", "7", "img.v2", "photo#3"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("00001\n00000\n", [1, 0]),
        ("\ufeff00001\r\n\r\n# a comment\r\n00000 # held out\r\n", [1, 0]),
        ("00001.JPG\nimg.v2\nimg.v2.png\n", [1, 3]),
        ("1\n3", [1, 3]),
        ("7", [2]),  # a name wins over an id
        ("photo#3.jpg", [4]),
        ("", []),
    ],
)
def test_view_lists(tmp_path: Path, content: str, expected: list[int]) -> None:
    path = tmp_path / "test_views.txt"
    path.write_bytes(content.encode())
    assert read_view_list(path, NAMES) == expected


@pytest.mark.parametrize("line", ["00009", "5", "-1", "1.5", "00001.txt", "img", "../00001", "1 2"])
def test_unknown_views_are_named_with_their_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "test_views.txt"
    path.write_text(f"# list\n00000\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_view_list(path, NAMES)
    assert caught.value.file == str(path)
    assert caught.value.place == "line 3"
    assert repr(line) in caught.value.problem
