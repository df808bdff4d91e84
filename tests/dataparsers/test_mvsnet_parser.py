"""The mvsnet-data parser on the castle and on small made-up scenes: cameras, normalisation, meshes, warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mvsnet_scene import HEIGHT, OBJ, WIDTH, K, make_scene, outputs

from core_ns.errors import DataError
from core_ns.frames import project, transform_points, w2c_opencv_from_c2w_opengl
from core_ns.images import write_image
from dataparsers import mvsnet_parser
from dataparsers.mesh import load_mesh
from dataparsers.mvsnet import MvsCamera, read_cam, write_cam
from dataparsers.mvsnet_parser import MvsnetDataParserConfig, Normalization, mvsnet_data, up_rotation

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path / "scene")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(mvsnet_parser.CONSOLE, "print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
    return lines


@pytest.fixture(scope="module")
def castle(shared_data: Path) -> Path:
    return shared_data / "castle_mvsnet"


def test_castle_splits_and_sizes(castle: Path) -> None:
    parser = MvsnetDataParserConfig(data=castle).setup()
    train, val, test = (parser.get_dataparser_outputs(split) for split in ("train", "val", "test"))
    assert [len(part.image_filenames) for part in (train, val, test)] == [9, 2, 2]
    assert [path.stem for path in test.image_filenames] == ["00003", "00007"]
    assert test.image_filenames == val.image_filenames
    assert test.metadata["train_names"] == train.metadata["split_names"] == [p.stem for p in train.image_filenames]
    assert train.cameras.width.flatten().tolist() == [708] * 9
    assert train.cameras.height.flatten().tolist() == [532] * 9
    assert train.metadata["mesh_path"] == str((castle / "castle.ply").resolve())
    assert train.mask_filenames is None
    np.testing.assert_array_equal(train.scene_box.aabb.numpy(), [[-1, -1, -1], [1, 1, 1]])


def test_castle_keeps_the_principal_point(castle: Path) -> None:
    train = outputs(castle)
    for index, path in enumerate(train.image_filenames):
        k = read_cam(castle / "cams_4" / f"{path.stem}_cam.txt").intrinsics
        camera = train.cameras[index]
        read = [float(value) for value in (camera.fx, camera.fy, camera.cx, camera.cy)]
        np.testing.assert_allclose(read, [k[0, 0], k[1, 1], k[0, 2], k[1, 2]], rtol=1e-6)
    assert abs(float(train.cameras.cx[0]) - 354) > 8


def test_castle_mesh_fits_the_box_and_reprojects_unchanged(castle: Path) -> None:
    parser = MvsnetDataParserConfig(data=castle).setup()
    vertices = load_mesh(castle / "castle.ply").vertices
    for split in ("train", "test"):
        part = parser.get_dataparser_outputs(split)
        space = part.metadata["mesh_transform"]
        moved = transform_points(vertices, np.array(space["transform"]), space["scale"])
        low, high = moved.min(axis=0), moved.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-12)
        assert (high - low).max() == pytest.approx(2.0, abs=1e-12)
        np.testing.assert_allclose(part.dataparser_transform.numpy(), space["transform"], atol=1e-6)
        assert part.dataparser_scale == space["scale"]
        for index, path in enumerate(part.image_filenames):
            camera = read_cam(castle / "cams_4" / f"{path.stem}_cam.txt")
            before, depth = project(vertices, camera.intrinsics, camera.w2c)
            inside = (depth > 0.1) & (before >= 0).all(axis=1) & (before <= [708, 532]).all(axis=1)
            assert inside.sum() > 1000
            c2w = part.cameras.camera_to_worlds[index].double().numpy()
            after, _ = project(moved[inside], camera.intrinsics, w2c_opencv_from_c2w_opengl(c2w))
            assert np.abs(after - before[inside]).max() < 2e-3  # what float32 poses leave


def test_castle_up_is_z(castle: Path) -> None:
    up = outputs(castle, eval_mode="all").cameras.camera_to_worlds[:, :3, 1].mean(dim=0)
    np.testing.assert_allclose((up / up.norm()).numpy(), [0, 0, 1], atol=1e-6)
    # README of the data: up is -z of the files; the photographer tilted the camera by about ten degrees.
    rotation = outputs(castle).dataparser_transform[:, :3]
    assert float((rotation @ torch.tensor([0.0, 0.0, -1.0]))[2]) > 0.97
    kept = outputs(castle, up="keep")
    np.testing.assert_array_equal(kept.dataparser_transform[:, :3].numpy(), np.eye(3))


def test_castle_cameras_see_the_mesh(castle: Path) -> None:
    """nerfstudio's own rays through the box centre of the mesh: catches a wrong axis that round trips would not."""
    train = outputs(castle)
    towards = -train.cameras.camera_to_worlds[:, :3, 3]
    view = -train.cameras.camera_to_worlds[:, :3, 2]
    assert (torch.nn.functional.cosine_similarity(towards, view, dim=-1) > 0.6).all()
    rays = train.cameras.generate_rays(camera_indices=0, keep_shape=True)
    assert rays.origins.shape == (532, 708, 3)


