"""Training pixels as rays: exact cameras (A3), any normalisation (A8), masks, cached distances, ranks, the copy."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xscale_models import CPU, NOISE, make_model, ring_of_cameras, sphere_mesh, write_mvsnet_scene

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, project, transform_cameras, w2c_opencv_from_c2w_opengl
from core_ns.images import read_image
from dataparsers.mvsnet import MvsCamera, read_cam, write_cam
from dataparsers.mvsnet_parser import MvsnetDataParserConfig
from xscale_ns.datamanager import XScaleDataManagerConfig
from xscale_ns.rays import image_pixels, pixel_rays
from xscale_ns.surface import Surface

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

WIDTH, HEIGHT = 96, 72
K = np.array([[90.0, 0, WIDTH / 2 + 15], [0, 84.0, HEIGHT / 2 - 15], [0, 0, 1]])
"""fx != fy and a principal point 15 px off the centre (acceptance A3)."""
TEST = (2, 5)


def bumpy_ball() -> tuple[np.ndarray, np.ndarray]:
    """Off the origin and as large as a building, so that normalisation matters."""
    vertices, faces = sphere_mesh(1.0, 4)
    bumps = 1 + 0.1 * np.sin(5 * vertices[:, :1]) * np.cos(4 * vertices[:, 1:2])
    return vertices * bumps * 12.0, faces


def pictures(count: int) -> list[np.ndarray]:
    """Every pixel tells its view, row and column."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return [np.stack([columns, rows, np.full_like(rows, view)], axis=-1).astype(np.uint8) for view in range(count)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    poses = ring_of_cameras(8, 40.0)
    poses[:, :3, 3] -= poses[:, :3, :3] @ np.array([100.0, -40.0, 7.0])  # world = ball's frame + this shift
    vertices, faces = bumpy_ball()
    mesh = vertices + np.array([100.0, -40.0, 7.0]), faces
    return write_mvsnet_scene(tmp_path_factory.mktemp("data") / "ball", poses, K, pictures(8), mesh, TEST)


def open_manager(scene: Path, parser: dict[str, Any] | None = None, mode: str = "val", **options: Any) -> Any:
    config = XScaleDataManagerConfig(
        dataparser=MvsnetDataParserConfig(data=scene, **(parser or {})), data=scene, train_num_rays_per_batch=300
    )
    for name, value in ({"storage": "ram", "jitter": False} | options).items():
        setattr(config, name, value)
    return config.setup(device="cpu", test_mode=mode)


def to_world(points: torch.Tensor, manager: Any) -> np.ndarray:
    outputs = manager.train_dataparser_outputs
    transform = outputs.dataparser_transform.double().numpy()
    return (points.double().numpy() / outputs.dataparser_scale - transform[:, 3]) @ transform[:, :3]


def train_cam(scene: Path, manager: Any, view: int):
    name = manager.train_dataset.image_filenames[view].stem
    return read_cam(scene / "cams" / f"{name}_cam.txt")


# ------------------------------------------------------------------------------------------------------- exact cameras


@pytest.mark.parametrize("up", ["keep", "cameras"])
def test_hit_points_project_back_to_their_pixels_with_the_full_intrinsics(scene: Path, up: str) -> None:
    """Acceptance A2 and A3, through parser, normalisation, rays and caster."""
    manager = open_manager(scene, {"up": up}, mode="inference")
    errors, control = [], []
    pixels = image_pixels(WIDTH, range(HEIGHT), (0.5, 0.5))
    for view in range(len(manager.train_dataset)):
        index = torch.full((len(pixels),), view)
        hits = manager.surface.first_hits(*pixel_rays(manager.train_dataset.cameras, index, pixels))
        assert hits.hit.sum() > 500
        cam = train_cam(scene, manager, view)
        world = to_world(hits.points[hits.hit], manager)
        expected = pixels[hits.hit].double().numpy()
        projected, _ = project(world, cam.intrinsics, cam.w2c)
        errors.append(np.linalg.norm(projected - expected, axis=-1))
        symmetric = np.array(
            [[K[1, 1], 0, WIDTH / 2], [0, K[1, 1], HEIGHT / 2], [0, 0, 1]]
        )  # upstream, spec xscale 2.2
        control.append((expected - project(world, symmetric, cam.w2c)[0]).mean(axis=0))
    error = np.concatenate(errors)
    assert error.max() <= 0.02
    assert np.quantile(error, 0.99) <= 1e-3
    assert np.linalg.norm(np.mean(control, axis=0)) > 15, "a symmetric frustum is off by the principal point's shift"


