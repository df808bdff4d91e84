"""Demo scenes: pictures against a one-ray twin, files against independent readers, shapes against formulas."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from core_ns import demo_meshes, demo_scenes
from core_ns.demo_scenes import build_demo_scene, make_demo_scene
from core_ns.demo_textures import EXTENT, SUN, VOXELS, Noise
from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, camera_directions, project
from core_ns.raycast import make_caster

SMALL = {"views": 4, "test_views": 1, "width": 20, "height": 14, "mesh_faces": 1500}


@pytest.fixture(scope="module")
def monument():
    return build_demo_scene(**SMALL)


@pytest.fixture(scope="module")
def quad():
    return build_demo_scene(variant="quad", views=4, test_views=0, width=24, height=24, mesh_faces=200)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "scene"
    return folder, make_demo_scene(folder, **SMALL, supersample=2)


def _numbers(lines: list[str]) -> np.ndarray:
    return np.array([[float(word) for word in line.split()] for line in lines])


def test_every_file_of_the_layout_is_there_and_complete(written):
    folder, scene = written
    assert sorted(path.name for path in folder.iterdir()) == [
        "cams",
        "images",
        "scene.ply",
        "test_views.txt",
        "transforms.json",
    ]
    assert [path.stem for path in sorted((folder / "images").iterdir())] == list(scene.names)
    assert not list(folder.parent.glob(".tmp*"))
    assert folder.stat().st_mode & 0o700 == 0o700
    for view, name in enumerate(scene.names):
        pixels = np.asarray(Image.open(folder / "images" / f"{name}.png"))
        assert pixels.shape == (14, 20, 3)
        expected = scene.render(scene.poses[view], scene.intrinsics, 20, 14, 2).rgb.numpy()
        assert np.abs(pixels - 255 * expected).max() <= 0.501


def test_cam_files_hold_the_pose_exactly_and_a_depth_range_that_fits(written):
    folder, scene = written
    for pose, name in zip(scene.poses, scene.names, strict=True):
        lines = (folder / "cams" / f"{name}_cam.txt").read_text().splitlines()
        assert (lines[0], lines[6]) == ("extrinsic", "intrinsic")
        assert np.array_equal(_numbers(lines[1:5]), pose)
        assert np.array_equal(_numbers(lines[7:10]), scene.intrinsics)
        near, interval, count, far = _numbers(lines[11:12])[0]
        depths = project(scene.vertices.astype(np.float64), scene.intrinsics, pose)[1]
        assert near == pytest.approx(depths[depths > 0].min(), rel=1e-4)
        assert near + interval * (count - 1) == pytest.approx(far, rel=1e-4)
        assert far == pytest.approx(depths.max(), rel=1e-4)


def test_mesh_file_reads_back_as_the_mesh_that_was_cast(written):
    import trimesh

    folder, scene = written
    mesh = trimesh.load(folder / "scene.ply", process=False)
    assert np.array_equal(np.asarray(mesh.vertices, dtype=np.float32), scene.vertices)
    assert np.array_equal(mesh.faces, scene.faces)
    assert mesh.area_faces.min() > 0


def test_transforms_hold_the_same_cameras_in_opengl_axes(written):
    folder, scene = written
    content = json.loads((folder / "transforms.json").read_text())
    intrinsics = np.array([[content["fl_x"], 0, content["cx"]], [0, content["fl_y"], content["cy"]], [0, 0, 1]])
    assert np.array_equal(intrinsics, scene.intrinsics)
    assert (content["w"], content["h"]) == (20, 14)
    for frame, pose in zip(content["frames"], scene.poses, strict=True):
        assert (folder / frame["file_path"]).is_file()
        flipped = np.linalg.inv(pose) @ np.diag([1.0, -1.0, -1.0, 1.0])
        np.testing.assert_allclose(np.array(frame["transform_matrix"]), flipped, atol=1e-12)
    held_out = {f"images/{name}.png" for name in (folder / "test_views.txt").read_text().split()}
    assert set(content["test_filenames"]) == set(content["val_filenames"]) == held_out
    assert set(content["train_filenames"]) == {frame["file_path"] for frame in content["frames"]} - held_out


def test_jpeg_without_test_views_and_without_transforms(tmp_path):
    (tmp_path / "empty").mkdir()
    make_demo_scene(
        tmp_path / "empty", **{**SMALL, "views": 2, "test_views": 0}, supersample=1, suffix="jpg", transforms=False
    )
    assert sorted(path.name for path in (tmp_path / "empty").rglob("*") if path.is_file()) == [
        "00000.jpg",
        "00000_cam.txt",
        "00001.jpg",
        "00001_cam.txt",
        "scene.ply",
    ]


def test_pixels_equal_a_twin_that_follows_one_ray_at_a_time(monument):
    """Rays from core_ns.frames' OpenGL route, hits by brute force over all faces."""
    size, supersample = (monument.width, monument.height), 2
    picture = monument.render(monument.poses[2], monument.intrinsics, *size, supersample)
    vertices, faces = torch.from_numpy(monument.vertices), torch.from_numpy(monument.faces)
    brute = make_caster(vertices, faces, torch.device("cpu"), "torch")
    c2w = c2w_opengl_from_w2c_opencv(monument.poses[2])
    normals = torch.from_numpy(monument.normals)
    for row, column in [(0, 0), (13, 19), (5, 4), (6, 10), (8, 13), (10, 9), (12, 2)]:
        colours, hit_count = [], 0
        for i in range(supersample):
            for j in range(supersample):
                pixel = np.array([[column + (j + 0.5) / supersample, row + (i + 0.5) / supersample]])
                world = camera_directions(pixel, monument.intrinsics) @ c2w[:3, :3].T
                direction = torch.tensor(world / np.linalg.norm(world), dtype=torch.float32)
                hits = brute.cast(torch.tensor(c2w[None, :3, 3], dtype=torch.float32), direction)
                if not hits.hit[0]:
                    colours.append(monument.sky(direction)[0])
                    continue
                hit_count += 1
                b0, b1 = hits.barycentric[0]
                a, b, c = faces[hits.face[0]]
                point = b0 * vertices[a] + b1 * vertices[b] + (1 - b0 - b1) * vertices[c]
                normal = b0 * normals[a] + b1 * normals[b] + (1 - b0 - b1) * normals[c]
                colours.append(monument.colour(point[None], (normal / normal.norm())[None], direction)[0])
        assert float(picture.coverage[row, column]) == hit_count / supersample**2
        # One sub-sample in four may fall on the other side of a joint or shadow edge through float32 rounding.
        torch.testing.assert_close(picture.rgb[row, column], torch.stack(colours).mean(0), atol=2e-2, rtol=0)


