"""EasyMocap calibrations: cv2 and the original's fixtures as judges, round trips (r4dv A10), and malformed files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, w2c_opencv_from_c2w_opengl
from dataparsers import easymocap
from dataparsers.easymocap import CameraModel, find_calibration, format_cameras, read_cameras, write_cameras
from dataparsers.easymocap_camera import rotation_from_vector, vector_from_rotation
from dataparsers.opencv_yml import parse_yml

NAMES = ["00", "01", "cam_3", "0013", "7", "a b"]


def random_camera(name: str, seed: int, fisheye: bool = False) -> CameraModel:
    """Any camera about five units before the origin."""
    rng = np.random.default_rng(seed)
    focal, middle = rng.uniform(500, 900, 2), rng.uniform(200, 400, 2)
    matrix = np.array([[focal[0], rng.normal(), middle[0]], [0.0, focal[1], middle[1]], [0.0, 0.0, 1.0]])
    return CameraModel(
        name,
        matrix,
        np.zeros(5) if fisheye else rng.normal(size=5) * 0.02,
        rng.normal(size=4) * 0.02 if fisheye else None,
        640 + seed,
        None if seed % 2 else 480,
        Rotation.from_quat(rng.normal(size=4)).as_matrix(),
        np.array([*rng.uniform(-0.3, 0.3, 2), 5.0]),
        0.1 + seed,
        1e6 if seed % 2 else 1e3 / 3,
        np.sort(rng.normal(size=(2, 3)), axis=0),
        np.eye(3) + 0.01 * rng.normal(size=(3, 3)),
        rng.uniform(),
        float(seed),
    )


def assert_same(found: CameraModel, wanted: CameraModel, rotation: float = 1e-14) -> None:
    """All fields equal; the rotation up to its trip through a Rodrigues vector."""
    for each in fields(CameraModel):
        a, b = getattr(found, each.name), getattr(wanted, each.name)
        if each.name == "R":
            np.testing.assert_allclose(a, b, rtol=0, atol=rotation)
        elif isinstance(b, np.ndarray):
            assert a.dtype == np.float64
            np.testing.assert_array_equal(a, b, err_msg=each.name)
        else:
            assert a == b, each.name


def read_texts(folder: Path, intri: str, extri: str) -> dict[str, CameraModel]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "intri.yml").write_bytes(intri.encode())
    (folder / "extri.yml").write_bytes(extri.encode())
    return read_cameras(folder / "intri.yml", folder / "extri.yml")


def named(error: DataError) -> None:
    assert error.file
    assert error.place
    assert error.remedy


def some_cameras() -> dict[str, CameraModel]:
    return {name: random_camera(name, seed, fisheye=name == "7") for seed, name in enumerate(NAMES)}


# ------------------------------------------------------------------------------------------------ A10: round trips


def without(text: str, *starts: str) -> str:
    """A yml text without the nodes whose keys begin so."""
    kept, skip = [], False
    for line in text.split("\n"):
        if not line.startswith(" "):
            skip = line.startswith(starts)
        if not skip:
            kept.append(line)
    return "\n".join(kept)


VARIANTS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "as written": (lambda intri: intri, lambda extri: extri),
    "CRLF": (lambda intri: intri.replace("\n", "\r\n"), lambda extri: extri.replace("\n", "\r\n")),
    "dist": (lambda intri: intri.replace("D_", "dist_"), lambda extri: extri),
    "only Rot": (lambda intri: intri, lambda extri: without(extri, "R_")),
    "only R": (lambda intri: intri, lambda extri: without(extri, "Rot_")),
    "names in intri alone": (lambda intri: intri, lambda extri: without(extri, "names")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a10_round_trip(tmp_path: Path, variant: str) -> None:
    cameras = some_cameras()
    texts = [change(text) for change, text in zip(VARIANTS[variant], format_cameras(cameras), strict=True)]
    found = read_texts(tmp_path, *texts)
    assert list(found) == sorted(NAMES)
    for name, camera in cameras.items():
        assert_same(found[name], camera)
        gl = c2w_opengl_from_w2c_opencv(found[name].w2c)
        np.testing.assert_allclose(w2c_opencv_from_c2w_opengl(gl), camera.w2c, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found[name].centre, np.linalg.inv(camera.w2c)[:3, 3], rtol=0, atol=1e-9)
        np.testing.assert_allclose(gl[:3, 3], camera.centre, rtol=0, atol=1e-9)


def test_a10_round_trip_of_a_moving_camera(tmp_path: Path) -> None:
    still = {name: random_camera(name, seed) for seed, name in enumerate(["a", "c"])}
    frames = {f"{i:06d}": random_camera(f"{i:06d}", 10 + i) for i in (3, 1, 2)}
    write_cameras(tmp_path, still)
    write_cameras(tmp_path / "cameras" / "b", frames)
    folder, found = find_calibration(tmp_path)
    assert folder == tmp_path
    assert list(found) == ["a", "b", "c"]
    moving = found["b"]
    assert isinstance(moving, dict)
    assert list(moving) == ["000001", "000002", "000003"]
    for name, camera in frames.items():
        assert_same(moving[name], camera)


def test_cv2_agrees_with_every_number_written(tmp_path: Path) -> None:
    cameras = some_cameras()
    write_cameras(tmp_path, {name: camera for name, camera in cameras.items() if " " not in name})
    intri = cv2.FileStorage(str(tmp_path / "intri.yml"), cv2.FILE_STORAGE_READ)
    extri = cv2.FileStorage(str(tmp_path / "extri.yml"), cv2.FILE_STORAGE_READ)
    for name in NAMES[:-1]:
        camera = cameras[name]
        np.testing.assert_array_equal(intri.getNode(f"K_{name}").mat(), camera.K)
        np.testing.assert_array_equal(intri.getNode(f"D_{name}").mat(), camera.D[:, None])
        np.testing.assert_array_equal(extri.getNode(f"Rot_{name}").mat(), camera.R)
        np.testing.assert_array_equal(extri.getNode(f"T_{name}").mat(), camera.T[:, None])
        turned, _ = cv2.Rodrigues(extri.getNode(f"R_{name}").mat())
        np.testing.assert_allclose(turned, camera.R, rtol=0, atol=1e-12)
        assert intri.getNode(f"W_{name}").real() == camera.width
        assert extri.getNode(f"n_{name}").real() == camera.near
    np.testing.assert_array_equal(intri.getNode("rdist_7").mat(), cameras["7"].fisheye[:, None])  # pyright: ignore
    intri.release()
    extri.release()


def test_a10_projection_agrees_with_cv2(tmp_path: Path) -> None:
    write_cameras(tmp_path, some_cameras())
    points = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    for name, camera in read_cameras(tmp_path / "intri.yml", tmp_path / "extri.yml").items():
        # cv2 knows no skew.
        plain = replace(camera, K=camera.K * (np.arange(9).reshape(3, 3) != 1))
        vector = vector_from_rotation(camera.R)
        if camera.fisheye is None:
            wanted, _ = cv2.projectPoints(points, vector, camera.T, plain.K, camera.D)
        else:
            wanted, _ = cv2.fisheye.projectPoints(points[:, None], vector, camera.T, plain.K, camera.fisheye)
        pixels, depth = plain.project(points)
        np.testing.assert_allclose(pixels, wanted.reshape(-1, 2), rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(depth, (points @ camera.R.T + camera.T)[:, 2], rtol=0, atol=1e-12)
        on_axis, _ = plain.project(camera.centre[None] + 2 * camera.R[2:])
        np.testing.assert_allclose(on_axis[0], plain.K[:2, 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.5, 3.0, np.pi - 1e-9, np.pi, 5.0])
def test_rodrigues_agrees_with_cv2(angle: float) -> None:
    for seed in range(5):
        axis = np.random.default_rng(seed).normal(size=3)
        vector = angle * axis / np.linalg.norm(axis)
        rotation = rotation_from_vector(vector)
        np.testing.assert_allclose(rotation, cv2.Rodrigues(vector)[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-14)
        np.testing.assert_allclose(rotation_from_vector(vector_from_rotation(rotation)), rotation, rtol=0, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=10, max_size=10),
    st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(easymocap.is_name),
)
def test_any_camera_round_trips(numbers: list[float], vector: list[float], name: str) -> None:
    matrix = np.array([[abs(numbers[0]) + 1e-3, 0.0, numbers[1]], [0.0, abs(numbers[2]) + 1e-3, numbers[3]], [0, 0, 1]])
    rotation = rotation_from_vector(np.array(vector))
    distortion = np.array(numbers[4:9]) * 1e-6
    camera = CameraModel(name, matrix, distortion, R=rotation, T=np.array(numbers[7:10]), t=numbers[0])
    with tempfile.TemporaryDirectory() as folder:
        write_cameras(folder, {name: camera})
        found = read_cameras(Path(folder) / "intri.yml", Path(folder) / "extri.yml")
    assert_same(found[name], camera, 1e-13)


# ------------------------------------------------------------------------------------------------ fixtures, real data


@pytest.mark.parametrize("folder", ["cameras", "cameras_variant"])
def test_the_originals_files(shared_fixtures: Path, folder: str) -> None:
    place = shared_fixtures / "r4dv" / folder
    expected = json.loads((place / "expected.json").read_text())
    wanted = expected.get("cameras", expected)
    centres = json.loads((shared_fixtures / "r4dv" / "cameras" / "expected.json").read_text())["correct_centres"]
    cameras = read_cameras(place / "intri.yml", place / "extri.yml")
    assert list(cameras) == sorted(wanted)
    assert parse_yml((place / "intri.yml").read_text(), "x")["names"] == expected.get("order", list(wanted))
    for name, camera in cameras.items():
        w = wanted[name]
        np.testing.assert_array_equal(camera.K, w["K"])
        np.testing.assert_array_equal(camera.T, np.ravel(w["T"]))
        np.testing.assert_allclose(camera.R, w["R"], rtol=0, atol=2e-10)  # the files hold ten decimals
        np.testing.assert_allclose(camera.w2c[:3], w["RT"], rtol=0, atol=2e-10)
        np.testing.assert_array_equal(camera.D, np.zeros(5) if w["D"] is None else np.ravel(w["D"]))
        sides = (None if w["H"] == -1 else w["H"], None if w["W"] == -1 else w["W"])
        assert (camera.height, camera.width) == sides
        assert (camera.t, camera.v, camera.near, camera.far) == (w["t"], w["v"], w["n"], w["f"])
        np.testing.assert_array_equal(camera.bounds, w["bounds"])
        np.testing.assert_array_equal(camera.ccm, w["ccm"])
        # The original's own C is wrong (built from the Rodrigues vector).
        np.testing.assert_allclose(camera.centre, np.ravel(centres[name]), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("folder", "count"), [("wd2", 20), ("temple", 16), ("balance", 4)])
def test_recorded_rigs(shared_data: Path, folder: str, count: int) -> None:
    used, cameras = find_calibration(shared_data / f"{folder}_easymocap")
    assert used.name == f"{folder}_easymocap"
    assert list(cameras) == sorted(cameras)
    assert len(cameras) == count
    for camera in cameras.values():
        assert isinstance(camera, CameraModel)
        assert (camera.is_distorted, camera.fisheye) == (folder == "balance", None)
        assert camera.width
        assert camera.height


# ------------------------------------------------------------------------------------------------ details of reading

INTRI, EXTRI = format_cameras({"a": random_camera("a", 2), "b": random_camera("b", 4)})


def set_node(text: str, key: str, value: str) -> str:
    """Replace or append a whole node."""
    return without(text, f"{key}:").rstrip("\n") + f"\n{key}: {value}\n"


def matrix(rows: int, cols: int, *numbers: float | str) -> str:
    data = ", ".join(map(str, numbers))
    return f"!!opencv-matrix\n  rows: {rows}\n  cols: {cols}\n  dt: d\n  data: [{data}]"


def test_defaults(tmp_path: Path) -> None:
    intri = without(INTRI, "D_a", "H_a", "W_a", "ccm_a")
    extri = without(EXTRI, "n_a", "f_a", "bounds_a", "t_a", "v_a")
    camera = read_texts(tmp_path, intri, extri)["a"]
    assert (camera.width, camera.height, camera.near, camera.far, camera.t, camera.v) == (None, None, 1e-4, 1e6, 0, 0)
    assert not camera.is_distorted
    np.testing.assert_array_equal(camera.bounds, [[-1e6] * 3, [1e6] * 3])
    np.testing.assert_array_equal(camera.ccm, np.eye(3))


def test_forms_other_tools_write(tmp_path: Path) -> None:
    intri = set_node(INTRI, "D_a", matrix(1, 4, 0.1, 0.2, 0.3, 0.4))
    intri = set_node(intri, "D_b", matrix(1, 8, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0))
    intri = set_node(set_node(intri, "H_a", "-1"), "W_a", matrix(1, 1, 640))
    extri = set_node(EXTRI, "T_a", matrix(1, 3, 1, 2, 3))
    extri = set_node(extri, "R_a", matrix(3, 3, 0, -1, 0, 1, 0, 0, 0, 0, 1))
    extri = set_node(extri, "f_a", ".Inf")
    cameras = read_texts(tmp_path, intri, extri)
    np.testing.assert_array_equal(cameras["a"].D, [0.1, 0.2, 0.3, 0.4, 0.0])
    np.testing.assert_array_equal(cameras["b"].D, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert (cameras["a"].height, cameras["a"].width, cameras["a"].far) == (None, 640, 1e6)
    np.testing.assert_array_equal(cameras["a"].T, [1, 2, 3])
    np.testing.assert_array_equal(cameras["a"].R, [[0, -1, 0], [1, 0, 0], [0, 0, 1]])


def test_the_first_key_wins(tmp_path: Path) -> None:
    extri = set_node(EXTRI, "Rot_a", matrix(3, 3, *np.eye(3).ravel()))
    intri = set_node(INTRI, "dist_a", matrix(5, 1, 9, 9, 9, 9, 9))
    found, wanted = read_texts(tmp_path, intri, extri)["a"], random_camera("a", 2)
    np.testing.assert_allclose(found.R, wanted.R, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(found.D, wanted.D)


@pytest.mark.parametrize(
    ("defect", "repaired", "warned"), [(1e-8, False, False), (1e-5, True, False), (1e-2, True, True)]
)
def test_rotations_are_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], defect: float, repaired: bool, warned: bool
) -> None:
    rotation = random_camera("a", 2).R
    bent = rotation + defect * np.random.default_rng(0).normal(size=(3, 3)) / 5
    extri = set_node(without(EXTRI, "R_a"), "Rot_a", matrix(3, 3, *bent.ravel()))
    found = read_texts(tmp_path, INTRI, extri)["a"].R
    assert bool(np.abs(found @ found.T - np.eye(3)).max() < 1e-14) == repaired
    np.testing.assert_allclose(found, rotation, rtol=0, atol=2 * defect)
    # The nearest rotation is that of the polar decomposition.
    u, _, vt = np.linalg.svd(bent)
    np.testing.assert_allclose(found, u @ vt if repaired else bent, rtol=0, atol=1e-14)
    said = "".join(capsys.readouterr().out.split())
    assert ("Rot_a" in said) == warned


# ------------------------------------------------------------------------------------------------ malformed files

UNIT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
INTRI_FAULTS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "empty": (lambda text: "", "names", "missing, empty"),
    "header alone": (lambda text: "%YAML:1.0\n---\n", "names", "missing, empty"),
    "no names": (lambda text: without(text, "names"), "names", "missing, empty"),
    "names without entries": (lambda text: set_node(text, "names", "[]"), "names", "missing, empty"),
    "names as text": (lambda text: set_node(text, "names", "a"), "names", "no list"),
    "a name twice": (lambda text: set_node(text, "names", "[a, b, a]"), "names", "'a' stands there twice"),
    "a name that climbs": (lambda text: set_node(text, "names", "[a, '../b']"), "names", "'../b' cannot be"),
    "a name of blanks": (lambda text: set_node(text, "names", "[a, ' ']"), "names", "cannot be the name"),
    "a camera too few": (lambda text: set_node(text, "names", "[a]"), "names", "lacks 'b'"),
    "no K": (lambda text: without(text, "K_b"), "K_b", "is missing"),
    "K of text": (lambda text: set_node(text, "K_b", '"none"'), "K_b", "'none', not a matrix"),
    "K 3x4": (lambda text: set_node(text, "K_b", matrix(3, 4, *range(12))), "K_b", "3x4, not 3x3"),
    "K with NaN": (lambda text: set_node(text, "K_b", matrix(3, 3, ".Nan", *UNIT[1:])), "K_b", "NaN"),
    "K absurd": (lambda text: set_node(text, "K_b", matrix(3, 3, 1e12, *UNIT[1:])), "K_b", "absurdly"),
    "focal length negative": (lambda text: set_node(text, "K_b", matrix(3, 3, -1, *UNIT[1:])), "K_b", "positive"),
    "focal length zero": (lambda text: set_node(text, "K_b", matrix(3, 3, 0, *UNIT[1:])), "K_b", "positive"),
    "K transposed": (lambda text: set_node(text, "K_b", matrix(3, 3, 9, 0, 0, 0, 9, 0, 5, 5, 1)), "K_b", "diagonal"),
    "K scaled": (lambda text: set_node(text, "K_b", matrix(3, 3, 9, 0, 5, 0, 9, 5, 0, 0, 2)), "K_b", "last not 1"),
    "D of three": (lambda text: set_node(text, "D_b", matrix(3, 1, 0, 0, 0)), "D_b", "3x1, not 5x1"),
    "D rational": (lambda text: set_node(text, "D_b", matrix(8, 1, *range(8))), "D_b", "rational"),
    "D a number": (lambda text: set_node(text, "D_b", "0.1"), "D_b", "'0.1', not a matrix"),
    "dist infinite": (
        lambda text: set_node(without(text, "D_b"), "dist_b", matrix(1, 5, 0, 0, 0, 0, ".Inf")),
        "dist_b",
        "infinity",
    ),
    "two lenses": (lambda text: set_node(text, "rdist_b", matrix(4, 1, 0, 0, 0, 0)), "rdist_b", "two lens models"),
    "rdist of five": (lambda text: set_node(text, "rdist_b", matrix(5, 1, *range(5))), "rdist_b", "not 4x1"),
    "half a pixel": (lambda text: set_node(text, "H_b", "480.5"), "H_b", "480.5, not a number of pixels"),
    "no width": (lambda text: set_node(text, "W_b", "0"), "W_b", "0, not a number of pixels"),
    "width infinite": (lambda text: set_node(text, "W_b", ".Inf"), "W_b", "inf, not"),
    "height a word": (lambda text: set_node(text, "H_b", "tall"), "H_b", "'tall', not a number"),
    "ccm 2x2": (lambda text: set_node(text, "ccm_b", matrix(2, 2, *range(4))), "ccm_b", "2x2, not 3x3"),
    "too few numbers": (lambda text: set_node(text, "K_b", matrix(3, 3, *UNIT[1:])), "K_b", "8 numbers where 3x3"),
    "decimal commas": (lambda text: set_node(text, "K_b", matrix(3, 3, "1,5", *UNIT[1:])), "K_b", "10 numbers where"),
    "a key twice": (lambda text: text + "K_b: 1\n", "K_b", "twice"),
    "cut off": (lambda text: text[: text.index("]", text.index("K_b"))], "K_b", "never closed"),
}
EXTRI_FAULTS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "a camera too few": (lambda text: set_node(text, "names", "[a]"), "names", "lacks 'b'"),
    "names empty": (lambda text: set_node(text, "names", "[]"), "names", "empty"),
    "no rotation": (lambda text: without(text, "R_b", "Rot_b"), "R_b", "and Rot_b are missing"),
    "R of two": (lambda text: set_node(text, "R_b", matrix(2, 1, 0, 0)), "R_b", "2x1, not 3x1"),
    "R a number": (lambda text: set_node(text, "R_b", "0"), "R_b", "'0', not a matrix"),
    "Rot 3x4": (lambda text: set_node(without(text, "R_b"), "Rot_b", matrix(3, 4, *range(12))), "Rot_b", "not 3x3"),
    "Rot no rotation": (
        lambda text: set_node(without(text, "R_b"), "Rot_b", matrix(3, 3, 2, *UNIT[1:])),
        "Rot_b",
        "is not",
    ),
    "Rot of zeros": (lambda text: set_node(without(text, "R_b"), "Rot_b", matrix(3, 3, *[0] * 9)), "Rot_b", "is not"),
    "Rot mirrors": (
        lambda text: set_node(without(text, "R_b"), "Rot_b", matrix(3, 3, -1, *UNIT[1:])),
        "Rot_b",
        "mirrors",
    ),
    "no T": (lambda text: without(text, "T_b"), "T_b", "is missing"),
    "T infinite": (lambda text: set_node(text, "T_b", matrix(3, 1, 0, "-.Inf", 0)), "T_b", "infinity"),
    "T of four": (lambda text: set_node(text, "T_b", matrix(4, 1, 0, 0, 0, 1)), "T_b", "4x1, not 3x1"),
    "near negative": (lambda text: set_node(text, "n_b", "-1."), "n_b", "-1 is not positive"),
    "near infinite": (lambda text: set_node(text, "n_b", ".Inf"), "n_b", "not positive and finite"),
    "near a list": (lambda text: set_node(text, "n_b", "[1]"), "n_b", "not a number"),
    "far before near": (lambda text: set_node(text, "f_b", "1e-5"), "f_b", "not beyond"),
    "far NaN": (lambda text: set_node(text, "f_b", ".NaN"), "f_b", "not a number"),
    "bounds inverted": (
        lambda text: set_node(text, "bounds_b", matrix(2, 3, 0, 0, 1, 1, 1, 0)),
        "bounds_b",
        "zmin 1 is not below zmax 0",
    ),
    "bounds 3x2": (lambda text: set_node(text, "bounds_b", matrix(3, 2, *range(6))), "bounds_b", "3x2, not 2x3"),
    "time a word": (lambda text: set_node(text, "t_b", '"now"'), "t_b", "'now', not a number"),
    "time infinite": (lambda text: set_node(text, "t_b", ".Inf"), "t_b", "infinite"),
    "view a matrix": (lambda text: set_node(text, "v_b", matrix(2, 1, 0, 0)), "v_b", "2x1 matrix, not a number"),
}


@pytest.mark.parametrize(
    ("file", "fault"),
    [("intri.yml", fault) for fault in INTRI_FAULTS] + [("extri.yml", fault) for fault in EXTRI_FAULTS],
)
def test_malformed_files_give_one_error(tmp_path: Path, file: str, fault: str) -> None:
    change, key, problem = (INTRI_FAULTS if file == "intri.yml" else EXTRI_FAULTS)[fault]
    texts = {"intri.yml": INTRI, "extri.yml": EXTRI}
    texts[file] = change(texts[file])
    with pytest.raises(DataError) as caught:
        read_texts(tmp_path, texts["intri.yml"], texts["extri.yml"])
    error = caught.value
    assert error.file == str(tmp_path / file)
    assert error.place.split(",")[0] == key
    assert problem in error.problem
    assert error.remedy.endswith(".")
    assert error.problem.endswith(".")
    with pytest.raises(DataError):
        find_calibration(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_read_or_are_refused(data: st.DataObject) -> None:
    texts = {}
    for name, text in (("intri.yml", INTRI), ("extri.yml", EXTRI)):
        for _ in range(data.draw(st.integers(0, 3))):
            start = data.draw(st.integers(0, len(text)))
            end = data.draw(st.integers(start, min(start + 40, len(text))))
            put = data.draw(
                st.one_of(st.text(max_size=5), st.sampled_from(["1e999", ".Nan", "[", "]", "\n", "-", "0"]))
            )
            text = text[:start] + put + text[end:]
        texts[name] = text
    with tempfile.TemporaryDirectory() as folder:
        try:
            cameras = read_texts(Path(folder), texts["intri.yml"], texts["extri.yml"])
        except UnicodeEncodeError:  # a lone surrogate, which no file can hold
            return
        except DataError as error:
            return named(error)
    for camera in cameras.values():
        assert np.isfinite(camera.stand).all()
        np.testing.assert_allclose(camera.R @ camera.R.T, np.eye(3), atol=1e-5)


# ------------------------------------------------------------------------------------------------ writing and finding


@pytest.mark.parametrize(
    "cameras",
    [
        {},
        {"a/b": random_camera("a", 0)},
        {"": random_camera("a", 0)},
        {"a": replace(random_camera("a", 0), T=np.array([0, np.nan, 0]))},
        {"a": replace(random_camera("a", 0), far=np.inf)},
    ],
    ids=["none", "a name that climbs", "no name", "NaN", "infinity"],
)
def test_what_cannot_be_read_is_not_written(tmp_path: Path, cameras: dict[str, CameraModel]) -> None:
    write_cameras(tmp_path / "old", {"a": random_camera("a", 1)})
    before = (tmp_path / "old" / "intri.yml").read_bytes()
    for folder in ("old", "new"):
        with pytest.raises(ValueError):
            write_cameras(tmp_path / folder, cameras)
    assert (tmp_path / "old" / "intri.yml").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_both_files_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if path.name.endswith("extri.yml"):
            raise OSError("no space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_cameras(tmp_path, {"a": random_camera("a", 0)})
    assert not list(tmp_path.iterdir())


def test_refined_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, refined = random_camera("a", 1), random_camera("a", 2)
    write_cameras(tmp_path, {"a": plain})
    write_cameras(tmp_path / "cameras" / "m", {"000000": plain})
    with pytest.raises(DataError, match=r"--cameras.*holds no intri"):
        find_calibration(tmp_path, "optimized")
    assert find_calibration(tmp_path)[0] == tmp_path
    write_cameras(tmp_path / "optimized", {"a": refined})
    capsys.readouterr()
    for choice, folder, wanted in (
        ("auto", tmp_path / "optimized", refined),
        ("optimized", tmp_path / "optimized", refined),
        ("plain", tmp_path, plain),
    ):
        used, cameras = find_calibration(tmp_path, choice)  # pyright: ignore[reportArgumentType]
        assert used == folder
        assert list(cameras) == ["a", "m"]
        assert isinstance(cameras["a"], CameraModel)
        assert_same(cameras["a"], wanted)
        assert isinstance(cameras["m"], dict)
        assert ("Refined cameras" in capsys.readouterr().out) == (choice == "auto")


def test_a_camera_that_moves_is_not_taken_as_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cameras(tmp_path, {"a": random_camera("a", 1)})
    write_cameras(tmp_path / "cameras" / "a", {"000000": random_camera("000000", 2)})
    (tmp_path / "cameras" / ".hidden").mkdir()
    (tmp_path / "cameras" / "empty").mkdir()
    _, cameras = find_calibration(tmp_path)
    assert list(cameras) == ["a"]
    assert isinstance(cameras["a"], dict)
    assert "a moves" in capsys.readouterr().out


def test_half_a_calibration(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*not a folder"):
        find_calibration(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"intri\.yml.*is missing.*ns-r4dv convert"):
        find_calibration(tmp_path)
    write_cameras(tmp_path, {"a": random_camera("a", 1)})
    for name in ("intri.yml", "extri.yml"):
        shutil.move(tmp_path / name, tmp_path / "x")
        with pytest.raises(DataError, match=rf"{name}.*other half"):
            find_calibration(tmp_path)
        shutil.move(tmp_path / "x", tmp_path / name)
    for folder in ("optimized", "cameras/m"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(tmp_path / "intri.yml", tmp_path / folder)
        with pytest.raises(DataError, match=r"extri\.yml.*other half"):
            find_calibration(tmp_path)
        (tmp_path / folder / "intri.yml").unlink()