def test_any_rotation_and_scale_of_the_scene_gives_the_same_faces(scene: Path) -> None:
    """Acceptance A8: the parser's rotated, scaled frame against the files' own."""
    turned, kept = (open_manager(scene, {"up": up}, mode="inference") for up in ("cameras", "keep"))
    rotation = turned.train_dataparser_outputs.dataparser_transform[:, :3]
    assert (rotation - torch.eye(3)).abs().max() > 0.02, "the orientation must differ for this to test anything"
    vertices, faces = bumpy_ball()
    world = Surface(torch.from_numpy(vertices), torch.from_numpy(faces), CPU)  # unscaled, shift removed by hand
    pixels = image_pixels(WIDTH, range(HEIGHT), (0.5, 0.5))
    same = total = 0
    for view in range(len(turned.train_dataset)):
        index = torch.full((len(pixels),), view)
        found = [
            manager.surface.first_hits(*pixel_rays(manager.train_dataset.cameras, index, pixels)).face
            for manager in (turned, kept)
        ]
        cam = train_cam(scene, turned, view)
        c2w = np.linalg.inv(cam.w2c)
        directions = np.c_[(pixels.numpy() - K[:2, 2]) / np.diag(K)[:2], np.ones(len(pixels))] @ c2w[:3, :3].T
        origin = torch.from_numpy(c2w[:3, 3] - [100.0, -40.0, 7.0]).float().expand(len(pixels), 3).contiguous()
        unit = torch.nn.functional.normalize(torch.from_numpy(directions).float(), dim=-1)
        found.append(world.first_hits(origin, unit).face)
        same += int(((found[0] == found[1]) & (found[0] == found[2])).sum())
        total += len(pixels)
    assert same >= 0.999 * total


def test_a_geographic_offset_changes_no_face(scene: Path, tmp_path: Path) -> None:
    """Acceptance A7: cameras and mesh (as text, in float64) moved to survey coordinates."""
    shift = np.array([5e5, 4e6, 100.0])
    vertices, faces = bumpy_ball()
    vertices = vertices + np.array([100.0, -40.0, 7.0])
    managers = []
    for number, offset in enumerate((np.zeros(3), shift)):
        moved = tmp_path / str(number)
        shutil.copytree(scene, moved, ignore=shutil.ignore_patterns("mesh.ply"))
        lines = [f"v {x:.9f} {y:.9f} {z:.9f}" for x, y, z in vertices + offset]
        (moved / "mesh.obj").write_text("\n".join(lines + [f"f {a} {b} {c}" for a, b, c in faces + 1]) + "\n")
        for file in (moved / "cams").iterdir():
            cam = read_cam(file)
            w2c = cam.w2c.copy()
            w2c[:3, 3] -= w2c[:3, :3] @ offset
            write_cam(file, MvsCamera(w2c, cam.intrinsics))
        managers.append(open_manager(moved, {"up": "cameras"}, mode="inference"))
    pixels = image_pixels(WIDTH, range(HEIGHT), (0.5, 0.5))
    same = total = 0
    for view in range(6):
        index = torch.full((len(pixels),), view)
        plain, moved = (
            manager.surface.first_hits(*pixel_rays(manager.train_dataset.cameras, index, pixels)).face
            for manager in managers
        )
        same, total = same + int((plain == moved).sum()), total + len(pixels)
    assert same >= 0.999 * total


