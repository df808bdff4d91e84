"""``ns-xscale check``: measurements against analytic answers, and every usual mistake put into a scene and named."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from core_ns.demo_scenes import make_demo_scene
from core_ns.errors import DataError
from core_ns.frames import project
from core_ns.images import image_size, read_image, write_image
from dataparsers.mesh import Mesh, load_mesh
from dataparsers.mvsnet import MvsCamera, read_cam, write_cam

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.data.dataparsers.base_dataparser
    import nerfstudio.plugins.registry_dataparser  # noqa: F401

from dataparsers.mvsnet_parser import View, find_folders, find_mesh
from xscale_ns.check import check_scene, mesh_edges
from xscale_ns.consistency import Judge, Pair, UnitFrame, climb
from xscale_ns.mistakes import Cameras, suspects

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
ABOUT_X = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])

CameraEdit = Callable[[int, MvsCamera], MvsCamera]
VertexEdit = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The machine is shared; rays are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A monument in 14 views of 240x180."""
    folder = tmp_path_factory.mktemp("check") / "monument"
    make_demo_scene(
        folder, views=14, test_views=2, width=240, height=180, supersample=2, mesh_faces=8000, transforms=False
    )
    return folder


@pytest.fixture(scope="module")
def castle(shared_data) -> Path:
    """The real photos."""
    return shared_data / "castle_mvsnet"


def edited(source: Path, folder: Path, cameras: CameraEdit | None = None, vertices: VertexEdit | None = None) -> Path:
    """A copy of a scene with changed cameras or vertices; float64 text, so that large coordinates survive."""
    images, cams, _ = find_folders(source, None)
    folder.mkdir()
    (folder / images.name).symlink_to(images)
    for index, path in enumerate(sorted(cams.glob("*_cam.txt"))):
        camera = replace(read_cam(path), depth=None)
        write_cam(folder / cams.name / path.name, cameras(index, camera) if cameras else camera)
    mesh = load_mesh(find_mesh(source, None))  # type: ignore[arg-type]
    moved = vertices(mesh.vertices) if vertices else mesh.vertices
    with open(folder / "mesh.obj", "w") as file:
        file.writelines("v {:.12g} {:.12g} {:.12g}\n".format(*row) for row in moved)
        file.writelines("f {} {} {}\n".format(*(row + 1)) for row in mesh.faces)
    return folder


def pose(change: Callable[[np.ndarray], np.ndarray]) -> CameraEdit:
    """Change world-to-camera matrices."""
    return lambda _, camera: replace(camera, w2c=change(camera.w2c))


def half_size(_: int, camera: MvsCamera) -> MvsCamera:
    """Intrinsics for photos half as large."""
    return replace(camera, intrinsics=np.diag([0.5, 0.5, 1.0]) @ camera.intrinsics)


def centred(width: int, height: int) -> CameraEdit:
    """Principal point forced to the middle."""

    def change(_: int, camera: MvsCamera) -> MvsCamera:
        intrinsics = camera.intrinsics.copy()
        intrinsics[:2, 2] = width / 2, height / 2
        return replace(camera, intrinsics=intrinsics)

    return change


def turned(view: int, degrees: float, axis: tuple[float, float, float]) -> CameraEdit:
    """One camera turned about its centre."""
    rotation = np.eye(4)
    rotation[:3, :3], _ = cv2.Rodrigues(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis))
    return lambda index, camera: replace(camera, w2c=rotation @ camera.w2c) if index == view else camera


def geo_referenced(_: int, camera: MvsCamera) -> MvsCamera:
    """The camera in a world whose coordinates are (5e5, 4e6, 100) larger."""
    w2c = camera.w2c.copy()
    w2c[:3, 3] -= w2c[:3, :3] @ [5e5, 4e6, 100.0]
    return replace(camera, w2c=w2c)


def numbers(text: str) -> list[float]:
    """The numbers of the first parenthesis."""
    return [float(word) for word in text.split("(")[1].split(")")[0].split(",")]