@pytest.mark.parametrize("variant", ["monument", "quad"])
def test_supersampling_is_the_mean_of_a_finer_picture(variant, monument, quad, monkeypatch):
    scene = monument if variant == "monument" else quad
    fine_intrinsics = np.diag([4.0, 4.0, 1.0]) @ scene.intrinsics
    fine = scene.render(scene.poses[1], fine_intrinsics, 4 * scene.width, 4 * scene.height, 1)
    monkeypatch.setattr(demo_scenes, "BLOCK", 1000)  # several blocks, the last one shorter
    coarse = scene.render(scene.poses[1], scene.intrinsics, scene.width, scene.height, 4)
    mean = fine.rgb.view(scene.height, 4, scene.width, 4, 3).mean(dim=(1, 3))
    assert (coarse.rgb - mean).abs().median() < 1e-5
    assert (coarse.rgb - mean).abs().max() < 0.05
    share = fine.coverage.view(scene.height, 4, scene.width, 4).mean(dim=(1, 3))
    assert (coarse.coverage - share).abs().max() <= 1 / 16
    assert 0.1 < float(share.mean()) < 0.98


def test_hit_points_project_back_to_their_pixels_and_a_centred_camera_would_not(monument):
    c2w = c2w_opengl_from_w2c_opencv(monument.poses[0])
    u, v = (x.reshape(-1) + 0.5 for x in np.meshgrid(np.arange(20), np.arange(14)))
    pixels = np.stack([u, v], axis=-1)
    world = camera_directions(pixels, monument.intrinsics) @ c2w[:3, :3].T
    dirs = torch.tensor(world / np.linalg.norm(world, axis=-1, keepdims=True), dtype=torch.float32)
    origins = torch.tensor(c2w[:3, 3], dtype=torch.float32).expand_as(dirs).contiguous()
    hits = monument.cast(origins, dirs)
    points = (origins + hits.t[:, None] * dirs)[hits.hit].double().numpy()
    back, _ = project(points, monument.intrinsics, monument.poses[0])
    assert np.abs(back - pixels[hits.hit.numpy()]).max() < 0.02
    centred = monument.intrinsics.copy()
    centred[:2, 2] = [10, 7]
    shifted, _ = project(points, centred, monument.poses[0])
    assert np.abs(shifted - back).min() >= 0.99


