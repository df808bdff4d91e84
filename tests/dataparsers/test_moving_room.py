"""The furnished room: rays hit what a mesh of the same boxes is hit at, and plates are photos without the subject."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core_ns.demo_textures import Noise
from core_ns.raycast import make_caster
from dataparsers.moving_room import _BOXES, CEILING, FLOOR, FURNITURE, HALF, HEIGHT, WALL, paint, strike
from dataparsers.moving_scene import build_moving_scene, make_moving_scene
from dataparsers.moving_studio import Nothing

QUADS = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))


def mesh_of(boxes):
    """Triangles of axis-aligned boxes [b, 2, 3]."""
    corners = torch.stack([boxes[:, pick, range(3)] for pick in np.indices((2, 2, 2)).reshape(3, 8).T], dim=1)
    faces = torch.tensor([[q[0], q[1], q[2]] for q in QUADS] + [[q[0], q[2], q[3]] for q in QUADS])
    offsets = 8 * torch.arange(len(boxes))[:, None, None]
    return corners.reshape(-1, 3), (faces[None] + offsets).reshape(-1, 3)


def test_rays_meet_the_same_surfaces_as_on_a_mesh():
    generator = torch.Generator().manual_seed(0)
    origins = (torch.rand(4000, 3, generator=generator) - 0.5) * torch.tensor([6.0, 6.0, 0.0])
    origins[:, 2] = 0.3 + 2.7 * torch.rand(4000, generator=generator)
    dirs = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=1)
    shell = torch.tensor([[[-HALF, -HALF, 0.0], [HALF, HALF, HEIGHT]]])
    vertices, faces = mesh_of(torch.cat([shell, _BOXES]))
    hits = make_caster(vertices, faces, "cpu").cast(origins, dirs)
    struck = strike(origins, dirs)
    inside = ((origins[:, None] > _BOXES[:, 0]) & (origins[:, None] < _BOXES[:, 1])).all(dim=2).any(dim=1)
    assert bool(hits.hit.all())
    torch.testing.assert_close(struck.t[~inside], hits.t[~inside], atol=2e-5, rtol=1e-5)
    box = hits.face[~inside] // 12
    item = struck.item[~inside]
    np.testing.assert_array_equal((item - FURNITURE)[box > 0], (box - 1)[box > 0])
    assert set(item[box == 0].tolist()) == {FLOOR, CEILING, WALL}
    # Normals face the ray and stand on the surface that was hit.
    assert bool(((struck.normals * dirs).sum(dim=1) <= 0).all())
    on_floor = struck.item == FLOOR
    assert float(struck.points[on_floor, 2].abs().max()) < 1e-5


def test_rays_along_an_axis_are_no_special_case():
    dirs = torch.cat([torch.eye(3), -torch.eye(3)])
    struck = strike(torch.tensor([[0.0, 2.9, 3.0]]).expand(6, 3), dirs)
    np.testing.assert_allclose(struck.t, [HALF, 1.0, 0.3, HALF, HALF + 2.9, 3.0], atol=1e-5)
    assert bool(struck.points.isfinite().all())


def test_paint_is_an_albedo_and_differs_from_place_to_place():
    generator = torch.Generator().manual_seed(1)
    dirs = torch.randn(3000, 3, generator=generator)
    colour = paint(strike(torch.tensor([[0.0, 0.0, 1.2]]).expand(3000, 3), dirs), Noise(0))
    assert 0.02 <= float(colour.min()) < float(colour.max()) <= 0.95
    assert float(colour.std(dim=0).min()) > 0.08


def test_cameras_stand_inside_and_see_the_subject_before_everything():
    for cameras in (8, 16):
        scene = build_moving_scene(cameras=cameras, frames=2, background="room")
        low, high = scene.bounds()
        for camera in scene.cameras.values():
            centre = torch.tensor(camera.centre, dtype=torch.float32)
            assert bool((centre.abs()[:2] < HALF).all())
            assert 0 < float(centre[2]) < HEIGHT
            assert not ((centre > _BOXES[:, 0]) & (centre < _BOXES[:, 1])).all(dim=1).any()
            towards = torch.tensor((low + high) / 2, dtype=torch.float32) - centre
            assert float(strike(centre[None], towards[None]).t) > 1.1, "nothing stands before the subject"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving") / "room"
    return folder, make_moving_scene(folder, 3, 2, (60, 75), background="room", supersample=1)


def test_a_plate_is_the_photo_without_the_subject_and_its_shadow(room):
    _, scene = room
    camera = scene.cameras["01"]
    plate = scene.plate(camera.lens, camera.w2c, 1)
    for frame in range(2):
        picture = scene.render(camera.lens, camera.w2c, frame, 1)
        behind = picture.coverage == 0
        same = (picture.rgb == plate).all(dim=-1)
        assert float(same[behind].float().mean()) > 0.85, "only shadows differ"
        shadow = behind & ~same
        assert shadow.any()
        assert bool((picture.rgb[shadow] <= plate[shadow]).all())
        assert not same[picture.coverage == 1].all()


def test_plates_lie_where_the_tools_look_for_them(room):
    folder, scene = room
    assert {path.name for path in (folder / "bkgd").iterdir()} == {"00.jpg", "01.jpg", "02.jpg"}
    stored = np.asarray(Image.open(folder / "bkgd" / "02.jpg")) / 255
    camera = scene.cameras["02"]
    assert np.sqrt(np.square(stored - scene.plate(camera.lens, camera.w2c, 1).numpy()).mean()) < 0.04


def test_where_nobody_is_nothing_is_hit():
    hits = Nothing().cast(torch.zeros(3, 3), torch.ones(3, 3))
    assert not hits.hit.any()
    assert bool((hits.face == -1).all())
    assert bool(torch.isinf(hits.t).all())
