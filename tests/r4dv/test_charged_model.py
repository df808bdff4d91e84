"""Pictures of a charge against the plain formula, and everything that can be asked of the model (spec r4dv 5.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE
from charge_folders import make_charge
from charged_formula import plain_colour
from charged_scenes import at_time, open_charge, plain_camera
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context

from core_ns.errors import DataError
from r4dv_ns import charged_model
from r4dv_ns.charge_manifest import read_manifest, write_manifest
from r4dv_ns.drawing import pinhole
from r4dv_ns.peel import peel
from r4dv_ns.viewer import Look

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture
def opened(tmp_path):
    """Makes a charge and opens it; ends the threads afterwards."""
    made = []

    def open_one(parser: dict[str, Any] | None = None, charge: dict[str, Any] | None = None, **model: Any) -> Any:
        folder = tmp_path / f"charge_{len(made)}"
        make_charge(folder, **{"frames": 3, "n": 400, "s": 4, "views": 6, **(charge or {})})
        made.append(open_charge(folder, parser=parser, **model))
        return made[-1]

    yield open_one
    for pipeline in made:
        pipeline.model.close()


def expected(pipeline: Any, camera: Any, frame: int, layers: int = 12, background: float = 0.0) -> torch.Tensor:
    """The picture by the plain formula: all points, coloured one by one, peeled."""
    store, drawing = pipeline.datamanager.store, pinhole(camera)
    manifest, points = store.manifest, store.frame(frame)
    centre = drawing.centre.double().numpy()
    far = [np.linalg.norm(manifest.views[view].centre(frame) - centre) for view in points.src_id]
    colour = plain_colour(points, np.argsort(far, kind="stable")[:4].tolist(), centre, manifest.sh_limit)
    placed = torch.from_numpy(np.array(points.positions())) @ drawing.w2c[:3, :3].T + drawing.w2c[:3, 3]
    fx, fy, cx, cy = (float(drawing.K[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return peel(
        placed, torch.from_numpy(points.radius.astype(np.float32)), torch.from_numpy(points.alpha.astype(np.float32)),
        torch.from_numpy(colour).float(), fx=fx, fy=fy, cx=cx, cy=cy, height=drawing.height, width=drawing.width,
        layers=layers, background=torch.full((3,), background),
    ).color  # fmt: skip


@pytest.mark.parametrize(
    "charge",
    [{}, {"s": 0}, {"s": 2}, {"degree": 1}, {"pack": True}, {"static": 30}, {"moving": (0, 2)}],
    ids=lambda charge: "-".join(map(str, charge)) or "plain",
)
def test_a_picture_is_that_of_the_plain_formula(opened, charge):
    pipeline = opened(charge=charge)
    for index, frame in ((0, 0), (3, 2)):
        camera = plain_camera(pipeline.datamanager.train_dataset.cameras, index, times=at_time(frame / 2))
        found = pipeline.model.get_outputs_for_camera(camera)
        torch.testing.assert_close(found["rgb"], expected(pipeline, camera, frame), atol=1e-5, rtol=0)
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            "rgb": (48, 64, 3), "accumulation": (48, 64, 1), "depth": (48, 64, 1), "layers": (48, 64, 1)
        }  # fmt: skip
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.values())
        assert 0 < found["layers"].max() <= 1


def test_points_out_of_view_are_left_out_without_a_difference(opened, monkeypatch):
    """From within the cloud, and through a narrow lens: many points are behind the camera or beside the picture."""
    pipeline = opened(charge={"n": 1200})
    coloured = []
    shaded = charged_model.shaded
    monkeypatch.setattr(
        charged_model, "shaded", lambda xyz, *a, **k: (coloured.append(xyz.shape[1]), shaded(xyz, *a, **k))[1]
    )
    for changes in ({"scale": 0.1}, {"fx": 400.0}, {"scale": 0.5, "fx": 200.0}):
        camera = plain_camera(pipeline.datamanager.train_dataset.cameras, 1)
        camera.camera_to_worlds[0, :, 3] *= changes.get("scale", 1.0)
        camera.fx[:] = camera.fy[:] = changes.get("fx", 60.0)
        found = pipeline.model.get_outputs_for_camera(camera)["rgb"]
        torch.testing.assert_close(found, expected(pipeline, camera, 0), atol=1e-5, rtol=0)
    assert min(coloured) < 400
    assert len(coloured) == 3


def test_the_charge_says_how_it_is_drawn_and_the_config_can_say_otherwise(opened):
    pipeline = opened()
    folder = pipeline.datamanager.store.folder
    write_manifest(folder, replace(read_manifest(folder), layers=2, background=0.5, sources=1, time_mode="blend"))
    stored, given = open_charge(folder), open_charge(folder, layers=5, background=0.0, sources=4, time_mode="nearest")
    assert stored.model.settings[:2] == (2, 1)
    assert given.model.settings[:2] == (5, 4)
    camera = plain_camera(pipeline.datamanager.train_dataset.cameras, 0, times=at_time(0.2))
    shown = stored.model.get_outputs_for_camera(camera)
    assert shown["rgb"][0, 0].tolist() == [0.5] * 3
    torch.testing.assert_close(
        given.model.get_outputs_for_camera(camera)["rgb"], expected(given, camera, 0, layers=5), atol=1e-5, rtol=0
    )
    # 0.2 lies two fifths of the way from frame 0 to frame 1.
    ends = [stored.model.get_outputs_for_camera(plain_camera(camera, times=at_time(time)))["rgb"] for time in (0, 0.5)]
    torch.testing.assert_close(shown["rgb"], torch.lerp(*ends, 0.4))
    for pipeline in (stored, given):
        pipeline.model.close()
    for option in ({"layers": 0}, {"sources": 0}, {"background": 2.0}, {"min_pixel_radius": -1.0}, {"ahead": -1}):
        with pytest.raises(DataError, match=next(iter(option)).replace("_", "-")):
            open_charge(folder, **option)


def test_time_chooses_the_frame(opened):
    pipeline = opened(charge={"frames": 5})
    cameras = pipeline.datamanager.train_dataset.cameras

    def drawn(time: float | None) -> torch.Tensor:
        return pipeline.model.get_outputs_for_camera(
            plain_camera(cameras, 0, times=None if time is None else at_time(time))
        )["rgb"]

    assert torch.equal(drawn(None), drawn(0.0))
    assert torch.equal(drawn(0.26), drawn(0.25))
    assert torch.equal(drawn(7.0), drawn(1.0))
    assert not torch.equal(drawn(0.75), drawn(1.0))


def test_frames_can_be_chosen(opened):
    whole = opened(charge={"frames": 5})
    folder, cameras = whole.datamanager.store.folder, whole.datamanager.train_dataset.cameras
    some, first = (
        open_charge(folder, parser={"frame_sample": (1, None, 2)}),
        open_charge(folder, parser={"first_frame": True}),
    )
    for pipeline, time, frame in ((some, 0.0, 1), (some, 1.0, 3), (first, 0.0, 0), (first, 1.0, 0)):
        camera = plain_camera(cameras, 2, times=at_time(time))
        torch.testing.assert_close(
            pipeline.model.get_outputs_for_camera(camera)["rgb"], expected(whole, camera, frame), atol=1e-5, rtol=0
        )
    assert len(first.model.times) == 1
    for pipeline in (some, first):
        pipeline.model.close()


def test_sources_are_chosen_by_the_camera_alone_and_never_held_out(opened):
    pipeline = opened(charge={"views": 9, "s": 8})
    model, cameras = pipeline.model, pipeline.datamanager.train_dataset.cameras
    for index in range(8):
        names = model.source_names(0, pinhole(plain_camera(cameras, index)).centre)
        assert len(names) == 4
        assert names[0] == f"cam_{index}", "the nearest is the camera itself"
        assert "cam_8" not in names
        judged = model.source_names(0, pinhole(plain_camera(cameras, index)).centre, index)
        assert judged[:3] == names[1:], "a recorded camera is not drawn from its own photo"
    model.settings = model.settings._replace(source_metric="angle")
    nearer = plain_camera(cameras, 3)
    nearer.camera_to_worlds[0, :, 3] *= 0.1
    assert model.source_names(0, pinhole(nearer).centre)[0] == "cam_3"


def test_other_kinds_of_cameras_and_rays_are_refused_in_a_line(opened):
    pipeline = opened()
    cameras = pipeline.datamanager.train_dataset.cameras
    with pytest.raises(DataError, match="fisheye"):
        pipeline.model.get_outputs_for_camera(plain_camera(cameras, camera_type=CameraType.FISHEYE))
    rays = RayBundle(torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 1))
    with pytest.raises(DataError, match="render-nearest-camera"):
        pipeline.model.get_outputs(rays)
    assert pipeline.model.get_param_groups() == {}


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (7, 3), (1, 40)])
def test_odd_sizes(opened, size):
    pipeline = opened()
    camera = plain_camera(
        pipeline.datamanager.train_dataset.cameras, width=torch.tensor([[size[0]]]), height=torch.tensor([[size[1]]])
    )
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == (size[1], size[0], 3)


def test_crop_background_and_transparency(opened):
    pipeline = opened()
    model, camera = pipeline.model, plain_camera(pipeline.datamanager.train_dataset.cameras)
    box = OrientedBox.from_params((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    whole, cut = model.get_outputs_for_camera(camera), model.get_outputs_for_camera(camera, obb_box=box)
    assert 0 < cut["accumulation"].sum() < 0.5 * whole["accumulation"].sum()
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        red = model.get_outputs_for_camera(camera)
        assert red["rgb"][0, 0].tolist() == [1, 0, 0]
        rgba = model.get_rgba_image(red)
    opaque = whole["accumulation"][..., 0] > 0.5
    torch.testing.assert_close(rgba[opaque], model.get_rgba_image(whole)[opaque], atol=1e-4, rtol=0)


def test_the_viewers_switches_change_what_a_browser_sees_alone(opened, monkeypatch):
    pipeline = opened(charge={"static": 40, "n": 400})
    model, camera = pipeline.model, plain_camera(pipeline.datamanager.train_dataset.cameras)
    plain = model.get_outputs_for_camera(camera)
    controls = model.controls
    assert controls.hidden() == []
    monkeypatch.setattr(controls, "in_browser", lambda: True)
    looks = [
        Look(12, base=False), Look(12, residual=False), Look(12, radius_scale=2.0), Look(1, solid=True), Look(1)
    ]  # fmt: skip
    seen = []
    for look in looks:
        monkeypatch.setattr(controls, "look", lambda look=look: look)
        seen.append(model.get_outputs_for_camera(camera)["rgb"])
        assert not torch.equal(seen[-1], plain["rgb"])
    assert seen[2].sum() > plain["rgb"].sum()
    monkeypatch.setattr(controls, "look", lambda: Look(12))
    accumulations = []
    for branch in ("surroundings", "subject"):
        monkeypatch.setattr(getattr(controls, branch), "gui_handle", None, raising=False)
        monkeypatch.setattr(controls, "hidden", lambda branch=branch: [1 if branch == "surroundings" else 0])
        accumulations.append(model.get_outputs_for_camera(camera)["accumulation"].sum())
    assert 0 < accumulations[1] < 0.4 * accumulations[0]
    assert accumulations[0] < plain["accumulation"].sum()


@pytest.mark.parametrize("photos", [0, 4])
def test_switches_without_an_effect_are_not_shown(opened, photos):
    controls = opened(charge={"s": photos}).model.controls
    assert controls.base.visible == controls.residual.visible == bool(photos)


def test_a_drawing_for_the_frusta(opened):
    pipeline = opened()
    data = pipeline.datamanager.train_dataset
    for item in (data[0], data[4]):
        assert item["image"].shape == (48, 64, 3)
        assert 0 < item["image"].max() <= 1
    assert data.cameras.width.tolist() == [[64]] * 5, "the data set's own cameras stay"


def test_the_viewer_opens_though_the_first_frame_is_damaged(opened, capsys):
    """Its frusta show that frame; the other frames shall still play."""
    pipeline = opened()
    (pipeline.datamanager.store.folder / "frames" / "000000" / "sh.npy").write_bytes(b"torn")
    for item in range(5):
        assert not pipeline.datamanager.train_dataset[item]["image"].any()
    assert capsys.readouterr().out.count("Frame 000000 stays empty") == 1
    camera = plain_camera(pipeline.datamanager.train_dataset.cameras, 0, times=at_time(1.0))
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].max() > 0


@pytest.mark.parametrize(("charge", "whole"), [({}, False), ({"static": 30}, True)])
def test_a_whole_scene_is_compared_with_the_whole_photo(opened, charge, whole):
    """As the run is (`JointModel.truth`): what is behind the subject is drawn, and not blackened in the photo."""
    model = opened(charge=charge).model
    photo, mask = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(48, 64, 1)
    mask[10:20, 10:20] = 1
    found, inside, _ = model.truth({"image": photo, "mask": mask}, torch.zeros(3))
    assert torch.equal(found, photo if whole else photo * mask)
    assert torch.equal(inside, mask[..., 0])


def test_the_moment_of_a_frame_is_that_frame_alone(opened, monkeypatch):
    """Cameras hold 1/3 as float32, which is a hair later: no second picture is blended in."""
    pipeline = opened(charge={"frames": 4}, time_mode="blend")
    model, cameras = pipeline.model, pipeline.datamanager.train_dataset.cameras
    drawn, picture = [], model._picture
    monkeypatch.setattr(model, "_picture", lambda *a: (drawn.append(a[1:3]), picture(*a))[1])
    for frame, time in enumerate(model.times):
        model.get_outputs_for_camera(plain_camera(cameras, 0, times=at_time(time)))
        assert drawn == [(frame, time)]
        drawn.clear()
    model.get_outputs_for_camera(plain_camera(cameras, 0, times=at_time(0.4)))
    assert [frame for frame, _ in drawn] == [1, 2]


def test_a_damaged_frame_is_an_error_for_tools_and_an_empty_picture_in_a_browser(opened, monkeypatch, capsys):
    pipeline = opened()
    (pipeline.datamanager.store.folder / "frames" / "000001" / "sh.npy").write_bytes(b"torn")
    camera = plain_camera(pipeline.datamanager.train_dataset.cameras, 0, times=at_time(0.5))
    with pytest.raises(DataError, match=r"sh\.npy"):
        pipeline.model.get_outputs_for_camera(camera)
    monkeypatch.setattr(pipeline.model.controls, "in_browser", lambda: True)
    monkeypatch.setattr(pipeline.model.controls, "time", lambda asked: asked)
    monkeypatch.setattr(pipeline.model.controls, "look", lambda: Look(12))
    monkeypatch.setattr(pipeline.model.controls, "hidden", lambda: [0])
    for _ in range(3):
        found = pipeline.model.get_outputs_for_camera(camera)
    assert not found["accumulation"].any()
    assert found["rgb"].shape == (48, 64, 3)
    assert capsys.readouterr().out.count("Frame 000001 stays empty") == 1
    whole = pipeline.model.get_outputs_for_camera(plain_camera(camera, times=at_time(1.0)))
    assert set(whole) == set(found)