def test_cameras_are_rigid_distinct_upright_and_at_many_heights_and_distances():
    scene = build_demo_scene(views=40, test_views=6, mesh_faces=1500)
    rotations = scene.poses[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (40, 3, 3)), atol=1e-12
    )
    assert (np.linalg.det(rotations) > 0).all()
    centres = -np.einsum("nji,nj->ni", rotations, scene.poses[:, :3, 3])
    assert np.ptp(centres[:, 2]) > 2
    distances = np.linalg.norm(centres, axis=-1)
    assert distances.max() / distances.min() > 2
    assert (centres[:, 2] > 0.5).all()
    assert (rotations[:, 1, 2] < 0).all()  # the image's down axis points down
    assert (2 * scene.intrinsics[:2, 2] % 2 == 0).all()
    assert len(set(scene.test_names)) == 6
    gaps = np.diff([int(name) for name in scene.test_names])
    assert set(gaps) <= {6, 7}


def test_the_orb_is_closed_and_has_the_radius_of_its_formula():
    directions, faces = demo_meshes.sphere_directions(6)
    assert len(faces) == 12 * 36
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(directions) - 3 * len(faces) // 2 + len(faces) == 2  # Euler
    corners = directions[faces]
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert 0.9 * 4 / 3 * np.pi < volume < 4 / 3 * np.pi  # positive: faces turn outwards
    radius = demo_meshes.orb_radius(directions, 0)
    assert radius.min() > 0.5 * demo_meshes.ORB_RADIUS
    assert np.ptp(radius) > 0.1 * demo_meshes.ORB_RADIUS
    surface = demo_meshes.monument(8000, 0)
    orb = np.linalg.norm(surface.vertices - demo_meshes.ORB_CENTRE, axis=-1) < 1.0
    orb &= surface.vertices[:, 2] > demo_meshes.PLINTH_TOP + 0.05
    offset = surface.vertices[orb] - demo_meshes.ORB_CENTRE
    length = np.linalg.norm(offset, axis=-1, keepdims=True)
    np.testing.assert_allclose(length[:, 0], demo_meshes.orb_radius(offset / length, 0), rtol=1e-9)


def test_shading_normals_are_unit_and_lie_on_the_outer_side_of_their_faces():
    for surface in (demo_meshes.monument(4000, 3), demo_meshes.quad(50)):
        np.testing.assert_allclose(np.linalg.norm(surface.normals, axis=-1), 1.0, atol=1e-6)
        corners = surface.vertices[surface.faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        agreement = np.einsum("fj,fkj->fk", across, surface.normals[surface.faces])
        assert agreement.min() > 0
    tube = demo_meshes.revolve([(0.5, 0.0), (0.5, 1.0)], 16)
    assert np.einsum("ij,ij->i", tube.normals[:, :2], tube.vertices[:, :2]).min() > 0.49
    assert (demo_meshes.box(1.0, 0.0, 2.0).normals * (demo_meshes.box(1.0, 0.0, 2.0).vertices - [0, 0, 1])).sum(
        1
    ).min() > 0


@pytest.mark.parametrize("faces", [3000, 20000, 60000])
def test_the_face_budget_is_kept_roughly(faces):
    assert 0.8 * faces <= len(demo_meshes.monument(faces, 0).faces) <= 1.05 * faces
    assert 0.8 * faces <= len(demo_meshes.quad(faces).faces) <= 1.05 * faces


def test_the_shadow_of_a_column_ball_falls_where_the_sun_says(monument):
    ball = np.array(
        [*demo_meshes.column_centres()[0], demo_meshes.COLUMN_PROFILE[-1][1] + 0.85 * demo_meshes.FINIAL_RADIUS]
    )
    sun = SUN.double().numpy()
    foot = ball - sun * ball[2] / sun[2]
    aside = foot + np.array([sun[1], -sun[0], 0.0]) / np.hypot(*sun[:2]) * 2.5 * demo_meshes.FINIAL_RADIUS
    points = torch.tensor(np.stack([foot, aside]), dtype=torch.float32)
    up, down = torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3), torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3)
    assert np.linalg.norm(points.numpy()[:, :2], axis=-1).max() < demo_meshes.PLAZA_RADIUS
    seen = monument.colour(points, up, down)
    lit = monument.looks.colour(points, up, down, torch.tensor([True, True]))
    dark = monument.looks.colour(points, up, down, torch.tensor([False, False]))
    assert torch.equal(seen[0], dark[0])
    assert torch.equal(seen[1], lit[1])
    assert (lit - dark).min() > 0.05