def test_colours_survive_a_camera_round_trip(scene: Path) -> None:
    """Acceptance A8: nerfstudio's camera to a world-to-camera matrix and back renders the same picture."""
    manager = open_manager(scene, {"up": "cameras"}, mode="inference")
    model = make_model(manager.surface, spread=3.0).eval()
    outputs = manager.train_dataparser_outputs
    original = manager.train_dataset.cameras[0:1]
    before = model.get_outputs_for_camera(original)["rgb"]
    cam = train_cam(scene, manager, 0)
    transform, scale = outputs.dataparser_transform.double().numpy(), outputs.dataparser_scale
    again = transform_cameras(c2w_opengl_from_w2c_opencv(cam.w2c)[None], transform, scale)[0]
    again = c2w_opengl_from_w2c_opencv(w2c_opencv_from_c2w_opengl(again))
    copy = manager.train_dataset.cameras[0:1]
    copy.camera_to_worlds = torch.from_numpy(again[None, :3]).float()
    after = model.get_outputs_for_camera(copy)["rgb"]
    assert ((before - after).abs().amax(dim=-1) < 1e-3).float().mean() >= 0.999
    assert before.std() > 0.02


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("storage", ["ram", "tiles", "decode-pool"])
def test_batches_hold_the_pixels_they_name(scene: Path, tmp_path: Path, storage: str) -> None:
    manager = open_manager(scene, storage=storage, tile_folder=tmp_path / "tiles", pool_tiles=64)
    try:
        bundle, batch = manager.next_train(0)
        again, _ = manager.next_train(1)
    finally:
        manager.pixels.close()
    views, rows, columns = batch["indices"].unbind(-1)
    assert bundle.origins.shape == (300, 1, 3)
    assert torch.equal(bundle.camera_indices[:, 0, 0], views)
    names = [int(path.stem) for path in manager.train_dataset.image_filenames]
    expected = torch.stack([columns, rows, torch.tensor(names)[views]], dim=-1).float() / 255
    assert torch.equal(batch["image"], expected), "the very pixel, exact to the bit (divided by 255, not 256)"
    assert set(views.tolist()) == set(range(6)), "all training views take part, no test view does"
    assert set(names) == {0, 1, 3, 4, 6, 7}
    centres = torch.stack([columns, rows], dim=-1) + 0.5
    origins, directions = pixel_rays(manager.train_dataset.cameras, views, centres)
    torch.testing.assert_close(bundle.origins[:, 0], origins)
    torch.testing.assert_close(bundle.directions[:, 0], directions)
    assert not torch.equal(again.directions, bundle.directions)


def test_jittered_sub_samples_stay_in_their_pixel_and_differ(scene: Path) -> None:
    manager = open_manager(scene, jitter=True, train_sub_samples=4)
    bundle, batch = manager.next_train(3)
    assert bundle.origins.shape == bundle.directions.shape == (300, 4, 3)
    views = batch["indices"][:, 0]
    cameras = manager.train_dataset.cameras
    c2w = cameras.camera_to_worlds[views]
    local = torch.einsum("nji,nsj->nsi", c2w[:, :, :3], bundle.directions)
    x = -local[..., 0] / local[..., 2] * cameras.fx[views] + cameras.cx[views]
    y = local[..., 1] / local[..., 2] * cameras.fy[views] + cameras.cy[views]
    inside = torch.stack([x, y], dim=-1) - batch["indices"][:, None, [2, 1]]
    assert inside.min() > -1e-3
    assert inside.max() < 1 + 1e-3
    torch.testing.assert_close(inside.mean(dim=(0, 1)), torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)
    assert (inside.std(dim=1) > 0.05).all()
    same, _ = open_manager(scene, jitter=True, train_sub_samples=4).next_train(3)
    assert torch.equal(same.directions, bundle.directions), "step and rank determine the draw"


@pytest.mark.parametrize("storage", ["ram", "tiles"])
def test_cached_distances_are_those_of_the_caster(scene: Path, tmp_path: Path, storage: str) -> None:
    manager = open_manager(scene, hits="cached", storage=storage, tile_folder=tmp_path / "tiles", pool_tiles=8)
    bundle, _ = manager.next_train(0)
    manager.pixels.close()
    t = bundle.metadata["t"]
    assert t.shape == (300, 1, 1)
    cast = manager.surface.first_hits(bundle.origins[:, 0], bundle.directions[:, 0])
    assert 0.1 < cast.hit.float().mean() < 0.9
    assert torch.equal(torch.isfinite(t[:, 0, 0]), cast.hit)
    torch.testing.assert_close(t[cast.hit, 0, 0], cast.t[cast.hit], atol=1e-6, rtol=0)