# ---------------------------------------------------------------------- scenes that are right


def test_castle_is_good(castle, tmp_path):
    """Against the figures in its README: 60 % covered, 20.8 dB from full-size pixels.

    Here photos are compared at 400 px width, where less noise and foliage is left: 21.7 dB.
    """
    report = check_scene(castle, tmp_path / "out")
    assert report.good
    assert report.mistake is None
    assert report.turned == {}
    assert abs(report.psnr - 20.8) < 1.5
    assert abs(report.coverage - 0.602) < 0.005
    assert report.detail > 0.75
    assert report.features > 0.7
    # A tree stands in front of the building in 00010.
    assert min(report.views, key=lambda view: view.detail).name == "00010"
    assert any("00010" in note for note in report.notes)
    for view in report.views:
        picture, _ = read_image(tmp_path / "out" / "overlays" / f"{view.name}.jpg")
        assert picture.shape == (532, 708, 3)


def test_generated_scene_is_good(scene, tmp_path):
    report = check_scene(scene, tmp_path / "out")
    assert report.good, report.text()
    assert report.detail > 0.7
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["good"] is True
    assert len(stored["views"]) == 14
    assert (tmp_path / "out" / "report.txt").read_text() == report.text() + "\n"
    assert "verdict: good" in report.text()
    assert all(f"coverage {100 * view.coverage:5.1f} %" in report.text() for view in report.views)
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_coverage_is_that_of_the_renderer(scene, tmp_path):
    """The generator's sky is what the mesh does not cover; its depth of blue differs from all paint of the mesh."""
    report = check_scene(scene, tmp_path / "out")
    cams = find_folders(scene, None)[1]
    mesh = load_mesh(scene / "scene.ply")
    for view in report.views[:3]:
        camera = read_cam(cams / f"{view.name}_cam.txt")
        pixels, depth = project(mesh.vertices, camera.intrinsics, camera.w2c)
        # An independent slow twin: fill all projected triangles.
        mask = np.zeros((180, 240), np.uint8)
        for triangle in pixels[mesh.faces[(depth[mesh.faces] > 0.05).all(axis=1)]]:
            cv2.fillConvexPoly(mask, np.round((triangle - 0.5) * 256).astype(np.int32), 1, shift=8)
        assert abs(mask.mean() - view.coverage) < 0.02


# ---------------------------------------------------------------------- mistakes, put in and named