def test_tools_that_set_downscale_factor_on_the_parser_do_no_harm(castle: Path) -> None:
    parser = MvsnetDataParserConfig(data=castle).setup()
    parser.downscale_factor = 1
    part = parser.get_dataparser_outputs("train")
    assert part.image_filenames[0].parent.name == "images_4"
    assert int(part.cameras.width[0]) == 708


def test_outputs_are_built_without_decoding_pixels(scene: Path) -> None:
    for path in (scene / "images_2").iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw[: raw.index(b"IDAT") + 4])
    assert len(outputs(scene).image_filenames) == 6


def test_registered_default_is_usable() -> None:
    assert isinstance(mvsnet_data.config, MvsnetDataParserConfig)
    assert mvsnet_data.description
    assert mvsnet_data.config.eval_interval == 7


def test_level_scene_is_not_turned(scene: Path) -> None:
    part = outputs(scene, eval_mode="all")
    np.testing.assert_array_equal(part.dataparser_transform[:, :3].numpy(), np.eye(3))
    np.testing.assert_array_equal(part.dataparser_transform[:, 3].numpy(), [-2, -1, -0.5])
    assert part.dataparser_scale == 0.5
    # w2c (x + i, -z, y + 5): centre (-i, -5, 0); X' = s (X + b)
    np.testing.assert_allclose(part.cameras.camera_to_worlds[3, :, 3].numpy(), [0.5 * (-3 - 2), -3, -0.25])


@pytest.mark.parametrize("up", [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0], [0.3, -0.4, 0.5], [-1, 1e-9, 0]])
def test_up_rotation_is_proper_and_sends_up_to_z(up: list[float]) -> None:
    c2w = np.broadcast_to(np.eye(4), (5, 4, 4)).copy()
    c2w[:, :3, 1] = np.array(up) / np.linalg.norm(up)
    rotation = up_rotation(c2w)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation @ c2w[0, :3, 1], [0, 0, 1], atol=1e-12)


def test_cameras_without_a_common_up_keep_the_axes(printed: list[str]) -> None:
    c2w = np.stack([np.eye(4), np.diag([-1.0, -1, 1, 1])])
    np.testing.assert_array_equal(up_rotation(c2w), np.eye(3))
    assert "no common up" in printed[0]


def test_geo_referenced_scene_gives_the_same_cameras(tmp_path: Path) -> None:
    offset = np.array([5e5, 4e6, 100.0])
    near, far = make_scene(tmp_path / "near"), make_scene(tmp_path / "far")
    for path in (far / "cams_2").iterdir():
        camera = read_cam(path)
        w2c = camera.w2c.copy()
        w2c[:3, 3] -= w2c[:3, :3] @ offset
        write_cam(path, MvsCamera(w2c, camera.intrinsics))
    rows = [[float(word) for word in line.split()[1:]] for line in OBJ.splitlines() if line[0] == "v"]
    moved = "".join("v {!r} {!r} {!r}\n".format(*(np.array(row) + offset).tolist()) for row in rows)
    (far / "mesh.obj").write_text(moved + "f 1 2 3\nf 1 3 4\n")
    first, second = outputs(near), outputs(far)
    difference = first.cameras.camera_to_worlds - second.cameras.camera_to_worlds
    assert float(difference.abs().max()) < 1e-6
    assert np.abs(second.metadata["mesh_transform"]["transform"]).max() > 3e6