def test_ranks_draw_different_pixels(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.utils import comms

    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(comms, "get_rank", lambda rank=rank: rank)
        drawn.append({tuple(row) for row in open_manager(scene).next_train(0)[1]["indices"].tolist()})
    assert len(drawn[0] & drawn[1]) < 20


def test_evaluation_batches_come_from_held_out_photos(scene: Path) -> None:
    manager = open_manager(scene)
    bundle, batch = manager.next_eval(0)
    view, row, column = batch["indices"].unbind(-1)
    name = int(manager.eval_dataset.image_filenames[int(view[0])].stem)
    assert name in TEST
    expected = torch.stack([column, row, torch.full_like(row, name)], dim=-1).float() / 255
    torch.testing.assert_close(batch["image"], expected)
    origins, _ = pixel_rays(manager.eval_dataset.cameras, view, torch.stack([column, row], dim=-1) + 0.5)
    torch.testing.assert_close(bundle.origins[:, 0], origins)


def test_transparent_pixels_are_never_drawn(scene: Path, tmp_path: Path) -> None:
    masked = tmp_path / "masked"
    shutil.copytree(scene, masked)
    for file in (masked / "images").iterdir():
        rgb, _ = read_image(file)
        alpha = np.where(np.arange(WIDTH) < 40, 0, 255).astype(np.uint8)[None].repeat(HEIGHT, 0)
        from PIL import Image

        Image.fromarray(np.dstack([rgb, alpha])).save(file)
    manager = open_manager(masked)
    columns = torch.cat([manager.next_train(step)[1]["indices"][:, 2] for step in range(4)])
    assert columns.min() >= 40
    data = manager.eval_dataset.get_data(0)
    assert data["mask"].shape == (HEIGHT, WIDTH, 1)
    assert not data["mask"][:, :40].any()
    assert data["mask"][:, 40:].all()


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_a_view_that_sees_nothing_is_left_out_but_keeps_its_number(scene: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.copytree(scene, away)
    file = away / "cams" / "00003_cam.txt"
    text = file.read_text().splitlines()
    text[1:4] = ["1 0 0 500", "0 1 0 500", "0 0 1 500"]
    file.write_text("\n".join(text) + "\n")
    manager = open_manager(away)
    blind = [path.stem for path in manager.train_dataset.image_filenames].index("00003")
    assert manager.kept_views == [view for view in range(6) if view != blind]
    _, batch = manager.next_train(0)
    assert set(batch["indices"][:, 0].tolist()) == set(manager.kept_views)
    assert len(manager.train_dataset) == 6, "exposure codes keep their views"


def test_a_mesh_elsewhere_is_one_clear_error(scene: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(scene, lost)
    for file in (lost / "cams").iterdir():
        text = file.read_text().splitlines()
        text[1:4] = ["1 0 0 5000", "0 1 0 5000", "0 0 1 5000"]
        file.write_text("\n".join(text) + "\n")
    with pytest.raises(DataError, match="no training view sees the mesh"):
        open_manager(lost)


def test_automatic_resolution_is_a_pixel_on_the_surface(scene: Path) -> None:
    manager = open_manager(scene, mode="inference")
    # Independent estimate: nearly fronto-parallel hits are about distance / focal wide; the median is a bit above.
    assert manager.train_dataset.metadata["finest_resolution"] == 512, "small pictures end at the lower bound"
    extra = manager._survey(manager.train_dataset.cameras, samples=2000)
    assert all(0.1 < share < 0.9 for share in extra["hit_shares"])
    assert math.isfinite(extra["finest_resolution"])


# --------------------------------------------------------------------------------------------------- the run's copy


def test_tools_see_the_scene_as_it_was_trained_on(scene: Path, tmp_path: Path) -> None:
    data = tmp_path / "ball"
    shutil.copytree(scene, data)
    run = tmp_path / "run"
    first = open_manager(data, {"up": "cameras"}, run_dir=run)
    shutil.rmtree(data)
    for mode in ("test", "inference"):
        later = open_manager(data, {"up": "keep"}, mode=mode, run_dir=run)  # even asked for another orientation
        for split in ("train_dataset", "eval_dataset"):
            theirs, mine = getattr(first, split).cameras, getattr(later, split).cameras
            assert torch.equal(theirs.camera_to_worlds, mine.camera_to_worlds)
            assert torch.equal(theirs.cx, mine.cx)
        assert torch.equal(first.surface.vertices, later.surface.vertices)
        assert torch.equal(first.surface.faces, later.surface.faces)
        assert later.kept_views == first.kept_views
        assert later.train_dataset.metadata["finest_resolution"] == first.train_dataset.metadata["finest_resolution"]
        assert later.train_dataset.metadata["train_names"] == ["00000", "00001", "00003", "00004", "00006", "00007"]
        assert max(later.train_dataset[0]["image"].shape[:2]) <= 160, "a thumbnail stands in for the photo"


def test_other_data_named_by_the_user_wins_over_the_runs_copy(scene: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    open_manager(scene, run_dir=run)
    shutil.copytree(scene, other)
    (other / "test_views.txt").write_text("00000\n00001\n00002\n")
    manager = open_manager(other, mode="test", run_dir=run)
    assert len(manager.eval_dataset) == 3


def test_a_damaged_copy_is_named(scene: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_manager(scene, run_dir=run)
    (run / "scene" / "mesh.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"mesh\.npz"):
        open_manager(scene, mode="inference", run_dir=run)