MISTAKES: dict[str, tuple[CameraEdit | None, VertexEdit | None, str]] = {
    "opengl": (pose(lambda w2c: FLIP @ w2c), None, "opengl-axes"),
    "c2w": (pose(np.linalg.inv), None, "camera-to-world"),
    "opengl-c2w": (pose(lambda w2c: np.linalg.inv(w2c) @ FLIP), None, "opengl-camera-to-world"),
    "half": (half_size, None, "intrinsics-for-another-size-2"),
    "principal-point": (centred(240, 180), None, "principal-point-centred"),
    "millimetres": (None, lambda x: 1000 * x, "mesh-scale-0.001"),
    "scale": (None, lambda x: 1.3 * x, "mesh-scale"),
    "y-up": (None, lambda x: x @ ABOUT_X, "mesh-turned-about-x"),
    "mirrored": (None, lambda x: x * [1, 1, -1], "mesh-mirrored"),
    "shifted": (None, lambda x: x + np.array([1.2, 0.5, -0.3]), "mesh-shifted"),
    "offset-removed": (geo_referenced, None, "mesh-shifted"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name, scene, tmp_path):
    cameras, vertices, key = MISTAKES[name]
    report = check_scene(edited(scene, tmp_path / "scene", cameras, vertices), tmp_path / "out")
    assert not report.good
    assert report.mistake is not None, report.text()
    assert report.mistake.key == key, report.text()
    assert report.mistake.problem in report.text()
    assert report.mistake.remedy in report.text()
    assert report.mistake.detail > 0.7
    assert json.loads((tmp_path / "out" / "report.json").read_text())["mistake"]["key"] == key
    if name == "shifted":
        assert np.allclose(numbers(report.mistake.remedy), [-1.2, -0.5, 0.3], atol=0.03)
    if name == "offset-removed":
        assert report.coverage == 0.0
        assert np.allclose(numbers(report.mistake.remedy), [5e5, 4e6, 100.0], rtol=0, atol=0.03)
    if name == "scale":
        assert abs(float(report.mistake.remedy.split("about ")[1].split(". ")[0]) - 1 / 1.3) < 0.01
    if name == "principal-point":
        assert np.allclose(numbers(report.mistake.problem), [7, -4], atol=0.5)


def test_castle_with_centred_principal_point(castle, tmp_path):
    """Real photos, 9.2 and 15.4 px off; they still reach 20.3 dB, so only the comparison tells."""
    report = check_scene(edited(castle, tmp_path / "scene", centred(708, 532)), tmp_path / "out")
    assert not report.good
    assert report.mistake.key == "principal-point-centred"
    assert np.allclose(numbers(report.mistake.problem), [9.16, 15.38], atol=2.0)


@pytest.mark.parametrize("axis", [(0.6, 0.64, 0.48), (0.0, 0.0, 1.0)])
def test_turned_view_is_named(axis, scene, tmp_path):
    report = check_scene(edited(scene, tmp_path / "scene", turned(3, 3.0, axis)), tmp_path / "out")
    assert not report.good
    assert report.mistake is None
    assert list(report.turned) == ["00003"], report.text()
    # The turn that repairs it is the opposite one.
    assert np.allclose(report.turned["00003"], -3.0 * np.array(axis), atol=0.3)
    assert "00003 by 3." in report.text() or "00003 by 2.9" in report.text()


def test_geo_referenced_scene_is_good(scene, tmp_path):
    offset = np.array([5e5, 4e6, 100.0])
    report = check_scene(edited(scene, tmp_path / "scene", geo_referenced, lambda x: x + offset), tmp_path / "out")
    assert report.good, report.text()


def test_unexplained_scene_is_wrong_without_a_name(scene, tmp_path):
    """Photos of other views: nothing can fit."""
    folder = edited(scene, tmp_path / "scene")
    (folder / "images").unlink()
    photos = sorted((scene / "images").iterdir())
    for photo, other in zip(photos, photos[5:] + photos[:5], strict=True):
        write_image(folder / "images" / photo.name, read_image(other)[0])
    report = check_scene(folder, tmp_path / "out")
    assert not report.good
    assert report.mistake is None
    assert "none of the usual mistakes fits" in report.text()


def test_names_without_partner_and_skew_are_told(scene, tmp_path):
    def skewed(_: int, camera: MvsCamera) -> MvsCamera:
        intrinsics = camera.intrinsics.copy()
        intrinsics[0, 1] = 2.0
        return replace(camera, intrinsics=intrinsics)

    folder = edited(scene, tmp_path / "scene", skewed)
    (folder / "cams" / "00002_cam.txt").rename(folder / "cams" / "other_cam.txt")
    text = check_scene(folder, tmp_path / "out").text()
    assert "1 without a camera left out: 00002" in text
    assert "1 without a photo left out: other" in text
    # 2 px of skew per focal length: 2 * 180 / (2 * 237.6) px at the border.
    assert "skew" in text
    assert "0.76 px" in text


def test_scene_without_mesh(scene, tmp_path):
    folder = edited(scene, tmp_path / "scene")
    (folder / "mesh.obj").unlink()
    with pytest.raises(DataError, match="holds no mesh"):
        check_scene(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- measurements


def box(low: float = -1.0, high: float = 1.0) -> Mesh:
    """A cube of 12 triangles, off the origin of its file."""
    corners = np.array([[x, y, z] for x in (low, high) for y in (low, high) for z in (low, high)])
    corners += np.array([7.0, -3.0, 2.0])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [half for a, b, c, d in quads for half in ((a, b, c), (a, c, d))]
    return Mesh(corners, np.array(faces), 0)


def camera_at(eye: tuple[float, float, float]) -> np.ndarray:
    """A camera that looks at the cube's middle."""
    from core_ns.demo_scenes import look_at

    return look_at(np.array(eye, dtype=float), np.array([7.0, -3.0, 2.0]))


K = np.array([[300.0, 1.5, 210.0], [0.0, 310.0, 140.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("linear", [np.eye(3), 1000 * np.eye(3), ABOUT_X, np.diag([1.0, 1.0, -1.0])])
def test_rig_projects_like_the_cameras(linear):
    """A rig over the unit mesh gives the pixels of the file's camera over the supposed mesh, and rays lead back."""
    mesh, shift = box(), np.array([0.3, -2.0, 1.0])
    w2c = camera_at((1.0, -9.0, 6.0))[None]
    frame = UnitFrame.of(mesh)
    rig = frame.rig(K[None], w2c, linear, shift)
    unit = (mesh.vertices - frame.centre) / frame.extent
    expected, depth = project(mesh.vertices @ linear.T + shift, K, w2c[0])
    pixels, ahead = rig.project(0, unit)
    assert (ahead == (depth > 0)).all()
    assert np.allclose(pixels[ahead], expected[ahead], rtol=1e-9, atol=1e-7)
    origins, directions = rig.rays(0, pixels[ahead])
    towards = unit[ahead] - origins
    assert np.allclose(directions, towards / np.linalg.norm(towards, axis=1, keepdims=True), atol=1e-9)


def judge_with(photos: list[np.ndarray], folder: Path, poses: list[np.ndarray]) -> Judge:
    """A judge on the cube with given photos."""
    views = []
    for index, photo in enumerate(photos):
        path = folder / f"{index}.png"
        write_image(path, photo)
        views.append(View(str(index), path, MvsCamera(poses[index], K), image_size(path)))
    return Judge(box(), views)


def test_warp_psnr_removes_gain_and_bias(tmp_path):
    """One camera twice; the second photo is the first, darker, plus noise whose size sets the PSNR."""
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.uniform(0, 255, (280, 400, 3)), (0, 0), 4.0)
    smooth = np.clip((smooth - smooth.mean()) * 8 + 128, 20, 235).astype(np.uint8)
    noise = rng.normal(0, 5.0, smooth.shape)
    other = np.clip(smooth * 0.6 + 30 + noise * 0.6, 0, 255).astype(np.uint8)
    pose_ = camera_at((1.0, -9.0, 6.0))
    judge = judge_with([other, smooth], tmp_path, [pose_, pose_])
    rig = judge.frame.rig(np.stack([K, K]), np.stack([pose_, pose_]))
    (pair,) = judge.pairs(rig, [(0, 1)], columns=400)
    assert np.allclose(pair.pixels_first, pair.pixels_second, atol=1e-3)
    # Error of the first photo once the second is fitted to it: 0.6 * 5 of 255.
    assert abs(judge.warp_psnr(pair) - 20 * np.log10(255 / 3.0)) < 0.2


def test_pairs_leave_out_what_the_second_view_cannot_see(tmp_path):
    """Opposite cameras see different sides of the cube; beside each other they share the front."""
    grey = np.full((280, 400, 3), 128, np.uint8)
    poses = [camera_at((7.0, -9.0, 2.0)), camera_at((7.5, -9.0, 2.0)), camera_at((7.0, 3.0, 2.0))]
    judge = judge_with([grey] * 3, tmp_path, poses)
    rig = judge.frame.rig(np.stack([K] * 3), np.stack(poses))
    beside, opposite = judge.pairs(rig, [(0, 1), (0, 2)])
    assert len(beside.pixels_first) > 500
    assert len(opposite.pixels_first) <= 0.01 * len(beside.pixels_first)
    assert judge.neighbours(rig, 0, range(3), 2) == [1]


def test_principal_point_search_finds_the_shift(tmp_path):
    """Random photos of a cube: only the true shift makes the second an exact warp of the first."""
    rng = np.random.default_rng(1)
    photo = cv2.GaussianBlur(rng.uniform(0, 255, (280, 400, 3)), (0, 0), 2.0)
    photo = np.clip((photo - photo.mean()) * 6 + 128, 0, 255).astype(np.uint8)
    pose_ = camera_at((7.0, -9.0, 2.0))
    judge = judge_with([photo, photo[::-1, ::-1].copy()], tmp_path, [pose_, pose_])
    # Made-up pairs: the second photo is the first turned by 180 degrees, so (u, v) and (400 - u, 280 - v) correspond
    # where the shift is undone, and nowhere else.
    v, u = np.mgrid[60:220:3, 60:340:3].reshape(2, -1) + 0.5
    true = np.array([6.0, -9.0])
    first, second = np.stack([u, v], axis=1), np.stack([400.0 - u, 280.0 - v], axis=1)
    pair = Pair(0, 1, first - true, second - true, 1.0)
    assert np.allclose(judge.principal_point_shift([pair]) * 400, true, atol=0.3)


def test_climb_finds_a_maximum_far_from_zero():
    peak = np.array([0.031, -0.022])
    found = climb(lambda x, coarse: -float(((x - peak) ** 2).sum()), 2, 0.045, coarse_step=0.0075, finest=0.0004)
    assert np.allclose(found, peak, atol=0.0005)


def test_suspects_are_undone_by_their_remedy(tmp_path):
    """Each mesh suspect's rig sees the unit mesh where the remedy's words put it."""
    pose_ = camera_at((1.31, -9.17, 6.23))  # not at depth 0 of any turned corner
    judge = judge_with([np.full((280, 400, 3), 9, np.uint8)], tmp_path, [pose_])
    cameras = Cameras(K[None], pose_[None], judge.sizes, 1)
    found = list(suspects(judge, cameras))
    assert len({suspect.remedy for suspect in found if suspect.key.startswith("mesh-")}) == 47 + 9
    vertices = box().vertices
    for suspect in found:
        if "(x, y, z) by (" in suspect.remedy:
            words = suspect.remedy.split("by (")[1].split(")")[0].split(", ")
            moved = np.stack([(-1 if "-" in w else 1) * vertices[:, "xyz".index(w[-1])] for w in words], axis=1)
            expected, depth = project(moved, K, pose_)
            pixels, ahead = suspect.rig.project(0, (vertices - judge.frame.centre) / judge.frame.extent)
            assert (ahead == (depth > 0)).all()
            assert np.allclose(pixels[ahead], expected[ahead], rtol=1e-6, atol=1e-5)


def test_mesh_edges_of_a_slanted_plane_a_step_and_a_roof():
    """1/z is affine on planes: a slant alone draws nothing, a jump an outline, a roof a crease along its ridge."""
    focal = 300.0
    x, _ = np.meshgrid((np.arange(200) + 0.5 - 100) / focal, np.arange(120))
    slanted = 1.0 / (0.2 + 0.5 * x)
    outline, crease = mesh_edges(slanted, focal)
    assert not outline.any()
    assert not crease.any()

    step = np.where(np.arange(200) < 80, 5.0, 6.0) * np.ones((120, 1))
    outline, _ = mesh_edges(step, focal)
    columns = np.unique(outline.nonzero()[1])
    assert set(columns) == {79, 80}

    # Two planes that meet at 90 degrees at x = 0: z = 5 +- X, so 1/z = (1 -+ x) / 5.
    roof = 5.0 / (1.0 - np.abs(x))
    outline, crease = mesh_edges(roof, focal)
    assert not outline.any()
    columns = np.unique(crease[10:-10].nonzero()[1])
    assert len(columns)
    assert np.abs(columns - 99.5).max() <= 2

    hole = np.full((120, 200), 5.0)
    hole[40:60, 50:90] = np.inf
    outline, _ = mesh_edges(hole, focal)
    rows, columns = outline.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((40, 60, 50, 90), abs=1)
