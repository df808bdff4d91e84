"""Ray casters at size: agreement with each other (spec xscale 8.3.1) and acceptance checks A1, A2, A3, A7, A18."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ray_meshes import (
    CENTRED,
    HEIGHT,
    LARGE,
    OFF_CENTRE,
    WIDTH,
    assert_agree,
    box_of_rays,
    built,
    looking_down,
    pixel_rays,
    sphere,
    terrain,
    terrain64,
)
from torch import Tensor

from core_ns.frames import project, w2c_opencv_from_c2w_opengl
from core_ns.raycast import interpolate

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("pair", [("embree", "warp"), ("embree", "open3d")], ids="-".join)
@pytest.mark.parametrize("mesh", ["sphere", "terrain"])
def test_casters_agree(pair: tuple[str, str], mesh: str) -> None:
    vertices, faces = sphere(6) if mesh == "sphere" else terrain(200)
    origins, directions = box_of_rays(vertices, 100_000)
    a, b = (built(name, vertices, faces).cast(origins, directions) for name in pair)
    assert_agree(a, b, vertices, faces, origins, directions)


@pytest.mark.parametrize("name", LARGE)
def test_a1_analytic_sphere(name: str) -> None:
    vertices, faces = sphere(6)
    assert len(faces) == 81_920
    origins, directions = box_of_rays(vertices, 50_000)
    hits = built(name, vertices, faces).cast(origins, directions)
    o, d = origins.double(), directions.double()
    half = (o * d).sum(1)
    under_root = half**2 - (o * o).sum(1) + 1
    cosine = under_root.clamp(min=0).sqrt()
    steep = (cosine > 0.2) & hits.hit
    assert (hits.hit[cosine > 0.2]).all()
    assert not hits.hit[under_root < 0].any()
    error = (hits.t.double() - (-half - cosine)).abs()[steep]
    assert torch.quantile(error, 0.99) <= 5e-4


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("intrinsics", [CENTRED, OFF_CENTRE], ids=["A2", "A3"])
def test_a2_a3_hits_project_to_their_pixel(name: str, intrinsics: np.ndarray) -> None:
    vertices, faces = terrain(300)
    c2w = looking_down()
    pixels, origins, directions = pixel_rays(c2w, intrinsics)
    hits = built(name, vertices, faces).cast(origins, directions)
    assert hits.hit.float().mean() > 0.5
    w2c = w2c_opencv_from_c2w_opengl(c2w)
    along_ray = (origins + hits.t[:, None] * directions)[hits.hit]
    for points in (along_ray, interpolate(hits, faces, vertices)[hits.hit]):
        back, depth = project(points.double().numpy(), intrinsics, w2c)
        error = np.abs(back - pixels[hits.hit.numpy()]).max(axis=1)
        assert (depth > 0).all()
        assert error.max() <= 0.02
        assert np.quantile(error, 0.99) <= 1e-3


def test_a3_control_symmetric_frustum_is_off_by_the_shift() -> None:
    vertices, faces = terrain(300)
    symmetric = OFF_CENTRE.copy()
    symmetric[:2, 2] = WIDTH / 2, HEIGHT / 2
    c2w = looking_down()
    pixels, origins, directions = pixel_rays(c2w, symmetric)
    hits = built("embree", vertices, faces).cast(origins, directions)
    points = (origins + hits.t[:, None] * directions)[hits.hit].double().numpy()
    back, _ = project(points, OFF_CENTRE, w2c_opencv_from_c2w_opengl(c2w))
    shift = back - pixels[hits.hit.numpy()]
    np.testing.assert_allclose(shift, np.broadcast_to([15.0, -15.0], shift.shape), atol=0.02)


def test_a7_geo_offset() -> None:
    """Centred in float64 the offset changes next to nothing; cast to float32 with the offset, most faces are wrong."""
    offset = np.array([5e5, 4e6, 100.0])
    local, faces_array = terrain64(300)
    size = 10.0
    local = local * size
    faces = torch.tensor(faces_array)
    c2w = looking_down()
    c2w[:3, 3] *= size
    _, _, directions = pixel_rays(c2w, CENTRED)

    def faces_hit(vertices: np.ndarray, centre: np.ndarray) -> Tensor:
        origins = torch.tensor(centre, dtype=torch.float32).repeat(len(directions), 1)
        return built("embree", torch.tensor(vertices).float(), faces).cast(origins, directions).face

    expected = faces_hit(local, c2w[:3, 3])
    geo_vertices, geo_centre = local + offset, c2w[:3, 3] + offset
    middle = (geo_vertices.min(0) + geo_vertices.max(0)) / 2
    centred = faces_hit(geo_vertices - middle, geo_centre - middle)
    uncentred = faces_hit(geo_vertices, geo_centre)
    assert (expected >= 0).float().mean() > 0.5
    assert (centred == expected).float().mean() >= 0.999
    assert (uncentred == expected).float().mean() < 0.9


TWENTY_MILLION = """
import resource, torch
from core_ns.raycast import make_caster
n = 3164
x = torch.linspace(-1, 1, n)
z = 0.1 * torch.sin(7 * x)[:, None] * torch.cos(5 * x)[None]
vertices = torch.stack([x[:, None].expand(n, n), x[None].expand(n, n), z], -1).reshape(-1, 3)
i = torch.arange(n * n).reshape(n, n)
a, b, c, d = (k.reshape(-1) for k in (i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]))
faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
del i, a, b, c, d
assert len(faces) > 20_000_000
origins = torch.rand(10_000, 3) * 1.8 - 0.9
origins[:, 2] = 2
hits = make_caster(vertices, faces, "cpu", "embree").cast(origins, torch.tensor([[0.0, 0, -1]]).expand(10_000, 3))
height = 0.1 * torch.sin(7 * origins[:, 0]) * torch.cos(5 * origins[:, 1])
assert bool(hits.hit.all())
assert float((2 - hits.t - height).abs().max()) < 1e-5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts KiB on Linux only")
def test_a18_twenty_million_faces_fit_in_8_gb() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWENTY_MILLION]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 <= 8e9