@pytest.mark.parametrize("factor", ["", "_1", "_2", "_16"])
def test_folder_names(tmp_path: Path, factor: str) -> None:
    scene = make_scene(tmp_path, factor=factor)
    assert outputs(scene).image_filenames[0].parent.name == f"images{factor}"
    assert outputs(scene, downscale_factor=int(factor[1:] or 1)).image_filenames[0].parent.name == f"images{factor}"


def test_several_resolutions_need_a_choice(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    make_scene(tmp_path, factor="_4")
    (tmp_path / "images_8").mkdir()  # has no cameras: no candidate
    with pytest.raises(DataError, match="--downscale-factor: 2, 4"):
        outputs(scene)
    assert outputs(scene, downscale_factor=4).image_filenames[0].parent.name == "images_4"
    for factor in (1, 8, 16):
        with pytest.raises(DataError, match=f"holds no images_{factor} with cams_{factor}"):
            outputs(scene, downscale_factor=factor)


def test_mvsnet_numbering_and_mixed_suffixes(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, count=2, factor="")
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for name in ("00000003.JPG", "dotted.name.jpeg", "z.TIF"):
        write_image(scene / "images" / name, image)
        write_cam(scene / "cams" / f"{name.rsplit('.', 1)[0]}_cam.txt", MvsCamera(np.eye(4), K))
    (scene / "images" / "Thumbs.db").write_text("x")
    (scene / "images" / "._v00.png").write_text("x")
    names = outputs(scene, eval_mode="all").metadata["split_names"]
    assert names == ["00000003", "dotted.name", "v00", "v01", "z"]


def test_sizes_and_intrinsics_may_differ_between_photos(scene: Path) -> None:
    write_image(scene / "images_2" / "v03.png", np.zeros((30, 40, 3), np.uint8))
    k = np.array([[33.0, 0, 21], [0, 34.0, 14], [0, 0, 1]])
    write_cam(scene / "cams_2" / "v03_cam.txt", MvsCamera(read_cam(scene / "cams_2" / "v03_cam.txt").w2c, k))
    cameras = outputs(scene, eval_mode="all").cameras
    assert cameras.width.flatten().tolist()[2:5] == [24, 40, 24]
    assert cameras.height.flatten().tolist()[2:5] == [16, 30, 16]
    assert cameras.fx.flatten().tolist()[2:5] == [20, 33, 20]
    assert cameras.cy.dtype == torch.float32


def test_integer_pixel_centres_reach_the_cameras(scene: Path) -> None:
    shift = outputs(scene, pixel_center_offset=0.0).cameras.cx - outputs(scene).cameras.cx
    np.testing.assert_array_equal(shift.numpy(), 0.5)


def test_unmatched_files_are_listed_and_left_out(scene: Path, printed: list[str]) -> None:
    (scene / "cams_2" / "v01_cam.txt").unlink()
    (scene / "images_2" / "v04.png").unlink()
    names = outputs(scene, eval_mode="all").metadata["split_names"]
    assert names == ["v00", "v02", "v03", "v05", "v06", "v07"]
    text = "\n".join(printed)
    assert "without a camera left out: v01" in text
    assert "without a photo left out: v04" in text


def test_warnings_appear_once_per_parser(scene: Path, printed: list[str]) -> None:
    (scene / "cams_2" / "v01_cam.txt").unlink()
    parser = MvsnetDataParserConfig(data=scene, eval_mode="all").setup()
    for split in ("train", "val", "test"):
        parser.get_dataparser_outputs(split)
    assert len(printed) == 1


def test_skew_is_kept_as_metadata_and_reported(scene: Path, printed: list[str]) -> None:
    camera = read_cam(scene / "cams_2" / "v02_cam.txt")
    k = camera.intrinsics.copy()
    k[0, 1] = 0.1  # 0.04 px at the border: not worth a word
    write_cam(scene / "cams_2" / "v02_cam.txt", MvsCamera(camera.w2c, k))
    assert outputs(scene, eval_mode="all").metadata["skew"][2] == 0.1
    assert not printed
    k[0, 1] = 2.0
    write_cam(scene / "cams_2" / "v02_cam.txt", MvsCamera(camera.w2c, k))
    outputs(scene, eval_mode="all")
    assert "1 cameras have skew" in printed[0]
    assert "0.76 px" in printed[0]


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_intrinsics_for_another_resolution_are_noticed(scene: Path, factor: float) -> None:
    for path in (scene / "cams_2").iterdir():
        camera = read_cam(path)
        write_cam(path, MvsCamera(camera.w2c, np.diag([factor, factor, 1]) @ camera.intrinsics))
    with pytest.raises(DataError, match="another downscale factor") as caught:
        outputs(scene)
    assert caught.value.file.endswith("v00_cam.txt")
    assert "24x16" in caught.value.problem


def test_off_centre_but_honest_principal_points_pass(scene: Path) -> None:
    k = K.copy()
    k[:2, 2] = 0.35 * WIDTH, 0.62 * HEIGHT
    path = scene / "cams_2" / "v00_cam.txt"
    write_cam(path, MvsCamera(read_cam(path).w2c, k))
    assert float(outputs(scene, eval_mode="all").cameras.cx[0]) == pytest.approx(0.35 * WIDTH)


def test_mesh_selection(scene: Path) -> None:
    (scene / "other.obj").write_text(OBJ)
    with pytest.raises(DataError, match=r"holds 2 meshes: mesh.obj, other.obj") as caught:
        outputs(scene)
    assert "--mesh" in caught.value.remedy
    for named in (scene / "other.obj", Path("other.obj")):
        assert outputs(scene, mesh=named).metadata["mesh_path"] == str((scene / "other.obj").resolve())
    with pytest.raises(DataError, match=r"mesh.obj, other.obj"):
        outputs(scene, mesh=Path("absent.ply"))


def test_scene_without_a_mesh(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, mesh=False)
    with pytest.raises(DataError, match="holds no mesh"):
        outputs(scene)
    part = outputs(scene, require_mesh=False, eval_mode="all")
    assert part.metadata["mesh_path"] is None
    centres = part.cameras.camera_to_worlds[:, :, 3]
    np.testing.assert_allclose([centres.min(), centres.max()], [-1, 1])


def test_known_normalisation_needs_no_mesh(scene: Path) -> None:
    before = outputs(scene)
    (scene / "mesh.obj").unlink()
    parser = MvsnetDataParserConfig(data=scene).setup()
    stored = before.metadata["mesh_transform"]
    parser.normalization = Normalization(np.array(stored["transform"]), stored["scale"])
    after = parser.get_dataparser_outputs("train")
    assert torch.equal(after.cameras.camera_to_worlds, before.cameras.camera_to_worlds)
    assert after.metadata["mesh_path"] is None


def test_a_changed_mesh_is_measured_again(scene: Path) -> None:
    assert outputs(scene).dataparser_scale == 0.5
    (scene / "mesh.obj").write_text(OBJ.replace("4 0 0", "16 0 0"))
    assert outputs(scene).dataparser_scale == 0.125


def test_same_rays_before_and_after_normalisation(scene: Path) -> None:
    """nerfstudio's rays, moved back to the world of the files, leave the camera centre through the pixel (A8)."""
    part = outputs(scene, eval_mode="all")
    space = part.metadata["mesh_transform"]
    transform, scale = np.array(space["transform"]), space["scale"]
    camera = read_cam(scene / "cams_2" / "v05_cam.txt")
    coords = torch.tensor([[0.5, 0.5], [3.5, 20.5], [15.5, 23.5]])  # (row, column)
    rays = part.cameras.generate_rays(camera_indices=torch.full((3, 1), 5), coords=coords)
    points = (rays.origins + 2.0 * rays.directions).double().numpy()
    world = (points / scale - transform[:, 3]) @ transform[:, :3]
    pixels, depth = project(world, camera.intrinsics, camera.w2c)
    assert (depth > 0).all()
    np.testing.assert_allclose(pixels, coords.numpy()[:, ::-1], atol=1e-4)
