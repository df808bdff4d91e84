"""Whole conversions of synthetic projects whose photos are cast from a textured mesh, and what errors leave behind."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from convert_projects import FAR, LENS, NUDGE, POSES, Project, colmap_project, hills, picture

from core_ns.errors import DataError
from core_ns.images import image_size, read_image, write_image
from dataparsers.colmap_model import write_binary
from dataparsers.metashape import to_world_frame
from dataparsers.mvsnet import read_cam
from dataparsers.undistort import Calibration, project_distorted
from xscale_ns.convert import convert_colmap, convert_metashape


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_written_cameras_see_the_written_pictures(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.convert(frame="local", mesh=project.mesh)
    names = [f"IMG_{i}" for i in range(6)]
    assert tree(project.out) == sorted(
        ["cams_1", "images_1", "model.ply"]
        + [f"cams_1/{name}_cam.txt" for name in names]
        + [f"images_1/{name}.PNG" for name in names]
    )
    assert (done.names, done.skipped, done.frame) == (tuple(names), (("lost", "not aligned"),), "local")
    assert "skipped lost: not aligned" in project.lines
    assert any("6 of 6 cameras see the mesh" in line for line in project.lines)
    for i, w2c in enumerate(POSES):
        camera = read_cam(project.out / "cams_1" / f"IMG_{i}_cam.txt")
        np.testing.assert_allclose(camera.w2c, w2c, rtol=0, atol=1e-9)
        rgb, _ = read_image(project.out / "images_1" / f"IMG_{i}.PNG")
        height, width = rgb.shape[:2]
        k = camera.intrinsics
        assert (k[0, 1], k[0, 2], k[1, 2]) == (0.0, width / 2, height / 2)
        pinhole = Calibration(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        expected = picture(pinhole, camera.w2c).astype(float)
        error = np.abs(rgb - expected).mean()
        assert error < 2.0
        # The same comparison notices a principal point that is off by one pixel.
        assert np.abs(rgb - picture(replace(pinhole, cx=pinhole.cx + 1.0), camera.w2c)).mean() > 2 * error


def test_downscale_scales_each_axis_by_the_real_ratio(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.convert(frame="local")
    full = [read_cam(project.out / "cams_1" / f"IMG_{i}_cam.txt").intrinsics for i in range(6)]
    big, _ = read_image(project.out / "images_1" / "IMG_0.PNG")
    project.out = tmp_path / "small"
    project.convert(frame="local", downscale=5)
    height, width = big.shape[:2]
    assert (width % 5, height % 5) != (0, 0)
    for i in range(6):
        assert image_size(project.out / "images_5" / f"IMG_{i}.PNG") == (width // 5, height // 5)
        k = read_cam(project.out / "cams_5" / f"IMG_{i}_cam.txt").intrinsics
        ratio = np.array([width // 5 / width, height // 5 / height, 1.0])
        np.testing.assert_allclose(k, ratio[:, None] * full[i], rtol=0, atol=1e-9)
        assert np.abs(k - full[i] / [[5], [5], [1]]).max() > 0.02  # the original's exact 1/D
    small, _ = read_image(project.out / "images_5" / "IMG_0.PNG")
    # Area filter: the mean survives, which picking every fifth pixel would not guarantee.
    assert np.abs(small.mean(axis=(0, 1)) - big.mean(axis=(0, 1))).max() < 1.0


def test_fixture_project_differs_from_the_original_where_it_should(shared_fixtures: Path, tmp_path: Path) -> None:
    folder = shared_fixtures / "xscale" / "metashape"
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("IMG_0001", (50, 66)), ("IMG_0002", (50, 66)), ("IMG_0003", (40, 60)), ("IMG_0006", (40, 60))):
        write_image(photos / f"{name}.JPG", np.full((*size, 3), 90, np.uint8))
    for d in (1, 4):
        out = tmp_path / f"scene{d}"
        convert_metashape(folder / "cams.xml", photos, out, frame="local", downscale=d, say=lambda _: None)
        assert {path.name[:8] for path in (out / f"cams_{d}").iterdir()} == {
            "IMG_0001", "IMG_0002", "IMG_0003", "IMG_0006",
        }  # fmt: skip
        for name in ("IMG_0001", "IMG_0002", "IMG_0003"):
            ours = read_cam(out / f"cams_{d}" / f"{name}_cam.txt")
            theirs = read_cam(folder / f"upstream_cams_{d}" / f"{name}_cam.txt")
            np.testing.assert_allclose(ours.w2c, theirs.w2c, atol=1e-9)
            gap = np.abs(ours.intrinsics - theirs.intrinsics).max()
            assert (gap < 1e-5) if name == "IMG_0003" else gap > 0.5
    # 60x40 without distortion: the photo is taken over byte for byte, with its off-centre principal point.
    assert (tmp_path / "scene1/images_1/IMG_0003.JPG").read_bytes() == (photos / "IMG_0003.JPG").read_bytes()


@pytest.mark.parametrize("frame", ["local", "world"])
def test_auto_frame_by_photos_when_both_frames_hit(tmp_path: Path, frame: str) -> None:
    project = Project(tmp_path, NUDGE, mesh_frame=frame)
    done = project.convert(mesh=project.mesh)
    assert done.frame == frame
    text = "\n".join(project.lines)
    assert "frame local: 6 of 6 cameras see the mesh" in text
    assert "frame world: 6 of 6 cameras see the mesh" in text
    assert f"frame: {frame} (the photos agree better there)" in text
    expected = [to_world_frame(w2c, NUDGE) for w2c in POSES] if frame == "world" else POSES
    for i, w2c in enumerate(expected):
        found = read_cam(project.out / "cams_1" / f"IMG_{i}_cam.txt").w2c
        np.testing.assert_allclose(found, w2c, rtol=0, atol=1e-9)


@pytest.mark.parametrize("frame", ["local", "world"])
def test_auto_frame_by_hits_far_from_the_origin(tmp_path: Path, frame: str) -> None:
    transform = replace(FAR, translation=FAR.translation * [1.0, 0.2, 1.0])  # 964 km: not yet geocentric
    project = Project(tmp_path, transform, mesh_frame=frame)
    assert project.convert(mesh=project.mesh).frame == frame
    assert any(f"frame: {frame} (the only one" in line for line in project.lines)


def test_frame_without_transform_or_mesh(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.convert().frame == "local"
    (tmp_path / "b").mkdir()
    project = Project(tmp_path / "b", NUDGE)
    with pytest.raises(DataError, match="Give --mesh, or --frame"):
        project.convert()
    with pytest.raises(DataError, match="'up' is not a frame"):
        project.convert(frame="up")
    assert not project.out.exists()


def test_mesh_that_nobody_sees(tmp_path: Path) -> None:
    project = Project(tmp_path, NUDGE)
    vertices, faces = hills()
    trimesh.Trimesh(vertices + np.array([0, 0, 50]), faces, process=False).export(project.mesh)
    with pytest.raises(DataError, match=r"in no frame.*local: 0 of 6.*world: 0 of 6.*same coordinate system"):
        project.convert(mesh=project.mesh)
    assert not project.out.parent.exists()
    project.convert(mesh=project.mesh, frame="local")
    assert any(line.startswith("warning: cameras and mesh do not share a frame") for line in project.lines)


def test_geographic_chunks(tmp_path: Path) -> None:
    project = Project(tmp_path, FAR, mesh_frame="local")
    with pytest.raises(DataError, match=r"earth-centred.*Local Coordinates.*--model-shift"):
        project.convert(frame="world")
    assert project.convert(mesh=project.mesh).frame == "local"
    # A model exported with a shift: world coordinates minus the shift.
    (tmp_path / "b").mkdir()
    project = Project(tmp_path / "b", FAR, mesh_frame="world")
    shift = (512000.0, 4100000.0, 0.0)
    vertices, faces = hills()
    shifted = FAR.scale * vertices @ FAR.rotation.T + FAR.translation - shift
    project.mesh = tmp_path / "b" / "shifted.ply"
    trimesh.Trimesh(shifted, faces, process=False).export(project.mesh)
    with pytest.raises(DataError, match=r"in no frame.*--model-shift"):
        project.convert(mesh=project.mesh)
    assert project.convert(mesh=project.mesh, model_shift=shift).frame == "world"
    w2c = read_cam(project.out / "cams_1" / "IMG_0_cam.txt").w2c
    local_point = np.array([0.1, 0.2, 0.3])
    point = FAR.scale * FAR.rotation @ local_point + FAR.translation - shift
    np.testing.assert_allclose(
        w2c[:3, :3] @ point + w2c[:3, 3],
        FAR.scale * (POSES[0][:3, :3] @ local_point + POSES[0][:3, 3]),
        atol=1e-8,
    )


def test_kept_distortion_is_what_nerfstudio_casts(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.convert(frame="local", keep_distortion=True, downscale=1, mesh=project.mesh)
    assert not any("cannot hold the skew" in line for line in project.lines)  # 0.14 px do not show
    assert (project.out / "images" / "IMG_3.PNG").read_bytes() == (project.images / "IMG_3.PNG").read_bytes()
    record = json.loads((project.out / "transforms.json").read_text())
    assert [frame["file_path"] for frame in record["frames"]] == [f"images/IMG_{i}.PNG" for i in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

        config = NerfstudioDataParserConfig(
            data=project.out, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all"
        )
        cameras = config.setup().get_dataparser_outputs("train").cameras
        pixels = torch.tensor([[3.5, 4.5], [60.5, 90.5], [36.0, 48.0]])  # y, x
        rays = cameras.generate_rays(2, coords=pixels)
    points = (rays.origins + 2.5 * rays.directions).double().numpy()
    found, _ = project_distorted(points, replace(LENS, skew=0.0), POSES[2])
    np.testing.assert_allclose(found, pixels.flip(-1).numpy(), atol=2e-3)


def test_kept_distortion_downscaled(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.convert(frame="local", keep_distortion=True, downscale=7)
    frame = json.loads((project.out / "transforms.json").read_text())["frames"][0]
    assert frame["file_path"] == "images_7/IMG_0.PNG"
    assert image_size(project.out / frame["file_path"]) == (13, 10) == (frame["w"], frame["h"])
    assert frame["fl_x"] == pytest.approx(80.5 * 13 / 96)
    assert frame["cy"] == pytest.approx(35.0 * 10 / 72)
    assert [frame[name] for name in ("k1", "k4", "p1", "p2")] == [-0.12, 0.001, 0.003, -0.002]


def test_large_skew_is_resampled_away_or_reported(tmp_path: Path) -> None:
    project = Project(tmp_path)
    change_xml("<b2>-0.3", "<b2>-2")(project)
    project.convert(frame="local", keep_distortion=True)
    assert any("cannot hold the skew of 6 views (up to 0.91 px)" in line for line in project.lines)
    xml = project.xml.read_text()
    for term in ("k1", "k2", "k3", "k4", "p1", "p2"):
        xml = xml.replace(f"<{term}>", f"<unused_{term}>").replace(f"</{term}>", f"</unused_{term}>")
    for skew, kept in (("-2", False), ("-0.3", True)):
        project.xml.write_text(xml.replace("<b2>-2", f"<b2>{skew}"))
        project.out = tmp_path / f"scene{skew}"
        project.convert(frame="local")
        intrinsics = read_cam(project.out / "cams_1" / "IMG_0_cam.txt").intrinsics
        assert intrinsics[0, 1] == (float(skew) if kept else 0.0)
        assert (image_size(project.out / "images_1" / "IMG_0.PNG") == (96, 72)) is kept


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (project.images / "IMG_4.PNG").write_bytes((project.images / "IMG_4.PNG").read_bytes()[:300])
    before = tree(tmp_path)
    with pytest.raises(DataError, match="IMG_4"):
        project.convert(frame="local", mesh=project.mesh)
    assert tree(tmp_path) == before
    # An empty folder that was there stays, and is filled by the next successful run.
    project.out.mkdir(parents=True)
    with pytest.raises(DataError, match="IMG_4"):
        project.convert(frame="local")
    assert tree(project.out.parent) == ["scene"]
    (project.images / "IMG_4.PNG").unlink()
    assert ("img_4", f"no photo in {project.images}") in project.convert(frame="local").skipped
    assert len(list((project.out / "images_1").iterdir())) == 5
    before = tree(tmp_path)
    with pytest.raises(DataError, match="not an empty folder"):
        project.convert(frame="local")
    assert tree(tmp_path) == before


def test_interrupts_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    before = tree(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xscale_ns.convert.write_cam", interrupt)
    with pytest.raises(KeyboardInterrupt):
        project.convert(frame="local")
    assert tree(tmp_path) == before


def change_xml(old: str, new: str) -> Callable[[Project], None]:
    return lambda project: project.xml.write_text(project.xml.read_text().replace(old, new))


REQUESTS = {
    "downscale": (lambda p: None, {"downscale": 0}, "0 is not a positive"),
    "too small": (lambda p: None, {"downscale": 200}, "shrunk by 200 are none"),
    "mesh": (lambda p: None, {"mesh": "nowhere.ply"}, "nowhere.ply.*not a file"),
    "shift": (lambda p: None, {"model_shift": (1.0, float("nan"), 0.0)}, "three finite numbers"),
    "world": (lambda p: None, {"frame": "world"}, "Use --frame local"),
    "twins": (change_xml("label='img_1'", "label='IMG_0.png'"), {}, "same name as"),
    "cropped": (
        lambda p: write_image(p.images / "IMG_1.PNG", np.zeros((70, 96, 3), np.uint8)),
        {},
        "camera 'img_1'.*IMG_1.PNG is 96x70, its calibration 96x72",
    ),
    "fold": (change_xml("<k1>-0.12", "<k1>-3.0"), {}, "folds back.*keep-distortion"),
    "labels": (change_xml("img_", "dsc_"), {}, "no camera has a photo"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_cannot_be_met(tmp_path: Path, name: str) -> None:
    project = Project(tmp_path)
    spoil, options, message = REQUESTS[name]
    spoil(project)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=message):
        project.convert(**{"frame": "local", **options})
    assert tree(tmp_path) == before


def test_photos_scaled_as_a_whole_take_their_calibration_along(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for i in range(6):
        write_image(project.images / f"IMG_{i}.PNG", picture(LENS.resized(48, 36), POSES[i]))
    project.convert(frame="local", keep_distortion=True)
    frame = json.loads((project.out / "transforms.json").read_text())["frames"][0]
    assert (frame["w"], frame["h"]) == (48, 36)
    assert frame["fl_x"] == pytest.approx(80.5 / 2)


def test_transparency_survives(tmp_path: Path) -> None:
    project = Project(tmp_path)
    rgb = picture(LENS, POSES[0])
    alpha = np.zeros((72, 96), np.uint8)
    alpha[:, 48:] = 255
    write_image(project.images / "IMG_0.PNG", np.dstack([rgb, alpha]))
    project.convert(frame="local", downscale=2)
    _, found = read_image(project.out / "images_2" / "IMG_0.PNG")
    assert found is not None
    assert found[:, :18].max() == 0
    assert found[:, -18:].min() == 255


def test_links_share_the_file(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.convert(frame="local", keep_distortion=True, mesh=project.mesh, link=True)
    assert os.path.samefile(project.mesh, project.out / "model.ply")
    assert os.path.samefile(project.images / "IMG_0.PNG", project.out / "images" / "IMG_0.PNG")


@pytest.mark.parametrize(("model", "form"), [("OPENCV", "bin"), ("PINHOLE", "txt")])
def test_colmap_scene(tmp_path: Path, model: str, form: str) -> None:
    source = colmap_project(tmp_path, model, form)
    lines: list[str] = []
    out = tmp_path / "scene"
    done = convert_colmap(tmp_path, tmp_path / "photos", out, mesh=tmp_path / "meshed-poisson.ply", say=lines.append)
    assert set(done.names) == {f"strip{i % 2}__view.{i}" for i in range(6)}
    assert any("6 of 6 cameras see the mesh" in line for line in lines)
    assert (out / "meshed-poisson.ply").is_file()
    for i, w2c in enumerate(POSES):
        key = f"strip{i % 2}__view.{i}"
        camera = read_cam(out / "cams_1" / f"{key}_cam.txt")
        np.testing.assert_allclose(camera.w2c, w2c, rtol=0, atol=1e-12)
        rgb, _ = read_image(out / "images_1" / f"{key}.png")
        k = camera.intrinsics
        pinhole = Calibration(rgb.shape[1], rgb.shape[0], k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        error = np.abs(rgb - picture(pinhole, camera.w2c).astype(float)).mean()
        assert error < (2.0 if model == "OPENCV" else 0.01)
        depths = source.points.xyz @ w2c[2, :3] + w2c[2, 3]
        assert camera.depth is not None
        near, interval, number, far = camera.depth
        assert (near, far) == pytest.approx(tuple(np.quantile(depths, [0.01, 0.99])))
        assert near + interval * (number - 1) == pytest.approx(far)
    if model == "PINHOLE":
        np.testing.assert_array_equal(k, [[80.0, 0, 48.5], [0, 79.0, 35.5], [0, 0, 1]])


def test_colmap_options_and_errors(tmp_path: Path) -> None:
    source = colmap_project(tmp_path)
    photos = tmp_path / "photos"

    def convert(out: str, **options):
        return convert_colmap(tmp_path, photos, tmp_path / out, say=lambda _: None, **options)

    (photos / "strip1/view.1.png").unlink()
    (photos / "strip1/view.3.png").rename(photos / "strip1/VIEW.3.PNG")
    done = convert("a", depth_line=False)
    assert done.skipped == (("strip1/view.1.png", f"no photo in {photos}"),)
    assert read_cam(tmp_path / "a/cams_1/strip1__view.3_cam.txt").depth is None
    convert("b", keep_distortion=True, downscale=2)
    frames = json.loads((tmp_path / "b/transforms.json").read_text())["frames"]
    assert len(frames) == 5
    assert (frames[0]["k1"], frames[0]["p2"], frames[0]["w"]) == (-0.1, -0.002, 48)

    def spoiled(message: str, **names: str) -> None:
        images = {i: replace(image, name=names.get(f"n{i}", image.name)) for i, image in source.images.items()}
        write_binary(replace(source, images=images), tmp_path / "sparse" / "0")
        with pytest.raises(DataError, match=message):
            convert("c")
        assert not (tmp_path / "c").exists()

    spoiled("leaves the image folder", n100="../photos/strip0/view.0.png")
    write_image(photos / "strip0__view.0.jpg", picture(LENS, POSES[0]))
    spoiled("same name as", n86="strip0__view.0.jpg")
    colmap_project(tmp_path, "OPENCV_FISHEYE")
    with pytest.raises(DataError, match=r"OPENCV_FISHEYE.*image_undistorter"):
        convert("c")