def test_the_quad_looks_the_same_from_everywhere_and_the_monument_nearly(monument, quad):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator) * 2 - 1
    points[:, 2] = 0
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(500, 3)
    mirror = SUN * torch.tensor([1.0, 1.0, -1.0])  # sees the sun's reflection in level surfaces
    dirs = [direction.expand(500, 3) for direction in (mirror, -SUN)]
    assert torch.equal(quad.colour(points, up, dirs[0]), quad.colour(points, up, dirs[1]))
    points = 0.85 * points + torch.tensor([0.0, 0.0, demo_meshes.PLINTH_TOP])
    glossy, plain = (monument.colour(points, up, direction) for direction in dirs)
    assert float((glossy - plain).amax()) > 0.03  # the highlight
    assert float((glossy - plain).abs().mean()) < 0.1


def test_colours_are_finite_in_range_and_follow_the_seed(monument):
    generator = torch.Generator().manual_seed(1)
    dirs = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1)
    points, normals = 3 * torch.randn(4000, 3, generator=generator), -dirs
    for values in (monument.colour(points, normals, dirs), monument.sky(dirs)):
        assert bool(values.isfinite().all())
        assert float(values.min()) >= 0.0
        assert float(values.max()) <= 1.0
    again, other = build_demo_scene(**SMALL), build_demo_scene(**SMALL, seed=1)
    assert torch.equal(again.sky(dirs), monument.sky(dirs))
    assert np.array_equal(again.vertices, monument.vertices)
    assert not torch.allclose(other.sky(dirs), monument.sky(dirs))
    assert not np.allclose(other.vertices, monument.vertices)


def test_noise_is_periodic_normalised_and_as_fine_as_asked():
    noise = Noise(0)
    points = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = noise(points, 1.0)
    assert float(values.mean(0).abs().max()) < 0.05
    assert values.std(0) == pytest.approx(torch.ones(3), abs=0.15)
    torch.testing.assert_close(noise(points + 2.0, 1.0), values, atol=1e-3, rtol=0)
    torch.testing.assert_close(noise(points * 0.25, 0.25), values, atol=1e-3, rtol=0)
    for detail in (1024, 4096):
        looks = build_demo_scene(**SMALL, texture_detail=detail).looks
        # Texels are the table's voxels: so many of them lie side by side across the plaza.
        assert EXTENT / (looks.fine_tile / VOXELS) == pytest.approx(detail)
        line = torch.zeros(4096, 3)
        line[:, 0] = torch.linspace(0, looks.fine_tile, 4097)[:-1]
        power = torch.fft.rfft(looks.grain(line)[:, 0]).abs() ** 2
        assert float(power[4 : VOXELS // 2].sum() / power[1:].sum()) > 0.5


@pytest.mark.parametrize("kind", ["file", "filled"])
def test_a_target_in_use_is_refused_and_left_alone(tmp_path, kind):
    target = tmp_path / "scene"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"not empty|is a file") as caught:
        make_demo_scene(target, **SMALL)
    assert str(target) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_half_way_leaves_nothing_and_restores_the_threads(tmp_path, monkeypatch):
    written, threads = [], torch.get_num_threads()

    def fail_at_the_third(path, pixels):
        written.append(path)
        if len(written) >= 3:
            raise OSError("disk full")

    monkeypatch.setattr(demo_scenes, "write_image", fail_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        make_demo_scene(tmp_path / "deep" / "scene", **SMALL, supersample=1)
    assert len(written) >= 3
    assert list((tmp_path / "deep").iterdir()) == []
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "wrong", [{"views": 0}, {"test_views": 4}, {"width": 1}, {"texture_detail": 0}, {"seed": -1}, {"supersample": 0}]
)
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"need|must"):
        make_demo_scene(tmp_path / "scene", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_scene_and_explains_a_refusal(tmp_path, monkeypatch, capsys):
    target = tmp_path / "scene"
    command = ["ns-demo-scene", "--output-dir", str(target), "--views", "3", "--test-views", "1", "--width", "8"]
    command += ["--height", "6", "--supersample", "1", "--mesh-faces", "1500", "--variant", "quad"]
    monkeypatch.setattr(sys, "argv", command)
    demo_scenes.entrypoint()
    assert "3 views (1 for testing)" in capsys.readouterr().out
    assert len(list((target / "images").iterdir())) == 3
    with pytest.raises(SystemExit) as caught:
        demo_scenes.entrypoint()
    assert "not empty" in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["ns-demo-scene", "--help"])
    with pytest.raises(SystemExit) as caught:
        demo_scenes.entrypoint()
    assert caught.value.code == 0
    assert "texels across the plaza" in " ".join(capsys.readouterr().out.replace("│", " ").split())
